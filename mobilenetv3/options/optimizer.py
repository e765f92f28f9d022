"""Options of the update: optimizer and learning-rate schedule."""
from mobilenetv3.arguments import (
    ABOVE_ZERO,
    BELOW_ONE,
    COUNT,
    NOT_NEGATIVE,
    PATH,
    POSITIVE,
    POSITIVE_INT,
    SHARE,
    TEXT,
    Choice,
    Flag,
)


def optimizer(parser):
    """The update of the weights."""
    add = parser.add_argument_group("optimizer").add_argument
    add("--opt", metavar="NAME", default="sgd",
        type=Choice("sgd", "momentum", "nesterov", "rmsprop", "rmsproptf", "adam", "adamw", "lamb",
                    "lambc", "npufusedsgd", "npufusedrmsprop", "npufusedrmsproptf"),
        help="as in timm: sgd and nesterov are SGD with Nesterov momentum, momentum is plain SGD "
             "with momentum; or rmsprop, rmsproptf, adam, adamw, lamb, lambc; npufusedsgd (without "
             "Nesterov), npufusedrmsprop and npufusedrmsproptf are torch_npu's, and where it is "
             "missing their plain twins")
    add("--optimizer_form", type=Choice("auto", "plain"), default="auto",
        help="auto updates all weights, and the moving average, in as few kernels as PyTorch has "
             "for it; plain one by one, which gives the same but for the last digit")
    add("--lr", "--learning_rate", type=POSITIVE, default=0.1,
        help="learning rate, for the batch size as given")
    add("--scale_lr", metavar="IMAGES", type=POSITIVE_INT,
        help="read --lr as the rate for a batch of so many images, and scale it in proportion to "
             "--batch_size, times --grad_accum_steps (default: never changed)")
    add("--momentum", type=BELOW_ONE, default=0.9, help="of SGD and RMSprop")
    add("--weight_decay", "--wd", type=NOT_NEGATIVE, default=1e-4, help="weight decay")
    add("--opt_eps", type=POSITIVE, help="the optimizer's epsilon (default: its own)")
    add("--opt_betas", type=BELOW_ONE, nargs=2, metavar=("B1", "B2"),
        help="of Adam and LAMB (default: the optimizer's own)")
    add("--filter_bias_and_bn", action=Flag, help="no weight decay on biases and normalisation")
    add("--backbone_lr_scale", metavar="FACTOR", type=POSITIVE, default=1.0,
        help="factor of the learning rate for all but the classifier; in fine-tuning often 0.1")
    add("--layer_decay", metavar="FACTOR", type=ABOVE_ZERO,
        help="factor of the learning rate from each layer to the one before it, as in timm "
             "(default: all have the same rate)")
    add("--clip_grad", type=POSITIVE, help="limit of the gradients (default: none)")
    add("--clip_mode", type=Choice("norm", "value", "agc"), default="norm",
        help="what --clip_grad limits: their norm, each value, or (agc) their norm relative to the "
             "weights', but for the classifier")
    add("--grad_accum_steps", metavar="STEPS", type=POSITIVE_INT, default=1,
        help="steps whose gradients make one update of the weights; each step has --batch_size "
             "images")
    add("--model_ema", action=Flag, help="keep and score a moving average of the weights")
    add("--model_ema_decay", type=BELOW_ONE, default=0.9999,
        help="share of the old average that an update keeps")
    add("--model_ema_warmup", action=Flag,
        help="let that share grow from 0, as timm does: 1 - n^(-2/3) in update n, up to "
             "--model_ema_decay")


def schedule(parser):
    """The length of the run and its learning rate."""
    add = parser.add_argument_group("schedule").add_argument
    add("--epochs", metavar="EPOCHS", type=POSITIVE_INT, default=90,
        help="passes over the training images")
    add("--start_epoch", metavar="EPOCH", type=COUNT,
        help="number of the first epoch, from 0 (default: 0, or where the resumed run stopped)")
    add("--max_steps", metavar="STEPS", type=POSITIVE_INT,
        help="end the run after so many steps, counted over all epochs; it may be resumed with "
             "more (default: no limit)")
    add("--sched", type=Choice("step", "cosine"), default="step",
        help="how the learning rate falls: by a factor every few epochs, or along a cosine")
    add("--decay_epochs", "--lr_step_size", metavar="EPOCHS", type=POSITIVE, default=30.0,
        help="epochs from one fall to the next, also 2.4 and the like; with --sched step")
    add("--decay_rate", "--lr_gamma", type=ABOVE_ZERO, default=0.1,
        help="factor of each fall; with --sched step")
    add("--warmup_epochs", metavar="EPOCHS", type=COUNT, default=0,
        help="epochs in which the learning rate rises to --lr")
    add("--warmup_lr", type=NOT_NEGATIVE, default=1e-5,
        help="learning rate at the start of the warm-up")
    add("--min_lr", type=NOT_NEGATIVE, default=0.0,
        help="learning rate at the end; with --sched cosine")
    add("--cooldown_epochs", metavar="EPOCHS", type=COUNT, default=0,
        help="epochs at --min_lr after --epochs; with --sched cosine")
    add("--lr_noise", type=SHARE, nargs=2, metavar=("FROM", "TO"),
        help="add timm's noise to the learning rate between these shares of the epochs (default: "
             "none)")
    add("--sched_on_updates", action=Flag,
        help="change the learning rate at every update, not every epoch")


def distillation(parser):
    """A trained network beside the labels."""
    add = parser.add_argument_group("distillation (learning from a trained network, too)"
                                    ).add_argument
    add("--teacher", "--teacher_model", "--kd_model_name", metavar="NAME|FILE", type=TEXT,
        help="a model of timm's with its published weights, from the hub or its cache, or a file "
             "of weights of any kind that python -m mobilenetv3.convert reads; trained on the same "
             "classes (default: none)")
    add("--teacher_ckpt", "--teacher_path", metavar="FILE", type=PATH,
        help="weights of the teacher that --teacher names, in place of the published ones")
    add("--distill_alpha", "--distillation_alpha", metavar="SHARE", type=ABOVE_ZERO, default=0.5,
        help="share of the teacher in the loss; the labels have the rest")
    add("--distill_temperature", "--distillation_tau", "--kd_temperature", metavar="T",
        type=POSITIVE, default=1.0, help="divides the logits of both; above 1 also what the "
        "teacher finds unlikely counts")

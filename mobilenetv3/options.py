"""Every option of train.py and validate.py: its spellings, type, default and meaning.

The first spelling gives the name in the configuration and in YAML files. Dashes and underscores are
the same everywhere, and every other long spelling works in YAML files, too.
"""
from mobilenetv3.arguments import (
    ABOVE_ZERO,
    BELOW_ONE,
    COUNT,
    NOT_NEGATIVE,
    PATH,
    PATH_OR_FLAG,
    POSITIVE,
    POSITIVE_INT,
    SHARE,
    TEXT,
    Choice,
    Flag,
    Number,
    Parser,
)

SEED = Number(int, "an integer from 0 to 2147483647", lambda n: 0 <= n < 2**31)
IMG_SIZE = Number(int, "an integer of 32 or more", lambda n: n >= 32)
LOSS_SCALE = Number(float, "dynamic or a positive number", lambda x: x > 0, word="dynamic")

SPELLING = """\
Dashes and underscores are the same in option names. A flag can be taken back with --no_NAME or
--NAME=false. Where an option stands twice, the last one counts.
"""

TRAIN_HELP = f"""\
Train MobileNetV3 or MobileNetV2 on Ascend NPU, NVIDIA GPU or CPU.
Without a data path it trains on the built-in demo set, with the recipe configs/demo.yaml.

{SPELLING}"""

TRAIN_EXAMPLES = """\
examples:
  python train.py
  python train.py -c configs/mobilenetv3/mobilenetv3_large_100_ascend_1p.yaml --data_path DIR
  torchrun --nproc_per_node=8 train.py DIR --model mobilenetv2_100 --batch_size 2048 --lr 0.4
"""

VALIDATE_HELP = f"""\
Score weights on the validation images, every image once.
What is not given, such as the model and the image size, is as the checkpoint says.
Without a data path the images are those of the built-in demo set.

{SPELLING}"""

VALIDATE_EXAMPLES = """\
examples:
  python validate.py DIR --ckpt_path output/RUN/model_best.pth.tar
  python validate.py DIR --model mobilenetv3_small_100 --pretrained
  python validate.py -c output/RUN/config.yaml --ckpt_path output/RUN/model_best.pth.tar
"""


def train_parser() -> Parser:
    """The parser of train.py."""
    parser = Parser("train.py", TRAIN_HELP, TRAIN_EXAMPLES, trains=True)
    _model(parser)
    _data(parser)
    _augmentation(parser)
    _optimizer(parser)
    _schedule(parser)
    _device(parser)
    _distributed(parser)
    _run(parser)
    return parser


def validate_parser() -> Parser:
    """The parser of validate.py: part of train.py's options, under the same names.

    It reads the YAML files of training, and passes over what says how to train. The weights are
    passed over, too: in such a file they are those that training started from.
    """
    parser = Parser("validate.py", VALIDATE_HELP, VALIDATE_EXAMPLES, trains=False)
    _model(parser, more_ckpt_names=("--checkpoint", "--resume"))
    _data(parser)
    _device(parser)
    _score(parser)
    # None: not given, so that the checkpoint can tell.
    parser.set_defaults(model=None, img_size=None, crop_pct=None, interpolation=None)
    names = parser.names()
    own = {name for name, action in names.items() if action.dest not in ("ckpt_path", "pretrained")}
    parser.skipped = frozenset({*train_parser().names(), *names} - own)
    return parser


def _model(parser, more_ckpt_names=()):
    add = parser.add_argument_group("model").add_argument
    add("--model", "--arch", "-a", metavar="NAME", type=TEXT, default="mobilenetv3_large_100",
        help="python -m mobilenetv3.models lists the names")
    add("--num_classes", metavar="N", type=POSITIVE_INT,
        help="outputs of the classifier (default: as many as the data set has classes)")
    add("--drop", type=BELOW_ONE, default=0.0, help="dropout before the classifier")
    add("--drop_path", "--drop_connect", type=BELOW_ONE, default=0.0,
        help="probability of skipping a residual block in training")
    add("--bn_eps", type=POSITIVE, help="BatchNorm's epsilon (default: the model's own)")
    add("--bn_momentum", type=ABOVE_ZERO, help="BatchNorm's momentum (default: the model's own)")
    add("--pad_type", type=Choice("symmetric", "same_depthwise", "same"), metavar="TYPE",
        help="padding: symmetric, or TensorFlow's, in the depthwise convolutions (same_depthwise) "
             "or in all of them (same); (default: the model's own)")
    add("--width_rule", type=Choice("timm", "torchvision"),
        help="how the width scales channels (default: as the model's name says)")
    add("--pretrained", type=PATH_OR_FLAG, nargs="?", const=True, default=False,
        help="take timm's weights of the model's name, or those in the file PATH")
    add("--ckpt_path", "--initial_checkpoint", *more_ckpt_names, type=PATH, default="",
        help="file of weights to start from or to score")


def _data(parser):
    add = parser.add_argument_group("data").add_argument
    add("data", nargs="?", type=PATH, metavar="DATA", help="the same as --data_path")
    add("--data_path", "--data", "--data_dir", metavar="DIR", type=PATH, default="",
        help="the data set's folder (default: the built-in demo set)")
    add("--dataset", type=Choice("imagenet", "folder", "cifar10", "demo"),
        help="imagenet is a folder of 1000 classes (default: folder with a data path, else demo)")
    add("--dataset_download", action=Flag, help="fetch CIFAR-10 into the data path")
    add("--train_split", metavar="NAME", type=TEXT, default="train",
        help="folder of the training images")
    add("--val_split", metavar="NAME", type=TEXT, default="val",
        help="folder of the validation images")
    add("--img_size", metavar="PIXELS", type=IMG_SIZE, default=224,
        help="side of the square that the model sees")
    add("--batch_size", "-b", metavar="IMAGES", type=POSITIVE_INT, default=64,
        help="images in one step, all ranks together")
    add("--val_batch_size", "--validation_batch_size", "-vb", metavar="IMAGES", type=POSITIVE_INT,
        help="images in one step of validation (default: as --batch_size)")
    add("--workers", "-j", "--num_parallel_workers", metavar="N", type=COUNT, default=4,
        help="loader processes of each rank; 0 loads in the training process")
    add("--pin_mem", action=Flag, help="accepted; host memory is pinned wherever there is a card")
    add("--mean", type=SHARE, nargs=3, metavar=("R", "G", "B"),
        help="mean of images scaled to 0..1 (default: ImageNet's)")
    add("--std", type=ABOVE_ZERO, nargs=3, metavar=("R", "G", "B"),
        help="standard deviation of images scaled to 0..1 (default: ImageNet's)")
    add("--crop_pct", type=ABOVE_ZERO, default=0.875,
        help="side of validation's centre crop, as a share of the resized shorter side")
    add("--interpolation", type=Choice("bilinear", "bicubic", "nearest"), default="bilinear",
        metavar="METHOD", help="of validation's resize: bilinear, bicubic or nearest")


def _augmentation(parser):
    add = parser.add_argument_group("augmentation of training images").add_argument
    add("--no_aug", action=Flag,
        help="resize and centre crop in place of random crops, flips and colours, as in timm")
    add("--train_interpolation", type=Choice("bilinear", "bicubic", "nearest", "random"),
        metavar="METHOD", default="bilinear",
        help="of the random crop's resize: bilinear, bicubic, nearest or random")
    add("--scale", type=ABOVE_ZERO, nargs=2, metavar=("LOW", "HIGH"), default=[0.08, 1.0],
        help="share of the image's area that a random crop takes")
    add("--ratio", type=POSITIVE, nargs=2, metavar=("LOW", "HIGH"), default=[0.75, 1.3333333],
        help="aspect ratio of a random crop")
    add("--hflip", type=SHARE, default=0.5, help="probability of a horizontal flip")
    add("--vflip", type=SHARE, default=0.0, help="probability of a vertical flip")
    add("--color_jitter", type=NOT_NEGATIVE, default=0.0, help="strength of colour jitter")
    add("--aa", metavar="POLICY", type=TEXT,
        help="timm's AutoAugment, RandAugment or AugMix policy, such as rand-m9-mstd0.5")
    add("--reprob", type=SHARE, default=0.0, help="probability of random erasing")
    add("--remode", type=Choice("const", "rand", "pixel"), default="const",
        help="erased parts become the mean colour, one random colour, or random pixels")
    add("--recount", metavar="N", type=POSITIVE_INT, default=1, help="rectangles erased, at most")
    add("--mixup", type=NOT_NEGATIVE, default=0.0, help="Mixup's alpha; 0 is off")
    add("--cutmix", type=NOT_NEGATIVE, default=0.0, help="CutMix's alpha; 0 is off")
    add("--mixup_prob", type=SHARE, default=1.0, help="probability that a batch is mixed")
    add("--mixup_switch_prob", type=SHARE, default=0.5,
        help="probability of CutMix, where both are on")
    add("--mixup_mode", type=Choice("batch", "pair", "elem"), default="batch",
        help="what is mixed in one ratio: a batch, a pair or an image")
    add("--mixup_off_epoch", metavar="EPOCH", type=COUNT, default=0,
        help="first epoch without Mixup and CutMix; 0 is never")
    add("--smoothing", "--label_smoothing", type=BELOW_ONE, default=0.0,
        help="label smoothing")


def _optimizer(parser):
    add = parser.add_argument_group("optimizer").add_argument
    add("--opt", metavar="NAME", default="sgd",
        type=Choice("sgd", "momentum", "nesterov", "rmsprop", "rmsproptf", "adamw", "lamb"),
        help="as in timm: sgd and nesterov are SGD with Nesterov momentum, momentum is plain SGD "
             "with momentum; or rmsprop, rmsproptf, adamw, lamb")
    add("--lr", "--learning_rate", type=POSITIVE, default=0.1,
        help="learning rate, for the batch size as given")
    add("--scale_lr", metavar="IMAGES", type=POSITIVE_INT,
        help="read --lr as the rate for a batch of so many images, and scale it in proportion to "
             "--batch_size (default: never changed)")
    add("--momentum", type=BELOW_ONE, default=0.9, help="of SGD and RMSprop")
    add("--weight_decay", "--wd", type=NOT_NEGATIVE, default=1e-4, help="weight decay")
    add("--opt_eps", type=POSITIVE, help="the optimizer's epsilon (default: its own)")
    add("--opt_betas", type=BELOW_ONE, nargs=2, metavar=("B1", "B2"),
        help="of AdamW and LAMB (default: the optimizer's own)")
    add("--filter_bias_and_bn", action=Flag, help="no weight decay on biases and normalisation")
    add("--clip_grad", type=POSITIVE, help="limit of the gradients (default: none)")
    add("--clip_mode", type=Choice("norm", "value", "agc"), default="norm",
        help="what --clip_grad limits: their norm, each value, or (agc) their norm relative to the "
             "weights'")
    add("--grad_accum_steps", metavar="STEPS", type=POSITIVE_INT, default=1,
        help="steps whose gradients make one update of the weights; each step has --batch_size "
             "images")
    add("--model_ema", action=Flag, help="keep and score a moving average of the weights")
    add("--model_ema_decay", type=BELOW_ONE, default=0.9999,
        help="share of the old average that an update keeps")


def _schedule(parser):
    add = parser.add_argument_group("schedule").add_argument
    add("--epochs", metavar="EPOCHS", type=POSITIVE_INT, default=90,
        help="passes over the training images")
    add("--start_epoch", metavar="EPOCH", type=COUNT,
        help="number of the first epoch, from 0 (default: 0, or where the resumed run stopped)")
    add("--max_steps", metavar="STEPS", type=POSITIVE_INT,
        help="end the run after so many steps, counted over all epochs (default: no limit)")
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
    add("--sched_on_updates", action=Flag,
        help="change the learning rate at every update, not every epoch")


def _device(parser):
    add = parser.add_argument_group("device and precision").add_argument
    add("--device", type=Choice("auto", "npu", "cuda", "cpu"), default="auto",
        help="auto takes the first of npu, cuda and cpu that is usable")
    add("--device_id", metavar="N", type=COUNT,
        help="number of the card, for a run on one (default: $ASCEND_DEVICE_ID, or 0)")
    add("--apex", action=Flag, help="mixed precision, as Apex defines it")
    add("--apex_opt_level", "--opt_level", type=Choice("O0", "O1", "O2", "O3"), default="O2",
        help="level of mixed precision; with --apex")
    add("--loss_scale_value", "--loss_scale", metavar="SCALE", type=LOSS_SCALE,
        help="factor of the loss: dynamic, or a fixed number; with --apex (default: dynamic for O1 "
             "and O2 in float16, else 1)")
    add("--amp_dtype", type=Choice("float16", "bfloat16"), metavar="TYPE",
        help="half precision of --apex: float16 or bfloat16 (default: float16; on the CPU "
             "bfloat16)")
    add("--channels_last", action=Flag, help="keep images and weights in NHWC order")


def _distributed(parser):
    add = parser.add_argument_group("many ranks (torchrun needs none of these)").add_argument
    add("--distributed", action=Flag, help="refuse to start where no launcher has set the ranks")
    add("--world_size", metavar="RANKS", type=POSITIVE_INT, default=1,
        help="number of ranks, where each is started by hand")
    add("--dist_url", metavar="URL", type=TEXT, default="env://",
        help="where ranks meet that are started by hand: tcp://HOST:PORT")
    add("--dist_backend", metavar="NAME", type=TEXT,
        help="collective library (default: hccl, nccl or gloo, as the device needs)")
    add("--dist_rank", metavar="RANK", type=COUNT, default=0,
        help="number of this rank, where each is started by hand")
    add("--dist_timeout", metavar="SECONDS", type=POSITIVE_INT, default=1800,
        help="how long a rank waits for the others before it gives up")
    add("--sync_bn", action=Flag,
        help="BatchNorm over the images of all ranks, not of each alone; needs cards")
    add("--dist_bn", type=Choice("broadcast", "reduce"), default="broadcast",
        help="running statistics that are scored and saved: rank 0's, or the mean of all ranks'")


def _run(parser):
    add = parser.add_argument_group("run").add_argument
    _common(add)
    add("--output", metavar="DIR", type=PATH, default="",
        help="folder of this run, new or empty (default: a new one under output/)")
    add("--resume", type=PATH, default="",
        help="checkpoint of a run to go on with, or auto: the newest in --output")
    add("--evaluate", "-e", action=Flag, help="score the weights instead of training")
    add("--skip_validation", action=Flag, help="train without validation, to measure speed")
    add("--log_tensorboard", "--tensorboard", action=Flag, help="write TensorBoard events, too")


def _score(parser):
    add = parser.add_argument_group("run").add_argument
    _common(add)
    add("--output", metavar="DIR", type=PATH, default="",
        help="folder for the results, new or empty (default: none is written)")


def _common(add):
    add("--config", "-c", metavar="FILE.yaml", type=PATH, default="",
        help="file of options, one NAME: VALUE a line; the command line wins over it")
    add("--print_freq", "-p", "--log_interval", metavar="STEPS", type=POSITIVE_INT, default=10,
        help="steps from one line of the log to the next")
    add("--seed", type=SEED, default=42, help="of all that is random")
    add("--help", "-h", action="help", help="show this text and exit")

"""Options of a run: device, precision, ranks, files."""
from mobilenetv3.arguments import (
    COUNT,
    NOT_NEGATIVE,
    PATH,
    PATH_OR_FLAG,
    POSITIVE,
    POSITIVE_INT,
    TEXT,
    Choice,
    Flag,
    Number,
)

COMPILE = Choice("default", "reduce-overhead", "max-autotune")
DEVICE = Choice("auto", "npu", "cuda", "cpu")
RANGE_UPDATES = Number(int, "an integer of 20 or more", lambda n: n >= 20)
SEED = Number(int, "an integer from 0 to 2147483647", lambda n: 0 <= n < 2**31)
LOSS_SCALE = Number(float, "dynamic or a positive number", lambda x: x > 0, word="dynamic")


def device(parser):
    """The device and how it computes."""
    add = parser.add_argument_group("device and precision").add_argument
    add("--device", type=DEVICE, default="auto",
        help="auto takes the first of npu, cuda and cpu that is usable")
    add("--device_id", metavar="N", type=COUNT,
        help="number of the card, for a run on one (default: $ASCEND_DEVICE_ID, or 0)")
    add("--apex", action=Flag, help="mixed precision, as Apex defines it")
    add("--apex_opt_level", "--opt_level", type=Choice("O0", "O1", "O2", "O3"), default="O2",
        help="level of mixed precision; with --apex")
    add("--loss_scale_value", "--loss_scale", metavar="SCALE", type=LOSS_SCALE,
        help="factor of the loss: dynamic, or a fixed number; with --apex (default: dynamic for O1 "
             "and O2 in float16, else 1)")
    add("--amp_backend", type=Choice("native", "apex", "auto"), metavar="NAME", default="native",
        help="whose code --apex trains with: this package's (native), an installed Apex's (apex), "
             "or Apex's where there is one (auto)")
    add("--amp_dtype", type=Choice("float16", "bfloat16"), metavar="TYPE",
        help="half precision of --apex: float16 or bfloat16 (default: float16; on the CPU "
             "bfloat16)")
    add("--channels_last", action=Flag, default=None,
        help="keep images and weights in NHWC order, or with --channels_last=false in NCHW "
             "(default: NHWC where it is faster: on the CPU, and on NVIDIA cards with --apex)")


def distributed(parser):
    """Many ranks."""
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


def run(parser):
    """The files and the log of a training run."""
    add = parser.add_argument_group("run").add_argument
    _common(add)
    add("--output", metavar="DIR", type=PATH, default="",
        help="folder of this run, new or empty (default: a new one under output/)")
    add("--resume", type=PATH, default="",
        help="checkpoint of a run to go on with, or auto: the newest in --output that is whole; "
             "with none there yet, it starts from the beginning")
    add("--checkpoint_every", "--recovery_interval", metavar="STEPS", type=COUNT, default=0,
        help="save a checkpoint every so many steps, too; 0: only after each epoch")
    add("--checkpoint_minutes", metavar="MINUTES", type=NOT_NEGATIVE, default=0.0,
        help="save a checkpoint when so many minutes have passed since the one before; 0: only "
             "after each epoch")
    add("--keep_last", "--checkpoint_hist", "--keep_checkpoint_max", metavar="N",
        type=POSITIVE_INT, default=2, help="how many of the newest checkpoints stay, besides the "
        "best")
    add("--keep_every", metavar="EPOCHS", type=COUNT, default=0,
        help="the checkpoint of every so many epochs stays for good; 0: none")
    add("--on_nan", type=Choice("stop", "restore"), default="stop",
        help="when the loss becomes NaN or infinite: stop, or restore the newest checkpoint and go "
             "on behind the step that failed, at most three times")
    add("--evaluate", "-e", action=Flag, help="score the weights instead of training")
    add("--skip_validation", action=Flag, help="train without validation, to measure speed")
    add("--log_tensorboard", "--tensorboard", action=Flag, help="write TensorBoard events, too")
    add("--compile", metavar="MODE", nargs="?", const=COMPILE.words[0], type=COMPILE,
        help="compile forward and loss by torch.compile: default, reduce-overhead (CUDA graphs) or "
             "max-autotune; where that fails, the log says why and the run goes on without")
    add("--profile", metavar="STEPS", nargs="?", const=10, type=POSITIVE_INT,
        help="watch some steps after the first, 10 unless given, and write a trace and a summary "
             "of where their time went into the folder profile/ of the run")


def trials(parser):
    """What is tried before a run; the options of the run stand beside it."""
    add = parser.add_argument_group("trials (they leave no run behind)").add_argument
    add("--dry_run", action=Flag,
        help="build everything, train two steps, score one batch, write and read a checkpoint; "
             "tell memory, size, time and end of the run, and remove what was written")
    add("--lr_find", metavar="UPDATES", nargs="?", const=100, type=RANGE_UPDATES,
        help="range test: raise the learning rate over so many updates, 100 unless given, until "
             "the loss diverges; suggest one, and write lr_find.json and lr_find.png into the "
             "run folder")
    add("--lr_find_range", type=POSITIVE, nargs=2, metavar=("LOW", "HIGH"), default=[1e-5, 10.0],
        help="rates of the first and the last update of --lr_find")


def score(parser):
    """The files and the log of a command that scores."""
    add = parser.add_argument_group("run").add_argument
    _common(add)
    add("--output", metavar="DIR", type=PATH, default="",
        help="folder for the results, new or empty (default: none is written)")
    add("--ema", action=Flag,
        help="score the averaged weights, or with --ema=false the others (default: the averaged "
             "ones of this package's and mmengine's files)")
    add("--json", metavar="FILE", type=PATH, default="", help="write all figures as JSON")
    add("--per_class", metavar="DIR", type=PATH_OR_FLAG, nargs="?", const=True, default=False,
        help="write the accuracy of each class and the confusion matrix (CSV, and PNG by "
             "matplotlib) into the folder DIR, or into --output")
    add("--force", action=Flag,
        help="replace files of --json, --per_class and --save that are there")


def scoring(parser):
    """How a network is scored, beyond the preparation of its images."""
    add = parser.add_argument_group("scoring").add_argument
    add("--tta_flip", "--tta", action=Flag,
        help="score the mean probabilities of each image and its mirror image")
    add("--recalibrate_bn", metavar="IMAGES", type=POSITIVE_INT,
        help="before scoring, estimate the running statistics of all batch norms anew: their mean "
             "over so many training images (whole batches, one at least), prepared as in "
             "validation (default: those of the file)")
    add("--save", metavar="FILE", type=PATH, default="",
        help="write the weights of --recalibrate_bn as a checkpoint of this package: .pth.tar, "
             ".pth, .pt or .safetensors (default: no file is changed or written)")
    add("--fuse_bn", action=Flag, default=None,
        help="fold batch norms into the convolutions before them, which changes results by "
             "rounding only, or with --fuse_bn=false do not (default: on the CPU without --apex, "
             "where it is faster)")


def _common(add):
    add("--config", "-c", metavar="FILE.yaml", type=PATH, default="",
        help="file of options, one NAME: VALUE a line; the command line wins over it")
    add("--print_freq", "-p", "--log_interval", metavar="STEPS", type=POSITIVE_INT, default=10,
        help="steps from one line of the log to the next")
    add("--seed", type=SEED, default=42, help="of all that is random")
    add("--help", "-h", action="help", help="show this text and exit")

"""Options of the network and of the weights it starts from."""
from mobilenetv3.arguments import (
    ABOVE_ZERO,
    BELOW_ONE,
    COUNT,
    PATH,
    PATH_OR_FLAG,
    POSITIVE,
    POSITIVE_INT,
    TEXT,
    Choice,
    Flag,
    Number,
    Several,
)


def model(parser, more_ckpt_names=(), several=False):
    """The network: its name, its size, its weights (with `several`, a list of files)."""
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
    add("--stem_stride", type=Number(int, "2 or 1", lambda n: n in (1, 2)), metavar="N",
        help="1 for images as small as CIFAR's: all maps have twice the side (default: 2, or as "
             "the weights were trained)")
    add("--width_rule", type=Choice("timm", "torchvision"),
        help="how the width scales channels (default: as the model's name says)")
    add("--pretrained", type=PATH_OR_FLAG, nargs="?", const=True, default=False,
        help="take timm's weights of the model's name, or those in the file PATH")
    names = ("--ckpt_path", "--initial_checkpoint", *more_ckpt_names)
    if several:
        add(*names, action=Several, metavar="FILE", type=PATH,
            help="file of weights to score; several make a table")
    else:
        add(*names, type=PATH, default="", help="file of weights to start from")


def frozen(parser):
    """The parts of the network that do not train."""
    add = parser.add_argument_group("freezing (with weights to start from)").add_argument
    add("--freeze_stages", metavar="N", type=COUNT,
        help="keep the stem and the first N stages (blocks.0, blocks.1, ...) as they are, with "
             "their BatchNorm statistics (default: nothing is frozen)")
    add("--freeze_backbone", action=Flag, help="train the classifier alone")


def weights(parser):
    """The weights of a command that takes one network as its file says; returns the group's adder.

    `ema` is None where neither --ema nor its opposite is given.
    """
    add = parser.add_argument_group("model").add_argument
    add("--ckpt_path", "--checkpoint", "--initial_checkpoint", metavar="FILE", type=PATH,
        default="", help="file of weights, of any kind that python -m mobilenetv3.convert reads")
    add("--model", "--arch", "-a", metavar="NAME", type=TEXT,
        help="the model (default: as the file says); python -m mobilenetv3.models lists the names")
    add("--pretrained", type=PATH_OR_FLAG, nargs="?", const=True, default=False,
        help="take timm's weights of the model's name, or those in the file PATH")
    add("--ema", action=Flag,
        help="take the averaged weights, or with --ema=false the others (default: the averaged "
             "ones of this package's and mmengine's files)")
    parser.set_defaults(ema=None)
    return add

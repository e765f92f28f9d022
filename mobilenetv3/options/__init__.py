"""Every option of train.py and validate.py: its spellings, type, default and meaning.

The first spelling gives the name in the configuration and in YAML files. Dashes and underscores are
the same everywhere, and every other long spelling works in YAML files, too.
"""
from mobilenetv3.arguments import Parser
from mobilenetv3.options import data, model, optimizer, run

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
  python train.py --model mobilenetv3_large_100 --pretrained --dataset cifar10 --dataset_download
  python train.py DIR --model mobilenetv3_small_100 --batch_size 256 --dry_run
"""

VALIDATE_HELP = f"""\
Score weights on the validation images, every image once.
What is not given, such as the model and the image size, is as the checkpoint says.
Without a data path the images are those of the built-in demo set. Several files of weights make a
table; they are read and compared with the data set before the first of them is scored.

{SPELLING}"""

VALIDATE_EXAMPLES = """\
examples:
  python validate.py DIR --ckpt_path output/RUN/model_best.pth.tar
  python validate.py DIR --ckpt_path A.pth B.safetensors C.ckpt --json scores.json
  python validate.py DIR --val_labels val.txt --ckpt_path FILE --per_class analysis
  python validate.py DIR --model mobilenetv3_small_100 --pretrained
  python validate.py DIR --ckpt_path FILE --img_size 256 --crop_pct 0.95 --tta_flip
  python validate.py DIR --ckpt_path FILE --img_size 256 --recalibrate_bn 10000 --save new.pth.tar
  python validate.py -c output/RUN/config.yaml --ckpt_path output/RUN/model_best.pth.tar
"""


def train_parser() -> Parser:
    """The parser of train.py."""
    parser = Parser("train.py", TRAIN_HELP, TRAIN_EXAMPLES, trains=True)
    model.model(parser)
    model.frozen(parser)
    data.data(parser)
    data.augmentation(parser)
    optimizer.optimizer(parser)
    optimizer.schedule(parser)
    optimizer.distillation(parser)
    run.device(parser)
    run.distributed(parser)
    run.run(parser)
    run.trials(parser)
    return parser


def validate_parser() -> Parser:
    """The parser of validate.py: part of train.py's options, under the same names.

    It reads the YAML files of training, and passes over what says how to train. The weights are
    passed over, too: in such a file they are those that training started from.
    """
    parser = Parser("validate.py", VALIDATE_HELP, VALIDATE_EXAMPLES, trains=False)
    model.model(parser, more_ckpt_names=("--checkpoint", "--resume"), several=True)
    data.data(parser)
    run.device(parser)
    run.score(parser)
    run.scoring(parser)
    # None: not given, so that the checkpoint can tell.
    parser.set_defaults(model=None, img_size=None, crop_pct=None, interpolation=None, ema=None)
    names = parser.names()
    of_training = ("ckpt_path", "pretrained", "output")  # its start, and its own folder
    own = {name for name, action in names.items() if action.dest not in of_training}
    parser.skipped = frozenset({*train_parser().names(), *names} - own)
    return parser

"""From a command line and a YAML file to one checked configuration, and back into a file."""
import argparse
import os
import re
import stat
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import yaml

from mobilenetv3.arguments import Parser
from mobilenetv3.files import write_atomically
from mobilenetv3.text import printable

DEMO_RECIPE = Path(__file__).resolve().parents[1] / "configs" / "demo.yaml"
WEIGHTS = ("ckpt_path", "pretrained", "resume")
"""The options that say where weights come from."""
MOST_BYTES = 100_000
"""Of a configuration; one with every option has 3,000, and PyYAML reads 100,000 in a second."""
MOST_BRACKETS = 1000
"""Of a configuration, too: for nested ones PyYAML's time grows with their square."""


def parse(parser: Parser, argv: Optional[Sequence[str]] = None) -> Namespace:
    """Read the command line (sys.argv if None) and the file that its -c names.

    The command line wins over the file, the file over the defaults. A mistake ends the process
    with status 2 and one sentence on standard error; a setting without effect is told there, too.
    """
    try:
        typed = parser.typed(sys.argv[1:] if argv is None else list(argv))
        cfg, notes = _resolve(parser, typed)
    except ValueError as error:
        parser.error(str(error))
    if str(os.environ.get("RANK") or getattr(cfg, "dist_rank", 0)) == "0":
        for note in notes:
            print(f"{parser.prog}: {printable(note)}", file=sys.stderr)
    return cfg


def save(cfg: Namespace, path) -> None:
    """Write a configuration as YAML that -c reads; all of the file appears, or nothing of it."""
    options = {name: value for name, value in vars(cfg).items() if name != "config"}
    header = "# Every option of a run, defaults included. Use it again with -c and this file.\n"
    if cfg.config:
        header += f"# It was made from {cfg.config!r} and the command line.\n"
    body = yaml.safe_dump(options, sort_keys=False, default_flow_style=None, allow_unicode=True)
    write_atomically(path, lambda file: file.write((header + body).encode("utf-8")))


def _resolve(parser: Parser, typed: Dict[str, Any]) -> Tuple[Namespace, List[str]]:
    """The checked configuration, and what is to be said about it."""
    notes = []
    _merge_data_path(typed)
    file = typed.get("config", "")
    if not file and parser.trains and _wants_demo(typed):
        file = str(DEMO_RECIPE)
        notes.append(f"no data path: the built-in demo set (handwritten digits), as in {file}")
    given = read(parser, file) if file else {}
    if any(typed.get(name) for name in WEIGHTS):
        # The file's weights are those of another run; they are no addition to the ones typed.
        given = {name: value for name, value in given.items() if name not in WEIGHTS}
    defaults = parser.defaults()
    del defaults["data"]
    cfg = Namespace(**{**defaults, **given, **typed, "config": file})
    if cfg.dataset is None:
        cfg.dataset = "folder" if cfg.data_path else "demo"
    _check_data(cfg)
    _check_weights(cfg, parser.trains)
    if parser.trains:
        _check_training(cfg)
        notes += _without_effect(cfg, defaults)
    return cfg, notes


def _merge_data_path(typed: Dict[str, Any]) -> None:
    """Make one of the two ways to type the data path."""
    data, data_path = typed.pop("data", None), typed.get("data_path")
    files = typed.get("ckpt_path")
    if not data and isinstance(files, list) and len(files) > 1 and os.path.isdir(files[-1]):
        data = files.pop()  # --ckpt_path FILE DIR: it takes all that stands behind it
    if data and data_path and data != data_path:
        raise ValueError(f"two data paths: {data!r} and --data_path {data_path!r}; give one")
    if data:
        typed["data_path"] = data


def _wants_demo(typed: Dict[str, Any]) -> bool:
    return not typed.get("data_path") and typed.get("dataset", "demo") == "demo"


# ---------------------------------------------------------------------------------- YAML files


def read(parser: Parser, path: str) -> Dict[str, Any]:
    """The options that a YAML file gives, by name, checked against the parser.

    Raises:
        ValueError: naming the file, the line and the key, what stands there and what should.
    """
    options, lines, given = parser.names(), {}, {}
    for key, value, line in _entries(path):
        where, name = f"{path}, line {line}", str(key).replace("-", "_")
        if name in parser.skipped:
            continue
        action = options.get(name)
        if action is None:
            raise ValueError(f"{where}: unknown key {key!r}{parser.did_you_mean(name)}")
        if action.dest == "config":
            raise ValueError(f"{where}: {key}: a configuration file cannot name another")
        if action.dest in lines:
            first, at = lines[action.dest]
            raise ValueError(f"{where}: {key}: given before, as {first} in line {at}; keep one")
        lines[action.dest] = key, line
        try:
            given[action.dest] = _converted(action, value)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"{where}: {key}: {error}") from None
    return given


def _converted(action: argparse.Action, value: Any) -> Any:
    """A YAML value as the option's type has it."""
    if value is None and action.default is None:
        return None
    if not isinstance(action.nargs, int) or action.nargs == 0:
        return action.type.from_yaml(value)
    if not isinstance(value, list) or len(value) != action.nargs:
        raise argparse.ArgumentTypeError(f"expected a list of {action.nargs}, got {value!r}")
    return [action.type.from_yaml(item) for item in value]


def _entries(path: str) -> Iterator[Tuple[Any, Any, int]]:
    """Key, value and line of every entry of a file that is one flat YAML mapping."""
    try:
        loader = yaml.SafeLoader(_content(path).decode("utf-8-sig"))
        root = loader.get_single_node()
        if root is None or root.tag == "tag:yaml.org,2002:null":
            return
        if not isinstance(root, yaml.MappingNode):
            raise ValueError(f"{path}: expected lines of NAME: VALUE, found a {root.id}")
        for key, value in root.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"{path}, line {line}: expected NAME: VALUE, found a {key.id} in "
                                 "the place of the name")
            yield _value(loader, key, path), _value(loader, value, path), line
    except OSError as error:
        raise ValueError(f"cannot read the configuration {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}: {error.reason})") from None
    except RecursionError:
        raise ValueError(f"{path}: not valid here: it is nested without end") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
        raise ValueError(f"{path}{where}: not valid YAML: {problem}") from None


def _content(path: str) -> bytes:
    """What is in a file that can be a configuration: a pipe or a device might never end."""
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # of a folder, `open` says it
        raise ValueError(f"cannot read the configuration {path}: expected a file, and this is a "
                         "pipe or a device")
    with open(path, "rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"cannot read the configuration {path}: expected at most {MOST_BYTES:,} "
                         "bytes, so much is no list of options")
    if content.count(b"[") + content.count(b"{") > MOST_BRACKETS:
        raise ValueError(f"cannot read the configuration {path}: expected lines of NAME: VALUE, "
                         f"found more than {MOST_BRACKETS:,} brackets")
    return content


_DECIMAL = {
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(0|[1-9][0-9]*)"),
    "tag:yaml.org,2002:float": re.compile(r"[^:]*"),
}


def _value(loader: yaml.SafeLoader, node: yaml.Node, path: str) -> Any:
    where = f"{path}, line {node.start_mark.line + 1}"
    for part in _nodes(node, where):
        # YAML 1.1 reads 010 as 8 and 1:30 as 90, which is not what people mean by them.
        decimal = _DECIMAL.get(part.tag)
        if decimal and isinstance(part, yaml.ScalarNode) and not decimal.fullmatch(part.value):
            raise ValueError(f"{where}: expected a number in decimal digits, got {part.value!r}")
    try:
        return loader.construct_object(node, deep=True)
    except yaml.YAMLError:
        raise
    except ValueError as error:  # a date that no calendar has
        raise ValueError(f"{where}: not valid YAML: {error}") from None
    except Exception:  # PyYAML's constructors fail in any way where a tag does not fit its text
        raise ValueError(f"{where}: not valid YAML: the value is no "
                         f"{node.tag.rpartition(':')[2]}") from None


def _nodes(node: yaml.Node, where: str) -> List[yaml.Node]:
    """A node and those in it, each as often as it is met: aliases may repeat each other.

    Raises:
        ValueError: there are more of them than any option's value has.
    """
    found, level = [], [node]
    for _ in range(20):
        found += level
        level = [item for part in level if not isinstance(part, yaml.ScalarNode)
                 for child in part.value
                 for item in (child if isinstance(child, tuple) else (child,))]
        if not level:
            return found
        if len(found) + len(level) > 1000:
            break
    raise ValueError(f"{where}: expected the value of an option, got one that is too large or "
                     "nested without end")


# ------------------------------------------------------------------ what options mean together


def _require(condition: Any, sentence: str) -> None:
    if not condition:
        raise ValueError(sentence)


def _check_data(cfg: Namespace) -> None:
    _require(
        cfg.dataset != "demo" or not cfg.data_path,
        f"--dataset demo is built in; to use {cfg.data_path} add --dataset folder",
    )
    _require(
        cfg.dataset in ("demo", "cifar10") or cfg.data_path,
        f"--dataset {cfg.dataset} needs --data_path: a folder with {cfg.train_split}/CLASS/*.jpg "
        f"and {cfg.val_split}/CLASS/*.jpg",
    )
    _require(
        not cfg.val_labels or cfg.dataset in ("imagenet", "folder"),
        f"--val_labels is for images in a folder; --dataset {cfg.dataset} has labels of its own",
    )


def _check_weights(cfg: Namespace, trains: bool) -> None:
    path = cfg.pretrained
    _require(
        not (isinstance(path, str) and os.path.isdir(path)),
        f"--pretrained {path}: expected a file of weights, and this is a folder; a data path goes "
        "before the options, or after --data_path",
    )
    folder = next((file for file in cfg.ckpt_path if os.path.isdir(file)), "") if not trains else ""
    _require(
        not folder,
        f"--ckpt_path {folder}: expected files of weights, and this is a folder; a data path goes "
        "before the options, or after --data_path",
    )
    _require(
        not (cfg.pretrained and cfg.ckpt_path),
        "--pretrained and --ckpt_path both name the weights to start from; give one",
    )
    if not trains:
        _require(cfg.pretrained or cfg.ckpt_path, "no weights to score: give --ckpt_path FILE, or "
                 "--pretrained with --model")
        _require(cfg.pretrained is not True or cfg.model, "--pretrained takes timm's weights of a "
                 "model's name: add --model NAME")
        _require(cfg.per_class is not True or cfg.output, "--per_class writes several files: give "
                 "it a folder, or add --output DIR")
        _check_scoring(cfg)
        return
    _require(
        cfg.resume in ("", "auto") or not (cfg.pretrained or cfg.ckpt_path),
        "--resume brings its own weights; leave out --pretrained and --ckpt_path",
    )
    _require(
        cfg.resume != "auto" or cfg.output,
        "--resume auto takes the newest checkpoint of a run folder: add --output DIR",
    )
    _require(
        not cfg.evaluate or cfg.resume or cfg.ckpt_path or cfg.pretrained,
        "--evaluate needs weights to score: add --resume FILE, --ckpt_path FILE or --pretrained",
    )
    frozen = "--freeze_backbone" if cfg.freeze_backbone else "--freeze_stages"
    _require(
        (cfg.freeze_stages is None and not cfg.freeze_backbone)
        or cfg.pretrained or cfg.ckpt_path or cfg.resume,
        f"{frozen} keeps weights as they are, and these would be random ones: add --pretrained or "
        "--ckpt_path FILE",
    )


def _check_scoring(cfg: Namespace) -> None:
    _require(
        not (cfg.fuse_bn and cfg.apex),
        "--fuse_bn is for float32, where folding changes rounding alone; leave out --apex",
    )
    _require(
        not cfg.save or cfg.recalibrate_bn,
        f"--save {cfg.save} is for the weights of --recalibrate_bn IMAGES; add that, or convert a "
        "file as it is with python -m mobilenetv3.convert",
    )
    _require(
        not cfg.save or len(cfg.ckpt_path) < 2,
        f"--save {cfg.save} is one file, and --ckpt_path names {len(cfg.ckpt_path)}; give one",
    )
    _require(
        not cfg.save or cfg.save.endswith((".pth", ".pth.tar", ".pt", ".safetensors")),
        f"--save {cfg.save}: expected a name that ends in .pth.tar, .pth, .pt or .safetensors",
    )


def _check_training(cfg: Namespace) -> None:
    for name in ("scale", "ratio", "lr_noise"):
        low, high = getattr(cfg, name) or (0, 0)
        _require(low <= high, f"--{name} {low} {high}: expected the lower number first")
    low, high = cfg.lr_find_range
    _require(low < high, f"--lr_find_range {low:g} {high:g}: expected the lower rate first")
    trial = "--dry_run" if cfg.dry_run else "--lr_find"
    _require(
        not (cfg.lr_find and (cfg.dry_run or cfg.evaluate)) and not (cfg.dry_run and cfg.evaluate),
        f"{trial} tries a training run; leave out "
        f"{'--evaluate' if cfg.evaluate else '--lr_find'}",
    )
    _require(
        cfg.layer_decay is None or cfg.backbone_lr_scale == 1.0,
        "--layer_decay and --backbone_lr_scale both set the backbone's learning rate; give one",
    )
    _require(
        not (cfg.mixup or cfg.cutmix) or cfg.batch_size % 2 == 0,
        f"--batch_size {cfg.batch_size}: Mixup and CutMix mix images in pairs; give an even number",
    )
    _require(
        cfg.teacher or not cfg.teacher_ckpt,
        f"--teacher_ckpt {cfg.teacher_ckpt} holds weights; name their network with --teacher NAME, "
        "or give the file to --teacher, if python -m mobilenetv3.convert reads it",
    )
    full = cfg.train_img_size or cfg.img_size
    side, first = (cfg.res_schedule or [[full, 0]])[-1]
    _require(
        side == full, f"--res_schedule ends at {side} pixels, and training images have {full} in "
        "the end (--train_img_size, else --img_size); give the same",
    )
    _require(
        first < cfg.epochs, f"--res_schedule has {side} pixels from epoch {first} on, and epochs "
        f"end at {cfg.epochs - 1} (--epochs {cfg.epochs}, from 0): the full size would never come",
    )
    _require(
        cfg.min_lr <= cfg.lr, f"--min_lr {cfg.min_lr:g} is above --lr {cfg.lr:g}, where the "
        "schedule starts",
    )
    _require(
        cfg.warmup_epochs <= cfg.epochs,
        f"--warmup_epochs {cfg.warmup_epochs} is more than --epochs {cfg.epochs}",
    )
    _require(
        (cfg.start_epoch or 0) < cfg.epochs,
        f"--start_epoch {cfg.start_epoch} leaves nothing to train: epochs count from 0 and "
        f"--epochs is {cfg.epochs}",
    )


_ADAMS = ("adam", "adamw", "lamb", "lambc")

# Settings that another one makes meaningless: names, when, and how a note explains it.
_IGNORED = (
    (("decay_epochs", "decay_rate"), lambda c: c.sched == "cosine", "with --sched cosine"),
    (("min_lr", "cooldown_epochs"), lambda c: c.sched == "step", "with --sched step"),
    (("warmup_lr",), lambda c: not c.warmup_epochs, "without --warmup_epochs"),
    (("momentum",), lambda c: c.opt in _ADAMS, "with Adam and LAMB"),
    (("opt_betas",), lambda c: c.opt not in _ADAMS, "but with Adam and LAMB"),
    (("opt_eps",), lambda c: c.opt in ("sgd", "momentum", "nesterov", "npufusedsgd"),
     "with SGD"),
    (("lr_find_range",), lambda c: not c.lr_find, "without --lr_find"),
    (("clip_mode",), lambda c: c.clip_grad is None, "without --clip_grad"),
    (("freeze_stages", "backbone_lr_scale", "layer_decay"), lambda c: c.freeze_backbone,
     "with --freeze_backbone"),
    (("model_ema_decay", "model_ema_warmup"), lambda c: not c.model_ema, "without --model_ema"),
    (("distill_alpha", "distill_temperature"), lambda c: not c.teacher, "without --teacher"),
    (("apex_opt_level", "loss_scale_value", "amp_dtype", "amp_backend"), lambda c: not c.apex,
     "without --apex"),
    (("mixup_prob", "mixup_mode", "mixup_off_epoch"), lambda c: not (c.mixup or c.cutmix),
     "without --mixup or --cutmix"),
    (("mixup_switch_prob",), lambda c: not (c.mixup and c.cutmix), "without --mixup and --cutmix"),
    (("remode", "recount"), lambda c: not c.reprob, "without --reprob"),
    (("color_jitter",), lambda c: c.aa and "3a" not in c.aa, "with --aa, which has its own"),
    (("scale", "ratio", "hflip", "vflip", "color_jitter", "aa", "reprob"), lambda c: c.no_aug,
     "with --no_aug"),
    (("dataset_download",), lambda c: c.dataset != "cifar10", "but with --dataset cifar10"),
    (("shard_cache", "shard_cache_gb"), lambda c: "://" not in c.data_path,
     "but with a data path that is a URL"),
    (("start_epoch",), lambda c: c.resume not in ("", "auto"), "with --resume, which knows it"),
)


def _without_effect(cfg: Namespace, defaults: Dict[str, Any]) -> List[str]:
    """A note for each setting that differs from its default to no avail."""
    return [
        f"--{name} has no effect {why}"
        for names, applies, why in _IGNORED if applies(cfg)
        for name in names if getattr(cfg, name) != defaults[name]
    ]

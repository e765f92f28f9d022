"""What the options of a command mean together: contradictions, and settings without effect."""
import os
from argparse import Namespace
from typing import Any, Container, Dict, List, Optional

from mobilenetv3.options.data import sides


def check(cfg: Namespace, trains: bool) -> None:
    """Refuse options that contradict or lack each other.

    Args:
        trains: the command trains; else it scores.

    Raises:
        ValueError: in one sentence, which and what to do.
    """
    _data(cfg)
    _weights(cfg, trains)
    if trains:
        _training(cfg)


def _require(condition: Any, sentence: str) -> None:
    if not condition:
        raise ValueError(sentence)


def _data(cfg: Namespace) -> None:
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


def _weights(cfg: Namespace, trains: bool) -> None:
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
        _scoring(cfg)
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


def _scoring(cfg: Namespace) -> None:
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


def _training(cfg: Namespace) -> None:
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
    side, first = sides(cfg)[-1]
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


def without_effect(cfg: Namespace, defaults: Dict[str, Any],
                   among: Optional[Container[str]] = None) -> List[str]:
    """A note for each setting that differs from its default to no avail.

    Args:
        among: names of the settings to look at; None for all.
    """
    return [
        f"--{name} has no effect {why}"
        for names, applies, why in _IGNORED
        for name in names
        if (among is None or name in among) and applies(cfg)
        and getattr(cfg, name) != defaults[name]
    ]

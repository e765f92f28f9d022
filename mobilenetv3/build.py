"""From the configuration to objects: the steps that the scripts at the root have in common.

Besides those scripts this is the only module that reads the configuration.
"""
import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing

from mobilenetv3 import apex_amp, convert, cpus, data, dist, distill, heap, models
from mobilenetv3 import device as devices
from mobilenetv3 import precision as precisions
from mobilenetv3.options.data import sides


def device(cfg, who):
    """The device of this rank, bound to the process, and a note on the choice ("" for none)."""
    card, note = devices.card_index(cfg.device_id, who.card)
    chosen = devices.select(cfg.device, card)
    if chosen.module is None:
        heap.keep_freed()
    return chosen, note


def memory_format(cfg, device):
    """NHWC or NCHW; where it was left open, what is faster."""
    wanted = cfg.channels_last
    if wanted is None:
        wanted = device.is_faster_in_nhwc(cfg.apex)
    return torch.channels_last if wanted else torch.contiguous_format


def precision(cfg, device):
    """How the model computes, and in training how a loss becomes an update.

    Raises:
        ValueError: --amp_backend apex, and there is no Apex to use.
    """
    level = cfg.apex_opt_level if cfg.apex else "O0"
    if not hasattr(cfg, "clip_grad"):  # a command that does not train
        return precisions.create_precision(level, device, cfg.amp_dtype)
    note = ""
    if cfg.apex and cfg.amp_backend != "native":
        try:
            amp = apex_amp.find(device, cfg.amp_dtype)
            return apex_amp.ApexPrecision(
                amp, level, device, cfg.loss_scale_value, cfg.clip_grad, cfg.clip_mode
            )
        except ValueError as error:
            if cfg.amp_backend == "apex":
                raise ValueError(
                    f"--amp_backend apex: {error}; --amp_backend native does the same without it"
                ) from error
            note = f"--amp_backend auto takes native: {error}"
    native = precisions.create_precision(
        level, device, cfg.amp_dtype, cfg.loss_scale_value, cfg.clip_grad, cfg.clip_mode,
        devices.overflow_flag(device, dist.all_reduce_sum),
    )
    native.note = note
    return native


def require_classifier(arch):
    """Refuse a network whose output is no class scores.

    Raises:
        ValueError: it is a segmentation network.
    """
    if models.canonical_name(arch) in models.SEGMENTERS:
        raise ValueError(
            f"{arch} labels pixels, and the commands train and score classifiers; from Python it "
            "is to be had by create_model or init_model"
        )


def start_weights(cfg):
    """The weights in the file to start from; None where no file was given."""
    path = cfg.ckpt_path or (cfg.pretrained if isinstance(cfg.pretrained, str) else "")
    if not path:
        return None
    weights, arch = convert.read(path), models.canonical_name(cfg.model)
    if weights.family == "timm" and arch != weights.config["arch"]:
        weights = convert.read(path, arch=arch)  # tf_ or not: their tensors are alike
    return weights


def teacher(cfg, num_classes, precision, device):
    """The network whose answers are learnt beside the labels; None where there is none.

    Raises:
        FileNotFoundError, ValueError: it cannot be had, or does not suit this run.
    """
    if not cfg.teacher or cfg.evaluate:
        return None
    found = distill.Teacher(
        distill.find(cfg.teacher, cfg.teacher_ckpt or "", num_classes), precision,
        cfg.mean or data.IMAGENET_MEAN, cfg.std or data.IMAGENET_STD, device.torch_device,
        memory_format(cfg, device),
    )
    found.check([side for side, _ in sides(cfg)], num_classes, device.torch_device)
    return found


def val_source(cfg, download=False):
    """The validation set."""
    return data.open_source(
        cfg.dataset, cfg.data_path, cfg.val_split, cfg.train_split, download, cfg.val_labels,
        cfg.shard_cache, cfg.shard_cache_gb,
    )


def sources(cfg):
    """The training and the validation set.

    Raises:
        ValueError: they do not have the same classes.
    """
    train = data.open_source(
        cfg.dataset, cfg.data_path, cfg.train_split, cfg.val_split, cfg.dataset_download,
        shard_cache=cfg.shard_cache, shard_cache_gb=cfg.shard_cache_gb,
    )
    val = val_source(cfg)
    return data.check_pair(train, val, cfg.train_split, cfg.val_split), val


def loaders(cfg, device, who):
    """The loaders of both splits, and the training set."""
    train, val = sources(cfg)
    return train_loader(cfg, train, device, who), val_loader(cfg, val, device, who), train


def train_loader(cfg, source, device, who):
    """The shuffled, augmented training batches of this rank.

    Raises:
        ValueError: the batch cannot be divided over the ranks.
    """
    share = dist.per_rank_batch(cfg.batch_size, who.world)
    mixes = cfg.mixup > 0 or cfg.cutmix > 0
    if mixes and share % 2:
        raise ValueError(
            f"--batch_size {cfg.batch_size} gives each of {who.world} ranks {share} images; Mixup "
            f"and CutMix mix them in pairs: use a multiple of {2 * who.world}"
        )
    common = _common(cfg, who, device)
    return data.train_loader(
        source, device, batch_size=cfg.batch_size, seed=cfg.seed,
        transform=train_transform(cfg, common["mean"]),
        erase=RandomErasing(
            cfg.reprob, mode=cfg.remode, max_count=cfg.recount, device=device.torch_device
        ) if cfg.reprob and not cfg.no_aug else None,
        mixup=Mixup(
            cfg.mixup, cfg.cutmix, prob=cfg.mixup_prob, switch_prob=cfg.mixup_switch_prob,
            mode=cfg.mixup_mode, label_smoothing=cfg.smoothing,
            num_classes=cfg.num_classes or len(source.classes),
        ) if mixes else None,
        mixup_off_epoch=cfg.mixup_off_epoch, fast=cfg.decode == "fast", replaces=True,
        repeats=max(1, cfg.aug_repeats), **common,
    )


def train_transform(cfg, mean):
    """What is done to a training image; `data.ByEpoch` where its size changes."""
    stages = [data.Stage(epoch, side, data.train_transform(
        side, no_aug=cfg.no_aug, scale=cfg.scale, ratio=cfg.ratio, hflip=cfg.hflip,
        vflip=cfg.vflip, color_jitter=cfg.color_jitter, aa=cfg.aa, mean=mean,
        interpolation=cfg.train_interpolation,
    )) for side, epoch in sides(cfg)]
    return data.ByEpoch(stages) if cfg.res_schedule else stages[0].transform


def train_notes(cfg, images):
    """What the log says of an unusual choice of training images, a line each."""
    notes = []
    if cfg.res_schedule:
        told = ", ".join(f"{side} from epoch {epoch} on" for side, epoch in sides(cfg))
        notes.append(f"=> --res_schedule: sides of training images: {told}; FPS counts images of "
                     "whatever size, so it is a mean over the sizes trained so far, and no figure "
                     "of the full one")
    if cfg.aug_repeats > 1:
        steps = images // cfg.batch_size
        distinct = -(-steps * cfg.batch_size // cfg.aug_repeats)
        notes.append(f"=> --aug_repeats {cfg.aug_repeats}: an epoch is {steps} steps as without, "
                     f"of {distinct} of the {images} images, {cfg.aug_repeats} times each")
    return notes


def val_batch(cfg, who):
    """Images in one batch of this rank in validation."""
    return max(1, (cfg.val_batch_size or cfg.batch_size) // who.world)


def val_loader(cfg, source, device, who):
    """This rank's share of the validation images."""
    return data.val_loader(
        source, device, batch_size=val_batch(cfg, who),
        transform=data.val_transform(cfg.img_size, cfg.crop_pct, cfg.interpolation),
        **_common(cfg, who, device),
    )


def recalibration_loader(cfg, device, who):
    """Shuffled training images prepared as in validation, for `recalibrate`.

    Returns:
        the loader and how many of its batches to take: those of --recalibrate_bn images, one at
        least. All ranks have as many, each of `val_batch` images.

    Raises:
        ValueError: a batch is too small for statistics, or larger than the training set.
    """
    batch = val_batch(cfg, who)
    train = data.open_source(
        cfg.dataset, cfg.data_path, cfg.train_split, cfg.val_split, cfg.dataset_download,
        shard_cache=cfg.shard_cache, shard_cache_gb=cfg.shard_cache_gb,
    )
    if not 2 <= batch <= len(train.samples) // who.world:
        raise ValueError(
            f"--recalibrate_bn takes batches of {batch} images on each of {who.world} ranks from "
            f"the {len(train.samples)} of {cfg.train_split}; expected 2 or more, and no more than "
            "there are: change --batch_size"
        )
    loader = data.train_loader(
        train, device, batch_size=batch * who.world, seed=cfg.seed,
        transform=data.val_transform(cfg.img_size, cfg.crop_pct, cfg.interpolation),
        **_common(cfg, who, device),
    )
    return loader, min(len(loader), max(1, cfg.recalibrate_bn // (batch * who.world)))


def _common(cfg, who, device):
    return {
        "rank": who.rank, "world": who.world, "mean": cfg.mean or data.IMAGENET_MEAN,
        "std": cfg.std or data.IMAGENET_STD,
        "workers": data.worker_count(cfg.workers, who.local_world),
        "channels_last": memory_format(cfg, device) == torch.channels_last,
        "patience": cfg.data_retry_seconds,
        "own_cpus": cpus.for_workers(who.local_rank, who.local_world) if cfg.pin_workers
        else frozenset(),
    }

"""All that a run needs to go on as if it had never stopped, as tensors and plain containers.

Between epochs that is little: what is drawn at random is seeded by the epoch. Inside an epoch the
generators of every rank belong to it, and what BatchNorm has counted on each.
"""
import io
import random
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from torch import nn

from mobilenetv3 import checkpoint, dist, finetune, optim
from mobilenetv3.data import fetch
from mobilenetv3.device import Device
from mobilenetv3.engine import Progress
from mobilenetv3.metrics import Score

FORMAT = 2
"""1 had no step, score and ranks: those were always taken between two epochs."""

_SET_IN_AN_EPOCH = ("batch_size", "grad_accum_steps", "seed", "aug_repeats")
"""Options that say what step n of an epoch is."""
_FREE = {
    "output", "resume", "config", "device", "device_id", "workers", "print_freq", "distributed",
    "world_size", "dist_rank", "dist_url", "dist_backend", "dist_timeout", "ckpt_path",
    "pretrained", "log_tensorboard", "evaluate", "data_path", "dataset_download", "pin_mem",
    "keep_last", "keep_every", "checkpoint_every", "checkpoint_minutes", "on_nan",
    "max_bad_files", "data_retry_seconds", "compile", "profile", "pin_workers", "shard_cache",
    "shard_cache_gb", "dry_run", "lr_find", "lr_find_range",
}
"""Options that change nothing of what is learnt, or that a resumed run does not look at."""

_IN_TRAINING = ("drop_rate", "drop_path_rate", "bn_momentum")
"""Options of a model that scoring it does not look at."""
_OF_A_GROUP = ("weight_decay", "momentum", "eps", "betas")
"""What options set of an optimizer's groups; the rate is the schedule's."""


class Parts(NamedTuple):
    """What of a run changes as it trains."""

    model: nn.Module
    """Not wrapped for parallel training."""
    optimizer: torch.optim.Optimizer
    precision: Any
    ema: Any
    device: Device


class Place(NamedTuple):
    """Where a run goes on."""

    epoch: int
    step: int = 0
    """Steps of the epoch that are done."""
    score: Score = Score()
    """Of those steps."""
    best: Optional[Dict[str, Any]] = None
    """The best validation so far: its "acc1" and "epoch"; None for none."""


def take(parts: Parts, progress: Progress, best: Optional[Dict[str, Any]], classes: List[str],
         images: int, config: Dict[str, Any], order: str = "") -> Dict[str, Any]:
    """The state of a run; tensors are shared with it. Every rank must call it inside an epoch.

    Args:
        progress: of the epoch under way, or of the next one, of which nothing is done yet.
        images: in the training set.
        config: the options, for whoever reads the file.
        order: of the training images, as their loader tells it.
    """
    model, optimizer, precision, ema, _ = parts
    is_inside = 0 < progress.step < progress.steps
    return {
        "format": FORMAT,
        "epoch": progress.epoch,  # epochs done
        "step": progress.step,  # steps of the next epoch that are done
        "steps": progress.steps,
        "score": list(progress.score),
        "images": images,
        "order": order,
        "arch": model.config["arch"],
        "model": model.config,
        "classes": list(classes),
        "state_dict": precision.model_state(model),
        "state_dict_ema": ema.state_dict(),
        "ema_updates": ema.updates,
        "optimizer": optimizer.state_dict(),
        "precision": precision.state_dict(),
        "ranks": _all_ranks(parts) if is_inside else [],
        "best_acc1": best["acc1"] if best else None,
        "best_epoch": best["epoch"] if best else None,
        "config": _for_others(config),
    }


def _for_others(config: Dict[str, Any]) -> Dict[str, Any]:
    """The options without the password and signature of a URL: a checkpoint is handed on.

    Whoever resumes names the data anew.
    """
    path = config.get("data_path")
    return {**config, "data_path": fetch.shown(path)} if path else config


def put_back(state: Dict[str, Any], parts: Parts) -> Place:
    """Put a run back to where `take` was called, but for what its ranks have each of their own.

    `check` comes first.
    """
    model, optimizer, precision, ema, _ = parts
    precision.load_model_state(model, state["state_dict"])
    if ema.module is not None:
        ema.module.load_state_dict(state["state_dict_ema"])
        ema.updates = state.get("ema_updates", optim.LONG_AGO)
    _put_back_optimizer(optimizer, state["optimizer"])
    precision.load_state_dict(state["precision"])
    return Place(
        state["epoch"], state.get("step", 0), Score(*state.get("score", ())), best_of(state)
    )


def best_of(state: Any) -> Optional[Dict[str, Any]]:
    """The best validation up to a checkpoint: its "acc1" and "epoch"; None for none."""
    if not isinstance(state, dict) or state.get("best_epoch") is None:
        return None
    return {"acc1": state.get("best_acc1"), "epoch": state["best_epoch"]}


def _put_back_optimizer(optimizer: torch.optim.Optimizer, saved: Dict[str, Any]) -> None:
    """Put back what an optimizer has gathered; its settings stay those of this run's options.

    load_state_dict() brings the saved ones, and an option that the log tells as changed would
    change nothing. By group, as some have no weight decay.
    """
    given = [{name: group[name] for name in _OF_A_GROUP if name in group}
             for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    for group, own in zip(optimizer.param_groups, given):
        group.update(own)


def put_back_weights(state: Any, path: str, model: nn.Module, classes: List[str]) -> Place:
    """Put the weights of a run into a model that is only to be scored: the average, if it has one.

    As validate.py does. How the run trained is no matter here.

    Raises:
        ValueError: the model or its classes are others; names both.
    """
    settings = {name: value for name, value in model.config.items() if name not in _IN_TRAINING}
    checkpoint.check_resumable(state, path, settings, has_ema=False)
    _refuse(state, path, _of_classes(state, classes))
    checkpoint.load_weights(model, state, path)
    return Place(state["epoch"], state.get("step", 0))


def check(state: Any, path: str, parts: Parts, cfg: Dict[str, Any], classes: List[str],
          images: int, order: str = "") -> None:
    """Refuse to go on from what belongs to another run.

    Args:
        images, order: see `take`; checkpoints from before there was an order have none.

    Raises:
        ValueError: names what differs, with both values.
    """
    checkpoint.check_resumable(state, path, parts.model.config, parts.ema.module is not None)
    saved = state.get("config", {})
    finetune.check_resumable(path, saved, cfg)
    told = [("--opt", saved.get("opt", cfg["opt"]), cfg["opt"])]
    if told[0][1] == cfg["opt"]:
        told += _of_groups(state["optimizer"]["param_groups"], parts.optimizer.param_groups)
    told += _of_classes(state, classes)
    if state.get("step"):
        told += [(f"--{name}", saved.get(name, cfg[name]), cfg[name]) for name in _SET_IN_AN_EPOCH]
        told.append(("training images", state["images"], images))
        if state.get("order") and order:  # else images of this epoch would come twice, or never
            told.append(("images in", state["order"], order))
    _refuse(state, path, told)


def _of_classes(state: Dict[str, Any], classes: List[str]) -> List[Tuple]:
    """("classes", some that only the checkpoint has, some that only this run has), if any."""
    if not state.get("classes") or list(state["classes"]) == list(classes):
        return []
    mine, its = set(classes), set(state["classes"])
    return [("classes", ", ".join(sorted(its - mine)[:3]) or "in another order",
             ", ".join(sorted(mine - its)[:3]) or "in another order")]


def _refuse(state: Dict[str, Any], path: str, told: List[Tuple]) -> None:
    """Raise for the first (what, saved, given) that differs."""
    for name, its, mine in told:
        if its != mine:
            inside = f", at step {state['step']} of an epoch" if state.get("step") else ""
            raise ValueError(
                f"{path} cannot be resumed: it was saved with {name} {its}{inside}, and this run "
                f"has {mine}; take the same, or start from its weights with --ckpt_path"
            )


def _of_groups(saved: List[Dict[str, Any]], given: List[Dict[str, Any]]) -> List[Tuple]:
    """(what, saved, given) of an optimizer that what another one gathered may not suit."""
    # Without weight decay, parameters that are spared it are in one group with the others.
    told: List[Tuple] = [("groups of parameters (--weight_decay)", len(saved), len(given))]
    before, now = saved[0].get("momentum"), given[0].get("momentum")
    if bool(before) != bool(now):  # RMSprop makes the buffers of momentum at its first step only
        told.append(("--momentum", before, now))
    return told


def notes(state: Dict[str, Any], cfg: Dict[str, Any], world: int) -> List[str]:
    """What the log says of a run that goes on otherwise than it was stopped."""
    saved = state.get("config", {})
    changed = [
        f"{name} {saved[name]} -> {cfg[name]}" for name in sorted(saved.keys() & cfg.keys())
        if name not in _FREE and saved[name] != cfg[name]
    ]
    lines = [f"=> resumed with other options: {', '.join(changed)}"] if changed else []
    ranks = state.get("ranks") or []
    if ranks and len(ranks) != world:
        lines.append(
            f"=> saved inside an epoch by {len(ranks)} ranks, resumed by {world}: the global "
            "batches stay the same; dropout and Mixup draw anew, and BatchNorm's statistics of "
            "this epoch are rank 0's"
        )
    return lines


def put_back_rank(state: Dict[str, Any], parts: Parts, rank: int, world: int) -> bool:
    """Put back what this rank had of its own, where the run goes on with as many ranks.

    Call it last: what is drawn at random after it belongs to the next step.

    Returns:
        whether there was something to put back.
    """
    ranks = state.get("ranks") or []
    if len(ranks) != world:
        return False
    own = ranks[rank]
    for module, buffers in ((parts.model, own["buffers"]), (parts.ema.module, own["ema_buffers"])):
        if module is not None:
            for name, buffer in module.named_buffers():
                buffer.copy_(buffers[name])
    _put_back_generators(own["generators"], parts.device)
    return True


def _all_ranks(parts: Parts) -> List[Dict[str, Any]]:
    """What each rank has of its own, in the order of the ranks."""
    own = {
        "generators": _generators(parts.device),
        "buffers": _buffers(parts.model),
        "ema_buffers": _buffers(parts.ema.module),
    }
    if not dist.is_parallel():
        return [own]
    written = io.BytesIO()
    checkpoint.write(written, own)
    return [checkpoint.loads(data) for data in dist.gather_bytes(written.getvalue())]


def _buffers(module: Optional[nn.Module]) -> Dict[str, torch.Tensor]:
    if module is None:
        return {}
    return {name: buffer.detach().cpu() for name, buffer in module.named_buffers()}


def _generators(device: Device) -> Dict[str, Any]:
    """The states of the generators that a rank draws from, in plain containers."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    assert name == "MT19937", name
    own = None if device.module is None else device.module.get_rng_state(device.torch_device)
    return {
        "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
        "numpy": [torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss),
                  float(cached)],
        "torch": torch.get_rng_state(),
        "device": own,
    }


def _put_back_generators(states: Dict[str, Any], device: Device) -> None:
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if device.module is not None and states["device"] is not None:
        device.module.set_rng_state(states["device"], device.torch_device)

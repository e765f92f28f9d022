"""--dry_run: all that a run does, once and in small, before it costs hours.

Two steps, one batch of validation, a checkpoint written and read back; then what the whole run will
take. train.py has built everything as for the run itself, with its files in a `trial.Scratch`.
"""
import json
import math
import multiprocessing
import os
import re
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Dict, NamedTuple, Optional

import torch

from mobilenetv3 import checkpoint, dist, engine, entry, keep, models, resuming, snapshot, training
from mobilenetv3.models.counts import count_macs, count_params
from mobilenetv3.options.data import stages

STEPS = 2


class Took(NamedTuple):
    """What was measured, in seconds, on the main rank."""

    step: float
    """One step: the second, unless its epoch has but one left."""
    data: float
    """Of it, waiting for data."""
    validation: float
    """Computing one batch of validation."""
    saving: float
    reading: float


def rehearse(job: training.Job, place: snapshot.Place, state: Dict, img_size: int, folder: Path,
             copies: int) -> None:
    """Go through a run in small, and log what it needs. Every rank must call it.

    Args:
        job: of the run, but with a run folder and a keeper that are not the run's own.
        place, state: where the run would go on, as for `training.train`.
        img_size: side of the images in validation, pixels; for the multiply-adds.
        folder: of the run, which is not written to.
        copies: checkpoints that the run will have on the disk at one time.

    Raises:
        Whatever the run would raise.
        ValueError: there is nothing left to train, or its checkpoints will not fit on the disk.
        entry.Interrupted: a signal came.
    """
    done = place.epoch * len(job.train_loader) + place.step
    if done >= _end(job):
        raise ValueError(f"nothing is left to train: epoch {place.epoch}, step {place.step} is the "
                         "end of this run; more --epochs or --max_steps would go on")
    try:
        progress = _train(job, place, state)
        saving, reading, size = _save_and_read(job, progress, place.best)
        validation = _validate(job, progress.epoch)
    except entry.Interrupted as stop:
        raise entry.Interrupted(stop.number, "it was a dry run, and nothing of it stays") from None
    memory, fault = _memory(job), ""
    if job.who.is_main:
        log, times = job.run.log, progress.times
        _tell_size(job, img_size, log)
        log(memory)
        took = Took(times.last, times.last_data, validation, saving, reading)
        _tell_time(job, took, done, _grown(job, place.epoch), log)
        fault = _tell_disk(took, size, copies, folder, log)
    fault = dist.broadcast_bytes(fault.encode("utf-8", "surrogateescape"))
    if fault:
        raise ValueError(fault.decode("utf-8", "surrogateescape"))
    job.run.log("=> dry run: all is well; nothing of it stays")


def _end(job: training.Job) -> int:
    """Steps of the whole run."""
    return min(job.total_steps, job.schedule.epochs * len(job.train_loader))


def _grown(job: training.Job, epoch: int) -> int:
    """Side of the training images in the run's last epoch; 0 where they do not grow until then."""
    last = (_end(job) - 1) // len(job.train_loader)
    grows = stages(job.config["res_schedule"] or [[0, 0]], job.config["epochs"])
    first, side = ([side for side, start in grows if start <= at][-1] for at in (epoch, last))
    return side if side > first else 0


def _train(job: training.Job, place: snapshot.Place, state: Dict) -> engine.Progress:
    """Two steps, where the run stands, or in the next or last epoch; returns how far it is."""
    steps = len(job.train_loader)
    if _grown(job, place.epoch):  # the largest images need the most, and they come in the end
        place, state = snapshot.Place((_end(job) - 1) // steps, best=place.best), {}
    elif place.step >= steps:  # it was stopped in a validation
        place, state = snapshot.Place(place.epoch + 1, best=place.best), {}
    short = job._replace(total_steps=place.epoch * steps + place.step + STEPS)
    progress = training.progress_at(short, place.epoch, place.step, place.score)
    training.begin(short, progress, state)
    training.train_epoch(short, progress, place.best)
    return progress


def _save_and_read(job: training.Job, progress: engine.Progress, best):
    """A checkpoint there and back; returns the seconds of both, and its size (on the main rank).

    Raises:
        keep.NotSaved: it could not be written.
        ValueError: it came back otherwise than it was.
    """
    whole = engine.Progress(progress.epoch, progress.steps, None, progress.step, progress.score)
    started = time.perf_counter()
    training.save(job, whole, best)
    if job.keeper is not None:
        job.keeper.flush()
    saved = time.perf_counter()
    found = resuming.find("auto", job.run.path, job.who)
    read = time.perf_counter()
    mine = checkpoint.copy_of(job.parts.precision.model_state(job.parts.model))
    snapshot.check(found.state, found.path, job.parts, job.config, job.classes,
                   job.train_loader.images, job.train_loader.order)
    snapshot.put_back(found.state, job.parts)
    snapshot.put_back_rank(found.state, job.parts, job.who.rank, job.who.world)
    if job.who.is_main:
        for name, value in found.state["state_dict"].items():
            if not torch.equal(value, mine[name]):
                raise ValueError(f"{found.path}: {name} was read otherwise than it was written")
    size = Path(found.path).stat().st_size if job.who.is_main else 0
    return saved - started, read - saved, size


class _First:
    """The first batch of a loader, and the seconds from then on: loaders start slowly."""

    def __init__(self, loader):
        self.loader, self.seconds = loader, 0.0

    def __len__(self):
        return min(1, len(self.loader))

    def __iter__(self):
        for batch in self.loader:
            started = time.perf_counter()
            yield batch
            self.seconds += time.perf_counter() - started
            return


class _Unsaid:
    """A run that says nothing: the accuracy of one batch is no result."""

    @staticmethod
    def log(line: str) -> None:
        """Nobody is told."""


def _validate(job: training.Job, epoch: int) -> float:
    """Score one batch with all that the run scores; returns the seconds of computing."""
    if job.val_loader is None:
        return 0.0
    training.share_buffers(job)
    first = _First(job.val_loader)
    training.validate(job._replace(val_loader=first, run=_Unsaid()), {"epoch": epoch})
    return first.seconds


# --------------------------------------------------------------------------------- what is told


def _tell_size(job: training.Job, img_size: int, log) -> None:
    network = models.create_model(**job.parts.model.config)  # on the CPU, in float32
    log(f"=> network: {count_params(network) / 1e6:.2f} M parameters, "
        f"{count_macs(network, img_size) / 1e6:.1f} M multiply-adds at {img_size}x{img_size}")


def _memory(job: training.Job) -> str:
    """A line on the memory of all ranks, to which every rank adds its own."""
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    module, device = job.parts.device.module, job.parts.device.torch_device
    peak = getattr(module, "max_memory_allocated", None)
    own = {
        "process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "loaders": [_share_of(child.pid) for child in multiprocessing.active_children()],
        "device": peak(device) if peak is not None else None,
    }
    ranks = [json.loads(part.decode()) for part in dist.gather_bytes(json.dumps(own).encode())]
    most = "" if len(ranks) == 1 else f", the largest of {len(ranks)} ranks"
    line = f"=> host memory: {_bytes(max(one['process'] for one in ranks))} at most{most}"
    loaders = [size for one in ranks for size in one["loaders"]]
    if loaders:
        known = sum(size for size in loaders if size)
        line += f"; {len(loaders)} loader processes {_bytes(known) if known else ''}".rstrip()
    if own["device"] is not None:
        line += f"; device memory: {_bytes(max(one['device'] for one in ranks))} at most{most}"
    return line


def _share_of(process: int) -> Optional[int]:
    """Bytes of a process, what it shares counted in part; None where the system does not tell."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.M)
    return int(found.group(1)) * 1024 if found else None


def _tell_time(job: training.Job, took: Took, done: int, grown: int, log) -> None:
    """How long an epoch and the rest of the run take, and when that ends; grown: see `_grown`."""
    steps = len(job.train_loader)
    left = _end(job) - done
    scored = took.validation * len(job.val_loader) if job.val_loader is not None else 0.0
    epochs = math.ceil(left / steps)
    seconds = took.step * left + scored * epochs
    size = f", with the largest images to come, {grown}x{grown}" if grown else ""
    log(f"=> one step{size}: {took.step:.3f} s, of it {took.data:.3f} s waiting for data; an "
        f"epoch: {steps} steps in {duration(took.step * steps)}, validation {duration(scored)}")
    end = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + seconds))
    most = "at most " if grown else ""  # epochs of smaller images take less
    log(f"=> estimate: {left} steps in {epochs} epochs take {most}{duration(seconds)}; begun now, "
        f"the run ends on {end}. It is a rough one: from the second step alone, in which caches "
        "and loaders are hardly warm, and one batch of validation without its loading")


def _tell_disk(took: Took, size: int, copies: int, folder: Path, log) -> str:
    """Log whether the run's checkpoints fit; returns what to say where they do not, else ""."""
    place = next(one for one in (folder, *folder.resolve().parents) if one.exists())
    there = {path.resolve() for _, path in keep.listed(folder)}
    free = shutil.disk_usage(str(place)).free + size + sum(
        os.path.getsize(str(path)) for path in there)
    need = size * copies
    log(f"=> checkpoint: {_bytes(size)}, saved in {took.saving:.2f} s, read in {took.reading:.2f} "
        f"s; up to {copies} at a time are {_bytes(need)}, and {_bytes(free)} are free for them")
    if need <= free:
        return ""
    return (f"--output {folder}: the checkpoints of this run need {_bytes(need)}, {copies} of "
            f"{_bytes(size)}, and {_bytes(free)} are free there; free some space, lower "
            "--keep_last or raise --keep_every")


def copies_kept(last: int, every: int, epochs: int) -> int:
    """Checkpoints that a run has on the disk at one time, at its end: see `keep.Keeper`.

    The newest, the best, one that is being written, and those that stay for good.
    """
    return last + 2 + (epochs // every if every else 0)


def _bytes(count: float) -> str:
    return f"{count / 2 ** 30:.1f} GiB" if count >= 2 ** 30 else f"{count / 2 ** 20:.1f} MiB"


def duration(seconds: float) -> str:
    """Seconds as people say them: 12.3 s, 5 min 40 s, 3 h 12 min, 4 d 7 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    for unit, size, lower, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60),
                                    ("min", 60, "s", 1)):
        if seconds >= size * (2 if unit == "d" else 1):
            whole, rest = divmod(int(round(seconds / part)), size // part)
            return f"{whole} {unit} {rest} {lower}"
    raise AssertionError(seconds)

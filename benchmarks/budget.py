"""Trainings that may take so many minutes: how many epochs those are, and what they reach.

A minute is one of CPU time of all processes of a run, start, loading and scoring included, so that
two runs side by side, or another user of the machine, do not shorten one of them. On a card it is
one of wall-clock time. Every process on the CPU has one thread: the runs are the parallelism.
"""
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List, NamedTuple, Sequence

import processes
from timm_run import BATCH as TIMM_BATCH

from mobilenetv3 import build, config, options

ROOT = Path(__file__).resolve().parents[1]
TIMM_RUN = Path(__file__).resolve().with_name("timm_run.py")
PROBES, CARD_PROBES = (20, 120), (100, 2100)
"""Steps of the two short runs whose difference is what a step costs. On a card a step is short, and
its minutes are those of a clock."""


class Spent(NamedTuple):
    """A process that ended well."""

    out: str
    minutes: float


def spend(command: Sequence, device: str) -> Spent:
    """Run Python with these arguments, and count its minutes.

    Raises:
        processes.Failed: it ended with another status than 0.
    """
    start = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, *map(str, command)], env=processes.environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    out = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)  # its loader processes are in it: it waited for them
    child.returncode = 0  # it is waited for; Popen must not do it again
    if status:
        raise processes.Failed(f"{Path(command[0]).name} ended with wait status {status}: "
                               f"{out.strip()[-600:]}")
    cpu = usage.ru_utime + usage.ru_stime
    return Spent(out, (cpu if device == "cpu" else time.monotonic() - start) / 60)


class Case(NamedTuple):
    """One way to train one network."""

    name: str
    model: str
    recipe: str
    """Ours: a YAML file of configs/. timm's: a name in timm_run.RECIPES."""
    img_size: int
    is_ours: bool

    @property
    def key(self) -> str:
        return f"{self.model}, {self.name}"


class Place(NamedTuple):
    """Where a case runs."""

    images: str
    device: str
    workers: int
    folder: Path
    """For run folders."""


class Cost(NamedTuple):
    """What a case costs in minutes."""

    fixed: float
    """Before the first step and, where scoring is a command of its own, after the last."""
    steps: Dict[int, float]
    """A step with training images of that side."""


def train_command(case: Case, place: Place, seed: int, epochs: int, output: Path) -> List:
    """The command that trains, without scoring."""
    common = ["--model", case.model, "--img_size", case.img_size, "--epochs", epochs, "--seed",
              seed, "--device", place.device, "--workers", place.workers]
    if not case.is_ours:
        # NHWC is an option of timm's, too, and much faster on a CPU.
        return [TIMM_RUN, "--images", place.images, "--recipe", case.recipe, "--channels_last",
                *common]
    return [ROOT / "train.py", "-c", ROOT / "configs" / case.recipe, "--data_path", place.images,
            "--skip_validation", "--print_freq", 100, "--output", output, *common]


def score_command(place: Place, output: Path, scores: Path) -> List:
    """The command that scores what `train_command` of ours has left."""
    return [ROOT / "validate.py", place.images, "--device", place.device, "--workers",
            place.workers, "--ckpt_path", output / "checkpoint.pth.tar", "--json", scores]


def cost(case: Case, place: Place) -> Cost:
    """Measured by two short runs for each size of training images, and by scoring once.

    Raises:
        processes.Failed: more steps took less time.
    """
    probes = PROBES if place.device == "cpu" else CARD_PROBES
    epochs = math.ceil(max(probes) / batches(case, place.images))
    if case.is_ours:  # its warm-up may be longer than so few
        epochs = max(epochs, settings(case).epochs)
    sides = {side for side, _ in sizes(case, 1000)}  # so many that none is left out
    fixed, steps = 0.0, {}
    for side in sorted(sides):
        spent = []
        for count in probes:
            output = place.folder / f"probe {case.key} {side} {count} {os.getpid()}"
            command = train_command(case, place, 1, epochs, output)
            if len(sides) > 1:
                command += ["--train_img_size", side, "--res_schedule", f"{side}@0"]
            spent.append(spend([*command, "--max_steps", count], place.device).minutes)
        step = (spent[1] - spent[0]) / (probes[1] - probes[0])
        if step <= 0:
            raise processes.Failed(f"{case.key}: {probes[1]} steps took no longer than {probes[0]};"
                                   " measure on a machine that does less besides")
        fixed, steps[side] = max(0.0, spent[0] - probes[0] * step), step
    if case.is_ours:
        fixed += spend(score_command(place, output, output / "scores.json"), place.device).minutes
    return Cost(fixed, steps)


def settings(case: Case):
    """What train.py makes of our recipe."""
    return config.parse(options.train_parser(), [
        "-c", str(ROOT / "configs" / case.recipe), "--data_path", "DIR"])


def batches(case: Case, images: str) -> int:
    """Steps of an epoch."""
    count = sum(1 for path in (Path(images) / "train").rglob("*") if path.is_file())
    if case.is_ours:  # it leaves the last batch out where that is not whole
        return max(1, count // settings(case).batch_size)
    return math.ceil(count / TIMM_BATCH)


def sizes(case: Case, epochs: int) -> List[List[int]]:
    """[side of the training images, first epoch] in a run of so many epochs."""
    if not case.is_ours:
        return [[case.img_size, 0]]
    cfg = settings(case)
    cfg.epochs = epochs
    return build.sides(cfg)


def minutes_of(case: Case, epochs: int, cost: Cost, batches: int) -> float:
    """What a run of so many epochs costs."""
    stages = sizes(case, epochs)
    ends = [first for _, first in stages[1:]] + [epochs]
    return cost.fixed + batches * sum(
        cost.steps[side] * (end - first) for (side, first), end in zip(stages, ends))


def epochs_in(case: Case, minutes: float, cost: Cost, batches: int) -> int:
    """The epochs that a budget has room for: ours are rounded down, the others' up."""
    count = 1
    if case.is_ours:
        while minutes_of(case, count + 1, cost, batches) <= minutes:
            count += 1
    else:
        while minutes_of(case, count, cost, batches) < minutes:
            count += 1
    return count


def run(case: Case, place: Place, seed: int, epochs: int) -> dict:
    """A whole training, and the Acc@1 of its last weights on all validation images."""
    output = place.folder / f"{case.key} seed {seed}"
    spent = spend(train_command(case, place, seed, epochs, output), place.device)
    minutes = spent.minutes
    if case.is_ours:
        scores = output / "scores.json"
        minutes += spend(score_command(place, output, scores), place.device).minutes
        acc1 = json.loads(scores.read_text(encoding="utf-8"))["results"][0]["top1"]
    else:
        found = json.loads(spent.out.strip().splitlines()[-1])
        acc1 = max(value for value in (found["acc1"], found["acc1_ema"]) if value is not None)
    return {"acc1": acc1, "minutes": minutes, "epochs": epochs, "seed": seed}

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
from typing import List, NamedTuple, Sequence, Tuple

import processes
import yaml
from timm_run import BATCH as TIMM_BATCH

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


def cost(case: Case, place: Place) -> Tuple[float, float]:
    """What a case costs in minutes: before its first step, and for a step.

    Raises:
        processes.Failed: more steps took less time.
    """
    probes = PROBES if place.device == "cpu" else CARD_PROBES
    epochs = math.ceil(max(probes) / batches(case, place.images))
    spent = []
    for steps in probes:
        output = place.folder / f"probe {case.key} {steps} {os.getpid()}"
        command = train_command(case, place, 1, epochs, output)
        spent.append(spend([*command, "--max_steps", steps], place.device).minutes)
    step = (spent[1] - spent[0]) / (probes[1] - probes[0])
    if step <= 0:
        raise processes.Failed(f"{case.key}: {probes[1]} steps took no longer than {probes[0]}; "
                               "measure on a machine that does less besides")
    return max(0.0, spent[0] - probes[0] * step), step


def batches(case: Case, images: str) -> int:
    """Steps of an epoch."""
    count = sum(1 for path in (Path(images) / "train").rglob("*") if path.is_file())
    size = TIMM_BATCH
    if case.is_ours:
        size = yaml.safe_load((ROOT / "configs" / case.recipe).read_text("utf-8"))["batch_size"]
    return math.ceil(count / size)


def epochs_in(case: Case, minutes: float, fixed: float, epoch: float) -> int:
    """The epochs that a budget has room for: ours are rounded down, the others' up."""
    count = (minutes - fixed) / epoch
    return max(1, math.floor(count) if case.is_ours else math.ceil(count))


def run(case: Case, place: Place, seed: int, epochs: int) -> dict:
    """A whole training, and the Acc@1 of its last weights on all validation images."""
    output = place.folder / f"{case.key} seed {seed}"
    spent = spend(train_command(case, place, seed, epochs, output), place.device)
    minutes = spent.minutes
    if case.is_ours:
        scores = output / "scores.json"
        scored = spend([ROOT / "validate.py", place.images, "--device", place.device, "--workers",
                        place.workers, "--ckpt_path", output / "checkpoint.pth.tar", "--json",
                        scores], place.device)
        minutes += scored.minutes
        acc1 = json.loads(scores.read_text(encoding="utf-8"))["results"][0]["top1"]
    else:
        found = json.loads(spent.out.strip().splitlines()[-1])
        acc1 = max(value for value in (found["acc1"], found["acc1_ema"]) if value is not None)
    return {"acc1": acc1, "minutes": minutes, "epochs": epochs, "seed": seed}

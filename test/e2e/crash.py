#!/usr/bin/env python3
"""Kill a training again and again, resume it, and compare its end with that of one left alone.

    python test/e2e/crash.py --kills 50              # one rank; about four minutes on two cores
    python test/e2e/crash.py --kills 20 --ranks 2

A run of four short epochs (small images, augmentation, dropout, Mixup, averaged weights, a loader
process, a checkpoint every three steps) is made once without disturbance. Then the same run is
killed by SIGKILL at moments drawn uniformly over its duration, and every fifth time inside the
write of a checkpoint: its temporary file is seen before the kill, and found after it. The run is
started again with --resume auto until it ends. Checkpoint, best checkpoint and metrics have to be
those of the undisturbed run, bit for bit.

Killed are the process that trains (its writing thread with it), or one of several ranks, all of
them, or a loader process. What is left of a job of several ranks then gets SIGTERM, as torchrun
does it. Prints a table in Markdown; exit status 1 where anything differs.
"""
import argparse
import contextlib
import os
import random
import runpy
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import List, NamedTuple, Set

os.environ.update(OMP_NUM_THREADS="1", TORCH_DEVICE_BACKEND_AUTOLOAD="0")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from crash_outcome import differences, make_images, outcome  # noqa: E402

from mobilenetv3 import build, keep, models, training  # noqa: E402, F401, what train.py imports

OPTIONS = [
    "--device", "cpu", "--model", "mobilenetv3_small_050", "--img_size", "32", "--batch_size", "8",
    "--workers", "1", "--epochs", "4", "--warmup_epochs", "1", "--lr", "0.05", "--sched_on_updates",
    "--drop", "0.2", "--drop_path", "0.1", "--mixup", "0.2", "--color_jitter", "0.2", "--reprob",
    "0.2", "--model_ema", "--model_ema_decay", "0.9", "--checkpoint_every", "3", "--keep_last", "3",
    "--print_freq", "1", "--dist_timeout", "60",
]
PER_RUN = 5
"""Kills of one run before it may come to its end."""
LIMIT = 120.0
"""Seconds after which a start is taken for one that hangs."""


class Start:
    """One start of the training: a process a rank, forked from this one to save the imports."""

    def __init__(self, folder: Path, data: Path, ranks: int):
        self.log = folder.with_name(f"{folder.name}.out")
        self.log.touch()
        self.leftovers = half_written(folder)  # of the start before this one
        self.before = self.log.stat().st_size
        port = free_port()
        self.began = time.monotonic()
        self.alive = {}
        self.status = {}
        for rank in range(ranks):
            environment = {} if ranks == 1 else {
                "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks,
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            }
            arguments = [str(data), *OPTIONS, "--output", str(folder), "--resume", "auto"]
            self.alive[fork_training(arguments, environment, self.log)] = rank
        self.pids = list(self.alive)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def poll(self) -> bool:
        """Whether some process is still there."""
        for pid in list(self.alive):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self.status[self.alive.pop(pid)] = status
        if self.alive and self.seconds > LIMIT:
            self.kill(list(self.alive))
            raise SystemExit(f"a start hangs: {self.text()[-2000:]}")
        return bool(self.alive)

    def kill(self, pids: List[int], number: int = signal.SIGKILL) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def end(self) -> None:
        """Wait for what a kill has left over, which gets SIGTERM as torchrun sends it."""
        told = time.monotonic()
        self.kill(list(self.alive), signal.SIGTERM)
        while self.poll():
            time.sleep(0.005)
            if time.monotonic() - told > 15:
                self.kill(list(self.alive))

    def text(self) -> str:
        """What this start has printed."""
        return self.log.read_bytes()[self.before:].decode("utf-8", "replace")


def fork_training(arguments, environment, log: Path) -> int:
    """Start train.py with these arguments in a child; returns its process id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        os.setsid()
        out = os.open(str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ.update({name: str(value) for name, value in environment.items()})
        sys.argv = [str(ROOT / "train.py"), *arguments]
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    finally:
        for thread in threading.enumerate():  # as the interpreter does at its end
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        sys.stdout.flush()
        os._exit(status)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def loader_processes(pid: int) -> List[int]:
    """The forked processes of a training."""
    try:
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [int(word) for word in words]


class Kill(NamedTuple):
    """A kill that was made, and what came of it."""

    run: int
    seconds: float
    """After the start that it ended."""
    victim: str
    is_inside: bool
    """A checkpoint was being written."""
    is_aimed: bool
    """It was meant to be."""
    resumed: str
    """Where the next start went on."""


def half_written(folder: Path) -> Set[str]:
    """The temporary files of checkpoints in a run folder."""
    try:
        names = os.listdir(str(folder / keep.FOLDER))
    except FileNotFoundError:
        return set()
    return {name for name in names if name.endswith(".tmp")}


def kill_once(start: Start, folder: Path, after: float, inside: bool, chosen: random.Random):
    """Kill a start so many seconds after its beginning.

    Returns:
        (seconds, victim, whether inside a write); None if the start came to its end before that.

    Args:
        inside: wait, from then on, for a checkpoint to be under way.
    """
    def is_writing() -> bool:
        return bool(half_written(folder) - start.leftovers)

    while start.seconds < after or (inside and not is_writing()):
        if not start.poll():
            return None
        time.sleep(0.001)
    if not start.poll():
        return None
    if inside:
        time.sleep(chosen.uniform(0, 0.02))
    victim, pids = "the process", start.pids[:1]
    workers = [child for pid in start.pids for child in loader_processes(pid)]
    if not inside and workers and chosen.random() < 0.15:
        victim, pids = "a loader process", [chosen.choice(workers)]
    elif len(start.pids) > 1:
        rank = 0 if inside else chosen.randrange(-1, len(start.pids))
        victim = "all ranks" if rank < 0 else f"rank {rank}"
        pids = start.pids if rank < 0 else [start.pids[rank]]
    seconds = start.seconds
    start.kill(pids)
    if victim == "a loader process":
        while start.poll():  # PyTorch tells the training, which ends with an error
            time.sleep(0.005)
    start.end()
    return seconds, victim, is_writing()


def resumed_from(text: str) -> str:
    """Where the start that printed this went on."""
    for line in text.splitlines():
        if line.startswith("=> resumed from "):
            return line[line.rindex("(") + 1 : -1]
        if line.startswith("=> no checkpoint in "):
            return "the beginning"
    return "killed again before that"


def run_to_its_end(folder: Path, data: Path, ranks: int, kills, duration, chosen, number: int):
    """One run under kills; returns those that were made and those that came too late."""
    made, late, before = [], [], 0.0
    startup = duration.startup
    for share, inside in sorted(kills):
        start = Start(folder, data, ranks)
        after = share * duration.whole if not made else startup + (share - before) * duration.whole
        killed = kill_once(start, folder, after, inside, chosen)
        if made:
            made[-1] = made[-1]._replace(resumed=resumed_from(start.text()))
        if killed is None:
            require(start)
            return made, late + [item for item in sorted(kills) if item[0] >= share]
        made.append(Kill(number, *killed, inside, ""))
        before = share
    start = Start(folder, data, ranks)
    while start.poll():
        time.sleep(0.01)
    require(start)
    if made:
        made[-1] = made[-1]._replace(resumed=resumed_from(start.text()))
    return made, late


def require(start: Start) -> None:
    if any(start.status.values()):
        raise SystemExit(f"a start ended with {start.status}:\n{start.text()[-3000:]}")


class Duration(NamedTuple):
    """Seconds of the undisturbed run."""

    startup: float
    whole: float


def undisturbed(folder: Path, data: Path, ranks: int) -> Duration:
    start, startup = Start(folder, data, ranks), 0.0
    while start.poll():
        if not startup and "\nEpoch: [0]" in start.text():
            startup = start.seconds
        time.sleep(0.01)
    require(start)
    return Duration(startup, start.seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--inside", type=int, help="of them inside a write (default: a fifth)")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chosen = random.Random(args.seed)
    inside = args.kills // 5 if args.inside is None else args.inside
    place = Path(tempfile.mkdtemp(prefix="crash-"))
    began = time.monotonic()
    make_images(place / "images")
    duration = undisturbed(place / "whole", place / "images", args.ranks)
    expected = outcome(place / "whole")
    print(f"{args.kills} kills, {inside} of them inside a write, of a run of {args.ranks} rank(s) "
          f"that takes {duration.whole:.1f} s; seed {args.seed}\n")
    print("| kill | run | seconds | killed | inside a write | went on from | identical |\n"
          "|---:|---:|---:|---|---|---|---|", flush=True)
    todo = [[chosen.random(), index < inside] for index in range(args.kills)]
    chosen.shuffle(todo)
    count = written = number = 0
    failed: List[str] = []
    while todo and number < 10 + args.kills:
        number += 1
        now, todo = todo[:PER_RUN], todo[PER_RUN:]
        folder = place / f"run{number}"
        made, late = run_to_its_end(folder, place / "images", args.ranks, now, duration, chosen,
                                    number)
        wrong = differences(outcome(folder), expected)
        failed += [f"run {number}: {text}" for text in wrong]
        # A forced kill that missed its write is drawn again, and so is one that came too late.
        missed = sum(kill.is_aimed and not kill.is_inside for kill in made)
        todo += [[chosen.random(), is_aimed] for _, is_aimed in late]
        todo += [[chosen.random(), True] for _ in range(missed)]
        for kill in made:
            count += 1
            written += kill.is_inside
            print(f"| {count} | {kill.run} | {kill.seconds:.2f} | {kill.victim} | "
                  f"{'yes' if kill.is_inside else 'no'} | {kill.resumed} | "
                  f"{'NO' if wrong else 'yes'} |", flush=True)
        if not wrong:
            shutil.rmtree(str(folder))
    failed += ["not all kills could be made"] if todo else []
    print(f"\n{count} kills in {number} runs, {written} of them inside a write, in "
          f"{time.monotonic() - began:.0f} s: "
          f"{'every run ended as the undisturbed one' if not failed else 'DIFFERENT'}")
    print("\n".join(failed[:40]))
    if not failed:
        shutil.rmtree(str(place))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())

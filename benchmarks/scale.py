#!/usr/bin/env python3
"""How training scales with ranks, and how many cores feed a box of cards.

    python benchmarks/scale.py                                # CPU: 1, 2, 4, 8 ranks of one thread
    python benchmarks/scale.py --device cuda --batch_size 256 --workers 12 --part ranks
    python benchmarks/scale.py --part data --images DIR/train --rate 1660 --cards 8

Ranks: train.py under torchrun with the same batch a rank; efficiency is FPS(n) / (n FPS(1)). On the
CPU each rank has one thread and loads its own images, and only as many ranks as there are cores can
count as scaling; more show that nothing breaks.

Data: loaders feed null models, one rank a core, with raw JPEGs and from a prepared set. Measured
are the images of a second of CPU time, workers and training processes together, with one core busy
and with all of them. The cores that --cards cards need, each taking --rate images a second, are
EXTRAPOLATED from the latter. That loaders do not keep such a model waiting is then tried at 90 % of
what this machine serves: shown is the share of the time in which the models waited for data.
"""
import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import measure  # noqa: E402
import pictures  # noqa: E402
import processes  # noqa: E402
from processes import Failed  # noqa: E402

NULL = Path(__file__).resolve().with_name("nullmodel.py")
FED = 0.9
"""Share of the measured rate at which the null model is fed."""


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--images", metavar="DIR", help="ImageFolder (default: made for the run)")
    add("--part", choices=("ranks", "data", "both"), default="both")
    add("--ranks", nargs="+", type=int, default=[1, 2, 4, 8])
    add("--model", default="mobilenetv3_large_100")
    add("--device", default="cpu")
    add("--batch_size", type=int, default=16, help="images of one rank in training")
    add("--img_size", type=int, default=224)
    add("--workers", type=int, default=0, help="loader processes of a rank in training")
    add("--steps", type=int, default=24, metavar="N",
        help="of one run of train.py, the warm-up included")
    add("--rate", type=float, default=1660.0, help="images that a card takes in a second")
    add("--cards", type=int, default=8)
    add("--prepared_size", type=int, default=256, metavar="PIXELS")
    parser = measure.add_options(parser, seconds=30, rounds=5)
    return parser.parse_args()


# ---- Ranks.


def launcher(ranks):
    """The command that starts a script with so many ranks."""
    import torch

    run = Path(torch.__file__).parent / "distributed" / "run.py"
    if run.exists():
        return ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return ["torch.distributed.launch", "--use_env", f"--nproc_per_node={ranks}",
            f"--master_port={29600 + os.getpid() % 1000}"]


def fps(options, ranks, images, output):
    """train.py's FPS over all ranks."""
    return processes.fps(processes.run(
        "-m", *launcher(ranks), ROOT / "train.py", "--data_path", images, "--output", output,
        "--model", options.model, "--device", options.device, "--num_classes", 1000, "--img_size",
        options.img_size, "--batch_size", options.batch_size * ranks, "--workers", options.workers,
        "--opt", "momentum", "--lr", 0.05, "--max_steps", options.steps, "--print_freq", 50,
        "--skip_validation", "--channels_last",
    ))


def scale_ranks(options, folder):
    """Rows of the ranks; prints the table."""
    images = pictures.lay_out(pictures.gather(options.images, folder), folder / "epoch",
                              options.steps * options.batch_size * max(options.ranks))
    runs = itertools.count()
    cases = {
        name_of(ranks): lambda _, ranks=ranks: fps(
            options, ranks, images, folder / f"run{next(runs)}")
        for ranks in options.ranks
    }
    rows = measure.rows(measure.take_turns(cases, options), name_of(min(options.ranks)))
    limit = measure.cpus() if options.device == "cpu" else max(options.ranks)
    lines = [["Ranks", "images/s", f"to {rows[0]['ratio_to']}", "efficiency", ""]]
    for ranks, row in zip(options.ranks, rows):
        share = row["ratio"] * min(options.ranks) / ranks
        is_scaling = ranks <= limit
        lines.append([str(ranks), measure.short(row["images_per_second"]), f"{row['ratio']:.2f}",
                      f"{share:.0%}" if is_scaling else "",
                      "" if is_scaling else "more ranks than cores: nothing breaks"])
    print(f"{options.model}, {options.batch_size} images of {options.img_size}x{options.img_size} "
          f"a rank, {options.device}, {options.workers} workers a rank; {options.rounds} runs of "
          f"{options.steps} steps each\n")
    print(measure.grid(lines))
    return rows


def name_of(ranks):
    return f"{ranks} rank{'s' if ranks > 1 else ''}"


# ---- Data.


class Ranks:
    """Null models that were started together and take lines together."""

    def __init__(self, options, data, count):
        self.processes = [subprocess.Popen(
            [sys.executable, str(NULL), str(data), "--world", str(count), "--rank", str(rank),
             "--workers", "1", "--img_size", str(options.img_size)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=processes.environment(),
            text=True,
        ) for rank in range(count)]
        if [process.stdout.readline().strip() for process in self.processes] != ["ready"] * count:
            self.close()
            raise Failed(f"a rank of {NULL.name} has not started on {data}")

    def run(self, seconds, rate=0.0):
        """What each tells after so many seconds; rate is that of one rank."""
        for process in self.processes:
            process.stdin.write(f"{seconds} {rate}\n")
            process.stdin.flush()
        return [json.loads(process.stdout.readline()) for process in self.processes]

    def close(self):
        for process in self.processes:
            process.stdin.close()
        for process in self.processes:
            process.wait()
            process.stdout.close()


def total(told, key):
    return sum(one[key] for one in told)


def served(told):
    """Images a second of all ranks."""
    return sum(one["images"] / one["seconds"] for one in told)


def scale_data(options, folder):
    """Rows of images per second of CPU time; prints the cores that the cards need."""
    cores = measure.cpus()
    source = Path(options.images or folder / "pictures")
    if not options.images:
        pictures.write(source)
    made = pictures.prepare(source, folder, options.prepared_size)
    ranks, cases, waits, wall = [], {}, {}, {}
    try:
        for kind, data in (("raw JPEGs", source), (f"prepared at {options.prepared_size}", made)):
            waits[kind], wall[kind] = [], []
            for count in sorted({1, cores}):
                ranks.append(Ranks(options, data, count))
                cases[f"{kind}, {count} busy"] = turn(
                    ranks[-1], waits[kind] if count == cores else [],
                    wall[kind] if count == cores else [])
        rates = measure.take_turns(cases, options)
    finally:
        for running in ranks:
            running.close()
    rows = measure.rows(rates, {name: name.split(",")[0] + ", 1 busy" for name in rates})
    report_data(options, rows, waits, wall, cores)
    return rows


def turn(ranks, waits, wall):
    """A case: half of a turn flat out, half of it at 90 % of what that served."""
    def case(seconds):
        flat_out = ranks.run(seconds / 2)
        rate = served(flat_out)
        fed = ranks.run(seconds / 2, FED * rate / len(ranks.processes))
        waits.append(total(fed, "waited") / total(fed, "seconds"))
        wall.append((rate, served(fed)))
        return total(flat_out, "images") / total(flat_out, "cpu_seconds")
    return case


def report_data(options, rows, waits, wall, cores):
    need = options.rate * options.cards
    lines = [["Images", "images/s a core, one busy", f"{cores} busy",
              f"cores for {options.cards} cards"]]
    fed = [["Images", f"{cores} ranks flat out, images/s", "fed at, images/s", "waited for data"]]
    for kind in waits:
        found = [row["images_per_second"] for row in rows if row["name"].startswith(kind)]
        lines.append([kind, f"{found[0]:.0f}", f"{found[-1]:.0f}", f"{need / found[-1]:.1f}"])
        fed.append([kind, *(f"{statistics.median(column):.0f}" for column in zip(*wall[kind])),
                    f"{statistics.median(waits[kind]):.1%}"])
    print(f"\n{options.cards} cards at {options.rate:g} images/s each; {options.rounds} rounds. "
          f"The last column is extrapolated from {cores} cores.\n")
    print(measure.grid(lines))
    print(f"\nNull models fed at {FED:.0%} of what the loaders serve:\n")
    print(measure.grid(fed))


def main():
    options = arguments()
    if not options.seconds / options.rounds >= 0.2:
        sys.exit("--seconds leaves a turn less than 0.2 s")
    load, rows = measure.load(), []
    parts = {"ranks": scale_ranks, "data": scale_data}
    for name, part in parts.items():
        if options.part in (name, "both"):
            with tempfile.TemporaryDirectory() as made:
                try:
                    rows += part(options, Path(made))
                except (Failed, measure.Skipped) as error:
                    sys.exit(f"{name}: {error}")
    print(f"\n{measure.conditions(load, measure.cpus())}")
    measure.tell(rows, {}, options.json)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Whether what makes training fast changes what is trained: losses step by step, and accuracy.

    python benchmarks/same.py                                  # on the built-in digits
    python benchmarks/same.py --images DIR --img_size 64       # DIR/train, DIR/val; or a .tar.gz

First --steps steps of train.py with every speed-up off, then with one of them on at a time, then
with all: the largest difference of a loss to the first run's. The yardstick is a run with all of
them off on two threads, which only adds the same numbers in another order. Then whole runs of
--epochs epochs with all off and all on, for each of --seeds: Acc@1 on every validation image.
"""
import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import measure  # noqa: E402
import pictures  # noqa: E402
import processes  # noqa: E402

LOOPS = Path(__file__).resolve().with_name("loops.py")
SPEEDUPS = {  # options of train.py: without it, with it
    "decode": (["--decode=exact"], ["--decode=fast"]),
    "workers": (["--workers=0"], ["--workers=1"]),
    "channels_last": (["--channels_last=false"], ["--channels_last=true"]),
    "optimizer_form": (["--optimizer_form=plain"], ["--optimizer_form=auto"]),
    "fast_backward": ([], []),  # no option: models.set_fast_backward
    "compile": ([], ["--compile=default"]),
}
OFF, ON, REORDERED = "all off", "all on", "all off, two threads"


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--images", metavar="DIR", help="DIR/train/CLASS and DIR/val/CLASS, or a .tar.gz of them")
    add("--per_class", type=int, metavar="N",
        help="train on N images of each class, and score as many (default: on all)")
    add("--model", default="mobilenetv3_small_100")
    add("--device", default="cpu")
    add("--img_size", type=int, default=64)
    add("--batch_size", type=int, default=128)
    add("--lr", type=float, default=0.1)
    add("--epochs", type=int, default=3, help="of the whole runs; 0 for none of them")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3])
    add("--steps", type=int, default=50, help="whose losses are compared")
    add("--leave_out", nargs="+", default=[], choices=SPEEDUPS, metavar="SPEEDUP",
        help=f"keep off: {', '.join(SPEEDUPS)}")
    add("--json", metavar="FILE", help="write the rows there, too")
    return parser.parse_args()


def shorten(root, count, folder):
    """Links to the first images of each class."""
    for split in ("train", "val"):
        for path in sorted((Path(root) / split).iterdir()):
            (folder / split / path.name).mkdir(parents=True)
            for image in sorted(path.iterdir())[:count]:
                (folder / split / path.name / image.name).symlink_to(image.resolve())
    return folder


def command(chosen, on, seed):
    """Options of train.py, and of loops.py before them, with some speed-ups on and the rest off."""
    picked = [option for name, pair in SPEEDUPS.items() for option in pair[name in on]]
    plain = [] if "fast_backward" in on else ["--plain_backward"]
    return [
        *plain, *(["--data_path", chosen.images] if chosen.images else []),
        "--model", chosen.model, "--device", chosen.device, "--img_size", chosen.img_size,
        "--batch_size", chosen.batch_size, "--opt", "momentum", "--lr", chosen.lr, "--epochs",
        max(1, chosen.epochs), "--sched", "cosine", "--sched_on_updates", "--seed", seed, *picked,
    ]


# ---- Losses.


def losses(chosen, on, folder, threads=1):
    """The losses of the first steps, as the model gave them."""
    text = processes.run(
        LOOPS, "losses", chosen.steps, *command(chosen, on, chosen.seeds[0]), "--max_steps",
        chosen.steps, "--skip_validation", "--output", folder, threads=threads,
    )
    return json.loads(text.strip().splitlines()[-1])["losses"]


def compare_losses(chosen, speedups, folder):
    """Compare the first steps; prints both tables."""
    cases = {OFF: (), **{" ".join(SPEEDUPS[name][1]) or name: (name,) for name in speedups},
             ON: speedups}
    found = {case: losses(chosen, on, folder / f"losses{number}")
             for number, (case, on) in enumerate(cases.items())}
    found[REORDERED] = losses(chosen, (), folder / "reordered", threads=2)
    marks = sorted({min(mark, chosen.steps) for mark in (1, 10, chosen.steps)})
    lines = [["", *(f"within {mark} steps" for mark in marks)]]
    for case in [*cases, REORDERED][1:]:
        apart = [abs(a - b) for a, b in zip(found[case], found[OFF])]
        lines.append([case, *("equal" if not max(apart[:mark]) else f"{max(apart[:mark]):.1e}"
                              for mark in marks)])
    print(f"Largest difference of a loss to that of '{OFF}', {chosen.model} at "
          f"{chosen.img_size}x{chosen.img_size}, batches of {chosen.batch_size}:\n")
    print(measure.grid(lines))
    shown = [number for number in range(chosen.steps) if number < 5 or number % 5 == 4]
    print(f"\nLosses, '{OFF}' and '{ON}':\n")
    print(measure.grid([["step", OFF, ON]] + [
        [str(number + 1), f"{found[OFF][number]:.6f}", f"{found[ON][number]:.6f}"]
        for number in shown
    ]), flush=True)


# ---- Accuracy.


def accuracies(chosen, speedups, folder):
    """A row for each whole run; off and on take turns."""
    rows = []
    for seed in chosen.seeds:
        for case, on in ((OFF, ()), (ON, speedups)):
            text = processes.run(LOOPS, "whole", *command(chosen, on, seed), "--print_freq", 100,
                                 "--output", folder / f"{case} {seed}")
            score = processes.acc1(text)
            rows.append({"name": f"{case}, seed {seed}", "images_per_second": processes.fps(text),
                         "ratio": None, "ratio_to": f"{OFF}, seed {seed}", "acc1": score})
            print(f"{rows[-1]['name']}: Acc@1 {score:.2f}", file=sys.stderr, flush=True)
    by_name = {row["name"]: row for row in rows}
    for row in rows:
        row["ratio"] = row["images_per_second"] / by_name[row["ratio_to"]]["images_per_second"]
    return rows


def report(chosen, rows):
    lines = [["", *(f"seed {seed}" for seed in chosen.seeds), "mean", "standard deviation"]]
    for case in (OFF, ON):
        found = [row["acc1"] for row in rows if row["name"].startswith(f"{case},")]
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        lines.append([case, *(f"{acc1:.2f}" for acc1 in found), f"{statistics.mean(found):.2f}",
                      f"{spread:.2f}"])
    print(f"\nAcc@1 after {chosen.epochs} epochs, %:\n\n{measure.grid(lines)}")


def main():
    chosen = arguments()
    load, speedups = measure.load(), [name for name in SPEEDUPS if name not in chosen.leave_out]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        try:
            if chosen.images and Path(chosen.images).is_file():
                chosen.images = pictures.unpack(chosen.images, folder / "images")
            if chosen.images and chosen.per_class:
                chosen.images = shorten(chosen.images, chosen.per_class, folder / "short")
            compare_losses(chosen, speedups, folder)
            rows = accuracies(chosen, speedups, folder) if chosen.epochs else []
        except (ValueError, processes.Failed) as error:
            sys.exit(str(error))
    if rows:
        report(chosen, rows)
    print(f"\n{measure.conditions(load, measure.cpus())}")
    measure.tell(rows, {}, chosen.json)


if __name__ == "__main__":
    main()

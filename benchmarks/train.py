#!/usr/bin/env python3
"""The whole of train.py against timm's training loop, and against its own bare step.

    python benchmarks/train.py                               # CPU, on JPEGs that it makes itself
    python benchmarks/train.py --images DIR/train --models mobilenetv3_small_100 --workers 1
    python benchmarks/train.py --device cuda --precisions fp32 O1 O2 bf16 --batch_size 512 \\
        --workers 12 --layouts channels_last
    python benchmarks/train.py --workers 2 -- --compile      # what follows -- goes to train.py

For each configuration three processes take turns (see loops.py): the script train.py, whose FPS is
read from its log; timm's dataset, loader, model, optimizer and schedule put together as timm's own
training script does; and the bare step: train.py's model, loss and optimizer over one batch that
never changes, without a loader, a log or a count. All have the same images, batch, augmentation
(crop and flip), number of workers, threads, precision and memory layout, SGD with momentum, and
leave the same warm-up steps out. An epoch is as long as a turn: images stand in it several times.
O1 and O2 are compared with timm's float16 autocast and bf16 (train.py's O1 with bfloat16) with its
bfloat16.
"""
import argparse
import itertools
import json
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import measure  # noqa: E402
import pictures  # noqa: E402
import processes  # noqa: E402

from mobilenetv3 import device as devices  # noqa: E402

LOOPS = Path(__file__).resolve().with_name("loops.py")
PRECISIONS = {  # options of train.py, timm's half precision
    "fp32": ([], ""),
    "O1": (["--apex", "--apex_opt_level", "O1"], "float16"),
    "O2": (["--apex", "--apex_opt_level", "O2"], "float16"),
    "bf16": (["--apex", "--apex_opt_level", "O1", "--amp_dtype", "bfloat16"], "bfloat16"),
}
LAYOUTS = ("NCHW", "channels_last")
OURS, TIMM, BARE = "train.py", "timm", "bare step"


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--images", metavar="DIR", help="ImageFolder (default: made for the run)")
    add("--shorter", type=int, metavar="PIXELS",
        help="make the images smaller first, to this shorter side: data is then plentiful")
    add("--models", nargs="+", default=["mobilenetv3_large_100", "mobilenetv3_small_100"])
    add("--device", default="cpu")
    add("--precisions", nargs="+", choices=PRECISIONS, default=["fp32"])
    add("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    add("--workers", nargs="+", type=int, default=[0, 2])
    add("--batch_size", type=int, default=32)
    add("--img_size", type=int, default=224)
    add("--cpu_time", action="store_true",
        help="for a machine that does other work, too: what is counted is the CPU time of the "
             "training process, workers left out; waiting for data does not show")
    add("--threads", type=int, default=1, help="of the training process, on the CPU")
    add("--ema", action="store_true", help="with a moving average of the weights")
    add("options", nargs="*", metavar="-- OPTIONS", help="of train.py, and of its bare step")
    return measure.add_options(parser, seconds=60, rounds=5).parse_args()


# ---- The three processes.


def own_options(options, config, folder, output):
    """The command line of train.py."""
    model, precision, layout, workers = config
    return [
        "--data_path", folder, "--output", output, "--model", model, "--device", options.device,
        "--batch_size", options.batch_size, "--img_size", options.img_size, "--workers", workers,
        "--num_classes", 1000, "--opt", "momentum", "--lr", 0.05, "--weight_decay", 1e-4,
        "--filter_bias_and_bn", "--sched", "cosine", "--epochs", 90, "--print_freq", 50,
        "--skip_validation", *PRECISIONS[precision][0],
        f"--channels_last={str(layout == 'channels_last').lower()}",
        *(["--model_ema"] if options.ema else []), *options.options,
    ]


def run_own(options, config, folder, output, steps):
    """train.py's FPS, from its log."""
    return processes.fps(processes.run(
        *([LOOPS, "whole"] if options.cpu_time else [ROOT / "train.py"]), "--max_steps", steps,
        *own_options(options, config, folder, output), threads=options.threads,
        cpu_time=options.cpu_time,
    ))


def run_bare(options, config, folder, output, seconds):
    return told(processes.run(
        LOOPS, "bare", seconds, *own_options(options, config, folder, output),
        threads=options.threads, cpu_time=options.cpu_time,
    ))


def run_timm(options, config, folder, steps):
    model, precision, layout, workers = config
    half = PRECISIONS[precision][1]
    return told(processes.run(
        LOOPS, "timm", steps, "--images", folder, "--model", model, "--device",
        options.device, "--batch_size", options.batch_size, "--img_size", options.img_size,
        "--workers", workers, *(["--dtype", half] if half else []),
        *(["--channels_last"] if layout == "channels_last" else []),
        *(["--ema"] if options.ema else []), threads=options.threads,
        cpu_time=options.cpu_time,
    ))


def told(text):
    return json.loads(text.strip().splitlines()[-1])["images_per_second"]


# ---- Measuring.


def compare(options, config, classes, folder):
    """The rates of the three, round by round, and what was skipped."""
    numbers, turn = itertools.count(), options.seconds / options.rounds

    def output():
        return folder / f"run{next(numbers)}"
    one = pictures.lay_out(classes, folder / "one", options.batch_size)
    rate = run_bare(options, config, one, output(), min(turn, 5.0))
    steps = max(8, round(turn * rate / options.batch_size))
    images = pictures.lay_out(classes, folder / "all", steps * options.batch_size)
    makers = {
        OURS: lambda _: run_own(options, config, images, output(), steps),
        TIMM: lambda _: run_timm(options, config, images, steps),
        BARE: lambda seconds: run_bare(options, config, one, output(), seconds),
    }
    skipped = {}
    if not has_timm():
        del makers[TIMM]
        skipped[TIMM] = "timm needs a newer torchvision"
    return measure.take_turns(makers, options), skipped


def has_timm():
    """timm's transforms ask torchvision for a function that version 0.9 does not have."""
    from torchvision.transforms import functional
    return hasattr(functional, "get_image_size")


def rows_of(label, rates):
    """train.py's row is there twice: to timm, and to its bare step."""
    named = {f"{label}: {name}": found for name, found in rates.items()}
    base = {f"{label}: {name}": f"{label}: {TIMM}" for name in rates}
    rows = measure.rows(named, base)
    own = f"{label}: {OURS}"
    to_bare = measure.rows({own: rates[OURS], f"{label}: {BARE}": rates[BARE]},
                           f"{label}: {BARE}")
    return rows + to_bare[:1]


def line_of(label, rows):
    """The cells of a configuration: rates of the three, and train.py to the others."""
    by_name = {re.sub(r"^.*: ", "", row["name"]): row for row in rows[:-1]}
    rates = [measure.short(by_name[name]["images_per_second"]) if name in by_name else "-"
             for name in (OURS, TIMM, BARE)]
    ratios = [
        "-" if row["ratio"] is None else
        f"{row['ratio']:.3f} ({row['ratio_lowest']:.3f} - {row['ratio_highest']:.3f})"
        for row in (by_name[OURS], rows[-1])
    ]
    return [label, *rates, *ratios]


def main():
    options = arguments()
    load, table, lines, skipped = measure.load(), [], [], {}
    configs = itertools.product(
        options.models, options.precisions, options.layouts, options.workers)
    with tempfile.TemporaryDirectory() as made:
        try:
            classes = pictures.gather(options.images, Path(made), options.shorter)
        except measure.Skipped as error:
            sys.exit(str(error))
        for number, config in enumerate(configs):
            label = "{} {} {}, {} workers".format(*config)
            try:
                rates, left_out = compare(options, config, classes, Path(made) / str(number))
            except processes.Failed as error:
                sys.exit(f"{label}: {error}")
            skipped.update(left_out)
            table += rows_of(label, rates)
            lines.append(line_of(label, table[-len(rates) - 1 :]))
            print(" | ".join(lines[-1]), file=sys.stderr, flush=True)
    report(options, load, table, lines, skipped)


def report(options, load, table, lines, skipped):
    print(f"batches of {options.batch_size} at {options.img_size}x{options.img_size}, "
          f"{options.threads} thread(s) and workers beside it; {options.rounds} rounds"
          f"{', CPU time' if options.cpu_time else ''}{', with EMA' if options.ema else ''}; "
          f"options of train.py besides: {' '.join(options.options) or 'none'}\n"
          f"{measure.conditions(load, measure.cpus(), devices.select(options.device))}\n")
    print(measure.grid([["Configuration", f"{OURS}, images/s", TIMM, BARE, f"{OURS} to {TIMM}",
                         f"{OURS} to its {BARE}"], *lines]))
    measure.tell(table, skipped, options.json)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Whether this training is the reference training, and what its recipes reach at small scale.

    python benchmarks/accuracy.py --images cifar10_jpeg.tar.gz --json accuracy.json     # all of it
    python benchmarks/accuracy.py --images DIR --json accuracy.json --parts recipes --minutes 30
    python benchmarks/accuracy.py --json accuracy.json --parts                # only the tables
    python benchmarks/accuracy.py --json accuracy.json --parts --pages docs/accuracy.md

Images are DIR/train/CLASS and DIR/val/CLASS, of 32x32 pixels. Every result goes to the file of
--json at once, and what stands there is not done again: start the same command to go on. A file is
for one set of images.

parity: train.py and a plain loop of timm's parts over the same batches (see parity.py).
recipes: configs/cifar10_*.yaml against timm's own training within the same minutes (see budget.py
and timm_run.py). Of timm's recipes and image sizes the best with one seed and --choose_minutes is
taken. Scored are the last weights, never the best of several epochs.
changes: mixed precision, averaging and resuming in a fine-tuning (see changes.py).
"""
import argparse
import concurrent.futures
import itertools
import json
import math
import statistics
import sys
import tempfile
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import budget  # noqa: E402
import changes  # noqa: E402
import measure  # noqa: E402
import pictures  # noqa: E402
import processes  # noqa: E402

from mobilenetv3 import files  # noqa: E402

PARITY = Path(__file__).resolve().with_name("parity.py")
PARTS, PARITY_RECIPES = ("parity", "recipes", "changes"), ("sgd", "rmsproptf", "adamw")
PARITY_BOUND = 1e-4
OURS = "this package"
TIMM_SIZES, TIMM_RECIPES = (32, 64), ("defaults", "mobilenetv3")


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--images", metavar="DIR", help="or a .tar.gz of it; not needed for the tables alone")
    add("--json", metavar="FILE", required=True, help="results: read, and added to")
    add("--parts", nargs="*", choices=PARTS, default=PARTS, metavar="PART",
        help=f"{', '.join(PARTS)} (default: all; without a name only the tables)")
    add("--pages", nargs="+", default=[], metavar="FILE",
        help="Markdown to put the tables into, each from its line <!-- PART --> to <!-- end -->")
    add("--models", nargs="+", default=["mobilenetv3_small_100", "mobilenetv3_large_100"])
    add("--minutes", type=float, default=30, help="of each run of recipes; of CPU time, or on a "
        "card of wall-clock time")
    add("--choose_minutes", type=float, default=4, help="of each run that chooses timm's recipe")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3])
    add("--steps", type=int, default=200, help="of parity")
    add("--per_class", type=int, default=1000, help="training images of a class in changes")
    add("--device", default="cpu")
    add("--workers", type=int, default=0, help="loader processes of a run")
    add("--jobs", type=int, help="runs at a time (default: one for each core, on a card 1)")
    return parser.parse_args()


class Store:
    """The rows of a results file, one part after the other."""

    def __init__(self, path):
        self.path, self._lock = Path(path), threading.Lock()
        self.rows = json.loads(self.path.read_text("utf-8")) if self.path.is_file() else []

    def of(self, part, **where):
        """The rows of a part that have these values."""
        return [row for row in self.rows if row["part"] == part
                and all(row.get(key) == value for key, value in where.items())]

    def add(self, part, row):
        """Add a row, and write the file."""
        with self._lock:
            self.rows.append({"part": part, **row})
            text = "[\n" + ",\n".join(map(json.dumps, self.rows)) + "\n]\n"
            files.write_atomically(self.path, lambda file: file.write(text.encode("ascii")))
        print(json.dumps(self.rows[-1]), file=sys.stderr, flush=True)


# ---- The parts.


def parity(options, store):
    """The losses of both loops, recipe by recipe."""
    for recipe in PARITY_RECIPES:
        if not store.of("parity", recipe=recipe, steps=options.steps):
            told = processes.run(PARITY, recipe, "--steps", options.steps, "--images",
                                 options.images)
            store.add("parity", dict(json.loads(told.strip().splitlines()[-1]),
                                     conditions=about("cpu")))  # where it always is


def recipes(options, store, folder):
    """Choose timm's recipe for each model, then train both with every seed."""
    place = budget.Place(options.images, options.device, options.workers, folder)
    with concurrent.futures.ThreadPoolExecutor(jobs(options)) as pool:
        def together(part, cases, seeds, minutes):
            wanted = [(case, seed) for seed in seeds for case in cases
                      if not store.of(part, case=case.key, seed=seed, minutes_given=minutes,
                                      device=options.device)]
            costs = dict(zip(cases, pool.map(lambda case: cost_of(options, store, case, place),
                                             cases if wanted else ())))
            for _ in pool.map(lambda job: train(options, store, part, *job, minutes, costs, place),
                              wanted):
                pass
        peers = [peer for model in options.models for peer in peers_of(model)]
        together("choice", peers, options.seeds[:1], options.choose_minutes)
        finalists = [case for model in options.models
                     for case in (own(model), chosen(store, model, options))]
        together("recipes", finalists, options.seeds, options.minutes)


def own(model):
    case = budget.Case(OURS, model, f"cifar10_{model}.yaml", 0, True)
    return case._replace(img_size=budget.settings(case).img_size)


def peers_of(model):
    return [budget.Case(f"timm, {recipe}, {size}x{size}", model, recipe, size, False)
            for recipe in TIMM_RECIPES for size in TIMM_SIZES]


def chosen(store, model, options):
    """timm's recipe and size that reached most."""
    rows = {case: store.of("choice", case=case.key, minutes_given=options.choose_minutes,
                           device=options.device) for case in peers_of(model)}
    return max(rows, key=lambda case: rows[case][0]["acc1"])


def cost_of(options, store, case, place):
    """What a case costs, measured once for a results file."""
    kept = store.of("cost", case=case.key, device=options.device)
    if kept:
        return budget.Cost(kept[-1]["fixed"],
                           {int(side): step for side, step in kept[-1]["steps"].items()})
    cost = budget.cost(case, place)
    store.add("cost", {"case": case.key, "device": options.device, **cost._asdict()})
    return cost


def train(options, store, part, case, seed, minutes, costs, place):
    """One run, and its row."""
    epochs = budget.epochs_in(case, minutes, costs[case], budget.batches(case, options.images))
    row = budget.run(case, place, seed, epochs)
    store.add(part, dict(row, case=case.key, name=case.name, model=case.model,
                         device=options.device, minutes_given=minutes,
                         conditions=about(options.device)))


def jobs(options):
    return options.jobs or (measure.cpus() if options.device == "cpu" else 1)


def about(device):
    """Where a row was measured."""
    from mobilenetv3 import device as devices

    card = devices.select(device)
    return measure.conditions(measure.load(), 1, card)


# ---- The tables.


def spread(values):
    """Mean and standard deviation, as text."""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def small(number):
    """A difference; 0 only where it is exactly that."""
    return f"{number:.1e}" if number else "0"


def parity_table(store):
    lines = [["recipe", "steps", "loss, first and last", "largest difference of a loss",
              "of a weight", "of an averaged weight", f"within {PARITY_BOUND:g}"]]
    for row in store.of("parity"):
        averaged = row["recipe"] in ("rmsproptf",)
        lines.append([
            row["recipe"], str(row["steps"]), f"{row['first_loss']:.4f}, {row['last_loss']:.4f}",
            small(row["loss_apart"]), small(row["weights_apart"]),
            small(row["average_apart"]) if averaged else "-",
            "yes" if row["loss_apart"] <= PARITY_BOUND else "NO"])
    return measure.grid(lines)


def recipes_table(store):
    lines = [["network", "on", "training", "budget, minutes", "used", "epochs", "seeds", "Acc@1, %",
              "to timm's"]]
    groups = {}
    for row in store.of("recipes"):
        key = row["model"], row["device"], row["minutes_given"], row["name"]
        groups.setdefault(key, []).append(row)
    ordered = sorted(groups.items(), key=lambda item: (*item[0][:3], item[0][3] != OURS))
    for (model, device, given, name), rows in ordered:
        scores = [row["acc1"] for row in rows]
        others = [row["acc1"] for row in store.of("recipes", model=model, device=device,
                                                  minutes_given=given) if row["name"] != OURS]
        gain = statistics.mean(scores) - statistics.mean(others) if others else math.nan
        lines.append([
            model, device, name, f"{given:g}", spread([row["minutes"] for row in rows]),
            "/".join(sorted({str(row["epochs"]) for row in rows})),
            ", ".join(str(row["seed"]) for row in rows), spread(scores),
            f"{gain:+.2f}" if name == OURS and others else "-"])
    return measure.grid(lines)


def within(scores, others, apart):
    """Whether means are no farther apart than twice the standard error of their difference."""
    if len(scores) < 2 or len(others) < 2:
        return "one seed tells nothing"
    error = 2 * math.sqrt(statistics.variance(scores) / len(scores)
                          + statistics.variance(others) / len(others))
    return f"{'yes' if abs(apart) <= error else 'NO'} (± {error:.2f})"


def changes_table(store):
    """Of each way, and how far it is from float32 with the same seeds."""
    lines = [["fine-tuning", "on", "seeds", "Acc@1, %", "to float32", "within seed noise"]]
    for device, name in itertools.product(sorted({row["device"] for row in store.of("changes")}),
                                          changes.WAYS):
        rows = store.of("changes", name=name, device=device)
        every = {row["seed"]: row["acc1"]
                 for row in store.of("changes", name=changes.FLOAT32, device=device)}
        rows = [row for row in rows if row["seed"] in every]
        if not rows:
            continue
        scores, plain = [row["acc1"] for row in rows], [every[row["seed"]] for row in rows]
        apart = statistics.mean(scores) - statistics.mean(plain)
        is_same = all(row.get("same_bits") for row in rows)
        told = "the same bits" if is_same else within(scores, plain, apart)
        is_base = name == changes.FLOAT32
        lines.append([name, device, ", ".join(str(row["seed"]) for row in rows), spread(scores),
                      "-" if is_base else f"{apart:+.2f}", "-" if is_base else told])
    return measure.grid(lines)


TABLES = {"parity": parity_table, "recipes": recipes_table, "changes": changes_table}


def tables(store):
    """All tables that there are rows for, each under its name."""
    return "\n\n".join(f"{part}:\n\n{make(store)}" for part, make in TABLES.items()
                       if store.of(part))


def filled(text, store):
    """A page with the tables that there are rows for between the marks of their parts."""
    for part, make in TABLES.items():
        before, mark, rest = text.partition(f"<!-- {part} -->\n")
        if mark and store.of(part):
            text = f"{before}{mark}\n{make(store)}\n\n{rest[rest.index('<!-- end -->'):]}"
    return text


def main():
    options = arguments()
    store = Store(options.json)
    if options.parts and not options.images:
        sys.exit(f"--parts {' '.join(options.parts)} needs --images")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        try:
            if options.parts and Path(options.images).is_file():
                options.images = str(pictures.unpack(options.images, folder / "images"))
            if "parity" in options.parts:
                parity(options, store)
            if "recipes" in options.parts:
                recipes(options, store, folder)
            if "changes" in options.parts:
                changes.compare(
                    Path(options.images), folder, options.seeds, options.device,
                    options.per_class,
                    store.of("changes", device=options.device, per_class=options.per_class),
                    lambda row: store.add("changes", dict(
                        row, device=options.device, per_class=options.per_class,
                        conditions=about(options.device))))
        except (ValueError, processes.Failed) as error:
            sys.exit(str(error))
    print(tables(store))
    for page in map(Path, options.pages):
        page.write_text(filled(page.read_text("utf-8"), store), encoding="utf-8")


if __name__ == "__main__":
    main()

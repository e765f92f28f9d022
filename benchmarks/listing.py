#!/usr/bin/env python3
"""How long a set of ImageNet's size takes to be listed, and what the list costs a loader process.

    python benchmarks/listing.py                       # on 1,281,167 empty files that it makes
    python benchmarks/listing.py --images DIR/train    # on an ImageFolder, such as ImageNet's

Each case is a process of its own. It lists the files (seconds, imports aside), then starts
--workers loader processes that each read the whole index once, in random order. Shown is how much
memory of its own the largest of them came to have meanwhile (private pages of smaps_rollup). Cases
take turns; shown are medians over the rounds. The folders are in the page cache.
"""
import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import measure  # noqa: E402

BASE = "torchvision, ImageFolder"
# Name -> (list, how its processes are started). The first of ours finds an empty cache.
CASES = {
    BASE: ("torchvision", "fork"),
    "this package, first start": ("ours", "fork"),
    "this package, later start": ("ours", "fork"),
    "this package, later start, spawned processes": ("ours", "spawn"),
}
SETTLED = 3.5
"""Seconds after which a list of a new folder is trusted."""


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--images", metavar="DIR", help="ImageFolder (default: made for the run, and deleted)")
    add("--count", type=int, default=1281167, help="files to make (1281167)")
    add("--classes", type=int, default=1000, help="folders to make (1000)")
    add("--temporary", metavar="DIR", help="where to make them (default: the system's place)")
    add("--workers", type=int, default=4, help="loader processes (4)")
    add("--rounds", type=int, default=3, metavar="N", help="turns that each case gets (3)")
    add("--json", metavar="FILE", help="write the rows there, too")
    add("--case", nargs=2, help=argparse.SUPPRESS)  # what a case's own process is told
    return parser.parse_args()


def make(folder, count, classes):
    """Empty files named as ImageNet's are."""
    free = os.statvfs(str(folder)).f_favail
    if free and free < count + classes:
        sys.exit(f"{folder} has room for {free} files; --count {count} is more, or name another "
                 "place with --temporary")
    drawn = random.Random(0)
    for label in range(classes):
        name = f"n{1440764 + 13 * label:08d}"
        inner = folder / name
        inner.mkdir()
        for number in drawn.sample(range(100000), count // classes + (label < count % classes)):
            os.close(os.open(f"{inner}/{name}_{number}.JPEG", os.O_CREAT | os.O_WRONLY))


# ---- A case, in its own process.


def own_megabytes():
    """Memory that would be free were this process to end."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def read_index(samples, seed, pipe):
    """What a loader process does, without opening a file."""
    import numpy as np

    order = np.random.RandomState(seed).permutation(len(samples))
    before = own_megabytes()
    for index in order:
        samples[index]
    pipe.send(own_megabytes() - before)


def run_case(options):
    import multiprocessing

    kind, method = options.case
    if kind == "torchvision":
        from torchvision.datasets import ImageFolder

        started = time.perf_counter()
        samples = ImageFolder(options.images).samples
    else:
        from mobilenetv3 import data

        started = time.perf_counter()
        folder = Path(options.images)
        source = data.open_source("folder", str(folder.parent), folder.name, folder.name)
        samples = source.samples.samples
    seconds = time.perf_counter() - started
    context = multiprocessing.get_context(method)
    receiving, sending = context.Pipe(duplex=False)
    workers = [context.Process(target=read_index, args=(samples, seed, sending))
               for seed in range(options.workers)]
    for worker in workers:
        worker.start()
    grown = [receiving.recv() for _ in workers]
    for worker in workers:
        worker.join()
    print(json.dumps({"files": len(samples), "seconds": seconds, "megabytes": max(grown)}))


def in_own_process(options, folder, cache, kind, method):
    command = [sys.executable, __file__, "--images", str(folder), "--workers",
               str(options.workers), "--case", kind, method]
    told = subprocess.run(command, stdout=subprocess.PIPE, check=True,
                          env=dict(os.environ, MOBILENETV3_CACHE=str(cache)))
    return json.loads(told.stdout)


# ---- All cases.


def compare(options, folder, caches):
    found = {name: [] for name in CASES}
    for number in range(options.rounds):
        for name, (kind, method) in CASES.items():
            place = caches / f"{kind}-{number}"  # in each round the first start finds none
            found[name].append(in_own_process(options, folder, place, kind, method))
    return found


def report(found, options, started):
    seconds = {name: [case["seconds"] for case in cases] for name, cases in found.items()}
    rows = [{
        "name": name, "files": cases[0]["files"], "seconds": statistics.median(seconds[name]),
        "ratio": statistics.median(a / b for a, b in zip(seconds[name], seconds[BASE])),
        "ratio_to": BASE, "worker_megabytes": max(case["megabytes"] for case in cases),
    } for name, cases in found.items()]
    cores = min(options.workers, measure.cpus())
    print(f"{rows[0]['files']:,} files; {options.workers} loader processes; {options.rounds} "
          f"rounds; {measure.conditions(started, cores, packages=('torchvision',))}\n")
    lines = [["List", "seconds", f"to {BASE}", "MB more of each process's own"]]
    lines += [[row["name"], f"{row['seconds']:.2f}", f"{row['ratio']:.3f}",
               f"{row['worker_megabytes']:.1f}"] for row in rows]
    print(measure.grid(lines))
    measure.tell(rows, {}, options.json)


def main():
    options = arguments()
    if options.case:
        run_case(options)
        return
    started = measure.load()
    if not os.path.exists("/proc/self/smaps_rollup"):
        sys.exit("this system does not tell which memory is a process's own (smaps_rollup)")
    with tempfile.TemporaryDirectory(dir=options.temporary) as made:
        folder = Path(options.images) if options.images else Path(made) / "train"
        if not options.images:
            folder.mkdir()
            make(folder, options.count, options.classes)
        time.sleep(SETTLED)
        found = compare(options, folder, Path(made) / "caches")
        report(found, options, started)


if __name__ == "__main__":
    main()

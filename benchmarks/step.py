#!/usr/bin/env python3
"""How fast a training step and an inference are, against timm's and torchvision's same networks.

    python benchmarks/step.py                                        # CPU, float32, one thread
    python benchmarks/step.py --device cuda --batch_size 256         # and O1, O2, bfloat16

A training step is forward, cross entropy, backward and an update by SGD with momentum; an inference
is a forward pass in eval mode. Images are random and are on the device. Every network runs in NCHW
and in NHWC, and the better of its two stands in the table; ratios are to the best of the others in
the same precision. --compile adds all of them under torch.compile.

"at its best" is this package with what is not the network's: on the CPU freed memory is kept, as by
train.py and validate.py (see mobilenetv3/heap.py); weights are updated in fused kernels, as by
train.py; for inference batch norms are folded by models.fuse_conv_bn, which users call. The other
rows have PyTorch's plain update and allocator for all packages alike; with --kept, freed memory is
kept for all.
"""
import argparse
import contextlib
import os
import sys
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import timm  # noqa: E402
import torch  # noqa: E402
import torchvision  # noqa: E402
from torch.nn import functional as F  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import measure  # noqa: E402

from mobilenetv3 import device as devices  # noqa: E402
from mobilenetv3 import heap, models, optim  # noqa: E402
from mobilenetv3.precision import create_precision  # noqa: E402

# timm's name, which is ours, too -> torchvision's
NETWORKS = {"mobilenetv3_large_100": "mobilenet_v3_large",
            "mobilenetv3_small_100": "mobilenet_v3_small",
            "mobilenetv2_100": "mobilenet_v2"}
OURS, TIMM, TORCHVISION = "this package", "timm", "torchvision"
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
LEVELS = {"float32": ("O0", None), "O1 float16": ("O1", "float16"),
          "O2 float16": ("O2", "float16"), "O1 bfloat16": ("O1", "bfloat16")}


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--img_size", type=int, default=224)
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--work", nargs="+", choices=("training", "inference"),
                        default=["training", "inference"])
    parser.add_argument("--compile", action="store_true", help="also all under torch.compile")
    parser.add_argument("--kept", action="store_true", help="keep freed memory in all cases")
    measure.add_options(parser, seconds=20, rounds=5)
    return parser.parse_args()


def network(package, name):
    torch.manual_seed(0)
    if package == TIMM:
        return timm.create_model(name)
    if package == TORCHVISION:
        return getattr(torchvision.models, NETWORKS[name])()
    return models.create_model(name)


# ---- The cases: each is a function of no arguments, one step.


def training(options, where, name, package, layout, level, compiled, at_best):
    size = (options.batch_size, 3, options.img_size, options.img_size)
    images = torch.randn(size, device=where.torch_device).contiguous(memory_format=LAYOUTS[layout])
    targets = torch.zeros(options.batch_size, dtype=torch.long, device=where.torch_device)
    model = network(package, name).to(where.torch_device, memory_format=LAYOUTS[layout]).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    if at_best:
        optim.set_form(optimizer, "auto", where)
    precision = create_precision(level[0], where, level[1])
    precision.prepare(model, optimizer)
    called = torch.compile(model) if compiled else model

    def step():
        precision.backward(F.cross_entropy(precision.forward(called, images), targets))
        precision.step(optimizer)
    return step


def inference(options, where, name, package, layout, level, compiled, at_best):
    size = (options.batch_size, 3, options.img_size, options.img_size)
    images = torch.randn(size, device=where.torch_device).contiguous(memory_format=LAYOUTS[layout])
    model = network(package, name).eval()
    if at_best:
        model = models.fuse_conv_bn(model)
    model = model.to(where.torch_device, memory_format=LAYOUTS[layout])
    precision = create_precision(level[0], where, level[1])
    precision.prepare(model)
    called = torch.compile(model) if compiled else model

    def step():
        with torch.no_grad():
            precision.forward(called, images)
    return step


def make(options, where, work, name, kept, *case):
    """A case, warm, with its first steps behind it."""
    step = (training if work == "training" else inference)(options, where, name, *case)

    def timed(seconds):
        with memory(kept):
            step()  # what the case before it left is not this one's
            return measure.rate(step, seconds, options.batch_size,
                                clock_of(where), where.synchronize)
    try:
        with memory(kept):
            for _ in range(2):
                step()
    except Exception as error:  # noqa: BLE001  (compilers fail in many ways)
        raise measure.Skipped(str(error).strip().splitlines()[0]) from error
    return timed


def clock_of(where):
    """On the CPU its time of this process, which other processes do not change."""
    return time.process_time if where.module is None else time.perf_counter


@contextlib.contextmanager
def memory(kept):
    """Freed memory is kept, or given back as by default."""
    if not kept:
        yield
        return
    heap.keep_freed()
    try:
        yield
    finally:
        heap.give_back()


# ---- The limit that memory sets.


def bytes_of_an_image(name, options, work, width):
    """What a step must move for an image, if each layer is one kernel and no cache keeps anything.

    A layer reads its input and writes its output; in training it reads the gradient of its output
    and its input again, and writes the gradient of its input. Weights are left out: there are few.

    Args:
        width: bytes of a number.
    """
    numbers = []

    def count(module, inputs, output):
        read, written = inputs[0].numel(), output.numel()
        numbers.append(read + written + (written + 2 * read if work == "training" else 0))
    model = network(OURS, name).eval()
    for module in model.modules():
        if not list(module.children()) and not isinstance(module, torch.nn.Identity):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, options.img_size, options.img_size))
    return sum(numbers) * width


def copy_rate(where):
    """Bytes that the device reads and writes in a second, in a copy of 256 MB."""
    source = torch.zeros(64 << 20, device=where.torch_device)
    target = torch.empty_like(source)

    def copies(count):
        where.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            target.copy_(source)
        where.synchronize()
        return (time.perf_counter() - start) / count
    copies(3)
    return 2 * source.numel() * 4 / min(copies(5) for _ in range(5))


# ---- One table for each network, kind of work and precision.


def cases(options, where, work, name, level):
    """Name -> maker. The word in brackets tells the layouts apart and is left out in the end."""
    found = {}
    for package in (OURS, TIMM, TORCHVISION):
        for compiled in (False, True) if options.compile else (False,):
            for layout in LAYOUTS:
                shown = f"{package}, torch.compile" if compiled else package
                found[f"{shown} [{layout}]"] = partial(
                    make, options, where, work, name, options.kept, package, layout, level,
                    compiled, False)
    kept = where.module is None
    for compiled in (False, True) if options.compile else (False,):
        shown = f"{OURS}, at its best{', torch.compile' if compiled else ''}"
        for layout in LAYOUTS:
            found[f"{shown} [{layout}]"] = partial(
                make, options, where, work, name, kept, OURS, layout, level, compiled, True)
    return found


def best_layouts(rates):
    """The faster layout of every case, by the median of its rounds."""
    best = {}
    for name, found in rates.items():
        short = name.rpartition(" [")[0]
        middle = sorted(found)[len(found) // 2]
        if short not in best or middle > best[short][0]:
            best[short] = middle, name, found
    return {name: found for _, name, found in best.values()}


def compare(options, where, name, work, precision, moved):
    """The rows of one network, kind of work and precision, and what was skipped."""
    title, level = f"{name}, {work}, {precision}: ", LEVELS[precision]
    running, skipped = measure.prepare(cases(options, where, work, name, level))
    rates = best_layouts(measure.take_turns(running, options))
    others = {case: sorted(found)[len(found) // 2] for case, found in rates.items()
              if not case.startswith(OURS)}
    table = measure.rows(rates, max(others, key=others.get))
    for row in table:
        share, row["name"] = "", title + row["name"]
        if moved:  # a CPU's caches hold whole maps
            width = 4 if precision == "float32" else 2
            limit = moved / bytes_of_an_image(name, options, work, width)
            row["share_of_memory_limit"] = row["images_per_second"] / limit
            share = f", {row['share_of_memory_limit']:.0%} of the memory's limit"
        print(f"{row['name']}: {row['images_per_second']:.1f} images/s, ratio "
              f"{row['ratio']:.3f}{share}", flush=True)
    return table, {title + case: reason for case, reason in skipped.items()}


def main():
    options = arguments()
    where = devices.select(options.device)
    precisions = list(LEVELS)
    if where.module is None:
        torch.set_num_threads(1)
        precisions = ["float32"]
    elif not where.is_builtin:
        precisions = [name for name in LEVELS if "bfloat16" not in name]
    where.tune()
    started, moved = measure.load(), 0.0 if where.module is None else copy_rate(where)
    table, skipped = [], {}
    for name in options.models:
        for work in options.work:
            for precision in precisions:
                rows, left = compare(options, where, name, work, precision, moved)
                table += rows
                skipped.update(left)
    if moved:
        print(f"\na copy moves {moved / 1e9:.0f} GB/s; at the memory's limit a step would take as "
              "long as reading and writing the maps of each layer at that rate")
    print(f"\n{options.batch_size} images of {options.img_size}x{options.img_size}, "
          f"{options.rounds} rounds, {where.type}; " + measure.conditions(
              started, cores=torch.get_num_threads(), device=where) + "\n")
    measure.report(table, skipped, options.json, "Case", "images/s")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""How DistributedDataParallel is best set for these models: steps of several settings, interleaved.

    torchrun --standalone --nproc_per_node=2 benchmarks/ddp.py             # CPU: one thread a rank
    torchrun --standalone --nproc_per_node=8 benchmarks/ddp.py --device cuda --batch_size 128

The settings take turns for about --seconds / --rounds seconds (see measure.py); ratios are to
PyTorch's defaults in the same round. Images are random; forward, backward and exchange are real.
"""
import argparse
import sys
import time
from pathlib import Path

import torch
import torch.distributed as td
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import measure  # noqa: E402

from mobilenetv3 import device as devices  # noqa: E402
from mobilenetv3 import dist, models, replicas  # noqa: E402

PLAIN = dict(replicas.without_buffers(), gradient_as_bucket_view=True)
SETTINGS = {
    "PyTorch's defaults (25 MB)": {},
    "without sending buffers": replicas.without_buffers(),
    "and with gradient_as_bucket_view": PLAIN,
    "and static_graph": dict(PLAIN, static_graph=True),
    **{f"and buckets of {size} MB": dict(PLAIN, bucket_cap_mb=size) for size in (1, 2, 4, 8)},
}


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mobilenetv3_large_100")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch_size", type=int, default=8, help="images of one rank")
    parser.add_argument("--img_size", type=int, default=128)
    return measure.add_options(parser, seconds=60).parse_args()


def prepare(options, where):
    """A step of training under one setting of DDP."""
    torch.manual_seed(0)
    model = models.create_model(options.model).to(where.torch_device).train()
    ids = None if where.module is None else [where.index]
    try:
        parallel = nn.parallel.DistributedDataParallel(model, device_ids=ids, **options.setting)
    except TypeError:
        return None  # this version has no such setting
    size = (options.batch_size, 3, options.img_size, options.img_size)
    images = torch.randn(size, device=where.torch_device)
    targets = torch.zeros(options.batch_size, dtype=torch.long, device=where.torch_device)

    def step():
        nn.functional.cross_entropy(parallel(images), targets).backward()
        model.zero_grad(set_to_none=True)
    return step


def seconds_of(step, count, where):
    where.synchronize()
    dist.barrier()
    start = time.perf_counter()
    for _ in range(count):
        step()
    where.synchronize()
    return (time.perf_counter() - start) / count


def compare(options, who, where):
    """Take turns over the settings; the main rank reports."""
    load, steps = measure.load(), {}
    for name, setting in SETTINGS.items():
        options.setting = setting
        steps[name] = prepare(options, where)
    steps = {name: step for name, step in steps.items() if step is not None}
    first = next(iter(steps))
    for step in steps.values():  # DDP arranges its buckets in the first steps
        seconds_of(step, 3, where)
    once = dist.all_reduce_sum(torch.tensor([seconds_of(steps[first], 3, where)]).to(
        where.torch_device)).item() / who.world
    # The same number of steps for all: ranks that stopped by their own clocks would not meet again.
    count = max(1, round(options.seconds / options.rounds / once))
    images = options.batch_size * who.world
    rates = measure.take_turns({
        name: lambda _, step=step: images / seconds_of(step, count, where)
        for name, step in steps.items()
    }, options)
    if not who.is_main:
        return
    print(f"{options.model}, {who.world} ranks x {options.batch_size} images of "
          f"{options.img_size}x{options.img_size}, {where.type} over {where.backend}, "
          f"{options.rounds} rounds of {count} steps\n"
          f"{measure.conditions(load, who.local_world, where)}\n")
    skipped = {name: "this PyTorch has no such setting" for name in SETTINGS if name not in steps}
    measure.report(measure.rows(rates, first), skipped, options.json, "Setting")


def main():
    options = arguments()
    torch.set_num_threads(1)
    who = dist.ranks()
    if who.world == 1:
        sys.exit("benchmarks/ddp.py compares exchanges: start it with torchrun, as --help shows")
    where = devices.select(options.device, who.local_rank)
    dist.init(who, where)
    compare(options, who, where)
    td.destroy_process_group()


if __name__ == "__main__":
    main()

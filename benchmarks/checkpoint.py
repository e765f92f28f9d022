#!/usr/bin/env python3
"""What a checkpoint every 100 steps costs the training: written beside it, and in its way.

    python benchmarks/checkpoint.py                                       # CPU: one thread
    python benchmarks/checkpoint.py --device cuda --batch_size 256 --amp_dtype float16

Saved is what train.py saves: weights, momentum and averaged weights. The ways take turns (see
measure.py). The cost of one checkpoint is the time from its beginning until it is on the disk, less
that of the steps made meanwhile at the speed that they have in the same round without it; rates are
over --every steps with one checkpoint. Images are random and stay in memory.
"""
import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import measure  # noqa: E402

from mobilenetv3 import device as devices  # noqa: E402
from mobilenetv3 import keep, models, optim  # noqa: E402

NONE, BESIDE, IN_THE_WAY = "no checkpoints", "train.py's, beside the training", "torch.save"


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mobilenetv3_large_100")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--img_size", type=int, default=224)
    parser.add_argument("--amp_dtype", choices=("float16", "bfloat16"), help="computes in it")
    parser.add_argument("--every", type=int, default=100, help="steps from one to the next")
    parser.add_argument("--output", help="folder to write to (default: a temporary one)")
    return measure.add_options(parser, seconds=60).parse_args()


def training(options, where):
    """(a step, what is to be saved) of a training."""
    torch.manual_seed(0)
    model = models.create_model(options.model).to(where.torch_device).train()
    average = optim.create_ema(model, True, 0.999)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    size = (options.batch_size, 3, options.img_size, options.img_size)
    images = torch.randn(size, device=where.torch_device)
    targets = torch.zeros(options.batch_size, dtype=torch.long, device=where.torch_device)

    def step():
        if options.amp_dtype:
            with torch.autocast(where.type, dtype=getattr(torch, options.amp_dtype)):
                loss = nn.functional.cross_entropy(model(images).float(), targets)
        else:
            loss = nn.functional.cross_entropy(model(images), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(model)

    def state():
        return {"state_dict": model.state_dict(), "state_dict_ema": average.state_dict(),
                "optimizer": optimizer.state_dict()}
    return step, state


def timed(step, seconds, wait):
    """Seconds of a step, over so many seconds."""
    return 1 / measure.rate(step, seconds, 1, wait=wait)


def beside(keeper, step, state, count, wait):
    """(seconds, steps made meanwhile, seconds in which no step was made) of one checkpoint."""
    wait()
    start, steps = time.perf_counter(), 0
    keeper.save(state(), count, 0)
    saved = time.perf_counter()
    while keeper.is_writing:
        step()
        wait()
        steps += 1
    return time.perf_counter() - start, steps, saved - start


def in_the_way(path, state, wait):
    """Seconds of one checkpoint by torch.save, until it is on the disk."""
    wait()
    start = time.perf_counter()
    with open(str(path), "wb") as file:
        torch.save(state(), file)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - start


def main():
    options = arguments()
    torch.set_num_threads(1)
    where = devices.select(options.device)
    wait = where.module.synchronize if where.module is not None else lambda: None
    load = measure.load()
    step, state = training(options, where)
    with tempfile.TemporaryDirectory(dir=options.output) as folder:
        keeper = keep.Keeper(Path(folder))
        keeper.save(state(), 0, 0)  # the first one on a card makes its host memory
        keeper.flush()
        step()
        step()
        rates = {NONE: [], BESIDE: [], IN_THE_WAY: []}
        costs, waits = [], []
        for count in range(1, options.rounds + 1):
            share = options.seconds / options.rounds / 2
            once = timed(step, share, wait)
            seconds, steps, waited = beside(keeper, step, state, count, wait)
            plain = in_the_way(Path(folder) / "plain.pth", state, wait)
            once = (once + timed(step, share, wait)) / 2
            costs.append(seconds - steps * once)
            waits.append(waited)
            for name, cost in ((NONE, 0), (BESIDE, costs[-1]), (IN_THE_WAY, plain)):
                rates[name].append(options.batch_size * options.every / (
                    options.every * once + cost))
        keeper.close()
        size = keep.listed(Path(folder))[0][1].stat().st_size
    print(f"{options.model}, {options.batch_size} images of {options.img_size}x{options.img_size} "
          f"in {options.amp_dtype or 'float32'} on {where.type}, a checkpoint of {size / 1e6:.0f} "
          f"MB every {options.every} steps\n{measure.conditions(load, 1, where)}\n\n"
          f"one checkpoint costs {statistics.median(costs) * 1e3:.0f} ms, of which the training "
          f"waits {statistics.median(waits) * 1e3:.0f} ms for the copy\n")
    measure.report(measure.rows(rates, NONE), {}, options.json, "Checkpoints")


if __name__ == "__main__":
    main()

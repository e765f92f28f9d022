#!/usr/bin/env python3
"""One training loop in a process of its own; train.py and same.py beside this file start it.

    python benchmarks/loops.py bare SECONDS [options of train.py]
    python benchmarks/loops.py whole [options of train.py]
    python benchmarks/loops.py losses STEPS [options of train.py]
    python benchmarks/loops.py timm STEPS --images DIR --model NAME ...

`bare` is the script train.py up to its first batch, with all that its options ask for; then its own
model, loss, precision and optimizer go over that one batch for so many seconds, and nothing else is
done. `whole` is train.py as it is; `losses`, too, and tells the loss of each of its first steps.
`timm` puts timm's pieces together as its training script does: dataset, loader, model, optimizer,
schedule, scaler; it reads the loss once in --log_interval steps. The last line of the output is
JSON: {"images_per_second": X}, over the steps after the warm-up of mobilenetv3.metrics.Clock, or
{"losses": [...]}. With MEASURE_CPU_TIME=1 a second is one of CPU time of the training process,
workers left out.
"""
import argparse
import contextlib
import json
import os
import runpy
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WARM = 3
"""Steps before the bare step is timed."""
PLAIN_BACKWARD = "--plain_backward"
"""Before the options of train.py: without mobilenetv3/models/backward.py."""
now = time.process_time if os.environ.get("MEASURE_CPU_TIME") == "1" else time.perf_counter


def tell(images_per_second):
    print(json.dumps({"images_per_second": images_per_second}))


def bare(seconds, options):
    """Run the script train.py with a loop in the place of the engine's that keeps to one batch."""
    sys.path.insert(0, str(ROOT))
    from mobilenetv3 import engine

    def loop(model, batches, criterion, optimizer, precision, *_):
        images, targets = next(iter(batches))
        model.train()

        def step():
            loss = criterion(precision.forward(model, images), targets)
            precision.backward(loss, True)
            precision.step(optimizer)
            return loss
        for _ in range(WARM):
            step().item()
        # A device is asked for many steps ahead, but not for so many that its queue is full.
        end, start, steps = time.monotonic() + seconds, now(), 0
        while not steps or time.monotonic() < end:
            for _ in range(5):
                loss = step()
            loss.item()
            steps += 5
        tell(steps * len(images) / (now() - start))
        raise SystemExit
    engine.train_one_epoch = loop
    run_script(options)


def whole(options):
    """Run the script train.py, whose clock is this one."""
    sys.path.insert(0, str(ROOT))
    from mobilenetv3 import metrics

    make = metrics.Clock.__init__
    metrics.Clock.__init__ = lambda clock, warmup: make(clock, warmup, now)
    run_script(options)


def losses(steps, options):
    """Run the script train.py, and note each loss before the engine counts it."""
    sys.path.insert(0, str(ROOT))
    from mobilenetv3 import metrics

    found, count = [], metrics.batch_row

    def counted(loss, output, target):
        if len(found) < steps:
            found.append(loss.item())
        return count(loss, output, target)
    metrics.batch_row = counted
    with contextlib.suppress(SystemExit):
        run_script(options)
    if len(found) < steps:
        raise SystemExit(f"train.py made {len(found)} steps, not {steps}")
    print(json.dumps({"losses": found}))


def run_script(options):
    if options[0] == PLAIN_BACKWARD:
        from mobilenetv3 import models

        models.set_fast_backward(False)
        options = options[1:]
    sys.argv = ["train.py", *options]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


def timm_options(arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("steps", type=int)
    parser.add_argument("--images", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--img_size", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--dtype", choices=("float16", "bfloat16"))
    parser.add_argument("--channels_last", action="store_true")
    parser.add_argument("--ema", action="store_true")
    parser.add_argument("--log_interval", type=int, default=50)
    return parser.parse_args(arguments)


def by_timm(options):
    """timm's loop: forward, loss, backward, update, average, schedule; see timm's train.py."""
    import timm
    import torch
    from timm import data, optim, scheduler, utils

    device = torch.device(options.device)
    model = timm.create_model(options.model, num_classes=1000).to(device)
    if options.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = optim.create_optimizer_v2(
        model, opt="momentum", lr=0.05, momentum=0.9, weight_decay=1e-4)
    average = utils.ModelEmaV2(model, decay=0.9999) if options.ema else None
    half = getattr(torch, options.dtype) if options.dtype else None
    autocast = contextlib.nullcontext
    if half is not None:
        def autocast():
            return torch.autocast(device.type, half)
    scaler = utils.NativeScaler() if half == torch.float16 else None
    loader = data.create_loader(
        data.create_dataset("", options.images, split="train", is_training=True),
        (3, options.img_size, options.img_size), options.batch_size, is_training=True,
        color_jitter=0.0, interpolation="bilinear", num_workers=options.workers, device=device,
        pin_memory=device.type != "cpu", persistent_workers=options.workers > 0,
    )
    schedule, _ = scheduler.create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=90, updates_per_epoch=len(loader))
    criterion = torch.nn.CrossEntropyLoss().to(device)
    losses, warm = utils.AverageMeter(), min(10, options.steps // 4)
    model.train()
    start, batches = now(), iter(loader)
    for number in range(1, options.steps + 1):
        images, targets = next(batches)
        if options.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast():
            loss = criterion(model(images), targets)
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler(loss, optimizer, parameters=model.parameters())
        optimizer.zero_grad()
        if average is not None:
            average.update(model)
        if number % options.log_interval == 0 or number in (warm, options.steps):
            losses.update(loss.item(), len(images))
        schedule.step_update(num_updates=number, metric=losses.avg)
        if number == warm:
            start = now()
    tell((options.steps - warm) * options.batch_size / (now() - start))


def main():
    kind, *arguments = sys.argv[1:]
    if kind == "bare":
        bare(float(arguments[0]), arguments[1:])
    elif kind == "whole":
        whole(arguments)
    elif kind == "losses":
        losses(int(arguments[0]), arguments[1:])
    else:
        by_timm(timm_options(arguments))


if __name__ == "__main__":
    main()

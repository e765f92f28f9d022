#!/usr/bin/env python3
"""train.py beside a plain loop made of timm's parts, on the same batches: the loss of every step.

    python benchmarks/parity.py sgd --images DIR             # DIR/train, DIR/val (default: digits)
    python benchmarks/parity.py rmsproptf --steps 200 --json FILE

The script train.py runs as it is, with one of RECIPES. Its batches are noted as the network gets
them, together with the state of PyTorch's generator, which dropout and skipped blocks draw from,
and its first weights. Then timm's network, optimizer, schedule, loss and average are put together
and go over those batches. Network and update are the same sums in the same order only where
train.py leaves out what makes it fast (NHWC, its own operators, fused updates): so that is
the comparison, unless --fast asks for the other. One thread, float32.
"""
import argparse
import contextlib
import json
import runpy
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

MODEL, BATCH, SIDE = "mobilenetv3_small_100", 64, 32
DROP, DROP_PATH, SMOOTHING = 0.2, 0.2, 0.1
RECIPES = {
    # optimizer as timm names it, learning rate, weight decay, decay of the average (0: none),
    # schedule, and what else timm's factories take
    "sgd": {"opt": "sgd", "lr": 0.05, "weight_decay": 2e-5, "ema": 0.0, "sched": "cosine",
            "more": {}},
    "rmsproptf": {"opt": "rmsproptf", "lr": 0.008, "weight_decay": 1e-5, "ema": 0.99,
                  "sched": "step", "more": {"eps": 1e-3}},
    "adamw": {"opt": "adamw", "lr": 1e-3, "weight_decay": 0.05, "ema": 0.0, "sched": "cosine",
              "more": {"betas": (0.9, 0.98)}},
}
EPOCHS, WARMUP_EPOCHS, WARMUP_LR, DECAY_EPOCHS, DECAY_RATE = 4, 1, 1e-4, 1, 0.9
AUGMENTATION = ["--scale", 0.35, 1, "--aa", "rand-m9-mstd0.5", "--reprob", 0.2, "--remode", "pixel"]
FAST, PLAIN = (["--decode", "exact"],
               ["--decode", "exact", "--channels_last=false", "--optimizer_form", "plain"])


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--images", metavar="DIR")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--fast", action="store_true", help="with train.py's speed-ups on")
    parser.add_argument("--json", metavar="FILE", help="write losses and weights' differences")
    return parser.parse_args()


class Record:
    """What train.py's loop got and gave."""

    def __init__(self):
        self.start = None
        self.batches, self.losses, self.updates_per_epoch = [], [], 0
        self.weights, self.average = {}, {}


def record(recipe, images, steps, fast):
    """Run train.py for some steps."""
    import torch

    from mobilenetv3 import engine, metrics, models

    found, train, count = Record(), engine.train_one_epoch, metrics.batch_row

    def noted(batches):
        for inputs, targets in batches:
            found.batches.append((inputs.clone(), targets.clone(), torch.get_rng_state()))
            yield inputs, targets

    def loop(model, batches, criterion, optimizer, precision, schedule, ema, clock, progress,
             options):
        if found.start is None:
            found.start = {name: value.clone() for name, value in model.state_dict().items()}
            found.updates_per_epoch = progress.steps
        train(model, noted(batches), criterion, optimizer, precision, schedule, ema, clock,
              progress, options)
        found.weights = model.state_dict()
        found.average = ema.module.state_dict() if ema.module is not None else {}

    def counted(loss, output, target):
        found.losses.append(loss.item())
        return count(loss, output, target)

    engine.train_one_epoch, metrics.batch_row = loop, counted
    models.set_fast_backward(fast)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        sys.argv = ["train.py", *map(str, command(recipe, images, steps, fast, folder))]
        with contextlib.suppress(SystemExit):
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    engine.train_one_epoch, metrics.batch_row = train, count
    if len(found.losses) != steps:
        raise SystemExit(f"train.py made {len(found.losses)} steps, not {steps}")
    return found


def command(recipe, images, steps, fast, folder):
    """Options of train.py."""
    more = [part for name, value in recipe["more"].items()
            for part in (f"--opt_{name}", *(value if isinstance(value, tuple) else [value]))]
    return [
        *(["--data_path", images] if images else []), "--model", MODEL, "--device", "cpu",
        "--img_size", SIDE, "--batch_size", BATCH, "--drop", DROP, "--drop_path", DROP_PATH,
        "--smoothing", SMOOTHING, *AUGMENTATION, "--opt", recipe["opt"], "--lr", recipe["lr"],
        "--weight_decay", recipe["weight_decay"], "--filter_bias_and_bn", *more,
        "--sched", recipe["sched"], "--sched_on_updates", "--epochs", EPOCHS,
        "--warmup_epochs", WARMUP_EPOCHS, "--warmup_lr", WARMUP_LR,
        "--decay_epochs", DECAY_EPOCHS, "--decay_rate", DECAY_RATE,
        *(["--model_ema", "--model_ema_decay", recipe["ema"]] if recipe["ema"] else []),
        "--max_steps", steps, "--skip_validation", "--workers", 1, "--seed", 1, "--print_freq", 50,
        *(FAST if fast else PLAIN), "--output", Path(folder) / "run",
    ]


def plain_loop(recipe, found, classes):
    """timm's parts over the batches of a record; returns losses, weights and their average."""
    import torch
    from timm import create_model, loss, optim, scheduler, utils

    model = create_model(MODEL, num_classes=classes, drop_rate=DROP, drop_path_rate=DROP_PATH)
    model.load_state_dict(found.start)
    model.train()
    optimizer = optim.create_optimizer_v2(
        model, opt=recipe["opt"], lr=recipe["lr"], weight_decay=recipe["weight_decay"],
        momentum=0.9, filter_bias_and_bn=True, **recipe["more"])
    schedule, _ = scheduler.create_scheduler_v2(
        optimizer, sched=recipe["sched"], num_epochs=EPOCHS, warmup_epochs=WARMUP_EPOCHS,
        warmup_lr=WARMUP_LR, decay_epochs=DECAY_EPOCHS, decay_rate=DECAY_RATE, min_lr=0.0,
        step_on_epochs=False, updates_per_epoch=found.updates_per_epoch)
    average = utils.ModelEmaV2(model, decay=recipe["ema"]) if recipe["ema"] else None
    criterion, losses = loss.LabelSmoothingCrossEntropy(SMOOTHING), []
    schedule.step_update(0)
    for number, (inputs, targets, generator) in enumerate(found.batches, 1):
        torch.set_rng_state(generator)
        value = criterion(model(inputs), targets)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        if average is not None:
            average.update(model)
        schedule.step_update(number)
        losses.append(value.item())
    return losses, model.state_dict(), average.module.state_dict() if average is not None else {}


def apart(ours, theirs):
    """The largest absolute difference of two state dicts' values."""
    assert ours.keys() == theirs.keys()
    return max((float((ours[name].double() - theirs[name].double()).abs().max())
                for name in ours if ours[name].is_floating_point()), default=0.0)


def compare(name, images, steps, fast):
    """Both loops; returns what is told of them."""
    import torch

    torch.set_num_threads(1)
    recipe = RECIPES[name]
    found = record(recipe, images, steps, fast)
    theirs, weights, average = plain_loop(recipe, found, found.start["classifier.bias"].numel())
    return {
        "recipe": name, "steps": steps, "fast": fast, "ours": found.losses, "timm": theirs,
        "loss_apart": max(abs(a - b) for a, b in zip(found.losses, theirs)),
        "weights_apart": apart(found.weights, weights),
        "average_apart": apart(found.average, average),
    }


def main():
    options = arguments()
    result = compare(options.recipe, options.images, options.steps, options.fast)
    shown = {key: value for key, value in result.items() if key not in ("ours", "timm")}
    shown.update(first_loss=result["ours"][0], last_loss=result["ours"][-1])
    print(json.dumps(shown))
    if options.json:
        Path(options.json).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()

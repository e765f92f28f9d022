#!/usr/bin/env python3
"""A whole training by timm's parts, put together as its training script does it (see accuracy.py).

    python benchmarks/timm_run.py --images DIR --model mobilenetv3_small_100 --img_size 64 \
        --recipe mobilenetv3 --epochs 20 --seed 1

Recipes: `defaults` are those of timm's training script (SGD with momentum, cosine), `mobilenetv3`
those that its documentation gives for mobilenetv3_large_100 (RMSpropTF, average of the weights,
RandAugment). Its learning rates follow the batch, and the steps of its schedule, written for 600
epochs, follow the number of epochs. The last line of the output is JSON: {"acc1": of the trained
weights, "acc1_ema": of their average or null, "images_per_second": X}.
"""
import argparse
import json
import time

RECIPES = {
    "defaults": {
        "optimizer": {"opt": "sgd", "momentum": 0.9, "weight_decay": 2e-5},
        "lr_of_256": 0.1, "ema": None, "warmup_epochs": 5, "model": {},
        "schedule": {"sched": "cosine", "warmup_lr": 1e-5, "min_lr": 0.0},
        "images": {"color_jitter": 0.4, "interpolation": "random"},
    },
    "mobilenetv3": {
        "optimizer": {"opt": "rmsproptf", "momentum": 0.9, "weight_decay": 1e-5, "eps": 1e-3},
        "lr_of_256": 0.016, "ema": 0.9999, "warmup_epochs": 3,
        "model": {"drop_rate": 0.2, "drop_path_rate": 0.2},
        "schedule": {"sched": "step", "warmup_lr": 1e-6, "decay_rate": 0.973,
                     "noise": (0.42, 0.9)},
        "decay_share": 2.4 / 600,
        "images": {"auto_augment": "rand-m9-mstd0.5", "re_prob": 0.2, "re_mode": "pixel",
                   "interpolation": "random"},
    },
}
SMOOTHING, BATCH = 0.1, 128  # of the training script


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--images", required=True, metavar="DIR", help="DIR/train/CLASS and DIR/val/CLASS")
    add("--model", required=True)
    add("--img_size", type=int, required=True)
    add("--recipe", choices=RECIPES, required=True)
    add("--epochs", type=int, required=True)
    add("--batch_size", type=int, default=BATCH)
    add("--seed", type=int, default=42)
    add("--device", default="cpu")
    add("--workers", type=int, default=0)
    add("--channels_last", action="store_true")
    add("--amp_dtype", choices=("float16", "bfloat16"))
    add("--max_steps", type=int, help="stop after so many, to see what a step costs")
    return parser.parse_args()


def loaders(options, recipe):
    """Training and validation, at --img_size; the whole image is scored."""
    import torch
    from timm import data

    common = {"input_size": (3, options.img_size, options.img_size),
                  "batch_size": options.batch_size, "num_workers": options.workers,
                  "device": torch.device(options.device), "pin_memory": options.device != "cpu",
                  "persistent_workers": options.workers > 0}
    train = data.create_dataset("", options.images, split="train", is_training=True)
    val = data.create_dataset("", options.images, split="val")
    return (data.create_loader(train, is_training=True, **recipe["images"], **common),
            data.create_loader(val, crop_pct=1.0, interpolation="bilinear", **common),
            len(train.reader.class_to_idx))


def build(options, recipe, classes, updates):
    """The network, its optimizer and schedule."""
    from timm import create_model, optim, scheduler

    model = create_model(options.model, num_classes=classes, **recipe["model"])
    model = model.to(options.device)
    if options.channels_last:
        import torch

        model = model.to(memory_format=torch.channels_last)
    lr = recipe["lr_of_256"] * options.batch_size / 256
    optimizer = optim.create_optimizer_v2(model, lr=lr, **recipe["optimizer"])
    more = {}
    if "decay_share" in recipe:
        more["decay_epochs"] = recipe["decay_share"] * options.epochs
    # A warm-up of 5 epochs is for hundreds of them; of few, it gets a tenth.
    warmup = min(recipe["warmup_epochs"], max(1, options.epochs // 10))
    schedule, _ = scheduler.create_scheduler_v2(
        optimizer, num_epochs=options.epochs, warmup_epochs=warmup, step_on_epochs=False,
        updates_per_epoch=updates, **recipe["schedule"], **more)
    return model, optimizer, schedule


def train(options, recipe):
    """All epochs; returns the networks to score, the validation loader and the FPS."""
    import torch
    from timm import loss, utils

    utils.random_seed(options.seed)
    loader, val, classes = loaders(options, recipe)
    model, optimizer, schedule = build(options, recipe, classes, len(loader))
    average = utils.ModelEmaV2(model, decay=recipe["ema"]) if recipe["ema"] else None
    criterion = loss.LabelSmoothingCrossEntropy(SMOOTHING).to(options.device)
    half = getattr(torch, options.amp_dtype) if options.amp_dtype else None
    scaler = utils.NativeScaler() if half is torch.float16 else None
    done, start = 0, time.perf_counter()
    for _ in range(options.epochs):
        model.train()
        for images, targets in loader:
            if options.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast(options.device, half, enabled=half is not None):
                value = criterion(model(images), targets)
            if scaler is None:
                value.backward()
                optimizer.step()
            else:
                scaler(value, optimizer, parameters=model.parameters())
            optimizer.zero_grad()
            if average is not None:
                average.update(model)
            done += 1
            schedule.step_update(done)
            if done == options.max_steps:
                break
        if done == options.max_steps:
            break
    rate = done * options.batch_size / (time.perf_counter() - start)
    return model, average.module if average is not None else None, val, rate


def score(model, loader):
    """Acc@1 in per cent over all validation images."""
    import torch

    right = images = 0
    model.eval()
    with torch.inference_mode():
        for inputs, targets in loader:
            right += int((model(inputs).argmax(1) == targets).sum())
            images += len(targets)
    return 100.0 * right / images


def main():
    options = arguments()
    model, average, val, rate = train(options, RECIPES[options.recipe])
    if options.max_steps:
        print(json.dumps({"images_per_second": rate}))
        return
    print(json.dumps({
        "acc1": score(model, val),
        "acc1_ema": score(average, val) if average is not None else None,
        "images_per_second": rate,
    }))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""How many training images a core makes ready in a second, here and with other packages.

    python benchmarks/data.py                          # on JPEGs that it makes itself
    python benchmarks/data.py --images DIR/train       # on an ImageFolder, such as ImageNet's
    python benchmarks/data.py --augment                # what each kind of augmentation costs
    python benchmarks/data.py --workers 1              # with a loader process, and what that costs

Each case reads JPEG files and gives batches of random crops, flipped at random, as the package's
own training script does: timm's loader and this package's give uint8 (the device normalises),
torchvision's presets float32, normalised; "v2, uint8" is the latter of these without that.
"prepared" reads what mobilenetv3.data.prepare wrote: the same images with a shorter side of
--prepared_size pixels, in shards. One process with one thread; what is counted is its CPU time. The
files are in the page cache. With --workers each case has so many loader processes, whose CPU time
is counted, too, and every batch is copied once when it arrives, as it is to get to a card.
"""
import argparse
import functools
import itertools
import multiprocessing
import os
import statistics
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import PIL  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
import torchvision  # noqa: E402
from timm.data import Mixup  # noqa: E402
from timm.data.random_erasing import RandomErasing  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from torchvision import transforms as tv  # noqa: E402
from torchvision.datasets import ImageFolder  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import fetching  # noqa: E402
import measure  # noqa: E402
import pictures  # noqa: E402
from measure import Skipped  # noqa: E402

from mobilenetv3 import data  # noqa: E402
from mobilenetv3 import device as devices  # noqa: E402
from mobilenetv3.data import decode  # noqa: E402
from mobilenetv3.data.sources import Files, Source  # noqa: E402

MEAN, STD = data.IMAGENET_MEAN, data.IMAGENET_STD
TIMM = "timm"
PIL_PRESET = "torchvision, PIL"
PLAIN = "crop and flip alone"


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", metavar="DIR", help="ImageFolder (default: made for the run)")
    parser.add_argument("--augment", action="store_true",
                        help="this package's augmentations instead of other packages")
    parser.add_argument("--prepared_size", type=int, default=256, metavar="PIXELS")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--img_size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=0,
                        help="loader processes of a case (default: none, all in this process)")
    options = measure.add_options(parser, seconds=30).parse_args()
    if options.augment and options.workers:
        parser.error("--augment is measured in this process; leave --workers out")
    return options


# ---- The cases: each takes (path, label) pairs and the options, and gives batches for ever.


def ours(samples, options, fast):
    return from_source(Files(samples), options, fast)


def prepared(samples, options):
    made = pictures.prepare(options.folder, options.made, options.prepared_size)
    return from_source(data.open_source("folder", str(made), "train").samples, options, True)


def from_source(source, options, fast):
    if fast and not decode.is_available():
        raise Skipped("simplejpeg is not installed")
    images = data.Transformed(source, data.train_transform(options.img_size), seed=0, fast=fast)
    sampler = data.TrainSampler(len(images), options.batch_size, 0, 1, seed=0)
    cpu = devices.select("cpu")
    return repeat(data.build_loader(images, sampler, cpu, options.workers, seed=0))


def by_timm(samples, options):
    if not hasattr(tv.functional, "get_image_size"):
        raise Skipped(f"timm needs a newer torchvision than {torchvision.__version__}")
    dataset = timm.data.ImageDataset(str(options.folder))
    loader = timm.data.create_loader(
        dataset, (3, options.img_size, options.img_size), options.batch_size, is_training=True,
        color_jitter=0.0, interpolation="bilinear", num_workers=options.workers,
        persistent_workers=options.workers > 0,
        use_prefetcher=True, device=torch.device("cpu"),
    )
    return repeat(loader.loader)  # without the device's part


def by_torchvision(samples, options):
    transform = tv.Compose([
        tv.RandomResizedCrop(options.img_size), tv.RandomHorizontalFlip(), tv.ToTensor(),
        tv.Normalize(MEAN, STD),
    ])
    return repeat(shuffled(ImageFolder(str(options.folder), transform), options))


def by_torchvision_v2(samples, options, normalises):
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise Skipped(f"torchvision {torchvision.__version__} has no transforms.v2") from error
    from torchvision.io import ImageReadMode, decode_image, read_file

    to_float = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    transform = v2.Compose([
        v2.RandomResizedCrop(options.img_size, antialias=True), v2.RandomHorizontalFlip(),
        *(to_float if normalises else []),
    ])

    def load(path):
        return decode_image(read_file(path), ImageReadMode.RGB)
    return repeat(shuffled(ImageFolder(str(options.folder), transform, loader=load), options))


def by_dali(samples, options):
    if options.workers:
        raise Skipped("it has threads in the place of loader processes")
    try:
        from nvidia.dali import fn, pipeline_def
    except ImportError as error:
        raise Skipped(f"DALI cannot be imported ({error})") from error

    @pipeline_def(batch_size=options.batch_size, num_threads=1, device_id=None)
    def pipeline():
        encoded, labels = fn.readers.file(
            files=[path for path, _ in samples], labels=[label for _, label in samples],
            random_shuffle=True,
        )
        images = fn.decoders.image_random_crop(
            encoded, device="cpu", random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3])
        images = fn.resize(images, size=(options.img_size, options.img_size), antialias=True)
        return fn.flip(images, horizontal=fn.random.coin_flip()), labels
    built = pipeline()
    try:
        built.build()
    except RuntimeError as error:
        told = [line for line in str(error).splitlines() if "failed" in line]
        raise Skipped(" ".join(told) or "its pipeline cannot be built") from error
    return (built.run() for _ in itertools.count())


def augmented(samples, options, erase=0.0, mixup=0.0, **policy):
    """This package's whole way to the device, which here is the CPU, with one augmentation."""
    loader = data.train_loader(
        Source(Files(samples), ["0"], ""), devices.select("cpu"), rank=0, world=1,
        batch_size=options.batch_size, workers=0, mean=MEAN, std=STD, seed=0, fast=True,
        transform=data.train_transform(options.img_size, **policy),
        erase=RandomErasing(erase, mode="pixel", device="cpu") if erase else None,
        mixup=Mixup(mixup, num_classes=1000) if mixup else None,
    )

    def batches():
        for epoch in itertools.count():
            loader.set_epoch(epoch)
            yield from loader
    return batches()


def shuffled(dataset, options):
    return DataLoader(dataset, options.batch_size, shuffle=True, drop_last=True,
                      num_workers=options.workers, persistent_workers=options.workers > 0)


def repeat(loader):
    for epoch in itertools.count():
        if hasattr(loader.batch_sampler, "epoch"):
            loader.batch_sampler.epoch = epoch
        yield from loader


OURS, PREPARED = "this package, --decode fast", "this package, prepared"
CASES = {
    OURS: functools.partial(ours, fast=True),
    "this package, --decode exact": functools.partial(ours, fast=False),
    PREPARED: prepared,
    TIMM: by_timm,
    PIL_PRESET: by_torchvision,
    "torchvision, v2 with decode_image": functools.partial(by_torchvision_v2, normalises=True),
    "torchvision, v2, uint8": functools.partial(by_torchvision_v2, normalises=False),
    "DALI on the CPU": by_dali,
}
AUGMENTED = {
    PLAIN: augmented,
    "--color_jitter 0.4": functools.partial(augmented, color_jitter=0.4),
    "--aa original": functools.partial(augmented, aa="original"),
    "--aa rand-m9-mstd0.5": functools.partial(augmented, aa="rand-m9-mstd0.5"),
    "--aa augmix-m3-w3": functools.partial(augmented, aa="augmix-m3-w3"),
    "--reprob 0.25 --remode pixel, on the device": functools.partial(augmented, erase=0.25),
    "--mixup 0.2, on the device": functools.partial(augmented, mixup=0.2),
}


# ---- Measuring.


def started(make, samples, options):
    """A case whose first batch is behind it: images per second of CPU time."""
    others = multiprocessing.active_children()
    batches = make(samples, options)
    next(batches)
    workers = [child.pid for child in multiprocessing.active_children() if child not in others]

    clock = functools.partial(fetching.cpu_seconds, workers)

    def step():
        return fetching.taken(next(batches)) if workers else next(batches)

    def turn(seconds):
        for _ in range(fetching.QUEUE * len(workers)):  # made while other cases had their turn
            next(batches)
        return measure.rate(step, seconds, options.batch_size, clock)
    return turn


def describe(samples, options):
    """What was read, for the line above the table."""
    first = [path for path, _ in samples[:200]]
    sizes = [PIL.Image.open(path).size for path in first]
    pixels = statistics.mean(width * height for width, height in sizes)
    return (f"{len(samples)} JPEGs of {pixels / 1e6:.2f} million pixels and "
            f"{statistics.mean(map(os.path.getsize, first)) / 1e3:.0f} kB on average -> "
            f"{options.img_size}x{options.img_size}; {options.rounds} rounds; "
            f"{decode.describe() if decode.is_available() else 'no simplejpeg'}, Pillow "
            f"{PIL.__version__}")


def leads(rates):
    """This package against the fastest of the others, in words."""
    others = [name for name in rates if not name.startswith("this package")]
    for name in (OURS, PREPARED):
        if name in rates:
            times, best = measure.lead(rates, name, others)
            print(f"\n{name}: {times:.2f} times the fastest of the others, {best}")


def costs(rows):
    """What an image costs beyond crop and flip."""
    plain = 1e6 / rows[0]["images_per_second"]
    lines = [["Augmentation", "microseconds an image"]]
    for row in rows[1:]:
        lines.append([row["name"], f"{plain / row['ratio'] - plain:+.0f}"])
    print("\n" + measure.grid(lines))


def main():
    options = arguments()
    load = measure.load()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        options.made = Path(made)
        options.folder = Path(options.images or options.made / "pictures")
        if not options.images:
            pictures.write(options.folder)
        try:
            samples = ImageFolder(str(options.folder)).samples
        # No such folder, or no images in it, which torchvision 0.9 has an error of its own for.
        except (OSError, RuntimeError) as error:
            sys.exit(str(error))
        if len(samples) < options.batch_size:
            sys.exit(f"{options.folder} has {len(samples)} images; --batch_size must not be larger")
        makers = AUGMENTED if options.augment else CASES
        cases, skipped = measure.prepare({
            name: functools.partial(started, make, samples, options)
            for name, make in makers.items()
        })
        rates = measure.take_turns(cases, options)
        about = describe(samples, options)
    base = PLAIN if options.augment else TIMM if TIMM in rates else PIL_PRESET
    rows = measure.rows(rates, base)
    if options.workers:
        about += f"; {options.workers} worker(s), their CPU time and this process's"
    print(f"{about}\n{measure.conditions(load, 1)}\n")
    measure.report(rows, skipped, options.json, "Pipeline", "images/s a core")
    if options.augment:
        costs(rows)
    else:
        leads(rates)


if __name__ == "__main__":
    main()

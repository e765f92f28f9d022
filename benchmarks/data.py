#!/usr/bin/env python3
"""How many training images a core makes ready in a second, here and with other packages.

    python benchmarks/data.py                          # on JPEGs that it makes itself
    python benchmarks/data.py --images DIR/train       # on an ImageFolder, such as ImageNet's

Each case reads JPEG files and gives batches of random crops, flipped at random, as the package's
own training script does: timm's loader and this package's give uint8 (the device normalises),
torchvision's presets float32, normalised. One process with one thread; what is counted is its CPU
time. Every round takes each case in turn for --seconds / --rounds seconds, so that what else the
machine does falls on all alike; shown are the medians over the rounds. The files are in the page
cache.
"""
import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import PIL  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
import torchvision  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from torchvision import transforms as tv  # noqa: E402
from torchvision.datasets import ImageFolder  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import pictures  # noqa: E402

from mobilenetv3 import data  # noqa: E402
from mobilenetv3 import device as devices  # noqa: E402
from mobilenetv3.data import decode  # noqa: E402
from mobilenetv3.data.sources import Files  # noqa: E402

MEAN, STD = data.IMAGENET_MEAN, data.IMAGENET_STD
TIMM = "timm"
PIL_PRESET = "torchvision, PIL"


class Skipped(Exception):
    """A case that cannot run here; its text says why."""


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", metavar="DIR", help="ImageFolder (default: made for the run)")
    parser.add_argument("--seconds", type=float, default=30.0, help="for each case")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--img_size", type=int, default=224)
    parser.add_argument("--json", metavar="FILE", help="write the rows there, too")
    return parser.parse_args()


# ---- The cases: each takes (path, label) pairs and the options, and gives batches for ever.


def ours(samples, options, fast):
    if fast and not decode.is_available():
        raise Skipped("simplejpeg is not installed")
    transform = data.train_transform(options.img_size)
    images = data.Transformed(Files(samples), transform, seed=0, fast=fast)
    sampler = data.TrainSampler(len(images), options.batch_size, 0, 1, seed=0)
    return repeat(data.build_loader(images, sampler, devices.select("cpu"), 0, seed=0))


def by_timm(samples, options):
    if not hasattr(tv.functional, "get_image_size"):
        raise Skipped(f"timm needs a newer torchvision than {torchvision.__version__}")
    dataset = timm.data.ImageDataset(str(options.folder))
    loader = timm.data.create_loader(
        dataset, (3, options.img_size, options.img_size), options.batch_size, is_training=True,
        color_jitter=0.0, interpolation="bilinear", num_workers=0, persistent_workers=False,
        use_prefetcher=True, device=torch.device("cpu"),
    )
    return repeat(loader.loader)  # without the device's part


def by_torchvision(samples, options):
    transform = tv.Compose([
        tv.RandomResizedCrop(options.img_size), tv.RandomHorizontalFlip(), tv.ToTensor(),
        tv.Normalize(MEAN, STD),
    ])
    return repeat(shuffled(ImageFolder(str(options.folder), transform), options))


def by_torchvision_v2(samples, options):
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise Skipped(f"torchvision {torchvision.__version__} has no transforms.v2") from error
    from torchvision.io import ImageReadMode, decode_image, read_file

    transform = v2.Compose([
        v2.RandomResizedCrop(options.img_size, antialias=True), v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD),
    ])

    def load(path):
        return decode_image(read_file(path), ImageReadMode.RGB)
    return repeat(shuffled(ImageFolder(str(options.folder), transform, loader=load), options))


def by_dali(samples, options):
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


def shuffled(dataset, options):
    return DataLoader(dataset, options.batch_size, shuffle=True, drop_last=True)


def repeat(loader):
    for epoch in itertools.count():
        if hasattr(loader.batch_sampler, "epoch"):
            loader.batch_sampler.epoch = epoch
        yield from loader


CASES = {
    "this package, --decode fast": lambda samples, options: ours(samples, options, True),
    "this package, --decode exact": lambda samples, options: ours(samples, options, False),
    TIMM: by_timm,
    PIL_PRESET: by_torchvision,
    "torchvision, v2 with decode_image": by_torchvision_v2,
    "DALI on the CPU": by_dali,
}
OURS = next(iter(CASES))


# ---- Measuring.


def prepare(samples, options):
    """The cases that can run here, each with its first batch behind it."""
    running = {}
    for name, make in CASES.items():
        try:
            running[name] = make(samples, options)
            next(running[name])
        except Skipped as reason:
            running.pop(name, None)
            print(f"{name}: skipped, {reason}")
    return running


def rate(batches, seconds, batch_size):
    """Images per second of CPU time, of all this process's threads."""
    end, count, start = time.monotonic() + seconds, 0, time.process_time()
    while not count or time.monotonic() < end:
        next(batches)
        count += batch_size
    return count / (time.process_time() - start)


def measure(samples, options):
    running = prepare(samples, options)
    rates = {name: [] for name in running}
    for _ in range(options.rounds):
        for name, batches in running.items():
            rates[name].append(rate(batches, options.seconds / options.rounds, options.batch_size))
    return rates


def report(rates, samples, options):
    base = TIMM if TIMM in rates else PIL_PRESET
    rows = [{"name": name, "images_per_second": statistics.median(found),
             "ratio": statistics.median(a / b for a, b in zip(found, rates[base])),
             "ratio_to": base} for name, found in rates.items()]
    pixels = statistics.mean(width * height for width, height in
                             (PIL.Image.open(path).size for path, _ in samples[:200]))
    print(f"{len(samples)} JPEGs of {pixels / 1e6:.2f} million pixels and "
          f"{statistics.mean(os.path.getsize(path) for path, _ in samples[:200]) / 1e3:.0f} kB on "
          f"average -> {options.img_size}x{options.img_size}; {options.rounds} rounds; "
          f"{decode.describe() if decode.is_available() else 'no simplejpeg'}; "
          f"PyTorch {torch.__version__}, torchvision {torchvision.__version__}, timm "
          f"{timm.__version__}, Pillow {PIL.__version__}, Python {platform.python_version()}, "
          f"{processor()}\n")
    print(f"| Pipeline | images/s a core | to {base} |\n| --- | ---: | ---: |")
    for row in rows:
        print(f"| {row['name']} | {row['images_per_second']:.0f} | {row['ratio']:.2f} |")
    if OURS in rates:
        others = [name for name in rates if not name.startswith("this package")]
        best = max(others, key=lambda name: statistics.median(rates[name]))
        lead = statistics.median(a / b for a, b in zip(rates[OURS], rates[best]))
        print(f"\n{OURS}: {lead:.2f} times the fastest of the others, {best}")
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def processor():
    """The CPU's name, as Linux has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({platform.machine()})" if names else platform.machine()


def main():
    options = arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        options.folder = Path(options.images or Path(made) / "pictures")
        if not options.images:
            pictures.write(options.folder)
        samples = ImageFolder(str(options.folder)).samples
        if len(samples) < options.batch_size:
            sys.exit(f"{options.folder} has {len(samples)} images; --batch_size must not be larger")
        report(measure(samples, options), samples, options)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""One rank whose model computes nothing but takes its time; scale.py beside this file starts it.

    python benchmarks/nullmodel.py DATA --world 2 --rank 0 --workers 1 --batch_size 128

DATA is an ImageFolder, or a prepared set with the split "train". Each line of the standard input,
"SECONDS RATE", is answered by a line of JSON: what was loaded in so many seconds by a model that
needs 1 / RATE seconds an image and has the next batch ready when it could take it, or has to wait;
RATE 0 is a model that needs none. Loader and workers live on from line to line.
"""
import argparse
import itertools
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402
from torchvision.datasets import ImageFolder  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import fetching  # noqa: E402

from mobilenetv3 import data  # noqa: E402
from mobilenetv3 import device as devices  # noqa: E402
from mobilenetv3.data.sources import Files  # noqa: E402

EPOCH = 1 << 17
"""Images in an epoch, at least, so that its end does not count."""


class Repeated:
    """The same samples again and again."""

    def __init__(self, samples, images):
        self.samples, self.images = samples, images

    def __len__(self):
        return self.images

    def __getitem__(self, index):
        return self.samples[index % len(self.samples)]

    def encoded(self, index):
        return self.samples.encoded(index % len(self.samples))


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--world", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=128, help="images of one rank")
    parser.add_argument("--img_size", type=int, default=224)
    return parser.parse_args()


def open_samples(path):
    if (Path(path) / "manifest.json").is_file():
        return data.open_source("folder", path, "train").samples
    return Files(ImageFolder(path).samples)


def batches(options):
    """uint8 batches for ever, and the DataLoader that they come from."""
    whole = options.batch_size * options.world
    samples = Repeated(open_samples(options.data), max(EPOCH, 64 * whole))
    images = data.Transformed(samples, data.train_transform(options.img_size), 0, True)
    sampler = data.TrainSampler(len(images), whole, options.rank, options.world, seed=0)
    loader = data.build_loader(images, sampler, devices.select("cpu"), options.workers, seed=0)

    def endless():
        for epoch in itertools.count():
            sampler.epoch = epoch
            yield from map(fetching.taken, loader)
    return endless(), loader


def cpu_seconds(loader):
    """CPU time of this process and of the loader's workers, so far."""
    workers = getattr(getattr(loader, "_iterator", None), "_workers", [])
    return fetching.cpu_seconds(worker.pid for worker in workers)


def consume(found, loader, seconds, rate):
    """Take batches for so long as a model would that computes `rate` images a second."""
    batch = loader.batch_sampler.share
    if rate:  # a loader starts beside the first steps, which are slow
        time.sleep(fetching.QUEUE * batch / rate)
    else:  # what was made before does not count
        for _ in range(fetching.QUEUE * max(1, loader.num_workers)):
            next(found)
    start, cpu = time.perf_counter(), cpu_seconds(loader)
    images, waited, now = 0, 0.0, start
    while now - start < seconds:
        next(found)
        waited += time.perf_counter() - now
        images += batch
        if rate:
            time.sleep(batch / rate)
        now = time.perf_counter()
    return {"images": images, "seconds": now - start, "waited": waited,
            "cpu_seconds": cpu_seconds(loader) - cpu}


def main():
    options = arguments()
    torch.set_num_threads(1)
    found, loader = batches(options)
    for _ in range(2 * options.workers + 1):  # all workers have started
        next(found)
    print("ready", flush=True)
    for line in sys.stdin:
        seconds, rate = map(float, line.split())
        print(json.dumps(consume(found, loader, seconds, rate)), flush=True)


if __name__ == "__main__":
    main()

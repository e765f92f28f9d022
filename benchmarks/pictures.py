"""Images for benchmarks that were given none: JPEGs with ImageNet's sizes and weights.

And a folder of images out of an archive, or as the shards that mobilenetv3.data.prepare makes of
it.
"""
import io
import itertools
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Dict, List, Optional

import measure
import numpy as np
from PIL import Image

SIZES = ((500, 375), (500, 333), (375, 500), (500, 400), (640, 480), (333, 500), (300, 225))
"""Widths and heights; on average 0.18 million pixels, as in ILSVRC2012."""
BYTES = 0.58
"""A pixel's share of the file, as in ILSVRC2012."""


def write(folder: Path, count: int = 64) -> None:
    """An ImageFolder with two classes, the fewest to train on; the same files every time."""
    random = np.random.RandomState(0)
    for number in range(count):
        path = folder / f"class{number % 2}" / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(photograph(random, *SIZES[number % len(SIZES)])))


def photograph(random: np.random.RandomState, width: int, height: int) -> Image.Image:
    """Noise whose amplitude falls with the frequency, as in photographs, in correlated colours."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1.0
    planes = []
    for _ in range(3):
        noise = np.fft.rfft2(random.standard_normal((height, width))) / frequency
        noise[0, 0] = 0.0
        plane = np.fft.irfft2(noise, (height, width))
        planes.append(plane / plane.std())
    light, red, blue = planes
    colours = np.stack([light + 0.3 * red, light, light + 0.3 * blue], -1)
    return Image.fromarray((128 + 55 * colours).clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image) -> bytes:
    """The image in the lowest quality whose file is as heavy as ImageNet's."""
    for quality in (60, 70, 80, 85, 90, 95):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        if file.tell() >= BYTES * image.width * image.height:
            break
    return file.getvalue()


def prepare(images: Path, made: Path, size: int) -> Path:
    """Write an ImageFolder as a prepared set whose split is "train", in a folder.

    Args:
        images: a folder for each class.
        made: an existing folder.
        size: shorter side of larger images afterwards, pixels.

    Raises:
        measure.Skipped: it failed, or PyTorch is too old for it.
    """
    source, prepared = made / "to_prepare", made / "prepared"
    source.mkdir()
    (source / "train").symlink_to(images.resolve(), target_is_directory=True)
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "mobilenetv3.data.prepare", str(source.resolve()),
         str(prepared.resolve()), "--size", str(size), "--splits", "train"],
        cwd=str(root), env=dict(os.environ, OMP_NUM_THREADS="1"), capture_output=True, text=True,
    )
    if done.returncode:
        raise measure.Skipped(f"mobilenetv3.data.prepare failed: {done.stderr.strip()[-300:]}")
    return prepared


def gather(images: Optional[str], folder: Path, side: Optional[int] = None) -> Dict[str, List[str]]:
    """The files of an ImageFolder, by class; made where none is named.

    Args:
        folder: for what is made.
        side: make the images smaller, to this shorter side in pixels.

    Raises:
        measure.Skipped: it has no images.
    """
    source = Path(images or folder / "pictures")
    if not images:
        write(source)
    elif not source.is_dir():
        raise measure.Skipped(f"there is no folder {source}")
    classes = {entry.name: sorted(str(path.resolve()) for path in entry.iterdir())
               for entry in sorted(source.iterdir()) if entry.is_dir()}
    if not any(classes.values()):
        raise measure.Skipped(f"{source} has no class folders with images")
    if side:
        (folder / "smaller").mkdir()
        number = itertools.count()
        classes = {name: [shrink(path, folder / "smaller" / f"{next(number)}.jpg", side)
                          for path in paths] for name, paths in classes.items()}
    return classes


def shrink(path: str, to: Path, side: int) -> str:
    """Write an image with a shorter side of at most so many pixels; returns where to."""
    with Image.open(path) as image:
        factor = min(1.0, side / min(image.size))
        size = [round(edge * factor) for edge in image.size]
        image.convert("RGB").resize(size, Image.BICUBIC).save(to, "JPEG", quality=90)
    return str(to)


def unpack(archive: str, folder: Path) -> Path:
    """Unpack the images of a .tar.gz, and nothing that would lie outside of the folder.

    Returns:
        the folder that holds the folder train.
    """
    with tarfile.open(str(archive)) as file:
        for member in file:
            parts = Path(member.name).parts
            if not member.isfile() or Path(member.name).is_absolute() or ".." in parts:
                continue
            to = folder.joinpath(*parts)
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(file.extractfile(member).read())
    found = [path.parent for path in folder.glob("**/train") if path.is_dir()]
    if not found:
        raise ValueError(f"{archive} has no folder train")
    return found[0]


def lay_out(classes: Dict[str, List[str]], folder: Path, images: int) -> Path:
    """A data set whose training part has so many images or more: links to those there are."""
    copies = -(-images // sum(map(len, classes.values())))
    for split, times in (("train", copies), ("val", 1)):
        for name, paths in classes.items():
            (folder / split / name).mkdir(parents=True)
            for number, path in itertools.product(range(times), paths):
                (folder / split / name / f"{number}_{Path(path).stem}.jpg").symlink_to(path)
    return folder

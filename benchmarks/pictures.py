"""Images for benchmarks that were given none: JPEGs with ImageNet's sizes and weights."""
import io
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = ((500, 375), (500, 333), (375, 500), (500, 400), (640, 480), (333, 500), (300, 225))
"""Widths and heights; on average 0.18 million pixels, as in ILSVRC2012."""
BYTES = 0.58
"""A pixel's share of the file, as in ILSVRC2012."""


def write(folder: Path, count: int = 64) -> None:
    """An ImageFolder with one class; the same files every time."""
    folder = folder / "class"
    folder.mkdir(parents=True)
    random = np.random.RandomState(0)
    for number in range(count):
        data = jpeg(photograph(random, *SIZES[number % len(SIZES)]))
        (folder / f"{number:03d}.jpg").write_bytes(data)


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

"""From the bytes of a JPEG to the pixels of one crop, without decoding what the crop leaves out.

Pillow decodes every pixel and then most are thrown away. Here libjpeg-turbo (by way of simplejpeg)
stops below the crop, and where the crop is to be made smaller by 2 or more, its inverse DCT makes
1/2, 3/8, 1/4 or 1/8 of the size in the first place. Resizing is PyTorch's of uint8 where it is
vectorised, else Pillow's; both weigh all pixels that one of the result covers (antialiasing).

Rows that are decoded whole are libjpeg's to the bit. Against Pillow's way the result differs by
rounding, 0.03 of 255 a pixel on average, and where the DCT scaled, by the filter that it is: 1.3.
Of ImageNet's photographs at 224 pixels, few of which are large, it is 0.06 over all.
"""
import math
import re
import threading
from typing import NamedTuple, Optional, Sequence, Union

import numpy as np
import torch
from PIL import Image

from mobilenetv3.data.imagefile import BadImage, JpegFrame, check_scans, jpeg_frame
from mobilenetv3.device import TORCH_VERSION

try:
    import simplejpeg
except (ImportError, ValueError):  # ValueError: built for another numpy
    simplejpeg = None

# The uint8 resize that equals Pillow's filter is of PyTorch 2.1, and has AVX2 code alone.
_RESIZES_BY_TORCH = TORCH_VERSION >= (2, 1) and torch.backends.cpu.get_cpu_capability() in (
    "AVX2", "AVX512")
_PIL = {"nearest": Image.NEAREST, "bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}

MAX_PIXELS = 1 << 26
"""Larger images are left to Pillow, and those of more than `imagefile.MAX_PIXELS` are refused."""
SCRATCH = 3 << 22
"""Bytes that each process decodes into; images of more than 4 million pixels have their own."""
_LEFT_OVER = re.compile(r"Corrupt JPEG data: \d+ extraneous bytes before marker 0xd[0-79]")
"""What libjpeg says of rows that are left out, when all others are decoded."""
TAIL = 256
"""Bytes in which a whole file has its end marker; what is cut short is left to Pillow to refuse."""


class Refused(Exception):
    """Not for this decoder: another format, CMYK, cut short or damaged; Pillow has to look."""


class Header(NamedTuple):
    """What a JPEG says of itself before its pixels."""

    height: int
    width: int
    frame: JpegFrame


class Box(NamedTuple):
    """A part of an image, in its pixels."""

    top: int
    left: int
    height: int
    width: int


class _Scratch(threading.local):
    """Memory that is used again: fresh pages for each image cost a tenth of its decoding."""

    def __init__(self):
        self.memory = np.empty(SCRATCH, np.uint8)


_scratch = _Scratch()


def is_available() -> bool:
    """Whether there is a decoder other than Pillow."""
    return simplejpeg is not None


def describe() -> str:
    """The decoder and what resizes, for the log."""
    resize = f"PyTorch {torch.__version__}" if _RESIZES_BY_TORCH else f"Pillow {Image.__version__}"
    return f"JPEG by simplejpeg {simplejpeg.__version__}, resized by {resize}"


def read_header(data: bytes) -> Header:
    """The size, and where what says it is.

    Raises:
        Refused: it is not a JPEG that `crop` takes.
    """
    if simplejpeg is None or b"\xff\xd9" not in data[-TAIL:]:
        raise Refused
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except Exception as error:  # ValueError; or KeyError, for colours that it has no name for
        raise Refused from error
    if colours in ("CMYK", "YCCK") or not 0 < height * width <= MAX_PIXELS:
        raise Refused
    frame = jpeg_frame(data)
    if frame is None:
        raise Refused
    try:
        check_scans(data, frame, height * width)
    except BadImage as error:
        raise Refused from error
    return Header(height, width, frame)


def crop(data: bytes, box: Box, side: int, interpolation: str = "bilinear",
         header: Optional[Header] = None) -> Union[torch.Tensor, Image.Image]:
    """Decode a part of a JPEG and resize it to a square.

    Args:
        data: a whole JPEG that `read_header` took.
        box: inside the image.
        interpolation: "nearest", "bilinear" or "bicubic".
        header: what `read_header` found, for callers that had to know the size.

    Returns:
        what resized it has made, which torchvision's flips take as it is: a uint8 tensor (3, side,
        side), in memory (side, side, 3), or a PIL image; in PyTorch 1.8 flips of tensors are slow.

    Raises:
        Refused: the data is damaged.
    """
    height, width, frame = header or read_header(data)
    # A share of the size that still has a pixel for each of the result's.
    share = max(side / box.height, side / box.width)
    is_scaled = share <= 0.5 and interpolation != "nearest"  # which averages nothing
    # Two rows of the result of the DCT more: colour of half the resolution is interpolated.
    below = 2 * (8 if is_scaled else 1)
    bottom = min(height, box.top + box.height + below)
    limits = {"min_width": math.ceil(width * share), "min_factor": 2.0} if is_scaled else {}
    pixels = _pixels(_cut(data, frame, bottom), height * width * 3, limits)
    scale = round(8 * pixels.shape[1] / width) / 8
    if scale == 1 and _RESIZES_BY_TORCH and interpolation != "nearest":
        return _resize_by_torch(pixels, box, side, interpolation)
    return _resize_by_pillow(pixels, [edge * scale for edge in box], side, interpolation)


def _pixels(data: bytes, size: int, limits: dict) -> np.ndarray:
    """Decode a JPEG: -> uint8 (height, width, 3), valid until the next one is decoded.

    Args:
        size: bytes that the pixels take, at most.
        limits: simplejpeg's, to a smaller size.

    Raises:
        Refused: it is damaged.
    """
    memory = _scratch.memory if size <= SCRATCH else np.empty(size, np.uint8)
    try:
        # Strict, for otherwise a JPEG that cannot be decoded at all "is" what the memory held
        # before: another image.
        return simplejpeg.decode_jpeg(data, buffer=memory, strict=True, **limits)
    except Exception as error:
        if not _LEFT_OVER.match(str(error)):
            raise Refused from error
    height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=False, **limits)
    return memory[: height * width * 3].reshape(height, width, 3)


def _resize_by_torch(pixels: np.ndarray, box: Box, side: int, interpolation: str) -> torch.Tensor:
    part = torch.from_numpy(pixels)[
        box.top : box.top + box.height, box.left : box.left + box.width
    ].permute(2, 0, 1)[None]
    # A copy without gaps: of a part PyTorch makes planes, which takes longer than copying it.
    part = part.contiguous(memory_format=torch.channels_last)
    return torch.nn.functional.interpolate(
        part, (side, side), mode=interpolation, align_corners=False, antialias=True
    )[0]


def _resize_by_pillow(pixels: np.ndarray, box: Sequence[float], side: int,
                      interpolation: str) -> Image.Image:
    """The box may begin and end between pixels."""
    top, left, height, width = box
    y, x = int(top), int(left)
    part = pixels[y : math.ceil(top + height), x : math.ceil(left + width)]
    rows, columns, _ = part.shape  # less than was asked for where scaling rounded the size
    edges = (left - x, top - y, min(left - x + width, columns), min(top - y + height, rows))
    part = Image.fromarray(np.ascontiguousarray(part))
    return part.resize((side, side), _PIL[interpolation], edges)


def _cut(data: bytes, frame: JpegFrame, rows: int) -> bytes:
    """The same JPEG, whose header says that it has so many rows.

    Rows are coded from the top, so the first ones come out unchanged. Only for JPEGs of one scan:
    of several each holds all rows.
    """
    if not frame.is_one_scan:
        return data
    changed = bytearray(data)  # marker (2 bytes), length (2), precision (1), rows (2), ...
    changed[frame.position + 5 : frame.position + 7] = rows.to_bytes(2, "big")
    return bytes(changed)

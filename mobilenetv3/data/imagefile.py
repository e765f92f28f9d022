"""From an image file to a PIL image of mode RGB: the one way, of training, validation, prediction.

Pixels are those of torchvision's loader (`Image.open(...).convert("RGB")`) but for 16 bits a pixel,
which that clips to white, and 32 bits, of which it keeps what happens to lie between 0 and 255.
What is no image, or a damaged one, or one that would take too much memory or time, is a `BadImage`.
"""
import functools
import io
import os
import stat
import warnings
from typing import NamedTuple, Optional

import numpy as np
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""What is read, whatever the file is called. Pillow reads more: EPS, for one, by running a program
on it, which is not for files of unknown origin."""
MAX_PIXELS = 100_000_000
"""An image takes 4 bytes a pixel, and for a moment twice that, where it is converted or cropped:
0.8 GB. Pillow warns of 89 million pixels and refuses 179 million."""
MAX_BUFFERED = 1 << 26
"""Pixels of a JPEG in several scans, which are 6 bytes more until the last scan has been read."""
MAX_SCANNED = 1 << 32
"""Pixels times scans, of a JPEG: its time. Encoders write 10 scans; in a file there can be many."""
SCAN_BYTES = 10
"""A scan has no fewer."""
MAX_ODD_BYTES = 1 << 20
"""Of a JPEG whose segments are not side by side: Pillow looks for the next one byte by byte."""
MAX_BYTES = 1 << 29
"""Of a file: more than so many pixels ever are without compression."""


class BadImage(OSError):
    """The file is no image that can be used; the message says why, and does not name the file."""


class JpegFrame(NamedTuple):
    """What the segments before a JPEG's pixels say."""

    kind: int
    """Marker: 0xc0 and 0xc1 are sequential, 0xc2 progressive."""
    position: int
    """Of the marker, in bytes."""
    scan: int
    """Of the first scan's marker."""
    is_one_scan: bool
    """Whether one pass over the image has all of it."""


def read(path: str) -> bytes:
    """Content of an image file.

    Raises:
        BadImage: it is not a file, or too large to be an image.
        OSError: it cannot be read now.
    """
    with open(path, "rb", buffering=0, opener=_open) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise BadImage("not a file, but a pipe or a device")
        if status.st_size > MAX_BYTES:
            raise BadImage(f"too large: {status.st_size:,} bytes; at most {MAX_BYTES:,} are read")
        return file.read()


def _open(path, flags):
    # Opening a pipe waits for somebody who writes to it, unless told not to; files do not mind.
    return os.open(path, flags | os.O_NONBLOCK)


def decode(data: bytes) -> Image.Image:
    """Content of an image file -> its first picture, of mode RGB, not turned as EXIF may say.

    Raises:
        BadImage: see `to_rgb`; or it is not of one of FORMATS.
        MemoryError: there is too little memory, which is no fault of the file.
    """
    if not data:
        raise BadImage("not an image: the file is empty")
    is_odd = data[:2] == b"\xff\xd8" and jpeg_frame(data) is None
    if is_odd and len(data) > MAX_ODD_BYTES:
        raise BadImage("too large: a JPEG whose segments are not side by side may have at most "
                       f"{MAX_ODD_BYTES:,} bytes")
    if not any(data[:1024]):
        raise BadImage("not an image: the file begins with zeros, as where a copy was cut off")
    _quiet()
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
    except UnidentifiedImageError as error:
        raise BadImage(
            f"not an image of a kind that is read here ({', '.join(_formats())}), or its beginning "
            f"is damaged: it begins with {data[:12]!r}"
        ) from error
    except Image.DecompressionBombError as error:  # the limit below is lower; this comes before it
        raise BadImage(f"too large: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged file fails in as many ways as there are decoders
        raise _damaged(error) from error
    if image.format in ("JPEG", "MPO"):
        check_scans(data, jpeg_frame(data), image.width * image.height)
    return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB; its pixels are loaded.

    Alpha is dropped, not blended. The upper 8 of 16 bits are kept.

    Raises:
        BadImage: it is damaged, has more than MAX_PIXELS, or 32 bits a pixel, which may mean any
            range of values.
        MemoryError: there is too little memory.
    """
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(
            f"too large: {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are decoded"
        )
    try:
        image.load()
        if image.mode == "RGB":
            return image
        bits = _bits(image)
        if bits == 8:
            return image.convert("RGB")
        if bits < 32:
            grey = Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8))
            grey.info = image.info
            return grey.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:
        raise _damaged(error) from error
    raise BadImage(f"its pixels have 32 bits (mode {image.mode}); expected 8 or 16")


def _bits(image: Image.Image) -> int:
    """Bits that a pixel's values can have, in one colour."""
    if image.mode.startswith("I;16"):
        bits = image.tag_v2.get(258, (16,)) if image.format == "TIFF" else (16,)  # BitsPerSample
        return min(16, max(8, bits[0]))
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # which have no more than 16
        return 16
    return 32 if image.mode in ("I", "F") else 8


def _damaged(error: Exception) -> BadImage:
    lines = str(error).splitlines() or [type(error).__name__]
    return BadImage(f"damaged: {lines[0]}")


@functools.lru_cache(maxsize=None)
def _formats():
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # old ones have no AVIF


def _quiet() -> None:
    """Pillow warns of large images, of odd EXIF entries and palettes; they are good all the same.

    Not by warnings.catch_warnings, which is not for threads. Twice is as once.
    """
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def jpeg_frame(data: bytes) -> Optional[JpegFrame]:
    """Walk the segments before a JPEG's pixels; None where they are not as encoders write them."""
    position, frame, fill = 2, None, 0  # after the start marker
    while position + 10 <= len(data) and data[position] == 0xFF and fill < 100:
        kind = data[position + 1]
        if kind == 0xFF:  # fill byte
            position, fill = position + 1, fill + 1
            continue
        if kind == 0xDA:
            if frame is None:
                return None
            # A sequential one has all colours in one scan, or passes over the image for each.
            is_one = frame[0] in (0xC0, 0xC1) and data[position + 4] == data[frame[1] + 9]
            return JpegFrame(*frame, position, is_one)
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            if frame:
                return None
            frame = kind, position
        elif kind <= 0x01 or 0xD0 <= kind <= 0xD9:  # has no length
            return None
        # Kind, and the segment: its length (of itself, too) and what is in it.
        position += 2 + max(2, int.from_bytes(data[position + 2 : position + 4], "big"))
    return None


def check_scans(data: bytes, frame: Optional[JpegFrame], pixels: int) -> None:
    """Refuse a JPEG for the memory or the time that its scans take.

    Raises:
        BadImage: it is too large for so many scans.
    """
    if frame and frame.is_one_scan:
        return
    start = frame.scan if frame else 0
    scans = (len(data) - start) // SCAN_BYTES  # at most; seldom enough that they must be counted
    if pixels * scans > MAX_SCANNED:
        # Among pixels 0xff is followed by 0, or by the number of a restart.
        scans = data.count(b"\xff\xda", start)
    if pixels > MAX_BUFFERED or pixels * scans > MAX_SCANNED:
        raise BadImage(f"too large: {pixels:,} pixels in several scans, up to {scans} of them")

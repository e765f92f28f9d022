"""Damaged image files through all ways that read one: exact, fast, validation, prediction.

    python test/fuzz/images.py --count 1000 --seed 0

A file is either an image, whose pixels are then those of Pillow's own reading, or refused in one
sentence, and in training another image takes its place. Anything else is a fault: another error, a
hang, more than 1 GB, an image where Pillow finds none.
"""
import io
import os
import random
import struct
import sys
import warnings
import zlib

import common
import numpy as np
from common import Case, check_sentence, is_out_of_memory, judge_all, mutate
from PIL import Image, ImageDraw

from mobilenetv3 import data, prepare
from mobilenetv3.data import decode, imagefile
from mobilenetv3.data.sources import Files
from mobilenetv3.text import printable

SIDE = 48
LARGE = "made by hand, large"
FIRST = 700  # bytes of a JPEG with all its headers in them


# ------------------------------------------------------------------------------------------- corpus


def picture(width, height, seed=0):
    """A drawing on a slope of colours, with some noise."""
    rng = np.random.RandomState(seed)
    slope = np.linspace(0, 200, width)[None, :, None] * np.array([1.0, 0.6, 0.2])
    pixels = slope + np.linspace(0, 50, height)[:, None, None]
    pixels = pixels + rng.randint(0, 9, (height, width, 3))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = rng.randint(0, width), rng.randint(0, height)
        draw.ellipse((x - 9, y - 9, x + 20, y + 12), tuple(int(c) for c in rng.randint(0, 255, 3)))
    return image


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png16(width=60, height=40):
    ramp = np.arange(width * height).reshape(height, width) * 27
    return encoded(Image.fromarray(ramp.astype(np.uint16)), "PNG")


def corpus():
    """kind -> content of a good file."""
    photo, small = picture(200, 150), picture(90, 70, 1)
    frames = [picture(60, 40, seed) for seed in range(3)]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    found = {
        "JPEG 4:2:0": encoded(photo, "JPEG"),
        "JPEG 4:4:4": encoded(photo, "JPEG", quality=95, subsampling=0),
        "JPEG progressive": encoded(photo, "JPEG", progressive=True),
        "JPEG grey": encoded(photo.convert("L"), "JPEG"),
        "JPEG CMYK": encoded(small.convert("CMYK"), "JPEG"),
        "JPEG with EXIF": encoded(small, "JPEG", exif=exif.tobytes(), comment=b"\xff\xda" * 9),
        "PNG RGB": encoded(small, "PNG"), "PNG grey": encoded(small.convert("L"), "PNG"),
        "PNG alpha": encoded(small.convert("RGBA"), "PNG"),
        "PNG grey and alpha": encoded(small.convert("LA"), "PNG"),
        "PNG palette": encoded(small.convert("P"), "PNG", transparency=3),
        "PNG 1 bit": encoded(small.convert("1"), "PNG"), "PNG 16 bit": png16(),
        "PNG animated": encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "GIF animated": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "BMP": encoded(small, "BMP"), "TIFF": encoded(small, "TIFF", compression="tiff_lzw"),
        "PPM": encoded(small, "PPM"),
    }
    if "WEBP" in imagefile._formats():
        found["WebP"] = encoded(small, "WEBP")
        found["WebP animated"] = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    return found


def png_chunks(content):
    """(position, length) of the chunks, as far as they make sense."""
    place = 8
    while place + 12 <= len(content):
        length = int.from_bytes(content[place:place + 4], "big")
        if place + 12 + length > len(content):
            return
        yield place, length
        place += 12 + length


def with_checksums(content):
    """A PNG whose chunks have right checksums again: damage gets past the first look."""
    content = bytearray(content)
    for place, length in png_chunks(content):
        body = content[place + 4:place + 8 + length]
        content[place + 8 + length:place + 12 + length] = struct.pack(">I", zlib.crc32(body))
    return bytes(content)


def chunk(kind, body):
    """A part of a PNG."""
    body = kind + body
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def png(width, height, pixels=b"", depth=8, colour=2, extra=b""):
    """A PNG that says what it likes of its size."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", pixels)
            + chunk(b"IEND", b""))


def resized(jpeg, width, height):
    """A JPEG whose header says another size."""
    place = imagefile.jpeg_frame(jpeg).position
    return jpeg[:place + 5] + struct.pack(">HH", height, width) + jpeg[place + 9:]


def large():
    """Cases that take the memory or the time they may, or would take more: name -> content."""
    photo, waves = encoded(picture(200, 150), "JPEG"), _waves()
    return {
        "65,500 pixels square": resized(photo, 65500, 65500),
        "9,900 pixels square": resized(photo, 9900, 9900),
        "progressive, 9,900 square": resized(waves, 9900, 9900),
        "progressive, 8,000 square": resized(waves, 8000, 8000),
        "100 scans of 60 million pixels": resized(_scans(100), 8000, 7500),
        "100,000 scans": _scans(100000),
        "fill bytes": photo[:2] + b"\xff" * (1 << 24) + photo[2:],
        "PNG bomb": png(60000, 60000, zlib.compress(bytes(1 << 20))),
        "PNG of 100 million pixels": png(10000, 10000, zlib.compress(bytes(30001 * 10000), 1)),
        "PNG, alpha, of 100 million pixels": png(
            10000, 10000, zlib.compress(bytes(40001 * 10000), 1), colour=6),
        "PNG text bomb": png(8, 8, zlib.compress(bytes(25 * 8)),
                             extra=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 27)))),
    }


def _waves():
    return encoded(picture(64, 64), "JPEG", progressive=True)


def _scans(count):
    """A progressive JPEG with so many scans."""
    content = _waves()
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * count + b"\xff\xd9"


def fixed():
    """Cases that chance does not make: name -> content."""
    photo = encoded(picture(200, 150), "JPEG")
    waves, frame = _waves(), imagefile.jpeg_frame(photo)
    found = {
        "nothing": b"", "one byte": b"\xff", "zeros": bytes(5000), "0xff": b"\xff" * 5000,
        "HTML": b"<!DOCTYPE html><html>404</html>", "text": b"no image\n\x1b[31m\xff",
        "zip": b"PK\x03\x04" + bytes(40), "EPS": encoded(picture(20, 20), "EPS"),
        "only a start": photo[:2], "no pixels": photo[:frame.scan + 12] + b"\xff\xd9",
        "fill bytes": photo[:2] + b"\xff" * (1 << 17) + photo[2:],
        "two frames": photo[:frame.position] + photo[frame.position:frame.scan] * 2
        + photo[frame.scan:],
        "a frame of no size": resized(photo, 0, 0), "no rows": resized(photo, 200, 0),
        "more rows": resized(photo, 200, 60000), "fewer rows": resized(photo, 200, 20),
        "PNG, all promised, nothing there": png(1000, 1000),
        "strip": encoded(Image.new("RGB", (1, 30000)), "PNG"),
        "a line": encoded(Image.new("RGB", (30000, 1)), "JPEG"),
        "one pixel": encoded(Image.new("RGB", (1, 1)), "PNG"),
        "one pixel, JPEG": encoded(Image.new("RGB", (1, 1)), "JPEG"),
        "100 scans": _scans(100), "5,000 scans": _scans(5000),
    }
    for kind in range(0xC0, 0xD0):  # arithmetic, lossless, hierarchical, or no frame at all
        found[f"frame {kind:x}"] = (
            photo[:frame.position + 1] + bytes([kind]) + photo[frame.position + 2:])
    for bits in (0, 1, 12, 16, 255):
        found[f"{bits} bits"] = (
            photo[:frame.position + 4] + bytes([bits]) + photo[frame.position + 5:])
    for name, content in (("JPEG", photo), ("progressive", waves)):
        for place in _markers(content):  # cut in each segment, with and without an end marker
            found[f"{name} cut at {place}"] = content[:place + 3]
            found[f"{name} cut and ended at {place}"] = content[:place + 3] + b"\xff\xd9"
    return found


def _markers(jpeg):
    return [place for place in range(len(jpeg) - 1)
            if jpeg[place] == 0xFF and jpeg[place + 1] not in (0, 0xFF)]


def cases(count, seed, with_large=True):
    """So many mutated files, seven of eight JPEG or PNG, then those made by hand."""
    rng, good = random.Random(seed), corpus()
    common_kinds = [kind for kind in good if kind.startswith(("JPEG", "PNG"))]
    others = [kind for kind in good if kind not in common_kinds]
    for number in range(count):
        kind = rng.choice(others if number % 8 == 7 else common_kinds)
        hot = [(0, FIRST if kind.startswith("JPEG") else 64)]
        content = mutate(good[kind], rng, hot, good[rng.choice(list(good))])
        if kind.startswith("PNG") and rng.random() < 0.6:
            content = with_checksums(content)
        yield Case(kind, (kind, content))
    for name, content in fixed().items():
        yield Case("made by hand", (name, content))
    for content in large().values() if with_large else ():
        yield Case(LARGE, (LARGE, content))


# -------------------------------------------------------------------------------------------- judge


def judge(case, folder):
    """"refused"; "read" by Pillow, or "read by both"; "damage unseen": it lies below the crop."""
    kind, content = case
    path, good = (os.path.join(folder, name) for name in ("case.jpg", "good.png"))
    with open(path, "wb") as file:
        file.write(content)
    if not os.path.exists(good):
        picture(64, 48).save(good)
    samples = Files([(path, 0), (good, 1)])
    if kind == LARGE:  # the one way that has all decoders in it; each more takes as long again
        return "refused" if _trained(samples, True) else "read"
    is_read = _is_read(content)
    exact, fast = (not _trained(samples, is_fast) for is_fast in (False, True))
    assert exact == is_read, (exact, is_read)
    assert fast or not exact, "the fast way refuses what Pillow reads"
    _check_others(samples, path, is_read)
    if not is_read and fast:
        assert not _is_taken_whole(content), "the fast way sees no damage where Pillow does"
        return "damage unseen"
    if not is_read:
        return "refused"
    return "read by both" if _is_taken_whole(content) else "read"


def _is_read(content):
    """Whether it is an image, which must be the one that torchvision's loader finds there."""
    try:
        image = imagefile.decode(content)
    except imagefile.BadImage as error:
        assert not is_out_of_memory(error), error
        check_sentence(printable(error), 300)
        if str(error).startswith("damaged"):
            assert _by_pillow(content) is None, f"Pillow reads it: {error}"
        return False
    assert image.mode == "RGB" and image.width * image.height <= imagefile.MAX_PIXELS
    if image.width * image.height > 1 << 24:  # two of them would be too much
        return True
    theirs = _by_pillow(content)
    assert theirs is not None, "Pillow refuses it"
    if theirs.info["mode"] not in ("I", "I;16", "I;16B"):  # which Pillow clips
        assert image.size == theirs.size and image.tobytes() == theirs.tobytes()
    return True


def _by_pillow(content):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content)) as image:
                mode = image.mode
                image = image.convert("RGB")
                image.info = {"mode": mode}
                return image
    except Exception:  # noqa: BLE001  (of many kinds)
        return None


def _trained(samples, fast):
    """Whether another image took the place of the first."""
    images = data.Transformed(samples, data.train_transform(SIDE), 1, fast, replaces=True,
                              patience=0.0)
    array, label, *bad = images[0, 0]
    assert (array.shape, array.dtype) == ((3, SIDE, SIDE), np.uint8)
    assert label == (1 if bad else 0)
    for found in bad[0] if bad else ():
        assert found.path == samples.path(0) and "MemoryError" not in found.reason, found
        check_sentence(printable(found.reason), 300)
    return bool(bad)


def _check_others(samples, path, is_read):
    """Validation and prediction: an array, or an error that names the file."""
    validation = data.Transformed(samples, data.val_transform(SIDE), patience=0.0)
    for read, wanted in ((lambda: validation[0, 0][0], OSError),
                         (lambda: prepare.read_image(path), ValueError)):
        try:
            found = read()
        except wanted as error:
            assert not is_read and path in str(error), error
            check_sentence(printable(error), 500)
        else:
            assert is_read and found is not None


def _is_taken_whole(content):
    """Whether the fast way takes it and looks at all of it."""
    try:
        header = decode.read_header(content)
        decode.crop(content, decode.Box(0, 0, header.height, header.width), SIDE)
    except decode.Refused:
        return False
    return True


def run(count=1000, seed=0, keep=None, with_large=True):
    """Judge so many mutated files and those made by hand; returns common.Totals."""
    return judge_all("image files", cases(count, seed, with_large), judge, keep)


def main(argv=None):
    return common.command(run, __doc__.splitlines()[0], 1000, argv)


if __name__ == "__main__":
    sys.exit(main())

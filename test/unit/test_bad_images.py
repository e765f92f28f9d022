"""What each odd kind of image file gives: an image as documented, or a refusal that says why."""
import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from mobilenetv3 import data, prepare
from mobilenetv3.data import decode, imagefile, transforms
from mobilenetv3.data.sources import Files


def noise(width=60, height=40, seed=0):
    pixels = np.random.RandomState(seed).randint(0, 255, (height, width, 3)).astype(np.uint8)
    return Image.fromarray(pixels)


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_of_size(width, height, extra=b""):
    """A PNG that says it has that size, and has no pixels."""
    def chunk(kind, body):
        body = kind + body
        return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", b"") + chunk(
        b"IEND", b"")


def resized(jpeg, width, height):
    """A JPEG whose header says another size."""
    place = imagefile.jpeg_frame(jpeg).position
    return jpeg[:place + 5] + struct.pack(">HH", height, width) + jpeg[place + 9:]


def scans(count, width=64, height=64):
    """A progressive JPEG that has its last scan so many times more."""
    content = encoded(Image.new("RGB", (64, 64), (9, 99, 199)), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return resized(content[:-2] + content[last:-2] * count + b"\xff\xd9", width, height)


# --------------------------------------------------------------------------------- as torchvision


@pytest.mark.parametrize("mode, kind", [
    ("CMYK", "JPEG"), ("L", "JPEG"), ("L", "PNG"), ("LA", "PNG"), ("RGBA", "PNG"), ("P", "PNG"),
    ("1", "PNG"), ("P", "GIF"), ("RGB", "BMP"), ("RGB", "TIFF"), ("RGB", "PPM"), ("RGB", "WEBP"),
])
def test_an_image_of_any_mode_becomes_rgb_as_torchvisions_loader_makes_it(tmp_path, mode, kind):
    from torchvision.datasets.folder import pil_loader

    path = tmp_path / "image.png"  # whatever the file is called
    path.write_bytes(encoded(noise().convert(mode), kind))
    found = imagefile.decode(path.read_bytes())
    assert (found.mode, found.size) == ("RGB", (60, 40))
    assert found.tobytes() == pil_loader(str(path)).tobytes()


def test_alpha_is_dropped_and_not_blended():
    clear = Image.new("RGBA", (9, 9), (200, 100, 50, 0))
    assert imagefile.decode(encoded(clear, "PNG")).getpixel((4, 4)) == (200, 100, 50)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    red, green, blue = imagefile.decode(content).getpixel((10, 10))
    assert red > 200 and green < 50 and blue < 50


def test_an_image_is_not_turned_as_its_exif_says():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    content = encoded(noise(60, 40), "JPEG", exif=exif.tobytes())
    assert imagefile.decode(content).size == (60, 40)
    assert imagefile.decode(content).getexif()[0x0112] == 6  # predict.py --exif asks for it


# ------------------------------------------------------------------------- otherwise than there


def test_of_sixteen_bits_the_upper_eight_are_kept_rather_than_clipped_to_white(tmp_path):
    ramp = (np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16)  # 0 to 65520
    expected = np.stack([ramp // 256] * 3, -1)
    files = {"png": encoded(Image.fromarray(ramp), "PNG"),
             "tif": encoded(Image.fromarray(ramp), "TIFF"),
             "pgm": b"P5 64 64 65535\n" + ramp.astype(">u2").tobytes()}
    for name, content in files.items():
        assert np.array_equal(np.asarray(imagefile.decode(content)), expected), name
    path = tmp_path / "deep.png"
    path.write_bytes(files["png"])
    clipped = np.asarray(Image.open(str(path)).convert("RGB"))
    assert clipped.mean() > 250  # which is what Pillow does by itself
    assert np.array_equal(np.asarray(prepare.read_image(path)), expected)
    with Image.open(str(path)) as opened:
        assert np.array_equal(np.asarray(prepare.read_image(opened)), expected)
    samples = Files([(str(path), 0)])
    assert np.array_equal(np.asarray(samples[0][0]), expected)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_of_32_bits_are_refused_for_they_may_mean_anything(kind):
    content = encoded(Image.fromarray(np.ones((9, 9), kind)), "TIFF")
    with pytest.raises(imagefile.BadImage, match="32 bits"):
        imagefile.decode(content)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 1), (1, 3000), (3000, 1)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_smallest_and_the_longest_images_are_enlarged(tmp_path, size, kind):
    path = tmp_path / "tiny"
    path.write_bytes(encoded(Image.new("RGB", size, (10, 20, 30)), kind))
    samples = Files([(str(path), 0)])
    for transform in (data.train_transform(32), data.train_transform(32, aa="rand-m9-mstd0.5"),
                      data.train_transform(32, no_aug=True), data.val_transform(32)):
        array, _ = data.Transformed(samples, transform, 1, fast=True)[0, 0]
        assert array.shape == (3, 32, 32)
    assert np.abs(array[:, 16, 16].astype(int) - (10, 20, 30)).max() <= 3


def test_the_middle_of_a_strip_is_resized_as_the_whole_would_be():
    from torchvision import transforms as tv

    whole = tv.Compose([tv.Resize(36), tv.CenterCrop(32)])
    strip = noise(20, 2000)  # 100 times as high as wide; the crop sees less than 2 times
    assert transforms.without_ends(strip).size == (20, 1000)
    found = data.val_transform(32, 32 / 36)(strip).transpose(1, 2, 0)
    assert np.array_equal(found, np.asarray(whole(strip)))
    assert transforms.without_ends(noise(60, 40)).size == (60, 40)


# ---------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize("content, reason", [
    (b"", "the file is empty"), (bytes(4000), "begins with zeros"),
    (b"<!DOCTYPE html>", "begins with b'<!DOCTYPE ht"),
    (encoded(noise(), "EPS"), "not an image of a kind that is read here"),
    (encoded(noise(), "JPEG")[:-900], "damaged: "), (encoded(noise(), "PNG")[:-900], "damaged: "),
    (png_of_size(20000, 20000), "too large"),
    (png_of_size(11000, 11000), "too large: 11000 x 11000 pixels; at most 100,000,000"),
    (resized(encoded(noise(), "JPEG"), 65000, 65000), "too large"),
])
def test_a_file_that_is_no_usable_image_is_refused_with_the_reason(content, reason):
    with pytest.raises(imagefile.BadImage) as error:
        imagefile.decode(content)
    assert reason in str(error.value)
    assert "\n" not in str(error.value) and "0x" not in str(error.value)  # no address of an object


@pytest.mark.parametrize("where", ["open", "load"])
def test_too_little_memory_is_no_fault_of_the_file(monkeypatch, where):
    """A good image was called damaged, and another took its place."""
    def fail(*words, **options):
        raise MemoryError

    content = encoded(noise(), "PNG")
    monkeypatch.setattr(*((Image, "open") if where == "open" else (
        PngImagePlugin.PngImageFile, "load")), fail)
    with pytest.raises(MemoryError):
        imagefile.decode(content)


def test_an_image_that_pillow_warns_of_is_read_without_a_warning(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60 * 40 - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert imagefile.decode(encoded(noise(), "PNG")).size == (60, 40)
    monkeypatch.setattr(imagefile, "MAX_PIXELS", 60 * 40 - 1)
    with pytest.raises(imagefile.BadImage, match="60 x 40 pixels; at most 2,399"):
        imagefile.decode(encoded(noise(), "PNG"))


@pytest.mark.parametrize("count, size, is_refused", [
    (0, (64, 64), False),
    (900, (64, 64), False),       # 910 x 4,096: nothing
    (900, (8000, 7500), True),    # 910 x 60 million: a minute
    (0, (9000, 9000), True),      # 81 million, of which the coefficients alone are 0.5 GB
])
def test_a_jpeg_of_many_scans_is_refused_where_they_would_take_long(count, size, is_refused):
    content = scans(count, *size)
    frame = imagefile.jpeg_frame(content)
    assert (frame.kind, frame.is_one_scan) == (0xC2, False)
    if not is_refused:
        imagefile.check_scans(content, frame, size[0] * size[1])
        assert imagefile.decode(content).size == size
        return
    with pytest.raises(imagefile.BadImage, match="in several scans"):
        imagefile.decode(content)
    with pytest.raises(decode.Refused):
        decode.read_header(content)


def test_scans_of_a_thumbnail_and_of_a_comment_are_not_counted():
    content = encoded(noise(), "JPEG", comment=b"\xff\xda" * 20000)
    assert imagefile.jpeg_frame(content).is_one_scan
    assert imagefile.decode(content).size == (60, 40)


@pytest.mark.parametrize("change", [
    lambda jpeg, frame: jpeg[:frame.position] + b"\xff\x01" + jpeg[frame.position:],
    lambda jpeg, frame: jpeg[:frame.position] + b"\xff\xd0" + jpeg[frame.position:],
    lambda jpeg, frame: jpeg[:frame.position] + jpeg[frame.position:frame.scan] * 2,
    lambda jpeg, frame: jpeg[:frame.scan], lambda jpeg, frame: jpeg[:frame.position + 3],
    lambda jpeg, frame: b"\xff\xd8\xff", lambda jpeg, frame: b"",
])
def test_segments_as_no_encoder_writes_them_are_left_to_pillow(change):
    jpeg = encoded(noise(), "JPEG")
    changed = change(jpeg, imagefile.jpeg_frame(jpeg))
    assert imagefile.jpeg_frame(changed) is None
    with pytest.raises(decode.Refused):
        decode.read_header(changed + b"\xff\xd9")


def test_a_jpeg_with_much_between_its_segments_is_refused_before_pillow_walks_through_it():
    jpeg = encoded(noise(), "JPEG")
    for odd in (b"\xff", b"\0"):
        few = jpeg[:20] + odd * 2000 + jpeg[20:]  # after the first segment
        assert imagefile.jpeg_frame(few) is None
        assert imagefile.decode(few).size == (60, 40)
        with pytest.raises(imagefile.BadImage, match="whose segments are not side by side may"):
            imagefile.decode(jpeg[:20] + odd * imagefile.MAX_ODD_BYTES + jpeg[20:])


@pytest.mark.skipif(not decode.is_available(), reason="needs simplejpeg")
def test_a_jpeg_of_two_colours_does_not_end_the_run():
    """simplejpeg answers with a KeyError, which nothing caught."""
    jpeg = encoded(noise(), "JPEG", subsampling=0)
    frame = imagefile.jpeg_frame(jpeg)
    length = struct.unpack(">H", jpeg[frame.position + 2:frame.position + 4])[0]
    head = jpeg[frame.position:frame.position + 9]
    head = head[:2] + struct.pack(">H", length - 3) + head[4:] + b"\x02"
    two = jpeg[:frame.position] + head + jpeg[frame.position + 10:frame.position + 16] + jpeg[
        frame.position + 2 + length:]
    with pytest.raises(decode.Refused):
        decode.read_header(two)


# ------------------------------------------------------------------------------------------- files


def test_a_pipe_is_refused_rather_than_waited_for(tmp_path):
    path = tmp_path / "pipe.jpg"
    os.mkfifo(str(path))
    with pytest.raises(imagefile.BadImage, match="a pipe or a device"):
        imagefile.read(str(path))
    with pytest.raises(imagefile.BadImage, match="a pipe or a device"):
        imagefile.read("/dev/zero")


def test_a_file_larger_than_any_image_is_not_read(tmp_path):
    path = tmp_path / "large.jpg"
    with open(str(path), "wb") as file:
        file.truncate(imagefile.MAX_BYTES + 1)  # takes no room on the disk
    with pytest.raises(imagefile.BadImage, match="too large: 536,870,913 bytes"):
        imagefile.read(str(path))

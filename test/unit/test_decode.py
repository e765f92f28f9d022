"""The short way from a JPEG to a crop against Pillow's."""
import io
import os
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from mobilenetv3 import data, device
from mobilenetv3.data import decode, imagefile, transforms
from mobilenetv3.data.sources import Files, Source

needs_simplejpeg = pytest.mark.skipif(not decode.is_available(), reason="needs simplejpeg")
ROUNDING = 0.5
"""Of 255, mean over pixels: two resizers of the same filter round differently, by 1 at most, and
most where the sizes make many halves."""
SCALED = 2.0
"""Where the DCT halves first, the filter is another; photographs differ by 1.1 on average."""


def photograph(width, height, seed=0):
    """Noise whose amplitude falls with the frequency, as in photographs."""
    random = np.random.RandomState(seed)
    steps = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    steps[0, 0] = np.inf
    planes = [np.fft.irfft2(np.fft.rfft2(random.standard_normal((height, width))) / steps,
                            (height, width)) for _ in range(3)]
    colours = np.stack(planes, -1) / np.std(planes)
    return Image.fromarray((128 + 50 * colours).clip(0, 255).astype(np.uint8))


def jpeg(width=400, height=300, mode="RGB", seed=0, **options):
    file = io.BytesIO()
    options = dict({"quality": 85}, **options)
    photograph(width, height, seed).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def write(folder, *contents):
    """Files of JPEGs, as a source has them."""
    samples = []
    for number, content in enumerate(contents):
        path = folder / f"{number}.jpg"
        path.write_bytes(content)
        samples.append((str(path), number))
    return Files(samples)


def pair(samples, transform, seed=1):
    """The data set by Pillow's way, and by the short one."""
    return [data.Transformed(samples, transform, seed, fast) for fast in (False, True)]


def differences(exact, fast, epochs=3):
    keys = [(epoch, index) for epoch in range(epochs) for index in range(len(exact))]
    return [np.abs(exact[key][0].astype(int) - fast[key][0]).mean() for key in keys]


FORMS = {
    "4:2:0": {}, "4:2:2": {"subsampling": 1}, "4:4:4": {"subsampling": 0},
    "grey": {"mode": "L"}, "progressive": {"progressive": True}, "optimized": {"optimize": True},
    "with comment": {"comment": b"\xff\xc0 is no frame here"}, "odd": {"width": 333, "height": 251},
}


@needs_simplejpeg
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "random"])
def test_crops_flips_and_pixels_are_those_of_the_exact_way(tmp_path, interpolation):
    samples = write(tmp_path, *(jpeg(**form) for form in FORMS.values()))
    transform = data.train_transform(160, scale=(0.3, 1.0), vflip=0.5, interpolation=interpolation)
    exact, fast = pair(samples, transform)
    found = differences(exact, fast)
    # A crop that is one pixel off, or flipped, differs by far more than rounding.
    assert max(found) < (1e-9 if interpolation == "nearest" else ROUNDING)
    assert np.mean(found) < ROUNDING / 5
    assert fast.refused == 0
    assert [fast[0, index][1] for index in range(len(fast))] == list(range(len(fast)))


@needs_simplejpeg
def test_large_photographs_are_scaled_while_they_are_decoded(tmp_path, monkeypatch):
    sizes = [(1600, 1200), (1201, 1603)]
    samples = write(tmp_path, *(jpeg(*size, quality=90) for size in sizes))
    exact, fast = pair(samples, data.train_transform(64))
    decoded = []
    whole = decode._pixels

    def noted(*args):
        decoded.append(whole(*args))
        return decoded[-1]

    monkeypatch.setattr(decode, "_pixels", noted)
    assert np.mean(differences(exact, fast)) < SCALED
    assert len(decoded) == 6  # of two photographs in three epochs
    # A crop of 8 % of the area, the least there is, still has 4 pixels for each of the result's.
    assert all(pixels.shape[1] <= 601 for pixels in decoded)


@needs_simplejpeg
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("side", [40, 200], ids=["scaled", "whole"])
def test_rows_that_are_left_out_change_nothing(form, side, monkeypatch):
    content = jpeg(**FORMS[form])
    boxes = [decode.Box(0, 0, rows, 200) for rows in (111, 112, 127, 128, 129, 130, 143, 144)]
    short = [np.asarray(transforms.to_array(decode.crop(content, box, side))) for box in boxes]
    cut = decode._cut(content, decode.read_header(content).frame, 130)
    assert (cut == content) == (form == "progressive")
    monkeypatch.setattr(decode, "_cut", lambda content, frame, rows: content)
    for box, found in zip(boxes, short):
        assert np.array_equal(found, transforms.to_array(decode.crop(content, box, side))), box


@needs_simplejpeg
@pytest.mark.parametrize("options", [{"aa": "rand-m9-mstd0.5"}, {"color_jitter": 0.4}])
def test_colour_gets_a_pil_image_and_the_same_random_numbers(tmp_path, options):
    exact, fast = pair(write(tmp_path, jpeg()), data.train_transform(160, scale=(0.5, 1.0),
                                                                      **options))
    # Policies such as posterize turn a difference of 1 into a larger one.
    assert np.median(differences(exact, fast, epochs=9)) < ROUNDING
    assert fast.refused == 0


def png():
    file = io.BytesIO()
    photograph(90, 70).save(file, "PNG")
    return file.getvalue()


@needs_simplejpeg
def test_what_the_decoder_does_not_take_pillow_decodes_and_it_is_counted(tmp_path):
    samples = write(tmp_path, png(), jpeg(mode="CMYK"), jpeg(), jpeg() + bytes(1000))
    exact, fast = pair(samples, data.train_transform(64, scale=(0.9, 1.0)))
    for refused in (0, 1, 3):
        assert np.array_equal(exact[0, refused][0], fast[0, refused][0])
    assert fast.refused == 3


@needs_simplejpeg
def test_images_without_a_size_to_trust_are_left_to_pillow(monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 400 * 300 - 1)
    with pytest.raises(decode.Refused):
        decode.read_header(jpeg())


@needs_simplejpeg
def test_a_file_that_is_cut_short_is_an_error_that_names_it(tmp_path):
    samples = write(tmp_path, jpeg()[:-3000])
    with pytest.raises(OSError, match="0.jpg"):
        data.Transformed(samples, data.train_transform(64), 1, fast=True)[0, 0]


@needs_simplejpeg
def test_refusals_of_all_workers_are_told_once(tmp_path):
    samples = write(tmp_path, *[png(), jpeg()] * 4)
    loader = data.train_loader(
        Source(samples, list("abcdefgh"), "x"), device.select("cpu"), rank=0, world=1, batch_size=2,
        workers=2, transform=data.train_transform(32), mean=data.IMAGENET_MEAN,
        std=data.IMAGENET_STD, seed=0, fast=True,
    )
    assert loader.decode_note.startswith("=> --decode fast: JPEG by simplejpeg")
    assert loader.refused_note() == ""
    assert sum(len(labels) for _, labels in loader) == 8
    # Another rank's 3 were left out, when rank 0 told of its own alone.
    assert "Pillow decoded 7 images" in loader.refused_note(lambda own: own + 3)
    assert loader.refused_note(lambda own: own + 3) == ""


def test_without_simplejpeg_pillow_decodes_and_the_log_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "simplejpeg", None)
    exact, fast = pair(write(tmp_path, jpeg()), data.train_transform(64))
    assert np.array_equal(exact[0, 0][0], fast[0, 0][0])
    assert "needs simplejpeg" in fast.note
    assert (fast.refused, exact.note) == (0, "")


def test_no_augmentation_and_sources_without_files_take_the_exact_way(tmp_path):
    samples = write(tmp_path, jpeg())
    for source, transform in (
        (samples, data.train_transform(64, no_aug=True)), (samples, data.val_transform(64)),
        ([(photograph(80, 60), 0)], data.train_transform(64)),
    ):
        found = data.Transformed(source, transform, 1, fast=True)
        assert not found.is_fast
        assert (found.note, found[0, 0][0].shape) == ("", (3, 64, 64))


@needs_simplejpeg
def test_both_resizers_agree(monkeypatch):
    content, box = jpeg(), decode.Box(11, 23, 200, 250)
    by_torch = transforms.to_array(decode.crop(content, box, 128)).astype(int)
    monkeypatch.setattr(decode, "_RESIZES_BY_TORCH", False)
    by_pillow = transforms.to_array(decode.crop(content, box, 128))
    assert np.abs(by_torch - by_pillow).max() <= 1


@needs_simplejpeg
def test_imagenets_photographs_differ_by_what_the_help_says():
    folder = os.environ.get("MOBILENETV3_TEST_DATA", "")
    path = os.path.join(folder, "imagenet_sample_400.tar")
    if not os.path.exists(path):
        pytest.skip("needs imagenet_sample_400.tar in $MOBILENETV3_TEST_DATA")
    with tarfile.open(path) as tar:
        contents = [tar.extractfile(member).read() for member in tar if member.isfile()][::4]

    class Contents:
        """A source in memory."""

        def __len__(self):
            return len(contents)

        def __getitem__(self, index):
            return Image.open(io.BytesIO(contents[index])).convert("RGB"), 0

        def encoded(self, index):
            return contents[index], 0

    exact, fast = pair(Contents(), data.train_transform(224))
    assert np.mean(differences(exact, fast, epochs=1)) < 0.1  # 0.06 over all 400
    assert fast.refused == 0


def test_the_generator_of_a_card_is_not_seeded_by_images(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "manual_seed", None)  # it seeds every card's
    samples = data.Transformed(write(tmp_path, jpeg()), data.train_transform(32), seed=1)
    assert samples[0, 0][0].shape == (3, 32, 32)


@needs_simplejpeg
@pytest.mark.parametrize("by_torch", [True, False])
def test_an_image_outlives_the_memory_that_the_next_is_decoded_into(by_torch, monkeypatch):
    if not by_torch:
        monkeypatch.setattr(decode, "_RESIZES_BY_TORCH", False)
    whole = decode.Box(0, 0, 64, 64)  # nothing to cut off and nothing to resize
    first = transforms.to_array(decode.crop(jpeg(64, 64), whole, 64))
    before = first.copy()
    decode.crop(jpeg(64, 64, seed=1), whole, 64)
    assert np.array_equal(first, before)


@needs_simplejpeg
def test_images_larger_than_the_memory_kept_for_them_are_decoded(monkeypatch):
    content, box = jpeg(), decode.Box(0, 0, 300, 400)
    kept = transforms.to_array(decode.crop(content, box, 200))
    monkeypatch.setattr(decode, "SCRATCH", 1000)
    assert np.array_equal(transforms.to_array(decode.crop(content, box, 200)), kept)


def broken(content):
    """A JPEG whose header is fine, and of which no pixel can be decoded."""
    frame = imagefile.jpeg_frame(content)
    return content[: frame.scan + 12] + b"\xff\xd9"


@needs_simplejpeg
@pytest.mark.parametrize("form", ["4:2:0", "4:4:4", "grey", "progressive"])
def test_a_jpeg_that_cannot_be_decoded_is_not_the_image_before_it(form):
    """simplejpeg, when not strict, returns what the memory held, and no error."""
    box, content = decode.Box(0, 0, 300, 400), jpeg(**FORMS[form])
    decode.crop(jpeg(seed=1), box, 100)
    table = content.index(b"\xff\xc4")  # the first Huffman table, made one that cannot be
    for damaged in (broken(content), content[: table + 5] + b"\xff" * 16 + content[table + 21 :]):
        with pytest.raises(decode.Refused):
            decode.crop(damaged, box, 100)


@needs_simplejpeg
def test_rows_that_are_missing_in_the_crop_are_not_taken_for_rows_that_are_left_out(tmp_path):
    content = jpeg(400, 300, quality=95)
    cut = content[: len(content) // 2] + b"\xff\xd9"
    top, whole = decode.Box(0, 0, 100, 100), decode.Box(0, 0, 300, 400)
    assert np.array_equal(transforms.to_array(decode.crop(cut, top, 64)),
                          transforms.to_array(decode.crop(content, top, 64)))
    with pytest.raises(decode.Refused):
        decode.crop(cut, whole, 64)


@needs_simplejpeg
def test_restart_markers_among_rows_that_are_left_out_are_no_damage():
    content = jpeg(restart_marker_blocks=3)
    if b"\xff\xd0" not in content:
        pytest.skip("this Pillow writes no restart markers")
    box = decode.Box(20, 30, 100, 200)
    assert np.array_equal(transforms.to_array(decode.crop(content, box, 64)),
                          transforms.to_array(decode.crop(jpeg(), box, 64)))

"""Prepared sets as sources of images: every one once, and nothing that a damaged set can do."""
import io
import json
import os
import pickle
import random
import shutil
import zlib
from collections import Counter

import numpy as np
import pytest
import shardsets
from PIL import Image

from mobilenetv3 import data, device
from mobilenetv3.data import decode, imagefile, manifest, samplers, shards

CPU = device.select("cpu")
PLENTY = shardsets.PLENTY


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared set")
    shardsets.prepared(folder)
    return folder / "dst"


@pytest.fixture
def copy(whole, tmp_path):
    """A set that a test may damage."""
    shutil.copytree(str(whole), str(tmp_path / "dst"))
    return tmp_path / "dst"


def source_of(root, split="train"):
    return data.open_source("folder", str(root), split)


# ---- As a source


def test_a_prepared_set_is_the_folder_that_it_was_made_of(whole):
    for split in ("train", "val"):
        found = source_of(whole, split)
        folder = source_of(whole.parent / "src", split)
        assert (found.classes, len(found.samples)) == (folder.classes, len(folder.samples))
        # Every image has a class of its own, and all were copied.
        wanted = {label: content for content, label in map(folder.samples.encoded, range(PLENTY))}
        assert {label: content for content, label in
                map(found.samples.encoded, range(PLENTY))} == wanted
        image, label = found.samples[3]
        assert image.mode == "RGB"
        assert image.tobytes() == imagefile.decode(wanted[label]).tobytes()
    assert found.name == "dst"
    assert found.note.startswith("=> val: 24 images in ")


def test_both_splits_fit_together_and_train_as_any_folder_does(whole):
    train = data.check_pair(source_of(whole), source_of(whole, "val"), "train", "val")
    loader = data.train_loader(
        train, CPU, rank=0, world=1, batch_size=8, workers=0, seed=1,
        transform=data.train_transform(16), mean=(0,) * 3, std=(1,) * 3, fast=True)
    assert loader.loader.dataset.is_fast == decode.is_available()
    loader.set_epoch(0)
    assert [tuple(images.shape) for images, _ in loader] == [(8, 3, 16, 16)] * 3
    assert isinstance(loader.loader.batch_sampler.order, samplers.WindowOrder)


def test_a_missing_split_names_those_that_are_there(whole):
    with pytest.raises(FileNotFoundError, match=r"no split 'test' \(it has: train, val\)"):
        source_of(whole, "test")


def test_imagenet_means_a_thousand_classes_here_too(whole):
    with pytest.raises(ValueError, match="expects 1000 classes, .* has 24"):
        data.open_source("imagenet", str(whole), "train")


def test_labels_of_a_flat_folder_do_not_go_with_a_prepared_set(whole):
    with pytest.raises(ValueError, match="dst is a prepared set, which has labels of its own"):
        data.open_source("folder", str(whole), "val", labels="val.txt")


def test_a_folder_with_class_folders_is_a_folder_whatever_else_lies_in_it(whole, tmp_path):
    shutil.copytree(str(whole.parent / "src"), str(tmp_path / "src"))
    (tmp_path / "src" / "manifest.json").write_text("of something else")
    assert len(source_of(tmp_path / "src").samples) == PLENTY


def test_samples_cross_to_other_processes_by_name_not_by_content(whole):
    samples = source_of(whole).samples
    expected = [samples.encoded(index) for index in range(PLENTY)]
    text = pickle.dumps(samples)
    assert len(text) < 2000  # the rows of the index alone would be 24 bytes each, objects far more
    again = pickle.loads(text)
    assert [again.encoded(index) for index in range(PLENTY)] == expected
    same = shardsets.in_child(
        lambda: 7 if [samples.encoded(index) for index in range(PLENTY)] == expected else 8)
    assert same == 7
    assert isinstance(samples._rows.base, np.memmap) or isinstance(samples._rows, np.memmap)


def test_more_shards_than_may_be_open_are_read_all_the_same(whole, monkeypatch):
    monkeypatch.setattr(shards, "OPEN_FILES", 2)
    samples = source_of(whole).samples
    before = len(os.listdir("/proc/self/fd"))
    found = {samples.encoded(index % PLENTY)[1] for index in range(0, 5 * PLENTY, 5)}
    assert found == set(range(PLENTY))
    assert len(os.listdir("/proc/self/fd")) == before + 2


# ---- Every image exactly once


class Labels:
    """Stands for the transform: what tells an image is its label."""

    def __call__(self, image):
        return np.zeros((3, 1, 1), np.uint8)


def labels_of(loader):
    return [int(label) for _, labels in loader for label in labels]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """96 images, so that five workers of each of eight ranks have batches of two to make."""
    return shardsets.prepared(tmp_path_factory.mktemp("larger set"), images=96)


@pytest.mark.parametrize("workers", [0, 2, 5])
@pytest.mark.parametrize("world", [1, 3, 8])
def test_every_image_comes_exactly_once_an_epoch(large, world, workers):
    samples = source_of(large).samples
    epochs = [[], []]
    for rank in range(world):
        order = samplers.WindowOrder(samples.shard_sizes, window=10)  # ten windows
        sampler = samplers.TrainSampler(96, 2 * world, rank, world, 5, order)
        assert len(sampler) == 48 // world  # 6 at the least, of which every worker makes one
        loader = data.build_loader(
            data.Transformed(samples, Labels(), seed=5), sampler, CPU, workers, seed=5)
        for epoch, found in enumerate(epochs):
            sampler.epoch = epoch
            found += labels_of(loader)
    for found in epochs:
        assert Counter(found) == Counter(range(96))
    assert epochs[0] != epochs[1]

    val, found = source_of(large, "val").samples, []
    for rank in range(world):
        sampler = samplers.ValSampler(len(val), 2, rank, world)
        found += labels_of(data.build_loader(
            data.Transformed(val, Labels()), sampler, CPU, workers, seed=0))
    assert Counter(found) == Counter(range(96))


@pytest.mark.parametrize("world", [1, 3, 8])
def test_validation_of_any_number_of_images_takes_each_once(tmp_path, world):
    val = source_of(shardsets.prepared(tmp_path, images=13), "val").samples
    found = []
    for rank in range(world):
        sampler = samplers.ValSampler(len(val), 2, rank, world)
        found += labels_of(data.build_loader(
            data.Transformed(val, Labels()), sampler, CPU, 0, seed=0))
    assert Counter(found) == Counter(range(13))


# ---- Damage


def changed(path, place, content):
    with open(str(path), "r+b") as file:
        file.seek(place)
        file.write(content)


def test_a_damaged_sample_is_an_error_that_names_shard_key_and_original_path(copy):
    samples = source_of(copy, "val").samples
    offset = int(samples._rows["offset"][1])
    changed(copy / "val-000000.tar", offset + 300, b"\x5a")
    with pytest.raises(OSError, match="damaged: its checksum is not the one in the index"):
        samples.encoded(1)
    with pytest.raises(OSError) as caught:
        data.Transformed(samples, data.val_transform(16))[(0, 1)]
    assert f"{copy / 'val-000000.tar'}: 00000001 (was val/c001/photo.1.jpg)" in str(caught.value)
    assert samples.encoded(0)[1] == 0 and samples.encoded(2)[1] == 2


def test_a_damaged_training_sample_gives_way_to_another_and_is_reported(copy):
    samples = source_of(copy).samples
    changed(copy / "train-000000.tar", int(samples._rows["offset"][0]) + 300, b"\x5a")
    images = data.Transformed(samples, data.train_transform(16), seed=1, replaces=True)
    _, label, bad = images[(0, 0)]
    assert label != samples._rows["label"][0]
    assert "train-000000.tar: 00000000 (was train/" in bad[0].path


def test_a_damaged_header_still_gives_a_name(copy):
    samples = source_of(copy, "val").samples
    offset = int(samples._rows["offset"][1])
    changed(copy / "val-000000.tar", offset - 512, b"\x1b[31m" * 100)
    assert samples.path(1) == f"{copy / 'val-000000.tar'}: sample 1"


def test_a_shard_of_another_size_is_refused_at_the_start(copy):
    path = copy / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(ValueError, match="train-000001.tar has .* should have .*--verify"):
        source_of(copy)
    assert source_of(copy, "val")  # the other split is whole


def test_a_shard_that_changes_or_goes_later_ends_the_run(copy):
    samples = source_of(copy, "val").samples
    (copy / "val-000000.tar").write_bytes(b"short")
    with pytest.raises(manifest.Lost, match="has 5 bytes by now"):
        samples.encoded(0)
    (copy / "val-000000.tar").unlink()
    with pytest.raises(manifest.Lost, match="val-000000.tar is gone"):
        data.Transformed(samples, data.val_transform(16))[(0, 0)]
    shutil.move(str(copy), str(copy.parent / "away"))  # all of it: a file system that comes back
    with pytest.raises(FileNotFoundError):
        samples.encoded(0)
    shutil.move(str(copy.parent / "away"), str(copy))


def test_a_read_that_failed_is_tried_on_a_file_that_is_opened_anew(whole, monkeypatch):
    samples = source_of(whole, "val").samples
    samples.encoded(0)
    pread, failures = os.pread, [OSError(116, "Stale file handle")]

    def stale(*arguments):
        if failures:
            raise failures.pop()
        return pread(*arguments)

    monkeypatch.setattr(os, "pread", stale)
    with pytest.raises(OSError, match="Stale"):
        samples.encoded(0)
    assert not samples._open
    assert samples.encoded(0)[1] == 0


def test_a_read_that_comes_in_pieces_is_put_together(whole, monkeypatch):
    samples = source_of(whole, "val").samples
    expected, pread = samples.encoded(0), os.pread
    monkeypatch.setattr(os, "pread", lambda file, length, at: pread(file, min(length, 100), at))
    assert samples.encoded(0) == expected


# ---- Hostile content


def rewritten(root, change):
    """Change the manifest."""
    path = root / "manifest.json"
    content = json.loads(path.read_text())
    change(content["splits"]["train"])
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", [
    "../train-000000.tar", "/etc/passwd", "a/b.tar", ".hidden", "", "a\n", "a\0", "x" * 200, 7,
    "..", "train-000001.tar",
])
def test_a_manifest_names_only_files_of_its_own_folder_each_once(copy, name):
    rewritten(copy, lambda train: train["shards"][0].update(name=name))
    with pytest.raises(ValueError, match="own folder|names a file twice"):
        source_of(copy)


@pytest.mark.parametrize("change", [
    lambda train: train.update(images=25),
    lambda train: train.update(images=True),
    lambda train: train.update(classes="abc"),
    lambda train: train["classes"].__setitem__(0, "c001"),
    lambda train: train.pop("index"),
    lambda train: train["shards"][0].update(bytes=-1),
    lambda train: train["shards"][0].update(bytes=1e9),
    lambda train: train["shards"][0].update(sha256="0"),
    lambda train: train["shards"][0].update(images=0),
    lambda train: train.update(shards={}),
    lambda train: train["index"].update(images=2 ** 70),
])
def test_a_manifest_that_contradicts_itself_is_refused_in_one_sentence(copy, change):
    rewritten(copy, change)
    with pytest.raises(ValueError, match="manifest.json"):
        source_of(copy)


@pytest.mark.parametrize("content, told", [
    (b"", "not JSON"),
    (b"[" * 100000, "not JSON"),
    (b"\xff\xfe", "not JSON"),
    (b"[]", "not of a set"),
    (b'{"format": "mobilenetv3-shards", "version": 2}', "of version 2, and this package reads 1"),
    (b'{"format": "mobilenetv3-shards", "version": 1}', "lacks 'arguments'"),
    (b'{"format": "mobilenetv3-shards", "version": 1, "arguments": {}, "splits": {"../x": {}}}',
     "no name of a split"),
])
def test_what_is_no_manifest_is_told_in_one_sentence(copy, content, told):
    (copy / "manifest.json").write_bytes(content)
    with pytest.raises(ValueError, match=told):
        source_of(copy)


def with_index(root, rows):
    """Put another index in the place of the first, with the checksum that belongs to it."""
    target = io.BytesIO()
    np.save(target, rows, allow_pickle=True)
    path = root / "train.index.npy"
    path.write_bytes(target.getvalue())
    rewritten(root, lambda train: train["index"].update(
        bytes=len(target.getvalue()), sha256=manifest.sha256(str(path))))


@pytest.mark.parametrize("column, value", [
    ("offset", 0), ("offset", 2 ** 64 - 4), ("offset", 2 ** 40), ("length", 0),
    ("length", 2 ** 32 - 1), ("label", 24), ("shard", 99), ("shard", 2),
])
def test_rows_outside_of_their_shard_or_the_classes_are_refused(copy, column, value):
    rows = np.load(str(copy / "train.index.npy"))
    rows[column][0] = value
    with_index(copy, rows)
    with pytest.raises(ValueError, match="train.index.npy"):
        source_of(copy)


@pytest.mark.parametrize("rows", [
    np.array([print, {}], object), np.zeros(24), np.zeros((24, 6), np.uint64),
    np.zeros(23, manifest.ROW),
], ids=["pickle", "numbers", "matrix", "short"])
def test_another_array_is_no_index_and_nothing_is_unpickled(copy, rows):
    with_index(copy, rows)
    with pytest.raises(ValueError, match="train.index.npy"):
        source_of(copy)


def test_a_changed_index_is_refused(copy):
    changed(copy / "train.index.npy", 200, b"\1")
    with pytest.raises(ValueError, match="train.index.npy is damaged: its SHA-256"):
        source_of(copy)


def test_no_change_of_a_few_bytes_does_more_than_an_error(whole, copy):
    """150 changes of the manifest, the index or a shard; the seed is fixed."""
    draw = random.Random(0)
    names = ["manifest.json", "train.index.npy", "train-000000.tar"]
    refused = 0
    for _ in range(150):
        name = draw.choice(names)
        content = bytearray((whole / name).read_bytes())
        place = draw.randrange(len(content))
        if draw.random() < 0.3:
            del content[place : place + draw.randrange(1, 40)]
        else:
            content[place : place + 1] = bytes(draw.randrange(256) for _ in range(3))[
                : draw.choice([1, 3])]
        (copy / name).write_bytes(content)
        try:
            samples = source_of(copy).samples
            for index in range(6):
                data.Transformed(samples, Labels())[(0, index)]
        except (ValueError, OSError, manifest.Lost) as error:
            refused += 1
            assert "\n" not in str(error)
        (copy / name).write_bytes((whole / name).read_bytes())
    # What is not noticed lies in a shard, in headers, filling and images that are not read, or in
    # the part of the manifest that says how the set came to be.
    assert refused > 100


def test_an_image_in_a_shard_that_is_none_is_a_bad_image(tmp_path):
    root = shardsets.prepared(tmp_path, images=2)
    samples = source_of(root, "val").samples
    row = samples._rows[0]
    changed(root / "val-000000.tar", int(row["offset"]), bytes(int(row["length"])))
    rows = np.load(str(root / "val.index.npy"))
    rows["crc"][0] = zlib.crc32(bytes(int(row["length"])))
    samples._rows = rows
    with pytest.raises(imagefile.BadImage):
        samples[0]
    assert isinstance(samples[1][0], Image.Image)

import multiprocessing
import os
import random
import signal
import time
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from mobilenetv3 import data, device
from mobilenetv3.data import demo, transforms
from mobilenetv3.data import loader as loading

CPU = device.select("cpu")


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("MOBILENETV3_CACHE", str(tmp_path_factory.mktemp("cache dir")))
    yield demo.folder()
    patch.undo()


def indices(sampler):
    return [index for batch in sampler for _, index in batch]


# Samplers

@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_global_batch_is_the_same_for_any_number_of_ranks(world):
    whole = list(data.TrainSampler(50, 8, 0, 1, seed=3))
    ranks = [list(data.TrainSampler(50, 8, rank, world, seed=3)) for rank in range(world)]
    for batch, parts in zip(whole, zip(*ranks)):
        assert batch == sum(parts, [])


def test_an_epoch_takes_every_image_at_most_once_and_drops_less_than_a_batch():
    sampler = data.TrainSampler(50, 8, 0, 1, seed=0)
    drawn = indices(sampler)
    assert len(drawn) == len(set(drawn)) == 48  # 6 full batches of 8
    assert len(sampler) == 6


def test_epochs_differ_and_repeat_with_the_seed():
    sampler, again = (data.TrainSampler(50, 8, 0, 1, seed=0) for _ in range(2))
    first = indices(sampler)
    sampler.epoch = again.epoch = 1
    assert indices(sampler) == indices(again) != first
    assert indices(data.TrainSampler(50, 8, 0, 1, seed=1)) != first


def test_a_batch_larger_than_the_set_is_an_error():
    with pytest.raises(ValueError, match="--batch_size 64 is larger than the training set of 50"):
        data.TrainSampler(50, 64, 0, 1, seed=0)


@pytest.mark.parametrize("images", [3, 10, 16, 17])
def test_validation_takes_every_image_exactly_once_over_eight_ranks(images):
    samplers = [data.ValSampler(images, 2, rank, 8) for rank in range(8)]
    assert Counter(sum((indices(s) for s in samplers), [])) == Counter(range(images))
    assert [len(s) for s in samplers] == [len(list(s)) for s in samplers]


# The demo set

def test_the_demo_is_a_stratified_folder_of_rgb_jpegs(demo_folder):
    counts = {
        split: Counter(p.parent.name for p in (demo_folder / split).rglob("*.jpg"))
        for split in ("train", "val")
    }
    assert (sum(counts["train"].values()), sum(counts["val"].values())) == (1437, 360)
    # 174 to 183 images a digit; a fifth of each is held out.
    assert set(counts["val"]) == set("0123456789")
    assert all(35 <= n <= 37 for n in counts["val"].values())
    image = Image.open(next(iter((demo_folder / "val").rglob("*.jpg"))))
    assert (image.size, image.mode, image.format) == ((64, 64), "RGB", "JPEG")


def test_no_demo_image_is_in_both_splits(demo_folder):
    names = [{p.name for p in (demo_folder / s).rglob("*.jpg")} for s in ("train", "val")]
    assert not names[0] & names[1]


def test_the_demo_is_written_once(demo_folder, monkeypatch):
    monkeypatch.setattr(demo, "_write", None)  # a second writing would fail
    assert demo.folder() == demo_folder


def test_a_writer_that_loses_the_race_reads_the_winners_files(tmp_path, monkeypatch):
    monkeypatch.setenv("MOBILENETV3_CACHE", str(tmp_path))

    def while_another_finishes(root):
        (tmp_path / "digits-v1" / "train").mkdir(parents=True)
        (root / "train").mkdir()

    monkeypatch.setattr(demo, "_write", while_another_finishes)
    assert demo.folder() == tmp_path / "digits-v1"
    assert [p.name for p in tmp_path.iterdir()] == ["digits-v1"]


# Sources

def make_folder(root, classes=("ant", "bee"), splits=("train", "val"), per_class=2):
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for number in range(per_class):
                colour = tuple(np.random.RandomState(number).randint(0, 255, 3))
                Image.new("RGB", (40, 30), colour).save(str(root / split / name / f"{number}.jpg"))
    return root


def test_a_folder_source_has_images_labels_and_class_names(tmp_path):
    source = data.open_source("folder", str(make_folder(tmp_path / "my set")), "val")
    assert source.classes == ["ant", "bee"]
    assert source.name == "my set"
    assert [label for _, label in source.samples] == [0, 0, 1, 1]


def test_a_missing_folder_names_itself_and_the_expected_layout():
    with pytest.raises(FileNotFoundError, match=r"/nowhere; expected DIR/train/CLASS/\*.jpg"):
        data.open_source("folder", "/nowhere", "train")


def test_a_missing_split_names_what_is_there(tmp_path):
    make_folder(tmp_path, splits=("train", "validation"))
    with pytest.raises(FileNotFoundError, match="no folder 'val' .it has: train, validation."):
        data.open_source("folder", str(tmp_path), "val", "train")
    assert data.open_source("folder", str(tmp_path), "validation").classes == ["ant", "bee"]


def test_a_split_without_class_folders_names_the_expected_layout(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(FileNotFoundError, match="no class folders; expected DIR/train/CLASS"):
        data.open_source("folder", str(tmp_path), "train")


def test_a_class_without_images_is_named(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "train" / "wasp").mkdir()
    with pytest.raises(FileNotFoundError, match="wasp"):
        data.open_source("folder", str(tmp_path), "train")


def test_imagenet_means_a_thousand_classes(tmp_path):
    make_folder(tmp_path)
    with pytest.raises(ValueError, match="expects 1000 classes, .* has 2"):
        data.open_source("imagenet", str(tmp_path), "train")


def test_cifar10_without_its_files_says_how_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="--dataset_download"):
        data.open_source("cifar10", str(tmp_path), "train")


# Transforms

def picture(width=100, height=80):
    pixels = np.random.RandomState(0).randint(0, 255, (height, width, 3)).astype(np.uint8)
    return Image.fromarray(pixels)


def test_transforms_give_uint8_channels_first():
    for transform in (data.train_transform(32), data.val_transform(32)):
        array = transform(picture())
        assert (array.shape, array.dtype) == ((3, 32, 32), np.uint8)


def test_validation_equals_torchvisions_resize_and_centre_crop():
    from torchvision import transforms as tv

    expected = tv.Compose([tv.Resize(256), tv.CenterCrop(224)])(picture(400, 300))
    array = data.val_transform(224, crop_pct=0.875)(picture(400, 300))
    assert np.array_equal(array.transpose(1, 2, 0), np.asarray(expected))


@pytest.mark.parametrize("aa, name", [
    ("imagenet", "AutoAugment"), ("ta_wide", "TrivialAugmentWide")])
def test_torchvisions_policies_are_had_by_its_names(aa, name):
    from torchvision import transforms as tv

    if not hasattr(tv, name):
        with pytest.raises(ValueError, match=f"--aa {aa} is torchvision's {name}, which version"):
            data.train_transform(32, aa=aa)
        return
    varied = data.train_transform(32, aa=aa)
    assert type(varied.colour).__name__ == name
    arrays = []
    for seed in (3, 3, 4, 5):
        torch.manual_seed(seed)
        arrays.append(varied(picture()))
    assert all(array.shape == (3, 32, 32) and array.dtype == np.uint8 for array in arrays)
    assert np.array_equal(arrays[0], arrays[1])
    assert not np.array_equal(arrays[2], arrays[3])


def test_an_unknown_policy_is_an_error():
    with pytest.raises(ValueError, match="rand-m9-mstd0.5"):
        data.train_transform(32, aa="nonsense")


@pytest.mark.parametrize("options", [{}, {"interpolation": "random"}, {"color_jitter": 0.4},
                                     {"aa": "rand-m9-mstd0.5"}, {"vflip": 0.5}])
def test_augmentation_depends_on_seed_epoch_and_index_alone(options):
    samples = [(picture(), 0), (picture(), 0)]
    make = [data.Transformed(samples, data.train_transform(32, **options), seed=1)
            for _ in range(2)]
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    first = make[0][3, 0][0]
    random.seed(6), np.random.seed(6), torch.manual_seed(6)
    make[1][3, 1]  # something else drawn in between
    assert np.array_equal(make[1][3, 0][0], first)
    assert not np.array_equal(make[0][4, 0][0], first)
    assert not np.array_equal(make[0][3, 1][0], first)


def test_augmentation_in_the_training_process_leaves_its_generators_alone():
    samples = data.Transformed([(picture(), 0)], data.train_transform(32), seed=1)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    samples[0, 0]
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_grey_and_palette_images_become_rgb(tmp_path):
    for mode in ("L", "P", "RGBA", "CMYK"):
        samples = data.Transformed([(Image.new(mode, (50, 40)), 0)], data.val_transform(32))
        assert samples[0, 0][0].shape == (3, 32, 32)


def test_an_unreadable_image_is_named(tmp_path):
    make_folder(tmp_path)
    bad = tmp_path / "train" / "ant" / "1.jpg"
    bad.write_bytes(b"not a jpeg")
    source = data.open_source("folder", str(tmp_path), "train")
    with pytest.raises(OSError, match="1.jpg"):
        data.Transformed(source.samples, data.val_transform(32))[0, 1]


# Loaders

def loader_options(**changed):
    options = {"rank": 0, "world": 1, "batch_size": 4, "workers": 0,
               "mean": data.IMAGENET_MEAN, "std": data.IMAGENET_STD}
    return dict(options, **changed)


@pytest.fixture()
def source(tmp_path):
    return data.open_source("folder", str(make_folder(tmp_path, per_class=5)), "train")


def test_batches_are_normalised_as_torchvision_does(source):
    from torchvision import transforms as tv

    loader = data.val_loader(source, CPU, transform=data.val_transform(32), **loader_options())
    images, labels = next(iter(loader))
    plain = tv.Compose([tv.Resize(36), tv.CenterCrop(32), tv.ToTensor(),
                        tv.Normalize(data.IMAGENET_MEAN, data.IMAGENET_STD)])
    expected = torch.stack([plain(source.samples[index][0]) for index in range(4)])
    assert torch.allclose(images, expected, atol=1e-5)
    assert labels.tolist() == [0, 0, 0, 0]
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)


def test_validation_loads_every_image_with_a_short_last_batch(source):
    loader = data.val_loader(source, CPU, transform=data.val_transform(32), **loader_options())
    assert [len(labels) for _, labels in loader] == [4, 4, 2]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_training_batches_do_not_depend_on_the_number_of_workers(source, workers):
    def epoch(workers, number):
        loader = data.train_loader(source, CPU, transform=data.train_transform(32), seed=7,
                                   **loader_options(workers=workers))
        loader.set_epoch(number)
        return torch.cat([images for images, _ in loader])

    assert torch.equal(epoch(workers, 2), epoch(0, 2))
    assert not torch.equal(epoch(workers, 2), epoch(0, 3))


def test_workers_that_outlive_an_epoch_follow_set_epoch(source):
    loader = data.train_loader(source, CPU, transform=data.train_transform(32), seed=7,
                               **loader_options(workers=1))
    epochs = []
    for number in (0, 1, 0):
        loader.set_epoch(number)
        epochs.append(torch.cat([images for images, _ in loader]))
    assert torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0], epochs[1])


def test_mixup_gives_soft_targets_and_stops_at_its_last_epoch(source):
    from timm.data import Mixup

    loader = data.train_loader(
        source, CPU, transform=data.train_transform(32), seed=7, mixup_off_epoch=1,
        mixup=Mixup(mixup_alpha=1.0, label_smoothing=0.0, num_classes=2), **loader_options(),
    )
    for epoch, soft in ((0, True), (1, False)):
        loader.set_epoch(epoch)
        _, targets = next(iter(loader))
        assert targets.shape == (4, 2)
        assert torch.allclose(targets.sum(1), torch.ones(4))
        assert bool(((targets > 0) & (targets < 1)).any()) == soft


def test_channels_last_is_the_layout_asked_for(source):
    loader = data.val_loader(source, CPU, transform=data.val_transform(32), channels_last=True,
                             **loader_options())
    images, _ = next(iter(loader))
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_ranks_share_the_cpus(monkeypatch):
    monkeypatch.setattr("mobilenetv3.host.usable_cpus", lambda: 16)
    assert data.worker_count(4, 1) == 4
    assert data.worker_count(4, 8) == 2
    assert data.worker_count(32, 1) == 16
    assert data.worker_count(4, 64) == 1  # a rank always gets one
    assert data.worker_count(0, 1) == 0


def test_the_splits_are_named_in_the_layout_that_errors_show(tmp_path):
    (tmp_path / "val").mkdir()
    with pytest.raises(FileNotFoundError, match=r"DIR/train/CLASS/\*.jpg and DIR/val/CLASS"):
        data.open_source("folder", str(tmp_path), "val", "train")


def test_a_worker_outlives_sigterm_for_its_batch_but_not_for_ever(monkeypatch):
    """Python's exit ends the workers that are left by SIGTERM, and then waits for them."""
    monkeypatch.setattr(loading, "STAY_S", 1)
    fork = multiprocessing.get_context("fork")
    ready = fork.Event()
    worker = fork.Process(target=_worker_that_waits, args=(ready,), daemon=True)
    worker.start()
    assert ready.wait(20.0)
    os.kill(worker.pid, signal.SIGINT)
    worker.terminate()
    worker.join(0.5)
    assert worker.is_alive()
    worker.join(20.0)
    assert worker.exitcode == -signal.SIGALRM


def _worker_that_waits(ready):
    loading._start_worker(frozenset(), 0)
    ready.set()
    while True:
        time.sleep(0.1)


@pytest.mark.parametrize("scale, ratio", [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.6, 1.0), (0.9, 1.1)),
                                          ((0.9, 1.0), (0.2, 0.3)), ((0.9, 1.0), (4.0, 5.0))])
def test_boxes_and_the_numbers_drawn_for_them_are_torchvisions(scale, ratio):
    sizes = [(300, 400), (32, 32), (1, 1), (7, 2000), (2000, 7), (3, 5)]  # strips: nothing fits
    for seed, (height, width) in enumerate(sizes * 40):
        torch.manual_seed(seed)
        expected = RandomResizedCrop.get_params(Image.new("L", (width, height)), scale, ratio)
        after = torch.rand(1)
        torch.manual_seed(seed)
        assert transforms.draw_box(scale, ratio, height, width) == tuple(map(int, expected))
        assert torch.equal(torch.rand(1), after)

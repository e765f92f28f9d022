"""Training images that grow over the epochs (--res_schedule), and repeated ones (--aug_repeats)."""
import numpy as np
import pytest
import shardsets
import torch
import yaml
from PIL import Image

from mobilenetv3 import build, config, data, options
from mobilenetv3.data import samplers
from mobilenetv3.device import select

CPU = select("cpu")
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def parse(*argv):
    return config.parse(options.train_parser(), ["DIR", *argv])


def refused(capsys, *argv):
    with pytest.raises(SystemExit):
        parse(*argv)
    return capsys.readouterr().err.splitlines()[-1].split(": error: ")[1]


class Pictures:
    """Gradients with noise, each of another colour."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        pixels = np.random.RandomState(index).randint(0, 256, (80, 90, 3), np.uint8)
        return Image.fromarray(pixels), index


def loader(stages, workers=0, repeats=1, rank=0, world=1, **more):
    transform = stages if callable(stages) else data.ByEpoch([
        data.Stage(epoch, side, data.train_transform(side)) for epoch, side in stages])
    return data.train_loader(
        data.Source(Pictures(), [str(i) for i in range(24)], "pictures"), CPU, rank=rank,
        world=world, batch_size=8, workers=workers, transform=transform, mean=MEAN, std=STD, seed=5,
        repeats=repeats, **more)


# ----------------------------------------------------------------------------------- the options


@pytest.mark.parametrize("argv", [
    ("--res_schedule", "64@0,96@2,128@5"), ("--res-schedule=64@0,96@2,128@5",),
    ("--res_schedule", "64@0 96@2 128@5"),
])
def test_the_schedule_is_read_from_the_command_line_and_from_the_saved_configuration(
        argv, tmp_path):
    cfg = parse(*argv, "--img_size", "128")
    assert cfg.res_schedule == [[64, 0], [96, 2], [128, 5]]
    config.save(cfg, tmp_path / "config.yaml")
    assert parse("-c", str(tmp_path / "config.yaml")).res_schedule == cfg.res_schedule
    for value in ("64@0,96@2,128@5", [[64, 0], [96, 2], [128, 5]], ["64@0", "96@2", "128@5"]):
        file = tmp_path / "typed.yaml"
        file.write_text(yaml.safe_dump({"res-schedule": value, "img_size": 128}))
        assert parse("-c", str(file)).res_schedule == cfg.res_schedule


@pytest.mark.parametrize("value", [
    "64@0,96@33%,128@66%", "64@0%,96@33%,128@66%", [[64, 0], [96, "33%"], [128, "66%"]],
    ["64@0", "96@33%", "128@66%"],
])
def test_shares_of_the_run_stay_shares_in_the_saved_configuration(value, tmp_path):
    file, saved = tmp_path / "typed.yaml", tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"res_schedule": value, "img_size": 128, "epochs": 100}))
    cfg = parse("-c", str(file))
    assert build.sides(cfg) == [[64, 0], [96, 33], [128, 66]]
    config.save(cfg, saved)
    assert build.sides(parse("-c", str(saved))) == build.sides(cfg)
    assert build.sides(parse("-c", str(saved), "--epochs", "10")) == [[64, 0], [96, 3], [128, 6]]


@pytest.mark.parametrize("epochs, sides", [
    (300, [[64, 0], [96, 210], [128, 270]]), (34, [[64, 0], [96, 23], [128, 30]]),
    (4, [[64, 0], [96, 2], [128, 3]]), (3, [[64, 0], [128, 2]]), (1, [[128, 0]]),
])
def test_however_few_the_epochs_the_last_has_the_full_size(epochs, sides):
    cfg = parse("--res_schedule", "64@0,96@70%,128@90%", "--img_size", "128", "--epochs",
                str(epochs))
    assert build.sides(cfg) == sides


@pytest.mark.parametrize("value", [
    "128@0,160@30%,224@60", "128@0,160@30,224@60%", "128@0,224@100%", "128@10%,224@50%",
    "128@0,160@50%,224@50%", "128@0,224@-5%", "128@0,224@%", "128@0,224@5.5%", "128@%,224@50%",
    "128", "128:0,224:3", "128@1,224@3", "224@0,128@3", "128@3,224@3", "16@0,224@3", "", "128@0,",
    "128@-1", "128@0,224@3.5", "a@b",
])
def test_a_schedule_that_is_none_is_refused_with_an_example(value, capsys):
    told = refused(capsys, f"--res_schedule={value}")
    assert "128@0,160@30,224@60" in told and "128@0,160@33%,224@66%" in told
    assert repr(value) in told


@pytest.mark.parametrize("value", [3, [[128]], [[128, 0, 1]], [128, 224], {"a": 1}, True, []])
def test_a_yaml_value_that_is_no_schedule_is_refused_with_its_line(value, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"res_schedule": value}))
    told = refused(capsys, "-c", str(tmp_path / "c.yaml"))
    assert "c.yaml, line 1: res_schedule: expected sides" in told


def test_a_schedule_ends_at_the_full_size_and_within_the_run(capsys):
    words = ("--res_schedule", "128@0,192@3")
    told = refused(capsys, *words)
    assert "ends at 192 pixels, and training images have 224" in told
    assert parse(*words, "--train_img_size", "192").res_schedule  # validated at 224
    told = refused(capsys, *words, "--img_size", "192", "--epochs", "3")
    assert "192 pixels from epoch 3 on" in told and "--epochs 3" in told


@pytest.mark.parametrize("argv", [("--aug-repeats", "3"), ("--ra_reps=3",)])
def test_repeats_have_timms_and_torchvisions_names(argv):
    assert parse(*argv).aug_repeats == 3


def test_the_log_says_what_the_figures_mean():
    cfg = parse("--res_schedule", "128@0,224@3", "--aug_repeats", "3", "--batch_size", "8")
    sizes, repeats = build.train_notes(cfg, 25)
    assert "128 from epoch 0 on, 224 from epoch 3 on" in sizes
    assert "FPS counts images of whatever size" in sizes
    # 3 steps of 8 images, 24 places, each image in three of them.
    assert "an epoch is 3 steps as without, of 8 of the 25 images, 3 times each" in repeats
    assert build.train_notes(parse("--aug_repeats", "1"), 25) == []


# ------------------------------------------------------------------------------------- the sizes


@pytest.mark.parametrize("workers", [0, 2])
def test_every_epoch_has_its_size_whoever_loads_it(workers):
    """Workers outlive an epoch, so that the size has to come with what they are asked for."""
    made = loader([(0, 32), (1, 48), (3, 64)], workers)
    for epoch, side in ((0, 32), (1, 48), (2, 48), (3, 64), (7, 64), (0, 32)):
        made.set_epoch(epoch)
        assert {tuple(images.shape) for images, _ in made} == {(8, 3, side, side)}


def test_an_epoch_has_the_images_of_a_run_that_always_had_its_size():
    grown, fixed = loader([(0, 32), (1, 48)]), loader(data.train_transform(48))
    for made in (grown, fixed):
        made.set_epoch(2, first=1)  # in its middle, too
    for (ours, labels), (theirs, their_labels) in zip(grown, fixed):
        assert torch.equal(ours, theirs) and torch.equal(labels, their_labels)


def test_the_log_names_a_size_when_it_comes_and_when_a_run_goes_on_with_it():
    made, told = loader([(0, 32), (2, 48)]), []
    for epoch in (1, 2, 3):
        made.set_epoch(epoch)
        told.append(made.size_note())
    assert told == ["=> epoch 1: training images of 32x32", "=> epoch 2: training images of 48x48",
                    ""]
    assert loader(data.train_transform(32)).size_note() == ""


def test_jpegs_are_decoded_fast_at_every_size(tmp_path):
    for index in range(8):
        Image.fromarray(np.full((70, 80, 3), 20 * index, np.uint8)).save(tmp_path / f"{index}.jpg")
    files = data.sources.Files([(str(tmp_path / f"{index}.jpg"), index) for index in range(8)])
    stages = data.ByEpoch([data.Stage(0, 32, data.train_transform(32)),
                           data.Stage(1, 40, data.train_transform(40))])
    images = data.Transformed(files, stages, seed=1, fast=True)
    assert images.is_fast == data.dataset.decode.is_available()
    assert [images[epoch, 3][0].shape for epoch in (0, 1)] == [(3, 32, 32), (3, 40, 40)]


# ----------------------------------------------------------------------------------- the repeats


def keys(epoch=0, first=0, rank=0, world=1, repeats=3, order=None, images=67, batch=12):
    sampler = samplers.TrainSampler(images, batch, rank, world, 9, order, repeats)
    sampler.epoch, sampler.first = epoch, first
    return list(sampler)


@pytest.mark.parametrize("order", [None, samplers.WindowOrder([7, 12, 5, 9, 11, 8, 12, 3], 16)],
                         ids=["files", "shards"])
def test_an_epoch_is_as_long_as_without_and_has_each_of_its_images_n_times(order):
    batches = keys(order=order)
    assert [len(batch) for batch in batches] == [12] * (67 // 12)
    found = {}
    for batch in batches:
        for _, index, copy in batch:
            found.setdefault(index, []).append(copy)
    assert len(found) == 5 * 12 // 3
    assert all(copies == [0, 1, 2] for copies in found.values())
    plain = [index for batch in keys(repeats=1, order=order) for _, index in batch]
    assert list(found) == plain[:20]  # the first images of the epoch's order
    assert keys(order=order) == batches != keys(epoch=1, order=order)


@pytest.mark.parametrize("world", [2, 4])
def test_the_copies_of_an_image_go_to_different_ranks(world):
    whole = keys()
    ranks = [keys(rank=rank, world=world) for rank in range(world)]
    for batch, parts in zip(whole, zip(*ranks)):
        assert sorted(sum(parts, [])) == sorted(batch)  # the global batch is any number's of ranks
        assert {len(part) for part in parts} == {12 // world}
        for part in parts:
            indices = [index for _, index, _ in part]
            assert len(set(indices)) >= len(indices) / -(-3 // world)


def test_an_epoch_of_repeats_that_is_entered_in_its_middle_goes_on_as_it_would_have():
    assert keys(first=2) == keys()[2:]


def test_repeats_over_shards_ask_for_the_shards_that_they_read_and_no_later_ones():
    sizes, asked = [16] * 8, []
    order = samplers.WindowOrder(sizes, 16, fetch_ahead=asked.extend)
    for batch in keys(order=order, images=128, batch=16, repeats=4):
        assert {index // 16 for _, index, _ in batch} <= set(asked)
    assert len(asked) == 3  # 32 images of two windows, and the one after


def test_copies_are_varied_each_in_its_own_way_and_the_first_as_without_repeats():
    images = data.Transformed(Pictures(), data.train_transform(32), seed=1)
    copies = [images[3, 5, copy][0] for copy in range(4)]
    assert np.array_equal(copies[0], images[3, 5][0])
    for one in range(4):
        assert np.array_equal(copies[one], images[3, 5, one][0])
        for other in range(one):
            assert not np.array_equal(copies[one], copies[other])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_repeats_do_not_depend_on_the_number_of_workers(workers):
    expected = list(loader(data.train_transform(32), repeats=2))
    found = list(loader(data.train_transform(32), workers, repeats=2))
    assert len(found) == 3
    for (ours, labels), (theirs, their_labels) in zip(found, expected):
        assert torch.equal(ours, theirs) and torch.equal(labels, their_labels)
        assert len(set(labels.tolist())) == 4


# -------------------------------------------------------------------------------------- both


def test_a_prepared_set_grows_and_repeats_as_a_folder_does(tmp_path):
    source = data.open_source("folder", str(shardsets.prepared(tmp_path)), "train")
    assert len(source.samples.shard_sizes) > 2
    made = data.train_loader(
        source, CPU, rank=0, world=1, batch_size=8, workers=2, mean=MEAN, std=STD, seed=5,
        transform=data.ByEpoch([data.Stage(0, 32, data.train_transform(32)),
                                data.Stage(1, 48, data.train_transform(48))]), repeats=2, fast=True)
    for epoch, side in ((0, 32), (1, 48)):
        made.set_epoch(epoch)
        batches = list(made)
        assert {tuple(images.shape) for images, _ in batches} == {(8, 3, side, side)}
        labels = torch.cat([labels for _, labels in batches])  # each image has its own
        assert torch.unique(labels, return_counts=True)[1].tolist() == [2] * 12

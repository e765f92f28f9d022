"""The order of a training epoch over shards."""
import numpy as np
import pytest
import torch
from PIL import Image

from mobilenetv3 import data, device, engine, finetune, models, optim, snapshot
from mobilenetv3.data import samplers
from mobilenetv3.precision import create_precision

SIZES = [7, 12, 5, 9, 11, 8, 12, 3]
FIRST = np.cumsum([0, *SIZES])


def order(sizes=SIZES, window=16, seed=0, **options):
    generator = torch.Generator()
    generator.manual_seed(seed)
    return samplers.WindowOrder(sizes, window, **options).draw(generator)


def shard_of(index):
    return int(np.searchsorted(FIRST, index, "right")) - 1


@pytest.mark.parametrize("window", [1, 16, 30, 10 ** 6])
def test_every_image_comes_once(window):
    assert sorted(order(window=window).indices.tolist()) == list(range(sum(SIZES)))


def test_a_window_is_made_of_whole_shards_and_has_enough_images():
    drawn = order()
    ends = [*drawn.starts[1:], len(drawn.indices)]
    assert len(drawn.starts) > 2
    assert sorted(sum(drawn.shards, [])) == list(range(len(SIZES)))
    for start, end, shards in zip(drawn.starts, ends, drawn.shards):
        assert end - start >= 16
        found = [shard_of(index) for index in drawn.indices[start:end]]
        assert set(found) == set(shards)
        assert found != sorted(found, key=shards.index)  # mixed, not one after the other


def test_epochs_and_seeds_have_orders_of_their_own_that_can_be_had_again():
    assert order(seed=1).indices.tolist() == order(seed=1).indices.tolist()
    assert order(seed=1).shards != order(seed=2).shards


def test_a_set_of_no_more_than_a_window_is_shuffled_as_a_whole():
    drawn = order(window=sum(SIZES))
    assert drawn.starts == [0]
    # The mean place of a shard's images is that of all: 33; five deviations of the largest's mean.
    places = np.array([shard_of(index) for index in drawn.indices])
    for shard in (1, 4, 6):
        assert abs(np.flatnonzero(places == shard).mean() - 33) < 5 * 19.3 / 11 ** 0.5


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_global_batch_over_shards_is_the_same_for_any_number_of_ranks(world):
    def batches(rank, ranks):
        return list(samplers.TrainSampler(67, 8, rank, ranks, 3, samplers.WindowOrder(SIZES, 16)))

    for batch, parts in zip(batches(0, 1), zip(*(batches(rank, world) for rank in range(world)))):
        assert batch == sum(parts, [])


def test_folders_keep_the_order_that_they_had():
    generator = torch.Generator()
    generator.manual_seed(int(np.random.SeedSequence((4, 2)).generate_state(1)[0]))
    expected = torch.randperm(50, generator=generator).tolist()[:48]
    sampler = samplers.TrainSampler(50, 8, 0, 1, seed=4)
    sampler.epoch = 2
    assert [index for batch in sampler for _, index in batch] == expected


@pytest.mark.parametrize("first", [0, 1, 12])
def test_shards_are_asked_for_a_window_before_they_are_read(first):
    asked, window = [], samplers.WindowOrder(SIZES, 16, fetch_ahead=lambda shards: asked.extend(
        shards))
    sampler = samplers.TrainSampler(67, 4, 0, 1, 0, window)
    sampler.first = first
    generator = torch.Generator()
    generator.manual_seed(int(np.random.SeedSequence((0, 0)).generate_state(1)[0]))
    drawn = window.draw(generator)
    for number, batch in enumerate(sampler, first):
        at = np.searchsorted(drawn.starts, number * 4, "right") - 1
        ahead = sum(drawn.shards[at : at + 2], [])
        assert set(ahead) <= set(asked)
        assert {shard_of(index) for _, index in batch} <= set(asked)
    assert len(asked) == len(set(asked))  # each once
    if first == 12:  # image 48: what was read before its window is not fetched again
        assert not set(drawn.shards[0]) & set(asked)


def test_an_epoch_that_is_entered_in_its_middle_goes_on_as_it_would_have():
    whole, rest = (samplers.TrainSampler(67, 8, 0, 1, 9, samplers.WindowOrder(SIZES, 16))
                   for _ in range(2))
    rest.first = 3
    assert list(rest) == list(whole)[3:]


def test_orders_that_give_an_image_another_place_have_other_names():
    names = [samplers.FlatOrder(67).name, *(samplers.WindowOrder(*words).name for words in (
        (SIZES, 16), (SIZES, 17), (SIZES[::-1], 16), ([60, 7], 16)))]
    assert len(set(names)) == len(names)
    assert samplers.WindowOrder(np.array(SIZES), 16).name == names[1]
    source = data.Source([(Image.new("RGB", (8, 8)), 0)] * 67, ["a"], "x")
    loader = data.train_loader(
        source, device.select("cpu"), rank=0, world=1, workers=0, batch_size=8, seed=0,
        transform=data.train_transform(8), mean=data.IMAGENET_MEAN, std=data.IMAGENET_STD)
    assert loader.order == names[0]


def test_a_run_does_not_go_on_inside_an_epoch_with_images_in_another_order():
    """From a folder to the set prepared of it, images of the epoch came twice, others never."""
    model = models.create_model("mobilenetv3_small_050", num_classes=4)
    cpu = device.select("cpu")
    parts = snapshot.Parts(model, optim.create_optimizer(model, "sgd", 0.1, 0.9, 0.0),
                           create_precision("O0", cpu), optim.NoEma(), cpu)
    config = {**finetune.NEUTRAL, "opt": "sgd", "batch_size": 8, "grad_accum_steps": 1,
              "seed": 0, "aug_repeats": 0}
    folder, shards = samplers.FlatOrder(67).name, samplers.WindowOrder(SIZES).name

    def go_on(step, before, now):
        state = snapshot.take(parts, engine.Progress(0, 8, step=step), None, list("abcd"), 67,
                              config, before)
        snapshot.check(state, "FILE", parts, config, list("abcd"), 67, now)

    with pytest.raises(ValueError, match="saved with images in the order of a folder, at step 3 of "
                                         "an epoch, and this run has the order of 8 shards"):
        go_on(3, folder, shards)
    go_on(0, folder, shards)  # between two epochs nothing is lost
    go_on(3, shards, shards)
    go_on(3, "", shards)  # saved before the order was

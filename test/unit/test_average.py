"""python -m mobilenetv3.average: which checkpoints, and what their mean is."""
import json
import re

import pytest
import torch

from mobilenetv3 import average, checkpoint, convert, models
from mobilenetv3.convert import own

CLASSES = ["cat", "dog", "eel"]


def write(path, seed, ema=None, **changed):
    """A checkpoint of this package with weights of its own; `ema` is the seed of the averaged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"arch": "mobilenetv3_small_050", "num_classes": 3, **changed}
    classes, prepare = options.pop("classes", CLASSES), options.pop("prepare", {})

    def tensors(seed):
        torch.manual_seed(seed)
        model = models.create_model(**options)
        for value in model.state_dict().values():
            value.copy_(torch.rand_like(value) if value.is_floating_point() else value + 7 * seed)
        return model.state_dict(), model.config
    state, config = tensors(seed)
    made = own.checkpoint_of(state, config, {"img_size": 96, **prepare}, classes, {})
    del made["source"]
    made["state_dict_ema"] = tensors(ema)[0] if ema else None
    checkpoint.save(path, made)
    return state


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of six epochs, of which the first is not kept, with one checkpoint inside an epoch."""
    folder = tmp_path_factory.mktemp("run")
    for epoch in range(1, 6):
        write(folder / "checkpoints" / f"epoch_{epoch + 1:04d}_step_000000.pth.tar", epoch)
    write(folder / "checkpoints" / "epoch_0006_step_000100.pth.tar", 99)
    accuracies = [10.0, 30.0, 25.0, 40.0, 40.0, 35.0]
    lines = [json.dumps({"epoch": epoch, "val_acc1": acc1})
             for epoch, acc1 in enumerate(accuracies)]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"epoch": 6, "val_']))
    return folder


def main(*argv):
    return average.run([str(word) for word in argv])


def epochs(capsys):
    return [int(found) for found in re.findall(r"tar: epoch (\d+)", capsys.readouterr().out)]


@pytest.mark.parametrize("words, expected, name", [
    (["-k", 3], [3, 4, 5], "average_last_3.pth.tar"),
    (["-n", 3, "--best"], [3, 4, 5], "average_best_3.pth.tar"),  # 40, 40, 35
    (["-k", 2, "--best"], [3, 4], "average_best_2.pth.tar"),
    (["-k", 2, "--improving"], [1, 3], "average_improving_2.pth.tar"),  # 30 and 40, not 40 again
    (["-k", 5], [1, 2, 3, 4, 5], "average_last_5.pth.tar"),
])
def test_the_checkpoints_of_a_run_are_chosen_by_rule(run, words, expected, name, capsys):
    assert main(run, *words) == 0
    assert epochs(capsys) == expected
    assert len(checkpoint.load(run / name)["source"]["files"]) == len(expected)


@pytest.mark.parametrize("words, told", [
    (["-k", 6], r"-k 6: .* keeps 5 checkpoints at the end of an epoch; .*--keep_last 6 or more"),
    (["-k", 3, "--improving"], r"keeps 2 .* better than all before \(of 5\)"),
    ([], r"-k K: how many checkpoints of "),
    (["-k", 2, "--output", "x.ckpt"], r"x.ckpt does not end with .pth"),
])
def test_what_a_run_cannot_give_is_told(run, words, told, capsys):
    assert main(run, *words) == 1
    assert re.search(told, capsys.readouterr().err)


def test_the_mean_is_of_all_that_has_a_fraction_and_counts_are_the_last_ones(tmp_path, capsys):
    states = [write(tmp_path / f"{seed}.pth", seed) for seed in (1, 2, 4)]
    output = tmp_path / "mean.pth"
    assert main(*[tmp_path / f"{seed}.pth" for seed in (1, 2, 4)], "--output", output) == 0
    out = capsys.readouterr().out
    assert "BatchNorm's running statistics are means, too" in out and "--recalibrate_bn" in out
    weights = convert.read(output)
    assert (weights.family, weights.classes, weights.prepare["img_size"]) == ("own", CLASSES, 96)
    assert "the mean of 3 checkpoints: 1.pth, 2.pth, 4.pth" in weights.notes
    assert weights.state_dict["bn1.num_batches_tracked"] == 28  # the last one's: 7 x 4
    for name, value in weights.state_dict.items():
        if value.is_floating_point():
            # In double precision, then rounded once.
            expected = torch.stack([state[name].double() for state in states]).mean(0).float()
            assert torch.allclose(value, expected, rtol=1e-6, atol=0), name
    assert list(convert.build(weights).state_dict()) == list(states[0])


@pytest.mark.parametrize("words, seeds", [
    ([], (5, 6)), (["--ema"], (5, 6)), (["--no-ema"], (1, 2)),
])
def test_of_two_sets_of_weights_the_averaged_ones_are_taken_unless_told(tmp_path, words, seeds):
    for seed in (1, 2):
        write(tmp_path / f"{seed}.pth", seed, ema=seed + 4)
    expected = [write(tmp_path / "other.pth", seed)["classifier.weight"] for seed in seeds]
    output = tmp_path / "mean.safetensors"
    assert main(tmp_path / "1.pth", tmp_path / "2.pth", "-o", output, *words) == 0
    found = convert.read(output).state_dict["classifier.weight"]
    assert torch.allclose(found, (expected[0] + expected[1]) / 2, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("changed, told", [
    ({"arch": "mobilenetv3_small_075"}, "arch is mobilenetv3_small_075 there and mobilenetv3_small_"
     "050 here"),
    ({"bn_eps": 1e-3}, "bn_eps is 0.001 there and 1e-05 here"),
    ({"num_classes": 4, "classes": [*CLASSES, "fox"]}, "num_classes is 4 there and 3 here"),
    ({"classes": ["cat", "eel", "dog"]}, "the list of classes is"),
    ({"prepare": {"mean": [0.5, 0.5, 0.5]}}, "mean is [0.5, 0.5, 0.5] there and"),
])
def test_checkpoints_of_different_networks_are_refused_by_what_differs(
        tmp_path, changed, told, capsys):
    write(tmp_path / "a.pth", 1)
    write(tmp_path / "b.pth", 2, **changed)
    assert main(tmp_path / "a.pth", tmp_path / "b.pth", "-o", tmp_path / "mean.pth") == 1
    error = capsys.readouterr().err.strip()
    assert told in error and "b.pth cannot be averaged with" in error and "\n" not in error
    assert not (tmp_path / "mean.pth").exists()


def test_what_only_training_needs_may_differ(tmp_path):
    write(tmp_path / "a.pth", 1)
    write(tmp_path / "b.pth", 2, drop_rate=0.2, drop_path_rate=0.1, bn_momentum=0.01)
    assert main(tmp_path / "a.pth", tmp_path / "b.pth", "-o", tmp_path / "mean.pth") == 0


def test_a_damaged_file_and_weights_that_are_not_finite_are_named(tmp_path, capsys):
    state = write(tmp_path / "a.pth", 1)
    whole = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    assert main(tmp_path / "a.pth", tmp_path / "cut.pth", "-o", tmp_path / "mean.pth") == 1
    assert "cut.pth is damaged" in capsys.readouterr().err
    made = checkpoint.load(tmp_path / "a.pth")
    made["state_dict"]["conv_head.bias"][0] = float("nan")
    checkpoint.save(tmp_path / "nan.pth", made)
    assert main(tmp_path / "a.pth", tmp_path / "nan.pth", "-o", tmp_path / "mean.pth") == 1
    assert "nan.pth cannot be averaged: conv_head.bias is not finite" in capsys.readouterr().err
    assert main(tmp_path / "a.pth", tmp_path / "gone.pth", "-o", tmp_path / "mean.pth") == 1
    assert "gone.pth" in capsys.readouterr().err
    assert not (tmp_path / "mean.pth").exists() and torch.isfinite(state["conv_head.bias"]).all()


def test_nothing_is_overwritten(tmp_path, capsys):
    for seed in (1, 2):
        write(tmp_path / f"{seed}.pth", seed)
    (tmp_path / "mean.pth").write_text("mine")
    assert main(tmp_path / "1.pth", tmp_path / "2.pth", "-o", tmp_path / "mean.pth") == 1
    assert "exists already, and nothing is overwritten" in capsys.readouterr().err
    assert (tmp_path / "mean.pth").read_text() == "mine"


@pytest.mark.parametrize("words, told", [
    (["a.pth"], "expected a run folder with -k K, or two files"),
    (["a.pth", "b.pth"], "or two files or more with --output FILE"),
    (["a.pth", "b.pth", "-o", "c.pth", "-k", "2"], "of files all are taken"),
    (["a.pth", ".", "-o", "c.pth"], ". is a folder; expected one run folder alone"),
])
def test_a_command_that_makes_no_sense_is_refused(words, told, capsys):
    assert main(*words) == 1
    assert told in capsys.readouterr().err

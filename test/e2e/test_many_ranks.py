"""Several ranks: as many processes over gloo, on the CPU."""
import sys

import numpy as np
import pytest
import torch
from conftest import SMALL
from PIL import Image

from mobilenetv3 import checkpoint


@pytest.fixture(scope="module")
def ten_images(tmp_path_factory):
    """Ten validation images in ten classes, one training image each."""
    root = tmp_path_factory.mktemp("ten images")
    for split in ("train", "val"):
        for label in range(10):
            folder = root / split / str(label)
            folder.mkdir(parents=True)
            pixels = np.random.RandomState(label).randint(0, 255, (40, 40, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(str(folder / "0.png"))
    return root


@pytest.fixture(scope="module")
def trained(script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = script("train.py", *SMALL, "--epochs", 1, "--output", folder)
    assert result.status == 0, result.err
    return folder / checkpoint.LAST


def score(result):
    """Accuracy line, images scored, loss."""
    assert result.status == 0, result.err
    line = [line for line in result.lines("=> ") if " images, loss " in line][0]
    _, images, _, _, loss, *_ = line.replace(",", "").split()
    return result.lines(" * Acc@1"), int(images), float(loss)


def test_eight_ranks_over_ten_images_score_what_one_rank_scores(
        script, launched, ten_images, trained):
    arguments = ["validate.py", "--data_path", ten_images, "--ckpt_path", trained,
                 "--device", "cpu", "--batch_size", 8, "--workers", 0]
    alone, together = script(*arguments), launched(8, *arguments)
    accuracy, images, loss = score(alone)
    assert images == 10
    # Counts are equal; the loss up to float32, for a convolution of eight images may round
    # otherwise than eight of one.
    assert score(together) == (accuracy, 10, pytest.approx(loss, rel=1e-5))


def test_two_ranks_write_one_log_and_one_checkpoint(launched, tmp_path, metrics):
    """By Pythons as a user's launcher starts them."""
    folder = tmp_path / "run"
    result = launched(2, "train.py", *SMALL, "--epochs", 2, "--output", folder,
                      python=sys.executable)
    assert result.status == 0, result.err
    assert (folder / "train.log").read_text() == result.out
    assert result.out.count("=> run ") == 1
    assert '"ranks": 2' in result.lines("=> run ")[0]
    assert [record["val_images"] for record in metrics(folder)] == [360, 360]
    state = checkpoint.load(folder / checkpoint.LAST)
    assert not any(name.startswith("module.") for name in state["state_dict"])
    assert state["epoch"] == 2


def test_two_ranks_resume_as_if_never_stopped(launched, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    common = ["train.py", *SMALL, "--drop", 0.2]
    assert launched(2, *common, "--epochs", 2, "--sched", "step", "--output", whole).status == 0
    assert launched(2, *common, "--epochs", 1, "--sched", "step", "--output", parts).status == 0
    result = launched(2, *common, "--epochs", 2, "--sched", "step", "--output", parts,
                      "--resume", "auto")
    assert result.status == 0, result.err
    ours, theirs = (checkpoint.load(f / checkpoint.LAST)["state_dict"] for f in (parts, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_batch_that_does_not_divide_is_refused_by_name(launched, tmp_path):
    result = launched(3, "train.py", *SMALL, "--batch_size", 64, "--output", tmp_path / "run")
    assert result.status != 0
    assert "--batch_size 64" in result.err and "use 63 or 66" in result.err
    assert not (tmp_path / "run").exists()


def test_statistics_of_all_ranks_can_be_averaged(launched, tmp_path):
    found = {}
    for how in ("broadcast", "reduce"):
        result = launched(2, "train.py", *SMALL, "--max_steps", 3, "--dist_bn", how,
                          "--output", tmp_path / how)
        assert result.status == 0, result.err
        found[how] = checkpoint.load(tmp_path / how / checkpoint.LAST)["state_dict"]
    # The same training: only the running statistics that are scored and saved differ.
    for name, value in found["broadcast"].items():
        same = torch.equal(value, found["reduce"][name])
        assert same != ("running_" in name), name


def test_batchnorm_over_all_ranks_needs_cards(launched, tmp_path):
    result = launched(2, "train.py", *SMALL, "--sync_bn", "--output", tmp_path / "run")
    assert result.status != 0
    assert "--sync_bn needs cards" in result.err


def test_the_learning_rate_is_scaled_only_when_asked(script, tmp_path):
    arguments = ["train.py", *SMALL, "--batch_size", 64, "--max_steps", 1, "--skip_validation",
                 "--lr", 0.1]
    plain = script(*arguments, "--output", tmp_path / "plain")
    scaled = script(*arguments, "--scale_lr", 256, "--output", tmp_path / "scaled")
    assert plain.lines("Epoch: ")[0].endswith("LR 0.1")
    assert scaled.lines("Epoch: ")[0].endswith("LR 0.025")  # 0.1 x 64 / 256
    assert scaled.lines("=> learning rate 0.025: --lr 0.1 x 64 / 256")
    summed = script(*arguments, "--scale_lr", 256, "--grad_accum_steps", 2, "--output",
                    tmp_path / "summed")
    assert summed.lines("Epoch: ")[0].endswith("LR 0.05")  # an update is of 2 x 64


def test_the_average_that_several_ranks_score_is_the_one_that_is_saved(
        script, launched, tmp_path, metrics):
    """Each rank averages the running statistics of its own images; they must be made one."""
    folder = tmp_path / "run"
    result = launched(2, "train.py", *SMALL, "--epochs", 1, "--model_ema", "--model_ema_decay", 0.5,
                      "--lr", 0.05, "--output", folder)
    assert result.status == 0, result.err
    _, _, loss = score(script("validate.py", "--ckpt_path", folder / checkpoint.LAST,
                              "--device", "cpu", "--workers", 0))
    assert metrics(folder)[0]["val_loss"] == pytest.approx(loss, rel=1e-4)

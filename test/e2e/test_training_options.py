"""Everything that may raise the accuracy, in one run: exact when resumed, alike on two ranks."""
import signal

import pytest
import torch
from conftest import QUICK
from test_interrupted_run import read_until, start

from mobilenetv3 import average, checkpoint, models
from mobilenetv3.convert import own

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """A command line with an average that warms up, growing and repeated images and a teacher."""
    torch.manual_seed(1)
    teacher = models.create_model("mobilenetv3_small_050", num_classes=10)
    file = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    checkpoint.save(file, own.checkpoint_of(
        teacher.state_dict(), teacher.config, {"mean": [0.5] * 3, "std": [0.5] * 3},
        list("0123456789"), {}))
    return (*QUICK, "--model", "mobilenetv3_small_050", "--batch_size", 256, "--img_size", 40,
            "--res_schedule", "32@0,40@50%", "--aug_repeats", 2, "--mixup", 0.2, "--drop", 0.2,
            "--model_ema", "--model_ema_warmup", "--teacher", file, "--distill_temperature", 2,
            "--epochs", 2, "--workers", 1, "--print_freq", 1)


@pytest.fixture(scope="module")
def whole(options, script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    result = script("train.py", *options, "--output", folder)
    assert result.status == 0, result.err
    return folder, result


def test_the_log_says_what_is_done_and_both_sets_of_weights_have_their_figures(whole, metrics):
    folder, result = whole
    (told,) = result.lines("=> teacher: ")
    assert "teacher.pth (mobilenetv3_small_050), 0.58 M parameters" in told
    assert "Loss is 0.5 x that of the labels + 0.5 x 2^2 x the divergence" in told
    assert result.lines("=> --res_schedule: ") and result.lines("=> --aug_repeats 2: ")
    assert result.lines("=> epoch ") == ["=> epoch 0: training images of 32x32",
                                         "=> epoch 1: training images of 40x40"]
    averaged, trained = result.lines(" * Averaged"), result.lines(" * Trained")
    records = metrics(folder)
    for record, ours, theirs, accuracy in zip(records, averaged, trained, result.lines(" * Acc@1")):
        assert f"\tLoss {record['val_loss_ema']:.4f}\tAcc@1 {record['val_acc1_ema']:.3f}" in ours
        assert f"\tAcc@5 {record['val_acc5_trained']:.3f}" in theirs
        assert f" * Acc@1 {record['val_acc1_ema']:.3f} " in accuracy
    assert len(averaged) == len(trained) == len(records) == 2
    assert checkpoint.load(folder / checkpoint.LAST)["ema_updates"] == 2 * (1437 // 256)


def test_resumed_inside_an_epoch_it_ends_with_the_same_weights(
        whole, options, environment, script, tmp_path, metrics):
    folder = tmp_path / "run"
    process = start(environment, *options, "--output", folder)
    read_until(process, "Epoch: [1][1/")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM, err
    other = script("train.py", *options, "--output", folder, "--resume", "auto",
                   "--aug_repeats", 3)
    assert other.status == 1
    assert "saved with --aug_repeats 2" in other.last and "this run has 3" in other.last
    resumed = script("train.py", *options, "--output", folder, "--resume", "auto")
    assert resumed.status == 0, resumed.err
    assert not resumed.lines("=> resumed with other options")
    ours, theirs = (checkpoint.load(path / checkpoint.LAST) for path in (folder, whole[0]))
    assert ours["ema_updates"] == theirs["ema_updates"]
    for key in ("state_dict", "state_dict_ema"):
        for name, value in theirs[key].items():
            assert torch.equal(ours[key][name], value), name
    for one, other in zip(metrics(folder), metrics(whole[0])):
        assert one["val_loss_ema"] == other["val_loss_ema"]
        assert one["train_loss"] == other["train_loss"]


def test_two_ranks_train_with_all_of_it(options, launched, tmp_path, metrics):
    result = launched(2, "train.py", *options, "--output", tmp_path / "run", "--max_steps", 7)
    assert result.status == 0, result.err
    assert [record["epoch"] for record in metrics(tmp_path / "run")] == [0, 1]


def test_another_teacher_is_told_when_a_run_goes_on(whole, options, script, tmp_path):
    torch.manual_seed(2)
    teacher = models.create_model("mobilenetv3_small_050", num_classes=10)
    file = tmp_path / "other.pth"
    checkpoint.save(file, own.checkpoint_of(
        teacher.state_dict(), teacher.config, {}, list("0123456789"), {}))
    result = script("train.py", *options, "--teacher", file, "--output", tmp_path / "run",
                    "--resume", whole[0] / checkpoint.LAST)
    assert result.status == 0, result.err
    (line,) = result.lines("=> resumed with other options")
    assert "teacher_weights " in line and f"-> {file}" in line


def test_the_mean_of_its_checkpoints_is_scored_as_any_other_file(whole, script, tmp_path):
    output = tmp_path / "mean.pth.tar"
    assert average.run([str(whole[0]), "-k", "2", "--output", str(output)]) == 0
    result = script("validate.py", "--ckpt_path", output, "--device", "cpu", "--workers", 0)
    assert result.status == 0, result.err
    assert result.lines(" * Acc@1")

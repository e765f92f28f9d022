"""train.py as a user runs it, on the built-in demo set."""
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from conftest import QUICK, ROOT, SMALL

from mobilenetv3 import checkpoint


def weights(folder, name=checkpoint.LAST):
    return checkpoint.load(folder / name)["state_dict"]


def assert_same_weights(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.fixture(scope="module")
def whole(script, tmp_path_factory):
    """A run of three epochs that nothing disturbed, by a Python as a user starts it."""
    folder = tmp_path_factory.mktemp("runs") / "a run with spaces"
    result = script("train.py", *SMALL, "--epochs", 3, "--output", folder, python=sys.executable)
    assert result.status == 0, result.err
    return folder, result


def test_a_run_writes_what_it_promises(whole, metrics):
    folder, result = whole
    assert sorted(os.listdir(str(folder))) == [
        "checkpoint.pth.tar", "checkpoints", "config.yaml", "environment.jsonl", "metrics.jsonl",
        "model_best.pth.tar", "run.lock", "train.log", "validation.json",
    ]
    log = (folder / "train.log").read_text().splitlines()
    assert log == result.out.splitlines()
    records = metrics(folder)
    assert [record["epoch"] for record in records] == [0, 1, 2]
    assert {record["val_images"] for record in records} == {360}
    best = max(record["val_acc1"] for record in records)
    assert log[-1].startswith(f"=> best Acc@1 {best:.3f} ")
    assert log[-1].endswith(f"weights: {folder / 'model_best.pth.tar'}")
    assert result.lines(" * FPS@all")
    assert "demo: UCI digits" in result.lines("=> run ")[0]


def test_the_checkpoint_holds_tensors_and_plain_containers_and_says_what_it_is(whole):
    state = checkpoint.load(whole[0] / checkpoint.LAST)
    assert (state["epoch"], state["arch"]) == (3, "mobilenetv3_small_050")
    assert state["classes"] == list("0123456789")
    assert state["config"]["img_size"] == 32


def test_the_saved_configuration_runs_the_same_again(whole, script, tmp_path):
    result = script("train.py", "-c", whole[0] / "config.yaml", "--output", tmp_path / "again")
    assert result.status == 0, result.err
    assert_same_weights(weights(tmp_path / "again"), weights(whole[0]))


def test_a_run_killed_in_an_epoch_and_resumed_ends_with_the_same_weights(
        whole, script, environment, tmp_path, metrics):
    folder = tmp_path / "killed"
    command = [sys.executable, str(ROOT / "train.py"), *map(str, SMALL), "--epochs", "3",
               "--print_freq", "1", "--output", str(folder)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, universal_newlines=True)
    for line in process.stdout:
        if line.startswith("Epoch: [1][3/"):
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait(60) == -signal.SIGKILL
    process.stdout.close()
    assert checkpoint.load(folder / checkpoint.LAST)["epoch"] == 1

    result = script("train.py", *SMALL, "--epochs", 3, "--output", folder, "--resume", "auto")
    assert result.status == 0, result.err
    assert "(epoch 1)" in result.lines("=> resumed from")[0]
    assert_same_weights(weights(folder), weights(whole[0]))
    ours, theirs = metrics(folder), metrics(whole[0])
    for record in ours + theirs:
        record.pop("seconds"), record.pop("fps", None)
    assert ours == theirs


def test_resuming_a_finished_run_changes_nothing(whole, script):
    before = (whole[0] / checkpoint.LAST).read_bytes()
    result = script("train.py", *SMALL, "--epochs", 3, "--output", whole[0], "--resume", "auto")
    assert result.status == 0, result.err
    assert result.lines("=> best Acc@1")
    assert (whole[0] / checkpoint.LAST).read_bytes() == before


def test_twenty_steps_equal_those_of_a_plain_loop_with_timm(tmp_path, monkeypatch, cache):
    """timm's model and optimizer, torchvision's pixels; only the order of images is ours.

    Pixels are normalised in the order of operations of timm's loader: another order rounds
    differently in the last bit, which twenty steps magnify beyond the bound.
    """
    timm = pytest.importorskip("timm")
    from timm.optim import create_optimizer_v2
    from torchvision import datasets
    from torchvision import transforms as tv

    from mobilenetv3 import config, data, device, entry, logfmt, models, options
    from mobilenetv3.data import demo

    monkeypatch.setenv("MOBILENETV3_CACHE", str(cache))
    monkeypatch.syspath_prepend(str(ROOT))
    import train

    printed, write = [], logfmt.TrainLine.line
    monkeypatch.setattr(  # the log rounds to four digits; the comparison must not
        logfmt.TrainLine, "line", lambda self: (printed.append(self), write(self))[1])
    cfg = config.parse(options.train_parser(), [str(a) for a in (
        "-c", ROOT / "configs" / "demo.yaml", *QUICK, "--model",
        "mobilenetv3_small_050", "--opt", "sgd", "--lr", 0.02, "--max_steps",
        20, "--print_freq", 1, "--skip_validation", "--channels_last=false", "--optimizer_form",
        "plain", "--output", tmp_path / "run")])
    # As timm sums, too; another order rounds differently, as above.
    models.set_fast_backward(False)
    try:
        assert entry.run(train.main, cfg, "train.py") == 0
    finally:
        models.set_fast_backward(True)

    data.seed_epoch(device.select("cpu"), cfg.seed, 0, 0)
    start = models.create_model("mobilenetv3_small_050", num_classes=10).state_dict()
    model = timm.create_model("mobilenetv3_small_050", num_classes=10)
    model.load_state_dict(start)
    model.train()
    optimizer = create_optimizer_v2(
        model, opt="sgd", lr=0.02, momentum=0.9, weight_decay=1e-4, filter_bias_and_bn=False)
    pixels = datasets.ImageFolder(str(demo.folder() / "train"), tv.Compose([
        tv.Resize(32), tv.CenterCrop(32), np.array]))
    mean, std = (torch.tensor(v).view(3, 1, 1) * 255 for v in (
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    losses = []
    for batch in list(data.TrainSampler(len(pixels), 64, 0, 1, cfg.seed))[:20]:
        items = [pixels[index] for _, index in batch]
        images = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image, _ in items])
        labels = torch.tensor([label for _, label in items])
        output = model(images.float().sub(mean).div(std))
        loss = torch.nn.functional.cross_entropy(output, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert len(printed) == 20
    assert losses[-1] < losses[0]  # it learns; a frozen model would agree, too
    assert [line.loss for line in printed] == pytest.approx(losses, abs=1e-5)


def test_every_recipe_part_trains(script, tmp_path, metrics):
    folder = tmp_path / "run"
    result = script(
        "train.py", "--device", "cpu", "--img_size", 32, "--workers", 1, "--batch_size", 128,
        "--model", "mobilenetv3_small_050", "--epochs", 2,
        "--opt", "rmsproptf", "--lr", 0.002, "--sched", "step", "--decay_epochs", 2.4,
        "--decay_rate", 0.973, "--warmup_epochs", 1, "--aa", "rand-m9-mstd0.5", "--reprob", 0.2,
        "--remode", "pixel", "--mixup", 0.2, "--cutmix", 1.0, "--smoothing", 0.1, "--drop", 0.2,
        "--drop_path", 0.2, "--model_ema", "--model_ema_decay", 0.9, "--clip_grad", 5.0,
        "--grad_accum_steps", 2, "--filter_bias_and_bn", "--channels_last", "--log_tensorboard",
        "--train_interpolation", "random", "--output", folder)
    assert result.status == 0, result.err
    records = metrics(folder)
    for record in records:
        for name in ("loss", "acc1", "acc5"):  # the average counts
            assert record[f"val_{name}"] == record[f"val_{name}_ema"]
        assert record["val_loss_trained"] != record["val_loss_ema"]
    assert len(result.lines(" * Acc@1")) == 2  # the averaged weights, once an epoch
    assert list((folder / "tensorboard").iterdir())
    assert checkpoint.load(folder / checkpoint.LAST)["state_dict_ema"]


def test_a_not_finite_loss_stops_the_run_and_keeps_the_last_good_checkpoint(script, tmp_path):
    folder = tmp_path / "run"
    good = script("train.py", *SMALL, "--epochs", 1, "--output", folder)
    assert good.status == 0, good.err
    saved = (folder / checkpoint.LAST).read_bytes()
    bad = script("train.py", *SMALL, "--epochs", 2, "--lr", 1e30, "--sched", "step",
                 "--output", folder, "--resume", "auto")
    assert bad.status == 1
    assert "the loss is" in bad.last and "epoch 1, step " in bad.last
    assert (folder / checkpoint.LAST).read_bytes() == saved


def test_max_steps_ends_the_run_and_says_that_nothing_was_validated(script, tmp_path):
    result = script("train.py", *QUICK, "--epochs", 1000, "--max_steps", 5, "--skip_validation",
                    "--output", tmp_path / "run")
    assert result.status == 0, result.err
    assert not result.lines("Test:") and not result.lines(" * Acc@1")
    assert result.out.splitlines()[-1].endswith("checkpoint.pth.tar (not validated)")
    assert '"model": "mobilenetv3_small_100"' in result.lines("=> run ")[0]  # the demo recipe's


@pytest.mark.parametrize("arguments, status, words", [
    (["--data_path", "/nowhere/at all"], 1, ["/nowhere/at all", "expected DIR/train/CLASS"]),
    (["--model", "mobilenetv3_largo_100"], 1, ["mobilenetv3_largo_100", "mobilenetv3_large_100"]),
    (["--epohcs", "3"], 2, ["--epohcs", "--epochs"]),
    (["--batch_size", "5000"], 1, ["5000", "1437"]),
    (["--resume", "/nowhere.pth.tar"], 1, ["/nowhere.pth.tar"]),
    (["--ckpt_path", "/nowhere.pth.tar"], 1, ["/nowhere.pth.tar"]),
    (["--num_classes", "5"], 1, ["5", "10 classes"]),
    (["--distributed"], 1, ["torchrun"]),
])
def test_a_users_mistake_is_told_in_one_sentence(script, tmp_path, arguments, status, words):
    output = tmp_path / "run"
    result = script("train.py", *QUICK, "--output", output, *arguments)
    assert result.status == status
    assert all(word in result.last for word in words), result.err
    assert "Traceback" not in result.err
    assert not output.exists()  # a run that never began leaves no folder


def test_an_existing_folder_is_not_overwritten(script, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    result = script("train.py", *QUICK, "--output", tmp_path)
    assert result.status == 1
    assert "is not empty" in result.last
    assert os.listdir(str(tmp_path)) == ["notes.txt"]


def test_a_damaged_checkpoint_is_not_resumed(script, tmp_path):
    (tmp_path / "checkpoint.pth.tar").write_bytes(b"PK\3\4 cut short")
    result = script("train.py", *QUICK, "--output", tmp_path, "--resume", "auto")
    assert result.status == 1
    assert "checkpoint.pth.tar" in result.last and "damaged" in result.last


def test_another_model_is_not_resumed(whole, script):
    result = script("train.py", *QUICK, "--epochs", 4, "--model", "mobilenetv2_035",
                    "--output", whole[0], "--resume", "auto")
    assert result.status == 1
    assert "mobilenetv3_small_050" in result.last and "mobilenetv2_035" in result.last


def test_help_answers_within_a_second_and_loads_nothing_heavy(environment):
    # Counted in processor seconds: a busy machine must not fail it. Loading torch takes over 1 s.
    code = ("import resource, runpy, sys\nsys.argv = ['train.py', '--help']\n"
            "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "except SystemExit: pass\n"
            "heavy = {'torch', 'numpy', 'timm', 'torchvision', 'PIL'} & set(sys.modules)\n"
            "usage = resource.getrusage(resource.RUSAGE_SELF)\n"
            "assert not heavy, heavy\n"
            "assert usage.ru_utime + usage.ru_stime < 1.0, usage\n")
    process = subprocess.run([sys.executable, "-c", code], cwd=str(ROOT), env=environment,
                             capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "--grad_accum_steps" in process.stdout


def test_evaluate_scores_the_weights_and_leaves_nothing_behind(whole, script, tmp_path, metrics):
    result = script("train.py", *SMALL, "--evaluate", "--resume", whole[0] / checkpoint.BEST,
                    cwd=tmp_path)
    assert result.status == 0, result.err
    best = max(record["val_acc1"] for record in metrics(whole[0]))
    assert result.lines(" * Acc@1")[0].startswith(f" * Acc@1 {best:.3f} ")
    assert not os.listdir(str(tmp_path))


def test_the_best_validation_is_kept_and_an_evaluation_with_a_folder_finds_the_same(
        whole, script, tmp_path, metrics):
    def seen(folder):
        return json.loads((folder / "validation.json").read_text())

    best = max(metrics(whole[0]), key=lambda record: record["val_acc1"])
    kept = seen(whole[0])
    assert {name: kept[name] for name in best if name.startswith("val_")} == {
        name: value for name, value in best.items() if name.startswith("val_")}
    assert sum(row[2] for row in kept["confusion"]) == 360
    right = sum(images for true, predicted, images in kept["confusion"] if true == predicted)
    assert right / 3.6 == pytest.approx(best["val_acc1"])
    result = script("train.py", *SMALL, "--evaluate", "--resume", whole[0] / checkpoint.BEST,
                    "--output", tmp_path / "scored")
    assert result.status == 0, result.err
    found = seen(tmp_path / "scored")
    assert all(found[name] == kept[name] for name in found)


def test_the_configuration_is_saved_with_all_options(whole):
    saved = yaml.safe_load((whole[0] / "config.yaml").read_text())
    recipe = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    assert (saved["epochs"], saved["img_size"], saved["no_aug"]) == (3, 32, True)  # as typed
    assert (saved["lr"], saved["opt"]) == (recipe["lr"], recipe["opt"])
    assert (saved["dataset"], saved["mixup"]) == ("demo", 0.0)


def test_runs_without_an_output_folder_get_new_ones(script, tmp_path):
    for _ in range(2):
        result = script("train.py", *SMALL, "--epochs", 1, "--max_steps", 1, "--skip_validation",
                        cwd=tmp_path)
        assert result.status == 0, result.err
        time.sleep(1)  # they are named by the second
    assert len(os.listdir(str(tmp_path / "output"))) == 2


def test_validate_scores_the_file_that_pretrained_names_and_not_timms_weights(
        whole, script, metrics):
    """The file was passed over, and timm's weights of the model's name were asked for."""
    result = script("validate.py", "--pretrained", whole[0] / checkpoint.BEST, "--device", "cpu",
                    "--workers", 0, HF_HUB_OFFLINE="1")
    assert result.status == 0, result.err
    best = max(record["val_acc1"] for record in metrics(whole[0]))
    assert result.lines(" * Acc@1")[0].startswith(f" * Acc@1 {best:.3f} ")

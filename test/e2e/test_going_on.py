"""Going on, or back, as a user types it: the same line again, other folders, scoring on the way."""
import json
import shutil

import pytest
import torch
from conftest import ROOT, SMALL

from mobilenetv3 import checkpoint, config, entry, keep, logfmt, models, options, runfolder
from mobilenetv3.convert import own

pytestmark = pytest.mark.slow

START = ("--epochs", 1, "--checkpoint_every", 2, "--keep_last", 9)
INSIDE = f"{keep.FOLDER}/{keep.file_name(keep.Position(0, 2))}"


@pytest.fixture
def train(monkeypatch, cache, capfd):
    """train(options...) -> (exit status, standard output, last line of standard error)."""
    monkeypatch.setenv("MOBILENETV3_CACHE", str(cache))
    monkeypatch.syspath_prepend(str(ROOT))
    import train

    def run(*arguments):
        cfg = config.parse(options.train_parser(), [str(a) for a in (*SMALL, *arguments)])
        status = entry.run(train.main, cfg, "train.py")
        out, err = capfd.readouterr()
        return status, out, (err.strip().splitlines() or [""])[-1]
    return run


@pytest.fixture(scope="module")
def averaged(script, tmp_path_factory):
    """A run of five steps with averaged weights, and a checkpoint every two."""
    folder = tmp_path_factory.mktemp("runs") / "averaged"
    result = script("train.py", *SMALL, *START, "--model_ema", "--model_ema_decay", 0.5,
                    "--output", folder)
    assert result.status == 0, result.err
    return folder


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
            for path in sorted(folder.rglob("*")) if path.name != runfolder.LOCK}


def test_the_line_that_began_with_a_file_s_weights_goes_on_with_its_batchnorm(train, tmp_path):
    """It said: cannot be resumed: its model has bn_eps 0.001, this run's has 1e-05."""
    model = models.create_model("mobilenetv3_small_050", num_classes=10, bn_eps=1e-3,
                                bn_momentum=0.01)
    weights = tmp_path / "weights.pth"
    checkpoint.save(weights, own.checkpoint_of(
        model.state_dict(), model.config, {}, list("0123456789"), {}))
    line = ("--ckpt_path", weights, "--output", tmp_path / "run", "--epochs", 1, "--max_steps", 5,
            "--skip_validation", "--resume", "auto")
    for told in ("=> no checkpoint in", "=> resumed from"):
        status, out, err = train(*line)
        assert status == 0 and told in out, err
    saved = checkpoint.load(tmp_path / "run" / checkpoint.LAST)["model"]
    assert (saved["bn_eps"], saved["bn_momentum"]) == (1e-3, 0.01)
    status, _, err = train(*line, "--bn_eps", 1e-4)  # what is typed is meant
    assert status == 1 and "its model has bn_eps 0.001, this run's has 0.0001" in err


def test_an_evaluation_scores_the_average_whatever_the_run_was_trained_with(
        averaged, train, validate, tmp_path):
    """It scored the other weights, and wanted the optimizer, the batch and the seed of the run."""
    losses = {}
    for ema in ("true", "false"):
        validate("--ckpt_path", averaged / INSIDE, f"--ema={ema}", "--json", tmp_path / ema)
        losses[ema] = json.loads((tmp_path / ema).read_text())["results"][0]["loss"]
    assert abs(losses["true"] - losses["false"]) > 1e-3
    others = ("--opt", "adamw", "--batch_size", 128, "--seed", 7, "--drop", 0.3)
    for more in ((), ("--model_ema",)):
        folder = tmp_path / f"scored{len(more)}"
        status, out, err = train("--evaluate", "--resume", averaged / INSIDE, "--output", folder,
                                 *others, *more)
        assert status == 0, err
        assert f"=> weights loaded: {averaged / INSIDE} (epoch 0, step 2, averaged)" in out
        found = json.loads((folder / "validation.json").read_text())
        # Here batch norms are not folded, which changes the last digits.
        assert found["val_loss"] == pytest.approx(losses["true"], abs=1e-4)


@pytest.mark.parametrize("words, told", [
    (("--model", "mobilenetv3_small_075"), "its model has arch mobilenetv3_small_050"),
    (("--num_classes", 12), "its model has num_classes 10, this run's has 12"),
])
def test_an_evaluation_of_another_model_is_refused(averaged, train, words, told):
    status, _, err = train("--evaluate", "--resume", averaged / INSIDE, *words)
    assert status == 1 and told in err


def test_an_evaluation_in_the_run_s_folder_leaves_its_metrics(averaged, train, tmp_path):
    """Those of all epochs behind the checkpoint were taken away, as if they were made again."""
    folder = tmp_path / "run"
    shutil.copytree(str(averaged), str(folder))
    before = (folder / runfolder.METRICS).read_bytes()
    status, _, err = train("--evaluate", "--resume", folder / INSIDE, "--output", folder)
    assert status == 0, err
    assert (folder / runfolder.METRICS).read_bytes() == before != b""


def test_a_run_s_folder_is_not_taken_by_the_checkpoint_of_another_one(averaged, train, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(str(averaged), str(folder))
    before = content(folder)
    for more in ((), ("--dry_run",)):
        status, _, err = train(*START, "--model_ema", "--resume", averaged / checkpoint.LAST,
                               "--output", folder, *more)
        assert status == 1 and f"--output {folder} holds a run that" in err, err
        assert content(folder) == before


def test_going_back_to_one_of_the_checkpoints_goes_on_in_the_run(averaged, train, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(str(averaged), str(folder))
    status, out, err = train(*START, "--model_ema", "--model_ema_decay", 0.5, "--resume",
                             folder / INSIDE)
    assert status == 0, err
    assert "=> beyond epoch 0, step 2, hence kept under another name" in out
    assert (folder / keep.FOLDER / f"epoch_0001_step_000000.pth.tar{keep.ASIDE}").is_file()
    ours, theirs = (checkpoint.load(path / checkpoint.LAST) for path in (folder, averaged))
    assert all(torch.equal(value, ours["state_dict"][name])
               for name, value in theirs["state_dict"].items())


def test_the_last_line_of_a_run_that_went_on_elsewhere_names_a_file_that_is_there(
        averaged, train, tmp_path):
    folder = tmp_path / "run"
    status, out, err = train(*START, "--model_ema", "--model_ema_decay", 0.5, "--skip_validation",
                             "--resume", averaged / checkpoint.LAST, "--output", folder)
    assert status == 0, err
    best = logfmt.parse(out.splitlines()[-1])
    assert isinstance(best, logfmt.Best) and best.path == str(folder / checkpoint.BEST)
    assert checkpoint.load(best.path)["best_epoch"] == best.epoch == 0

import os
import pickle
import stat

import pytest
import torch

from mobilenetv3 import checkpoint, files


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "a b.pth.tar"
    state = {"epoch": 3, "weights": {"w": torch.arange(6.0).view(2, 3)}, "names": ["x", None, 1.5]}
    checkpoint.save(path, state)
    loaded = checkpoint.load(path)
    assert torch.equal(loaded["weights"]["w"], state["weights"]["w"])
    assert (loaded["epoch"], loaded["names"]) == (3, ["x", None, 1.5])
    assert os.listdir(str(tmp_path)) == ["a b.pth.tar"]  # no temporary file stays


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "checkpoint.pth.tar"
    checkpoint.save(path, {"epoch": 1})

    def fails(file):
        file.write(b"half of it")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        files.write_atomically(path, fails)
    assert checkpoint.load(path) == {"epoch": 1}
    assert os.listdir(str(tmp_path)) == ["checkpoint.pth.tar"]


def test_the_file_is_readable_as_the_umask_says(tmp_path):
    path = tmp_path / "checkpoint.pth.tar"
    previous = os.umask(0o027)
    try:
        checkpoint.save(path, {})
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640  # a temporary file's own mode is 0600


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (self.marker, "w"))


@pytest.mark.parametrize("write", [
    lambda value, path: torch.save(value, str(path)),
    lambda value, path: torch.save(value, str(path), _use_new_zipfile_serialization=False),
    lambda value, path: path.write_bytes(pickle.dumps(value)),
], ids=["zip", "legacy", "bare pickle"])
def test_loading_executes_nothing(tmp_path, write):
    marker = tmp_path / "executed"
    path = tmp_path / "checkpoint.pth.tar"
    write({"state_dict": Malicious(str(marker))}, path)
    with pytest.raises(ValueError, match="checkpoint"):
        checkpoint.load(path)
    assert not marker.exists()


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        checkpoint.load(tmp_path / "nowhere.pth")


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path, keep):
    path = tmp_path / "checkpoint.pth.tar"
    checkpoint.save(path, {"w": torch.randn(1000)})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ValueError, match="checkpoint.pth.tar"):
        checkpoint.load(path)


def test_weights_are_found_in_a_checkpoint_and_bare_and_behind_a_prefix():
    w = {"a": torch.ones(1)}
    assert checkpoint.weights_of(w) == w
    assert checkpoint.weights_of({"state_dict": w, "epoch": 1}) == w
    assert checkpoint.weights_of({"state_dict": {"module.a": w["a"]}}) == w
    averaged = {"a": torch.zeros(1)}
    assert checkpoint.weights_of({"state_dict": w, "state_dict_ema": averaged}) == averaged
    assert checkpoint.weights_of({"state_dict": w, "state_dict_ema": None}) == w


def test_weights_that_do_not_fit_are_listed():
    model = torch.nn.Linear(2, 3)
    weights = {"weight": torch.zeros(4, 2), "extra": torch.zeros(1)}
    with pytest.raises(ValueError) as error:
        checkpoint.load_weights(model, weights, "file.pth")
    text = str(error.value)
    assert "1 missing: bias" in text
    assert "1 unexpected: extra" in text
    assert "weight (4, 2) (the model's is (3, 2))" in text
    with pytest.raises(ValueError, match="no state_dict"):
        checkpoint.load_weights(model, {"epoch": 1}, "file.pth")


def test_only_the_same_model_is_resumed():
    state = dict.fromkeys(["epoch", "state_dict", "optimizer", "precision"], 1)
    state["model"] = {"arch": "mobilenetv3_small_100", "num_classes": 10}
    checkpoint.check_resumable(state, "f", {"arch": "mobilenetv3_small_100"}, has_ema=False)
    with pytest.raises(ValueError, match="num_classes 10, this run's has 1000"):
        checkpoint.check_resumable(state, "f", {"num_classes": 1000}, has_ema=False)
    with pytest.raises(ValueError, match="saved by a run without it"):
        checkpoint.check_resumable(state, "f", {}, has_ema=True)
    with pytest.raises(ValueError, match="--ckpt_path"):
        checkpoint.check_resumable({"state_dict": {}}, "f", {}, has_ema=False)

import pytest

from mobilenetv3 import entry


def raising(error):
    def main(cfg):
        raise error
    return main


def test_success_is_0():
    assert entry.run(lambda cfg: None, None, "train.py") == 0


@pytest.mark.parametrize("error", [ValueError("a bad value"), FileNotFoundError("a bad value"),
                                   OSError("a bad value")])
def test_a_users_error_is_one_sentence_and_status_1(error, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert entry.run(raising(error), None, "train.py") == 1
    assert capsys.readouterr().err == "train.py: error: a bad value\n"


def test_the_rank_is_named_where_there_are_several(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "5")
    entry.run(raising(ValueError("a bad value")), None, "train.py")
    assert capsys.readouterr().err == "train.py: error (rank 5): a bad value\n"


def test_our_own_error_keeps_its_traceback(capsys):
    assert entry.run(raising(TypeError("a bug")), None, "train.py") == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_lost_rank_is_told_apart_from_this_ranks_own_fault(capsys):
    error = RuntimeError("[enforce fail] Timed out waiting 15000ms for recv operation to complete")
    assert entry.run(raising(error), None, "train.py") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "another rank stopped answering" in line and "--dist_timeout" in line


def test_interrupt_is_130():
    assert entry.run(raising(KeyboardInterrupt()), None, "train.py") == 130


def test_an_error_from_a_loader_process_is_told_without_its_traceback():
    text = ('Caught OSError in DataLoader worker process 0.\nOriginal Traceback (most recent call '
            'last):\n  File "x.py", line 1, in f\nOSError: cannot read a.jpg: truncated')
    assert entry.sentence(OSError(text)) == "cannot read a.jpg: truncated"

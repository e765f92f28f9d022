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


GLOO = "/pytorch/third_party/gloo/gloo/transport/tcp/"


@pytest.mark.parametrize("text", [
    f"[{GLOO}unbound_buffer.cc:84] Timed out waiting 15000ms for recv operation to complete",
    f"[{GLOO}pair.cc:553] Connection closed by peer [10.0.0.2]:4321",
    f"[{GLOO}pair.cc:260] writev [10.0.0.2]:4321: Broken pipe",
    f"[{GLOO}pair.cc:598] Read error [10.0.0.2]:4321: No route to host",
    "Application timeout caused pair closure"])
def test_a_lost_rank_is_told_apart_from_this_ranks_own_fault(text, capsys):
    assert entry.run(raising(RuntimeError(text)), None, "train.py") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"another rank stopped answering ({text})" in line and "--dist_timeout" in line


def test_a_message_of_another_size_than_expected_is_no_lost_rank(capsys):
    error = RuntimeError(f"[enforce fail at {GLOO}pair.cc:446] op.preamble.length <= op.nbytes")
    assert entry.run(raising(error), None, "train.py") == 1
    told = capsys.readouterr().err
    assert "Traceback" in told and "stopped answering" not in told


def test_interrupt_is_130():
    assert entry.run(raising(KeyboardInterrupt()), None, "train.py") == 130


def test_an_error_from_a_loader_process_is_told_without_its_traceback():
    text = ('Caught OSError in DataLoader worker process 0.\nOriginal Traceback (most recent call '
            'last):\n  File "x.py", line 1, in f\nOSError: cannot read a.jpg: truncated')
    assert entry.sentence(OSError(text)) == "cannot read a.jpg: truncated"

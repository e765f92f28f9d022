"""The line that tells where a run is: what it says, and where it is written."""
import contextlib
import fcntl
import io
import os
import pty
import struct
import sys
import termios
import threading

import pytest
from reportruns import RUN, STEPS, line, resumed, validation, whole, write

from mobilenetv3 import runfolder
from mobilenetv3.live import Course, Line, clock
from mobilenetv3.report import follow


def course(*records):
    found = Course()
    for record in records:
        found.add(record)
    return found


def test_what_is_told_and_what_is_left_out_first():
    found = course(RUN, *[line(0, step) for step in range(STEPS)], *validation(60.0, 55.0),
                   line(1, 0))
    parts = found.parts()
    # 7 steps of 0.4 s and two validations of two passes of 0.1 s each are left: 3.2 s.
    assert parts[:2] + parts[3:] == ["epoch 2/3", "step 1/4", "Acc@1 60.00", "80 img/s",
                                     "data wait 5 %", "loss 0.900"]
    assert found.seconds_left(1) == pytest.approx(7 * 0.4 + 2 * 0.2)
    assert found.line(40, fancy=False) == "epoch 2/3 | step 1/4 | 0:03 left"
    assert len(found.line(20)) <= 20


def test_the_best_stands_beside_a_validation_that_is_not_it():
    found = course(RUN, line(0, 3), *validation(60.0, 55.0), line(1, 3), *validation(50.0, 45.0))
    assert "Acc@1 50.00 (best 60.00)" in found.parts()
    assert course(*whole()).is_over and not course(*whole()[:-1]).is_over


def test_a_run_that_ends_inside_its_epochs_has_less_left():
    assert course(RUN._replace(max_steps=6), line(1, 0)).seconds_left(1) == pytest.approx(0.4)
    assert course(RUN, line(0, 0)).seconds_left(1) == pytest.approx(11 * 0.4)
    assert course(line(0, 0)).seconds_left(1) is None


@pytest.mark.parametrize("seconds, text", [
    (9, "0:09"), (754, "12:34"), (3723, "1:02:03"), (273_900, "3 d 04:05"), (float("inf"), "?")])
def test_durations(seconds, text):
    assert clock(seconds) == text


# ---------------------------------------------------------------------------------- in training


def test_on_a_terminal_the_line_moves_below_the_log_and_is_gone_in_the_end(tmp_path, monkeypatch):
    ours, theirs = pty.openpty()
    parts = []
    reader = threading.Thread(target=_read_all, args=(ours, parts))
    reader.start()
    terminal = os.fdopen(theirs, "w", encoding="utf-8")
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    run = runfolder.RunFolder(tmp_path)
    run.log(RUN.line())
    for batch in run.progress(range(STEPS)):
        run.log(line(0, batch).line())
    run.end_progress()
    run.log("=> the end")
    run.close()
    terminal.close()
    reader.join(20)
    os.close(ours)
    shown = b"".join(parts).decode()
    logged = (tmp_path / runfolder.LOG).read_text()
    assert logged == "\n".join([RUN.line(), *(line(0, step).line() for step in range(STEPS)),
                                "=> the end", ""])
    assert "epoch 1/3 · step 3/4" in shown
    # Each time the line is cleared before another line is written; the last one is no progress.
    assert shown.endswith("\r\x1b[K=> the end\r\n")
    assert all(text.startswith("\x1b[K") for text in shown.replace("\r\n", "\n").split("\r")[1:])


def _read_all(handle, parts):
    with contextlib.suppress(OSError):  # the other end is closed
        while True:
            parts.append(os.read(handle, 4096))


def test_where_there_is_no_terminal_there_is_nothing_but_the_log(tmp_path, capfd):
    run = runfolder.RunFolder(tmp_path)
    for batch in run.progress(range(3)):
        run.log(line(0, batch).line())
    run.end_progress()
    run.close()
    out, err = capfd.readouterr()
    assert err == "" and out == (tmp_path / runfolder.LOG).read_text()
    assert "\r" not in out and "\x1b" not in out


def test_the_line_had_the_width_of_standard_output_where_that_is_a_pipe(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")  # what is known of a pipe
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb"), os.fdopen(theirs, "w") as terminal:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 50, 0, 0))
        assert Line(terminal).width == 49  # the last column stays free
    assert Line(io.StringIO()).width == 79


@pytest.mark.parametrize("encoding, shown", [
    ("ascii", "r\\xe9sum\\xe9/\\u6570"), ("latin-1", "r\xe9sum\xe9/\\u6570"),
    ("utf-8", "r\xe9sum\xe9/\u6570"),
])
def test_a_path_with_letters_that_the_terminal_has_not_ended_the_training(
        encoding, shown, tmp_path, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    run = runfolder.RunFolder(tmp_path)
    run.log("=> weights loaded: r\xe9sum\xe9/\u6570")
    run.close()
    assert written.getvalue().decode(encoding) == f"=> weights loaded: {shown}\n"
    assert (tmp_path / runfolder.LOG).read_text("utf-8").endswith("r\xe9sum\xe9/\u6570\n")


# ------------------------------------------------------------------------------------ beside it


def test_a_run_is_followed_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(follow, "POLL_S", 0.02)
    monkeypatch.setattr(follow, "PLAIN_S", 0.0)
    lines = [record.line() + "\n" for record in whole()]
    log = write(tmp_path, [RUN]) / "train.log"
    held = runfolder.lock(tmp_path)
    told = io.StringIO()
    follower = threading.Thread(target=follow.follow, args=(tmp_path, told))
    follower.start()
    try:
        with open(str(log), "a") as file:
            for number, text in enumerate(lines[1:]):
                file.write(text[:9])
                file.flush()
                file.write(text[9:])
                file.flush()
                if number == 2:
                    while "step 3/4" not in told.getvalue():
                        assert follower.is_alive()
    finally:
        follower.join(20)
        held.release()
    assert not follower.is_alive()
    assert told.getvalue().splitlines()[-1] == "finished: best Acc@1 80.000"
    assert "\r" not in told.getvalue()


def test_a_run_that_was_killed_is_not_waited_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(follow, "POLL_S", 0.02)
    monkeypatch.setattr(follow, "GRACE_S", 0.05)
    runfolder.lock(write(tmp_path, resumed()[:-6])).release()
    assert follow.follow(tmp_path) == 1
    assert capsys.readouterr().out.splitlines()[-1] == (
        "no process writes to it any more; it stopped at epoch 3/3 | step 4/4, "
        "best Acc@1 70.000")


def test_following_an_evaluation_ended_before_its_first_image(tmp_path, monkeypatch):
    """It scores two files of weights; asked each time whether it runs, it has come further."""
    weights = [RUN._replace(epochs=0), "=> weights: model_best.pth.tar"]
    log, parts = list(weights), [validation(60.0, 55.0), [*weights, *validation(70.0, 65.0)]]
    write(tmp_path, log)

    def is_running(folder):
        if not parts:
            return False
        log.extend(parts.pop(0))
        write(tmp_path, log)
        return True
    monkeypatch.setattr(follow, "POLL_S", 0.0)
    monkeypatch.setattr(follow, "is_running", is_running)
    told = io.StringIO()
    assert follow.follow(tmp_path, told) == 0
    assert told.getvalue().splitlines()[-1] == "finished: best Acc@1 70.000"


def test_without_locks_an_evaluation_is_followed_to_its_accuracy(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(follow, "is_running", lambda folder: None)  # that cannot be told
    write(tmp_path, [RUN._replace(epochs=0), "=> weights: a.pth", *validation(60.0, 55.0)])
    assert follow.follow(tmp_path) == 0
    assert capsys.readouterr().out == "finished: best Acc@1 60.000\n"


def test_a_page_is_written_again_until_the_run_ends(tmp_path):
    folder = write(tmp_path, whole()[:-1])
    written = []

    def update(is_live):
        written.append(is_live)
        if len(written) == 1:
            with open(str(folder / "train.log"), "a") as file:
                file.write(whole()[-1].line() + "\n")
        return len(written) < 2

    follow.watch([folder], update, 0.01)
    assert written == [True, True, False]  # the last one does not read itself again


def test_ctrl_c_leaves_a_page_that_does_not_read_itself_again(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(follow.time, "sleep", _interrupt)
    follow.watch([write(tmp_path, whole()[:-1])], lambda is_live: not written.append(is_live), 1)
    assert written == [True, False]


def _interrupt(seconds):
    raise KeyboardInterrupt

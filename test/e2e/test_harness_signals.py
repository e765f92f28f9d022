"""Signals to the shell scripts, and to the ranks behind their back: who gets them, and how often.

The stub of train.py behaves as train.py does: the first signal lets it end its step, save and exit
with 128 + the signal's number, a second one ends it at once. (One rank and each signal, and eight
ranks and Ctrl-C: test_harness_1p.py and test_harness_8p.py.)
"""
import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time

import pytest
from harness_stub import Tree, finish, is_running

LISTEN = """
def stop(number, frame):
    if got:
        print("a second signal", flush=True)
        os._exit(1)
    got.append(number)
    print("got", signal.Signals(number).name, flush=True)

got = []
for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"):
    signal.signal(getattr(signal, name), stop)
print("hanging", flush=True)
end = time.monotonic() + 60
while not got and time.monotonic() < end:
    time.sleep(0.05)
step_s = float(os.environ.get("STEP_S", "0.6")) * (1 + rank)
time.sleep(step_s)
print("saved", flush=True)
sys.exit(128 + got[0])
"""


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def started(tree, script, count, *arguments, **env):
    """The running script, and the process ids of its ranks, each of which listens."""
    process = tree.start(script, *arguments, **dict({"STUB": LISTEN}, **env))
    pids = tree.wait_for_ranks(count)
    end = time.monotonic() + 20
    logs = [tree.output / str(rank) / f"train_{rank}.log" for rank in range(count)]
    while not all(log.exists() and "hanging" in log.read_text() for log in logs):
        assert time.monotonic() < end, "the ranks do not listen"
        time.sleep(0.05)
    return process, pids, logs


def nothing_is_left(tree, pids):
    """No rank, and nothing else that was started from that copy of the scripts."""
    if any(map(is_running, pids)):
        return False
    left = subprocess.run(["ps", "-eo", "args"], stdout=subprocess.PIPE, text=True).stdout
    return str(tree.root) not in left


def last_line(text):
    return text.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_ranks_under_torchs_launcher_get_a_schedulers_signal_once_and_are_waited_for(tree, name):
    """torchrun would die of SIGUSR1, and 1.8's launcher would kill the ranks at SIGTERM."""
    number = getattr(signal, name)
    process, pids, logs = started(tree, "train_full_8p.sh", 2, "--nproc=2")
    process.send_signal(number)
    done = finish(process, 60)
    assert done.returncode == 128 + number
    assert last_line(done.stderr) == f"[Error] interrupted by {name}; log: {logs[0]}"
    assert "Final" not in done.stdout
    for log in logs:
        assert log.read_text() == f"hanging\ngot {name}\nsaved\n"
    assert nothing_is_left(tree, pids)


@pytest.mark.slow
def test_an_interrupted_job_is_not_restarted(tree):
    pytest.importorskip("torch.distributed.run", reason="torchrun came with PyTorch 1.9")
    process, pids, logs = started(tree, "train_full_8p.sh", 2, "--nproc=2", "--max_restarts=3")
    process.send_signal(signal.SIGTERM)
    done = finish(process, 60)
    assert done.returncode == 143 and "restart" not in done.stderr
    assert [log.read_text().count("hanging") for log in logs] == [1, 1]
    assert nothing_is_left(tree, pids)


@pytest.mark.slow
def test_a_signal_that_reached_one_rank_only_is_reported_as_an_interrupt(tree):
    process, pids, logs = started(tree, "train_full_8p.sh", 2, "--nproc=2", STEP_S="0.1")
    os.kill(pids[1], signal.SIGUSR1)
    done = finish(process, 60)
    assert done.returncode == 138
    assert last_line(done.stderr) == (
        f"[Error] the run was interrupted by SIGUSR1, which reached rank 1; its log: {logs[1]}")
    assert "Final" not in done.stdout and nothing_is_left(tree, pids)


@pytest.mark.parametrize("script", ["train_full_1p.sh", "train_performance_1p.sh"])
def test_a_signal_that_reached_the_training_only_is_reported_as_an_interrupt(tree, script):
    process, pids, logs = started(tree, script, 1)
    os.kill(pids[0], signal.SIGTERM)
    done = finish(process, 30)
    assert done.returncode == 143
    assert last_line(done.stderr) == (
        f"[Error] the run was interrupted by SIGTERM; log: {logs[0]}")
    assert "Final" not in done.stdout and nothing_is_left(tree, pids)


def test_one_wish_that_comes_twice_is_one_signal(tree):
    """`timeout` signals its child and then the child's group, to which the child belongs."""
    process, pids, logs = started(tree, "train_full_1p.sh", 1)
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    done = finish(process, 30)
    assert done.returncode == 143
    assert logs[0].read_text() == "hanging\ngot SIGTERM\nsaved\n"


def test_a_terminal_that_closes_does_not_hurry(tree):
    """The shell hands SIGHUP on, and the kernel sends another to the foreground group."""
    process, pids, logs = started(tree, "train_full_1p.sh", 1, STEP_S="1.2")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.6)
    process.send_signal(signal.SIGHUP)
    done = finish(process, 30)
    assert done.returncode == 129
    assert logs[0].read_text() == "hanging\ngot SIGHUP\nsaved\n"


@pytest.mark.parametrize("second", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_second_signal_later_stops_at_once_whichever_it_is(tree, second):
    process, pids, logs = started(tree, "train_full_1p.sh", 1, STEP_S="30")
    process.send_signal(signal.SIGUSR1)
    time.sleep(0.6)
    process.send_signal(getattr(signal, second))
    done = finish(process, 10)
    assert done.returncode == 138
    assert "saved" not in logs[0].read_text()
    assert "SIGUSR1: stopping the run; once more stops it at once\n" in done.stderr
    assert nothing_is_left(tree, pids)


def in_a_terminal(tree, **variables):
    """The script in a terminal of its own, and the terminal's other end, once training runs."""
    master, slave = pty.openpty()

    def take_the_terminal():
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    variables = dict({"STUB": LISTEN}, **variables)
    env = dict(os.environ, STUB_CALLS=str(tree.calls), PYTHON=sys.executable,
               MNV3_CHECKED_PYTHON=sys.executable, **variables)
    process = subprocess.Popen(
        ["bash", str(tree.root / "test" / "train_full_1p.sh")], stdin=slave, stdout=slave,
        stderr=slave, cwd=str(tree.root), env=env, preexec_fn=take_the_terminal)
    os.close(slave)
    shown = b""
    while b"hanging" not in shown:
        shown += os.read(master, 4096)
    return process, master


def test_ctrl_c_in_a_terminal_reaches_the_training_once(tree):
    """It goes to the whole foreground process group; the training is in another one."""
    process, master = in_a_terminal(tree)
    shown = b""
    os.write(master, b"\x03")
    try:
        while True:
            shown += os.read(master, 4096)
    except OSError:  # the terminal's other end is closed
        pass
    assert process.wait(20) == 130
    os.close(master)
    shown = shown.replace(b"SIGINT: stopping the run; once more stops it at once\r\n", b"")
    assert re.search(rb"got SIGINT\r\nsaved\r\n\[Error\] interrupted by SIGINT; log", shown), shown
    assert b"second" not in shown and b"Final" not in shown


def test_a_terminal_that_is_gone_leaves_no_training_behind(tree):
    """Every message of the script fails then, with an error of its own."""
    process, master = in_a_terminal(tree)
    os.close(master)
    assert process.wait(20) == 129
    assert (tree.output / "0" / "train_0.log").read_text() == "hanging\ngot SIGHUP\nsaved\n"
    assert nothing_is_left(tree, [tree.call()["pid"]])


def test_ctrl_c_that_ends_the_reader_first_leaves_no_training_behind(tree):
    """`bash train_full_1p.sh 2>&1 | tee my.log`: tee dies of the same Ctrl-C, and sooner."""
    process, pids, logs = started(tree, "train_full_1p.sh", 1)
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert logs[0].read_text() == "hanging\ngot SIGINT\nsaved\n"
    assert nothing_is_left(tree, pids)


def display_of(process):
    """The process id of what brings the output of a script's rank 0 to log and terminal."""
    children = subprocess.run(["ps", "-ww", "-o", "pid=,args=", "--ppid", str(process.pid)],
                              stdout=subprocess.PIPE, text=True).stdout
    # The path of Python may have spaces.
    found = re.findall(r"^ *(\d+) /.* -I -S /.*/display\.py ", children, re.M)
    assert len(found) == 1, children
    return int(found[0])


def test_a_display_that_dies_does_not_stop_the_training(tree):
    """It reads the pipe that the training writes to."""
    process, pids, logs = started(tree, "train_full_1p.sh", 1, STUB=LISTEN.replace(
        'print("saved"', 'print("x" * 200000, "end of much")\nprint("saved"'))
    os.kill(display_of(process), signal.SIGKILL)
    time.sleep(0.5)
    os.kill(pids[0], signal.SIGTERM)
    done = finish(process, 30)
    assert done.returncode == 143
    assert "end of much\nsaved\n" in done.stdout
    assert logs[0].read_text().endswith("end of much\nsaved\n")


# ---- A terminal that stalls: Ctrl-S, `| less` that nobody pages through, a network that is down


# More than the pipes between training and reader hold, between an early result and the last one.
LONG_RUN = """
print(Run("mobilenetv3_large_100", "demo", "cpu", world, 128, 2, "O0", "2", 224, 1).line())
def step(epoch):
    print(TrainLine(epoch, 0, 1, 0.5, 0.5, 256.0, 256.0, 0.0, 0.0, 7.0, 6.5, 1.0, 1.0, 5.0, 5.0,
                    0.1).line())
step(0)
print(Throughput(100.0).line())
print(Accuracy(50.0, 80.0).line())
for number in range(LINES):
    print("line", number, "x" * 990)
step(1)
print(Throughput(200.0).line())
print(Accuracy(73.5, 91.3).line())
print(Best(73.5, 1, "ckpt/model_best.pth.tar").line())
"""


@pytest.mark.parametrize("lines", [66, 400])
def test_a_terminal_that_never_reads_cuts_no_log_and_does_not_keep_the_script(tree, lines):
    """The log ended at what the terminal had taken, and an earlier epoch's result was the final."""
    process = tree.start("train_full_1p.sh", STUB=f"LINES = {lines}\n{LONG_RUN}",
                         MNV3_TERMINAL_SECONDS="1")
    assert process.wait(60) == 0
    text = (tree.output / "0" / "train_0.log").read_text()
    assert text.count("\nline ") == lines and "\n=> best Acc@1 73.500" in text
    (result,) = (tree.output / "0").glob("MobileNet*_acc.log")
    assert {"ActualFPS = 200.000", "TrainAccuracy = 73.500"} <= set(result.read_text().splitlines())
    assert nothing_is_left(tree, [tree.call()["pid"]])
    process.communicate()


def test_a_terminal_that_reads_late_gets_the_final_result(tree):
    process = tree.start("train_full_1p.sh", STUB=f"LINES = 66\n{LONG_RUN}")
    text, log = "", tree.output / "0" / "train_0.log"
    while "=> best" not in text:
        text = log.read_text() if log.exists() else ""
        time.sleep(0.1)
    time.sleep(5)  # longer than the display is waited for
    done = finish(process, 30)
    assert done.returncode == 0 and done.stderr == ""
    assert f"\n[...] the whole output: {log}\n------------------ Final result ---" in done.stdout
    assert "Final Performance images/sec : 200.000\nFinal Train Accuracy : 73.500\n" in done.stdout


def test_a_failure_at_a_terminal_that_never_reads_has_its_status(tree):
    process = tree.start("train_full_1p.sh", STUB=f"LINES = 400\n{LONG_RUN}sys.exit(3)",
                         MNV3_TERMINAL_SECONDS="1")
    assert process.wait(60) == 3
    assert process.stderr.read() == (
        f"[Error] the run failed with exit status 3; log: {tree.output}/0/train_0.log\n")
    process.communicate()


def test_ctrl_s_in_a_terminal_stops_neither_training_nor_log(tree):
    process, master = in_a_terminal(tree, STUB=LISTEN.replace(
        'print("saved"', 'print("x" * 200000, "end of much")\nprint("saved"'),
        MNV3_TERMINAL_SECONDS="1")
    os.write(master, b"\x13")
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert (tree.output / "0" / "train_0.log").read_text().endswith("end of much\nsaved\n")
    assert nothing_is_left(tree, [tree.call()["pid"]])
    os.close(master)

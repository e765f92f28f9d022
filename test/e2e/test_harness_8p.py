"""The shell scripts with eight ranks under torch's launcher: launch, logs, failures, signals."""
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from harness_stub import Tree, finish, is_running

pytestmark = pytest.mark.slow


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def last_line(text):
    return text.splitlines()[-1]


def parent(pid):
    with open(f"/proc/{pid}/stat") as stat:
        return int(stat.read().rsplit(")", 1)[1].split()[1])


def test_eight_ranks_train_each_with_its_own_log(tree):
    (tree.root / "test" / "output" / "3").mkdir(parents=True)  # an earlier run's
    done = tree.run("train_full_8p.sh", "--epochs", "1", "--data_path=/a b", STUB=(
        "print('I am rank', rank); good_run()"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("".join(f"Device ID: {card}\n" for card in range(8)))
    assert "I am rank 0\n" in done.stdout and "I am rank 1\n" not in done.stdout
    assert "Final Train Accuracy : 73.500\n" in done.stdout
    cores = len(os.sched_getaffinity(0))
    for rank in range(8):
        call = tree.call(rank)
        assert call["argv"] == tree.call()["argv"]
        assert call["env"]["LOCAL_RANK"] == call["env"]["ASCEND_DEVICE_ID"] == str(rank)
        assert call["env"]["WORLD_SIZE"] == "8"
        assert call["env"]["OMP_NUM_THREADS"] == str(max(1, cores // 8))
        log = tree.output / f"{rank}.2" / f"train_{rank}.log"
        assert f"I am rank {rank}\n" in log.read_text()
    recipe = tree.root / "configs/mobilenetv3/mobilenetv3_large_100_ascend_8p.yaml"
    assert f"--config={recipe}" in tree.arguments()
    assert f"--output={tree.output}/0.2/ckpt" in tree.arguments()
    assert len(list((tree.output / "0.2").glob("*_bs128_8p_acc.log"))) == 1


def test_a_killed_rank_ends_the_run_and_is_named(tree):
    process = tree.start("train_performance_8p.sh", OMP_NUM_THREADS="3", MNV3_STOP_SECONDS="3",
                         STUB=(
        "print('words of rank', rank, flush=True); hang(deaf=[signal.SIGTERM])"))
    pids = tree.wait_for_ranks(8)
    assert tree.call()["env"]["OMP_NUM_THREADS"] == "3"  # the user's
    time.sleep(0.5)
    os.kill(pids[5], signal.SIGKILL)
    killed = time.monotonic()
    done = finish(process, 40)
    assert time.monotonic() - killed < 30  # though the others do not listen
    assert not any(is_running(pid) for pid in pids)
    assert done.returncode == 137
    assert "---- last lines of rank 5 ----\nwords of rank 5\n" in done.stderr
    log = tree.output / "5" / "train_5.log"
    assert re.match(r"\[Error\] rank 5 failed first: it was killed by SIGKILL \(.*\); its log: "
                    + re.escape(str(log)) + "$", last_line(done.stderr))
    assert "Final" not in done.stdout


def test_the_rank_that_failed_first_is_named_not_those_it_took_along(tree):
    done = tree.run("train_full_8p.sh", STUB=(
        "if rank == 3: print('no such folder'); sys.exit(3)\n"
        "hang()"))
    assert done.returncode == 3
    assert "---- last lines of rank 3 ----\nno such folder\n" in done.stderr
    assert "rank 3 failed first: it failed with exit status 3" in last_line(done.stderr)


@pytest.mark.parametrize(
    "failed, first",
    [
        (["5 137 5", "0 1 0"], "5 137 5"),
        # Peers see the connection break at once, and may be recorded before the killed rank is.
        (["0 1 0", "3 1 3", "5 137 5", "6 137 6"], "5 137 5"),
        (["0 1 0", "5 139 5"], "5 139 5"),  # SIGSEGV
        # PyTorch's watchdog aborts the ranks (SIGABRT) that wait for one that failed.
        (["2 1 2", "4 134 4"], "2 1 2"),
        (["2 3 2", "4 143 4", "1 143 1"], "2 3 2"),  # SIGTERM from the launcher
    ],
)
def test_of_ranks_that_fail_together_the_cause_is_named(tree, tmp_path, failed, first):
    (tmp_path / "failed").write_text("\n".join(failed) + "\n")
    done = subprocess.run(
        ["bash", "-c", '. "$1"; state=$2 first_failure', "-", str(tree.root / "test" / "common.sh"),
         str(tmp_path)], capture_output=True, text=True)
    assert done.stdout == first + "\n", done.stderr


def test_an_interrupt_reaches_every_rank_and_they_have_time_to_end(tree):
    process = tree.start("train_full_8p.sh", STUB=(
        "def end(*_): time.sleep(0.2 * rank); print('saved', flush=True); sys.exit(1)\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('SIGTERM as well'))\n"
        "signal.signal(signal.SIGINT, end); hang()"))
    pids = tree.wait_for_ranks(8)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    done = finish(process, 40)
    assert done.returncode == 130
    assert last_line(done.stderr).startswith("[Error] interrupted by SIGINT; log: ")
    assert not any(is_running(pid) for pid in pids)
    for rank in range(8):
        # The launcher sends SIGTERM once the first has ended; it must not reach the others.
        assert (tree.output / str(rank) / f"train_{rank}.log").read_text() == "hanging\nsaved\n"


def test_a_launcher_that_is_killed_leaves_no_rank_behind(tree):
    process = tree.start("train_full_8p.sh", STUB="hang()")
    pids = tree.wait_for_ranks(8)
    time.sleep(0.5)
    rank_sh = parent(pids[0])
    os.kill(parent(rank_sh), signal.SIGKILL)
    done = finish(process, 40)
    assert done.returncode == 137
    assert "the launcher of the ranks was killed by SIGKILL" in last_line(done.stderr)
    assert not any(is_running(pid) for pid in pids)


def test_a_launcher_that_does_not_start_says_why(tree, tmp_path):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\ncase "$2" in torch.*) echo "no such launcher"; exit 4;; esac\n'
                    'exec "$REAL" "$@"\n')
    fake.chmod(0o755)
    done = tree.run("train_full_8p.sh", PYTHON=str(fake), MNV3_CHECKED_PYTHON=str(fake),
                    REAL=sys.executable)
    assert done.returncode == 4
    assert done.stderr.splitlines()[-2] == "no such launcher"
    assert "the launcher of the ranks failed with exit status 4" in last_line(done.stderr)


def test_eight_ranks_choose_their_own_cards(tree):
    done = tree.run("train_full_8p.sh", "--device_id=3")
    assert done.returncode == 2
    assert done.stderr == "[Error] --device_id is for a single rank; 8 ranks take cards 0 to 7\n"

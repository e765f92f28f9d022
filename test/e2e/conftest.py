"""What the end-to-end tests share: the commands as a user runs them, in processes of their own."""
import importlib.util
import json
import os
import subprocess
from pathlib import Path

import pytest
from warm_python import WarmPython

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A cache folder for the demo set, so that the user's own is left alone."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def environment(cache):
    """Environment of a user's shell: no launcher's variables, one thread a process."""
    env = {key: value for key, value in os.environ.items()
           if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE",
                          "MASTER_ADDR", "MASTER_PORT", "ASCEND_DEVICE_ID")}
    return dict(env, MOBILENETV3_CACHE=str(cache), OMP_NUM_THREADS="1", PYTHONUNBUFFERED="1")


class Result:
    """How a command ended, and what it wrote."""

    def __init__(self, process):
        self.status, self.out, self.err = process.returncode, process.stdout, process.stderr

    @property
    def last(self):
        """Last line of standard error."""
        return (self.err.strip().splitlines() or [""])[-1]

    def lines(self, start):
        """Lines of standard output that begin so."""
        return [line for line in self.out.splitlines() if line.startswith(start)]


@pytest.fixture(scope="session")
def warm(environment):
    """warm(variables) -> path of a Python that starts with PyTorch imported; see warm_python.

    There is one for each PYTHONPATH, which decides what is imported.
    """
    made = {}

    def python(variables):
        path = variables.get("PYTHONPATH")
        if path not in made:
            made[path] = WarmPython(dict(environment, **({"PYTHONPATH": path} if path else {})))
        return made[path].executable
    yield python
    for one in made.values():
        one.close()


@pytest.fixture(scope="session")
def script(environment, warm):
    """script("train.py", arguments...) -> Result. Starts in another folder, as users do.

    `python=sys.executable` is for what a process with PyTorch imported already would not show.
    """
    def run(name, *arguments, timeout=300, cwd=None, python=None, **variables):
        return Result(subprocess.run(
            [python or warm(variables), str(ROOT / name), *map(str, arguments)],
            cwd=str(cwd or ROOT.parent), env=dict(environment, **variables), capture_output=True,
            text=True, timeout=timeout,
        ))
    return run


@pytest.fixture(scope="session")
def launched(environment, warm):
    """launched(8, "train.py", arguments...) -> Result of as many ranks under torch's launcher."""
    import torch

    has_torchrun = (Path(torch.__file__).parent / "distributed" / "run.py").exists()
    launcher = ["torch.distributed.run", "--standalone"] if has_torchrun else [
        "torch.distributed.launch", "--use_env", f"--master_port={29600 + os.getpid() % 1000}"
    ]

    def run(ranks, name, *arguments, timeout=300, python=None, **variables):
        return Result(subprocess.run(
            [python or warm(variables), "-m", launcher[0], *launcher[1:],
             f"--nproc_per_node={ranks}", str(ROOT / name), *map(str, arguments)],
            cwd=str(ROOT.parent), env=dict(environment, **variables), capture_output=True,
            text=True, timeout=timeout,
        ))
    return run


@pytest.fixture(scope="module")
def validate(cache):
    """validate(arguments...): the script's main(), on the CPU, in this process."""
    from mobilenetv3 import config, options

    spec = importlib.util.spec_from_file_location("validate_script", str(ROOT / "validate.py"))
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    before = os.environ.get("MOBILENETV3_CACHE")
    os.environ["MOBILENETV3_CACHE"] = str(cache)

    def run(*arguments):
        argv = [*map(str, arguments), "--device", "cpu", "--workers", "0"]
        script.main(config.parse(options.validate_parser(), argv))
    yield run
    del os.environ["MOBILENETV3_CACHE"]
    if before is not None:
        os.environ["MOBILENETV3_CACHE"] = before


@pytest.fixture(scope="session")
def metrics():
    """metrics(run_folder) -> one dict an epoch."""
    def read(folder):
        lines = (Path(str(folder)) / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]
    return read


# A run of a second an epoch: 22 steps of 64 digits at 32x32.
QUICK = ("--device", "cpu", "--img_size", 32, "--batch_size", 64, "--workers", 0, "--no_aug",
         "--warmup_epochs", 0)
# Where any network serves, and any number of steps: 5 of 256.
SMALL = (*QUICK, "--model", "mobilenetv3_small_050", "--batch_size", 256)

"""Compiles the extension once per version of PyTorch, Python and source, outside the source tree.

    python test/npu_stand_in/torch_npu/_build.py     # prints the path of the compiled extension

Exit status 77 and one line on standard error where the tools are missing; 1 where the compiler
fails. The cache is $NPU_STAND_IN_CACHE, or mobilenetv3_npu_stand_in in the user's cache folder.
"""
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import torch

NAME = "npu_stand_in"
SOURCES = Path(__file__).resolve().parent / "csrc"
# -O1: most of the compiler's time goes into headers, most of the run time into PyTorch's kernels.
FLAGS = ["-O1", "-DUSE_DISTRIBUTED", "-Wno-deprecated-declarations"]
OLDEST = (2, 6)


class CannotBuild(ImportError):
    """This machine or this PyTorch cannot have the stand-in; no fault of its sources."""


def library() -> Path:
    """Path of the compiled extension, which is built first if need be.

    Any number of processes may ask at the same time. One builds and the others wait; a build that
    was killed leaves neither a lock nor half a library behind.

    Raises:
        CannotBuild: PyTorch is too old, or a tool is missing.
        RuntimeError: the compiler failed; has the end of its output.
    """
    import fcntl

    folder = cache_folder()
    path = folder / f"{NAME}-{_key()}.so"
    if path.exists():
        return path
    _check_tools()
    folder.mkdir(parents=True, exist_ok=True)
    with open(str(folder / "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel releases it however this process ends
        if not path.exists():
            for left_over in folder.glob("build.*"):
                shutil.rmtree(str(left_over), ignore_errors=True)
            work = Path(tempfile.mkdtemp(prefix="build.", dir=str(folder)))
            try:
                _compile_in_child(work)
                os.replace(str(work / f"{NAME}.so"), str(path))
            finally:
                shutil.rmtree(str(work), ignore_errors=True)
    return path


def cache_folder() -> Path:
    """Where compiled extensions are kept."""
    if os.environ.get("NPU_STAND_IN_CACHE"):
        return Path(os.environ["NPU_STAND_IN_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "mobilenetv3_npu_stand_in"


def _key() -> str:
    """Changes with whatever makes a compiled extension unfit."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    where = (torch.__version__, str(torch.version.git_version), sysconfig.get_platform(),
             str(sysconfig.get_config_var("SOABI")), os.environ.get("CXX", ""), " ".join(FLAGS))
    digest.update("\0".join(where).encode())
    return f"{torch.__version__}-{digest.hexdigest()[:16]}"


def _check_tools() -> None:
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < OLDEST:
        raise CannotBuild(
            f"the stand-in NPU needs PyTorch {OLDEST[0]}.{OLDEST[1]} or newer, this is "
            f"{torch.__version__}"
        )
    if platform.system() != "Linux":
        raise CannotBuild("the stand-in NPU is built on Linux only")
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler.split()[0]) is None:
        raise CannotBuild(f"the stand-in NPU needs a C++ compiler; there is no {compiler}")
    if shutil.which("ninja", path=_path()) is None:
        raise CannotBuild("the stand-in NPU needs ninja: pip install ninja")
    if importlib.util.find_spec("setuptools") is None:
        raise CannotBuild("the stand-in NPU needs setuptools: pip install setuptools")
    headers = sysconfig.get_paths()["include"]
    if not os.path.exists(os.path.join(headers, "Python.h")):
        raise CannotBuild(f"the stand-in NPU needs Python's headers, which {headers} lacks")


def _path() -> str:
    """PATH with the folder of this Python, where pip puts ninja, activated or not."""
    return os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])


def _compile_in_child(work: Path) -> None:
    """In a process of its own: it loads the library, which proves it, and which works only once."""
    env = dict(os.environ, PATH=_path(), TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    child = subprocess.run(
        [sys.executable, __file__, "--compile", str(work)], env=env, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )
    if child.returncode or not (work / f"{NAME}.so").exists():
        output = child.stdout.splitlines()
        errors = [line for line in output if " error: " in line][:5]
        raise RuntimeError("\n".join(
            [f"the stand-in NPU does not compile with PyTorch {torch.__version__}:"]
            + (errors or output[-20:])
        ))


def _compile(work: str) -> None:
    from torch.utils import cpp_extension

    cpp_extension.load(
        NAME, [str(SOURCES / "all.cpp")], build_directory=work, extra_cflags=FLAGS,
        with_cuda=False, verbose=False,
    )


def main() -> int:
    """Compile, or tell where the compiled extension is."""
    if sys.argv[1:2] == ["--compile"]:
        _compile(sys.argv[2])
        return 0
    try:
        print(library())
    except CannotBuild as error:
        print(error, file=sys.stderr)
        return 77
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Imports PyTorch once, and forks for each command that a client asks for.

Arguments: the address to listen at, and the executable whose commands these are. Ends, and ends all
that it started, when its standard input is closed.
"""
import array
import atexit
import contextlib
import gc
import importlib
import json
import os
import random
import re
import runpy
import selectors
import signal
import socket
import sys
import tempfile
import threading

IMPORTS = ("numpy", "yaml", "PIL.Image", "torch", "torch.distributed", "torchvision", "timm",
           "timm.data", "timm.optim", "timm.scheduler", "timm.utils")
LAUNCHERS = ("torch.distributed.run", "torch.distributed.launch")
MODULES = re.compile(r"mobilenetv3(\.\w+)*|pydoc")  # besides the launchers
# Variables that this project reads, or PyTorch when it makes a process group or finds an NPU. Where
# any other is not the server's, an import may have read it.
LATE = {"PYTHON", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TASK_QUEUE_ENABLE",
        "CPU_AFFINITY_CONF", "TORCH_NCCL_ASYNC_ERROR_HANDLING", "TMPDIR", "PWD", "OLDPWD", "SHLVL",
        "_", "COLUMNS", "LINES",
        "OMP_WAIT_POLICY"}  # how threads wait, of which OMP_NUM_THREADS=1 makes none
LATE_GROUPS = ("MOBILENETV3_", "MNV3_", "NPU_STAND_IN_", "ASCEND_", "HCCL_", "GROUP_", "ROLE_",
               "MASTER_", "TORCHELASTIC_", "PYTEST_", "STUB")


def serve(listener, before):
    """Answer clients. Returns a request and its three streams, in the process that is to run it.

    Args:
        before: the environment before the imports, which may have changed it.
    """
    awake, waker = socket.socketpair()
    for end in (awake, waker):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker.fileno())
    selector = selectors.DefaultSelector()
    for source in (0, listener, awake):
        selector.register(source, selectors.EVENT_READ)
    clients = {}  # process id: its client
    while True:
        for key, _ in selector.select():
            if key.fileobj is awake:
                awake.recv(4096)
            elif key.fileobj == 0:  # nothing is written to it: it was closed
                for pid in clients:
                    os.kill(pid, signal.SIGKILL)
                os._exit(0)
            elif key.fileobj is listener:
                client = listener.accept()[0]
                request, streams = receive(client)
                pid = os.fork() if is_possible(request, before) else None
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    selector.close()
                    for end in (listener, awake, waker, client, *clients.values()):
                        end.close()
                    return request, streams
                for stream in streams:
                    os.close(stream)
                if pid:
                    clients[pid] = client
                    selector.register(client, selectors.EVENT_READ, pid)
                    tell(client, pid)
                else:
                    client.close()
            elif key.data in clients:  # its client is gone
                os.kill(key.data, signal.SIGKILL)
                selector.unregister(key.fileobj)
        collect(clients, selector)


def receive(client):
    """The request of a client, or None, and the descriptors that came with it."""
    client.settimeout(10)
    streams = array.array("i")
    with contextlib.suppress(OSError, ValueError):
        head, extra, *_ = client.recvmsg(8, socket.CMSG_SPACE(3 * streams.itemsize))
        for _, _, data in extra:
            streams.frombytes(data)
        size, text = int(head), b""
        while len(text) < size:
            part = client.recv(size - len(text))
            if not part:
                return None, streams
            text += part
        return json.loads(text.decode()), streams
    return None, streams


def tell(client, number):
    with contextlib.suppress(OSError):
        client.sendall(b"%d\n" % number)


def collect(clients, selector):
    """Tell the clients of ended processes how these ended."""
    while clients:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        client = clients.pop(pid)
        tell(client, status)
        with contextlib.suppress(KeyError):
            selector.unregister(client)
        client.close()


def is_possible(request, before):
    """Whether a fork of this process is what the real Python would be."""
    if request is None or script_of(request["arguments"]) is None:
        return False
    theirs = request["environment"]
    differ = [name for name in {*theirs, *os.environ}
              if theirs.get(name) not in (before.get(name), os.environ.get(name))]
    return (os.environ.get("OMP_NUM_THREADS") == "1"
            and all(name in LATE or name.startswith(LATE_GROUPS) for name in differ)
            and request["network"] == os.readlink("/proc/self/ns/net")
            and len(os.listdir("/proc/self/task")) == 1)  # only one thread would go on in the fork


def script_of(arguments):
    """(path of a script or None, name of a module or None, its arguments), or None for others."""
    if arguments[:1] == ["-u"] and os.environ.get("PYTHONUNBUFFERED"):
        arguments = arguments[1:]
    if arguments[:1] == ["-m"] and arguments[1:2] and (
            arguments[1] in LAUNCHERS or MODULES.fullmatch(arguments[1])):
        return None, arguments[1], arguments[2:]
    if arguments and arguments[0].endswith(".py"):
        return arguments[0], None, arguments[1:]
    return None


def become(request, streams, executable, before):
    """Make this process what the command asked for; returns its script and its module."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    os.umask(request["umask"])
    os.chdir(request["cwd"])
    set_by_imports = {name: value for name, value in os.environ.items() if name not in before}
    os.environ.clear()
    os.environ.update(dict(set_by_imports, **request["environment"]))
    random.seed()
    sys.modules["numpy"].random.seed()
    tempfile.tempdir = None
    importlib.invalidate_caches()
    script, module, arguments = script_of(request["arguments"])
    sys.argv = [script or "-m", *arguments]
    sys.path.insert(0, os.path.dirname(os.path.abspath(script)) if script else request["cwd"])
    if module:
        sys.executable = executable  # of the ranks that it starts
    return script, module


def main():
    sys.path.pop(0)  # this folder
    address, executable = sys.argv[1:]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    print("listening", flush=True)
    before = dict(os.environ)
    for name in IMPORTS:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # the forks share this memory
    request, streams = serve(listener, before)
    script, module = become(request, streams, executable, before)
    try:
        run(script, module)
        end(0)
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            end(ended.code or 0)
        raise
    finally:  # by any other exception it ends as the real Python does, in every respect
        gc.unfreeze()


def run(script, module):
    """What Python does with a script, or with -m and a module."""
    if module:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return
    sys.modules["__main__"] = program = type(sys)("__main__")
    program.__dict__.update(__file__=script, __builtins__=__builtins__)
    with open(script, "rb") as file:
        code = compile(file.read(), script, "exec")
    exec(code, program.__dict__)


def end(status):
    """As Python ends, but for taking the thousands of imported modules apart, which takes a second.

    Threads are waited for, exit functions called, the command's own objects collected.
    """
    threading._shutdown()
    atexit._run_exitfuncs()
    program = sys.modules["__main__"].__dict__
    if program is not globals():  # which it is after run_module
        program.update(dict.fromkeys(set(program) - {"__builtins__"}))
    gc.collect()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 255)


if __name__ == "__main__":
    main()

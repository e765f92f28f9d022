"""A stand-in for `python` that starts with PyTorch imported: a fork instead of seconds of imports.

    warm = WarmPython(environment)
    subprocess.run([warm.executable, "train.py", "--epochs", "1"], env=environment)

One process (server.py) imports PyTorch, torchvision and timm, and nothing of this package. Each
command is a fork of it: a process of its own with the command's arguments, environment, folder,
standard streams and ignored signals, which runs the script as __main__ and ends as Python ends. The
executable (client.py) hands signals on to it, and ends as it ended. If the executable is killed, it
is killed, too, some milliseconds later.

Where that could not be the same, the real Python is started instead: anything but a script, torch's
launcher, pydoc or a module of this package, an environment that differs in what may be read at an
import, another network namespace. What a fork cannot show are messages of the imports themselves,
their time, an order of sets that changes from process to process, and a process id that is the one
which the command's parent sees: tests of these start sys.executable.
"""
import os
import shlex
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


class WarmPython:
    """A server, started at once and ready some seconds later, and the executable to it."""

    def __init__(self, environment):
        self.folder = tempfile.TemporaryDirectory(prefix="warm")  # short: a socket's name is, too
        self.executable = os.path.join(self.folder.name, "python")
        address = os.path.join(self.folder.name, "socket")
        Path(self.executable).write_text("#!/bin/sh\nexec {} -IS {} {} {} \"$@\"\n".format(*map(
            shlex.quote, (sys.executable, str(HERE / "client.py"), address, sys.executable))))
        os.chmod(self.executable, stat.S_IRWXU)
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "server.py"), address, self.executable],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self.process.stdout.readline()  # it listens; commands wait until it has imported

    def close(self):
        """End the server and all processes that it started."""
        self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:  # a process forked from this one still has its input open
            self.process.kill()
            self.process.wait()
        self.folder.cleanup()

"""What `tee -a LOG` does, but the log comes first and never waits for the terminal.

    COMMAND | python test/display.py LOG      # started by supervise.sh

Ctrl-S, a pager or a network that is down may stop a terminal for hours; with tee that would stop
the log and the training, too.
"""
import itertools
import os
import queue
import sys
import threading
import time

LIMIT = 1 << 26
"""Bytes that may wait for the terminal; what comes on top is in the log only."""


class Terminal:
    """Standard output, written to by a thread of its own."""

    def __init__(self):
        self._chunks = queue.SimpleQueue()
        self._taken = self._shown = 0  # bytes; each of one thread
        self._is_gone = False
        threading.Thread(target=self._run).start()

    def show(self, chunk):
        """Write it, in its turn."""
        if not self._is_gone and self._taken - self._shown < LIMIT:
            self._taken += len(chunk)
            self._chunks.put(chunk)

    def end(self):
        """Let the thread end when all is written."""
        self._chunks.put(b"")

    def _run(self):
        try:
            for chunk in iter(self._chunks.get, b""):
                write(sys.stdout.fileno(), chunk)
                self._shown += len(chunk)
        except OSError:  # nobody reads it any more
            self._is_gone = True


def write(file, data):
    """Write all of it to a file descriptor."""
    while data:
        try:
            data = data[os.write(file, data):]
        except BlockingIOError:  # another program set the terminal so
            time.sleep(0.05)


def main(path):
    """Copy standard input to the end of the log, and to the terminal."""
    terminal, log, fault = Terminal(), None, ""
    # First nothing: there is a log, though on all nodes but one nothing comes.
    for chunk in itertools.chain([b""], iter(lambda: os.read(sys.stdin.fileno(), 1 << 16), b"")):
        try:
            if log is None:
                log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            write(log, chunk)
        except OSError as error:  # a full disk, which may get room again
            if fault != error.strerror:
                fault = error.strerror
                terminal.show(f"[Error] {path} cannot be written: {fault}\n".encode())
        if chunk:
            terminal.show(chunk)
    terminal.end()


if __name__ == "__main__":
    main(sys.argv[1])

"""The `python` that commands start: asks the server for a process, and stands for it.

Arguments: the server's address, the real Python, and what that would be given.
"""
import array
import json
import os
import signal
import socket
import sys

FORWARDED = [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1,
             signal.SIGUSR2]


def main(address, python, *arguments):
    """Returns the exit status; where the server does not do it, the real Python takes over."""
    # A signal that comes before the other process is there ends this one, and so the other.
    ignored = [number for number in FORWARDED if signal.getsignal(number) is signal.SIG_IGN]
    umask = os.umask(0)
    os.umask(umask)
    try:
        server = socket.socket(socket.AF_UNIX)
        server.connect(address)
        request = json.dumps({
            "arguments": arguments, "cwd": os.getcwd(), "environment": dict(os.environ),
            "umask": umask, "ignored": ignored, "network": os.readlink("/proc/self/ns/net"),
        }).encode()
        streams = array.array("i", (0, 1, 2))
        server.sendmsg([b"%08d" % len(request)],
                       [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
        server.sendall(request)
        answers = server.makefile()
        pid = int(answers.readline() or 0)
    except OSError:
        pid = 0
    if not pid:
        os.execv(python, [python, *arguments])
    for number in set(FORWARDED).difference(ignored):
        signal.signal(number, lambda number, frame: os.kill(pid, number))
    status = int(answers.readline() or 256)  # 256: the server has gone
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    return os.WEXITSTATUS(status)


if __name__ == "__main__":
    os._exit(main(*sys.argv[1:]))

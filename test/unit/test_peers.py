"""Which hosts of a job still answer. A port of this host stands for another host's."""
import socket

import pytest

from mobilenetv3 import peers


@pytest.fixture(autouse=True)
def forget():
    yield
    peers.remember(["here"], 0)


def test_this_hosts_address_is_the_one_that_others_reach():
    assert peers.address_towards("127.0.0.1") == "127.0.0.1"
    assert peers.address_towards("no.such.host.invalid") == socket.gethostname()


def test_a_host_that_refuses_a_connection_answers():
    # Nothing listens on the discard port of this host, which is up.
    peers.remember(["10.255.255.1", "127.0.0.1"], 0)
    assert peers.silent(1.0) == ""


def test_hosts_that_do_not_answer_are_named_with_their_ranks(monkeypatch):
    def connect(target, timeout):
        raise ConnectionRefusedError if target[0] == "b" else socket.timeout
    monkeypatch.setattr(socket, "create_connection", connect)
    peers.remember(["a", "a", "b", "b", "c", "c", "d"], 1)
    assert peers.silent() == "c (ranks 4 to 5), d (rank 6)"


def test_on_one_host_nobody_is_asked(monkeypatch):
    monkeypatch.setattr(socket, "create_connection", None)
    peers.remember(["a"] * 8, 3)
    assert peers.silent() == ""

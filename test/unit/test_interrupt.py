"""Breaks in an epoch: signals, checkpoints that are due, and what ranks know of each other."""
import os
import signal
import threading
import time

import pytest

from mobilenetv3 import entry, interrupt, peers


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def listening():
    """listening(**options) -> a watch that has the process's signals, which are given back."""
    before = {number: signal.getsignal(number) for number in interrupt.SIGNALS}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever started the tests

    def listen(**options):
        watch = interrupt.Watch(**options)
        watch.listen()
        return watch
    yield listen
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", interrupt.SIGNALS)
def test_a_signal_breaks_the_epoch_after_the_step(number, listening):
    watch = listening()
    assert not watch.wants_break(1)
    os.kill(os.getpid(), number)
    assert watch.received == number and watch.agreed is None  # nobody has been asked yet
    assert watch.wants_break(2) and watch.agreed == number


def test_a_run_under_nohup_outlives_its_terminal(listening):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    watch = listening()
    os.kill(os.getpid(), signal.SIGHUP)
    assert watch.received is None
    assert signal.getsignal(signal.SIGTERM) == watch._receive


def test_a_signal_that_a_launcher_repeats_at_once_is_the_same_wish(listening):
    clock = Clock()
    watch = listening(now=clock)
    os.kill(os.getpid(), signal.SIGINT)
    clock.now += interrupt.GRACE * 0.9
    os.kill(os.getpid(), signal.SIGTERM)
    assert watch.received == signal.SIGINT  # and this process is still there


def test_a_second_signal_stops_at_once(listening):
    clock = Clock()
    child = os.fork()
    if child == 0:
        listening(now=clock)
        os.kill(os.getpid(), signal.SIGTERM)
        clock.now += interrupt.GRACE * 1.1
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)  # not reached
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM


def test_checkpoints_are_due_at_every_so_many_steps_of_an_epoch():
    watch = interrupt.Watch(every_steps=4)
    watch.begin(0)
    assert [step for step in range(1, 13) if watch.wants_break(step)] == [4, 8, 12]
    watch.begin(0)  # the next epoch
    assert [step for step in range(1, 6) if watch.wants_break(step)] == [4]


def test_with_accumulated_gradients_a_checkpoint_waits_for_the_update():
    watch = interrupt.Watch(every_steps=4)
    watch.begin(0)
    # Updates come after steps 3, 6, 9 and 12; the first at or after 4, 8 and 12 are 6, 9 and 12.
    assert [step for step in (3, 6, 9, 12) if watch.wants_break(step)] == [6, 9, 12]


def test_a_resumed_epoch_does_not_save_again_where_it_begins():
    watch = interrupt.Watch(every_steps=4)
    watch.begin(4)
    assert [step for step in range(5, 10) if watch.wants_break(step)] == [8]


def test_checkpoints_are_due_after_so_many_minutes_of_a_clock_that_nobody_sets():
    clock = Clock()
    watch = interrupt.Watch(every_minutes=2.0, now=clock)
    assert not watch.wants_break(1)
    clock.now += 119.0
    assert not watch.wants_break(2)
    clock.now += 2.0
    assert watch.wants_break(3)
    watch.saved()
    assert not watch.wants_break(4)


def test_ranks_that_agree_one_update_late_save_once_for_a_minute_that_is_over(monkeypatch):
    class Done:
        def wait(self):
            pass

    monkeypatch.setattr(interrupt.dist, "is_parallel", lambda: True)
    monkeypatch.setattr(interrupt.dist, "start_max", lambda values: Done())
    clock = Clock()
    watch, saved = interrupt.Watch(every_minutes=1.0, now=clock), []
    for step in range(1, 11):
        clock.now += 15.0
        if watch.wants_break(step):
            saved.append(step)
            watch.saved()
    # The minute is over at step 4, which the ranks know at 5; the next at 9, known at 10.
    assert saved == [5, 10]


def test_a_validation_ends_at_the_batch_after_a_signal():
    watch = interrupt.Watch()
    batches = watch.guard([1, 2, 3])
    assert len(batches) == 3
    seen = []
    for batch in batches:
        seen.append(batch)
        watch.received = signal.SIGTERM
    assert seen == [1] and watch.on_any_rank() == 15


@pytest.mark.parametrize("number, status", [(15, 143), (2, 130), (10, 138)])
def test_an_interrupted_command_ends_with_128_and_the_signal(number, status, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)

    def main(cfg):
        raise entry.Interrupted(number, "saved in /run")

    assert entry.run(main, None, "train.py") == status
    name = signal.Signals(number).name
    assert capsys.readouterr().err == f"train.py: interrupted by {name}; saved in /run\n"


class Store:
    """A job's store in memory, with the two methods of torch.distributed's."""

    def __init__(self):
        self.values = {}

    def set(self, key, value):
        self.values[key] = value

    def get(self, key):
        return self.values[key].encode()


def job(ranks, **options):
    store = Store()
    return [peers.Pulse(rank, ranks, 0.5, store, **options) for rank in range(ranks)], store


def tell(pulse):
    pulse.store.set(pulse._key(pulse.rank), pulse._text())


def test_the_rank_that_is_behind_is_named_with_its_step():
    pulses, _ = job(3)
    for step in range(5):
        for pulse in pulses:
            if (pulse.rank, step) == (1, 4):
                break  # rank 1 hangs before its step 4
            pulse.at("computing", 2, step)
    for pulse in pulses:
        tell(pulse)
    pulses[0].at("computing", 2, 4)
    assert pulses[0].laggards() == "rank 1: computing (epoch 2, step 3), rank 2: " \
        "computing (epoch 2, step 3)"
    pulses[2].at("computing", 2, 4)
    tell(pulses[2])
    assert pulses[0].laggards() == "rank 1: computing (epoch 2, step 3)"


def test_nobody_is_blamed_where_all_ranks_are_at_the_same_place():
    pulses, _ = job(2)
    assert pulses[0].laggards() == ""


def test_a_store_that_is_gone_costs_nothing_but_the_answer():
    pulses, store = job(2)
    store.values.clear()
    assert pulses[0].laggards() == ""


def test_a_store_that_never_answers_as_behind_a_cut_cable_does_not_hold_up_the_error():
    pulses, store = job(2)
    silence = threading.Event()
    store.get = lambda key: silence.wait()
    started = time.monotonic()
    assert pulses[0].laggards(patience_s=0.1) == ""
    assert time.monotonic() - started < 5.0
    silence.set()


def test_a_rank_that_waits_long_says_for_whom():
    told = []
    pulses, _ = job(2, say=told.append)
    pulses[0].at("exchanging gradients", 0, 7)
    pulses[0].start()
    pulses[0]._thread.join(5.0) if told else None
    for _ in range(100):
        if told:
            break
        pulses[0]._stop.wait(0.05)
    pulses[0].close()
    assert len(told) == 1
    assert told[0].startswith("rank 0 has waited") and "rank 1: starting" in told[0]

"""The fuzzers in short: every kind of case, few of each. test/fuzz/run.py has the long form."""
import collections
import importlib
import os
import random
import sys
import time
from pathlib import Path

import pytest

FUZZ = Path(__file__).resolve().parents[1] / "fuzz"
sys.path.insert(0, str(FUZZ))
import common  # noqa: E402
from common import Case, judge_all  # noqa: E402

SHORT = {"checkpoints": 30, "yaml_files": 40, "command_lines": 50, "logs": 30}


@pytest.mark.parametrize("name", SHORT)
def test_no_case_is_a_fault(name):
    totals = importlib.import_module(name).run(SHORT[name], seed=1)
    assert totals.cases == SHORT[name]
    assert not totals.faults, totals.table()
    outcomes = sum(totals.counts.values(), collections.Counter())
    # A fuzzer whose cases are all refused has stopped at the door.
    assert outcomes["refused"] and len(outcomes) > 1, totals.table()


# ---- What would be a fault is found to be one


# What the fork has free of its parent, which keeps what other tests freed, does not make up for it.
BEYOND = common.CEILING + (1 << 36)


def _judge(payload, folder):
    if payload == "hang":
        time.sleep(60)
    elif payload == "memory":
        bytearray(BEYOND)
    elif payload == "masked memory":
        try:
            bytearray(BEYOND)
        except MemoryError as error:
            assert not common.is_out_of_memory(ValueError("damaged")), "the plain error is none"
            raise ValueError("damaged") from error
    elif payload == "death":
        os._exit(3)
    elif payload == "trace":
        raise KeyError("inside")
    return "good"


def test_a_hang_a_death_a_trace_and_taken_memory_are_faults_and_the_next_case_is_judged(
        monkeypatch, tmp_path):
    monkeypatch.setattr(common, "SECONDS", 3)
    bad = ["hang", "memory", "masked memory", "death", "trace"]
    cases = [Case("all", payload) for word in bad for payload in (word, "fine")]
    totals = judge_all("self", cases, _judge, keep=str(tmp_path / "kept"))
    assert totals.counts["all"] == {"good": 5, "FAULT": 5}
    told = [text for _, text in totals.faults]
    assert "no answer after 3 s" in told[0]
    assert told[1].startswith("out of memory") and told[2].startswith("out of memory")
    assert "status 3" in told[3] and "KeyError: 'inside'" in told[4]
    assert len(list((tmp_path / "kept").iterdir())) == 5
    assert "| all | 10 | 5 | 5 |" in totals.table() and "faults: 5" in totals.table()


def test_damage_is_the_same_for_the_same_seed_and_differs_from_the_original():
    content = bytes(range(256)) * 40
    for hot in ((), [(0, 16), (10000, 10240)]):
        twice = [[common.mutate(content, rng, hot) for _ in range(60)]
                 for rng in (random.Random(5), random.Random(5))]
        assert twice[0] == twice[1]
        assert sum(one != content for one in twice[0]) > 50
    assert all(isinstance(common.mutate(b"", random.Random(seed)), bytes) for seed in range(50))


@pytest.mark.parametrize("text", ["", "two\nlines", "\x1b[31mred", "\u202eturned", "x" * 5000,
                                  "Traceback (most recent call last)"])
def test_what_is_no_clear_sentence_does_not_pass_as_one(text):
    with pytest.raises(AssertionError):
        common.check_sentence(text)

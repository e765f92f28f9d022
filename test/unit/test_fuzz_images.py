"""The fuzzer of image files in short; test/fuzz/images.py has the long form."""
import sys
from pathlib import Path

FUZZ = Path(__file__).resolve().parents[1] / "fuzz"
sys.path.insert(0, str(FUZZ))
import images  # noqa: E402


def test_every_damaged_file_is_an_image_or_is_refused():
    totals = images.run(40, seed=1, with_large=False)
    assert totals.cases == 40 + len(images.fixed())
    assert not totals.faults, totals.table()
    outcomes = {name for counter in totals.counts.values() for name in counter}
    assert {"refused", "read"} <= outcomes  # not all is turned away, and not all is let in


def test_what_the_corpus_is_made_from_is_read():
    are_read = [images._is_read(content) for content in images.corpus().values()]
    assert all(are_read) and len(are_read) >= 18

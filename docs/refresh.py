#!/usr/bin/env python3
"""The results that README.md shows, from the records in docs/runs: its table and its picture.

    python docs/refresh.py            # after a change of the records, or of how curves are drawn
    python docs/refresh.py --check    # writes nothing; names what is not current, exit status 1

A run's records are train.log, metrics.jsonl, config.yaml and environment.jsonl of its run folder.
"""
import argparse
import sys
from pathlib import Path
from typing import Dict, List, Optional

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from mobilenetv3.files import write_atomically  # noqa: E402
from mobilenetv3.report import panels, pictures, records, table  # noqa: E402

RUNS = ("demo_full_1p", "demo_performance_1p", "demo_full_8p", "cifar10_small")
"""Rows of the table, in this order."""
DRAWN, PANELS = "cifar10_small", ("loss", "acc1", "lr")
"""The run in the picture, and what of it."""
PICTURES = {"light": DOCS / "pictures/curves.png", "dark": DOCS / "pictures/curves-dark.png"}
PAGES = (DOCS.parent / "README.md", DOCS.parent / "README.zh-CN.md")
BEGIN, END = "<!-- results: made by python docs/refresh.py -->\n", "<!-- end of results -->\n"


def results() -> str:
    """The table, as the command prints it."""
    return table([one.history.log for one in records.read([DOCS / "runs" / name for name in RUNS])])


def curves():
    """What the picture is drawn from, and the names in it."""
    found = records.read([DOCS / "runs" / DRAWN])
    return panels.curves([one.history for one in found]), [one.name for one in found]


def with_results(page: str) -> str:
    """The text of a README with the table in its place.

    Raises:
        ValueError: the page does not say where that is.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no place for the table: {BEGIN.strip()} ... {END.strip()}")
    return f"{before}{begin}\n{results()}\n\n{end}{after}"


def stale() -> List[Path]:
    """The files that are not what this command would write."""
    pages = [page for page in PAGES if with_results(_text(page)) != _text(page)]
    wanted = pictures.fingerprint(*curves())
    return pages + [path for path in PICTURES.values()
                    if pictures.metadata(path).get(pictures.DRAWN_FROM) != wanted]


def refresh() -> None:
    """Write them."""
    found: Dict[Path, bytes] = {page: with_results(_text(page)).encode() for page in PAGES}
    for theme, path in PICTURES.items():
        found[path] = pictures.overview(*curves(), theme, PANELS)
    for path, content in found.items():
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, lambda file, content=content: file.write(content))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say what is not current")
    if not parser.parse_args(argv).check:
        refresh()
        return 0
    for path in stale():
        print(f"{path} is not current: python docs/refresh.py")
    return 1 if stale() else 0


if __name__ == "__main__":
    sys.exit(main())

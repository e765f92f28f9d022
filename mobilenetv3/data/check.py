"""Look through an image folder before training on it: every file is opened and decoded wholly.

    python -m mobilenetv3.data.check imagenet
    python -m mobilenetv3.data.check imagenet --list bad.txt --json report.json

FOLDER has a folder for each split (train and val) and in it one for each class; one without these
is looked through as a single split. What is found:

    bad files             empty, cut short, damaged, no images in spite of their names, or too large
    classes               of one split only, missing from a split, or without images
    duplicates            files of the same content: across splits, in several classes, in one class
    sizes and remarks     shorter sides; CMYK, 16 bits, palette, alpha, animated, turned by EXIF
    files passed over     that are no images by their names, or lie beside the class folders

The exit status is 1 where something would stop or falsify training: bad files, a split missing or
without images, classes that not all splits have, classes without images, a file in two splits.
"""
import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence

from tqdm import tqdm

from mobilenetv3 import entry, host
from mobilenetv3.arguments import PATH, POSITIVE_INT, TEXT
from mobilenetv3.data import manifest
from mobilenetv3.data.badfiles import escaped
from mobilenetv3.data.findings import (
    SIDES,
    Equal,
    Few,
    Groups,
    Split,
    equal_files,
    missing_here,
    only_here,
)
from mobilenetv3.data.scan import scan
from mobilenetv3.files import write_atomically
from mobilenetv3.text import printable

_SHOWN = 10


class Report:
    """What was found in a set, as text and as JSON.

    Args:
        folder: the set's.
        missing: names of splits that are not there.
    """

    def __init__(self, folder: Path, splits: Sequence[Split], missing: Sequence[str]):
        self.folder, self.splits, self.missing = folder, splits, missing
        self.equal: Equal = equal_files(splits)
        self.only_here, self.missing_here = only_here(splits), missing_here(splits)

    def problems(self) -> List[str]:
        """What would stop or falsify training."""
        found = [f"no folder {name!r}" for name in self.missing]
        bad = sum(len(split.bad) for split in self.splits)
        found += [f"{bad} bad files"] * bool(bad)
        for split in self.splits:
            if not len(split.files):
                found.append(f"no images in {split.name}")
            elif split.empty_classes:
                found.append(f"{len(split.empty_classes)} classes without images in {split.name}")
            if len(split.classes) == 1:
                found.append(f"a single class in {split.name}")
        found += [f"{len(names)} classes in {name} only"
                  for name, names in self.only_here.items() if names]
        found += [f"{len(names)} classes missing from {name}"
                  for name, names in self.missing_here.items() if names]
        across = self.equal.across
        return found + [f"{across.files} files that are in both splits"] * bool(across.count)

    def lines(self) -> Iterator[str]:
        """The report for a person."""
        for split in self.splits:
            classes = "no class folders" if split.is_flat else f"{len(split.classes):,} classes"
            yield f"{split.name}: {len(split.files):,} images, {classes}"
        yield from self._lists()
        yield from self._duplicates()
        yield from self._table()
        yield ""
        problems = self.problems()
        yield ("=> to be put right: " + "; ".join(problems) if problems
               else "=> nothing that would stop or falsify training")

    def _lists(self) -> Iterator[str]:
        for split in self.splits:
            bad = Few()
            bad.add(f"{path}: {reason}" for path, reason in split.bad_files())
            empty = Few()
            empty.add(split.empty_classes)
            alone = Few()
            alone.add(self.only_here.get(split.name, ()))
            absent = Few()
            absent.add(self.missing_here.get(split.name, ()))
            yield from _listed(f"bad files in {split.name}", bad)
            yield from _listed(f"classes without images in {split.name}", empty)
            yield from _listed(f"classes in {split.name} only", alone)
            yield from _listed(f"classes missing from {split.name}", absent)
            yield from _listed(f"files in {split.name} that are no images by their names, and are "
                               "passed over", split.others)
            yield from _listed(f"images in {split.name} beside the class folders, and passed over",
                               split.beside)
            for remark, few in sorted(split.remarks.items()):
                yield from _listed(f"{remark}, in {split.name}", few, shown=2)
            if split.is_flat and len(split.files):
                yield ""
                yield (f"{split.name} has no class folders: training needs --val_labels for it, "
                       "and classes were not compared")

    def _duplicates(self) -> Iterator[str]:
        for what, groups in zip(("in both splits", "in several classes of a split", "in one class"),
                                self.equal):
            if groups.count:
                yield ""
                yield f"{groups.files:,} equal files {what}, in {groups.count:,} groups:"
                yield from ("    " + "  =  ".join(map(printable, group[:4]))
                            for group in groups.first[:_SHOWN])
                yield from ["    ..."] * (groups.count > _SHOWN)

    def _table(self) -> Iterator[str]:
        """Shorter sides."""
        width = max(10, *(len(split.name) for split in self.splits)) + 2
        yield ""
        yield "shorter side  " + "".join(f"{split.name:>{width}}{'':9}" for split in self.splits)
        for row, name in enumerate(_rows()):
            counts = [split.sides.get(row, 0) for split in self.splits]
            if any(counts):
                yield f"{name:<14}" + "".join(
                    f"{count:>{width},} ({100 * count / sum(split.sides.values() or [1]):5.1f}%)"
                    if count else f"{'-':>{width}}{'':9}"
                    for split, count in zip(self.splits, counts))

    def json(self) -> Dict[str, Any]:
        """The report for a program; of bad files it has all, of what is no fault the first few."""
        def few(found: Few) -> Dict[str, Any]:
            return {"count": found.count, "first": found.first}

        def groups(found: Groups) -> Dict[str, Any]:
            return {"groups": found.count, "files": found.files, "first": found.first}
        return {
            "folder": str(self.folder), "problems": self.problems(),
            "missing": list(self.missing),
            "splits": {split.name: {
                "images": len(split.files), "classes": len(split.classes),
                "bad": [{"path": path, "reason": reason} for path, reason in split.bad_files()],
                "empty_classes": split.empty_classes,
                "classes_here_only": self.only_here.get(split.name, []),
                "classes_missing": self.missing_here.get(split.name, []),
                "shorter_sides": {name: split.sides.get(row, 0)
                                  for row, name in enumerate(_rows())},
                "remarks": {name: few(found) for name, found in sorted(split.remarks.items())},
                "not_images": few(split.others), "beside_class_folders": few(split.beside),
            } for split in self.splits},
            "duplicates": {"across_splits": groups(self.equal.across),
                           "across_classes": groups(self.equal.classes),
                           "within_a_class": groups(self.equal.same)},
        }


def _rows() -> List[str]:
    """What the rows of the table of sizes are called."""
    between = [f"{low} to {high - 1}" for low, high in zip(SIDES, SIDES[1:])]
    return [f"below {SIDES[0]}", *between, f"{SIDES[-1]} and more"]


def _listed(title: str, found: Few, shown: int = _SHOWN) -> Iterator[str]:
    if found.count:
        yield ""
        yield f"{found.count:,} {title}:"
        yield from ("    " + printable(each) for each in found.first[:shown])
        yield from ["    ..."] * (found.count > shown)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m mobilenetv3.data.check", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument
    add("folder", metavar="FOLDER", type=PATH, help="the image folder")
    add("--splits", nargs="+", type=TEXT, default=["train", "val"], metavar="NAME",
        help="folders in FOLDER (train val)")
    add("--workers", "-j", type=POSITIVE_INT, metavar="N", default=None,
        help="processes (as many as there are CPUs)")
    add("--json", metavar="FILE", type=PATH, help="write the report there, too, for programs")
    add("--list", metavar="FILE", type=PATH,
        help="write the paths of the bad files there, one a line; \\n, \\t, \\\\ and \\x1b stand "
        "for such letters in a name")
    return found


def main(args: argparse.Namespace) -> bool:
    """Run the command.

    Returns:
        whether training can do with the set.

    Raises:
        OSError, ValueError: it cannot be done; in one sentence.
    """
    folder = Path(args.folder).expanduser()
    names = [name for name in args.splits if (folder / name).is_dir()]
    splits = [Split(name, folder / name) for name in names] or [Split(".", folder)]
    missing = [name for name in args.splits if name not in names] if names else []
    if not names:
        print(f"=> no folder {' or '.join(args.splits)} in {printable(folder)}: it is looked "
              "through as one split")
    workers = args.workers or host.usable_cpus()
    tqdm.monitor_interval = 0  # a thread, and processes are forked
    with tqdm(total=sum(len(split.files) for split in splits), unit=" files", disable=None) as bar:
        for split in splits:
            for facts in scan(split.files, workers):
                split.add(facts)
                bar.update()
    report = Report(folder, splits, missing)
    print("\n".join(report.lines()))
    if args.json:
        text = json.dumps(report.json(), indent=1) + "\n"
        write_atomically(Path(args.json).expanduser(), lambda file: file.write(text.encode()))
    if args.list:
        bad = (escaped(path) + "\n" for split in splits for path, _ in split.bad_files())
        write_atomically(Path(args.list).expanduser(),
                         lambda file: file.writelines(map(os.fsencode, bad)))
    return not report.problems()


def run(argv: Optional[List[str]] = None) -> int:
    """Parse, run, and return the exit status: 1 where the set is not fit, 2 for a wrong command."""
    command = parser()
    args = command.parse_args(argv)
    folder = Path(args.folder).expanduser()
    if not folder.is_dir():
        command.error(f"FOLDER: there is no folder {printable(folder)}")
    if len(set(args.splits)) != len(args.splits):  # each file would be in two splits
        command.error(f"--splits names a split twice: {printable(' '.join(args.splits))}")
    if (folder / manifest.NAME).is_file():
        command.error(f"FOLDER: {printable(folder)} is a prepared set; `python -m "
                      "mobilenetv3.data.prepare --verify` looks through one")
    for path in filter(None, (args.json, args.list)):
        whole = Path(path).expanduser().resolve()
        if whole.is_dir() or not whole.parent.is_dir():
            command.error(f"{printable(path)} is {'a' if whole.is_dir() else 'in no'} folder; "
                          "expected the name of a file to write")
    is_fit = []
    status = entry.run(lambda args: is_fit.append(main(args)), args, "mobilenetv3.data.check")
    return status or int(not is_fit[0])


if __name__ == "__main__":
    sys.exit(run())

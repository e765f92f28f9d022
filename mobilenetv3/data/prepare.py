"""Write an image folder once as smaller JPEGs in shards, which train.py and validate.py then read.

    python -m mobilenetv3.data.prepare imagenet imagenet-256
    python -m mobilenetv3.data.prepare imagenet imagenet-256 --val_labels val.txt   # flat val/
    python -m mobilenetv3.data.prepare --verify imagenet-256
    python train.py --data_path imagenet-256

SRC has a folder for each split and in it one for each class. The shorter side of each image becomes
--size pixels; smaller images are not enlarged, and JPEGs that are no larger are copied byte for
byte. DST gets uncompressed tar files in WebDataset's form (KEY.jpg, KEY.cls, KEY.json), an index
and a manifest with checksums. The same command goes on after it was stopped, however it was.
"""
import argparse
import contextlib
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import PIL
from PIL import features
from tqdm import tqdm

from mobilenetv3 import entry, host
from mobilenetv3.arguments import COUNT, PATH, POSITIVE, POSITIVE_INT, TEXT, Number
from mobilenetv3.data import badfiles, fetch, manifest, patience, shards, shrink, sources, writer
from mobilenetv3.files import LOCK_TAKEN, remove_leftovers, write_atomically
from mobilenetv3.text import printable

_ARGUMENTS = "arguments.json"
_LOCK = "lock"
_QUALITY = Number(int, "an integer from 1 to 100", lambda n: 1 <= n <= 100)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m mobilenetv3.data.prepare", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument
    add("src", metavar="SRC", nargs="?", type=PATH, help="the image folder")
    add("dst", metavar="DST", nargs="?", type=PATH,
        help="the folder to write; a new or empty one, or one that the same command began")
    add("--size", type=POSITIVE_INT, default=256, metavar="PIXELS",
        help="the shorter side of larger images afterwards (256)")
    add("--quality", type=_QUALITY, default=90, help="of the JPEGs that are written (90)")
    add("--shard_mb", "--shard-mb", type=POSITIVE, default=256.0, metavar="MB",
        help="a shard ends with the image that makes it this large (256)")
    add("--splits", nargs="+", type=TEXT, default=["train", "val"], metavar="NAME",
        help="folders in SRC (train val). Those called test or val... are written in order, the "
        "others shuffled once")
    add("--val_labels", "--val-labels", metavar="FILE", type=PATH, default="",
        help="labels of validation images that lie in one folder, as in train.py")
    add("--workers", "-j", type=COUNT, metavar="N", default=None,
        help="processes that read and resize (as many as there are CPUs); the result does not "
        "depend on it")
    add("--skip_bad", "--skip-bad", type=COUNT, metavar="N", default=0,
        help=f"leave out up to N images that cannot be read, rather than fail; DST/{badfiles.NAME} "
        "lists them in either case (0)")
    add("--verify", metavar="DST", type=PATH,
        help="compare all files of a prepared set with its manifest; nothing is written")
    return found


def main(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        OSError, ValueError: it cannot be done; in one sentence.
    """
    if any(fetch.is_url(path or "") for path in (args.src, args.dst, args.verify)):
        raise ValueError("SRC and DST are folders on this machine, not URLs")
    if args.verify is not None:
        if args.src is not None:
            raise ValueError("--verify DST stands alone; it writes nothing")
        verify(Path(args.verify).expanduser())
        return
    if args.dst is None:
        raise ValueError("give SRC and DST, or --verify DST; --help tells more")
    src, dst = (Path(path).expanduser().resolve() for path in (args.src, args.dst))
    _check_splits(args.splits)
    if src == dst or src in dst.parents:
        raise ValueError(f"DST {dst} lies in SRC; give a folder of its own")
    found = open_splits(src, args.splits, args.val_labels)
    with _claimed(dst):
        _write(src, dst, found, args)


def _check_splits(names: List[str]) -> None:
    for name in names:
        if not manifest.is_safe(name):
            raise ValueError(f"--splits {name!r}: expected a name of letters, digits, . _ and -")
    if len(set(names)) != len(names):
        raise ValueError(f"--splits names a split twice: {' '.join(names)}")


def is_in_order(split: str) -> bool:
    """Whether a split is written in order, as for validation, rather than shuffled."""
    return split.startswith("val") or split == "test"


def open_splits(src: Path, names: List[str], val_labels: str) -> Dict[str, sources.Source]:
    """The splits of the image folder, by name.

    Raises:
        FileNotFoundError, ValueError: it is not laid out as expected.
    """
    if manifest.is_prepared(src, names[0]):
        raise ValueError(f"{src} is a prepared set already; expected a folder of images")
    found = {}
    for name in names:
        ordered = is_in_order(name)
        other = next((other for other in names if is_in_order(other) != ordered),
                     "train" if ordered else "val")
        labels = val_labels if ordered else ""
        found[name] = sources.open_source("folder", str(src), name, other, labels=labels)
    for name in names[1:]:
        sources.check_pair(found[names[0]], found[name], names[0], name)
    for name, source in found.items():
        print("\n".join([f"=> {name}: {len(source.samples):,} images of {len(source.classes):,} "
                         "classes", *source.note.splitlines()]))
    return found


@contextlib.contextmanager
def _claimed(dst: Path) -> Iterator[None]:
    """Make the folder, refuse one with files of others in it, and keep other processes out.

    Raises:
        ValueError: the folder is not ours, or another process writes there.
    """
    dst.mkdir(parents=True, exist_ok=True)
    if not (dst / manifest.UNFINISHED).is_dir() and not (dst / manifest.NAME).is_file():
        entries = sorted(os.listdir(str(dst)))
        if entries:
            raise ValueError(f"{dst} holds files that this command did not write "
                             f"({', '.join(entries[:3])}); give a new or an empty folder")
    records = dst / manifest.UNFINISHED
    records.mkdir(exist_ok=True)
    with open(str(records / _LOCK), "a") as lock:
        try:
            import fcntl

            # Of the process: those it forks do not hold it on when it is killed.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass  # Windows: nobody keeps two such commands apart
        except OSError as error:
            if error.errno in LOCK_TAKEN:
                raise ValueError(f"another process is writing {dst}; wait for it to end") from error
            # A file system without locks.
            patience.announce(f"no lock on {dst} ({error.strerror}): nothing keeps a second "
                              "command from writing there")
        yield


def arguments(src: Path, found: Dict[str, sources.Source], args) -> Dict[str, Any]:
    """All that the bytes of the result depend on, to be compared with what was begun."""
    return {
        "SRC": os.fsencode(str(src)).decode("utf-8", "replace"),
        "--size": args.size, "--quality": args.quality, "--shard_mb": args.shard_mb,
        "--splits": args.splits, "--val_labels": args.val_labels,
        "resize": "lanczos", "subsampling": shrink.SUBSAMPLING, "seed": shrink.SEED,
        "Pillow": f"{PIL.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}",
        **{f"images of {name}": _fingerprint(src, source) for name, source in found.items()},
    }


def _fingerprint(src: Path, source: sources.Source) -> str:
    """Number of images, and a digest of their names and classes."""
    digest = hashlib.sha256()
    for path, label in source.samples.samples:
        name = os.path.relpath(path, str(src))
        digest.update(b"%s\0%d\n" % (os.fsencode(name), label))
    return f"{len(source.samples)} ({digest.hexdigest()[:16]})"


def _agree(dst: Path, wanted: Dict[str, Any]) -> bool:
    """Compare with what was begun in the folder; returns whether it is finished.

    Raises:
        ValueError: it was begun with other arguments, or from other images.
    """
    path = dst / manifest.UNFINISHED / _ARGUMENTS
    is_finished = (dst / manifest.NAME).is_file()
    if is_finished:
        begun = manifest.read(dst).arguments
    elif path.is_file():
        begun = json.loads(path.read_text())
    else:
        text = json.dumps(wanted)
        write_atomically(path, lambda file: file.write(text.encode()))
        return False
    for name in [*wanted, *begun]:
        if wanted.get(name) != begun.get(name):
            raise ValueError(
                f"{dst} was begun with {name} {_said(begun.get(name))}, and now it is "
                f"{_said(wanted.get(name))}; give another DST, or delete that one"
            )
    return is_finished


def _said(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


def _write(src: Path, dst: Path, found: Dict[str, sources.Source], args) -> None:
    """Write what is missing in the claimed folder."""
    told = arguments(src, found, args)
    if _agree(dst, told):
        print(f"=> {dst} is finished; --verify {dst} compares its files with the manifest")
        _forget(dst)
        return
    remove_leftovers(dst)
    remove_leftovers(dst / manifest.UNFINISHED)
    workers = host.usable_cpus() if args.workers is None else args.workers
    writers = {
        name: writer.SplitWriter(
            dst, name, source.samples, str(src), is_shuffled=not is_in_order(name),
            size=args.size, quality=args.quality, shard_bytes=int(args.shard_mb * 1e6),
        ) for name, source in found.items()
    }
    for name, split in writers.items():
        with writer.Progress(name, split) as progress:
            split.write(workers, progress)
    bad = [entry for split in writers.values() for entry in split.left_out()]
    _report_bad(src, dst, bad, args.skip_bad)
    for name, split in writers.items():
        if not any(record["rows"] for record in split.done):
            raise ValueError(f"none of the images of {name} can be read")
    content = {
        "format": manifest.FORMAT, "version": manifest.VERSION, "arguments": told,
        "splits": {name: split.finish(found[name].classes) for name, split in writers.items()},
    }
    text = json.dumps(content, indent=1) + "\n"
    manifest.parse(text.encode(), str(dst / manifest.NAME))  # it must be readable again
    write_atomically(dst / manifest.NAME, lambda file: file.write(text.encode()))
    _forget(dst)
    for name, split in manifest.read(dst).splits.items():
        copied = content["splits"][name]["copied"]
        print(f"{shards.describe(split)}; {copied:,} of them copied as they were")


def _forget(dst: Path) -> None:
    """Remove what only an unfinished set needs; the lock goes with it, at last."""
    shutil.rmtree(str(dst / manifest.UNFINISHED), ignore_errors=True)


def _report_bad(src: Path, dst: Path, bad: List[Tuple[str, str]], allowed: int) -> None:
    """Write the list of bad images, and refuse more than are allowed."""
    path = dst / badfiles.NAME
    if not bad:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        return
    lines = "".join(f"{badfiles.escaped(name)}\t{badfiles.escaped(reason)}\n"
                    for name, reason in bad).encode("utf-8", "surrogateescape")
    write_atomically(path, lambda file: file.write(lines))
    if len(bad) > allowed:
        first = ": ".join(map(printable, bad[0]))
        raise ValueError(
            f"{len(bad)} images of {src} cannot be read, and --skip_bad {allowed} allows "
            f"{allowed} (first: {first}; {path} lists all); put whole ones in their place, or add "
            f"--skip_bad {len(bad)}, and start again: what is done is kept"
        )
    print(f"=> left out: {len(bad)} images that cannot be read, see {path}")


def verify(dst: Path) -> None:
    """Compare all files of a prepared set with its manifest.

    Raises:
        ValueError: naming the files that are missing or damaged.
        OSError: there is no such set.
    """
    found = manifest.read(dst)
    files = [file for split in found.splits.values() for file in [split.index, *split.shards]]
    wrong = []
    with tqdm(total=sum(file.bytes for file in files), unit="B", unit_scale=True,
              disable=None) as bar:
        for file in files:
            damage = manifest.damage(dst, file, deep=True, progress=bar.update)
            if damage:
                wrong.append(damage)
                tqdm.write(damage, file=sys.stderr)
    if wrong:
        raise ValueError(f"{len(wrong)} of {len(files)} files are not as they were written: "
                         f"{'; '.join(wrong[:3])}" + ("; ..." if len(wrong) > 3 else ""))
    for split in found.splits.values():
        path = str(dst / split.index.name)
        manifest.check_index(manifest.map_index(path), split, path)
        print(f"{shards.describe(split)}: as they were written")


def run(argv: Optional[List[str]] = None) -> int:
    """Parse, run, and return the exit status."""
    return entry.run(main, parser().parse_args(argv), "mobilenetv3.data.prepare")


if __name__ == "__main__":
    sys.exit(run())

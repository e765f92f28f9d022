"""The mean of several checkpoints of one training, as a checkpoint of its own.

    python -m mobilenetv3.average output/RUN -k 5              # of the last 5 epochs
    python -m mobilenetv3.average output/RUN -k 5 --best       # of the 5 best ones, as timm does
    python -m mobilenetv3.average output/RUN -k 3 --improving  # of the last 3 records: torchvision
    python -m mobilenetv3.average A.pth B.pth C.pth --output mean.pth

Of a run the checkpoints at the ends of epochs are taken, as far as they are kept: a run keeps the
last two unless --keep_last or --keep_every said otherwise. validate.py, predict.py, export.py and
--ckpt_path read the result; nothing that exists is overwritten.
"""
import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch

from mobilenetv3 import checkpoint, convert, entry, files, keep, runfolder
from mobilenetv3.arguments import POSITIVE_INT, PlainParser
from mobilenetv3.convert import own
from mobilenetv3.convert.write import OURS, extension_of
from mobilenetv3.text import printable

TRAINING_ONLY = ("drop_rate", "drop_path_rate", "bn_momentum")
"""Options of a network that change nothing of what its weights compute."""
BATCHNORM = ("BatchNorm's running statistics are means, too, and those of the averaged weights are "
             "others: validate.py --recalibrate_bn IMAGES --save FILE measures them anew")


class Chosen(NamedTuple):
    """A checkpoint of a run."""

    path: Path
    epoch: int
    """The one that it ends, from 0."""
    acc1: Optional[float]
    """Of its validation, per cent; None where there was none."""


# ---------------------------------------------------------------------------------- which files


def of_run(folder: Path, count: int, rule: str) -> List[Chosen]:
    """The checkpoints of a run that are averaged, in the order of their epochs.

    Args:
        rule: "last", "best" (the highest Acc@1 in metrics.jsonl; of two alike the later) or
            "improving" (the last of those epochs that were better than all before them).

    Raises:
        ValueError: there are fewer than `count`.
    """
    accuracies = accuracies_of(folder / runfolder.METRICS)
    found = [Chosen(path, position.epoch - 1, accuracies.get(position.epoch - 1))
             for position, path in reversed(keep.listed(folder)) if position.step == 0]
    kept = len(found)
    if rule != "last":
        found = [one for one in found if one.acc1 is not None]
    if rule == "best":
        found.sort(key=lambda one: (one.acc1, one.epoch))
    if rule == "improving":
        records, best = set(), -1.0
        for epoch in sorted(accuracies):
            if accuracies[epoch] > best:
                records.add(epoch)
                best = accuracies[epoch]
        found = [one for one in found if one.epoch in records]
    if len(found) < count:
        which = "" if rule == "last" else {
            "best": " and validated", "improving": " and better than all before"}[rule]
        raise ValueError(
            f"-k {count}: {folder} keeps {len(found)} checkpoints at the end of an epoch{which}"
            f"{f' (of {kept})' if rule != 'last' else ''}; take fewer, or train with --keep_last "
            f"{count} or more, or --keep_every 1 for all"
        )
    return sorted(found[-count:], key=lambda one: one.epoch)


def accuracies_of(metrics: Path) -> Dict[int, float]:
    """Epoch -> validation Acc@1 (with EMA the average's), of a run's metrics.jsonl."""
    found = {}
    for line in metrics.read_text("utf-8", "replace").splitlines() if metrics.is_file() else ():
        try:
            record = json.loads(line)
            acc1, epoch = float(record["val_acc1"]), int(record["epoch"])
        except (ValueError, KeyError, TypeError):  # not validated, or cut short by a crash
            continue
        if math.isfinite(acc1):
            found[epoch] = acc1
    return found


# ------------------------------------------------------------------------------------- the mean


class Mean:
    """The mean of weights that are added one after the other, in double precision.

    Everything with a fraction is averaged, BatchNorm's statistics included; its counts of batches
    are the last file's.
    """

    def __init__(self):
        self.count, self.first, self.last = 0, None, None
        self._config: Dict[str, Any] = {}
        self._sums: Dict[str, torch.Tensor] = {}

    def add(self, weights: convert.Weights) -> None:
        """Take in one more.

        Raises:
            ValueError: they are of another network, of other classes or other images than the
                first; or not finite.
        """
        config = convert.build(weights).config  # every option spelled out; and they fit
        if self.first is None:
            self.first, self._config = weights, config
        self._check(weights, config)
        self._config = config
        for name, value in weights.state_dict.items():
            if not value.is_floating_point():
                continue
            if not torch.isfinite(value).all():
                raise ValueError(f"{weights.path} cannot be averaged: {name} is not finite")
            value = value.double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self.last = weights
        self.count += 1

    def _check(self, weights: convert.Weights, config: Dict[str, Any]) -> None:
        mine, its = self._facts(self.first, self._config), self._facts(weights, config)
        for name in {**mine, **its}:
            if mine.get(name) != its.get(name):
                raise ValueError(
                    f"{weights.path} cannot be averaged with {self.first.path}: {name} is "
                    f"{_short(its.get(name))} there and {_short(mine.get(name))} here; only "
                    "checkpoints of one network and one data set have a mean that means something"
                )

    @staticmethod
    def _facts(weights: convert.Weights, config: Dict[str, Any]) -> Dict[str, Any]:
        facts = {name: value for name, value in config.items() if name not in TRAINING_ONLY}
        facts.update((name, list(weights.prepare[name])) for name in ("mean", "std"))
        facts["the list of classes"] = weights.classes
        return facts

    def tensors(self) -> Dict[str, torch.Tensor]:
        """The mean, by our names, in float32."""
        return {name: (self._sums[name] / self.count).float() if name in self._sums else value
                for name, value in self.last.state_dict.items()}

    def state(self, names: List[str]) -> Dict[str, Any]:
        """The content of a checkpoint of this package.

        Args:
            names: of the files, for whoever reads the checkpoint.
        """
        source = {"family": "average", "files": names,
                  "told": f"the mean of {self.count} checkpoints: {', '.join(names)}"}
        return own.checkpoint_of(self.tensors(), self._config, self.last.prepare,
                                 self.last.classes, source)


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 3:
        return f"{len(value)}: {', '.join(map(str, value[:3]))}, ..."
    return str(value)


# ---------------------------------------------------------------------------------- the command


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = PlainParser(prog="python -m mobilenetv3.average", description=__doc__,
                        formatter_class=argparse.RawDescriptionHelpFormatter)
    add = found.add_argument
    add("inputs", nargs="+", metavar="RUN|FILE",
        help="the folder of one run; or two files or more, of any kind that python -m "
             "mobilenetv3.convert reads")
    add("-k", "-n", type=POSITIVE_INT, metavar="K", help="with RUN: how many checkpoints")
    rule = found.add_mutually_exclusive_group()
    rule.add_argument("--best", action="store_const", const="best", dest="rule", default="last",
                      help="with RUN: the K of highest validation Acc@1, not the last K")
    rule.add_argument("--improving", action="store_const", const="improving", dest="rule",
                      help="with RUN: the last K that were better than all before them")
    average = found.add_mutually_exclusive_group()
    average.add_argument(
        "--ema", action="store_true", default=None, dest="ema",
        help="of files with two sets of weights average the averaged ones (EMA); the default for "
             "this package's checkpoints and mmengine's")
    average.add_argument("--no-ema", "--no_ema", action="store_false", default=None, dest="ema",
                         help="average the weights as they were trained")
    add("--output", "-o", metavar="FILE",
        help="file to write: .pth, .pth.tar, .pt or .safetensors (default, with RUN: "
             "RUN/average_last_K.pth.tar, or _best_, _improving_)")
    return found


def main(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        OSError, ValueError: it cannot be done; in one sentence.
    """
    paths, output, told = chosen(args)
    if output.exists():
        raise ValueError(f"{output} exists already, and nothing is overwritten; name another file "
                         "with --output")
    extension = extension_of(str(output), OURS, "this package")
    files.claim_files([output], force=False)
    for line in told:
        print(printable(line))
    mean, notes = Mean(), []
    for path in paths:
        weights = convert.read(path, ema=args.ema)
        notes += [note for note in weights.notes[1:] if note not in notes]
        mean.add(weights)
    state = mean.state([os.path.basename(path) for path in paths])
    if extension == ".safetensors":
        checkpoint.save_safetensors(output, state["state_dict"], own.metadata_of(state))
    else:
        checkpoint.save(output, state)
    if mean.first.prepare != mean.last.prepare:
        notes.append(f"the files differ in how images are prepared; as in {paths[-1]} it is")
    notes.append(BATCHNORM)
    for note in notes:
        print(printable(f"=> {note}"))
    print(printable(f"=> {output} written: the mean of {mean.count} checkpoints of a "
                    f"{mean.last.config['arch']}"))


def chosen(args: argparse.Namespace) -> Tuple[List[str], Path, List[str]]:
    """The files to average, the file to write, and lines that say which."""
    folder = Path(args.inputs[0])
    if len(args.inputs) == 1 and folder.is_dir():
        if args.k is None:
            raise ValueError(f"-k K: how many checkpoints of {folder} are to be averaged?")
        found = of_run(folder, args.k, args.rule)
        lines = [f"=> {one.path}: epoch {one.epoch}"
                 + (f", Acc@1 {one.acc1:.3f}" if one.acc1 is not None else "") for one in found]
        name = f"average_{args.rule}_{args.k}.pth.tar"
        return [str(one.path) for one in found], Path(args.output or folder / name), lines
    odd = next((path for path in args.inputs if os.path.isdir(path)), None)
    if odd is not None:
        raise ValueError(f"{odd} is a folder; expected one run folder alone, or files alone")
    if args.k is not None or args.rule != "last":
        raise ValueError("-k, --best and --improving choose among the checkpoints of a run folder; "
                         "of files all are taken")
    if len(args.inputs) < 2 or not args.output:
        raise ValueError("expected a run folder with -k K, or two files or more with --output FILE")
    return list(args.inputs), Path(args.output), [f"=> {path}" for path in args.inputs]


def run(argv: Optional[List[str]] = None) -> int:
    """Parse, run, and return the exit status."""
    return entry.run(main, parser().parse_args(argv), "mobilenetv3.average")


if __name__ == "__main__":
    sys.exit(run())

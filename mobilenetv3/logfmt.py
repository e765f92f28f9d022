"""The lines of a training log: one template a line, used both to write it and to read it back.

The train line keeps the whitespace-separated positions that parsers of Ascend ModelZoo's logs cut
out: $4 step time, $7 img/s, $9 running FPS, $11 data time, $14 loss, $17 Acc@1, $20 Acc@5. What has
been added stands last: LR, and Scale where the loss is scaled. Numbers are never padded, because
padding moves fields.
"""

import json
import re
import string
from typing import Any, Dict, NamedTuple, Optional, Union

_NUMBER = r"[-+]?(?:nan|inf|\d+(?:\.\d+)?(?:e[-+]?\d+)?)"


class _Template:
    """A format string and the regular expression that reads what it wrote.

    `{name:d}` is read back as int, `{name:.3f}` and the like as float, a bare `{name}` as text.
    """

    def __init__(self, text: str):
        self.text = text
        self.types: Dict[str, type] = {}
        pattern = ""
        for literal, name, spec, _ in string.Formatter().parse(text):
            pattern += re.escape(literal)
            if name is None:
                continue
            self.types[name] = str if not spec else int if spec == "d" else float
            body = {str: ".*", int: r"-?\d{1,18}", float: _NUMBER}[self.types[name]]
            pattern += f"(?P<{name}>{body})"
        self.regex = re.compile(pattern)

    def write(self, record: Any) -> str:
        return self.text.format(**record._asdict())

    def read(self, line: str) -> Optional[Dict[str, Any]]:
        match = self.regex.fullmatch(line)
        if match is None:
            return None
        return {name: kind(match[name]) for name, kind in self.types.items()}


_TRAIN = _Template(
    "Epoch: [{epoch:d}][{step:d}/{steps:d}]\tTime {time:.3f} ({time_avg:.3f})\timg/s {rate:.3f}"
    "\tAvg {fps:.3f}\tData {data:.3f} ({data_avg:.3f})\tLoss {loss:.4f} ({loss_avg:.4f})"
    "\tAcc@1 {acc1:.3f} ({acc1_avg:.3f})\tAcc@5 {acc5:.3f} ({acc5_avg:.3f})\tLR {lr:.8g}"
)
_TRAIN_SCALED = _Template(_TRAIN.text + "\tScale {scale:.8g}")
_TEST = _Template(
    "Test: [{step:d}/{steps:d}]\tTime {time:.3f} ({time_avg:.3f})\tLoss {loss:.4f} ({loss_avg:.4f})"
    "\tAcc@1 {acc1:.3f} ({acc1_avg:.3f})\tAcc@5 {acc5:.3f} ({acc5_avg:.3f})"
)
_ACCURACY = _Template(" * Acc@1 {acc1:.3f} Acc@5 {acc5:.3f}")
# Tabs, for these must not be found by `grep " * Acc@1"`, which also finds a space before the word.
_COLUMNS = {
    "trained": _Template(
        " * Trained weights\tLoss {loss:.4f}\tAcc@1 {acc1:.3f}\tAcc@5 {acc5:.3f}"),
    "ema": _Template(
        " * Averaged weights (EMA)\tLoss {loss:.4f}\tAcc@1 {acc1:.3f}\tAcc@5 {acc5:.3f}"
        "\t(these count)"),
}
_THROUGHPUT = _Template(" * FPS@all {fps:.3f}")
_BEST = _Template("=> best Acc@1 {acc1:.3f} (epoch {epoch:d}), weights: {path}")
_UNSCORED = _Template("=> weights: {path} (not validated)")
_RUN_PREFIX = "=> run "


class TrainLine(NamedTuple):
    """One printed training step. Pairs are (this step, mean of the epoch so far)."""

    epoch: int  # from 0
    step: int  # within the epoch, from 0
    steps: int  # steps in the epoch
    time: float  # seconds a step
    time_avg: float
    rate: float  # images/s of this step, all ranks
    fps: float  # images/s of the run so far over the counted steps, all ranks
    data: float  # seconds waited for data
    data_avg: float
    loss: float
    loss_avg: float
    acc1: float  # percent
    acc1_avg: float
    acc5: float
    acc5_avg: float
    lr: float
    scale: float = 1.0  # factor of the loss; 1 is not written

    def line(self) -> str:
        return (_TRAIN if self.scale == 1.0 else _TRAIN_SCALED).write(self)


class TestLine(NamedTuple):
    """One printed validation step; the same units as TrainLine."""

    step: int
    steps: int
    time: float
    time_avg: float
    loss: float
    loss_avg: float
    acc1: float
    acc1_avg: float
    acc5: float
    acc5_avg: float

    __test__ = False  # the name looks like a test class to pytest

    def line(self) -> str:
        return _TEST.write(self)


class Accuracy(NamedTuple):
    """Validation accuracy in percent, over every image once, of the weights that count.

    With EMA these are the averaged ones: the best epoch, and model_best.pth.tar, are theirs.
    """

    acc1: float
    acc5: float

    def line(self) -> str:
        return _ACCURACY.write(self)


class Column(NamedTuple):
    """Validation of one of the two sets of weights of a run with EMA; `Accuracy` follows."""

    weights: str  # "trained" or "ema"
    loss: float  # nats
    acc1: float
    acc5: float

    def line(self) -> str:
        return _COLUMNS[self.weights].write(self)


class Throughput(NamedTuple):
    """Training images per second of the run so far, all ranks, warm-up steps left out."""

    fps: float

    def line(self) -> str:
        return _THROUGHPUT.write(self)


class Run(NamedTuple):
    """What is being run: written once near the top of a log, read for the result table."""

    model: str  # canonical model name
    data: str  # the table's data column, such as "demo: UCI digits"
    device: str  # cpu, cuda, npu
    ranks: int
    batch_size: int  # images a step, all ranks
    epochs: int  # asked for; 0: an evaluation
    amp: str  # such as "O0" or "O2 float16"
    torch: str  # version
    img_size: int  # pixels
    fps_warmup: int  # steps left out of FPS
    max_steps: int = 0  # at which the run ends inside its epochs; 0: with them

    def line(self) -> str:
        return _RUN_PREFIX + json.dumps(self._asdict())


class Best(NamedTuple):
    """The best validation accuracy of the run and the file that holds its weights; its end."""

    acc1: float
    epoch: int
    path: str

    def line(self) -> str:
        # A plain path can be copied out of the log; one that would break the line is a JSON string.
        plain = self.path.isprintable() and self.path == self.path.strip()
        if not plain or self.path.startswith('"'):
            return _BEST.write(self._replace(path=json.dumps(self.path)))
        return _BEST.write(self)


class Unscored(NamedTuple):
    """The file that holds the weights of a run that validated nothing; its end."""

    path: str

    def line(self) -> str:
        return _UNSCORED.write(self)


SCALARS = {"train/loss": "loss", "train/acc1": "acc1", "train/acc5": "acc5", "train/lr": "lr",
           "train/loss_scale": "scale", "train/img_s": "rate", "train/fps": "fps",
           "train/data_s": "data"}
"""What is drawn of a TrainLine, by TensorBoard's tag: the report and TensorBoard show the same."""

Record = Union[TrainLine, TestLine, Accuracy, Column, Throughput, Run, Best, Unscored]


def _parse_run(line: str) -> Optional[Run]:
    try:
        fields = json.loads(line[len(_RUN_PREFIX) :])
        run = Run(**{name: fields[name] for name in Run._fields if name in fields})
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    fits = all(type(value) is kind for value, kind in zip(run, Run.__annotations__.values()))
    is_small = fits and max(run.ranks, run.batch_size, run.epochs, run.max_steps) < 10 ** 18
    return run if is_small else None


def _parse_best(line: str) -> Optional[Best]:
    fields = _BEST.read(line)
    if fields is None:
        return None
    if fields["path"].startswith('"'):
        try:
            fields["path"] = json.loads(fields["path"])
        except ValueError:
            return None
    return Best(**fields)


def parse(line: str) -> Optional[Record]:
    """Read one log line back; None for every line that this module did not write."""
    line = line.rstrip("\r\n")
    if line.startswith(_RUN_PREFIX):
        return _parse_run(line)
    if line.startswith("=> best "):
        return _parse_best(line)
    for kind, template in ((TrainLine, _TRAIN), (TrainLine, _TRAIN_SCALED), (TestLine, _TEST),
                           (Accuracy, _ACCURACY), (Throughput, _THROUGHPUT),
                           (Unscored, _UNSCORED)):
        fields = template.read(line)
        if fields is not None:
            return kind(**fields)
    for weights, template in _COLUMNS.items():
        fields = template.read(line)
        if fields is not None:
            return Column(weights, **fields)
    return None

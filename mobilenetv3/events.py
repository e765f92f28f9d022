"""TensorBoard's events of a run: the scalars of each printed step, and those of each epoch."""
from pathlib import Path
from typing import Any, Dict, Optional

from mobilenetv3 import logfmt

FOLDER, STEPS = "tensorboard", "steps"


class Events:
    """Writes events below a run folder: of epochs, by their number, and in `steps` of steps.

    They are two runs to TensorBoard: what a resumed run makes again is taken away by its number,
    and a step and an epoch of one number are far apart.

    Args:
        path: the run folder.
        first_epoch: of a resumed run; later ones that are there already are not shown any more.

    Raises:
        ValueError: TensorBoard is not installed.
    """

    def __init__(self, path: Path, first_epoch: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                f"--log-tensorboard needs the package tensorboard ({error}); pip install "
                "tensorboard"
            ) from error
        self._open, self._folder = SummaryWriter, path / FOLDER
        self._epochs = SummaryWriter(str(self._folder), purge_step=first_epoch)
        self._steps: Optional[Any] = None

    def step(self, line: logfmt.TrainLine) -> None:
        """The scalars of a printed step, numbered from the run's first."""
        number = line.epoch * line.steps + line.step
        if self._steps is None:  # the first step of a resumed run always prints
            self._steps = self._open(str(self._folder / STEPS), purge_step=number)
        for tag, field in logfmt.SCALARS.items():
            self._steps.add_scalar(tag, getattr(line, field), number)

    def epoch(self, record: Dict[str, Any]) -> None:
        """The numbers of an epoch's record."""
        for name, value in record.items():
            if name != "epoch" and isinstance(value, (int, float)):
                self._epochs.add_scalar(name, value, record["epoch"])
        for writer in filter(None, (self._epochs, self._steps)):
            writer.flush()

    def close(self) -> None:
        """Write out what is still buffered."""
        for writer in filter(None, (self._epochs, self._steps)):
            writer.close()

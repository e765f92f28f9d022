"""The next batch travels to the card while this one is worked on."""
import pytest
import torch

from mobilenetv3 import data


class Streams:
    """Stands in for torch.cuda: notes which stream copies, and who waits for whom."""

    def __init__(self):
        self.notes, self.on = [], "main"

    def current_stream(self, device):
        return OneStream(self, "main")

    def Stream(self, device):  # noqa: N802
        return OneStream(self, "side")

    def stream(self, stream):
        return stream


class OneStream:
    def __init__(self, streams, name):
        self.streams, self.name = streams, name

    def wait_stream(self, other):
        self.streams.notes.append(f"{self.name} waits for {other.name}")

    def __enter__(self):
        self.streams.on = self.name

    def __exit__(self, *error):
        self.streams.on = "main"


def test_the_next_batch_is_copied_while_this_one_is_worked_on():
    streams = Streams()

    class Part:
        def __init__(self, number):
            self.number = number

        def to(self, device, non_blocking):
            assert non_blocking
            streams.notes.append(f"{streams.on} copies {self.number}")
            return self.number

    class Card:
        torch_device, module = torch.device("cpu"), streams

    loader = data.DeviceLoader([[Part(number)] for number in range(3)], Card, (0,) * 3, (1,) * 3)
    for number, in loader._moved():
        streams.notes.append(f"step {number}")
    assert streams.notes == [
        "side waits for main", "side copies 0",
        "main waits for side", "side waits for main", "side copies 1", "step 0",
        "main waits for side", "side waits for main", "side copies 2", "step 1",
        "main waits for side", "step 2",
    ]


@pytest.mark.parametrize("batches", [0, 1, 2])
def test_no_batch_is_lost_at_the_end(batches):
    class Card:
        torch_device, module = torch.device("cpu"), Streams()

    parts = [[torch.tensor([number])] for number in range(batches)]
    loader = data.DeviceLoader(parts, Card, (0,) * 3, (1,) * 3)
    assert [part.item() for part, in loader._moved()] == list(range(batches))

"""What a validation saw, over all ranks, in the run folder."""
import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from mobilenetv3 import data, device, engine, logfmt, report, runfolder, validated
from mobilenetv3.report import records

CPU = device.select("cpu")
CLASSES = ["ant", "bee", "cat"]
IMAGES = 20


class Pictures:
    """Each is of one grey: its number times ten."""

    def __len__(self):
        return IMAGES

    def __getitem__(self, index):
        return Image.new("RGB", (40, 40), (index * 10,) * 3), index % 3

    def path(self, index):
        return f"/data/val/{CLASSES[index % 3]}/<{index}>.png"


class Precision:
    forward = staticmethod(lambda model, images: model(images))


class Grey(torch.nn.Module):
    """Right for all images but 4 (taken for 2) and, less surely, 7 (taken for 0)."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images):
        numbers = (images.mean((1, 2, 3)) * 25.5).round().long()
        output = torch.nn.functional.one_hot(numbers % 3, 3).float() * 2
        output[numbers == 4] = torch.tensor([0.0, 0.0, 9.0])
        output[numbers == 7] = torch.tensor([1.5, 0.0, 0.0])
        return output


def loader(rank=0, world=1):
    return data.val_loader(
        data.Source(Pictures(), CLASSES, "greys"), CPU, rank=rank, world=world, batch_size=3,
        workers=0, transform=data.val_transform(32), mean=[0.0] * 3, std=[1.0] * 3)


def examine(folder, rank=0, world=1):
    images, seen = loader(rank, world), validated.Seen()
    score = engine.evaluate(Grey(), images, Precision, log=lambda line: None, observe=seen)
    lines = []
    examiner = validated.Examiner(images, CLASSES, folder, rank == 0, lines.append)
    examiner.write(seen, {"epoch": 3, "val_acc1": score.acc1})
    return score, lines


def check(content):
    counts = {(true, predicted): images for true, predicted, images in content["confusion"]}
    assert counts == {(0, 0): 7, (1, 1): 5, (1, 2): 1, (1, 0): 1, (2, 2): 6}
    assert content["classes"] == CLASSES and content["epoch"] == 3
    assert [one["index"] for one in content["samples"]] == list(range(IMAGES))  # all of so few
    # The surer mistake first: softmax of 9, 0, 0 and of 1.5, 0, 0.
    first, second = np.exp([9, 1.5]) / (np.exp([9, 1.5]) + 2)
    assert [(one["index"], one["label"], one["top"][0]) for one in content["mistakes"]] == [
        (4, 1, [2, pytest.approx(first, abs=1e-4)]), (7, 1, [0, pytest.approx(second, abs=1e-4)])]
    assert content["mistakes"][0]["file"] == "bee/<4>.png"
    kind, pixels = content["mistakes"][0]["image"].split(",")
    assert kind == "data:image/png;base64"
    image = Image.open(io.BytesIO(base64.b64decode(pixels)))
    assert image.size == (32, 32) and image.getpixel((5, 5)) == (40, 40, 40)


def test_counts_and_images_of_one_rank(tmp_path):
    score, lines = examine(tmp_path)
    assert (score.correct1, score.images, lines) == (18, 20, [])
    check(json.loads((tmp_path / validated.FILE).read_text()))
    assert [path.name for path in tmp_path.iterdir()] == [validated.FILE]


def test_two_ranks_find_what_one_does(tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(validated.dist, "gather_bytes", lambda own: sent.append(own) or [own])
    examine(None, rank=1, world=2)
    theirs = iter(sent)
    monkeypatch.setattr(validated.dist, "gather_bytes", lambda own: [own, next(theirs)])
    examine(tmp_path, rank=0, world=2)
    check(json.loads((tmp_path / validated.FILE).read_text()))


def test_a_rank_without_images_takes_part(tmp_path):
    rows = validated.Seen().on_host()
    assert rows.labels.shape == (0,) and len(validated.surest_mistakes(rows)) == 0


def test_outputs_beyond_the_classes_have_a_name(tmp_path):
    images, seen = loader(), validated.Seen()
    seen(torch.eye(5)[[4] * IMAGES], torch.zeros(IMAGES, dtype=torch.int64))
    validated.Examiner(images, CLASSES, tmp_path, True, print).write(seen, {})
    content = json.loads((tmp_path / validated.FILE).read_text())
    assert content["classes"] == [*CLASSES, "class 3", "class 4"]
    assert content["confusion"] == [[0, 4, 20]]


def test_a_folder_that_cannot_be_written_is_a_line_of_the_log(tmp_path):
    _, lines = examine(tmp_path / "gone")
    assert len(lines) == 1 and lines[0].startswith("=> ") and "is not written" in lines[0]


@pytest.mark.parametrize("images, wanted, places", [
    (10, 5, [1, 3, 5, 7, 9]), (3, 5, [0, 1, 2]), (1000, 4, [125, 375, 625, 875]), (0, 4, [])])
def test_the_sample_lies_evenly_over_the_set(images, wanted, places):
    assert validated.spread(images, wanted) == places


def test_the_report_reads_what_is_written(tmp_path):
    examine(tmp_path)
    (tmp_path / "train.log").write_text(" * Acc@1 90.000 Acc@5 95.000\n")
    (found,) = records.read([tmp_path])
    assert len(found.validation.samples) == IMAGES
    assert [one.is_right for one in found.validation.mistakes] == [False, False]


def test_tensorboard_shows_the_scalars_of_each_printed_line_once(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is optional")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def line(step, loss):
        return logfmt.TrainLine(0, step, 9, 0.5, 0.4, 64.0, 80.0, 0.25, 0.02, loss, 1.0, 50.0, 40.0,
                                90.0, 80.0, 0.125, 1024.0)

    for first, last, loss in ((0, 4, 1.0), (2, 6, 2.0)):  # killed after step 3, went on at step 2
        run = runfolder.RunFolder(tmp_path, tensorboard=True)
        run.log(logfmt.Run("m", "d", "cpu", 1, 32, 1, "O0", "2", 32, 1).line())
        for step in range(first, last):
            run.log(line(step, loss).line())
        run.metrics(epoch=0, val_acc1=5.0)
        run.close()
    shown = EventAccumulator(str(tmp_path / "tensorboard" / "steps"))
    shown.Reload()
    found = {tag: [(event.step, event.value) for event in shown.Scalars(tag)]
             for tag in logfmt.SCALARS}
    assert set(shown.Tags()["scalars"]) == set(logfmt.SCALARS)
    assert found["train/loss"] == list(enumerate([1.0, 1.0, 2.0, 2.0, 2.0, 2.0]))
    assert {value for _, value in found["train/loss_scale"]} == {1024.0}
    # The same numbers as in the report's curves.
    (one,) = records.read([tmp_path])
    curves = report.command.panels.curves([one.history])
    drawn = {panel.key: next(s for s in panel.series if s.role in ("step", "value")).y
             for panel in curves.panels}
    for key, tag in (("loss", "train/loss"), ("acc1", "train/acc1"), ("lr", "train/lr"),
                     ("scale", "train/loss_scale")):
        assert drawn[key] == [value for _, value in found[tag]]

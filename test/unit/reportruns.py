"""Run folders as training leaves them, without training."""
import base64
import io
import json

from mobilenetv3.logfmt import Accuracy, Best, Column, Run, TestLine, Throughput, TrainLine

RUN = Run("mobilenetv3_small_100", "demo: UCI digits", "cpu", 1, 32, 3, "O0 float32", "2.15.0",
          32, 2)
STEPS = 4
"""Printed steps of an epoch: all of them."""
HOSTILE = "<script>window.hacked = 1</script>\n\"'><img src=x onerror='window.hacked = 2'>${x}`"
"""A name that tries to be more than a name."""


def loss(epoch, step):
    return round(2.0 / (1 + epoch * STEPS + step), 4)


def line(epoch, step, steps=STEPS, **changed):
    own = TrainLine(epoch, step, steps, 0.5, 0.4, 64.0, 80.0, 0.1, 0.02, loss(epoch, step),
                    loss(epoch, step) + 0.5, 50.0, 40.0, 90.0, 80.0, 0.1 / (1 + epoch))
    return own._replace(**changed)


def validation(acc1, trained):
    """The lines of a validation with EMA: of the trained weights, and of the averaged ones."""
    return [TestLine(0, 1, 0.1, 0.1, 1.5, 1.5, trained, trained, 90.0, 90.0),
            TestLine(0, 1, 0.1, 0.1, 1.0, 1.25, acc1, acc1, 95.0, 95.0),
            Column("trained", 1.5, trained, 90.0), Column("ema", 1.25, acc1, 95.0),
            Accuracy(acc1, 95.0)]


def epoch(number, acc1, first=0, **changed):
    lines = [line(number, step, **changed) for step in range(first, STEPS)]
    return [*lines, Throughput(80.0), *validation(acc1, acc1 - 5)]


def picture(kind="PNG"):
    from PIL import Image

    content = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 60, 20)).save(content, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"


def seen(classes, outputs=None):
    """validation.json: every image right but one a class, which is taken for the next class."""
    count = len(classes)
    counts = [row for index in range(count) for row in
              ([index, index, 9], [index, (index + 1) % count, 1])]
    examples = [{"index": n, "file": f"{classes[0]}/{n}.png", "label": n % count,
                 "top": [[n % count, 0.75], [(n + 1) % count, 0.25]], "image": picture()}
                for n in range(3)]
    wrong = dict(examples[0], top=[[1 % count, 0.99], [0, 0.01]])
    return {"epoch": 2, "val_acc1": 90.0, "classes": list(classes), "confusion": counts,
            "samples": examples, "mistakes": [wrong]}


def write(folder, records, classes=None, config=None, name="train.log", log_end=b""):
    """A run folder; records are lines of the log, or texts."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [record if isinstance(record, str) else record.line() for record in records]
    (folder / name).write_bytes("".join(text + "\n" for text in lines).encode() + log_end)
    if classes:
        (folder / "validation.json").write_text(json.dumps(seen(classes)))
    if config:
        (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    (folder / "environment.jsonl").write_text(json.dumps({
        "command": "train.py --data_path https://me:secret@host/x?token=secret", "ranks": 1,
        "time": "2026-11-01T00:00:00+0000", "versions": {"torch": "2.15.0"}, "epoch": 0, "step": 0,
        "host": {"processor": "a CPU", "cann": ""}}) + "\n")
    return folder


def whole(**changed):
    """Three epochs that nothing disturbed."""
    records = [RUN]
    for number, acc1 in enumerate((60.0, 80.0, 75.0)):
        records += epoch(number, acc1, **changed)
    return [*records, Best(80.0, 1, "model_best.pth.tar")]


def resumed():
    """Killed in its second epoch after step 2; went on from a checkpoint behind step 0."""
    return [RUN, *epoch(0, 60.0), *[line(1, step) for step in range(3)],
            RUN, *[line(1, step, loss=0.25) for step in range(1, STEPS)],
            *validation(70.0, 65.0), *epoch(2, 80.0), Best(80.0, 2, "model_best.pth.tar")]

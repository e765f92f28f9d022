"""The log lines: where their fields stand, and that they are read back as they were written."""
import math
import re
import subprocess
import sys

import pytest

from mobilenetv3.logfmt import (
    Accuracy,
    Best,
    Column,
    Run,
    TestLine,
    Throughput,
    TrainLine,
    Unscored,
    parse,
)

TRAIN = TrainLine(
    epoch=3, step=10, steps=1251, time=0.5, time_avg=0.51, rate=1660.1, fps=1659.25, data=0.01,
    data_avg=0.02, loss=6.9, loss_avg=6.8, acc1=1.5, acc1_avg=1.25, acc5=5.0, acc5_avg=4.5,
    lr=0.008,
)
TEST = TestLine(0, 391, 0.5, 0.25, 1.5, 1.625, 60.0, 61.5, 90.0, 88.25)
RUN = Run("mobilenetv3_small_100", "demo: UCI digits", "cpu", 8, 1024, 15, "O2 float16", "2.15.0",
          64, 10)


def test_train_line_is_the_one_of_the_modelzoo_with_acc_and_lr():
    assert TRAIN.line() == (
        "Epoch: [3][10/1251]\tTime 0.500 (0.510)\timg/s 1660.100\tAvg 1659.250\tData 0.010 (0.020)"
        "\tLoss 6.9000 (6.8000)\tAcc@1 1.500 (1.250)\tAcc@5 5.000 (4.500)\tLR 0.008"
    )


@pytest.mark.parametrize("epoch, step, steps", [(0, 0, 1), (7, 9, 10), (599, 1250, 1251),
                                                (12345, 999999, 1000000)])
@pytest.mark.parametrize("size", [0.0, 1.0, 123456.789])
def test_fields_stand_at_the_same_places_whatever_the_numbers(epoch, step, steps, size):
    line = TRAIN._replace(epoch=epoch, step=step, steps=steps, rate=size, loss=size, time=size)
    fields = [""] + line.line().split()  # numbered from 1, as awk does
    assert fields[1] == "Epoch:"
    read = {at: float(fields[at]) for at in (4, 7, 9, 11, 14, 17, 20, 23)}
    assert read == {4: size, 7: size, 9: 1659.25, 11: 0.01, 14: size, 17: 1.5, 20: 5.0, 23: 0.008}
    assert len(fields) == 24 and fields[22] == "LR"


def test_validation_and_summary_lines():
    assert TEST.line() == (
        "Test: [0/391]\tTime 0.500 (0.250)\tLoss 1.5000 (1.6250)\tAcc@1 60.000 (61.500)"
        "\tAcc@5 90.000 (88.250)"
    )
    assert Accuracy(73.5, 91.3).line() == " * Acc@1 73.500 Acc@5 91.300"
    assert Throughput(1660.1234).line() == " * FPS@all 1660.123"
    assert Best(98.9, 14, "/runs/a b/model_best.pth.tar").line() == (
        "=> best Acc@1 98.900 (epoch 14), weights: /runs/a b/model_best.pth.tar"
    )
    assert Unscored("/a b/checkpoint.pth.tar").line() == (
        "=> weights: /a b/checkpoint.pth.tar (not validated)")


@pytest.mark.parametrize(
    "record",
    [
        TRAIN, TEST, RUN, Accuracy(73.5, 91.25), Column("trained", 1.5, 0.125, 100.0),
        Column("ema", 0.25, 73.5, 91.25),
        Throughput(0.001), Best(98.875, 14, "model_best.pth.tar"), Unscored("/x (2)/last.pth.tar"),
        TRAIN._replace(lr=1e-06), TRAIN._replace(lr=1.2345678e-10), TRAIN._replace(loss=-0.5),
    ],
)
def test_a_record_is_read_back_as_it_was_written(record):
    assert parse(record.line()) == record
    assert parse(record.line() + "\r\n") == record


def test_digits_that_are_not_printed_are_lost_once_and_no_more():
    record = TRAIN._replace(time=1 / 3, loss=math.pi, lr=1 / 7)
    read = parse(record.line())
    assert (read.time, read.loss, read.lr) == (0.333, 3.1416, 0.14285714)
    assert read.line() == record.line()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_written_and_read(value):
    read = parse(TRAIN._replace(loss=value, fps=value).line())
    assert str(read.loss) == str(read.fps) == str(value)
    assert str(parse(Throughput(value).line()).fps) == str(value)


@pytest.mark.parametrize(
    "path",
    ["/a b/c.pth", " leading and trailing ", '"quoted"', "new\nline", "tab\t", "",
     "(epoch 3), weights: x", "\u00fc\u6570\u636e", "byte \udcff", "back\\slash", "\u2028"],
)
def test_any_path_survives(path):
    line = Best(98.9, 14, path).line()
    assert len(line.splitlines()) == 1
    assert parse(line) == Best(98.9, 14, path)


@pytest.mark.parametrize("weights, start", [
    ("trained", " * Trained weights\tLoss 1.2500\tAcc@1 73.500\tAcc@5 91.300"),
    ("ema", " * Averaged weights (EMA)\tLoss 1.2500\tAcc@1 73.500\tAcc@5 91.300\t(these count)"),
])
def test_the_two_columns_of_a_run_with_ema_are_not_taken_for_the_accuracy(weights, start):
    line = Column(weights, 1.25, 73.5, 91.3).line()
    assert line == start
    # As a fixed string, and as a regular expression, in which " *" is any number of spaces.
    assert " * Acc@1" not in line
    assert not re.search(r" * Acc@1", line)
    assert re.search(r" * Acc@1", Accuracy(73.5, 91.3).line())


def test_a_run_of_a_later_version_with_more_fields_is_read():
    assert parse(RUN.line()[:-1] + ', "nodes": 2}') == RUN


@pytest.mark.parametrize(
    "line",
    [
        "", "Epoch: [0][", TRAIN.line()[:-1] + "x", TRAIN.line() + " ", "x" + TRAIN.line(),
        TRAIN.line().replace("\t", " "), TRAIN.line().replace("Acc@1", "Prec@1"),
        "\x1b[32m" + Throughput(5.0).line(), " * Acc@1 73,5 Acc@5 91,3", " * Acc@1 73.5",
        "=> run {}", "=> run [1]", "=> run {", "=> run",
        '=> best Acc@1 1.000 (epoch 1), weights: "x', "=> weights: /x",
    ],
)
def test_other_lines_are_no_records(line):
    assert parse(line) is None


def test_reading_logs_needs_no_torch():
    code = (
        "import sys, mobilenetv3.logfmt, mobilenetv3.report\n"
        "sys.exit('torch was imported' if 'torch' in sys.modules else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

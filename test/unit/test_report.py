"""Logs to numbers: the result table, and the result files and last lines of the shell harness."""
import json
import math
import platform

import pytest

from mobilenetv3 import logfmt, report
from mobilenetv3.logfmt import Accuracy, Best, Column, Run, TestLine, Throughput, TrainLine

RUN = Run("mobilenetv3_large_100", "imagenet", "npu", 8, 1024, 3, "O2 float16", "1.11.0", 224, 10)


def train(epoch, step, loss=1.0, time=0.5):
    return TrainLine(epoch, step, 2, time, time, 2048.0, 6879.0, 0.0, 0.0, loss, loss, 10.0, 10.0,
                     30.0, 30.0, 0.064)


def epoch(number, loss, acc1, fps):
    return [train(number, 0, loss + 0.5), train(number, 1, loss), Throughput(fps),
            Accuracy(acc1, 91.0)]


# Best in the middle, last FPS highest: maximum, mean and last give different numbers.
FULL = [RUN, *epoch(0, 5.0, 10.0, 6000.0), *epoch(1, 2.0, 73.5, 6800.0),
        *epoch(2, 1.0625, 73.25, 6879.125), Best(73.5, 1, "/runs/x/model_best.pth.tar")]
PERFORMANCE = [RUN._replace(ranks=1, batch_size=128), train(0, 0, 7.0, time=20.5),
               train(0, 1, 6.5, time=0.25), train(0, 1, 6.25, time=0.125), Throughput(1660.0)]
EVALUATION = [RUN._replace(ranks=1, batch_size=128, epochs=0),
              TestLine(0, 2, 0.5, 0.5, 1.5, 1.5, 50.0, 50.0, 90.0, 90.0),
              TestLine(1, 2, 0.5, 0.5, 1.0, 1.25, 70.0, 60.0, 90.0, 90.0), Accuracy(60.0, 90.0)]


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [record if isinstance(record, str) else record.line() for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def case(log, kind, *more):
    return report.main(["--case", kind, "--seconds", "3600", *more, str(log)])


def keys_and_values(path):
    return [tuple(line.split(" = ")) for line in path.read_text().splitlines()]


# ---- Result table


def test_table_has_a_row_per_run_folder(tmp_path, capsys):
    write(tmp_path / "a" / "train.log", FULL)
    write(tmp_path / "test" / "output" / "3.2" / "train_3.log", PERFORMANCE)
    runs = [tmp_path / "a", tmp_path / "test" / "output" / "3.2"]
    assert report.main(["--table", *map(str, runs)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "| NAME | Acc@1 | FPS | Epochs | AMP_Type | Torch_Version | Data | Device |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| mobilenetv3_large_100 8p | 73.500 | 6879.1 | 3 | O2 float16 | 1.11.0 | imagenet | npu |",
        # One of its three epochs was trained; nothing was validated.
        "| mobilenetv3_large_100 1p | - | 1660.0 | 1 of 3 | O2 float16 | 1.11.0 | imagenet | npu |",
    ]


def test_a_log_file_serves_as_well_as_its_folder(tmp_path, capsys):
    log = write(tmp_path / "train.log", FULL)
    assert report.main([str(log)]) == 0
    by_file = capsys.readouterr().out
    assert report.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == by_file


def row(records, tmp_path):
    log = report.read_log(write(tmp_path / "some run" / "train.log", records))
    return [cell.strip() for cell in report.table([log]).splitlines()[2].strip("|").split(" | ")]


def test_what_was_not_measured_is_a_dash(tmp_path):
    assert row([RUN], tmp_path)[1:4] == ["-", "-", "-"]
    assert row([Accuracy(50.0, 90.0)], tmp_path) == ["some run", "50.000"] + ["-"] * 6
    not_numbers = [RUN, train(0, 0), Throughput(math.nan), Accuracy(math.nan, 1.0)]
    assert row(not_numbers, tmp_path)[1:4] == ["-", "-", "< 1"]


def test_a_cell_cannot_break_the_table(tmp_path):
    assert row([RUN._replace(data="a | b\nc")], tmp_path)[6] == "a \\| b c"


def test_an_evaluation_has_no_epochs(tmp_path):
    assert row(EVALUATION, tmp_path)[1:4] == ["60.000", "-", "-"]


def test_folders_of_other_ranks_are_left_out(tmp_path, capsys):
    write(tmp_path / "0" / "train_0.log", FULL)
    write(tmp_path / "1" / "train_1.log", ["some warning"])
    assert report.main(["--table", str(tmp_path / "0"), str(tmp_path / "1")]) == 0
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 3
    assert "nothing to report in" in told.err and "train_1.log" in told.err
    assert report.main([str(tmp_path / "1")]) == 1


def test_a_folder_without_a_log_is_named(tmp_path, capsys):
    assert report.main([str(tmp_path / "nowhere")]) == 1
    assert f"{tmp_path / 'nowhere'} is neither a log file nor a folder" in capsys.readouterr().err


def test_bytes_that_are_no_text_do_no_harm(tmp_path):
    log = write(tmp_path / "train.log", FULL)
    log.write_bytes(b"\xff\xfe\x00 50%|###\r" + log.read_bytes() + b"\x80")
    assert report.read_log(log).acc1 == 73.5


# ---- Harness


def test_full_run_has_the_keys_of_the_modelzoo_in_their_order(tmp_path):
    log = write(tmp_path / "train_0.log", FULL)
    assert case(log, "acc") == 0
    name = "MobileNetV3-Large_ID1784_for_PyTorch_bs1024_8p_acc"
    assert keys_and_values(tmp_path / f"{name}.log") == [
        ("Network", "MobileNetV3-Large_ID1784_for_PyTorch"),
        ("RankSize", "8"),
        ("BatchSize", "1024"),
        ("DeviceType", platform.machine()),
        ("CaseName", name),
        ("ActualFPS", "6879.125"),
        ("TrainingTime", "148.856"),  # 1024 * 1000 / 6879.125
        ("TrainAccuracy", "73.500"),
        ("ActualLoss", "1.0625"),
        ("E2ETrainingTime", "3600"),
    ]
    losses = (tmp_path / f"train_{name}_loss.txt").read_text()
    assert losses == "5.5000\n5.0000\n2.5000\n2.0000\n1.5625\n1.0625\n"


def test_performance_run_of_one_rank_adds_the_compile_time(tmp_path):
    assert case(write(tmp_path / "train_0.log", PERFORMANCE), "perf") == 0
    name = "MobileNetV3-Large_ID1784_for_PyTorch_bs128_1p_perf"
    entries = keys_and_values(tmp_path / f"{name}.log")
    assert [key for key, _ in entries] == [
        "Network", "RankSize", "BatchSize", "DeviceType", "CaseName", "ActualFPS", "TrainingTime",
        "ActualLoss", "E2ETrainingTime", "CompileTime",
    ]
    assert entries[-1][1] == "20.750"  # 20.5 + 0.25, the first two steps


def test_performance_run_of_eight_ranks_has_none(tmp_path):
    case(write(tmp_path / "train_0.log", [RUN, *PERFORMANCE[1:]]), "perf")
    (path,) = tmp_path.glob("*_8p_perf.log")
    assert [key for key, _ in keys_and_values(path)][-1] == "E2ETrainingTime"


def test_compile_time_is_of_the_last_start_of_a_resumed_run(tmp_path):
    resumed = [*PERFORMANCE, PERFORMANCE[0], train(1, 0, time=3.0), train(1, 1, time=0.5)]
    case(write(tmp_path / "train_0.log", resumed), "perf")
    (path,) = tmp_path.glob("*_1p_perf.log")
    assert keys_and_values(path)[-1] == ("CompileTime", "3.500")


def test_evaluation_has_no_performance(tmp_path):
    assert case(write(tmp_path / "train_0.log", EVALUATION), "eval") == 0
    (path,) = tmp_path.glob("*_bs128_1p_eval.log")
    entries = dict(keys_and_values(path))
    assert list(entries) == ["Network", "RankSize", "BatchSize", "DeviceType", "CaseName",
                             "TrainAccuracy", "ActualLoss", "E2ETrainingTime"]
    assert entries["ActualLoss"] == "1.2500"  # over the whole set


@pytest.mark.parametrize(
    "model, network",
    [
        ("mobilenetv3_large_100", "MobileNetV3-Large_ID1784_for_PyTorch"),
        ("mobilenetv2_100", "MobileNetV2_ID0098_for_PyTorch"),
        ("mobilenetv3_small_100", "mobilenetv3_small_100_for_PyTorch"),
        ("../../evil name", ".._.._evil_name_for_PyTorch"),  # it becomes a file name
    ],
)
def test_network_names(model, network):
    assert report.case_name(RUN._replace(model=model), "acc") == network + "_bs1024_8p_acc"


@pytest.mark.parametrize(
    "records, kind, lines",
    [
        (FULL, "acc", ["Final Performance images/sec : 6879.125", "Final Train Accuracy : 73.500"]),
        (PERFORMANCE, "perf", ["Final Performance images/sec : 1660.000"]),
        (EVALUATION, "eval", ["Final Train Accuracy : 60.000"]),
        # A run that ended within the warm-up has an accuracy, but no FPS.
        ([RUN, train(0, 0), Accuracy(50.0, 90.0), Best(50.0, 0, "FILE")], "acc",
         ["Final Train Accuracy : 50.000"]),
    ],
)
def test_final_result_byte_for_byte(records, kind, lines, tmp_path, capsys):
    assert case(write(tmp_path / "train_0.log", records), kind) == 0
    assert capsys.readouterr().out == "\n".join(
        ["------------------ Final result ------------------", *lines,
         "E2E Training Duration sec : 3600", ""])


@pytest.mark.parametrize(
    "records, kind, reason",
    [
        (["Traceback (most recent call last):"], "acc", "does not say what was run"),
        (FULL[1:], "acc", "does not say what was run"),
        (FULL[:4], "acc", "no validation accuracy"),
        ([*FULL[:4], Accuracy(math.nan, 0.0)], "acc", "no validation accuracy"),
        ([*FULL[:4], Column("ema", 0.7, 80.0, 90.0)], "acc", "no validation accuracy"),
        (EVALUATION[:3], "eval", "no validation accuracy"),
        (PERFORMANCE[:4], "perf", "no FPS: the run must take more than the 10 warm-up steps"),
        ([*PERFORMANCE[:4], Throughput(math.nan)], "perf", "no FPS"),
        ([*PERFORMANCE[:4], Throughput(0.0)], "perf", "no FPS"),
    ],
)
def test_without_its_number_a_result_is_an_error_and_no_file(
        records, kind, reason, tmp_path, capsys):
    assert case(write(tmp_path / "train_0.log", records), kind) == 1
    told = capsys.readouterr()
    assert told.out == "" and reason in told.err
    assert [path.name for path in tmp_path.iterdir()] == ["train_0.log"]


def test_the_best_of_a_resumed_run_may_be_from_before_its_log(tmp_path, capsys):
    resumed = [RUN, *epoch(2, 1.0, 73.25, 6000.0), Best(73.5, 1, "model_best.pth.tar")]
    assert case(write(tmp_path / "train_0.log", resumed), "acc") == 0
    assert "Final Train Accuracy : 73.500\n" in capsys.readouterr().out


def test_a_case_is_about_one_run(capsys):
    with pytest.raises(SystemExit, match="2"):
        case("a.log", "acc", "b.log")
    assert "2 were named" in capsys.readouterr().err


@pytest.mark.parametrize("field, value", [
    ("model", ["x"]), ("model", None), ("batch_size", "128"), ("batch_size", {}), ("epochs", None),
    ("ranks", 10 ** 20), ("fps_warmup", True), ("epochs", 1.5),
])
def test_a_run_line_with_values_of_other_types_is_no_record_and_no_traceback(
        tmp_path, capsys, field, value):
    run = logfmt.Run("mobilenetv3_large_100", "demo", "cpu", 2, 128, 1, "O0", "2", 224, 1)
    line = "=> run " + json.dumps(dict(run._asdict(), **{field: value}))
    assert logfmt.parse(run.line()) == run and logfmt.parse(line) is None
    log = tmp_path / "train.log"
    log.write_text(f"{line}\n * FPS@all 5.000\n * Acc@1 50.000 Acc@5 60.000\n")
    assert report.main([str(log)]) == 0
    assert report.main(["--case", "acc", str(log)]) == 1
    assert "no result" in capsys.readouterr().err


def test_a_number_of_thousands_of_digits_is_no_record_and_no_traceback():
    """Python 3.11 refuses to make an int of it."""
    line = "=> best Acc@1 50.000 (epoch %s), weights: x"
    assert logfmt.parse(line % "7").epoch == 7
    assert logfmt.parse(line % ("7" * 5000)) is None
    assert logfmt.parse("=> run " + "[" * 100_000) is None

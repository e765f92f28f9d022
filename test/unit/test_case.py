"""Which logs hold a final result, and which stop before they could."""
import pytest
from reportruns import RUN, epoch, line, validation, write

from mobilenetv3 import report
from mobilenetv3.logfmt import Accuracy, Best, Throughput, Unscored

END = Best(60.0, 1, "model_best.pth.tar")
EVALUATION = [RUN._replace(epochs=0), *validation(61.0, 55.0)]


def case(folder, records, kind="acc"):
    write(folder, records)
    return report.main(["--case", kind, str(folder)])


@pytest.mark.parametrize("records", [
    [RUN, *epoch(0, 50.0), *epoch(1, 60.0)[:4]],
    [RUN, *epoch(0, 50.0), *epoch(1, 60.0)],
    [RUN, *epoch(0, 50.0), END, RUN, *epoch(1, 60.0)],  # trained for longer, and cut there
    [RUN, *epoch(0, 50.0), END, RUN],
    [RUN, *epoch(0, 50.0), *EVALUATION],  # which ended, but is not the training
], ids=["in_an_epoch", "after_one", "trained_on", "started_only", "evaluated_since"])
def test_a_log_that_was_cut_gives_no_result_of_an_earlier_epoch(records, tmp_path, capsys):
    assert case(tmp_path, records) == 1
    told = capsys.readouterr()
    assert told.out == "" and len(told.err.splitlines()) == 1
    assert "stops before the end of the training" in told.err
    assert not list(tmp_path.glob("*_acc*"))


@pytest.mark.parametrize("records", [
    [RUN, *epoch(0, 50.0), *epoch(1, 60.0), END],
    [RUN._replace(max_steps=6), *epoch(0, 60.0), line(1, 0), line(1, 1), END],
    [RUN, *epoch(0, 50.0), line(1, 0), RUN, *epoch(1, 60.0), END],  # killed, and started again
    [RUN, *epoch(0, 50.0), *epoch(1, 60.0), RUN, END],  # there was nothing left to do
    [RUN, Accuracy(60.0, 90.0), END],  # but to validate
    [RUN, END],
    [RUN, *epoch(0, 60.0), END, *EVALUATION],
    # The accuracy is of a start before the one that validated nothing.
    [RUN, *epoch(0, 60.0), END, RUN, line(1, 0), Throughput(80.0), Unscored("last.pth.tar")],
], ids=["whole", "max_steps", "restarted", "nothing_left", "validated", "resumed", "evaluated",
        "skip_validation"])
def test_a_training_that_came_to_its_end_has_a_result(records, tmp_path, capsys):
    assert case(tmp_path, records) == 0
    assert "Final Train Accuracy : 60.000\n" in capsys.readouterr().out


@pytest.mark.parametrize("kind, records", [
    ("perf", [RUN, line(0, 0), Throughput(80.0)]),
    ("perf", [RUN, *epoch(0, 50.0), *epoch(1, 60.0)[:4]]),
    ("eval", EVALUATION),
])
def test_speed_and_evaluation_need_no_end_of_a_training(kind, records, tmp_path):
    assert case(tmp_path, records, kind) == 0

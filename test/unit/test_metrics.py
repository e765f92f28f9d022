import math

import pytest
import torch

from mobilenetv3.metrics import Clock, Score, batch_row


def test_batch_row_counts_first_and_first_five():
    # Class 0 scores highest, then 1, 2, ...: label 0 is right at once, 4 among five, 5 in neither.
    output = torch.arange(8.0, 0.0, -1.0).repeat(3, 1)
    row = batch_row(torch.tensor(0.5), output, torch.tensor([0, 4, 5]))
    assert row.tolist() == [1.5, 1.0, 2.0, 3.0]  # 0.5 mean loss x 3 images


def test_batch_row_with_fewer_than_five_classes_counts_all_as_top5():
    row = batch_row(torch.tensor(0.0), torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.tensor([0, 0]))
    assert row.tolist() == [0.0, 1.0, 2.0, 2.0]


def test_batch_row_takes_the_largest_share_of_a_mixed_target_as_the_label():
    mixed = torch.tensor([[0.3, 0.7], [0.6, 0.4]])
    row = batch_row(torch.tensor(1.0), torch.tensor([[0.0, 1.0], [0.0, 1.0]]), mixed)
    assert row.tolist() == [2.0, 1.0, 2.0, 2.0]


def test_score_divides_once_so_that_a_short_last_batch_weighs_less():
    # 3 of 4 and 0 of 1: 3/5. A mean of the two batches' percentages would say 37.5.
    score = Score().add([[4.0, 3, 4, 4]]).add([[2.0, 0, 1, 1]])
    assert score.acc1 == pytest.approx(60.0)
    assert score.acc5 == pytest.approx(100.0)
    assert score.loss == pytest.approx(6.0 / 5)


def test_an_empty_score_is_zero_not_an_error():
    assert (Score().acc1, Score().loss) == (0.0, 0.0)


class Time:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_clock_leaves_out_warm_up_and_the_time_between_epochs():
    time = Time()
    clock = Clock(warmup=2, now=time)
    clock.start()
    time.now = 10.0  # two slow steps: the warm-up
    clock.lap(2, 64)
    assert not clock.is_measured
    assert clock.fps == pytest.approx(6.4)  # until then, what there is
    time.now = 12.0
    clock.lap(4, 128)
    time.now = 100.0  # an evaluation and a checkpoint
    clock.start()
    time.now = 102.0
    assert clock.lap(4, 128) == pytest.approx(2.0)
    assert clock.fps == pytest.approx(256 / 4.0)


def test_clock_without_any_step_reports_nothing():
    clock = Clock(warmup=0)
    assert not clock.is_measured
    assert clock.fps == 0.0
    assert math.isfinite(clock.fps)

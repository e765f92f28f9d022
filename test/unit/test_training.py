"""The course of a run where it ends, goes back or stops in the middle of something."""
import pytest
from test_snapshot import assert_equal, job, poison, resumed

from mobilenetv3 import device as devices
from mobilenetv3 import engine, entry, precision, snapshot, training
from mobilenetv3.data.badfiles import BadFile, BadFiles


def test_a_run_that_max_steps_ends_inside_an_epoch_goes_on_there():
    """It was saved as if the epoch had been whole, and its other steps were never made."""
    whole, short = job(), job()._replace(total_steps=4)
    training.train(whole, snapshot.Place(0), {})
    training.train(short, snapshot.Place(0), {})
    state = short.keeper.states[-1]
    assert (state["epoch"], state["step"]) == (0, 4)
    longer, _ = resumed(state)
    final = whole.keeper.states[-1]
    for part in ("state_dict", "state_dict_ema", "optimizer"):
        assert_equal(longer.keeper.states[-1][part], final[part])
    assert longer.run.records[1] == whole.run.records[1]


def test_an_ended_run_that_is_resumed_with_the_same_max_steps_trains_no_step_more():
    short = job()._replace(total_steps=4)
    training.train(short, snapshot.Place(0), {})
    state = short.keeper.states[-1]
    again = job()._replace(total_steps=4)
    training.train(again, snapshot.put_back(state, again.parts), state)
    assert_equal(again.keeper.states[-1]["state_dict"], state["state_dict"])
    assert again.run.records == short.run.records


def test_a_group_of_steps_that_max_steps_cuts_short_is_a_mean_of_those_it_has():
    """Two steps of four were divided by four, and made half an update."""
    cut, two = (job(accumulate=steps)._replace(total_steps=2) for steps in (4, 2))
    for run in (cut, two):
        training.train(run, snapshot.Place(0), {})
    assert_equal(cut.keeper.states[-1]["state_dict"], two.keeper.states[-1]["state_dict"])


def test_gradients_of_a_loss_that_was_not_finite_do_not_reach_the_next_update(monkeypatch):
    """Step 2 begins a group of two; going back left its NaN for the group of steps 4 and 5."""
    run = poison(job(every=2, accumulate=2)._replace(goes_back=True), step=2)
    run = run._replace(loop=run.loop._replace(print_freq=1))
    monkeypatch.setattr(training.resuming, "find", lambda *_: training.resuming.Found(
        "FILE", run.keeper.states[-1], []))
    training.train(run, snapshot.Place(0), {})
    assert len([line for line in run.run.lines if "back to" in line]) == 1
    assert engine.first_non_finite(run.parts.model) == ""


def test_running_statistics_are_made_one_before_each_save_also_without_validation(monkeypatch):
    done = []
    run = job()._replace(val_loader=None)
    monkeypatch.setattr(training, "share_buffers", lambda job: done.append("shared"))
    save = run.keeper.save
    monkeypatch.setattr(run.keeper, "save", lambda *words: done.append("saved") or save(*words))
    training.train(run, snapshot.Place(0), {})
    assert done == ["shared", "saved"] * 2


def test_a_signal_on_another_rank_ends_the_validation_of_this_one(monkeypatch):
    """The rank with the signal left, and this one waited for it where the scores are added up."""
    from mobilenetv3 import interrupt

    run = job()
    watch = interrupt.Watch()
    run = run._replace(loop=run.loop._replace(watch=watch))
    monkeypatch.setattr(interrupt.dist, "gather_bytes", lambda own: [own, b"15"])
    with pytest.raises(entry.Interrupted) as caught:
        training.train(run, snapshot.Place(0), {})
    assert caught.value.number == 15 and watch.received is None
    state = run.keeper.states[-1]
    assert (state["epoch"], state["step"]) == (0, 6)  # after the last step, before the score


def test_a_full_disk_that_takes_no_list_of_bad_files_does_not_end_the_run(tmp_path):
    lines = []
    found = BadFiles(5, 100, tmp_path / "gone", True, lines.append)
    found.add([BadFile("a.jpg", "damaged")])
    told = [line for line in lines if "are not written to" in line]
    assert len(told) == 1 and "No such file" in told[0]
    assert list(found.found) == ["a.jpg"]


def test_a_dynamic_scale_of_a_run_without_one_begins_where_it_always_does():
    from mobilenetv3.scaling import INIT_SCALE, DynamicScaler, StaticScaler

    scaler = DynamicScaler()
    scaler.load_state_dict(StaticScaler().state_dict())  # of O0, or of bfloat16
    assert scaler.scale == INIT_SCALE
    scaler.load_state_dict(StaticScaler(128.0).state_dict())
    assert scaler.scale == 128.0


@pytest.mark.parametrize("kind, version", [("cuda", (1, 9)), ("npu", (2, 0))])
def test_o1_in_bfloat16_where_autocast_knows_float16_alone_is_refused(kind, version, monkeypatch):
    """It computed in float16 with a loss scale of 1, and the log said bfloat16."""
    monkeypatch.setattr(precision, "TORCH_VERSION", version)
    card = devices.Device(kind, 0, object(), "gloo")
    with pytest.raises(ValueError, match="O1 with --amp-dtype bfloat16 on .* use O2, or float16"):
        precision.create_precision("O1", card, "bfloat16")
    assert precision.create_precision("O1", card).amp_type == "O1 float16"

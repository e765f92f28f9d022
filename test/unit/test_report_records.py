"""From records to curves and facts, and where the command writes; no browser."""
import builtins
import json
import math
import os
import sys

import pytest
from reportruns import (
    HOSTILE,
    RUN,
    STEPS,
    epoch,
    line,
    loss,
    resumed,
    seen,
    validation,
    whole,
    write,
)

from mobilenetv3 import logfmt, report
from mobilenetv3.logfmt import Best, Unscored
from mobilenetv3.report import (
    command,
    facts,
    history,
    palette,
    panels,
    pictures,
    records,
    result,
)
from mobilenetv3.report.classes import mistakes, scores
from mobilenetv3.runfolder import lock


def read(folder):
    (found,) = records.read([folder])
    return found


def series(folder, key, role):
    curves = panels.curves([read(folder).history])
    return [one for panel in curves.panels if panel.key == key for one in panel.series
            if one.role == role]


# ------------------------------------------------------------------------------------- history


def test_steps_that_were_made_twice_are_the_latter_ones(tmp_path):
    found = read(write(tmp_path, resumed())).history
    assert [(point.line.epoch, point.line.step) for point in found.kept()] == [
        (epoch, step) for epoch in range(3) for step in range(STEPS)]
    assert [point.line.loss for point in found.kept()][5] == 0.25
    assert [[point.line.loss for point in part] for part in found.redone()] == [
        [loss(1, 1), loss(1, 2)], []]
    assert (found.is_over, len(found.trained)) == (True, 2)


def test_a_log_of_two_crashes_keeps_each_step_once(tmp_path):
    log = [RUN, *[line(0, step) for step in range(4)], RUN, *[line(0, step) for step in (1, 2, 3)],
           RUN, line(0, 2), line(0, 3)]
    found = read(write(tmp_path, log)).history
    assert [point.line.step for point in found.kept()] == [0, 1, 2, 3]
    assert [len(part) for part in found.redone()] == [3, 2, 0]
    assert not found.is_over


def test_a_run_stopped_in_a_validation_and_killed_later_was_finished(tmp_path):
    log = [RUN, *epoch(0, 60.0)[:STEPS], RUN, *validation(60.0, 55.0)]
    assert not read(write(tmp_path, log)).history.is_over  # the next epoch is to come
    log += [line(1, 0), line(1, 1)]
    found = read(write(tmp_path, log))
    assert not found.history.is_over and facts.state(found)[0] == "stopped"
    assert found.history.validations[0]["val_acc1"] == 60.0  # of the epoch before it


def test_an_evaluation_was_finished_before_its_first_image(tmp_path):
    log = [RUN._replace(epochs=0), "=> weights: model_best.pth.tar"]
    assert not read(write(tmp_path, log)).history.is_over
    assert read(write(tmp_path, [*log, *validation(60.0, 55.0)])).history.is_over
    # Several weights are scored one after the other, each with lines of its own.
    assert not read(write(tmp_path, [*log, *validation(60.0, 55.0), *log])).history.is_over


def test_a_run_that_validates_nothing_ends_with_its_weights(tmp_path):
    found = read(write(tmp_path, [RUN, line(0, 0), Unscored("checkpoint.pth.tar")]))
    assert found.history.is_over and facts.state(found)[0] == "finished"


def test_an_evaluation_behind_a_run_leaves_its_epochs(tmp_path):
    found = read(write(tmp_path, [*whole(), RUN._replace(epochs=0), *validation(80.0, 75.0)]))
    assert ("3", "of 3", "epochs trained") in [
        (one.value, one.unit, one.about) for one in facts.figures(found)]
    assert found.history.is_over


def test_metrics_of_any_weights_become_curves_of_their_own(tmp_path):
    folder = write(tmp_path, whole())
    (folder / "metrics.jsonl").write_text("".join(json.dumps(
        {"epoch": epoch, "val_acc1": 61.5 + epoch, "val_acc1_averaged": 70.0, "val_images": 5,
         "val_loss": math.nan, "val_acc1_ema": 61.5 + epoch}) + "\n" for epoch in range(3))
        + '{"epoch": 7, "val_a')
    assert [(one.label, one.y) for one in series(folder, "acc1", "val")] == [
        ("validation, ema", [61.5, 62.5, 63.5])]
    assert [(one.label, one.y) for one in series(folder, "acc1", "other")] == [
        ("validation, averaged", [70.0] * 3), ("validation, trained", [55.0, 75.0, 70.0])]
    assert [one.y for one in series(folder, "loss", "val")] == [[None] * 3]


def test_the_loss_scale_is_drawn_where_there_is_one(tmp_path):
    scaled = [line(0, step, scale=65536.0 / 2 ** step) for step in range(3)]
    assert scaled[0].line().endswith("\tLR 0.1\tScale 65536")
    folder = write(tmp_path / "scaled", [RUN, *scaled])
    assert [one.y for one in series(folder, "scale", "value")] == [[65536.0, 32768.0, 16384.0]]
    assert series(write(tmp_path / "plain", whole()), "scale", "value") == []


def test_thinning_keeps_the_ends_of_each_stretch_in_order():
    values = [math.sin(place) for place in range(20_001)]
    values[7777] = 50.0
    thin = panels.thinned(panels.Series(0, "step", "", list(range(20_001)), values, 0))
    assert len(thin.x) <= panels.MOST_POINTS + 2
    assert max(thin.y) == 50.0 and thin.x == sorted(set(thin.x))
    gaps = panels.thinned(panels.Series(0, "step", "", list(range(9000)), [None] * 9000, 0))
    assert set(gaps.y) == {None}


def test_a_line_of_steps_that_no_training_has_is_left_out(tmp_path):
    odd = [line(0, 5), line(0, 0)._replace(epoch=-1),
           line(10 ** 12, 0), line(0, 0, steps=0), line(0, 1)]
    assert [point.line.step for point in read(write(tmp_path, odd)).history.kept()] == [1]


# --------------------------------------------------------------------------------------- facts


def test_chief_figures(tmp_path):
    folder = write(tmp_path, resumed())
    (folder / "metrics.jsonl").write_text(
        '{"epoch": 0, "seconds": 61}\n{"epoch": 1, "seconds": 60}')
    assert [(one.value, one.unit, one.about) for one in facts.figures(read(folder))] == [
        ("80.00", "%", "Acc@1 after 3 epochs"), ("95.00", "%", "Acc@5 of the same weights"),
        ("80.0", "images/s", "training, after the warm-up"), ("3", "of 3", "epochs trained"),
        (f"{loss(2, 3) + 0.5:.4f}", "nats", "training loss, last epoch"),
        ("2:01", "min", "training and validation"),
        ("2", "", "starts, 2 printed steps made twice"),
    ]


def test_whether_a_run_goes_on_is_asked_of_its_lock(tmp_path):
    assert facts.state(read(write(tmp_path, whole()[:-1])))[0] == "stopped"
    assert facts.state(read(write(tmp_path, whole())))[0] == "finished"
    import multiprocessing

    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("fork")
    holder = context.Process(target=_hold, args=(tmp_path, theirs))
    holder.start()
    assert ours.recv() == "held"
    assert facts.state(read(tmp_path))[0] == "running"
    ours.send("go")
    holder.join()
    assert records.is_running(tmp_path) is False
    assert records.is_running(tmp_path / "nowhere") is None


def _hold(folder, told):
    held = lock(folder)
    told.send("held")
    told.recv()
    held.release()


def test_secrets_in_urls_are_not_shown():
    told = "x --data_path https://me:pass@host/a?sig=s3cret --resume s3://key@b/c"
    assert facts.without_secrets(told) == (
        "x --data_path https://...@host/a?... --resume s3://...@b/c")


def test_options_are_parted_by_default_and_by_difference(tmp_path):
    one, two = (read(write(tmp_path / name, whole(), config={"lr": lr, "epochs": 3, "seed": 42}))
                for name, lr in (("a", 0.5), ("b", 0.25)))
    chosen, usual = facts.by_default(facts.options([one]))
    assert [name for name, _ in chosen] == ["epochs", "lr"] and usual == [("seed", ["42"])]
    assert facts.options([one, two])[0] == ("lr", ["0.5", "0.25"])


def test_classes_are_scored_and_mistakes_counted():
    counts = [[0, 0, 8], [0, 1, 2], [1, 1, 5], [2, 0, 3], [2, 1, 3]]
    assert [(one.index, one.images, one.correct, one.taken_for, one.taken)
            for one in scores(counts)] == [(2, 6, 0, 0, 3), (0, 10, 8, 1, 2), (1, 5, 5, None, 0)]
    assert mistakes(counts) == [(2, 0, 3), (2, 1, 3), (0, 1, 2)]


@pytest.mark.parametrize("change", [
    {"classes": None}, {"classes": [1, 2]}, {"confusion": "x"}, {"samples": 3},
    {"confusion": [[0, 9, 1], [-1, 0, 1], [0, 0, "1"], [0, 0], 7]},
    {"samples": [{"image": "javascript:alert(1)", "label": 0, "top": [[0, 1]]}, [], {}]},
    {"mistakes": [{"image": 'data:image/png;base64,x" onerror="x', "label": 0, "top": [[0, 1]]}]},
])
def test_a_validation_of_another_shape_is_left_out_in_part_or_whole(change, tmp_path):
    folder = write(tmp_path, whole())
    (folder / "validation.json").write_text(json.dumps(dict(seen(["a", "b"]), **change)))
    found = read(folder).validation
    (name,) = change
    if name == "classes":
        assert found is None
    else:
        assert getattr(found, {"confusion": "counts"}.get(name, name)) == []
        assert found.classes == ["a", "b"]


def test_names_tell_runs_apart(tmp_path):
    folders = [write(tmp_path / one / "ckpt", whole()) for one in ("x", "y")]
    assert [one.name for one in records.read([*folders, folders[0]])] == [
        "x/ckpt (1)", "y/ckpt", "x/ckpt (2)"]


def test_the_records_of_the_scripts_lie_beside_their_log(tmp_path):
    log = write(tmp_path, whole(), name="train_0.log")
    ckpt = write(tmp_path / "ckpt", whole(), ["a"], {"lr": 1})
    found = read(log)
    assert (found.folder, found.config) == (ckpt, {"lr": 1})


# -------------------------------------------------------------------------------------- colours


@pytest.mark.parametrize("theme", palette.THEMES)
def test_colours_can_be_told_from_the_paper_and_from_each_other(theme):
    """WCAG 1.4.11 asks for 3 to 1 of lines, 1.4.3 for 4.5 of text. Curves must differ for all eyes.

    The colours as dichromats see them by Vienot, Brettel and Mollon (1999), their distance in
    Oklab. Between the seven colours of Okabe and Ito (2008) the least is 0.079; ours keep further
    apart.
    """
    colours = palette.variables(theme)
    for paper in ("paper", "ground"):
        assert all(palette.contrast(curve, colours[paper]) >= 3 for curve in palette.CURVES[theme])
        for text in ("ink", "dim", "good", "bad"):
            assert palette.contrast(colours[text], colours[paper]) >= 4.5, (text, paper)
    for seen_by in ("everyone", "protan", "deutan"):
        seen_colours = [_as_seen(curve, seen_by) for curve in palette.CURVES[theme]]
        for place, one in enumerate(seen_colours):
            for other in seen_colours[:place]:
                assert math.dist(one, other) > 0.14, (theme, seen_by, place)


def _as_seen(colour, eyes):
    red, green, blue = palette.linear(colour)
    if eyes == "everyone":
        return _oklab(red, green, blue)
    own, other, back = {"protan": (0.11238, 0.88762, 0.00401),
                        "deutan": (0.29275, 0.70725, -0.02234)}[eyes]
    yellow = own * red + other * green
    return _oklab(yellow, yellow, max(0.0, back * (red - green) + blue))


def _oklab(red, green, blue):
    """Ottosson (2020), from linear light."""
    long, middle, short = ((a * red + b * green + c * blue) ** (1 / 3) for a, b, c in (
        (0.4122214708, 0.5363325363, 0.0514459929), (0.2119034982, 0.6806995451, 0.1073969566),
        (0.0883024619, 0.2817188376, 0.6299787005)))
    return [a * long + b * middle + c * short for a, b, c in (
        (0.2104542553, 0.7936177850, -0.0040720468), (1.9779984951, -2.4285922050, 0.4505937099),
        (0.0259040371, 0.7827717662, -0.8086757660))]


# ------------------------------------------------------------------------------------- writing


def test_the_pictures_are_drawn_from_the_same_series(tmp_path):
    pytest.importorskip("matplotlib")
    found = [read(write(tmp_path / "run", resumed()))]
    curves = panels.curves([one.history for one in found])
    paths = pictures.write_all(tmp_path / "pictures", curves, ["$x$ _y"])
    assert [path.name for path in paths] == ["curves.png"] + [
        f"{panel.key}.png" for panel in curves.panels]
    assert all(pictures.is_ours(path) for path in paths)
    told = pictures.metadata(paths[0])[pictures.DRAWN_FROM]
    assert told == pictures.fingerprint(curves, ["$x$ _y"]) != pictures.fingerprint(curves, ["z"])
    light, dark = (pictures.overview(curves, ["a", "b"][:1], theme) for theme in palette.THEMES)
    assert light != dark


@pytest.mark.parametrize("name", ["report.html", "report/loss.png", "report"])
def test_what_was_not_written_here_is_not_written_over(name, tmp_path, capsys):
    pytest.importorskip("plotly")
    pytest.importorskip("matplotlib")
    folder = write(tmp_path, whole())
    theirs = folder / name
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text("mine")
    assert report.main([str(folder)]) == 1
    told = capsys.readouterr()
    assert told.out.startswith("| NAME |") and "[Error]" in told.err
    assert theirs.read_text() == "mine"
    assert not (folder / "report.html").exists() or name == "report.html"


def test_a_page_of_ours_is_written_over_and_the_table_alone_writes_nothing(tmp_path, capsys):
    pytest.importorskip("plotly")
    folder = write(tmp_path / "run", whole())
    before = sorted(path.name for path in folder.iterdir())
    assert report.main(["--table", str(folder)]) == 0
    assert sorted(path.name for path in folder.iterdir()) == before
    for _ in range(2):
        assert report.main([str(folder), "--output", str(tmp_path / "here")]) == 0
    assert sorted(path.name for path in folder.iterdir()) == before
    assert (tmp_path / "here" / command.PAGE).is_file()
    capsys.readouterr()
    assert report.main([str(folder), "--output", str(folder / "train.log")]) == 1
    assert "a file is in the way" in capsys.readouterr().err


def test_without_plotly_and_matplotlib_there_is_the_table_and_a_sentence(
        tmp_path, capsys, monkeypatch):
    genuine = builtins.__import__

    def lacking(name, *arguments, **named):
        if name.split(".")[0] in ("plotly", "matplotlib"):
            raise ImportError(f"No module named {name!r}")
        return genuine(name, *arguments, **named)

    for name in [name for name in sys.modules if name.split(".")[0] in ("plotly", "matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", lacking)
    folder = write(tmp_path, whole())
    assert report.main([str(folder)]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("| NAME |")
    assert [text.split(" (")[0] for text in told.err.splitlines()] == [
        "note: no report.html: plotly is not installed",
        "note: no pictures: matplotlib is not installed"]
    assert not (folder / "report.html").exists() and not (folder / "report").exists()


def test_hostile_names_become_one_line_of_the_terminal(tmp_path, capsys):
    pytest.importorskip("plotly")
    folder = write(tmp_path / "a\x1b[31m\nb", [RUN._replace(model=HOSTILE), line(0, 0)])
    assert report.main([str(folder)]) == 0
    told = capsys.readouterr()
    assert "\x1b" not in told.out + told.err
    assert len(told.out.splitlines()) == 3 and len(told.err.splitlines()) == 2


def test_the_scalars_have_the_names_of_a_train_line():
    assert set(logfmt.SCALARS.values()) <= set(logfmt.TrainLine._fields)
    assert history.read  # the reading that the panels come from


# ------------------------------------------------------------------- runs that went back, or on


def test_the_accuracy_of_an_abandoned_course_is_not_reported(tmp_path):
    log = [RUN, *epoch(0, 60.0), *epoch(1, 70.0), *epoch(2, 90.0),
           RUN, *epoch(2, 75.0), Best(75.0, 2, "model_best.pth.tar")]
    found = read(write(tmp_path, log))
    assert found.history.log.acc1 == 75.0
    assert facts.best(found)[:2] == (75.0, 2)
    (scored,) = series(tmp_path, "acc1", "val")
    assert (scored.x, scored.y) == ([1.0, 2.0, 3.0], [60.0, 70.0, 75.0])


def test_epochs_that_are_to_be_made_again_are_not_counted_as_done(tmp_path):
    log = [RUN, *epoch(0, 60.0), *epoch(1, 70.0), RUN, line(1, 0)]
    assert table_row(tmp_path, log)[3] == "1 of 3"


def table_row(folder, log):
    return result.cells(read(write(folder, log)).history.log)


def test_a_run_started_again_with_nothing_left_to_do_keeps_its_epochs(tmp_path):
    log = [*whole(), RUN, Best(80.0, 1, "model_best.pth.tar")]
    assert table_row(tmp_path, log)[1:4] == ("80.000", "80.0", "3")


def test_an_evaluation_in_the_folder_of_a_stopped_run_does_not_finish_it(tmp_path):
    log = [RUN, *epoch(0, 60.0), line(1, 0), RUN._replace(epochs=0), *validation(99.0, 98.0)]
    found = read(write(tmp_path, log))
    assert facts.state(found)[0] == "stopped"
    assert facts.best(found)[:2] == (60.0, 0)
    assert result.cells(found.history.log)[1:4] == ("60.000", "80.0", "1 of 3")


def test_an_evaluation_by_itself_has_its_accuracy(tmp_path):
    found = read(write(tmp_path, [RUN._replace(epochs=0), *validation(99.0, 98.0)]))
    assert facts.state(found)[0] == "finished"
    assert facts.best(found)[:2] == (99.0, None)


def test_a_validation_inside_an_epoch_is_drawn_where_the_run_ended(tmp_path):
    log = [RUN, *epoch(0, 60.0), line(1, 0), line(1, 1), *validation(65.0, 64.0)]
    write(tmp_path, log)
    (scored,) = series(tmp_path, "acc1", "val")
    assert scored.x == [1.0, 1.5]


def test_the_options_shown_are_those_of_the_last_start_that_trained(tmp_path):
    write(tmp_path, whole(), config={"lr": 0.1, "epochs": 3})
    for place, (name, options) in enumerate((
            ("config.from_epoch_2.yaml", {"lr": 0.2, "epochs": 5}),
            ("config.from_epoch_1.yaml", {"lr": 0.3, "epochs": 5}),
            ("config.from_epoch_4.yaml", {"lr": 0.4, "evaluate": True}))):
        (tmp_path / name).write_text(json.dumps(options))
        os.utime(str(tmp_path / name), (2e9 + place, 2e9 + place))
    assert read(tmp_path).config["lr"] == 0.3
    assert tmp_path / "config.from_epoch_1.yaml" in records.sources(tmp_path / "train.log")


def test_a_password_with_an_at_sign_is_hidden_whole():
    assert facts.without_secrets("https://me:p@ss@host/x") == "https://...@host/x"


def test_the_last_remarks_are_kept(tmp_path):
    log = [*whole(), *(f"=> remark {number}" for number in range(history.MOST_NOTES + 1))]
    notes = read(write(tmp_path, log)).history.notes
    assert (notes[0], notes[-1]) == ("remark 1", f"remark {history.MOST_NOTES}")


def test_one_folder_without_a_log_does_not_end_the_report_of_all(tmp_path, capsys):
    write(tmp_path / "run", whole())
    (tmp_path / "range test").mkdir()
    assert command.main([str(tmp_path / "run"), str(tmp_path / "range test"), "--table"]) == 0
    told = capsys.readouterr()
    assert "| 80.000 |" in told.out
    assert "left out" in told.err and "range test" in told.err


def test_many_runs_leave_room_for_their_curves(tmp_path):
    pytest.importorskip("matplotlib")
    from PIL import Image

    for number in range(22):
        write(tmp_path / f"run{number}", whole())
    found = records.read(sorted(tmp_path.iterdir()))
    lines = command.write(found, tmp_path / "out")
    assert any("share 6 colours" in text for text in lines)
    with Image.open(str(tmp_path / "out" / "report" / "loss.png")) as picture:
        # 11 rows of two names below a panel of 2.9 inches, where 140 pixels are one.
        assert picture.height >= 140 * (2.9 + 11 * 0.22)

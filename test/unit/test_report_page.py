"""report.html as a reader sees it, in headless Chromium."""
import json
import re

import chromium
import pytest
from reportruns import HOSTILE, RUN, STEPS, line, loss, resumed, whole, write

from mobilenetv3 import report
from mobilenetv3.report import command, page, palette, panels, records

pytest.importorskip("plotly", reason="the page needs plotly")


@pytest.fixture(scope="module")
def browser():
    lacking = chromium.missing()
    if lacking:
        pytest.skip(lacking)
    found = chromium.Browser()
    yield found
    found.close()


@pytest.fixture
def show(browser, tmp_path):
    """Write the page of some run folders, and open it."""
    def opened(*folders, dark=False, width=1280, reload_s=0.0):
        found = records.read(folders)
        curves = panels.curves([one.history for one in found])
        path = tmp_path / "report.html"
        path.write_text(page.page(found, curves, reload_s), encoding="utf-8")
        browser.look(dark, width)
        browser.open(path)
        return browser

    return opened


def drawn(browser, key):
    """{name: (x, y)} of the traces that plotly has in a panel."""
    traces = browser.run("document.getElementById(arguments[0]).data.map("
                         "(t) => [t.name, Array.from(t.x), Array.from(t.y), t.visible])",
                         f"plot-{key}")
    return {name: (x, y) for name, x, y, is_shown in traces if is_shown}


def test_the_curves_are_the_numbers_of_the_log_and_nothing_comes_from_a_network(show, tmp_path):
    browser = show(write(tmp_path / "run", whole(), list("0123456789"), {"lr": 0.1}))
    steps = [(epoch, step) for epoch in range(3) for step in range(STEPS)]
    at = [epoch + (step + 1) / STEPS for epoch, step in steps]
    assert drawn(browser, "loss") == {
        "printed step": (at, [loss(*step) for step in steps]),
        "training": ([1, 2, 3], [loss(epoch, STEPS - 1) + 0.5 for epoch in range(3)]),
        "validation, ema": ([1, 2, 3], [1.25] * 3), "validation, trained": ([1, 2, 3], [1.5] * 3),
    }
    assert drawn(browser, "acc1")["validation, ema"] == ([1, 2, 3], [60, 80, 75])
    assert drawn(browser, "acc1")["validation, trained"] == ([1, 2, 3], [55, 75, 70])
    assert drawn(browser, "acc5")["validation, ema"] == ([1, 2, 3], [95] * 3)
    assert drawn(browser, "lr") == {"training": (at, [0.1] * 4 + [0.05] * 4 + [0.033333333] * 4)}
    assert drawn(browser, "data")["printed step"] == (at, [20] * 12)  # 0.1 of 0.5 s
    assert drawn(browser, "fps")["training"] == (at, [80] * 12)
    # Each trace is a line on the screen, too.
    assert browser.run("document.querySelectorAll('#plot-loss .scatterlayer .trace').length") == 4
    assert browser.run("performance.getEntriesByType('resource').filter("
                       "(one) => !one.name.startsWith('data:')).length") == 0
    assert browser.errors() == []


@pytest.mark.parametrize("theme", palette.THEMES)
def test_light_and_dark_have_their_own_colours(theme, show, tmp_path):
    browser = show(write(tmp_path / "run", whole()), dark=theme == "dark")
    colours = palette.variables(theme)

    def rgb(name):
        return "rgb({}, {}, {})".format(*bytes.fromhex(colours[name][1:]))

    assert browser.run("getComputedStyle(document.body).backgroundColor") == rgb("ground")
    assert browser.run("getComputedStyle(document.body).color") == rgb("ink")
    strokes = browser.run("[...document.querySelectorAll('#plot-loss path.js-line')].map("
                          "(one) => getComputedStyle(one).stroke)")
    assert strokes == [rgb("c0"), rgb("c0"), rgb("c1"), rgb("c2")]
    assert browser.errors() == []


def test_the_theme_of_an_open_page_changes_with_the_readers(show, tmp_path):
    browser = show(write(tmp_path / "run", whole()))
    browser.look(dark=True)
    browser.wait("document.getElementById('plot-loss').data[0].line.color === '"
                 f"{palette.CURVES['dark'][0]}'")


def test_a_phone_shows_it_without_scrolling_sideways(show, tmp_path):
    browser = show(write(tmp_path / "run", whole(), ["a name " * 20, "b"], {"lr": "9" * 300}),
                   width=360)
    assert browser.run("document.documentElement.scrollWidth") <= 360
    assert browser.errors() == []


def test_several_runs_are_overlaid_and_each_can_be_hidden(show, tmp_path):
    runs = [write(tmp_path / name, whole(), ["a", "b"], {"lr": lr, "opt": "sgd"})
            for name, lr in (("one", 0.1), ("two", 0.2))]
    browser = show(*runs)
    assert {"one: validation, ema", "two: validation, ema"} <= set(drawn(browser, "acc1"))
    assert browser.run("document.querySelectorAll('tr.differs').length") == 1  # lr
    browser.run("document.querySelector('[data-run=\"0\"]').click()")
    assert [name for name in drawn(browser, "acc1") if name.startswith("one")] == []
    assert "two: validation, ema" in drawn(browser, "acc1")
    assert browser.errors() == []


def test_zooming_one_panel_moves_all_and_going_back_too(show, tmp_path):
    browser = show(write(tmp_path / "run", whole()))
    ranges = ("['loss', 'lr'].map((key) => "
              "document.getElementById('plot-' + key).layout.xaxis.range)")
    for wanted in ([1, 2], [0, 3 * 1.015]):  # the whole reaches a little beyond 3 epochs
        browser.run("Plotly.relayout('plot-acc1', {'xaxis.range[0]': arguments[0], "
                    "'xaxis.range[1]': arguments[1]}) && null", *wanted)
        browser.wait(f"JSON.stringify({ranges}) === '{json.dumps([wanted] * 2)}'.replace(/ /g, '')")
    assert browser.errors() == []


def test_a_resumed_run_shows_where_and_what_was_made_again(show, tmp_path):
    browser = show(write(tmp_path / "run", resumed()))
    found = drawn(browser, "loss")
    at = [epoch + (step + 1) / STEPS for epoch in range(3) for step in range(STEPS)]
    assert found["printed step"][0] == at  # no step twice
    assert found["printed step"][1][5:8] == [0.25] * 3  # those of the second start
    assert found["made again"] == ([1.5, 1.75], [loss(1, 1), loss(1, 2)])
    marks = browser.run("document.getElementById('plot-loss').layout.shapes.map((one) => one.x0)")
    assert marks == [1.25]


def test_losses_that_are_not_finite_are_gaps_with_a_cross(show, tmp_path):
    nan = [RUN, line(0, 0), line(0, 1, loss=float("nan")), line(0, 2, loss=float("inf")),
           line(0, 3)]
    browser = show(write(tmp_path / "run", nan))
    found = drawn(browser, "loss")
    assert found["printed step"][1] == [2, None, None, 0.5]
    assert found["printed step, not finite"] == ([0.5, 0.75], [2, 2])
    assert browser.errors() == []


@pytest.mark.parametrize("what, lines", [
    ("none", [RUN]), ("one step", [RUN, line(0, 0, steps=900)]),
    ("performance", [RUN, *[line(0, step, steps=900) for step in range(6)]]),
    ("evaluation", [RUN._replace(epochs=0), " * Acc@1 60.000 Acc@5 90.000"]),
])
def test_runs_without_a_whole_epoch(what, lines, show, tmp_path):
    browser = show(write(tmp_path / "run", lines))
    assert browser.run("document.querySelectorAll('.plot').length") == {
        "none": 0, "evaluation": 0}.get(what, 5)
    if what == "performance":  # counted in steps
        assert drawn(browser, "loss")["printed step"][0] == [1, 2, 3, 4, 5, 6]
    assert browser.errors() == []


def test_names_and_logs_from_outside_are_text(show, tmp_path):
    classes = [HOSTILE, "</script><b>b", "&lt;i&gt;", "\ud800"]
    run = write(tmp_path / "<img src=x onerror='window.hacked = 3'>", [
        RUN._replace(model=HOSTILE, data=HOSTILE), *whole()[1:], f"=> {HOSTILE}"],
        classes, {HOSTILE: HOSTILE}, log_end=b"=> \xff\xfe </script> \x1b[31m\n")
    (run / "metrics.jsonl").write_text(json.dumps({"epoch": 0, "val_acc1_<b>": 1.0}) + "\n[[\n")
    browser = show(run, write(tmp_path / "other", whole()))
    browser.run("document.querySelector('.matrix').scrollIntoView()")
    browser.wait("document.querySelector('.matrix .heatmaplayer image, .matrix .hm') !== null")
    assert browser.run("typeof window.hacked") == "undefined"
    assert browser.run("document.querySelectorAll('script').length") == 5  # with a matrix's data
    assert browser.run("document.querySelectorAll('b b, td b, [onerror], img[src=x]').length") == 0
    text = browser.run("document.body.textContent")
    assert "<script>window.hacked = 1</script>\\n\"'><img src=x onerror=" in text
    assert "\\udcff\\udcfe </script> \\x1b[31m" in text
    assert "&lt;i&gt;" in text and "secret" not in text
    labels = browser.run("[...document.querySelectorAll('.matrix .xtick, .matrix .ytick')].map("
                         "(one) => one.textContent)")
    assert any(label.startswith("<script>window.ha") for label in labels), labels
    assert browser.errors() == []


def test_a_thousand_classes_and_many_thousand_lines(show, tmp_path):
    lines = [RUN, *[line(epoch, step, steps=5000) for epoch in range(2) for step in range(5000)]]
    browser = show(write(tmp_path / "run", lines, [f"class {n}" for n in range(1000)]))
    x, y = drawn(browser, "loss")["printed step"]
    assert 1000 < len(x) <= panels.MOST_POINTS + 2
    assert (x[0], max(y)) == (1 / 5000, loss(0, 0)) and x == sorted(x)
    browser.run("document.querySelector('.matrix').scrollIntoView()")
    browser.wait("document.querySelector('.matrix .heatmaplayer image, .matrix .hm') !== null")
    assert browser.run("document.querySelector('.matrix').data[0].z.length") == 1000
    assert browser.errors() == []


def test_a_page_of_a_run_that_goes_on_reads_itself_again_and_stays_where_it_was(show, tmp_path):
    browser = show(write(tmp_path / "run", whole(), ["a", "b"], {"opt": "sgd"}), reload_s=1)
    browser.run("document.querySelector('details').open = true")
    browser.run("window.scrollTo(0, 700) || (window.isOld = true)")
    browser.wait("window.isOld === undefined && document.documentElement.dataset.drawn === 'yes'")
    assert browser.run("[Math.round(scrollY), document.querySelector('details').open]") == [
        700, True]


def test_the_command_writes_a_page_that_opens_by_itself(tmp_path, capsys, browser):
    run = write(tmp_path / "run", whole(), ["a", "b"])
    assert report.main([str(run)]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("| NAME |") and told.err.splitlines() == [
        f"page: {run / 'report.html'}", f"pictures: {run / 'report'} (7 PNGs)"]
    alone = tmp_path / "alone.html"
    (run / command.PAGE).rename(alone)
    browser.look()
    browser.open(alone)
    assert browser.run("document.querySelectorAll('.js-plotly-plot').length") >= 6
    assert not re.search(r'(?:src|href)="(?!data:|#)', alone.read_text(encoding="utf-8")[:200_000])
    assert browser.errors() == []

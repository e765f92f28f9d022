"""The parts of the page, from the top to the bottom."""
from typing import List, Optional, Sequence

from . import classes, facts, figures, result
from .markup import Html, data, el, join
from .palette import CURVES
from .panels import Curves, Panel
from .records import Example, Records

WORST, CONFUSED = 15, 10
"""Classes, and pairs of classes, that are listed."""


def head(records: Sequence[Records]) -> Html:
    """Title, state, and what was run."""
    if len(records) > 1:
        return join(el("h1", f"{len(records)} runs"),
                    el("p", " · ".join(one.name for one in records), class_="sub"))
    (one,) = records
    word, sentence = facts.state(one)
    pill = el("span", word, class_=f"pill {word}", title=sentence or None) if word else None
    return join(el("h1", one.name, pill),
                el("p", " · ".join(facts.describe(one)), class_="sub"))


def tiles(records: Sequence[Records]) -> Html:
    """The chief figures of a single run."""
    if len(records) > 1:
        return Html("")
    found = facts.figures(records[0])
    return el("div", [
        el("div", el("b", one.value, el("small", one.unit) if one.unit else None),
           el("span", one.about), class_="tile lead" if not place else "tile")
        for place, one in enumerate(found)], class_="tiles")


def results(records: Sequence[Records]) -> Html:
    """The result table, as the command prints it."""
    is_one = len(records) == 1
    names = [] if is_one else [el("th", "run")]
    head_row = el("tr", names, [el("th", name, class_=_side(name)) for name in result.COLUMNS])
    rows = []
    for number, one in enumerate(records):
        cells = [el("td", value, class_=_side(name) or "tight")
                 for name, value in zip(result.COLUMNS, result.cells(one.history.log))]
        own = [] if is_one else [el("td", _swatch(number), " ", one.name)]
        rows.append(el("tr", own, cells))
    return el("div", el("div", el("table", el("thead", head_row), el("tbody", rows)),
                        class_="scroll"), class_="card")


def _side(column: str) -> Optional[str]:
    return "num" if column in ("Acc@1", "FPS", "Epochs") else None


def curves(found: Curves, names: Sequence[str]) -> Html:
    """The panels, and what their lines mean."""
    if not found.panels:
        return el("div", "The log holds no training step and no validation yet.",
                  class_="card empty")
    panels = [el("div", el("h3", panel.title, el("span", _unit(panel))),
                 el("div", id=f"plot-{panel.key}", class_="plot"), class_="card")
              for panel in found.panels]
    hints = ["Drag to zoom in, double-click to go back."]
    if found.thinned:
        hints.append(f"Of up to {found.thinned:,} printed steps the least and the greatest of each "
                     "stretch are drawn.")
    if found.marks:
        hints.append("↻ a run went on after it had been stopped.")
    return join(_legend(found, names), el("div", panels, class_="curves"),
                el("p", " ".join(hints), class_="small dim", style="margin:12px 2px 0"))


def _unit(panel: Panel) -> str:
    return ", ".join(filter(None, (panel.unit, "logarithmic" if panel.scale else "")))


def _legend(found: Curves, names: Sequence[str]) -> Html:
    keys = figures.legend(found, names)
    if len(names) == 1:
        return el("div", [el("button", _line(key, f"c{key['colour']}"), el("span", key["label"]),
                             type="button", aria_pressed="true", data_role=key["role"])
                          for key in keys], class_="legend")
    runs = [el("button", _swatch(number), el("span", name), type="button", aria_pressed="true",
               data_run=str(number)) for number, name in enumerate(names)]
    lines = [el("span", _line(key, "cx"), el("span", key["label"]), class_="key") for key in keys]
    return join(el("div", runs, class_="legend"), el("div", lines, class_="legend"))


def _line(key, colour: str) -> Html:
    dashes = {"dot": "2 3", "dash": "7 4"}.get(key["dash"])
    line = el("line", x1="1", y1="6", x2="27", y2="6", stroke_width=str(max(1.5, key["width"])),
              stroke_dasharray=dashes, opacity=str(max(0.5, key["opacity"])))
    mark = el("circle", cx="14", cy="6", r="3.2") if key["marker"] == "circle" else None
    if key["marker"] == "x":
        line = el("path", d="M10 2l8 8m0-8l-8 8", stroke_width="2")
    return el("svg", line, mark, width="28", height="12", class_=colour, aria_hidden="true")


def _swatch(number: int) -> Html:
    dot = el("circle", cx="6", cy="6", r="5")
    return el("svg", dot, width="12", height="12", class_=f"c{number % len(CURVES['light'])}",
              aria_hidden="true")


def recognised(one: Records) -> Html:
    """Confusion matrix, worst classes, most frequent mistakes."""
    found = one.validation
    scores = classes.scores(found.counts)
    names = found.classes
    worst = [el("tr", el("td", names[score.index]),
                el("td", f"{score.acc1:.1f}", _bar(score.acc1), class_="num"),
                el("td", f"{score.correct:,} of {score.images:,}", class_="num"),
                el("td", "-" if score.taken_for is None else
                   f"{names[score.taken_for]} ({score.taken:,})"))
             for score in scores[:WORST]]
    wrong = [el("tr", el("td", names[true]), el("td", names[predicted]),
                el("td", f"{images:,}", class_="num"))
             for true, predicted, images in classes.mistakes(found.counts)[:CONFUSED]]
    title = "Classes" if len(scores) <= WORST else f"The worst {WORST} of {len(scores):,} classes"
    lists = el("div", el("h3", title, style="margin-bottom:8px"), _table(
        ["class", ("Acc@1, %", "num"), ("right", "num"), "most often taken for"], worst))
    confused = el("div", el("h3", "Most frequent mistakes", style="margin:0 0 8px"), _table(
        ["is", "taken for", ("images", "num")], wrong) if wrong else el("p", "None."))
    if len(names) > figures.MOST_CLASSES:
        return el("div", el("div", lists, class_="card"), el("div", confused, class_="card"),
                  class_="two")
    matrix = el("div", el("h3", "Confusion matrix"),
                el("p", "Each row is a class; colours are shares of its images.",
                   class_="small dim"),
                el("div", class_="matrix", style=f"max-width:{min(760, 160 + 90 * len(names))}px"),
                el("script", data(figures.confusion(names, found.counts)),
                   type="application/json"), class_="card")
    return el("div", matrix, el("div", lists, el("div", style="height:26px"), confused,
                                class_="card"), class_="two wide")


def _bar(percent: float) -> Html:
    return el("span", el("i", style=f"width:{percent:.1f}%"),
              class_="bar bad" if percent < 50 else "bar", aria_hidden="true")


def _table(columns: Sequence, rows: Sequence[Html]) -> Html:
    heads = [el("th", *column[:1], class_=column[1]) if isinstance(column, tuple)
             else el("th", column) for column in columns]
    return el("div", el("table", el("thead", el("tr", heads)), el("tbody", rows)), class_="scroll")


def predictions(one: Records) -> Html:
    """The surest mistakes, and a sample that is the same in every run on this set."""
    found, parts = one.validation, []
    for title, about, examples in (
            ("Surest mistakes", "wrong, and the network was most certain", found.mistakes),
            ("A sample of the validation set", "the same images whatever the network says",
             found.samples)):
        if examples:
            right = sum(example.is_right for example in examples)
            note = f"{about}; {right} of {len(examples)} right" if right else about
            parts += [el("h3", title, style="margin:20px 0 0"),
                      el("p", note, class_="small dim"),
                      el("div", [_example(example, found.classes) for example in examples],
                         class_="gallery")]
    return join(parts)


def _example(example: Example, names: Sequence[str]) -> Html:
    label, share = int(example.top[0][0]), example.top[0][1]
    words = [el("b", "✓ " if example.is_right else "✗ ", names[label]), f" {100 * share:.0f} %"]
    if not example.is_right:
        own = next((f" {100 * pair[1]:.0f} %" for pair in example.top
                    if int(pair[0]) == example.label), "")
        words += [el("br"), el("span", f"is {names[example.label]}{own}", class_="dim")]
    image = el("img", src=Html(example.image), alt=f"image of {names[example.label]}",
               class_="tiny" if "image/png" in example.image else None, loading="lazy")
    return el("figure", el("div", image, class_="shot"), el("figcaption", words),
              class_="right" if example.is_right else "wrong", title=example.file)


def configuration(records: Sequence[Records]) -> Html:
    """Every option; with several runs, those that differ first."""
    rows, is_one = facts.options(records), len(records) == 1
    if is_one:
        chosen, usual = facts.by_default(rows)
        return join(
            _columns(chosen) if chosen else el("p", "All options are train.py's defaults."),
            el("details", el("summary", f"{len(usual)} options with their defaults"),
               el("div", _columns(usual)), style="margin-top:12px"))
    differ = sum(len(set(values)) > 1 for _, values in rows)
    heads = ["option"] + [one.name for one in records]
    made = [el("tr", el("td", name, class_="key-cell"),
               [el("td", value, class_="any") for value in values],
               class_="differs" if len(set(values)) > 1 else None) for name, values in rows]
    return join(
        el("div", _table(heads, made[:differ]) if differ else el("p", "All options are the same."),
           class_="card"),
        el("details", el("summary", f"{len(rows) - differ} options that are the same"),
           el("div", _table(heads, made[differ:])), style="margin-top:12px"))


def _columns(rows) -> Html:
    half = -(-len(rows) // 2)
    return el("div", [el("div", _options(part), class_="card")
                      for part in (rows[:half], rows[half:]) if part], class_="two")


def _options(rows) -> Html:
    return el("div", el("table", el("tbody", [
        el("tr", el("td", name, class_="key-cell"), el("td", values[0], class_="any"))
        for name, values in rows])), class_="scroll")


def environment(one: Records) -> Html:
    """Versions, device and host; how and when the run was started, each time."""
    if not one.starts:
        return el("p", "This run has no environment.jsonl.", class_="dim")
    newest = [el("tr", el("td", name, class_="key-cell"), el("td", value, class_="any"))
              for name, value in facts.environment(one.starts[-1])]
    starts = [el("div", el("p", _when(start), class_="small dim", style="margin:0 0 3px"),
                 el("pre", facts.without_secrets(start.get("command", ""))),
                 style="margin-bottom:14px") for start in one.starts[-20:]]
    title = "Started" if len(starts) == 1 else f"Started {len(one.starts)} times"
    return el("div", el("div", el("table", el("tbody", newest)), class_="card scroll"),
              el("div", el("h3", title, style="margin-bottom:8px"), starts, class_="card"),
              class_="two")


def _when(start) -> str:
    words = [str(start.get("time", ""))]
    if start.get("epoch") or start.get("step"):
        words.append(f"went on from epoch {start.get('epoch')}, step {start.get('step')}")
    return ", ".join(filter(None, words))


def remarks(one: Records) -> Optional[Html]:
    """The lines of the log that are neither steps nor results."""
    notes: List[str] = one.history.notes
    if not notes:
        return None
    return el("div", el("ul", [el("li", facts.without_secrets(note)) for note in notes],
                        class_="notes"), class_="card")

"""Panels as plotly's traces and layouts; colours stay names, which the page resolves."""
from typing import Any, Dict, List, Sequence

from .markup import label
from .palette import CURVES, STYLES
from .panels import Curves, Panel, Series

NAMED_CLASSES = 40
"""Classes up to which a confusion matrix names them all."""
MOST_CLASSES = 1000
"""Classes up to which it is drawn."""


def figure(panel: Panel, curves: Curves, names: Sequence[str]) -> Dict[str, Any]:
    """One panel: its data, and what the axes need to know.

    Args:
        names: of the runs.
    """
    marks = [{"run": mark.run, "x": mark.x, "text": label(f"{names[mark.run]}: {mark.text}")}
             for mark in curves.marks]
    return {"key": panel.key, "title": panel.title, "unit": panel.unit, "scale": panel.scale,
            "fromZero": panel.from_zero, "x": curves.x_title, "end": _end(curves), "marks": marks,
            "traces": [trace(series, names) for series in panel.series]}


def _end(curves: Curves) -> float:
    """Where the x axes of all panels end."""
    return max((x for panel in curves.panels for one in panel.series for x in one.x), default=1)


def trace(series: Series, names: Sequence[str]) -> Dict[str, Any]:
    """One series. Its colour is in meta: colours change with the reader's theme."""
    style = STYLES[series.role]
    name = series.label if len(names) == 1 else f"{names[series.run]}: {series.label}"
    mode = "+".join(part for part, is_on in (("lines", style.width), ("markers", style.marker))
                    if is_on)
    found = {
        "type": "scatter", "x": series.x, "y": series.y, "name": label(name), "mode": mode,
        "opacity": style.opacity, "line": {"width": style.width, "dash": style.dash},
        "connectgaps": False,
        "meta": {"run": series.run, "role": series.role, "colour": series.colour % len(
            CURVES["light"])},
    }
    if style.marker:
        found["marker"] = {"symbol": style.marker, "size": 9 if style.marker == "x" else 6}
    if len(series.x) == 1 and not style.marker:  # a line of one point cannot be seen
        found.update(mode="markers", marker={"symbol": "circle", "size": 6})
    return found


def confusion(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> Dict[str, Any]:
    """The confusion matrix as its cells that are not empty; the page makes rows of them."""
    short = [name if len(name) <= 18 else name[:17] + "\u2026" for name in classes]
    return {"classes": [label(name) for name in classes], "counts": [list(row) for row in counts],
            "short": [label(name) for name in short], "isNamed": len(classes) <= NAMED_CLASSES}


def legend(curves: Curves, names: Sequence[str]) -> List[Dict[str, Any]]:
    """What colours and lines mean: the runs, or where there is one what its curves are of."""
    found: Dict[Any, Dict[str, Any]] = {}
    for series in (series for panel in curves.panels for series in panel.series):
        style, colour = STYLES[series.role], series.colour % len(CURVES["light"])
        is_one = len(names) == 1
        title = series.label if series.role in ("val", "other") else style.label
        if series.role == "bad":
            title = style.label
        key = (series.role, title)
        if key not in found:
            found[key] = {"role": series.role, "label": title, "dash": style.dash,
                          "colour": colour if is_one else None, "width": style.width,
                          "opacity": style.opacity, "marker": style.marker}
    if any(role == "train" for role, _ in found):  # curves without means need no word of their own
        found.pop(("value", STYLES["value"].label), None)
    return list(found.values())

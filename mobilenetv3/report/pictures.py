"""Panels as PNGs, by matplotlib: each on its own, and all side by side."""
import hashlib
import inspect
import io
import json
from pathlib import Path
from typing import Dict, List, Optional, Sequence

from mobilenetv3.files import write_atomically
from mobilenetv3.text import printable

from . import palette
from .panels import Curves, Panel, Series

SOFTWARE = "mobilenetv3.report"
"""What a picture of ours says in its metadata; another one is not written over."""
DRAWN_FROM = "mobilenetv3-drawn-from"
DASHES = {"solid": "-", "dash": "--", "dot": ":"}
MARKERS = {"circle": "o", "x": "x"}
_FONTS = ["DejaVu Sans", "Noto Sans CJK SC", "Noto Sans"]


def fingerprint(curves: Curves, names: Sequence[str]) -> str:
    """A hash of what a picture shows and of how it is drawn."""
    content = [json.dumps([curves, names]), *map(inspect.getsource, (palette, _own_module()))]
    return hashlib.sha256("\0".join(content).encode()).hexdigest()


def _own_module():
    import sys

    return sys.modules[__name__]


def overview(curves: Curves, names: Sequence[str], theme: str = "light",
             keys: Optional[Sequence[str]] = None, columns: int = 3) -> bytes:
    """All panels, or those with these keys, as one PNG."""
    chosen = [panel for panel in curves.panels if keys is None or panel.key in keys]
    return _drawn(chosen, curves, names, theme, min(columns, max(1, len(chosen))))


def single(panel: Panel, curves: Curves, names: Sequence[str]) -> bytes:
    """One panel as PNG."""
    return _drawn([panel], curves, names, "light", 1)


def write_all(folder: Path, curves: Curves, names: Sequence[str]) -> List[Path]:
    """Write curves.png and a PNG a panel into a folder, which is made; returns their paths.

    Raises:
        ValueError: a picture of that name is there already and is not one of ours.
        OSError: they cannot be written.
    """
    pictures = {"curves.png": overview(curves, names)} if curves.panels else {}
    for panel in curves.panels:
        pictures[f"{panel.key}.png"] = single(panel, curves, names)
    for name in pictures:
        path = folder / name
        if path.exists() and not is_ours(path):
            raise ValueError(f"{path} is there already and was not drawn by this command; move it, "
                             "or name another --output")
    if pictures:
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in pictures.items():
        write_atomically(folder / name, lambda file, content=content: file.write(content))
    return [folder / name for name in pictures]


def is_ours(path: Path) -> bool:
    """Whether a picture was drawn here."""
    return metadata(path).get("Software") == SOFTWARE


def metadata(path: Path) -> Dict[str, str]:
    """The texts in a PNG; none where it is no PNG."""
    from PIL import Image

    try:
        with Image.open(str(path)) as image:
            return {str(key): str(value) for key, value in image.info.items()}
    except (OSError, ValueError, SyntaxError):
        return {}


def _drawn(panels: Sequence[Panel], curves: Curves, names: Sequence[str], theme: str,
           columns: int) -> bytes:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = palette.variables(theme)
    rows = max(1, -(-len(panels) // columns))
    settings = {"font.family": "sans-serif", "font.sans-serif": _FONTS, "font.size": 9.5,
                "text.parse_math": False, "axes.unicode_minus": False, "svg.fonttype": "none"}
    known = {name: value for name, value in settings.items() if name in matplotlib.rcParams}
    with matplotlib.rc_context(known):
        handles = _legend(panels, curves, names, colours)
        foot = 0.2 + 0.22 * -(-len(handles) // (2 * columns))  # inches
        figure = Figure(figsize=(4.4 * columns + 0.2, 2.9 * rows + 0.08 + foot), dpi=140,
                        facecolor=colours["paper"])
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, columns, squeeze=False)
        for place, axes in enumerate(grid.flat):
            if place < len(panels):
                _panel(axes, panels[place], curves, colours)
            else:
                axes.set_axis_off()
        if handles:
            figure.legend(handles=handles, loc="lower center", ncol=min(len(handles), 2 * columns),
                          frameon=False, labelcolor=colours["ink"], fontsize=9)
        figure.tight_layout(rect=(0, foot / figure.get_figheight(), 1, 1), h_pad=1.6, w_pad=1.8)
        content = io.BytesIO()
        figure.savefig(content, format="png", facecolor=colours["paper"], metadata={
            "Software": SOFTWARE, DRAWN_FROM: fingerprint(curves, names)})
    return content.getvalue()


def _panel(axes, panel: Panel, curves: Curves, colours: Dict[str, str]) -> None:
    end = max(x for one in curves.panels for series in one.series for x in series.x)
    axes.set_facecolor(colours["paper"])
    title = f"{panel.title}, {panel.unit}" if panel.unit else panel.title
    axes.set_title(title, loc="left", fontsize=10.5, color=colours["ink"], fontweight="bold")
    axes.set_xlabel(curves.x_title, color=colours["dim"])
    for mark in curves.marks:
        axes.axvline(mark.x, color=colours["dim"], linewidth=0.8, linestyle=(0, (4, 3)))
    for series in panel.series:
        _series(axes, series, colours)
    axes.set_xlim(0, 1.015 * end)
    if panel.scale:
        axes.set_yscale("log", base=2 if panel.scale == "log2" else 10)
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(lambda value, place: f"{value:g}")
    elif panel.from_zero:
        axes.set_ylim(bottom=0)
    axes.grid(True, color=colours["rule"], linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=colours["dim"], length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(colours["rule"])


def _series(axes, series: Series, colours: Dict[str, str]) -> None:
    style = palette.STYLES[series.role]
    marker = MARKERS.get(style.marker, "o" if len(series.x) == 1 else "")
    y = [float("nan") if value is None else value for value in series.y]
    axes.plot(series.x, y, color=_colour(series, colours), alpha=style.opacity,
              linewidth=0.75 * style.width, linestyle=DASHES[style.dash] if style.width else "",
              marker=marker, markersize=3.5 if len(series.x) < 60 or style.marker == "x" else 0)


def _colour(series: Series, colours: Dict[str, str]) -> str:
    return colours[f"c{series.colour % len(palette.CURVES['light'])}"]


def _legend(panels: Sequence[Panel], curves: Curves, names: Sequence[str],
            colours: Dict[str, str]) -> list:
    from matplotlib.lines import Line2D

    found = {}
    for series in (series for panel in panels for series in panel.series):
        style = palette.STYLES[series.role]
        if len(names) > 1:
            key, dash, width = _short(names[series.run]), "solid", 2.5
        else:
            key = series.label if series.role in ("val", "other") else style.label
            dash, width = style.dash, style.width
        if key not in found:
            found[key] = Line2D([], [], color=_colour(series, colours), label=key,
                                linestyle=DASHES[dash] if width else "", linewidth=0.75 * width,
                                alpha=style.opacity if len(names) == 1 else 1.0,
                                marker=MARKERS.get(style.marker, "") if len(names) == 1 else "",
                                markersize=4)
    # "training" alone stands for curves that have no mean of the epoch beside them.
    if len(names) == 1 and palette.STYLES["train"].label in found:
        found.pop(palette.STYLES["value"].label, None)
    return list(found.values())


def _short(name: str) -> str:
    """A name that matplotlib takes as it is: it leaves out those with a _ in front."""
    import matplotlib

    name = printable(name, 40)
    if "text.parse_math" not in matplotlib.rcParams:  # before 3.6
        name = name.replace("$", r"\$")
    return " " + name if name.startswith("_") else name

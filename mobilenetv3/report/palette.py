"""Colours and line styles: the only place that has them, for the page and for the pictures.

The six colours of curves keep apart for the common kinds of colour blindness, and from the paper
by a contrast of 3 and more (WCAG 1.4.11); a test computes both.
"""
from typing import Dict, List, NamedTuple

CURVES = {
    "light": ["#1a57af", "#e34000", "#058c7a", "#5e005b", "#8b1922", "#370009"],
    "dark": ["#52a6ff", "#ff9647", "#3cd2bc", "#a77292", "#f5ff35", "#e1fcff"],
}
SURFACES = {
    "light": {"paper": "#ffffff", "ground": "#f4f6f9", "ink": "#17212d", "dim": "#566273",
              "rule": "#dfe4ea", "soft": "#eef1f5", "good": "#00775f", "bad": "#c2410c"},
    "dark": {"paper": "#161d27", "ground": "#0d1219", "ink": "#e8edf4", "dim": "#9aa8b9",
             "rule": "#2a3442", "soft": "#1e2733", "good": "#3fd3ac", "bad": "#ff9457"},
}
THEMES = tuple(SURFACES)


class Style(NamedTuple):
    """How a series is drawn."""

    label: str
    width: float  # pixels
    dash: str  # as plotly names it
    opacity: float
    marker: str  # "", "circle", "x"


STYLES: Dict[str, Style] = {
    "step": Style("training, printed steps", 1.25, "solid", 0.38, ""),
    "train": Style("training, mean of the epoch", 2.0, "dot", 1.0, ""),
    "value": Style("training", 2.0, "solid", 1.0, ""),
    "val": Style("validation", 2.5, "solid", 1.0, "circle"),
    "other": Style("validation", 2.0, "dash", 1.0, ""),
    "redone": Style("steps made again after a restart", 1.0, "dot", 0.5, ""),
    "bad": Style("not finite", 0.0, "solid", 1.0, "x"),
}


def variables(theme: str) -> Dict[str, str]:
    """All colours of a theme by name: c0 to c5, and those of the surfaces."""
    curves = {f"c{number}": colour for number, colour in enumerate(CURVES[theme])}
    return dict(SURFACES[theme], **curves)


def css() -> str:
    """The colours as CSS variables, dark where the reader's system is."""
    light, dark = (_declared(variables(theme)) for theme in THEMES)
    return (f":root{{color-scheme:light dark;{light}}}\n"
            f"@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n")


def _declared(colours: Dict[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items())


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb" (WCAG 2)."""
    return sum(share * value for share, value in zip((0.2126, 0.7152, 0.0722), linear(colour)))


def linear(colour: str) -> List[float]:
    """Red, green and blue of "#rrggbb", 0 to 1, proportional to light."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def contrast(one: str, other: str) -> float:
    """Contrast of two colours, 1 to 21 (WCAG 2)."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)

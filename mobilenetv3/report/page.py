"""The page: one HTML file that needs nothing beside it, and no network."""
import base64
import os
import time
from pathlib import Path
from typing import List, Sequence, Tuple

import mobilenetv3

from . import figures, palette, sections
from .markup import Html, data, el, join, text
from .panels import Curves
from .records import Records

MARK = "mobilenetv3.report"
"""What a page of ours says as its generator; another file is not written over."""
_HERE = Path(__file__).parent


def fault() -> str:
    """Why no page can be made; "" where it can."""
    try:
        from plotly.offline import get_plotlyjs  # noqa: F401
    except ImportError as error:
        return f"plotly is not installed ({error}): pip install plotly"
    return ""


def page(records: Sequence[Records], curves: Curves, reload_s: float = 0.0) -> str:
    """The whole page.

    Args:
        reload_s: seconds after which it reads itself again; 0: never.
    """
    from plotly.offline import get_plotlyjs

    names = [one.name for one in records]
    nonce = base64.b64encode(os.urandom(12)).decode()
    title = names[0] if len(names) == 1 else f"{len(names)} runs"
    policy = (f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'unsafe-inline'; "
              "img-src data: blob:; base-uri 'none'; form-action 'none'")
    drawn = [figures.figure(panel, curves, names) for panel in curves.panels]
    head = el(
        "head", el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width,initial-scale=1"),
        el("meta", name="generator", content=MARK),
        el("meta", name="referrer", content="no-referrer"),
        el("title", f"{title} · report"),
        el("style", Html(palette.css() + _asset("page.css"))),
    )
    body = el(
        "body", content(records, curves),
        el("script", data(names), type="application/json", id="names"),
        el("script", data(drawn), type="application/json", id="figures"),
        el("script", Html(get_plotlyjs()), nonce=nonce),
        el("script", Html(_asset("page.js")), nonce=nonce),
    )
    attributes = f' data-reload="{reload_s:g}"' if reload_s else ""
    return f'<!doctype html>\n<html lang="en"{attributes}>{head}{body}</html>\n'


def content(records: Sequence[Records], curves: Curves) -> Html:
    """What there is to read, without the scripts that draw the curves."""
    parts = _parts(records, curves, [one.name for one in records])
    return join(
        el("header", el("div", sections.head(records),
                        el("nav", [el("a", name, href=f"#{key}") for key, name, _ in parts]))),
        el("main", sections.tiles(records), [
            el("section", el("h2", name, id=key), part) for key, name, part in parts]),
        el("footer", f"Written {time.strftime('%Y-%m-%d %H:%M:%S %z')} by python -m "
           f"mobilenetv3.report, version {mobilenetv3.__version__}."))


def _parts(records: Sequence[Records], curves: Curves,
           names: Sequence[str]) -> List[Tuple[str, str, Html]]:
    """(id, title, content) of the sections that there is something for."""
    found = [("curves", "Curves", sections.curves(curves, names)),
             ("results", "Result", sections.results(records))]
    if len(records) > 1:
        found.reverse()
    scored = [one for one in records if one.validation is not None and one.validation.counts]
    if scored:
        found.append(("classes", "Classes", _each(records, scored, sections.recognised)))
    pictured = [one for one in scored if one.validation.samples or one.validation.mistakes]
    if pictured:
        found.append(("predictions", "Predictions",
                      _each(records, pictured, sections.predictions)))
    if any(one.config for one in records):
        found.append(("configuration", "Configuration", sections.configuration(records)))
    known = [one for one in records if one.starts]
    if known:
        found.append(("environment", "Environment", _each(records, known, sections.environment)))
    told = [one for one in records if one.history.notes]
    if told:
        found.append(("log", "Remarks in the log", _each(records, told, sections.remarks)))
    return found


def _each(records: Sequence[Records], some: Sequence[Records], make) -> Html:
    """A part for each run; where there are several, behind its name."""
    if len(records) == 1:
        return make(some[0])
    return join([el("details", el("summary", one.name), el("div", make(one)), open=not place)
                 for place, one in enumerate(some)])


def is_ours(path: Path) -> bool:
    """Whether a file is a page that was written here."""
    try:
        with open(str(path), "rb") as file:
            start = file.read(4096)
    except OSError:
        return False
    return str(text(el("meta", name="generator", content=MARK))).encode() in start


def _asset(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")

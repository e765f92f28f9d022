"""HTML that is safe by construction: text is escaped, unless it came out of here."""
import html
import json
from typing import Any

from mobilenetv3.text import printable


class Html(str):
    """Markup; every other string is text."""


def text(value: object) -> Html:
    """Anything as text: what would be markup, a control character or half a letter shows itself."""
    return value if isinstance(value, Html) else Html(html.escape(printable(value)))


def el(tag: str, *children: object, **attributes: Any) -> Html:
    """An element.

    Args:
        children: texts and elements; None is left out, a list is its items.
        attributes: by name, with - for _ and without one at the end (class_); None and False are
            left out, True is the name alone.
    """
    words = [tag]
    for name, value in attributes.items():
        name = name.rstrip("_").replace("_", "-")
        if value is True:
            words.append(name)
        elif value is not None and value is not False:
            words.append(f'{name}="{text(str(value))}"')
    opened = f"<{' '.join(words)}>"
    if tag in ("img", "meta", "input", "br"):
        return Html(opened)
    return Html(f"{opened}{join(*children)}</{tag}>")


def join(*children: object) -> Html:
    """Texts and elements, one after the other."""
    parts = []
    for child in children:
        if isinstance(child, (list, tuple)):
            parts.append(join(*child))
        elif child is not None:
            parts.append(text(child))
    return Html("".join(parts))


def data(value: Any) -> Html:
    """JSON for a script element, out of which nothing in it can break."""
    content = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for letter in "<>&":
        content = content.replace(letter, f"\\u{ord(letter):04x}")
    return Html(content)


def label(value: object) -> str:
    """A text for plotly, which takes some HTML in its labels for markup."""
    return html.escape(printable(value), quote=False)

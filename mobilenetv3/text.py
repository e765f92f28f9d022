"""Texts from outside (names of files, classes and keys), made fit to be shown."""
import re

_FORMULA = re.compile(r"[=@\t]|[-+].*[(|!]", re.DOTALL)
"""What a spreadsheet takes for a formula that does something; -1 and -dash.jpg are none."""


def printable(text: object, most: int = 0) -> str:
    """A text as one line that only shows itself.

    A name is anybody's: its escape sequences would command the terminal, a line feed forge a line
    of the log, a change of the writing direction turn the rest of the line around. Each of these
    characters is written as in Python (`\\n`, `\\x1b`, `\\u202e`), as is a byte of a file name
    that is no UTF-8 (`\\udcff`). Letters of every script stay, and tabs.

    Args:
        most: characters that are kept, of the beginning and the end; 0 for all.
    """
    text = str(text)
    if most and len(text) > most:
        half = most // 2
        text = f"{text[:half]} ... {text[-half:]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in text)


def cell(text: str) -> str:
    """A text for a cell of a CSV file: an apostrophe keeps spreadsheets from computing it."""
    # Python's csv writes it without quotes, and readers then take it for the end of the line.
    text = text.replace("\r", "\\r")
    return "'" + text if _FORMULA.match(text) else text

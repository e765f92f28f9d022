"""A contact sheet: small images in rows, each above what was found in it."""
import io
import os
from typing import List, NamedTuple, Sequence

from PIL import Image, ImageDraw, ImageFont

from mobilenetv3.files import PathLike, write_atomically

SIDE = 192
"""Pixels of the square that a small image is fitted into."""
COLUMNS, MOST = 8, 400
"""Images in a row, and on a sheet, at most."""
_GAP, _LINE, _SIZE = 12, 17, 13
_LINES = 3  # two of the class, one of the file
_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "arial.ttf",
          "Arial.ttf")
_TEXT, _FAINT, _PAPER = (20, 20, 20), (120, 120, 120), (255, 255, 255)


class Tile(NamedTuple):
    """One image of a sheet."""

    image: Image.Image
    """From `small`."""
    caption: str
    score: str
    file: str


def small(image: Image.Image) -> Image.Image:
    """A copy of an image whose longer side fills a tile."""
    scale = SIDE / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    return image.convert("RGB").resize(size, Image.NEAREST if scale > 1 else Image.BICUBIC)


def draw(path: PathLike, tiles: Sequence[Tile]) -> None:
    """Write a sheet as PNG."""
    columns = min(COLUMNS, max(1, len(tiles)))
    rows = -(-len(tiles) // columns)
    width, height = SIDE + _GAP, SIDE + _LINES * _LINE + 2 * _GAP
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), _PAPER)
    pen, font = ImageDraw.Draw(sheet), _font()
    for index, tile in enumerate(tiles):
        left, top = _GAP + index % columns * width, _GAP + index // columns * height
        sheet.paste(tile.image, (left, top + SIDE - tile.image.height))
        words = wrapped(f"{tile.score} {tile.caption}", font, SIDE, _LINES - 1)
        words.append(shortened(os.path.basename(tile.file), font, SIDE))
        for number, text in enumerate(words):
            colour = _FAINT if number + 1 == len(words) else _TEXT
            pen.text((left, top + SIDE + 4 + number * _LINE), text, fill=colour, font=font)
    content = io.BytesIO()
    sheet.save(content, "PNG", optimize=True)
    write_atomically(path, lambda file: file.write(content.getvalue()))


def wrapped(text: str, font, width: int, lines: int) -> List[str]:
    """Break a text between words; the last line takes what is left, shortened."""
    text, found = _drawable(text, font), []
    words = text.split(" ")
    while words and len(found) < lines - 1:
        count = len(words)
        while count > 1 and _width(" ".join(words[:count]), font) > width:
            count -= 1
        found.append(shortened(" ".join(words[:count]), font, width))
        words = words[count:]
    return found + ([shortened(" ".join(words), font, width)] if words else [])


def shortened(text: str, font, width: int) -> str:
    """A text that is cut, with dots, where it is wider than so many pixels."""
    text = _drawable(text, font)
    if _width(text, font) <= width:
        return text
    while text and _width(text + "...", font) > width:
        text = text[:-1]
    return text.rstrip() + "..."


def _drawable(text: str, font) -> str:
    """A text of one line without letters that the font cannot draw at all."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    try:
        font.getmask(text)
    except (UnicodeEncodeError, ValueError):  # Pillow's old bitmap font knows Latin-1 only
        return text.encode("latin-1", "replace").decode("latin-1")
    return text


def _width(text: str, font) -> float:
    return font.getmask(text).size[0]


def _font():
    """A font of the system's with many letters, else the one that Pillow brings."""
    for name in _FONTS:
        try:
            return ImageFont.truetype(name, _SIZE)
        except OSError:
            continue
    try:
        return ImageFont.load_default(_SIZE)
    except TypeError:  # before Pillow 10.1: a bitmap font of one size
        return ImageFont.load_default()

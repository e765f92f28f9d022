"""Labels that stand in a file, for images that lie in one folder without class folders.

A line is `NAME LABEL`: the image's file name (its extension may be left out) and its class; or, in
every line, `LABEL` alone, in the alphabetical order of the images. LABEL is the name of a class
(of its training folder; for ImageNet the synset, such as n01440764) or its number, counted from 0
in the alphabetical order of the classes. ImageNet's own two forms are read, too: the development
kit's ILSVRC2012_validation_ground_truth.txt, whose numbers count from 1 in an order that only the
kit's meta.mat tells, and Kaggle's LOC_val_solution.csv.
"""
from pathlib import Path
from typing import Dict, List, NamedTuple, Sequence

from timm.data import ImageNetInfo

META = "meta.mat"
KAGGLE_HEADER = "ImageId,PredictionString"


class _Line(NamedTuple):
    where: str  # file and line, for errors
    name: str  # of the image; "" where the line has a label alone
    label: str


class _Classes:
    """What a label may be."""

    def __init__(self, names: Sequence[str]):
        self.names = names
        self.positions: Dict[str, int] = {name: index for index, name in enumerate(names)}
        # Folders may be called 3 or 0012: then a number is a name.
        self.have_numbers = not all(map(_is_number, names))

    def index(self, line: _Line) -> int:
        """The class that a label stands for."""
        if line.label in self.positions:
            return self.positions[line.label]
        if self.have_numbers and _is_number(line.label) and int(line.label) < len(self.names):
            return int(line.label)
        numbers = f", or a number from 0 to {len(self.names) - 1}" if self.have_numbers else ""
        raise ValueError(
            f"{line.where}: {line.label!r} is not one of the {len(self.names)} classes; expected a "
            f"name ({self.first_names}){numbers}"
        )

    @property
    def first_names(self) -> str:
        return ", ".join(self.names[:2]) + (", ..." if len(self.names) > 2 else "")


def synsets() -> List[str]:
    """The 1,000 classes of ILSVRC2012, sorted, as timm's package data has them."""
    return ImageNetInfo().label_names()


def read_labels(path: Path, images: Sequence[str], classes: Sequence[str]) -> List[int]:
    """The class of every image, as a position in `classes`.

    Args:
        images: file names, sorted.
        classes: names, sorted.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another form, or does not belong to these images and classes.
    """
    lines, known = _lines(path), _Classes(classes)
    is_named = [bool(line.name) for line in lines]
    if any(is_named) != all(is_named):
        odd = lines[is_named.index(not is_named[0])]
        raise ValueError(
            f"{odd.where}: expected NAME LABEL in every line, or LABEL alone in every line, as in "
            f"the first; found {' '.join(filter(None, odd[1:]))!r}"
        )
    if any(is_named):
        return _by_name(path, lines, [known.index(line) for line in lines], images)
    if len(lines) != len(images):
        raise ValueError(
            f"{path} has {len(lines)} labels without names, and there are {len(images)} images; "
            "in this form the n-th line is for the n-th image in alphabetical order"
        )
    if known.have_numbers and _counts_from_one(lines):
        return _from_devkit(path, lines, known)
    return [known.index(line) for line in lines]


def _lines(path: Path) -> List[_Line]:
    if not path.is_file():
        raise FileNotFoundError(f"no labels at {path}; expected a text file")
    try:
        texts = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start})") from error
    is_kaggle = bool(texts) and texts[0].strip() == KAGGLE_HEADER
    found = []
    for number, text in enumerate(texts, 1):
        if not text.strip() or (is_kaggle and number == 1):
            continue
        if is_kaggle:  # NAME,SYNSET and then boxes: four numbers and the next synset, and so on
            name, _, rest = text.partition(",")
            words = [name.strip(), *rest.split()[:1]]
        else:
            words = text.strip().rsplit("\t" if "\t" in text.strip() else None, 1)
        label = words.pop().strip()
        found.append(_Line(f"{path}, line {number}", "".join(words).strip(), label))
    if not found:
        raise ValueError(f"{path} holds no labels")
    return found


def _by_name(path: Path, lines: List[_Line], indices: List[int],
             images: Sequence[str]) -> List[int]:
    """Bring labels into the order of the images; each image has one, and each label an image."""
    stems = {Path(name).stem: name for name in images}
    found: Dict[str, int] = {}
    known = set(images)
    for line, index in zip(lines, indices):
        name = line.name if line.name in known else stems.get(line.name)
        if name is None:
            raise ValueError(f"{line.where}: there is no image {line.name!r}")
        if name in found:
            raise ValueError(f"{line.where}: {line.name!r} has a label already")
        found[name] = index
    missing = [name for name in images if name not in found]
    if missing:
        raise ValueError(
            f"{path} has no label for {len(missing)} of the {len(images)} images: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        )
    return [found[name] for name in images]


# ---------------------------------------------------------------------------- the development kit


def _counts_from_one(lines: List[_Line]) -> bool:
    """Whether bare numbers may be the development kit's, which has no 0."""
    labels = {line.label for line in lines}
    return all(_is_number(label) and int(label) > 0 for label in labels)


def _from_devkit(path: Path, lines: List[_Line], classes: _Classes) -> List[int]:
    """Translate ILSVRC2012_IDs by the kit's own table."""
    meta = path.parent / META
    if not meta.is_file():
        raise ValueError(
            f"{path} has numbers from 1 up and no 0, as the ILSVRC2012 development kit has them; "
            f"their order is not the alphabetical one: put the kit's {META}, which tells it, "
            "beside the file, or write NAME NUMBER lines with numbers counted from 0"
        )
    table, indices = _read_meta(meta), []
    for line in lines:
        synset = table.get(int(line.label), "nothing")
        if synset not in classes.positions:
            raise ValueError(
                f"{line.where}: {line.label} is {synset} in {meta}, which is not one of the "
                f"{len(classes.names)} classes ({classes.first_names})"
            )
        indices.append(classes.positions[synset])
    return indices


def _read_meta(path: Path) -> Dict[int, str]:
    """ILSVRC2012_ID -> synset; 1 to 1000 are the classes, the rest are their groups."""
    try:
        from scipy.io import loadmat

        rows = loadmat(str(path), squeeze_me=True)["synsets"]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}
    except Exception as error:  # MATLAB files fail in as many ways as they have versions
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{path} cannot be read as the table of the ILSVRC2012 development kit ({reason})"
        ) from error


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()

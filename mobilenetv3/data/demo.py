"""The built-in demo set: 1,797 real handwritten digits that ship with scikit-learn.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998 (its test part): 8x8 pixels, 17 grey levels, 10 classes, digits of 13 writers.
They are written once as an ImageFolder of RGB JPEGs, so that the demo takes the very path that
ImageNet takes.
"""
import os
import shutil
import tempfile
from pathlib import Path

NAME = "demo: UCI digits"
TRAIN, VAL = 1437, 360
SIZE = 64
"""Pixels a side of the JPEGs: the 8x8 originals enlarged 8 times."""


def cache_root() -> Path:
    """Folder for what the package writes once: $MOBILENETV3_CACHE or ~/.cache/mobilenetv3."""
    explicit = os.environ.get("MOBILENETV3_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(explicit) if explicit else Path(base) / "mobilenetv3"


def folder() -> Path:
    """The demo set's ImageFolder (train/ and val/), written on the first call.

    Several ranks may call at once: each writes a folder of its own, and the first to finish gives
    it the name that all then read.
    """
    target = cache_root() / "digits-v1"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".digits-", dir=str(target.parent)))
    try:
        _write(temporary)
        os.chmod(str(temporary), 0o755)
        os.rename(str(temporary), str(target))
    except OSError:
        if not target.is_dir():  # else another process was first, with the same files
            raise
    finally:
        shutil.rmtree(str(temporary), ignore_errors=True)
    return target


def _write(root: Path) -> None:
    """Write the stratified split; the same files on every machine."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train, _ = train_test_split(
        np.arange(len(digits.target)), test_size=VAL, stratify=digits.target, random_state=0
    )
    is_train = np.zeros(len(digits.target), bool)
    is_train[train] = True
    for index, (pixels, label) in enumerate(zip(digits.images, digits.target)):
        split = root / ("train" if is_train[index] else "val") / str(label)
        split.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray((pixels * (255.0 / 16.0)).round().astype(np.uint8))
        image = grey.resize((SIZE, SIZE), Image.BICUBIC).convert("RGB")
        image.save(str(split / f"{index:04d}.jpg"), quality=95)

"""What crash.py trains on, and whether two runs came to the same."""
import json
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import torch
from PIL import Image

from mobilenetv3 import checkpoint, keep


def outcome(folder: Path) -> Dict[str, Any]:
    """All that a run leaves behind which must not depend on whether it was killed."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found: Dict[str, Any] = {"metrics": [{name: value for name, value in record.items()
                          if name not in ("seconds", "fps")} for record in records]}
    for name in (checkpoint.LAST, checkpoint.BEST):
        found[name] = checkpoint.load(folder / name)
        for option in ("output", "resume"):
            found[name]["config"].pop(option)
    found["kept"] = [path.name for _, path in keep.listed(folder)]
    found["leftovers"] = [str(path) for path in folder.rglob("*.tmp")]
    return found


def differences(mine: Any, its: Any, where: str = "") -> List[str]:
    """Where two outcomes differ, in any bit."""
    if torch.is_tensor(mine) and torch.is_tensor(its):
        same = mine.dtype == its.dtype and mine.shape == its.shape and (
            mine.contiguous().numpy().tobytes() == its.contiguous().numpy().tobytes())
        return [] if same else [where]
    if isinstance(mine, dict) and isinstance(its, dict) and mine.keys() == its.keys():
        return [text for key in mine for text in differences(mine[key], its[key], f"{where}/{key}")]
    if isinstance(mine, (list, tuple)) and type(mine) is type(its) and len(mine) == len(its):
        return [text for index, pair in enumerate(zip(mine, its))
                for text in differences(*pair, f"{where}/{index}")]
    same = type(mine) is type(its) and mine == its
    return [] if same else [f"{where}: {str(mine)[:60]} and {str(its)[:60]}"]


def make_images(folder: Path) -> None:
    """Four classes of random 40x40 pictures, each class with a colour of its own."""
    noise = np.random.RandomState(0)
    for split, count in (("train", 24), ("val", 4)):
        for label in range(4):
            place = folder / split / f"class{label}"
            place.mkdir(parents=True)
            for index in range(count):
                pixels = noise.randint(0, 160, (40, 40, 3)) + np.eye(4, 3)[label] * 90
                Image.fromarray(pixels.astype("uint8")).save(str(place / f"{index}.jpg"))

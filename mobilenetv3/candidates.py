"""Weights that are to be scored: read, in their network, and compared with the data set."""
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from mobilenetv3 import api, build, convert, models
from mobilenetv3.data.labels import synsets
from mobilenetv3.data.sources import Source
from mobilenetv3.options.data import PREPARE


class Candidate(NamedTuple):
    """Weights that are to be scored, in their network."""

    file: str
    """Their file, or what --pretrained stands for."""
    model: Any
    """On the CPU, in evaluation mode."""
    weights: convert.Weights
    notes: List[str]

    @property
    def prepare(self) -> Dict[str, Any]:
        """How their images are prepared, as far as they say."""
        return self.weights.prepare

    @property
    def family(self) -> str:
        """Which package's they are."""
        return self.weights.family


def read(files: Sequence[str], arch: Optional[str], ema: Optional[bool],
         given: Dict[str, Any]) -> List[Candidate]:
    """The networks of some files with their weights; without files timm's weights of a name.

    Args:
        arch: the network's name; None for what the files say.
        ema: as `convert.read`.
        given: options of the network that win over what the files say; None for one left open.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: one is damaged, of no known family, or not for the network named.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if not files:
        return [published(arch, given)]
    return [from_file(file, arch, ema, given) for file in files]


def from_file(file: str, arch: Optional[str], ema: Optional[bool],
              given: Dict[str, Any]) -> Candidate:
    """A file of weights of any family, in the network that it is for; see `read`."""
    weights = convert.read(file, ema=ema)
    build.require_classifier(weights.config["arch"])
    if weights.config.get("features_only"):
        raise ValueError(f"{file} holds a network for feature maps (features_only), which has no "
                         "class scores")
    channels = weights.config["in_chans"]
    if channels != 3:
        raise ValueError(
            f"{file} takes {channels} input channel{'s' * (channels > 1)}, and the images of a "
            "data set have 3 here; predict.py takes weights for grey images"
        )
    if arch and models.canonical_name(arch) != weights.config["arch"]:
        weights = convert.read(file, ema=ema, arch=arch)
    unknown = sorted(given.keys() - weights.config.keys())
    if unknown:
        raise ValueError(f"--{unknown[0]}: {file} holds a {weights.config['arch']}, which has none")
    weights = weights._replace(config={**weights.config, **given})
    model = convert.build(weights)
    notes = weights.notes + [f"{name} {value}, as given here" for name, value in given.items()]
    return Candidate(file, model, weights, notes)


def published(arch: str, given: Dict[str, Any]) -> Candidate:
    """timm's weights of the model's name; see `read`."""
    model = api.init_model(dict(given, arch=arch), None, "cpu", pretrained=True)
    name = f"timm/{model.config['arch']}"
    prepare = {name: getattr(model.data_preprocessor, name) for name in PREPARE}
    weights = convert.Weights("timm", model.state_dict(), model.config, None, prepare,
                              model.notes, name)
    return Candidate(name, model, weights, model.notes)


def check_classes(candidate: Candidate, source: Source, num_classes: Optional[int]) -> None:
    """Refuse weights whose classes are not the data set's.

    Raises:
        ValueError: the names differ, or the numbers do.
    """
    file, outputs = candidate.file, candidate.model.config.get("num_classes", 0)
    names, wanted = candidate.weights.classes, source.classes
    if num_classes and num_classes != outputs:
        raise ValueError(f"--num_classes is {num_classes}, and {file} has {outputs} classes")
    if names and list(names) != list(wanted) and not is_imagenet_in_words(names, wanted):
        raise ValueError(
            f"{file} was trained on other classes ({len(names)}: {', '.join(names[:3])}, ...) than "
            f"those of {source.name} ({len(wanted)}: {', '.join(wanted[:3])}, ...); give the "
            "--data_path it belongs to"
        )
    # Outputs without a class are possible (train.py --num_classes), but have to be told.
    if outputs < len(wanted) or (outputs > len(wanted) and not names and not num_classes):
        raise ValueError(
            f"{file} has {outputs} classes, and {source.name} has {len(wanted)}; give the "
            "--data_path that the weights belong to"
        )


def is_imagenet_in_words(names: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether one list has ImageNet's synsets and the other 1,000 names such as "tench".

    Both are then in the order of the sorted synsets, which is everyone's.
    """
    return list(wanted) == synsets() and len(names) == len(wanted) and not set(names) & set(wanted)

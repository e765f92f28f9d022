"""Reading a checkpoint of any family: what it holds, by our names."""
import os
from typing import Any, Dict, List, NamedTuple, Optional, Set, Tuple

from torch import Tensor

from mobilenetv3 import checkpoint
from mobilenetv3.files import PathLike
from mobilenetv3.models.arch import ARCHS, plan
from mobilenetv3.models.names import name_of, resolve_name, takes_any_width
from mobilenetv3.text import printable

from . import dli14, lraspp, mindcv, mmpretrain, own, timm, torchvision, xiaolai
from .fit import fit
from .source import Content, Network, Source, dict_of, names_of, usable
from .translate import to_ours
from .unwrap import as_float32, unwrap

SOURCES: Tuple[Source, ...] = (
    timm.SOURCE, torchvision.SOURCE, mmpretrain.SOURCE, mindcv.SOURCE, dli14.SOURCE,
)
GRAPHS = {"torchvision": lraspp, "xiaolai": xiaolai}  # with classes of their own

# The first of these that a network has; xiaolai's conv1 and linear4 are names of its own.
CLASSIFIERS = ("classifier.weight", "classifier.low_classifier.weight", "linear4.weight")
STEMS = ("conv_stem.weight", "backbone.conv_stem.weight", "conv1.weight")

# Files that people have beside those, by a key or a part of one.
STRANGERS = (
    ("head.classification_head.", "it is torchvision's SSDLite detector; the backbone of a new one "
     "comes from a classifier's weights, the detector itself from torchvision.models.detection"),
    ("classifier.0.convs.", "it is torchvision's DeepLabV3; of the segmentation networks, LR-ASPP "
     "is known here"),
    ("_packed_params", "it is a quantized network; convert the weights that it was made from"),
    (".activation_post_process", "it is a network prepared for quantization; convert the weights "
     "that it was made from"),
)


class Weights(NamedTuple):
    """The weights of one network, ready to be loaded."""

    family: str
    """Where they come from: own, timm, torchvision, mmpretrain, mindcv, d-li14 or xiaolai."""
    state_dict: Dict[str, Tensor]
    """By our names, floating-point numbers as float32."""
    config: Dict[str, Any]
    """create_model(**config) builds the network."""
    classes: Optional[List[str]]
    """Names of the classes, where the file has them."""
    prepare: Dict[str, Any]
    """img_size, mean, std, crop_pct, interpolation: how the images have to be prepared."""
    notes: List[str]
    """What was found and how it was decided, a line each."""
    path: str


def read(path: PathLike, ema: Optional[bool] = None, arch: Optional[str] = None) -> Weights:
    """Read weights of any family that is known here, by the content of the file.

    Args:
        path: .pth, .pth.tar, .pt, .safetensors or .ckpt.
        ema: True for averaged weights, False for those as they were trained; None for what the
            family's own commands take: averaged ones from this package's checkpoints (where there
            are any) and mmengine's, else those as they were trained.
        arch: which network it is, where the file leaves it open: timm's tf_ networks have the names
            and shapes of those without.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or refused, its family is unknown, it is not all of a
            network (lists the differences), or it has no averaged weights.
    """
    path = os.fspath(path)
    state = checkpoint.load(path)
    metadata = checkpoint.metadata_of(path)
    try:
        state = own.from_metadata(metadata, state) or state
        content = unwrap(state, ema)
        content = content._replace(
            path=path, tensors=as_float32(content.tensors, os.path.getsize(path)),
            extras={**metadata, **content.extras, "told": arch},
        )
        weights = _read_own(state, content) if own.claims(state) else _read_foreign(content)
        if "width_mult" in weights.config:  # files of others, and older ones, do not say it
            weights.config.setdefault("stem_stride", 2)
        if arch:
            _check_told(weights, arch)
        prepare, notes = usable(weights.prepare, weights.config["in_chans"])
    except ValueError as error:
        # It may name tensors, and those names are the file's.
        raise ValueError(f"{path} cannot be used: {printable(error, 2000)}") from error
    return weights._replace(prepare=prepare, notes=[describe(weights), *weights.notes, *notes])


def describe(weights: Weights) -> str:
    """The network of some weights in one line."""
    config = weights.config
    shown = [f"{config['num_classes']} classes"]
    if config["in_chans"] != 3:
        shown.append(f"{config['in_chans']} input channels")
    if config.get("width_mult", 1.0) != 1.0:
        shown.append(f"width {width_of(config)}")
    shown += [f"{key} {config[key]}" for key in ("bn_eps", "pad_type") if key in config]
    if config.get("stem_stride", 2) != 2:
        shown.append(f"stem_stride {config['stem_stride']}")
    return f"{weights.family}: {config['arch']}, {', '.join(shown)}"


def width_of(config: Dict[str, Any]) -> str:
    """The width of a network, and where there are two rules, the rule it follows."""
    arch, width = ARCHS[resolve_name(config["arch"]).family], config["width_mult"]
    has_two = plan(arch, width, "timm") != plan(arch, width, "torchvision")
    return f"{width:g}" + (f" by {config['width_rule']}'s rule" if has_two else "")


def _read_own(state: Dict[str, Any], content: Content) -> Weights:
    config, source = dict(state["model"]), dict_of(state.get("source"))
    for key, kind in (("arch", str), ("num_classes", int), ("in_chans", int)):
        if not isinstance(config.get(key), kind):
            raise ValueError(f"its description of the network has {key} {config.get(key)!r}")
    if "pretrained" in config:  # a file asks for no download
        raise ValueError("its description of the network has pretrained")
    family, tensors = resolve_name(config["arch"]).family, content.tensors
    if family in ARCHS:
        own.check_network(config, layer_shapes(tensors))
    elif "width_mult" in config or STEMS[0] in tensors:
        raise ValueError(f"it says that it is a {config['arch']}, and is of a network from a table")
    classes, channels = _ends(tensors)
    for key, size in (("num_classes", classes or config["num_classes"]), ("in_chans", channels)):
        if config[key] != size:
            raise ValueError(f"its description of the network has {key} {config[key]!r}, and its "
                             f"tensors have {size}")
    config["num_classes"] = classes  # 0 where the file has no classifier
    notes = _average_note(content)
    if source:
        notes.append(str(source.get("told") or
                         f"converted from {source.get('family')}'s {source.get('file')}"))
    return Weights("own", content.tensors, config, names_of(state.get("classes")),
                   own.prepare_of(state), notes, content.path)


def _read_foreign(content: Content) -> Weights:
    keys = set(content.tensors)
    graph = next((name for name, module in GRAPHS.items() if module.claims(keys)), None)
    source = next((source for source in SOURCES if source.claims(keys)), None)
    if graph:
        tensors, facts = GRAPHS[graph].read(content.tensors, content.extras)
        family, config = graph, {"arch": facts.arch}
    elif source:
        network = fit(source, layer_shapes(content.tensors))
        tensors, facts = to_ours(source, network, content.tensors), source.facts(content, network)
        family, config = source.name, _config_of(facts.arch, network)
    else:
        raise ValueError(_unknown(keys))
    config["num_classes"], config["in_chans"] = _ends(tensors)
    config.update(facts.options)
    classes = facts.classes
    if classes is not None and len(classes) != config["num_classes"]:
        classes = None
    return Weights(family, tensors, config, classes, facts.prepare,
                   [*_average_note(content), *facts.notes], content.path)


def layer_shapes(tensors: Dict[str, Tensor]) -> Dict[str, Tuple[int, ...]]:
    """Layer -> shape of its weight (MindSpore calls a norm's gamma)."""
    return {
        name.rpartition(".")[0]: tuple(value.shape)
        for name, value in tensors.items()
        if name.endswith((".weight", ".gamma"))
    }


def _config_of(arch: str, network: Network) -> Dict[str, Any]:
    return {"arch": name_of(arch, network.width), "width_mult": network.width,
            "width_rule": network.width_rule}


def _ends(tensors: Dict[str, Tensor]) -> Tuple[int, int]:
    """Numbers of classes and of input channels, by our names; 0 where the layer is missing."""
    classifier, stem = (
        next(((*tensors[name].shape, 0, 0) for name in names if name in tensors), (0, 0))
        for names in (CLASSIFIERS, STEMS)
    )
    return classifier[0], stem[1]


def _average_note(content: Content) -> List[str]:
    if content.averaged is None:
        return []
    taken, other = ("averaged (EMA)", "trained") if content.averaged else ("trained", "averaged")
    return [f"the file has two sets of weights: the {taken} ones are taken, not the {other} ones"]


def _check_told(weights: Weights, arch: str) -> None:
    """Raise ValueError where the weights are not those of the network that they are taken for."""
    told, found = resolve_name(arch), resolve_name(weights.config["arch"])
    same_width = takes_any_width(arch) or told.width == weights.config.get("width_mult", 1.0)
    if told.family != found.family or not same_width:
        raise ValueError(
            f"it is a {weights.config['arch']} by its names and shapes, not a {arch}"
        )


def _unknown(keys: Set[str]) -> str:
    for part, sentence in STRANGERS:
        if any(part in key for key in keys):
            return sentence
    known = ", ".join([source.name for source in SOURCES] + ["xiaolai"])
    return (
        f"its names belong to no family known here ({known}); the first of {len(keys)}: "
        f"{', '.join(sorted(keys)[:4])}"
    )


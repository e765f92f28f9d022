"""A network ready for inference in one call, from a name, a file of weights, or both.

    from mobilenetv3 import inference_model, init_model
    model = init_model(None, "mobilenet_v3_large.pth")
    inference_model(model, "cat.jpg")["pred_class"]

The two names, and the keys of a result, are mmpretrain's.
"""
import os
import warnings
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Union

import torch
from timm.models import get_pretrained_cfg
from torch import nn

from mobilenetv3 import convert, models, options, yamlfile
from mobilenetv3 import device as devices
from mobilenetv3.inference import class_names, classify, inference_model
from mobilenetv3.options.data import PREPARE
from mobilenetv3.prepare import Preprocessor, read_image

__all__ = [
    "class_names", "classify", "inference_model", "init_model", "load_model", "read_image",
]

PathLike = Union[str, os.PathLike]

# option of train.py -> argument of create_model
_MODEL_OPTIONS = {
    "model": "arch", "num_classes": "num_classes", "drop": "drop_rate",
    "drop_path": "drop_path_rate", "bn_eps": "bn_eps", "bn_momentum": "bn_momentum",
    "pad_type": "pad_type", "width_rule": "width_rule",
    "stem_stride": "stem_stride",
}
DEFAULT_MODEL = options.train_parser().defaults()["model"]  # of a YAML file that names none
_CLASS_COUNTS = {"imagenet": 1000, "cifar10": 10, "demo": 10}


class _Stated(NamedTuple):
    """What the first argument of init_model says."""

    model: Dict[str, Any]
    """Arguments of create_model; empty where nothing was given."""
    prepare: Dict[str, Any]
    """How images are prepared, as far as it is told."""


class _Built(NamedTuple):
    """A network with what goes with its weights."""

    model: nn.Module
    prepare: Dict[str, Any]
    classes: Optional[Sequence[str]]
    notes: List[str]


def init_model(
    config: Union[None, PathLike, Dict[str, Any]] = None,
    checkpoint: Optional[PathLike] = None,
    device: Union[None, str, torch.device] = "auto",
    *,
    pretrained: bool = False,
    num_classes: Optional[int] = None,
    in_chans: Optional[int] = None,
    ema: Optional[bool] = None,
) -> nn.Module:
    """Build a network, load its weights, and make it ready for inference on a device.

    The result is a plain network in eval mode that has some attributes more: `data_preprocessor`,
    which prepares images (see `prepare.Preprocessor`); `classes`, a name for each class; `notes`,
    what was found in the checkpoint, a sentence each. They are part of no state_dict.

    Args:
        config: a model name, a YAML file of train.py's options, a dict of create_model's
            arguments, or None: the checkpoint says which network it holds. Where both say
            something, such as bn_eps, what is stated here counts.
        checkpoint: a file of weights of any family that `mobilenetv3.convert` knows; None for
            random weights, and a warning.
        device: "auto" for the best kind there is, "npu", "cuda", "cpu", with or without a number
            ("npu:1"), or a torch.device; None for the CPU, as in mmpretrain.
        pretrained: take timm's weights of the model's name (see `models.load_timm_weights`).
        num_classes: another number of classes than the file's starts a new classifier.
        in_chans: 1 for grey images; the stem's weights are summed.
        ema: True for averaged weights, False for live ones. None for averaged ones from this
            package's checkpoints and mmengine's, for live ones from the other families'.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: anything else that is wrong, in one sentence.
    """
    target = _device(device)
    stated = _stated(config)
    if checkpoint is not None and pretrained:
        raise ValueError("pretrained=True and a checkpoint are two sets of weights; give one")
    if config is None and checkpoint is None:
        raise ValueError(
            "nothing says which network to build; give a model name, or init_model(None, FILE)"
        )
    given = {"num_classes": num_classes, "in_chans": in_chans}
    given = {name: value for name, value in given.items() if value is not None}
    if not target.has_fused_activations:
        models.set_fused_activations(False)
    if checkpoint is not None:
        built = _from_file(checkpoint, stated, given, ema)
    else:
        built = _from_name(stated, given, pretrained)
    model = built.model
    for name, value in _attributes(built).items():
        setattr(model, name, value)
    return model.to(target.torch_device).eval()


def _attributes(built: _Built) -> Dict[str, Any]:
    """What init_model hangs on the network."""
    in_chans = built.model.config["in_chans"]
    return {
        "data_preprocessor": Preprocessor(built.model, built.prepare, in_chans),
        "classes": class_names(built.model.num_classes, built.classes),
        "notes": built.notes,
    }


def _device(device: Union[None, str, torch.device]) -> devices.Device:
    """The device that a name such as "cuda:1" stands for."""
    kind, _, index = str(device if device is not None else "cpu").partition(":")
    known = ("auto", *devices.BACKENDS)
    if kind not in known or not (index or "0").isdigit():
        raise ValueError(
            f"device is {str(device)!r}, expected one of {', '.join(known)}, with a number for one "
            "of several cards, such as npu:1"
        )
    try:
        return devices.select(kind, int(index or 0))
    except ValueError as error:  # there it is an option of the commands
        raise ValueError(str(error).replace("--device_id", "device").replace("--", "")) from error


def _stated(config: Union[None, PathLike, Dict[str, Any]]) -> _Stated:
    """What a name, a file of options or a dict says.

    Raises:
        ValueError: it is none of these.
    """
    if config is None:
        return _Stated({}, {})
    if isinstance(config, dict):
        if "arch" not in config:
            raise ValueError("the dict has no 'arch'; expected create_model's arguments")
        if "pretrained" in config:
            raise ValueError("the dict has 'pretrained', which is an argument of init_model itself")
        if config.get("features_only"):
            raise ValueError(
                "init_model builds whole networks; for feature maps wrap one: "
                "models.MobileNetFeatures(init_model(...))"
            )
        return _Stated(dict(config), {})
    name = os.fspath(config)
    if name.endswith((".yaml", ".yml")):
        return _from_yaml(name)
    if os.path.isfile(name):
        raise ValueError(
            f"{name} is a file, but no YAML file of options; if it holds weights, it is the second "
            "argument: init_model(None, FILE)"
        )
    models.resolve_name(name)
    return _Stated({"arch": name}, {})


def _from_yaml(path: str) -> _Stated:
    parser = options.train_parser()
    given = yamlfile.read(parser, path)
    given = {name: value for name, value in given.items() if value is not None}
    model = {ours: given[name] for name, ours in _MODEL_OPTIONS.items() if name in given}
    if given.get("dataset") in _CLASS_COUNTS:
        model.setdefault("num_classes", _CLASS_COUNTS[given["dataset"]])
    return _Stated(model, {name: given[name] for name in PREPARE if name in given})


def _from_name(stated: _Stated, given: Dict[str, int], pretrained: bool) -> _Built:
    model = models.create_model(**{"arch": DEFAULT_MODEL, **stated.model, **given})
    notes = []
    if pretrained:
        notes += [f"timm's weights of {model.config['arch']}", *models.load_published(model)]
        published = get_pretrained_cfg(model.config["arch"]).to_dict()
    else:
        published = model.default_cfg
        notes.append(f"{model.config['arch']} has random weights: no checkpoint was given")
        warnings.warn(notes[-1], stacklevel=3)
    prepare = {name: published[name] for name in PREPARE if name in published}
    prepare["img_size"] = published["input_size"][-1]
    return _Built(model, {**prepare, **stated.prepare}, None, notes)


def _from_file(
    path: PathLike, stated: _Stated, given: Dict[str, int], ema: Optional[bool]
) -> _Built:
    weights = _read(path, stated.model, ema)
    if stated.model:
        model = models.create_model(**{**weights.config, **stated.model, **given})
        notes = [*weights.notes, *convert.load_into(model, weights)]
    else:
        model = convert.build(weights, **given)
        notes = list(weights.notes)
    saved = weights.config["num_classes"]
    if model.num_classes not in (0, saved):
        warnings.warn(
            f"{path} has {saved} classes: the classifier of {model.num_classes} starts with random "
            "weights", stacklevel=3,
        )
    return _Built(model, {**weights.prepare, **stated.prepare}, weights.classes, notes)


def _read(path: PathLike, stated: Dict[str, Any], ema: Optional[bool]) -> convert.Weights:
    """The weights in a file, which has to be for the network that is stated, if one is."""
    weights = convert.read(path, ema=ema)
    if weights.config.get("features_only"):
        raise ValueError(
            f"{path} holds a network for feature maps (features_only), and init_model builds whole "
            "networks; convert.build(convert.read(FILE)) gives it"
        )
    config, name = weights.config, stated.get("arch")
    if not name or models.canonical_name(name) == models.canonical_name(config["arch"]):
        return weights
    ends = {"num_classes": config["num_classes"], "in_chans": config["in_chans"]}
    convert.load_into(models.create_model(**{**stated, **ends}), weights)  # lists what differs
    if weights.family != "timm":
        raise ValueError(f"{path} holds a {config['arch']}, not the {name} that was asked for")
    # timm has networks whose weights have the same names and shapes; the name tells which it is.
    return convert.read(path, ema=ema, arch=name)


def load_model(model: nn.Module, model_path: PathLike, pt_version: float = 1.1) -> nn.Module:
    """Start from a checkpoint as xiaolai's users do: the weights, for the model's own classes.

        model = load_model(model=MobileNetV3_Large(num_classes=100),
                           model_path="mbv3_large.old.pth.tar", pt_version=1.1)

    Args:
        model: a network of this package; it says how many classes there are to be.
        model_path: a file of any family that `mobilenetv3.convert` knows.
        pt_version: 1.0 or 1.1. There, whether the names in the file are to lose a "module."; here
            they are recognised with and without, so that it changes nothing.

    Returns:
        `model` with the weights; or, where the file holds one of xiaolai's graphs and the model has
        the paper's, a new network of that graph, as only it can use the weights, and a warning:
        `model` is then left as it is. The classifier is the file's where the numbers of classes
        agree, else new, with a warning. Device, floating-point type and mode are the model's.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: pt_version is another, or the weights do not fit: lists the differences.
    """
    if pt_version not in (1.0, 1.1):
        raise ValueError(f"pt_version is {pt_version!r}, expected 1.0 or 1.1")
    options = getattr(model, "config", None)
    if not isinstance(options, dict) or "arch" not in options:
        raise ValueError(
            f"model is a {type(model).__name__}, expected a network of this package, such as "
            "MobileNetV3_Large(num_classes=100)"
        )
    weights = convert.read(model_path)
    loaded = _in_its_graph(model, weights)
    notes = convert.load_into(loaded, weights)
    if loaded is not model:
        notes.append(
            f"{weights.path} holds a {weights.config['arch']}, which is another graph than "
            f"{options['arch']}'s: a new network of it is returned, and `model` left as it is"
        )
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return loaded.to(next(model.parameters())).train(model.training)


def _in_its_graph(model: nn.Module, weights: convert.Weights) -> nn.Module:
    """The model; or a new one, where only the file's graph is another and it is one of xiaolai's.

    The two must be of a size: a large one in place of a small one would be a mistake.
    """
    theirs, ours = weights.config["arch"], model.config["arch"]
    size = theirs.rpartition("_")[2]
    same_size = size in ours and model.config.get("width_mult", 1.0) == 1.0
    if weights.family != "xiaolai" or theirs == ours or not same_size:
        return model
    kept = {name: model.config[name] for name in ("num_classes", "in_chans", "drop_rate")
            if name in model.config}
    return models.create_model(**{**weights.config, **kept})

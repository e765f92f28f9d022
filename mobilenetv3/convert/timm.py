"""timm's MobileNetV3 and V2, and Ascend ModelZoo's contrib V3, which carries timm's code.

Our own names are timm's, so a bare state dict of this package is read here too.

The tf_ networks have the names and shapes of those without: other padding, another eps and other
means. What decides is, in this order: the configuration that the Hugging Face hub keeps beside the
weights, what the checkpoint calls its architecture, the name of the file.
"""
import json
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Set, Tuple

from mobilenetv3.models.arch import ARCHS, Defaults, Plan, plan
from mobilenetv3.models.names import TIMM_MODELS, name_of, resolve_name, takes_any_width

from .layout import places, units
from .source import (
    Content,
    Facts,
    Names,
    Network,
    Source,
    Target,
    dict_of,
    is_number,
    names_of,
    preparation,
    refuse_padding,
    refuse_width_rule,
    take,
    torch_norm,
)

NETWORKS = tuple(dict.fromkeys(family for family, _ in TIMM_MODELS.values()))
# The likelier first: of two with equal shapes, the one that was not converted from TensorFlow.
ARCH_ORDER = tuple(sorted(NETWORKS, key=lambda arch: arch.startswith("tf_")))

# Weights of one name that want other images than its default ones, by a part of their tag.
TAGS: Dict[str, Defaults] = {
    "ra4_e3600_r224": Defaults(mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=0.95),
    "miil": Defaults(mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="bilinear"),
}


TOLD = "the name that was asked for"  # a place, as Evidence has it


class Evidence(NamedTuple):
    """A name for the network, and where it stands."""

    name: str
    place: str


def claims(keys: Set[str]) -> bool:
    """Whether a file with these keys is timm's, or has our own names."""
    return "conv_stem.weight" in keys


def names(network: Plan) -> Names:
    """Our layers -> theirs, which are the same."""
    layers = ["conv_stem", "bn1"]
    for place in places(network):
        layers += [layer for unit in units(place) for layer in unit.layers]
    layers += ["conv_head", "classifier"]
    if network.stages[-1][-1].kind != "cn":
        layers.append("bn2")
    return {layer: layer for layer in layers}


def facts(content: Content, network: Network) -> Facts:
    """The network by the evidence; its published batch norm and images, or those of the run.

    A name that was asked for says which network it is, and nothing of images: what names the same
    network after it may say that.
    """
    arch, agreeing, notes = _decide(content, network)
    evidence = next((one for one in agreeing if one.place != TOLD), Evidence("", ""))
    defaults = ARCHS[arch].defaults
    options = {"bn_eps": defaults.bn_eps, "bn_momentum": 0.1, "pad_type": defaults.pad_type}
    args = dict_of(content.extras.get("args"))
    if args.get("bn_tf"):
        options.update(bn_eps=1e-3, bn_momentum=0.01)  # timm's option for TensorFlow's values
    kwargs = dict_of(args.get("model_kwargs"))
    for given in (args, kwargs):
        options.update({key: given[key] for key in ("bn_eps", "bn_momentum")
                        if is_number(given.get(key))})
    if "pad_type" in kwargs:  # "" and None are timm's words for symmetric
        options["pad_type"] = "same" if kwargs["pad_type"] == "same" else "symmetric"
    for tag, other in TAGS.items():
        if tag in evidence.name:
            defaults = other
    prepare = preparation(defaults.interpolation, defaults.crop_pct, defaults.mean, defaults.std,
                          defaults.img_size)
    _update(prepare, args)
    config = _hub_config(content.path)
    if evidence.place == config.get("place"):
        _update(prepare, {**config, **dict_of(config.get("pretrained_cfg"))})
    return Facts(arch, options, prepare, tuple(notes), names_of(config.get("label_names")))


def _decide(content: Content, network: Network) -> Tuple[str, List[Evidence], List[str]]:
    """The network's key in ARCHS, what says so, the surest first, and that in words."""
    alike = [arch for arch in ARCH_ORDER if arch != network.arch and
             plan(ARCHS[arch], network.width, network.width_rule) == network.plan]
    arch, agreeing, notes = None, [], []
    for evidence in _evidence(content):
        name = _timm_name(evidence, network.width)
        if name is None:
            continue
        found, width = TIMM_MODELS.get(name, (name, network.width))
        fits = found in (network.arch, *alike) and width == network.width
        if fits and arch in (None, found):
            if arch is None and alike:
                notes.append(f"{name}, says {evidence.place}")
            arch = found
            agreeing.append(evidence)
        elif arch is None:
            notes.append(f"{evidence.place} says {name}, which its shapes are not: passed over")
    if arch is None and alike:
        other = name_of(alike[0], network.width)
        notes.append(
            f"{other} has the same names and shapes, and nothing in the file or its name tells the "
            f"two apart: if it is that one, say so (convert: --arch {other})"
        )
    return arch or network.arch, agreeing, notes


def _evidence(content: Content) -> List[Evidence]:
    """What says which network it is, the surest first."""
    extras, args = content.extras, dict_of(content.extras.get("args"))
    config = _hub_config(content.path)
    found = [
        Evidence(extras.get("told"), TOLD),
        Evidence(config.get("name"), config.get("place", "")),
        Evidence(extras.get("architecture"), "the metadata of the file"),
        Evidence(extras.get("arch"), "the checkpoint's entry 'arch'"),
        Evidence(args.get("model"), "the run's option --model in the checkpoint"),
        Evidence(Path(content.path).name, "the name of the file"),
    ]
    found += [Evidence(part, "the name of its folder") for part in Path(content.path).parts
              if part.startswith("models--")]  # the hub's cache
    return [evidence for evidence in found if isinstance(evidence.name, str)]


def _timm_name(evidence: Evidence, width: float) -> Optional[str]:
    """The longest of timm's names in a text; of a name that was asked for, which may be an alias.

    Args:
        width: of the network, for a family's name.
    """
    if evidence.place == TOLD:
        told = resolve_name(evidence.name)
        return name_of(told.family, width) if takes_any_width(evidence.name) else told.canonical
    found = [name for name in TIMM_MODELS if name in evidence.name.lower()]
    return max(found, key=len) if found else None


def _hub_config(path: str) -> Dict[str, Any]:
    """The hub's description of the weights, from a JSON file beside them, or {}."""
    file = Path(path)
    for place in (file.with_name(file.stem + ".config.json"), file.with_suffix(".json"),
                  file.with_name("config.json")):
        try:
            config = json.loads(place.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(config, dict) and isinstance(config.get("architecture"), str):
            tag = dict_of(config.get("pretrained_cfg")).get("tag", "")
            return dict(config, place=f"{place.name} beside it",
                        name=f"{config['architecture']}.{tag}")
    return {}


def _update(prepare: Dict[str, Any], given: Dict[str, Any]) -> None:
    """Take over how images are prepared, by timm's words."""
    size = given.get("input_size")
    if isinstance(size, (list, tuple)) and size:
        take(prepare, {"img_size": size[-1]})
    take(prepare, given)


def check(config: Dict[str, Any], network: Network) -> List[str]:
    """Under which name and options timm builds the network."""
    refuse_padding(config, "timm", ("symmetric", "same"))
    refuse_width_rule(config, network, "timm", "timm")
    name = name_of(network.arch, network.width)
    if name not in TIMM_MODELS:
        raise ValueError(f"timm has no network of {name}'s width {network.width:g}")
    defaults, given = ARCHS[network.arch].defaults, []
    if config["bn_eps"] != defaults.bn_eps:
        given.append(f"bn_eps={config['bn_eps']:g}")
    if config["bn_momentum"] != 0.1:
        given.append(f"bn_momentum={config['bn_momentum']:g}")
    if config["pad_type"] != defaults.pad_type:
        given.append("pad_type=%r" % ("same" if config["pad_type"] == "same" else ""))
    if config["num_classes"] != 1000:
        given.append(f"num_classes={config['num_classes']}")
    if config["in_chans"] != 3:
        given.append(f"in_chans={config['in_chans']}")
    options = "".join(f", {option}" for option in given)
    return [f'load it into timm.create_model("{name}"{options})']


SOURCE = Source("timm", claims, ARCH_ORDER, names, facts, torch_norm,
                Target(check, linear=()))

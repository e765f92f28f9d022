"""mmpretrain's (and mmcls's) MobileNetV3 and V2.

Files: {"meta", "state_dict"}. meta carries the text of the configuration, which says what the
weights do not: the batch norm's eps, the preparation of images.
"""
import ast
from typing import Any, Dict, List, Optional, Set, Tuple

from torch import Tensor

from mobilenetv3.models.arch import Plan

from .layout import Place, is_v2, places, units
from .source import (
    Content,
    Facts,
    Names,
    Network,
    Source,
    Target,
    crop_for,
    dict_of,
    is_number,
    names_of,
    preparation,
    refuse_input,
    refuse_padding,
    take,
    torch_norm,
)

ARCHS = ("mobilenetv3_large", "mobilenetv3_small", "mobilenetv3_small_1280", "mobilenetv2")

# (arch, width) of mmpretrain's MobileNetV3(arch=...); the widths follow timm's rule.
V3_ARCHS = {
    ("mobilenetv3_large", 1.0): "large",
    ("mobilenetv3_small", 1.0): "small",
    ("mobilenetv3_small_1280", 1.0): "small",
    ("mobilenetv3_small", 0.75): "small_075",
    ("mobilenetv3_small", 0.5): "small_050",
}

# Sides of the images of a data set that are all of one size.
SIDES = {"CIFAR10": 32, "CIFAR100": 32}
# Steps of a pipeline that are understood, or leave the image's size and values as they are.
KNOWN_STEPS = {
    "LoadImageFromFile", "ResizeEdge", "Resize", "CenterCrop", "Normalize", "ImageToTensor",
    "ToTensor", "Collect", "PackInputs", "PackClsInputs",
}

# Characters of a configuration that is looked at; its own are 5,000 to 20,000. Python's parser
# ends the process, in some versions, on a crafted expression of a million.
LONGEST = 100000


def claims(keys: Set[str]) -> bool:
    """Whether a file with these keys is mmpretrain's."""
    return "backbone.layer0.conv.weight" in keys or "backbone.conv1.conv.weight" in keys


def names(network: Plan) -> Names:
    """Our layers -> theirs."""
    if is_v2(network):
        table = {"conv_stem": "backbone.conv1.conv", "bn1": "backbone.conv1.bn",
                 "conv_head": "backbone.conv2.conv", "bn2": "backbone.conv2.bn",
                 "classifier": "head.fc"}
    else:
        table = {"conv_stem": "backbone.layer0.conv", "bn1": "backbone.layer0.bn",
                 "conv_head": "head.layers.0.fc", "classifier": "head.layers.1.fc"}
    for place in places(network):
        table.update(_block_v2(place) if is_v2(network) else _block_v3(place))
    return table


def _block_v3(place: Place) -> Names:
    at, table = f"backbone.layer{place.index}", {}
    modules = {"expand": ".expand_conv", "depthwise": ".depthwise_conv", "project": ".linear_conv"}
    for unit in units(place):
        inner = at if place.block.kind == "cn" else at + modules.get(unit.role, ".se")
        ends = ("conv1.conv", "conv2.conv") if unit.role == "se" else ("conv", "bn")
        table.update({layer: f"{inner}.{end}" for layer, end in zip(unit.layers, ends)})
    return table


def _block_v2(place: Place) -> Names:
    at, table = f"backbone.layer{place.stage + 1}.{place.repeat}.conv", {}
    for number, unit in enumerate(units(place)):
        table.update(zip(unit.layers, (f"{at}.{number}.conv", f"{at}.{number}.bn")))
    return table


def facts(content: Content, network: Network) -> Facts:
    """The batch norm and the preparation, from the configuration in the file where it has one.

    The class's own norm is eps 1e-3 for V3. The recipes of small_050 and small_075 set 1e-5, since
    their published weights come from timm; a bare model of those names has 1e-3. So the text in the
    file decides, and where there is none, what was published.
    """
    meta = dict_of(content.extras.get("meta"))
    config = parse_config(meta.get("cfg") or meta.get("config") or "")
    backbone = dict_of(dict_of(config.get("model")).get("backbone"))
    from_timm = not is_v2(network.plan) and network.width != 1.0
    notes = []
    if is_v2(network.plan):
        eps, momentum = 1e-5, 0.1
    elif backbone or not from_timm:
        eps, momentum = 1e-3, 0.01
    else:
        eps, momentum = 1e-5, 0.1
        notes.append("the file has no configuration: bn_eps is that of mmpretrain's recipe, whose "
                     "weights come from timm (its bare class has 0.001)")
    if backbone:
        notes.append("bn_eps is what the configuration in the file says, or leaves to the class")
    options = {"bn_eps": eps, "bn_momentum": momentum, "pad_type": "symmetric"}
    norm = dict_of(backbone.get("norm_cfg"))
    options.update({"bn_" + key: float(norm[key]) for key in ("eps", "momentum")
                    if is_number(norm.get(key))})
    classes = dict_of(meta.get("dataset_meta")).get("classes") or meta.get("CLASSES")
    prepare, left = _preparation(config, from_timm)
    return Facts(network.arch, options, prepare, (*notes, *left), names_of(classes))


def _preparation(config: Dict[str, Any], from_timm: bool) -> Tuple[Dict[str, Any], List[str]]:
    """How images are prepared by a configuration, and what of that it leaves open."""
    prepare = preparation("bicubic" if from_timm else "bilinear")
    loader = dict_of(dict_of(config.get("test_dataloader")).get("dataset"))
    loader = loader or dict_of(dict_of(config.get("data")).get("test"))  # mmcls 0.x
    pipeline = loader.get("pipeline") or config.get("test_pipeline")
    steps = {str(step.get("type")).rpartition(".")[2]: step
             for step in (pipeline if isinstance(pipeline, list) else [])
             if isinstance(step, dict)}
    for place in (config.get("img_norm_cfg"), steps.get("Normalize"),
                  config.get("data_preprocessor"),
                  dict_of(config.get("model")).get("data_preprocessor")):
        pixels: Dict[str, Any] = {}
        take(pixels, dict_of(place))
        prepare.update({key: [value / 255.0 for value in pixels[key]]  # there of values up to 255
                        for key in ("mean", "std") if key in pixels})
    if not config:
        return prepare, []
    dataset = str(loader.get("type") or config.get("dataset_type")).rpartition(".")[2]
    sides, note = _sides(steps, dataset)
    if sides is None:
        return prepare, [f"the configuration in the file {note}; it is taken for 224 of 256 "
                         "pixels, which --img_size and --crop_pct change"]
    prepare.update(img_size=sides[0], crop_pct=crop_for(*sides), interpolation="bilinear")
    take(prepare, dict_of(steps.get("ResizeEdge") or steps.get("Resize")))
    return prepare, [f"the configuration in the file {note}"] if note else []


def _sides(steps: Dict[str, Any], dataset: str) -> Tuple[Optional[Tuple[int, int]], str]:
    """(side that the network sees, shorter side of the image that it is cut from), and a remark.

    None, and why, where the steps of a pipeline do not come to these two.
    """
    if not steps:
        return None, "does not say how images are prepared"
    others, crop = sorted(steps.keys() - KNOWN_STEPS), dict_of(steps.get("CenterCrop"))
    if others or crop.get("efficientnet_style"):
        return None, f"prepares images by {', '.join(others) or 'a crop of EfficientNet'}"
    side, is_square, note = SIDES.get(dataset), True, ""
    if "Resize" in steps or "ResizeEdge" in steps:
        side, is_square = _resized(steps)
        note = "squeezes images into a square; here their centre is taken" if is_square else ""
    size = crop.get("crop_size") if crop or not is_square else side
    size = size[0] if isinstance(size, list) and size and size == size[:1] * 2 else size
    if not (_is_side(size) and _is_side(side) and size <= side):
        return None, "does not make a square of every image by its shorter side and a crop"
    return (size, side), note


def _resized(steps: Dict[str, Any]) -> Tuple[Any, bool]:
    """The side that images are resized to, and whether both sides are; (None, False): neither."""
    edge, resize = dict_of(steps.get("ResizeEdge")), dict_of(steps.get("Resize"))
    if edge:
        return (edge.get("scale") if edge.get("edge", "short") == "short" else None), False
    scale = resize.get("scale", resize.get("size"))
    side = scale[0] if isinstance(scale, list) and scale else scale
    if scale == [side, -1]:  # mmcls 0.x
        return side, False
    is_square = scale in (side, [side, side]) and not resize.get("keep_ratio")
    return (side, True) if is_square else (None, False)


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and value > 0


def parse_config(text: str) -> Dict[str, Any]:
    """The assignments of a configuration's text as plain values, without running it.

    Lists, dicts, dict(...) and constants are understood; a name with anything else is left out.
    """
    if not isinstance(text, str) or len(text) > LONGEST:
        return {}
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # JSON, YAML, or worse
        return {}
    found = {}
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = _value(node.value)
            except (ValueError, TypeError, RecursionError):
                continue
    return found


def _value(node: ast.AST) -> Any:
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "dict" and not node.args:
        return {word.arg: _value(word.value) for word in node.keywords if word.arg}
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_value(key): _value(value) for key, value in zip(node.keys, node.values)}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item) for item in node.elts]
    return ast.literal_eval(node)


def check(config: Dict[str, Any], network: Network) -> List[str]:
    """What to set in mmpretrain's configuration."""
    refuse_input(config, "mmpretrain")
    refuse_padding(config, "mmpretrain", ("symmetric",))
    if is_v2(network.plan):
        backbone, norm = f"MobileNetV2', widen_factor={network.width:g}", (1e-5, 0.1)
    else:
        refuse_v3_width(config, network)
        arch = V3_ARCHS[network.arch, network.width]
        backbone, norm = f"MobileNetV3', arch='{arch}'", (1e-3, 0.01)
    if (config["bn_eps"], config["bn_momentum"]) != norm:
        backbone += (f", norm_cfg=dict(type='BN', eps={config['bn_eps']:g}, "
                     f"momentum={config['bn_momentum']:g})")
    head = f"num_classes={config['num_classes']}"
    if network.arch == "mobilenetv3_small_1280":
        head += " and mid_channels=[1280]"
    return [f"in mmpretrain's configuration: backbone=dict(type='{backbone}), and {head} in head"]


def refuse_v3_width(config: Dict[str, Any], network: Network) -> None:
    """Raise ValueError for a V3 that mmpretrain's class has no setting for."""
    rule = "timm" if network.width == 1.0 else config["width_rule"]
    if (network.arch, network.width) not in V3_ARCHS or rule != "timm":
        raise ValueError(
            "mmpretrain's MobileNetV3 has large and small, and small at 0.75 and 0.5 by timm's "
            f"rule, not {network.arch} at {network.width:g} by {config['width_rule']}'s"
        )


def wrap(tensors: Dict[str, Tensor], classes: Optional[List[str]]) -> Dict[str, Any]:
    """The file: mmengine's two entries."""
    meta = {"dataset_meta": {"classes": tuple(classes)}} if classes else {}
    return {"meta": meta, "state_dict": tensors}


SOURCE = Source("mmpretrain", claims, ARCHS, names, facts, torch_norm, Target(check, wrap))

"""timm's published weights for the models of this package, by name."""
from typing import Any, Dict, List

import torch
from torch import nn

from mobilenetv3 import checkpoint

from .arch import ARCHS
from .names import TIMM_MODELS


def load_timm_weights(model: nn.Module) -> List[str]:
    """Load timm's default weights of the model's name, from the hub's cache or the hub.

    timm fetches them through huggingface_hub, whose variables (HF_HOME, HF_HUB_OFFLINE,
    HF_ENDPOINT) therefore apply. A classifier of another size than the weights' starts afresh; a
    stem for other than three channels gets their sums or repetitions.

    Returns:
        A sentence for each option of the model that the weights were not trained with.

    Raises:
        ValueError: timm has no weights of that name, or they are neither cached nor within reach.
    """
    arch, config = model.config["arch"], model.config
    if arch not in TIMM_MODELS:
        raise ValueError(
            f"--pretrained: timm has no weights for {arch}; give a file: --pretrained PATH"
        )
    import timm

    try:
        published = timm.create_model(
            arch,
            pretrained=True,
            num_classes=config["num_classes"],
            in_chans=config["in_chans"],
            **read_for_timm(arch),
        )
        weights = published.state_dict()
        if config.get("features_only"):  # without the head, and stages that no map comes from
            weights = {key: weights[key] for key in model.state_dict() if key in weights}
    except Exception as error:  # the hub, the network and timm fail in many ways
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"--pretrained: timm's weights for {arch} could not be had ({reason}); fetch them "
            "where there is a network, set HF_HOME to that cache, or give a file: --pretrained PATH"
        ) from error
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"--pretrained: timm's {arch} is another network than the one asked for (width_rule "
            f"{model.config['width_rule']}); its weights do not fit"
        ) from error
    trained = ARCHS[TIMM_MODELS[arch][0]].defaults
    return [
        f"the model has {option} {config[option]}, timm's weights for {arch} were trained with "
        f"{getattr(trained, option)}"
        for option in ("bn_eps", "pad_type")
        if config[option] != getattr(trained, option)
    ]


def read_for_timm(arch: str) -> Dict[str, Any]:
    """What timm is given where it can fetch its file but not read it: the weights themselves.

    safetensors reads for PyTorch with torch.frombuffer, which came with 1.10.
    """
    if hasattr(torch, "frombuffer"):
        return {}
    from huggingface_hub import hf_hub_download
    from timm.models import get_pretrained_cfg

    found = get_pretrained_cfg(arch)
    if found is None or not found.hf_hub_id:  # a file of another place, which PyTorch can read
        return {}
    path = hf_hub_download(found.hf_hub_id, "model.safetensors")
    return {"pretrained_cfg_overlay": {"state_dict": checkpoint.load(path)}}

"""timm's published weights for the models of this package, by name."""
from .mobilenet import MobileNet


def load_timm_weights(model: MobileNet) -> None:
    """Load timm's default weights of the model's name, from the hub's cache or the hub.

    timm fetches them through huggingface_hub, whose variables (HF_HOME, HF_HUB_OFFLINE,
    HF_ENDPOINT) therefore apply. A classifier of another size than the weights' starts afresh.

    Raises:
        ValueError: timm has no weights of that name, or they are neither cached nor within reach.
    """
    import timm

    arch, classes = model.config["arch"], model.config["num_classes"]
    try:
        published = timm.create_model(arch, pretrained=True, num_classes=classes)
        weights = published.state_dict()
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

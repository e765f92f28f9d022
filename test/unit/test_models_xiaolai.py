"""xiaolai-sqlai's networks against a forward pass written here from their description alone."""
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mobilenetv3.models.xiaolai import XIAOLAI, XiaolaiMobileNetV3

SMALL = [name for name in XIAOLAI if name.endswith("small")]
# Strides of the blocks, 1 to 15 and 1 to 11; 2023's large strides one block earlier than 2019's.
STRIDES = {"large": "121211211111121", "small": "22121111211"}
RELU_BLOCKS = {"large": 6, "small": 3}  # the first blocks have ReLU, the others hard swish


def strides(name):
    if name == "xiaolai2023_mobilenetv3_large":
        return "121211211111211"
    return STRIDES["large" if "large" in name else "small"]


def norm(x, state, key):
    mean, var = state[key + ".running_mean"], state[key + ".running_var"]
    return F.batch_norm(x, mean, var, state[key + ".weight"], state[key + ".bias"], eps=1e-5)


def conv(x, state, key, stride=1):
    weight = state[key + ".weight"]
    groups = x.shape[1] // weight.shape[1]
    return F.conv2d(x, weight, state.get(key + ".bias"), stride, weight.shape[-1] // 2, 1, groups)


def gated(x, state, key, release):
    """x times its gate, in the order and with the numbers of each release."""
    first = 0 if release == "2019old" else 1
    y = x if release == "2019old" else x.mean((2, 3), keepdim=True)
    y = norm(conv(y, state, f"{key}.{first}"), state, f"{key}.{first + 1}").clamp(min=0)
    y = conv(y, state, f"{key}.{first + 3}")
    if release != "2023":
        y = norm(y, state, f"{key}.{first + 4}")
    return x * (y + 3).clamp(0, 6) / 6


def swish(x):
    return x * (x + 3).clamp(0, 6) / 6


def block(x, state, key, release, stride, act):
    def has(part):
        return f"{key}.{part}.weight" in state

    out = act(norm(conv(x, state, key + ".conv1"), state, key + ".bn1"))
    out = act(norm(conv(out, state, key + ".conv2", stride), state, key + ".bn2"))
    gate = any(name.startswith(key + ".se.") for name in state)
    if release == "2023":
        if gate:
            out = gated(out, state, key + ".se.se", release)
        out = norm(conv(out, state, key + ".conv3"), state, key + ".bn3")
        if has("skip.0"):
            x = norm(conv(x, state, key + ".skip.0", stride), state, key + ".skip.1")
        if has("skip.2"):
            x = norm(conv(x, state, key + ".skip.2"), state, key + ".skip.3")
        return act(out + x)
    out = norm(conv(out, state, key + ".conv3"), state, key + ".bn3")
    if gate:
        out = gated(out, state, key + ".se.se", release)
    if stride == 2:
        return out
    if has("shortcut.0"):
        x = norm(conv(x, state, key + ".shortcut.0"), state, key + ".shortcut.1")
    return out + x


def expected(x, state, name):
    release, size = name[len("xiaolai"):].split("_")[0], "large" if "large" in name else "small"
    x = swish(norm(conv(x, state, "conv1", 2), state, "bn1"))
    for index, stride in enumerate(strides(name)):
        act = torch.relu if index < RELU_BLOCKS[size] else swish
        x = block(x, state, f"bneck.{index}", release, int(stride), act)
    x = swish(norm(conv(x, state, "conv2"), state, "bn2")).mean((2, 3))
    x = F.linear(x, state["linear3.weight"], state.get("linear3.bias"))
    return F.linear(swish(norm(x, state, "bn3")), state["linear4.weight"], state["linear4.bias"])


def filled(name, **options):
    """A network in float64 whose every tensor matters to the output, of order 1 in every layer."""
    torch.manual_seed(0)
    model = XiaolaiMobileNetV3(name, bn_momentum=1.0, **options).double()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, 0.0, module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                nn.init.uniform_(module.bias, -0.2, 0.2)
    with torch.no_grad():
        model.train()(torch.randn(8, model.config["in_chans"], 96, 96).double())
    return model.eval()


def image(channels=3, side=96):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, side, side, generator=generator).double()


@pytest.mark.parametrize("name", list(XIAOLAI))
def test_the_output_is_the_described_networks(name):
    model = filled(name, num_classes=10)
    with torch.no_grad():
        logits = model(image())
        reference = expected(image(), model.state_dict(), name)
    assert logits.std() > 0.1
    assert (logits - reference).abs().max() <= 1e-9


def test_pooling_in_squeeze_excite_is_what_the_two_releases_of_2019_differ_in():
    new, old = (filled(f"xiaolai{release}_mobilenetv3_small") for release in ("2019", "2019old"))
    numbers = {"se.se.0": "se.se.1", "se.se.1": "se.se.2", "se.se.3": "se.se.4",
               "se.se.4": "se.se.5"}

    def renumbered(key):
        part = key[key.find("se.se."):][:7]
        return key.replace(part, numbers[part]) if part in numbers else key

    new.load_state_dict({renumbered(key): value for key, value in old.state_dict().items()})
    with torch.no_grad():
        assert (new(image()) - old(image())).abs().max() > 0.1


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("xiaolai2019_mobilenetv3_large", 3_955_916),
        ("xiaolai2019_mobilenetv3_small", 2_509_748),
        ("xiaolai2019old_mobilenetv3_large", 3_955_916),
        ("xiaolai2019old_mobilenetv3_small", 2_509_748),
        ("xiaolai2023_mobilenetv3_large", 5_178_732),
        ("xiaolai2023_mobilenetv3_small", 2_950_524),
    ],
)
def test_the_networks_have_as_many_parameters_as_their_authors(name, parameters):
    assert sum(p.numel() for p in XiaolaiMobileNetV3(name).parameters()) == parameters


@pytest.mark.parametrize(
    "file, name",
    [
        ("xiaolai2019/mbv3_small.pth.tar", "xiaolai2019_mobilenetv3_small"),
        ("xiaolai2019/mbv3_small.old.pth.tar", "xiaolai2019old_mobilenetv3_small"),
        ("xiaolai2023/mobilenetv3_small.pth", "xiaolai2023_mobilenetv3_small"),
    ],
)
def test_the_authors_files_load_under_their_own_names(file, name, peer_checkpoints):
    import numpy as np

    state = torch.load(str(peer_checkpoints / file), map_location="cpu")
    state = state.get("state_dict", state)
    model = XiaolaiMobileNetV3(name).eval()
    model.load_state_dict({key.replace("module.", ""): value for key, value in state.items()})
    x = torch.from_numpy(np.load(str(peer_checkpoints / "input_224.npz"))["input"])
    stem = file[:file.index(".pth")]
    logits = torch.from_numpy(np.load(str(peer_checkpoints / f"{stem}.npz"))["logits"])
    with torch.no_grad():
        assert (model(x) - logits).abs().max() <= 1e-4


@pytest.fixture(scope="module")
def peer_checkpoints(tmp_path_factory):
    archive = Path(os.environ.get("MOBILENETV3_TEST_DATA", "")) / "peer_checkpoints.tar.xz"
    if not archive.is_file():
        pytest.skip("$MOBILENETV3_TEST_DATA has no peer_checkpoints.tar.xz")
    import tarfile

    folder = tmp_path_factory.mktemp("peers")
    with tarfile.open(str(archive)) as tar:
        for member in tar:
            if member.isfile() and ("xiaolai" in member.name or "input_224" in member.name):
                path = folder / Path(member.name).relative_to("peer_checkpoints")
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(tar.extractfile(member).read())
    return folder


# What the package's other models can do as well ---------------------------------------------------


@pytest.mark.parametrize("name", list(XIAOLAI))
def test_the_configuration_builds_the_same_network(name):
    model = XiaolaiMobileNetV3(name, num_classes=7, in_chans=1, drop_rate=0.2, bn_eps=1e-3)
    again = XiaolaiMobileNetV3(**model.config)
    again.load_state_dict(model.state_dict())
    assert again.config == model.config
    assert again.eval()(image(channels=1).float()).shape == (2, 7)
    assert {m.eps for m in again.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}


@pytest.mark.parametrize("name, channels", list(zip(SMALL, [576] * 3)) + [
    ("xiaolai2023_mobilenetv3_large", 960),
])
def test_the_parts_of_the_forward_pass_make_the_whole(name, channels):
    model = filled(name, num_classes=10)
    with torch.no_grad():
        features = model.forward_features(image())
        hidden = model.forward_head(features, pre_logits=True)
        assert torch.equal(model.get_classifier()(hidden), model(image()))
    assert features.shape == (2, channels, 3, 3) and model.num_features == channels
    assert hidden.shape == (2, 1280) and model.head_hidden_size == 1280


@pytest.mark.parametrize("name", SMALL)
def test_another_number_of_classes_replaces_the_classifier_alone(name):
    model = filled(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.reset_classifier(5)
    assert model.num_classes == model.config["num_classes"] == 5
    assert model.default_cfg is model.pretrained_cfg and model.default_cfg["num_classes"] == 5
    changed = {key for key, value in model.state_dict().items() if
               value.shape != before[key].shape or not torch.equal(value, before[key])}
    assert changed == {"linear4.weight", "linear4.bias"}
    model.reset_classifier(0)
    with torch.no_grad():
        assert model(image()).shape == (2, 1280)


@pytest.mark.parametrize("name", SMALL)
def test_a_training_step_reaches_every_parameter(name):
    model = filled(name, num_classes=3, drop_rate=0.2).train()
    model(image()).square().sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", SMALL)
def test_a_scripted_network_gives_the_same_output(name):
    model = filled(name, num_classes=3)
    with torch.no_grad():
        assert (torch.jit.script(model)(image()) - model(image())).abs().max() <= 1e-9


def test_values_out_of_range_are_errors_that_name_them():
    name = SMALL[0]
    for options, told in (
        ({"num_classes": -1}, "num_classes is -1"),
        ({"in_chans": 0}, "in_chans is 0"),
        ({"drop_rate": 1.0}, "drop_rate is 1.0"),
        ({"bn_eps": 0.0}, "bn_eps is 0.0"),
        ({"bn_momentum": 2.0}, "bn_momentum is 2.0"),
    ):
        with pytest.raises(ValueError, match=told):
            XiaolaiMobileNetV3(name, **options)
    with pytest.raises(ValueError, match="arch is 'xiaolai', expected one of xiaolai2019_"):
        XiaolaiMobileNetV3("xiaolai")
    with pytest.raises(ValueError, match="global_pool is '', expected 'avg'"):
        XiaolaiMobileNetV3(name).reset_classifier(5, "")

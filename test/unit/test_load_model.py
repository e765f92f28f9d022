"""xiaolai's call, load_model, as its users type it."""
import warnings

import pytest
import torch

from mobilenetv3 import MobileNetV3_Large, MobileNetV3_Small, create_model, load_model

LARGE, SMALL = "xiaolai2019old_mobilenetv3_large", "xiaolai2023_mobilenetv3_small"


def saved(path, arch, wrapped=True, **options):
    """A file as the author's: {"state_dict": {"module.conv1.weight": ...}}, or a bare one."""
    torch.manual_seed(0)
    network = create_model(arch, **options)
    for name, value in network.state_dict().items():
        if "running_var" in name:
            value.uniform_(0.5, 1.5)
    state = network.state_dict()
    if wrapped:
        state = {"state_dict": {f"module.{name}": value for name, value in state.items()}}
    torch.save(state, str(path))
    return network


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The large network of the first release, 1000 classes, and its file."""
    path = tmp_path_factory.mktemp("weights") / "mbv3_large.old.pth.tar"
    return saved(path, LARGE), str(path)


def equal_but(ours, theirs, changed=("linear4.weight", "linear4.bias")):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours if name not in changed)


def test_the_call_of_its_users(large):
    network, path = large
    with pytest.warns(UserWarning) as told:
        model = load_model(model=MobileNetV3_Large(num_classes=100), model_path=path,
                           pt_version=1.1)
    weights = model.state_dict()
    assert weights["linear4.weight"].shape == (100, 1280)
    assert weights["linear4.bias"].shape == (100,)
    assert equal_but(model, network)
    assert model.training and model(torch.randn(2, 3, 64, 64)).shape == (2, 100)
    messages = " | ".join(str(warning.message) for warning in told)
    assert "1000 classes: the model's classifier, of 100, starts afresh" in messages
    assert f"holds a {LARGE}, which is another graph than mobilenetv3_large_100's" in messages


def test_an_equal_number_of_classes_keeps_the_classifier_and_the_options_are_the_models(large):
    network, path = large
    given = MobileNetV3_Large(drop_rate=0.2).double().eval()
    before = {name: value.clone() for name, value in given.state_dict().items()}
    with pytest.warns(UserWarning, match="another graph"):
        model = load_model(given, path)
    assert equal_but(model, network.double(), changed=())
    assert not model.training and model.config["drop_rate"] == 0.2
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())


def test_a_file_of_the_models_own_graph_is_loaded_in_place_and_without_a_word(tmp_path):
    for arch, model in ((SMALL, create_model(SMALL)), ("mobilenetv3_small", MobileNetV3_Small())):
        path = tmp_path / f"{arch}.pth"
        network = saved(path, arch, wrapped=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert load_model(model, path, pt_version=1.0) is model
        assert equal_but(model, network, changed=())


def test_another_size_of_network_is_an_error_that_lists_the_differences(large):
    for model in (MobileNetV3_Small(), create_model("mobilenetv2_035"),
                  create_model("mobilenetv3_large_075"), create_model(SMALL)):
        with pytest.raises(ValueError, match=f"holds a {LARGE}, the model is a .* missing: "):
            load_model(model, large[1])


def test_what_cannot_be_used_is_an_error_that_says_what_was_expected(large, tmp_path):
    with pytest.raises(ValueError, match="pt_version is 2.0, expected 1.0 or 1.1"):
        load_model(MobileNetV3_Large(), large[1], pt_version=2.0)
    with pytest.raises(ValueError, match="model is a Linear, expected a network of this package"):
        load_model(torch.nn.Linear(1, 1), large[1])
    with pytest.raises(FileNotFoundError, match="none.pth.tar"):
        load_model(MobileNetV3_Large(), tmp_path / "none.pth.tar")

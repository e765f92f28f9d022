"""The networks against timm's of the same name."""
import json
from pathlib import Path

import pytest
import torch

from mobilenetv3.models import create_model, set_fused_activations
from mobilenetv3.models.names import TIMM_MODELS

KEYS = json.loads((Path(__file__).parent / "data" / "timm_keys.json").read_text())
LISTED = sorted(KEYS["shapes"])
NAMES = sorted(TIMM_MODELS)
OTHER_GRAPHS = ["mobilenetv3_large_150d", "mobilenetv3_rw"]
SMALL = "mobilenetv3_small_050"
SIDE = 64  # pixels: 2x2 at stride 32, enough to tell the spatial dimensions apart from the batch


def listed(name):
    """Name -> shape of every parameter and buffer, from the committed list."""
    shapes = [[int(n) for n in text.split("x") if n] for text in KEYS["shapes"][name]]
    return dict(zip(KEYS["names"][name.rsplit("_", 1)[0]], shapes))


def shapes_of(model):
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.fixture(name="timm", scope="module")
def timm_module():
    return pytest.importorskip("timm", reason="the reference implementation is not installed")


def reference(timm, name, **options):
    """timm's network; a name that the installed timm does not know yet skips the test."""
    if name not in timm.list_models():
        pytest.skip(f"timm {timm.__version__} has no {name}")
    return timm.create_model(name, **options)


def randomise_norms(model):
    """Statistics and scales that make every layer count; fresh ones are all 0 and 1."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.2)
    return model


def pair(timm, name, **options):
    """A network of ours and timm's, with the same weights."""
    torch.manual_seed(0)
    theirs = randomise_norms(reference(timm, name, **options))
    ours = create_model(name, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def images(count=4, channels=3):
    return torch.randn(count, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def assert_close_tensors(ours, theirs, relative, what, absolute=0.0):
    """Compares by the norm of a whole tensor: single elements near 0 are rounding, not value."""
    difference, size = (ours - theirs).norm().item(), theirs.norm().item()
    assert difference <= max(relative * size, absolute), f"{what}: {difference:.2e} of {size:.2e}"


@pytest.mark.parametrize("name", LISTED)
def test_names_shapes_and_order_are_those_of_the_committed_list(name):
    assert list(shapes_of(create_model(name)).items()) == list(listed(name).items())


@pytest.mark.parametrize("name", NAMES)
def test_tensors_batch_norms_and_feature_info_are_the_installed_timms(timm, name):
    ours, theirs = create_model(name), reference(timm, name)
    assert list(shapes_of(ours).items()) == list(shapes_of(theirs).items())
    assert norm_options(ours) == norm_options(theirs)
    assert len(ours.feature_info) == len(theirs.feature_info) == 5
    for info, expected in zip(ours.feature_info, theirs.feature_info):
        # timm's bn1 ends in the activation, which is a module of its own here.
        module = "act1" if expected["module"] == "bn1" else expected["module"]
        assert info == {**expected, "module": module}


def norm_options(model):
    norms = (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    return {(norm.eps, norm.momentum) for norm in norms}


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_gives_timms_logits(timm, name):
    ours, theirs = pair(timm, name)
    with torch.no_grad():
        expected = theirs.eval()(images())
        difference = (ours.eval()(images()) - expected).abs().max()
    # Without squeeze-excite, logits of random weights are in the hundreds.
    assert difference <= 1e-5 * max(1.0, expected.abs().max())
    assert expected.std() > 0.05  # the images and the weights do matter


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("tf_")])
def test_tensorflows_padding_is_timms_at_even_and_odd_sizes(timm, name):
    ours, theirs = pair(timm, name)
    for shape in ((224, 224), (97, 130)):
        x = torch.randn(1, 3, *shape)
        with torch.no_grad():
            expected = theirs.eval()(x)
            difference = (ours.eval()(x) - expected).abs().max()
        assert difference <= 1e-5 * max(1.0, expected.abs().max())


ROUNDING = 1e-6
"""A bias that the next batch norm takes away again has gradient 0, of which rounding makes 1e-8."""


def train_one_step(model):
    """Gradients of one step of SGD, by parameter name; the step is taken."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    labels = torch.tensor([1, 10, 100, 999])
    torch.nn.functional.cross_entropy(model.train()(images()), labels).backward()
    optimizer.step()
    return {key: parameter.grad for key, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", [*LISTED, *OTHER_GRAPHS])
def test_a_training_step_gives_timms_gradients_and_weights(timm, name):
    ours, theirs = pair(timm, name)
    gradients, expected = train_one_step(ours), train_one_step(theirs)
    for key, gradient in gradients.items():
        assert_close_tensors(gradient, expected[key], 1e-4, f"gradient of {key}", absolute=ROUNDING)
    state = theirs.state_dict()
    for key, tensor in ours.state_dict().items():
        assert_close_tensors(tensor.float(), state[key].float(), 1e-4, key)


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "mobilenetv3_large_075"])
def test_activations_made_of_relu6_train_the_same(timm, name, unfused_activations):
    ours, theirs = pair(timm, name)
    gradients, expected = train_one_step(ours), train_one_step(theirs)
    for key, gradient in gradients.items():
        assert_close_tensors(gradient, expected[key], 1e-4, f"gradient of {key}", absolute=ROUNDING)


@pytest.fixture()
def unfused_activations():
    set_fused_activations(False)
    yield
    set_fused_activations(True)


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "mobilenetv2_035", "mobilenetv2_110d"])
def test_dropout_and_drop_path_are_drawn_where_timm_draws_them(timm, name):
    ours, theirs = pair(timm, name, drop_rate=0.3, drop_path_rate=0.4)
    outputs = []
    for model in (ours, theirs):
        torch.manual_seed(2)
        outputs.append(model.train()(images(16)).detach())
    assert_close_tensors(*outputs, 1e-5, "logits in training")


@pytest.mark.parametrize("name", LISTED)
def test_fresh_weights_have_timms_distributions(timm, name):
    torch.manual_seed(0)
    ours, theirs = create_model(name).state_dict(), timm.create_model(name).state_dict()
    for key, tensor in theirs.items():
        if key.endswith("num_batches_tracked") or tensor.std() == 0:
            assert torch.equal(ours[key], tensor), key
        else:
            # A standard deviation of n numbers is off by about 1 / sqrt(2 n) of itself: allow five.
            rtol = 5 * (1 / tensor.numel()) ** 0.5
            assert ours[key].std().item() == pytest.approx(tensor.std().item(), rel=rtol), key
            # Uniform and normal differ in how far the largest lies from the mean.
            if key == "classifier.weight":
                assert ours[key].abs().max() == pytest.approx(tensor.abs().max().item(), rel=1e-3)


@pytest.mark.parametrize("name", [*LISTED, *OTHER_GRAPHS])
def test_features_only_gives_timms_maps(timm, name):
    torch.manual_seed(0)
    theirs = randomise_norms(reference(timm, name, features_only=True)).eval()
    ours = create_model(name, features_only=True).eval()
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        maps, expected = ours(images(2)), theirs(images(2))
    assert [tuple(m.shape) for m in maps] == [tuple(m.shape) for m in expected]
    for index, (ours_map, timms) in enumerate(zip(maps, expected)):
        assert_close_tensors(ours_map, timms, 1e-5, f"map {index}")
    assert ours.feature_info.channels() == theirs.feature_info.channels()
    assert ours.feature_info.reduction() == theirs.feature_info.reduction()


@pytest.mark.parametrize("name", ["mobilenetv3_large_100", "mobilenetv2_100"])
def test_parts_of_the_forward_pass_are_timms(timm, name):
    ours, theirs = pair(timm, name, num_classes=7, in_chans=1)
    ours.eval(), theirs.eval()
    x = images(2, channels=1)
    with torch.no_grad():
        features = ours.forward_features(x)
        assert_close_tensors(features, theirs.forward_features(x), 1e-5, "features")
        hidden = ours.forward_head(features, pre_logits=True)
        assert_close_tensors(
            hidden, theirs.forward_head(features, pre_logits=True), 1e-5, "before the classifier"
        )
    assert features.shape[1] == ours.num_features
    assert hidden.shape == (2, ours.head_hidden_size)


@pytest.mark.parametrize(
    "name",
    ["mobilenetv3_small_075", "mobilenetv2_140", "tf_mobilenetv3_large_minimal_100", *OTHER_GRAPHS],
)
def test_timm_tells_how_to_prepare_images(timm, name):
    data = pytest.importorskip("timm.data")
    resolve = lambda model: data.resolve_data_config({}, model=model)  # noqa: E731
    theirs = reference(timm, name)
    assert resolve(create_model(name)) == resolve(theirs)
    assert create_model(name).default_cfg["pool_size"] == theirs.default_cfg["pool_size"]


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize(
    "name", ["mobilenetv3_large_100", "tf_mobilenetv3_small_100", "mobilenetv2_035"]
)
def test_an_output_stride_gives_timms_dilated_maps(timm, name, output_stride):
    options = {"features_only": True, "output_stride": output_stride}
    torch.manual_seed(0)
    theirs = randomise_norms(reference(timm, name, **options)).eval()
    ours = create_model(name, **options).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 96, 70)
    with torch.no_grad():
        maps, expected = ours(x), theirs(x)
    for index, (ours_map, timms_map) in enumerate(zip(maps, expected)):
        assert_close_tensors(ours_map, timms_map, 1e-5, f"map {index}")
    assert ours.feature_info.reduction() == theirs.feature_info.reduction()
    assert [-(-96 // reduction) for reduction in ours.feature_info.reduction()] == [
        each.shape[2] for each in maps
    ]


def test_the_options_of_tensorflows_names_turn_a_plain_name_into_the_same_network(timm):
    _, theirs = pair(timm, "tf_mobilenetv3_small_100")
    ours = create_model("mobilenetv3_small_100", pad_type="same", bn_eps=1e-3).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 70, 73)
    with torch.no_grad():
        assert (ours(x) - theirs.eval()(x)).abs().max() <= 1e-5


# What users of timm do with a model ---------------------------------------------------------------


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("name", [SMALL, "mobilenetv3_rw", "mobilenetv2_035"])
def test_decay_by_layers_fell_back_to_groups_that_are_not_timms(timm, name, coarse):
    helpers = pytest.importorskip("timm.models")
    mine, theirs = create_model(name, num_classes=3), reference(timm, name, num_classes=3)
    groups = [helpers.group_parameters(model, model.group_matcher(coarse), reverse=True)
              for model in (mine, theirs)]
    assert groups[0] == groups[1]


@pytest.mark.parametrize("name", [SMALL, "mobilenetv2_035"])
def test_an_optimizer_with_decay_by_layers_has_timms_rates(timm, name):
    from timm.optim import create_optimizer_v2

    def rates(model):
        optimizer = create_optimizer_v2(model, "sgd", lr=1.0, layer_decay=0.75)
        scales = {id(weight): group["lr_scale"] for group in optimizer.param_groups
                  for weight in group["params"]}
        return {key: scales[id(weight)] for key, weight in model.named_parameters()}

    mine = rates(create_model(name, num_classes=3))
    assert mine == rates(reference(timm, name, num_classes=3))
    assert mine["classifier.weight"] == 1.0 and mine["conv_stem.weight"] < 0.05


@pytest.mark.parametrize("name", [SMALL, "mobilenetv2_035"])
def test_a_drop_rate_that_was_set_after_construction_had_no_effect(timm, name):
    mine, theirs = pair(timm, name)
    for model in (mine.train(), theirs.train()):
        model.drop_rate = 0.5
    outputs = []
    for model in (mine, theirs):
        torch.manual_seed(3)
        outputs.append(model(images()))
    assert_close_tensors(outputs[0], outputs[1], 1e-5, name)
    assert (mine.drop_rate, mine.config["drop_rate"]) == (0.5, 0.5)
    with pytest.raises(ValueError, match="drop_rate is 1.5, expected at least 0 and under 1"):
        mine.drop_rate = 1.5


@pytest.mark.parametrize("name", [SMALL, "mobilenetv2_035"])
@pytest.mark.parametrize("options", [
    {"out_indices": (-2, -1)}, {"out_indices": (1, -1)}, {"out_indices": 2},
])
def test_maps_are_chosen_from_the_end_as_in_timm(timm, name, options):
    mine = create_model(name, features_only=True, **options).eval()
    try:
        theirs = timm.create_model(name, features_only=True, **options).eval()
    except TypeError:  # 0.9.16 takes no number
        theirs = timm.create_model(name, features_only=True, out_indices=(3, 4)).eval()
    theirs.load_state_dict(mine.state_dict())
    for ours, other in zip(mine(images()), theirs(images())):
        assert_close_tensors(ours, other, 1e-5, name)
    wanted = ["num_chs", "reduction"]
    assert mine.feature_info.get_dicts(wanted) == theirs.feature_info.get_dicts(wanted)


def test_stages_that_are_computed_anew_give_the_same_gradients_and_timms_statistics(timm):
    for name, options in ((SMALL, {"drop_path_rate": 0.3}), ("mobilenetv2_035", {})):
        plain = create_model(name, **options).train()
        again, theirs = create_model(name, **options).train(), reference(timm, name, **options)
        for model in (again, theirs.train()):
            model.load_state_dict(plain.state_dict())
            model.set_grad_checkpointing()
        for model in (plain, again, theirs):
            torch.manual_seed(1)
            model(images()).square().mean().backward()
        for key, weight in plain.named_parameters():
            assert_close_tensors(dict(again.named_parameters())[key].grad, weight.grad, 1e-5, key)
        for key, value in theirs.named_buffers():
            if "blocks" in key:  # there a batch is taken into the statistics twice, as here
                mine = dict(again.named_buffers())[key].float()
                assert_close_tensors(mine, value.float(), 1e-4, key, 1e-6)


@pytest.mark.parametrize("name, options", [
    (SMALL, {}), (SMALL, {"features_only": True}), ("lraspp_mobilenetv3_small", {}),
])
def test_stages_are_computed_anew_where_the_stem_is_frozen_and_not_without_gradients(name, options):
    model = create_model(name, **options).train()
    getattr(model, "backbone", model).set_grad_checkpointing()
    for layer in ("conv_stem", "bn1"):
        getattr(getattr(model, "backbone", model), layer).requires_grad_(False)
    calls = []
    blocks = getattr(model, "backbone", model).blocks
    blocks[1][0].register_forward_pre_hook(lambda *_: calls.append(1))
    found = model(images())
    found = found["out"] if isinstance(found, dict) else found
    (found[-1] if isinstance(found, list) else found).square().mean().backward()
    assert len(calls) == 2  # the second time in the backward pass
    assert all(weight.grad is not None for weight in blocks.parameters())
    with torch.no_grad():
        model(images())
    assert len(calls) == 3

"""The feature maps of a network: which there are, of what shape, and what is left out."""
import pytest
import torch

from mobilenetv3.models import MobileNetFeatures, create_model
from mobilenetv3.models.names import DLI14_MODELS, TIMM_MODELS

SMALL, V2 = "mobilenetv3_small_050", "mobilenetv2_035"


def image(side=64):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", [*TIMM_MODELS, *DLI14_MODELS])
def test_feature_maps_have_strides_2_to_32(name):
    model = create_model(name, features_only=True).eval()
    maps = model(image(side=64))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (info["num_chs"], 64 // info["reduction"], 64 // info["reduction"])
        for info in model.feature_info
    ]
    assert model.feature_info.reduction() == [2, 4, 8, 16, 32]


@pytest.mark.parametrize("name", [SMALL, V2])
def test_feature_info_names_the_modules_that_make_the_maps(name):
    model = create_model(name, features_only=True).eval()
    seen = []
    for module in model.feature_info.module_name():
        dict(model.named_modules())[module].register_forward_hook(
            lambda _module, _inputs, output: seen.append(output)
        )
    assert all(torch.equal(ours, hooked) for ours, hooked in zip(model(image()), seen))
    assert len(seen) == 5


def test_out_indices_choose_maps_and_leave_out_what_comes_after():
    full = create_model(SMALL, features_only=True).eval()
    part = create_model(SMALL, features_only=True, out_indices=(1, 3)).eval()
    part.load_state_dict({k: v for k, v in full.state_dict().items() if k in part.state_dict()})
    assert part.feature_info.reduction() == [4, 16]
    for ours, expected in zip(part(image()), [full(image())[i] for i in (1, 3)]):
        assert torch.equal(ours, expected)
    sum(m.sum() for m in part.train()(image())).backward()
    assert all(p.grad is not None for p in part.parameters())  # DistributedDataParallel asks for it


@pytest.mark.parametrize("indices", [(), (5,), (-6,), (3, 1), (1, 1), (-1, 0), 0, 6])
def test_out_indices_that_are_no_rising_sequence_are_refused(indices):
    with pytest.raises(ValueError, match="out_indices is .* rising numbers of 0 to 4"):
        create_model(SMALL, features_only=True, out_indices=indices)


def test_scripted_feature_maps_are_the_same():
    model = create_model(SMALL, features_only=True, out_indices=(0, 4)).eval()
    with torch.no_grad():
        for ours, expected in zip(torch.jit.script(model)(image()), model(image())):
            assert torch.equal(ours, expected)


@pytest.mark.parametrize("name", ["xiaolai2023_mobilenetv3_small", "lraspp_mobilenetv3_small"])
def test_a_network_without_maps_ended_in_an_attribute_error(name):
    with pytest.raises(ValueError, match="which does not say where its maps are; expected a Mob"):
        MobileNetFeatures(create_model(name))

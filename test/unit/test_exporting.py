"""Exported networks: what they answer, what their graph is made of, and what they say."""
import collections
import copy
import functools
import io
import json
import os
import sys
import tarfile
import warnings
from pathlib import Path

import pytest
import torch

from mobilenetv3 import exporting
from mobilenetv3.models import create_model, list_models, set_fused_activations
from mobilenetv3.models.layers import HardSigmoid, HardSwish

SIDE = 64  # pixels: 2x2 at stride 32
PREPARE = {"img_size": SIDE, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
           "crop_pct": 0.875, "interpolation": "bicubic"}
CLASSES = ["a, b", "\u732b", 'c"d']
TEN = [f"mobilenetv3_{name}" for name in (
    "large_075", "large_100", "small_050", "small_075", "small_100"
)] + [f"mobilenetv2_{width}" for width in ("035", "050", "075", "100", "140")]
# What every release of ATC, and of onnxruntime, has.
PLAIN = {"Add", "Clip", "Constant", "Conv", "Div", "Flatten", "Gemm", "GlobalAveragePool", "Mul",
         "ReduceMean", "Relu"}


@pytest.fixture(name="onnx")
def onnx_module():
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    return pytest.importorskip("onnx", reason="onnx is not installed")


@functools.lru_cache(maxsize=None)  # no test changes it
def network(arch="mobilenetv3_small_050", side=SIDE, **options):
    """A network in which every layer counts, and whose answers differ from image to image."""
    torch.manual_seed(0)
    model = create_model(arch, **options)
    for norm in norms(model):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias, 0, 0.2)
    return measured(model, images(32, side, options.get("in_chans", 3)))


def norms(model):
    kinds = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)
    return [module for module in model.modules() if isinstance(module, kinds)]


def measured(model, batch):
    """The network with the norms' statistics as these images have them, as after training."""
    for norm in norms(model):
        norm.momentum = None  # the plain mean of all batches, that is of one
        norm.reset_running_stats()
    with torch.no_grad():
        model.train()(batch)
    return model.eval()


def images(count=3, side=SIDE, channels=3):
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(1))


def described(model):
    return exporting.metadata(model, CLASSES, PREPARE)


def to_onnx(model, batch_size=1, opset=11, side=SIDE):
    return exporting.to_onnx(model, side, batch_size, opset, described(model))


def spread(model, batch):
    """How much the answers differ from image to image: a constant would agree with anything."""
    with torch.no_grad():
        return model(batch).std(0).mean().item()


@pytest.mark.parametrize("arch, options", [
    ("mobilenetv3_large_075", {}),
    ("mobilenetv2_035", {}),
    ("mobilenetv3_small_050", {"pad_type": "same"}),
    ("mobilenetv3_small_050", {"num_classes": 0}),
    ("mobilenetv2_035", {"in_chans": 1}),
], ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())))
def test_onnx_answers_as_pytorch_from_a_plain_graph(onnx, arch, options):
    model = network(arch, **options)
    exported = to_onnx(model)
    batch = images(channels=options.get("in_chans", 3))
    same = exporting.compare(model, exported.run, batch, 1)
    assert same.largest <= 1e-4
    assert (same.images, same.same_class) == (3, 3)
    assert spread(model, batch) > 0.01
    assert_plain(onnx, onnx.load_model_from_string(exported.content), opset=11)


def test_a_graph_of_its_own_with_a_norm_after_a_linear_layer_answers_as_pytorch(onnx):
    model = network("xiaolai2023_mobilenetv3_small")
    exported = to_onnx(model, batch_size=0)
    same = exporting.compare(model, exported.run, images(), 0)
    assert same.largest <= 1e-4
    assert spread(model, images()) > 0.005
    graph = onnx.load_model_from_string(exported.content).graph
    assert {node.op_type for node in graph.node} <= PLAIN | {"BatchNormalization", "MatMul"}


def assert_plain(onnx, written, opset):
    onnx.checker.check_model(written, full_check=True)
    assert [(entry.domain, entry.version) for entry in written.opset_import] == [("", opset)]
    graph = written.graph
    assert {node.op_type for node in graph.node} <= PLAIN
    assert [value.name for value in graph.input] == ["input"]  # weights are no inputs
    assert [value.name for value in graph.output] == ["output"]
    weights = collections.Counter(
        (tuple(tensor.dims), onnx.numpy_helper.to_array(tensor).tobytes())
        for tensor in graph.initializer
    )
    constants = collections.Counter(
        onnx.numpy_helper.to_array(node.attribute[0].t).tobytes()
        for node in graph.node if node.op_type == "Constant"
    )
    assert set(weights.values()) | set(constants.values()) == {1}  # everything once
    computed = {name for node in graph.node for name in node.output}
    assert {value.name for value in graph.value_info} <= computed
    used = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= used


def test_norms_are_folded_and_convolutions_are_all_there(onnx):
    model = network()
    written = onnx.load_model_from_string(to_onnx(model).content)
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    counts = collections.Counter(node.op_type for node in written.graph.node)
    assert counts["Conv"] == len(convolutions) == 53
    assert written.ir_version <= 7  # ONNX 1.8, which ATC of CANN 5 and 6 reads


@pytest.mark.parametrize("side", [64, 65])
def test_tensorflows_padding_becomes_numbers_of_the_convolution(onnx, side):
    model = network(pad_type="same")
    exported = to_onnx(model, side=side)
    written = onnx.load_model_from_string(exported.content)
    assert_plain(onnx, written, opset=11)
    stem = next(node for node in written.graph.node if node.op_type == "Conv")
    pads = {attribute.name: list(attribute.ints) for attribute in stem.attribute}["pads"]
    # 3 pixels at stride 2: 64 need one beyond the last, 65 one on each side (top, left, ...).
    assert pads == ([0, 0, 1, 1] if side == 64 else [1, 1, 1, 1])
    assert exporting.compare(model, exported.run, images(side=side), 1).largest <= 1e-4


def test_any_batch_or_one_batch(onnx):
    model = network()
    run = to_onnx(model, batch_size=0).run
    for count in (1, 2, 5):
        assert run(images(count)).shape == (count, 1000)
    run = to_onnx(model, batch_size=2).run
    assert run(images(2)).shape == (2, 1000)
    with pytest.raises(Exception, match="(?i)dimension"):  # onnxruntime's own class
        run(images(3))


def test_a_later_opset_can_be_chosen(onnx):
    model = network()
    exported = to_onnx(model, opset=13)
    assert_plain(onnx, onnx.load_model_from_string(exported.content), opset=13)
    assert exporting.compare(model, exported.run, images(), 1).largest <= 1e-4
    for unknown in (10, 21):
        with pytest.raises(ValueError, match=f"opset {unknown} cannot be written; expected 11 to"):
            to_onnx(model, opset=unknown)


def test_the_graph_is_the_same_whatever_kernels_the_process_uses(onnx):
    model = network()
    graphs = []
    for fused in (True, False):
        set_fused_activations(fused)
        try:
            graphs.append(to_onnx(model).content)
            assert HardSwish.fused is HardSigmoid.fused is fused  # as it was before
        finally:
            set_fused_activations(True)
    assert graphs[0] == graphs[1]


def test_exporting_leaves_the_network_as_it_was(onnx):
    model = network(pad_type="same")
    kinds, expected = [type(module) for module in model.modules()], model(images())
    to_onnx(model)
    exporting.to_torchscript(model, SIDE, described(model))
    exporting.to_safetensors(model, {})
    exporting.compare(model, model, images(), 0)
    assert [type(module) for module in model.modules()] == kinds
    assert torch.equal(model(images()), expected)


def test_onnx_that_is_not_installed_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match="pip install onnx onnxruntime"):
        to_onnx(network())


def test_torchscript_answers_as_pytorch_for_any_batch():
    model = network(pad_type="same")
    exported = exporting.to_torchscript(model, SIDE, described(model))
    for batch_size in (0, 2):
        # The same kernels in the same order: the least differences are those of fusing them.
        assert exporting.compare(model, exported.run, images(), batch_size).largest <= 1e-6


def test_safetensors_hold_the_same_bits_under_timms_names():
    reader = pytest.importorskip("safetensors.numpy")  # of the package that defines the format
    model = network(num_classes=3)
    content = exporting.to_safetensors(model, {"format": "pt"}).content
    read, expected = reader.load(content), model.state_dict()
    assert read.keys() == expected.keys()
    assert {"conv_stem.weight", "blocks.1.0.conv_dw.weight", "classifier.bias"} <= read.keys()
    for name, value in expected.items():
        assert torch.equal(torch.from_numpy(read[name]), value), name
        assert torch.from_numpy(read[name]).shape == value.shape, name
        assert torch.from_numpy(read[name]).dtype == value.dtype, name
    length = int.from_bytes(content[:8], "little")  # of the header, which is JSON
    assert json.loads(content[8:8 + length].decode())["__metadata__"] == {"format": "pt"}


def onnx_metadata(content):
    import onnx

    return {p.key: p.value for p in onnx.load_model_from_string(content).metadata_props}


def torchscript_metadata(content):
    extra = {exporting.METADATA_FILE: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of newer releases, on TorchScript's future
        torch.jit.load(io.BytesIO(content), _extra_files=extra)
    return json.loads(extra[exporting.METADATA_FILE])


@pytest.mark.parametrize("format_name, read", [
    ("onnx", onnx_metadata), ("torchscript", torchscript_metadata),
])
def test_a_file_says_what_it_is(onnx, format_name, read):
    model = network(num_classes=3, pad_type="same", bn_eps=1e-3)
    exported = to_onnx(model) if format_name == "onnx" else exporting.to_torchscript(
        model, SIDE, described(model)
    )
    found = read(exported.content)
    assert found["arch"] == "mobilenetv3_small_050"
    assert json.loads(found["classes"]) == CLASSES
    assert json.loads(found["model"]) == model.config
    assert json.loads(found["img_size"]) == SIDE
    assert json.loads(found["mean"]) == [0.485, 0.456, 0.406]
    assert json.loads(found["std"]) == [0.229, 0.224, 0.225]
    assert (json.loads(found["crop_pct"]), found["interpolation"]) == (0.875, "bicubic")
    assert found["input"].startswith("input: float32 (N, 3, H, W)")


def test_a_comparison_finds_another_answer():
    model = network(num_classes=4)
    batch, expected = images(), model(images())

    def told(change):
        return exporting.compare(model, lambda x: change(model(x)), batch, 0)

    same = told(lambda y: y)
    assert (same.images, same.largest, same.same_class) == (3, 0.0, 3)
    shifted = told(lambda y: y + torch.tensor([0.0, 0.0, 0.0, 0.25]))
    assert shifted.largest == pytest.approx(0.25, abs=1e-6)
    assert told(lambda y: -y).same_class == 0
    assert told(lambda y: -y).largest == pytest.approx(2 * expected.abs().max().item())
    assert told(lambda y: y * float("nan")).largest == float("inf")
    assert told(lambda y: y[:, :1]).largest == float("inf")


@pytest.mark.parametrize("count, batch_size, sizes", [
    (5, 2, [2, 2, 2]), (2, 5, [5]), (4, 4, [4]), (3, 0, [1, 2]), (1, 0, [1, 2]),
])
def test_every_image_is_compared_once_whatever_the_batch(count, batch_size, sizes):
    model, seen = network(num_classes=4), []

    def run(batch):
        seen.append(len(batch))
        return model(batch)

    same = exporting.compare(model, run, images(count), batch_size)
    assert (same.images, same.same_class, seen) == (count, count, sizes)


def test_what_passes_is_the_tolerance_or_ten_times_the_rounding_of_pytorch_itself():
    model, batch = network(num_classes=4), images()
    same = exporting.compare(model, model, batch, 0)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(batch.double())
        assert same.rounding == pytest.approx((model(batch) - exact).abs().max().item())
    assert 0 < same.rounding < 1e-5  # outputs of about 1 in float32, whose steps there are 1e-7
    assert same.allowed() == 1e-4
    assert same._replace(rounding=2e-5).allowed() == pytest.approx(2e-4)
    assert same._replace(rounding=2e-5).allowed(1e-6) == 1e-6  # asked for, it counts
    assert same._replace(rounding=float("inf")).allowed() == 1e-4


@pytest.mark.slow
def test_ten_models_answer_ten_photographs_as_pytorch(onnx):
    archive = Path(os.environ.get("MOBILENETV3_TEST_DATA", "")) / "imagenet_sample_400.tar"
    if not archive.is_file():
        pytest.skip("$MOBILENETV3_TEST_DATA has no imagenet_sample_400.tar")
    from PIL import Image

    from mobilenetv3.data import val_transform

    prepare, photographs = val_transform(224), []
    with tarfile.open(str(archive)) as tar:
        for member in tar:
            if member.name.endswith(".JPEG") and len(photographs) < 10:
                image = Image.open(io.BytesIO(tar.extractfile(member).read())).convert("RGB")
                photographs.append(torch.from_numpy(prepare(image).copy()))
    batch = torch.stack(photographs).float().div(255).sub(0.45).div(0.225)
    assert set(TEN) <= set(list_models())
    for arch in TEN:
        model = measured(copy.deepcopy(network(arch)), batch)
        exported = exporting.to_onnx(model, 224, 0, 11, described(model))
        with torch.no_grad():
            expected = model(batch)
        assert (exported.run(batch) - expected).abs().max() < 1e-4, arch
        assert spread(model, batch) > 0.01, arch
        assert_plain(onnx, onnx.load_model_from_string(exported.content), opset=11)

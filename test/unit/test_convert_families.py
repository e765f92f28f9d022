"""Checkpoints of mmpretrain, MindCV and d-li14, made from networks written for these tests."""
import functools

import convert_peers as peers
import pytest
import torch

from mobilenetv3 import checkpoint, convert

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
CFG = "model = dict(backbone=dict(type='MobileNetV3', arch='small_050'), type='ImageClassifier')\n"

# name -> (network, what to expect: architecture, width, width rule, eps, padding)
CASES = {
    "mmpretrain-large": (
        lambda: peers.MMPretrain(peers.LARGE, head=1280),
        ("mobilenetv3_large_100", 1.0, "timm", 1e-3, "symmetric"),
    ),
    "mmpretrain-small": (
        lambda: peers.MMPretrain(peers.SMALL),
        ("mobilenetv3_small_100", 1.0, "timm", 1e-3, "symmetric"),
    ),
    "mmpretrain-small_050": (  # no configuration in the file: as published, from timm
        lambda: peers.MMPretrain(peers.SMALL_050, eps=1e-5),
        ("mobilenetv3_small_050", 0.5, "timm", 1e-5, "symmetric"),
    ),
    "mmpretrain-small_cifar": (
        lambda: peers.MMPretrain(peers.SMALL, head=1280),
        ("mobilenetv3_small_1280", 1.0, "timm", 1e-3, "symmetric"),
    ),
    "mmpretrain-v2": (
        lambda: peers.MMPretrain(1.4),
        ("mobilenetv2_140", 1.4, "timm", 1e-5, "symmetric"),
    ),
    "mindcv-large": (
        lambda: peers.MindCV(peers.LARGE, head=1280),
        ("mobilenetv3_large_100", 1.0, "timm", 1e-5, "same_depthwise"),
    ),
    "mindcv-small_075": (
        lambda: peers.MindCV(peers.SMALL, alpha=0.75),
        ("mobilenetv3_small_075", 0.75, "torchvision", 1e-5, "same_depthwise"),
    ),
    "mindcv-mint": (
        lambda: peers.MindCV(peers.SMALL, same=False),
        ("mobilenetv3_small_100", 1.0, "timm", 1e-5, "symmetric"),
    ),
    "mindcv-v2": (
        lambda: peers.MindCV(0.75),
        ("mobilenetv2_075", 0.75, "timm", 1e-5, "symmetric"),
    ),
    "d-li14-large": (
        lambda: peers.DLi14(peers.LARGE, head=1280),
        ("dli14_mobilenetv3_large_100", 1.0, "timm", 1e-5, "symmetric"),
    ),
    "d-li14-small_075": (
        lambda: peers.DLi14(peers.SMALL, width=0.75),
        ("dli14_mobilenetv3_small_075", 0.75, "timm", 1e-5, "symmetric"),
    ),
    "d-li14-v2": (
        lambda: peers.DLi14(0.35),
        ("mobilenetv2_035", 0.35, "timm", 1e-5, "symmetric"),
    ),
}


@functools.lru_cache(maxsize=None)
def peer(case):
    return CASES[case][0]()


@functools.lru_cache(maxsize=None)
def logits_of(case):
    with torch.no_grad():
        return peer(case)(IMAGES)


def written(case, folder):
    """The checkpoint that the family itself would write."""
    model = peer(case)
    if case.startswith("mindcv"):
        path = folder / f"{case}.ckpt"
        tensors = model.state_dict() if "mint" in case else model.parameters_of_mindspore()
        checkpoint.save_mindspore(path, tensors)
    else:
        path = folder / f"{case}.pth"
        state = {"meta": {}, "state_dict": model.state_dict()}
        torch.save(state if case.startswith("mmpretrain") else model.state_dict(), str(path))
    return path


def apart(model, case):
    """The largest difference to the peer's logits, in shares of the largest logit."""
    expected = logits_of(case)
    with torch.no_grad():
        return ((model(IMAGES) - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("case", CASES)
def test_the_logits_are_those_of_the_family(case, tmp_path):
    arch, width, rule, eps, pad_type = CASES[case][1]
    weights = convert.read(written(case, tmp_path))
    assert weights.family == case.rpartition("-")[0]
    config = weights.config
    assert (config["arch"], config["width_mult"], config["width_rule"]) == (arch, width, rule)
    assert (config["bn_eps"], config["pad_type"]) == (eps, pad_type)
    assert (config["num_classes"], config["in_chans"]) == (10, 3)
    model = convert.build(weights)
    assert not model.training
    # Logits are between 1 and 23 here, and float32's rounding through the layers is 3e-6 of them.
    assert apart(model, case) <= 1e-5


@pytest.mark.parametrize("case, option, wrong", [
    ("mindcv-large", "pad_type", "symmetric"),
    ("mindcv-mint", "pad_type", "same_depthwise"),
    ("mmpretrain-small", "bn_eps", 1e-5),
    ("mmpretrain-small_050", "bn_eps", 1e-3),
    ("d-li14-large", "arch", "mobilenetv3_large_100"),  # the same names and shapes, another graph
])
def test_what_the_shapes_do_not_say_matters(case, option, wrong, tmp_path):
    weights = convert.read(written(case, tmp_path))
    other = weights._replace(config={**weights.config, option: wrong})
    assert apart(convert.build(other), case) > 1e-3


@pytest.mark.parametrize("norm, eps, momentum", [
    ("", 1e-3, 0.01),  # the class's own
    (", norm_cfg=dict(type='BN', eps=1e-5, momentum=0.1)", 1e-5, 0.1),  # mmpretrain's recipe
])
def test_mmpretrains_configuration_in_the_file_decides_eps(norm, eps, momentum, tmp_path):
    text = CFG.replace("'small_050'", "'small_050'" + norm)
    state = {"meta": {"cfg": text}, "state_dict": peer("mmpretrain-small_050").state_dict()}
    torch.save(state, str(tmp_path / "a.pth"))
    config = convert.read(tmp_path / "a.pth").config
    assert (config["bn_eps"], config["bn_momentum"]) == (eps, momentum)


def test_mmpretrains_preparation_and_classes_come_from_the_file(tmp_path):
    text = CFG + (
        "data_preprocessor = dict(mean=[127.5, 102, 51], std=[51, 51, 51], to_rgb=True)\n"
        "size = max(1, 2)\n"  # what is not plain is passed over
        "test_pipeline = [dict(type='LoadImageFromFile'), dict(type='ResizeEdge', scale=232,\n"
        "    interpolation='bicubic'), dict(type='CenterCrop', crop_size=224)]\n"
    )
    classes = tuple("abcdefghij")
    state = {"meta": {"cfg": text, "dataset_meta": {"classes": classes}},
             "state_dict": peer("mmpretrain-small").state_dict()}
    torch.save(state, str(tmp_path / "a.pth"))
    weights = convert.read(tmp_path / "a.pth")
    assert weights.classes == list(classes)
    assert weights.prepare["mean"] == [0.5, 0.4, 0.2]
    assert weights.prepare["std"] == [0.2, 0.2, 0.2]
    assert weights.prepare["interpolation"] == "bicubic"
    assert weights.prepare["img_size"] == 224
    assert int(224 / weights.prepare["crop_pct"]) == 232  # what the transform resizes to


CIFAR = """
dataset_type = 'CIFAR10'
data_preprocessor = dict(num_classes=10, mean=[125.307, 122.961, 113.8575],
                         std=[51.5865, 50.847, 51.255], to_rgb=False)
test_pipeline = [dict(type='PackInputs')]
test_dataloader = dict(dataset=dict(type='CIFAR10', pipeline=[dict(type='PackInputs')]))
"""
NORM = "mean=[102, 51, 25.5], std=[51, 51, 51], to_rgb=True"
MMCLS = f"""
img_norm_cfg = dict({NORM})
test_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='Resize', size=(146, -1), backend='pillow'),
    dict(type='CenterCrop', crop_size=128), dict(type='Normalize', {NORM}),
    dict(type='ImageToTensor', keys=['img']), dict(type='Collect', keys=['img'])]
"""
LEFT = "; it is taken for 224 of 256 pixels"


def prepared_by(text, path):
    state = {"meta": {"cfg": text}, "state_dict": peer("mmpretrain-small").state_dict()}
    torch.save(state, str(path))
    return convert.read(path)


@pytest.mark.parametrize("text, img_size, resize, mean, std", [
    (CIFAR, 32, 32, 0.4914, 0.2023),  # 125.307 / 255, 51.5865 / 255
    (CIFAR.replace("PackInputs", "PackClsInputs"), 32, 32, 0.4914, 0.2023),
    (CIFAR.replace("CIFAR10'", "mmpretrain.CIFAR10'"), 32, 32, 0.4914, 0.2023),
    (MMCLS, 128, 146, 0.4, 0.2),  # 102 / 255, 51 / 255
    (MMCLS.replace(f"'Normalize', {NORM}", "'Normalize', **img_norm_cfg"), 128, 146, 0.4, 0.2),
])
def test_mmpretrains_preparation_other_than_resize_edge_and_crop_was_taken_for_imagenets(
        text, img_size, resize, mean, std, tmp_path):
    weights = prepared_by(text, tmp_path / "a.pth")
    prepare = weights.prepare
    assert (prepare["img_size"], int(img_size / prepare["crop_pct"])) == (img_size, resize)
    assert (round(prepare["mean"][0], 4), round(prepare["std"][0], 4)) == (mean, std)
    assert len(weights.notes) == 1  # nothing is left open


@pytest.mark.parametrize("steps, sides, note", [
    ("dict(type='Resize', scale=160)", (160, 160), "squeezes images into a square"),
    ("dict(type='Resize', scale=(160, 160)), dict(type='CenterCrop', crop_size=(144, 144))",
     (144, 160), "squeezes images into a square"),
    ("", (224, 256), "does not say how images are prepared" + LEFT),
    ("dict(type='PackInputs')", (224, 256), "does not make a square of every image"),
    ("dict(type='ResizeEdge', scale=160)", (224, 256), "does not make a square of every image"),
    ("dict(type='ResizeEdge', scale=160, edge='long'), dict(type='CenterCrop', crop_size=128)",
     (224, 256), "does not make a square of every image"),
    ("dict(type='Resize', scale=(200, 160), keep_ratio=True)", (224, 256), "does not make"),
    ("dict(type='Pad', size=(40, 40))", (224, 256), "prepares images by Pad" + LEFT),
    ("dict(type='CenterCrop', crop_size=224, efficientnet_style=True)", (224, 256),
     "by a crop of EfficientNet"),
    ("dict(type='Resize'), dict(type='CenterCrop')", (224, 256), "does not make"),
])
def test_what_mmpretrains_configuration_leaves_open_is_told(steps, sides, note, tmp_path):
    weights = prepared_by(f"test_pipeline = [{steps}]", tmp_path / "a.pth")
    prepare = weights.prepare
    assert (prepare["img_size"], int(prepare["img_size"] / prepare["crop_pct"])) == sides
    assert note in weights.notes[-1]


@pytest.mark.parametrize("text", [
    "{'a': 1", "model: {backbone: x}", "model = open('x')", "model = {[]: 1}", "model = 3", 3,
    "model = dict(backbone=dict(norm_cfg=dict(eps='x')))", "test_pipeline = [dict(type=[])]",
    "test_pipeline = 3\ndata_preprocessor = dict(mean='abc', std=[None])",
    pytest.param("(" * 300, id="nested"), pytest.param("a = " + "1 + " * 90000 + "1", id="long"),
])
def test_a_configuration_that_is_no_plain_python_is_no_obstacle(text, tmp_path):
    state = {"meta": {"cfg": text}, "state_dict": peer("mmpretrain-small").state_dict()}
    torch.save(state, str(tmp_path / "a.pth"))
    weights = convert.read(tmp_path / "a.pth")
    assert weights.config["bn_eps"] == 1e-3
    assert weights.prepare["std"] == [0.229, 0.224, 0.225]


def test_mmengine_keeps_the_average_where_the_weights_are_looked_for(tmp_path):
    average = peer("mmpretrain-small").state_dict()
    trained = {"module." + name: value + 1 for name, value in average.items()}
    state = {"meta": {}, "state_dict": average, "message_hub": {},
             "ema_state_dict": {"steps": torch.tensor(9), **trained}}
    torch.save(state, str(tmp_path / "a.pth"))
    name = "backbone.layer0.bn.weight"
    for ema, expected in ((None, average[name]), (True, average[name]), (False, average[name] + 1)):
        weights = convert.read(tmp_path / "a.pth", ema=ema)
        assert torch.equal(weights.state_dict["bn1.weight"], expected)


def test_a_training_checkpoint_of_mindcv(tmp_path):
    """TrainStep's: weights, averages, the optimizer's copies and counters side by side."""
    live = peer("mindcv-small_075").parameters_of_mindspore()
    state = dict(live)
    state.update({"moments." + name: value for name, value in live.items() if "moving" not in name})
    state.update({"ema." + name: value * 0.5 for name, value in live.items()})
    state.update(scale_sense=torch.tensor([128.0]), updates=torch.tensor(2.0),
                 global_step=torch.tensor([7]), learning_rate=torch.rand(5),
                 momentum=torch.tensor(0.9))
    path = tmp_path / "a.ckpt"
    checkpoint.save_mindspore(path, state)
    weights = convert.read(path)  # MindCV itself takes the weights as they were trained
    assert apart(convert.build(weights), "mindcv-small_075") <= 1e-5
    assert "averaged" in weights.notes[1]
    for ema, factor in ((False, 1.0), (True, 0.5)):
        weights = convert.read(path, ema=ema)
        for ours, theirs in (("bn1.running_mean", "moving_mean"), ("bn1.weight", "gamma")):
            expected = live["features.1." + theirs] * factor
            assert torch.equal(weights.state_dict[ours], expected)


@pytest.mark.parametrize("averaged", [False, True])
def test_a_training_checkpoint_of_mindcv_with_accumulated_gradients(averaged, tmp_path):
    """There the optimizer's name comes before that of each tensor that it trains."""
    live = peer("mindcv-small_075").parameters_of_mindspore()
    state = {("" if "moving" in name else "optimizer.") + name: value
             for name, value in live.items()}
    for name in [name for name in state if name.startswith("optimizer.")]:
        state[name.replace("optimizer.", "optimizer.moments.")] = torch.zeros_like(state[name])
        state["grad_accumulation." + name] = torch.zeros_like(state[name])
    if averaged:
        state.update({"ema." + name: value * 0.5 for name, value in live.items()})
    state.update({"optimizer.learning_rate": torch.rand(5), "accumulation_step": torch.tensor(1)})
    checkpoint.save_mindspore(tmp_path / "a.ckpt", state)
    weights = convert.read(tmp_path / "a.ckpt")
    assert apart(convert.build(weights), "mindcv-small_075") <= 1e-5
    if averaged:
        weights = convert.read(tmp_path / "a.ckpt", ema=True)
        assert torch.equal(weights.state_dict["bn1.weight"], live["features.1.gamma"] * 0.5)


def test_averages_of_trained_tensors_only_keep_the_statistics(tmp_path):
    live = peer("mindcv-small_075").parameters_of_mindspore()
    averages = {"ema." + name: value * 0.5 for name, value in live.items() if "moving" not in name}
    checkpoint.save_mindspore(tmp_path / "a.ckpt", {**live, **averages})
    weights = convert.read(tmp_path / "a.ckpt", ema=True)
    assert torch.equal(weights.state_dict["bn1.running_mean"], live["features.1.moving_mean"])
    assert torch.equal(weights.state_dict["bn1.weight"], live["features.1.gamma"] * 0.5)


def test_mindspore_counts_no_batches(tmp_path):
    weights = convert.read(written("mindcv-v2", tmp_path))
    assert weights.state_dict["bn1.num_batches_tracked"] == torch.tensor(0)
    assert weights.state_dict["bn1.num_batches_tracked"].dtype == torch.int64


def test_half_precision_becomes_float32(tmp_path):
    tensors = {name: value.half() if value.is_floating_point() else value
               for name, value in peer("d-li14-v2").state_dict().items()}
    torch.save(tensors, str(tmp_path / "a.pth"))
    weights = convert.read(tmp_path / "a.pth")
    assert {value.dtype for value in weights.state_dict.values()} == {torch.float32, torch.int64}


def test_a_network_for_grey_images_and_another_width(tmp_path):
    model = peers.MindCV(peers.SMALL, alpha=0.6, in_chans=1)
    checkpoint.save_mindspore(tmp_path / "a.ckpt", model.parameters_of_mindspore())
    weights = convert.read(tmp_path / "a.ckpt")
    assert weights.config["in_chans"] == 1
    assert (weights.config["arch"], weights.config["width_mult"]) == ("mobilenetv3_small", 0.6)
    grey = IMAGES[:, :1]
    with torch.no_grad():
        assert (convert.build(weights)(grey) - model(grey)).abs().max() <= 1e-4

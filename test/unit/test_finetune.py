"""Freezing and learning rates of parts, with the optimizers, schedules and precisions there are."""
import copy

import pytest
import torch
from torch import nn

from mobilenetv3 import config, device, finetune, models, optim, options, precision

SMALL, V2 = "mobilenetv3_small_050", "mobilenetv2_035"
HALF = pytest.param("O2", marks=pytest.mark.skipif(
    device.TORCH_VERSION < (2, 1), reason="half precision on the CPU needs PyTorch 2.1"))


def make(arch=SMALL, seed=0):
    """A network with random weights and random statistics, as if it had been trained."""
    torch.manual_seed(seed)
    model = models.create_model(arch, num_classes=4, drop_rate=0.2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def train(model, level="O0", ema=None, steps=2, **options):
    """A few steps as train.py and its loop make them; gives model, optimizer and average."""
    ema = optim.create_ema(model, bool(ema), 0.9)
    optimizer = optim.create_optimizer(model, "momentum", 0.1, 0.9, 1e-4, **options)
    how = precision.create_precision(level, device.select("cpu"))
    how.prepare(model, optimizer)
    torch.manual_seed(1)
    for _ in range(steps):
        model.train()
        output = how.forward(model, torch.randn(4, 3, 32, 32))
        how.backward(nn.functional.cross_entropy(output, torch.arange(4)))
        how.step(optimizer)
        ema.update(how.weights(model))
    return how.model_state(model), optimizer, ema


def changed(before, after):
    """Names of weights and statistics that differ, without BatchNorm's counters."""
    return {name for name in before if not torch.equal(before[name].float(), after[name].float())
            and not name.endswith("num_batches_tracked")}


def names(state, *starts):
    return {name for name in state if name.startswith(starts)
            and not name.endswith("num_batches_tracked")}


# -------------------------------------------------------------------------------------- freezing


@pytest.mark.parametrize("arch, options, frozen", [
    (SMALL, {"stages": 0}, ("conv_stem.", "bn1.")),
    (SMALL, {"stages": 2}, ("conv_stem.", "bn1.", "blocks.0.", "blocks.1.")),
    (SMALL, {"stages": 6}, ("conv_stem.", "bn1.", "blocks.")),
    (SMALL, {"backbone": True}, ("conv_stem.", "bn1.", "blocks.", "conv_head.")),
    (V2, {"stages": 7}, ("conv_stem.", "bn1.", "blocks.")),
    (V2, {"backbone": True}, ("conv_stem.", "bn1.", "blocks.", "conv_head.", "bn2.")),
    ("xiaolai2023_mobilenetv3_small", {"stages": 3}, ("conv1.", "bn1.", "bneck.0.", "bneck.1.",
                                                      "bneck.2.")),
])
def test_what_is_frozen_stays_bit_for_bit_and_all_else_trains(arch, options, frozen):
    model = make(arch)
    finetune.freeze(model, **options)
    before = copy.deepcopy(model.state_dict())
    after = train(model)[0]
    # The counters of frozen BatchNorms stand still, too.
    assert all(torch.equal(before[n], after[n]) for n in before if n.startswith(frozen))
    assert changed(before, after) == names(before, "") - names(before, *frozen)


@pytest.mark.parametrize("level", ["O0", HALF])
def test_neither_the_average_nor_masters_move_what_is_frozen(level):
    model = make()
    finetune.freeze(model, stages=2)
    before = copy.deepcopy(model.state_dict())
    after, _, ema = train(model, level, ema=True)
    for name in names(before, "conv_stem.", "bn1.", "blocks.0.", "blocks.1."):
        assert torch.equal(after[name], before[name]), name  # though O2 computes with rounded ones
        # A mean of equal numbers is this number up to rounding.
        assert torch.allclose(ema.state_dict()[name], before[name], atol=0, rtol=2**-22)
    assert names(before, "blocks.2.", "classifier.") <= changed(before, after)


def test_frozen_parts_stay_in_eval_mode_whatever_becomes_of_the_model():
    model = make()
    finetune.freeze(model, stages=1)

    def modes(network):
        network.eval()
        assert network.train() is network
        return [network.bn1.training, network.blocks[0][0].training, network.blocks[1][0].training,
                network.dropout.training]

    assert modes(model) == [False, False, True, True]
    twin = copy.deepcopy(model)
    assert modes(twin) == [False, False, True, True]
    model.eval()
    twin.train()
    assert not model.blocks[1][0].training  # the copy's train() is its own
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(twin)
    assert isinstance(synced.bn1, nn.SyncBatchNorm)
    assert modes(synced) == [False, False, True, True]


def test_with_a_frozen_backbone_dropout_before_the_classifier_is_active():
    model = make()
    finetune.freeze(model, backbone=True)
    model.train()
    assert model.dropout.training and not model.blocks.training


def test_nothing_is_frozen_unless_asked_for():
    model = make()
    assert finetune.freeze(model) == ""
    before = copy.deepcopy(model.state_dict())
    assert changed(before, train(model)[0]) == names(before, "")


@pytest.mark.parametrize("options, told", [
    ({"stages": 0}, "the stem, with"), ({"stages": 2}, "the stem and 2 of 6 stages, with"),
    ({"backbone": True}, "all but the classifier, with"),
])
def test_it_is_told_what_is_frozen_and_how_much_trains(options, told):
    model = make()
    line = finetune.freeze(model, **options)
    trains = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # 1,593,224 with 1,000 classes: 1,025 x 996 fewer with 4.
    assert told in line and f"{trains:,} of 572,324 parameters train" in line


def test_the_classifier_of_four_classes_is_all_that_trains_beside_a_frozen_backbone():
    line = finetune.freeze(make(), backbone=True)
    assert "4,100 of" in line  # 1024 features x 4 classes + 4 biases


def test_more_stages_than_there_are_is_an_error_that_counts_them():
    with pytest.raises(ValueError, match=r"--freeze_stages 7: mobilenetv3_small_050 has 6 stages "
                                         r"\(blocks.0 to blocks.5\); --freeze_backbone"):
        finetune.freeze(make(), stages=7)


def test_frozen_parameters_are_not_in_the_optimizer():
    model = make()
    finetune.freeze(model, stages=2)
    held = {id(p) for g in train(model, steps=1)[1].param_groups for p in g["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}


# ----------------------------------------------------------------------------------------- rates


def rates(model, optimizer):
    """The rate in force of every parameter, by name."""
    by_id = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    return {name: by_id[id(p)] for name, p in model.named_parameters() if id(p) in by_id}


@pytest.mark.parametrize("filtered", [False, True])
def test_the_backbone_has_its_share_of_the_rate_and_weight_decay_as_before(filtered):
    model = make()
    scales = finetune.lr_scales(model, backbone_scale=0.1)
    optimizer = optim.create_optimizer(model, "momentum", 0.5, 0.9, 1e-4,
                                       filter_bias_and_bn=filtered, lr_scales=scales)
    decays = [0.0, 1e-4] if filtered else [1e-4]
    assert [(g["lr_scale"], g["weight_decay"]) for g in optimizer.param_groups] == [
        (scale, decay) for scale in (1.0, 0.1) for decay in decays
    ]
    plain = optim.create_optimizer(model, "momentum", 0.5, 0.9, 1e-4, filter_bias_and_bn=filtered)
    assert [g["weight_decay"] for g in plain.param_groups] == decays
    decay_of = [{id(p): g["weight_decay"] for g in made.param_groups for p in g["params"]}
                for made in (optimizer, plain)]
    assert decay_of[0] == decay_of[1]


def test_the_rate_that_is_told_is_the_full_one_where_the_backbones_is_higher():
    model = make()
    scales = finetune.lr_scales(model, backbone_scale=10.0)
    optimizer = optim.create_optimizer(model, "momentum", 0.5, 0.9, 0.0, lr_scales=scales)
    assert [group["lr_scale"] for group in optimizer.param_groups] == [1.0, 10.0]
    schedule = optim.Schedule(optimizer, "cosine", 10, 5)
    schedule.at(0)
    assert schedule.lr == 0.5


@pytest.mark.parametrize("sched", ["step", "cosine"])
@pytest.mark.parametrize("on_updates", [False, True])
def test_the_ratio_of_the_rates_holds_at_every_moment(sched, on_updates):
    model = make()
    optimizer = optim.create_optimizer(model, "momentum", 0.5, 0.9, 0.0,
                                       lr_scales=finetune.lr_scales(model, backbone_scale=0.1))
    schedule = optim.Schedule(optimizer, sched, 10, 5, decay_epochs=2, warmup_epochs=2,
                              warmup_lr=0.01, min_lr=0.02, on_updates=on_updates)
    seen = set()
    for epoch in range(10):
        for update in range(5):
            schedule.at(epoch, update)
            found = rates(model, optimizer)
            assert schedule.lr == found["classifier.weight"] == found["classifier.bias"]
            seen.add(schedule.lr)
            rest = {rate for name, rate in found.items() if not name.startswith("classifier.")}
            assert list(rest) == [pytest.approx(0.1 * schedule.lr)]
    assert len(seen) > 5  # the schedule did move it
    assert max(seen) <= 0.5


def test_layer_decay_gives_the_rates_by_hand():
    # Small has 11 blocks and one convolution in `blocks`: layer 0 is the stem, 1 to 12 are these,
    # 13 is what comes after pooling.
    model = make()
    found = finetune.lr_scales(model, layer_decay=0.5)
    assert found["classifier.weight"] == found["conv_head.bias"] == 1.0
    assert found["blocks.5.0.conv.weight"] == 0.5
    assert found["blocks.4.2.conv_pw.weight"] == 0.25
    assert found["blocks.0.0.conv_dw.weight"] == 0.5**12
    assert found["conv_stem.weight"] == found["bn1.bias"] == 0.5**13


@pytest.mark.parametrize("arch", ["mobilenetv3_large_100", "mobilenetv3_small_075",
                                  "mobilenetv2_100"])
def test_layers_are_timms(arch):
    timm = pytest.importorskip("timm")
    from timm.models import group_parameters

    theirs = timm.create_model(arch)
    assert finetune.layers(models.create_model(arch)) == group_parameters(
        theirs, theirs.group_matcher(), reverse=True
    )


@pytest.mark.parametrize("options", [{}, {"backbone_scale": 1.0}, {"layer_decay": 1.0}])
def test_one_rate_for_all_needs_no_factors(options):
    assert finetune.lr_scales(make(), **options) == {}


def test_frozen_parameters_have_no_rate():
    model = make()
    finetune.freeze(model, stages=6)
    found = finetune.lr_scales(model, backbone_scale=0.1)
    assert found == {"conv_head.weight": 0.1, "conv_head.bias": 0.1, "classifier.weight": 1.0,
                     "classifier.bias": 1.0}


@pytest.mark.parametrize("options, told", [
    ({}, ""), ({"backbone_scale": 0.1}, "=> learning rate: x 0.1 for all but the classifier"),
    ({"layer_decay": 0.75}, "=> learning rate: x 0.75 from each layer to the one before it"),
])
def test_it_is_told_which_rates_differ(options, told):
    assert finetune.rates_note(**options) == told


# ---------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("before, now, told", [
    ({"freeze_stages": 3}, {}, "another freeze_stages: its run had 3, this one has none"),
    ({"freeze_stages": 0}, {}, "another freeze_stages: its run had 0, this one has none"),
    ({}, {"freeze_backbone": True}, "another freeze_backbone: its run had false, this one has tru"),
    ({"backbone_lr_scale": 0.1}, {"backbone_lr_scale": 0.5}, "its run had 0.1, this one has 0.5"),
    ({}, {"layer_decay": 0.75}, "another layer_decay: its run had none, this one has 0.75"),
    ({"filter_bias_and_bn": True}, {}, "another filter_bias_and_bn"),
])
def test_a_run_is_not_resumed_with_other_parts_in_training(before, now, told):
    with pytest.raises(ValueError, match=told):
        finetune.check_resumable("run/c.pth", {**finetune.NEUTRAL, **before, "lr": 1.0},
                                 {**finetune.NEUTRAL, **now, "lr": 2.0})


def test_a_run_from_before_there_was_freezing_is_resumed_as_it_was():
    finetune.check_resumable("c.pth", {"lr": 1.0}, finetune.NEUTRAL)
    with pytest.raises(ValueError, match="freeze_stages"):
        finetune.check_resumable("c.pth", {"lr": 1.0}, {**finetune.NEUTRAL, "freeze_stages": 1})


# --------------------------------------------------------------------------------------- options


def parse(*argv):
    return config.parse(options.train_parser(), ["DIR", *argv])


@pytest.mark.parametrize("argv, message", [
    (["--freeze_backbone"], "--freeze_backbone keeps weights as they are, and these would be "
     "random ones: add --pretrained or --ckpt_path FILE"),
    (["--freeze_stages", "0"], "--freeze_stages keeps weights as they are, and these would be "
     "random ones: add --pretrained or --ckpt_path FILE"),
    (["--layer_decay", "0.7", "--backbone_lr_scale", "0.1"], "--layer_decay and "
     "--backbone_lr_scale both set the backbone's learning rate; give one"),
    (["--freeze_stages", "-1"], "--freeze_stages: expected an integer of 0 or more, got '-1'"),
    (["--backbone_lr_scale", "0"], "--backbone_lr_scale: expected a positive number, got '0'"),
    (["--layer_decay", "1.1"], "--layer_decay: expected a number above 0, up to 1, got '1.1'"),
    (["--lr_noise", "0.9", "0.4"], "--lr_noise 0.9 0.4: expected the lower number first"),
])
def test_options_without_sense_are_refused(capsys, argv, message):
    with pytest.raises(SystemExit):
        parse(*argv)
    assert capsys.readouterr().err.splitlines()[-1].endswith("error: " + message)


@pytest.mark.parametrize("argv", [
    ["--freeze_stages", "0", "--pretrained"], ["--freeze_backbone", "--ckpt_path", "w"],
    ["--freeze_stages", "3", "--resume", "r"], ["--layer_decay", "1"],
    ["--freeze_stages", "3", "--pretrained", "--resume", "auto", "--output", "o"],
])
def test_options_with_sense_are_taken_without_a_note(capsys, argv):
    parse(*argv)
    assert capsys.readouterr().err == ""


def test_what_a_frozen_backbone_makes_meaningless_is_told(capsys):
    parse("--freeze_backbone", "--freeze_stages", "2", "--backbone_lr_scale", "0.1", "--pretrained")
    assert [line.split(": ")[1] for line in capsys.readouterr().err.splitlines()] == [
        f"--{name} has no effect with --freeze_backbone"
        for name in ("freeze_stages", "backbone_lr_scale")
    ]


def test_cifar10_needs_no_data_path():
    cfg = config.parse(options.train_parser(), ["--dataset", "cifar10", "--dataset_download"])
    assert (cfg.data_path, cfg.config) == ("", "")

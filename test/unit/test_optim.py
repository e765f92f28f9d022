import copy

import pytest
import torch

from mobilenetv3 import device, optim

LR = 0.064


def schedule(name, **options):
    parameter = torch.nn.Parameter(torch.zeros(1))
    return optim.Schedule(torch.optim.SGD([parameter], lr=LR), name, epochs=20,
                          updates_per_epoch=10, **options)


def rates(made, moments):
    found = []
    for moment in moments:
        made.at(*moment)
        found.append(made.lr)
    return found


def test_step_decay_holds_within_its_epochs():
    # Ascend's and torchvision's: x 0.973 every 2 epochs. Epochs 0, 1 | 2, 3 | 4.
    made = schedule("step", decay_epochs=2, decay_rate=0.973)
    expected = [LR, LR, LR * 0.973, LR * 0.973, LR * 0.973**2]
    assert rates(made, [(e, 0) for e in range(5)]) == pytest.approx(expected)


def test_step_decay_takes_fractions_of_an_epoch():
    # timm's x 0.97 every 2.4 epochs: floor(epoch / 2.4) = 0 0 0 1 1 2 2 2 3.
    made = schedule("step", decay_epochs=2.4, decay_rate=0.97)
    powers = [0, 0, 0, 1, 1, 2, 2, 2, 3]
    expected = [LR * 0.97**power for power in powers]
    assert rates(made, [(e, 0) for e in range(9)]) == pytest.approx(expected)


def test_cosine_ends_at_the_minimum():
    made = schedule("cosine", min_lr=0.004)
    # Half way, the cosine is half way between the two: (0.064 + 0.004) / 2.
    assert rates(made, [(0, 0), (10, 0)]) == pytest.approx([LR, 0.034])
    assert rates(made, [(19, 0)])[0] < 0.0045


def test_warm_up_rises_in_equal_parts():
    # From 0 to 0.064 in 4 epochs: 0.016 an epoch.
    made = schedule("step", warmup_epochs=4, warmup_lr=0.0, decay_epochs=30)
    assert rates(made, [(e, 0) for e in range(5)]) == pytest.approx(
        [0.0, 0.016, 0.032, 0.048, 0.064]
    )


def test_on_updates_the_rate_moves_within_the_epoch():
    # 4 epochs of 10 updates warm up in 40 equal parts.
    made = schedule("step", warmup_epochs=4, warmup_lr=0.0, on_updates=True)
    assert rates(made, [(0, 0), (0, 5), (1, 0)]) == pytest.approx([0.0, LR / 8, LR / 4])


def test_the_rate_depends_on_the_moment_alone_so_that_a_resumed_run_needs_no_state():
    for options in ({"on_updates": True}, {}):
        whole, resumed = (schedule("cosine", **options) for _ in range(2))
        for epoch in range(7):
            whole.at(epoch)
        resumed.at(6)
        assert whole.lr == resumed.lr


def test_noise_moves_the_rate_in_its_part_of_the_epochs_and_depends_on_the_moment_alone():
    # Of 20 epochs the shares 0.5 to 0.75 are numbers 10 to 14; the step of 100 epochs never comes.
    made, resumed = (schedule("step", decay_epochs=100, noise=[0.5, 0.75]) for _ in range(2))
    found = rates(made, [(e, 0) for e in range(20)])
    assert [e for e, rate in enumerate(found) if rate != LR] == [10, 11, 12, 13, 14]
    assert all(abs(rate / LR - 1) < 0.67 for rate in found)  # timm's limit
    assert rates(resumed, [(12, 0)]) == [found[12]]


@pytest.mark.parametrize("steps, accumulate, updates", [(44, 1, 44), (44, 4, 11), (45, 4, 12)])
def test_a_last_short_group_of_steps_makes_an_update(steps, accumulate, updates):
    assert optim.updates_per_epoch(steps, accumulate) == updates


@pytest.mark.parametrize("name, kind, expected", [
    ("sgd", "SGD", {"nesterov": True}), ("momentum", "SGD", {"nesterov": False}),
    ("rmsprop", "RMSprop", {"alpha": 0.9, "momentum": 0.9, "eps": 0.0316}),
    ("rmsproptf", "RMSpropTF", {"alpha": 0.9, "eps": 0.0316}), ("adamw", "AdamW", {}),
    ("lamb", "Lamb", {"trust_clip": False}), ("lambc", "Lamb", {"trust_clip": True}),
    ("adam", "Adam", {}),
])
def test_optimizers_are_those_the_names_mean_to_timms_users(name, kind, expected):
    model = torch.nn.Linear(2, 2)
    eps = 0.0316 if "rmsprop" in name else None
    made = optim.create_optimizer(model, name, 0.1, 0.9, 1e-5, eps=eps)
    assert type(made).__name__ == kind
    assert {key: made.param_groups[0][key] for key in expected} == expected
    assert len(made.param_groups) == 1  # weight decay on everything, as ModelZoo and torchvision do


def test_weight_decay_can_spare_biases_and_norms():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    made = optim.create_optimizer(model, "momentum", 0.1, 0.9, 1e-4, filter_bias_and_bn=True)
    decays = {id(p): g["weight_decay"] for g in made.param_groups for p in g["params"]}
    assert decays[id(model[0].weight)] == 1e-4
    assert {decays[id(p)] for p in (model[0].bias, *model[1].parameters())} == {0.0}


def test_the_average_moves_by_one_minus_decay():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 1.0)
    ema = optim.create_ema(model, True, decay=0.9)
    torch.nn.init.constant_(model.weight, 2.0)
    ema.update(model)
    assert ema.module.weight.item() == pytest.approx(0.9 * 1.0 + 0.1 * 2.0)


@pytest.mark.parametrize("form", ["auto", "plain"])
def test_a_warm_up_of_the_average_is_timms(form):
    theirs_of = pytest.importorskip("timm.utils").ModelEmaV3
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    ours = optim.create_ema(model, True, 0.8, form, warms_up=True)
    theirs = theirs_of(model, decay=0.8, use_warmup=True)
    for step in range(1, 21):  # 1 - n ** (-2 / 3) passes 0.8 at update 12
        for parameter in model.parameters():
            parameter.data += torch.randn_like(parameter)
        ours.update(model)
        theirs.update(model, step=step)  # as its train.py counts: from 1
        if step == 1:  # what the weights were at first is forgotten
            assert torch.equal(ours.module[0].weight, model[0].weight)
        for name, value in theirs.module.state_dict().items():
            if value.is_floating_point():
                found = ours.state_dict()[name]
                assert (found - value).abs().max() <= 4e-6, (step, name)  # twenty roundings


def test_the_warm_up_reaches_what_its_description_says():
    for update, decay in ((1, 0.0), (8, 0.75), (1000, 0.99), (10 ** 6, 0.9999)):
        assert optim.ema_decay(update, 0.99999, True) == pytest.approx(decay, abs=1e-12)
        assert optim.ema_decay(update, 0.7, True) == pytest.approx(min(0.7, decay), abs=1e-12)
        assert optim.ema_decay(update, 0.7, False) == 0.7
    assert optim.ema_decay(optim.LONG_AGO, 0.9999, True) == 0.9999


def test_without_ema_nothing_is_kept():
    model = torch.nn.Linear(1, 1)
    before = copy.deepcopy(model.state_dict())
    ema = optim.create_ema(model, False, decay=0.9)
    ema.update(model)
    assert ema.module is None
    assert ema.state_dict() is None
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_criteria_agree_with_their_definitions():
    logits, target = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0])
    log_p = torch.log_softmax(logits, 1)[0]
    plain = optim.create_criterion(0.0, False)(logits, target)
    assert plain.item() == pytest.approx(-log_p[0].item())
    smooth = optim.create_criterion(0.1, False)(logits, target)  # 0.9 of it, 0.1 spread over all
    assert smooth.item() == pytest.approx(-(0.9 * log_p[0] + 0.1 * log_p.mean()).item())
    soft = torch.tensor([[0.7, 0.3, 0.0]])
    mixed = optim.create_criterion(0.1, True)(logits, soft)
    assert mixed.item() == pytest.approx(-(soft[0] * log_p).sum().item())


@pytest.mark.parametrize("name, twin", [
    ("npufusedsgd", "momentum"), ("npufusedrmsprop", "rmsprop"),
    ("npufusedrmsproptf", "rmsproptf"),
])
def test_torch_npus_optimizers_are_their_plain_twins_where_there_is_no_npu(name, twin):
    made, plain = (
        optim.create_optimizer(torch.nn.Linear(2, 2), kind, 0.1, 0.9, 1e-4) for kind in (name, twin)
    )
    assert type(made) is type(plain)
    shown = [{k: v for k, v in o.param_groups[0].items() if k != "params"} for o in (made, plain)]
    assert shown[0] == shown[1]
    assert twin in optim.fused_note(name, None)
    assert optim.fused_note(twin, None) == ""


def updated(name, form, steps=5):
    """Weights and optimizer after a few updates of uneven gradients."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.BatchNorm1d(5),
                                torch.nn.Linear(5, 3))
    made = optim.create_optimizer(model, name, 0.1, 0.9, 1e-2)
    optim.set_form(made, form, device.select("cpu"))
    for step in range(steps):
        for number, parameter in enumerate(model.parameters()):
            parameter.grad = torch.sin(parameter.detach() * 3 + number + step)
        made.step()
    return model, made


@pytest.mark.parametrize("name", ["sgd", "momentum", "rmsprop", "rmsproptf", "adamw", "lamb"])
def test_every_form_of_an_optimizer_gives_the_same_weights(name):
    plain, _ = updated(name, "plain")
    for ours, theirs in zip(updated(name, "auto")[0].parameters(), plain.parameters()):
        assert (ours - theirs).abs().max() <= 2e-6  # five roundings of weights of about 1


def test_a_resumed_optimizer_keeps_the_form_of_its_own_device_and_not_the_checkpoints():
    _, made = updated("sgd", "auto")
    state = copy.deepcopy(made.state_dict())
    model, resumed = updated("sgd", "plain", steps=0)
    if not hasattr(resumed, "register_load_state_dict_post_hook"):
        pytest.skip("this PyTorch has no forms to choose between that a checkpoint could carry")
    resumed.load_state_dict(state)
    assert not resumed.param_groups[0]["fused"]
    assert resumed.param_groups[0]["momentum"] == 0.9
    resumed.load_state_dict(dict(state, param_groups=[dict(state["param_groups"][0], lr=0.5)]))
    assert resumed.param_groups[0]["lr"] == 0.5  # all else is the checkpoint's


def test_both_forms_of_the_average_agree():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    averages = [optim.create_ema(model, True, 0.9, form) for form in ("auto", "plain")]
    for _ in range(10):
        for parameter in model.parameters():
            parameter.data += torch.randn_like(parameter)
        for average in averages:
            average.update(model)
    auto, plain = (average.state_dict() for average in averages)
    assert list(auto) == list(plain)
    for name, value in auto.items():
        if value.is_floating_point():
            assert (value - plain[name]).abs().max() <= 2e-6, name  # ten roundings

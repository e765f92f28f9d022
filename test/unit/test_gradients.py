"""Gradients in one buffer, and an update that only the device decides on."""
import math

import pytest
import torch
from torch import nn

from mobilenetv3 import optim
from mobilenetv3.gradients import FlatGradients, Trained, Undo, written_by

needs_foreach = pytest.mark.skipif(
    not hasattr(torch, "_foreach_copy_"), reason="PyTorch before 2.1 asks the host instead"
)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def trained(model):
    return [Trained(name, value, nn.Parameter(value.detach().clone()))
            for name, value in model.named_parameters()]


def give_gradients(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_owners_get_the_parameters_gradients_in_their_own_memory_order(layout):
    model = network().to(memory_format=layout)
    items = trained(model)
    give_gradients(model)
    flat = FlatGradients(items)
    assert flat.gather().shape == (4 * 3 * 9 + 4 + 4 + 4 + 8 + 2,)
    flat.flat.mul_(0.5)
    flat.hand_over()
    for _, parameter, owner in items:
        assert torch.equal(owner.grad, parameter.grad * 0.5)
        assert owner.grad.stride() == owner.stride()


def test_a_parameter_without_a_gradient_gets_none_and_leaves_no_stale_values():
    model = network()
    items = trained(model)
    flat = FlatGradients(items)
    give_gradients(model)
    flat.gather()
    model[0].weight.grad = None
    assert flat.gather()[: 4 * 27].abs().max() == 0
    flat.hand_over()
    assert items[0].owner.grad is None
    assert items[1].owner.grad is not None


def test_every_element_knows_its_parameter():
    model = network()
    flat = FlatGradients(trained(model))
    assert flat.name_at(0) == flat.name_at(107) == "0.weight"
    assert flat.name_at(108) == "0.bias"
    assert flat.name_at(len(flat.flat) - 1) == "3.bias"


def test_gradients_that_a_fused_optimizer_moved_stay_where_it_put_them():
    model = network()
    items = trained(model)
    flat = FlatGradients(items, keeps_storage=True)
    places = []
    for seed in range(2):
        give_gradients(model, seed)
        flat.gather()
        flat.hand_over()
        places.append([item.owner.grad.data_ptr() for item in items])
        assert all(torch.equal(item.owner.grad, item.parameter.grad) for item in items)
    assert places[0] == places[1]
    assert flat.flat.data_ptr() not in places[0]


def run(name, flags, decide):
    """Steps with the given flags; `decide(kept, optimizer)` makes one."""
    model = network()
    optimizer = optim.create_optimizer(model, name, 0.01, 0.9, 1e-4)
    for seed, flag in enumerate(flags):
        give_gradients(model, seed)
        if not flag:  # as the scaler leaves them
            for parameter in model.parameters():
                parameter.grad.zero_()
        decide(torch.tensor(flag), optimizer)
    return [*model.parameters()], optimizer


def by_the_host(kept, optimizer):
    if kept:
        optimizer.step()


@needs_foreach
@pytest.mark.parametrize("name", ["sgd", "momentum", "rmsprop", "rmsproptf"])
def test_an_update_undone_on_the_device_equals_one_that_the_host_left_out(name):
    undo, made = Undo(), []

    def by_the_device(kept, optimizer):
        written = written_by(optimizer)
        made.append(written is not None)
        if written is None:
            by_the_host(kept, optimizer)
        else:
            undo.step_if(kept, optimizer, written)

    flags = [True, False, True, False, False, True]
    ours, theirs = run(name, flags, by_the_device), run(name, flags, by_the_host)
    assert made == [False] + [True] * 5  # the first makes the optimizer's state
    assert all(torch.equal(a, b) for a, b in zip(ours[0], theirs[0]))
    states = [[value for state in optimizer.state.values() for value in state.values()
               if torch.is_tensor(value) and value.ndim] for _, optimizer in (ours, theirs)]
    assert len(states[0]) >= 6
    assert all(torch.equal(a, b) for a, b in zip(*states))
    assert all(math.isfinite(value.sum()) for value in states[0])


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_where_the_count_of_updates_matters_the_host_decides(name):
    model = network()
    optimizer = optim.create_optimizer(model, name, 0.01, 0.9, 1e-4)
    give_gradients(model)
    optimizer.step()
    assert written_by(optimizer) is None

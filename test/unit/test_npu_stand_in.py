"""The stand-in NPU itself: what it shares with a real device, and what it refuses."""
import copy
import io
import os
import time

import pytest
import torch
from npu_process import on_npu
from torch import nn
from torch.nn import functional as F

# ---- Cards ----

@on_npu
def test_there_are_eight_cards_and_each_thread_has_a_current_one():
    assert (torch.npu.is_available(), torch.npu.device_count()) == (True, 8)
    torch.npu.set_device("npu:3")
    assert torch.ones(1, device="npu").device == torch.device("npu", 3)
    with torch.npu.device(2):
        assert torch.npu.current_device() == 2
    assert torch.npu.current_device() == 3
    with pytest.raises(RuntimeError, match="ordinal 8; this host has 8"):
        torch.npu.set_device(8)
    with pytest.raises(RuntimeError, match="ordinal 8; this host has 8"):
        torch.ones(1, device="npu:8")


@on_npu
def test_pytorch_finds_it_as_the_accelerator():
    assert torch.accelerator.current_accelerator().type == "npu"
    assert torch.accelerator.device_count() == 8
    assert torch.ones(1).npu().is_npu


@on_npu
def test_memory_is_counted_per_card():
    before = torch.npu.memory_allocated(1)
    x = torch.empty(1 << 20, device="npu:1")
    y = x + 1
    assert torch.npu.memory_allocated(1) - before == 8 << 20  # two of 2**20 float32
    del x, y
    assert torch.npu.memory_allocated(1) == before
    assert torch.npu.max_memory_allocated(1) >= before + (8 << 20)


@on_npu
def test_events_measure_time():
    start, end = (torch.npu.Event(enable_timing=True) for _ in range(2))
    start.record()
    time.sleep(0.02)
    end.record()
    assert 20 <= start.elapsed_time(end) < 2000  # ms
    assert end.query()
    with torch.npu.stream(torch.npu.Stream()):
        torch.npu.current_stream().wait_event(torch.Event(device="npu"))


@on_npu
def test_a_process_forked_after_use_cannot_use_the_device():
    torch.ones(1, device="npu")
    child = os.fork()
    if child == 0:
        try:
            torch.ones(1, device="npu")
        except RuntimeError as error:
            os._exit(7 if "forked subprocess" in str(error) else 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


# ---- Operators ----

@on_npu
def test_results_live_on_the_card_and_views_share_its_memory():
    x = torch.arange(6.0, device="npu:2")
    x.view(2, 3).t().add_(1)
    assert x.device == torch.device("npu", 2)
    assert x.tolist() == [1, 2, 3, 4, 5, 6]
    out = torch.empty(0, device="npu:2")
    torch.add(x, 1, out=out)  # the CPU's kernel resizes it
    assert out.tolist() == [2, 3, 4, 5, 6, 7]
    out.resize_(100)
    assert out[:6].tolist() == [2, 3, 4, 5, 6, 7]
    over = torch.empty(0, device="npu:2").set_(x.untyped_storage(), 1, (2,), (2,))
    over.fill_(9)
    assert x.tolist() == [1, 9, 3, 9, 5, 6]
    assert all(t.is_npu for t in [*torch.sort(x), *x.split(2), x.to(torch.float16), x > 1])


@on_npu
def test_running_statistics_of_batchnorm_move():
    """Its operator writes them without saying so, which a fallback that copies would lose."""
    layers = [nn.BatchNorm2d(4).to(device) for device in ("cpu", "npu")]
    x = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    for layer in layers:
        layer(x.to(layer.weight.device))
    assert layers[1].running_mean.abs().sum() > 0
    assert torch.equal(layers[1].running_var.cpu(), layers[0].running_var)


@on_npu
def test_gradients_flow_through_views_and_indexing():
    x = torch.ones(3, device="npu", requires_grad=True)
    y = torch.zeros(3, device="npu")
    y[1:] = x[1:] * 2
    y.sum().backward()
    assert x.grad.tolist() == [0, 2, 2]


@on_npu
def test_seeds_reach_every_card():
    draws = []
    for _ in range(2):
        torch.npu.manual_seed_all(7)
        draws.append([torch.randn(5, device=f"npu:{card}").cpu() for card in (0, 5)])
    assert all(torch.equal(a, b) for a, b in zip(*draws))
    generator = torch.Generator("npu").manual_seed(7)
    assert torch.equal(torch.randn(5, device="npu", generator=generator).cpu(), draws[0][0])
    state = torch.npu.get_rng_state()
    first = torch.rand(3, device="npu")
    torch.npu.set_rng_state(state)
    assert torch.equal(torch.rand(3, device="npu"), first)
    kept = F.dropout(torch.ones(1000, device="npu"), 0.3).ne(0).sum().item()
    assert 600 < kept < 800


@on_npu
def test_tensors_move_between_host_and_cards_by_file_pickle_and_copy():
    saved = io.BytesIO()
    torch.save({"x": torch.arange(6, device="npu:1").view(2, 3).t()}, saved)
    for where, expected in (("cpu", "cpu"), ("npu:2", "npu:2"), (None, "npu:1")):
        saved.seek(0)
        x = torch.load(saved, map_location=where, weights_only=True)["x"]
        assert str(x.device) == expected
        assert x.tolist() == [[0, 3], [1, 4], [2, 5]]
    model = nn.Linear(2, 2).npu()
    assert copy.deepcopy(model).weight.is_npu
    with pytest.raises(TypeError):
        model.weight.detach().numpy()


# ---- Mixed precision ----

@on_npu
def test_half_precision_equals_the_cpus_to_the_bit():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 16, 16, generator=generator)
    layer = nn.Conv2d(3, 4, 3)
    for dtype in (torch.float16, torch.bfloat16):
        cpu, npu = copy.deepcopy(layer).to(dtype), copy.deepcopy(layer).to("npu", dtype)
        a, b = cpu(x.to(dtype)), npu(x.to("npu", dtype))
        assert b.dtype == dtype
        assert torch.equal(a, b.cpu())


@on_npu
def test_autocast_casts_what_pytorch_lists():
    x = torch.randn(2, 3, 8, 8, device="npu")
    layer = nn.Conv2d(3, 4, 3).to("npu")
    for context in (torch.autocast("npu", dtype=torch.float16), torch.npu.amp.autocast()):
        with context:
            y = layer(x)
            assert y.dtype == torch.float16
            assert F.cross_entropy(y.mean((2, 3)), y.new_ones(2).long()).dtype == torch.float32
    assert layer(x).dtype == torch.float32


@on_npu
def test_operators_over_lists_of_tensors_work():
    tensors = [torch.full((3,), float(value), device="npu") for value in (1, 2)]
    torch._foreach_mul_(tensors, 2.0)
    assert [t.tolist() for t in tensors] == [[2] * 3, [4] * 3]
    norms = torch._foreach_norm(tensors, float("inf"))
    assert torch.stack(list(norms)).tolist() == [2, 4]


@on_npu
def test_the_scaler_of_pytorch_skips_what_overflowed():
    weight = nn.Parameter(torch.ones(3, device="npu"))
    optimizer = torch.optim.SGD([weight], 1.0)
    scaler = torch.amp.GradScaler("npu", init_scale=8.0)
    scaler.scale((weight * float("inf")).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert (weight.tolist(), scaler.get_scale()) == ([1, 1, 1], 4.0)


@on_npu(NPU_STAND_IN_SATURATES="1")
def test_a_saturating_chip_has_a_flag_in_place_of_infinity():
    big = torch.full((2,), 60000.0, device="npu").half()
    assert not torch.npu.utils.is_support_inf_nan()
    assert not torch.npu.get_npu_overflow_flag()
    assert (big + big).tolist() == [65504.0] * 2
    assert torch.npu.get_npu_overflow_flag()
    torch.npu.clear_npu_overflow_flag()
    assert ((big + big) * 0).tolist() == [0.0] * 2
    assert (torch.zeros(1, device="npu:1") / 0).tolist() == [0.0]  # NaN elsewhere; another card's
    assert torch.npu.get_npu_overflow_flag()


# ---- What it refuses ----

@on_npu
def test_tensors_of_two_devices_do_not_mix():
    x = torch.ones(3, device="npu")
    for mix in (
        lambda: x + torch.ones(3),
        lambda: x + torch.ones(3, device="npu:1"),
        lambda: x[torch.tensor([0, 2])],
        lambda: torch.stack([x.sum(), torch.tensor(1.0)]),
        lambda: torch.add(x, 1, out=torch.ones(3)),
        lambda: torch._foreach_add([x], [torch.ones(3)]),
        lambda: nn.Conv2d(3, 3, 1)(torch.ones(2, 3, 4, 4, device="npu")),
        lambda: nn.Linear(3, 3).to("npu")(torch.ones(2, 3)),
        lambda: F.cross_entropy(torch.ones(2, 3, device="npu"), torch.tensor([0, 1])),
    ):
        with pytest.raises(RuntimeError, match="same device|should be the same"):
            mix()
    assert (x + torch.tensor(1.0)).tolist() == [2, 2, 2]  # a number of the host, PyTorch's own rule


@on_npu
def test_a_bare_number_is_no_device():
    x = torch.ones(3, device="npu")
    for use in (lambda: x.to(0), lambda: x.to(device=0), lambda: torch.ones(1, device=0),
                lambda: x.new_ones(1, device=0), lambda: torch.device(0),
                lambda: nn.Linear(2, 2).to(0), lambda: nn.Linear(2, 2).to(device=0)):
        with pytest.raises(TypeError, match="give torch.device"):
            use()


@on_npu
def test_what_a_real_device_would_do_elsewhere_or_in_another_type_is_refused():
    x = torch.ones(3, device="npu")
    with pytest.raises(RuntimeError, match="may fall back to the host's CPU"):
        F.hardsigmoid(x)
    assert x.sum().double().reciprocal().item() == pytest.approx(1 / 3)  # one number passes
    for make in (lambda: x.double(), lambda: x.new_zeros(2, dtype=torch.float64),
                 lambda: torch.ones(2, dtype=torch.float64).to("npu")):
        with pytest.raises(RuntimeError, match="float64"):
            make()


# ---- Host syncs ----

@on_npu
def test_every_wait_of_the_host_is_counted_by_its_reason():
    x = torch.arange(3.0, device="npu")
    mask, ones = x > 1, torch.ones(1, device="npu")
    torch.npu.reset_host_syncs()
    pinned = torch.ones(8).pin_memory()[2:5]
    y = pinned.to("npu", non_blocking=True)
    y = (x + y * 2).clamp_(max=3).sum().expand(2)
    y.to("cpu", non_blocking=True)  # into pinned memory; reading it before a sync is the bug
    torch._foreach_norm([x, y])
    event = torch.npu.Event()
    event.record()
    assert torch.npu.host_syncs() == {}
    for wait, reason in (
        (lambda: x.sum().item(), "aten::_local_scalar_dense"),
        (lambda: bool(x[0] > 1), "aten::_local_scalar_dense"),
        (lambda: x.cpu(), "copy device to host"),
        (lambda: x.tolist(), "copy device to host"),
        (lambda: torch.ones(3).to("npu", non_blocking=True), "copy host to device"),
        (lambda: pinned.to("npu"), "copy host to device"),
        (lambda: torch.tensor(1.0, device="npu"), "copy host to device"),
        (lambda: x.nonzero(), "aten::nonzero"),
        (lambda: x[mask], "aten::nonzero"),
        (lambda: x.__setitem__(mask, ones), "aten::_index_put_impl_"),
        (lambda: torch.equal(x, x), "aten::equal"),
        (lambda: torch.npu.synchronize(), "synchronize"),
        (event.synchronize, "synchronize event"),
        (lambda: torch.npu.current_stream().synchronize(), "synchronize stream"),
    ):
        torch.npu.reset_host_syncs()
        wait()
        assert torch.npu.host_syncs() == {reason: 1}
        assert torch.npu.host_sync_count() == 1


@on_npu
def test_batches_of_a_dataloader_come_in_pinned_memory_from_forked_workers():
    torch.npu.manual_seed_all(0)  # the device is in use before the workers are forked
    data = torch.utils.data.TensorDataset(torch.arange(8.0), torch.arange(8))
    for workers in (0, 1):
        loader = torch.utils.data.DataLoader(data, 4, num_workers=workers, pin_memory=True)
        torch.npu.reset_host_syncs()
        seen = [x.to("npu", non_blocking=True) for x, _ in loader]
        assert torch.npu.host_syncs() == {}
        assert torch.cat(seen).tolist() == list(range(8))

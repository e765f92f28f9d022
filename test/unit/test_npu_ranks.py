"""Two ranks over the stand-in's "hccl", through the package's own modules.

Each rank runs this file as a script; the tests only start them and read how they ended.
"""
import subprocess
import sys

import pytest
import torch
import torch.distributed as td
from npu_process import build, environment
from torch import nn

from mobilenetv3 import device as devices
from mobilenetv3 import dist, models, optim, precision, replicas


@pytest.fixture(scope="module")
def python():
    """A Python that starts with PyTorch imported."""
    from warm_python import WarmPython  # a rank, which has no use for it, does not find it

    if build():
        pytest.skip(build())
    warm = WarmPython(environment())
    yield warm.executable
    warm.close()


def launch(python, how):
    return subprocess.run(
        [python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__,
         how], env=environment(), capture_output=True, text=True, timeout=120,
    )


def test_two_ranks_exchange_and_train_over_hccl(python):
    done = launch(python, "together")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == ["passed"] * 2


def test_two_ranks_on_one_card_are_refused_as_by_hccl(python):
    done = launch(python, "on one card")
    assert done.returncode != 0
    assert "npu:0 is used by two ranks of this group" in done.stderr


# ---- What a rank does ----

def collectives(device, who):
    """Every exchange that the package and PyTorch's wrappers make."""
    rank, here = who.rank, device.torch_device
    assert td.get_backend() == "hccl"
    assert here == torch.device("npu", rank)
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int64):
        total = dist.all_reduce_sum(torch.full((4,), rank + 1, dtype=dtype, device=here))
        assert total.tolist() == [3] * 4
        assert total.device == here
    parts = dist.all_gather(torch.full((2,), float(rank), device=here))
    assert [part.tolist() for part in parts] == [[0, 0], [1, 1]]
    for how, expected in (("broadcast", 5), ("reduce", 6)):
        layer = nn.BatchNorm2d(3).to(here)
        layer.running_mean.fill_(5 + 2 * rank)
        replicas.sync_buffers(layer, how)
        assert layer.running_mean.tolist() == [expected] * 3
    dist.barrier()

    whole = torch.empty(4, 2, device=here)
    td.all_gather_into_tensor(whole, torch.full((2, 2), float(rank), device=here))
    assert whole[:, 0].tolist() == [0, 0, 1, 1]
    part = torch.empty(2, device=here)
    td.reduce_scatter_tensor(part, torch.arange(4.0, device=here))
    assert part.tolist() == [[0, 2], [4, 6]][rank]
    td.all_to_all_single(part, torch.arange(2.0, device=here) + 10 * rank)
    assert part.tolist() == [[0, 10], [1, 11]][rank]
    said = [{"epoch": 3} if rank == 0 else None]
    td.broadcast_object_list(said, 0)
    assert said == [{"epoch": 3}]
    work = td.all_reduce(torch.ones(2, device=here), async_op=True)
    assert work.get_future().wait()[0].tolist() == [2, 2]
    with pytest.raises(RuntimeError, match="[Nn]o backend type|must be on an npu"):
        td.all_reduce(torch.ones(2))


def parallel_training(device, who):
    """DistributedDataParallel over hccl equals that over gloo; SyncBatchNorm one whole batch."""
    gloo = td.new_group(backend="gloo")
    models.set_fused_activations(False)
    models.set_fast_backward(False)  # on the CPU it sums in another order
    trained = []
    for here in (device.torch_device, torch.device("cpu")):
        torch.manual_seed(0)
        model = models.create_model("mobilenetv3_small_050", num_classes=10).to(here).train()
        if here.type == "npu":
            parallel = replicas.wrap(model, device, who)
        else:
            parallel = nn.parallel.DistributedDataParallel(model, process_group=gloo)
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        generator = torch.Generator().manual_seed(who.rank)
        for _ in range(3):
            images = torch.randn(4, 3, 32, 32, generator=generator).pin_memory()
            images = images.to(here, non_blocking=True)
            if here.type == "npu":
                torch.npu.reset_host_syncs()
            loss = parallel(images).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if here.type == "npu":
            assert torch.npu.host_syncs() == {}  # DDP's own buckets are waited for on the device
        trained.append([p.detach().cpu() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*trained))
    joint_batchnorm(device, who.rank)


def fused_training(device, who):
    """torch_npu's fused optimizers look at no gradient that has moved, so DDP must move none."""
    found = []
    for name, level in (("npufusedsgd", "O0"), ("momentum", "O0"), ("npufusedsgd", "O2")):
        torch.manual_seed(0)
        model = models.create_model("mobilenetv3_small_050", num_classes=10)
        model = model.to(device.torch_device).train()
        optimizer = optim.create_optimizer(
            model, name, 0.05, 0.9, 1e-4, fused=device.fused_optimizers)
        scale = 128.0 if level == "O2" else None
        made = precision.create_precision(level, device, "float16", scale)
        made.prepare(model, optimizer)
        parallel = replicas.wrap(model, device, who, made.gradients_stay)
        generator = torch.Generator().manual_seed(who.rank)
        for _ in range(3):
            images = torch.randn(4, 3, 32, 32, generator=generator).to(device.torch_device)
            made.backward(made.forward(parallel, images).square().mean())
            made.step(optimizer)
        found.append(made.model_state(model)["bn1.weight"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[2], torch.ones_like(found[2]))


def joint_batchnorm(device, rank):
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(8, 5, 6, 6, generator=generator) for _ in range(2))
    alone, x = nn.BatchNorm2d(5), x.requires_grad_()
    (alone(x) * weight).sum().backward()

    mine, here = slice(4 * rank, 4 * rank + 4), device.torch_device
    together = replicas.sync_batchnorm(nn.BatchNorm2d(5), device).to(here)
    part = x.detach()[mine].to(here).requires_grad_()
    (together(part) * weight[mine].to(here)).sum().backward()
    gradient = dist.all_reduce_sum(together.weight.grad.clone())
    for ours, theirs in ((part.grad, x.grad[mine]), (gradient, alone.weight.grad),
                         (together.running_var, alone.running_var)):
        assert torch.allclose(ours.cpu(), theirs, atol=1e-4)


def main():
    who = dist.ranks()
    device = devices.select("npu", 0 if sys.argv[1] == "on one card" else who.local_rank)
    dist.init(who, device, timeout_s=60.0)
    collectives(device, who)
    parallel_training(device, who)
    fused_training(device, who)
    dist.shutdown()
    print("passed\n", end="")  # in one piece: another rank prints it, too


if __name__ == "__main__":
    main()

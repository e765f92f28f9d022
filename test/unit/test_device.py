import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from mobilenetv3 import checkpoint, device, dist, precision, scaling

ROOT = Path(__file__).resolve().parents[2]
NO_CANN = "libhccl.so: cannot open shared object file: No such file or directory"
WORKING = """
import types
import torch
torch.npu = types.SimpleNamespace(is_available=lambda: True, device_count=lambda: 2,
                                  set_device=lambda index: print("bound to", index))
def _autoload():
    pass
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """What earlier tests found out is forgotten, and no variable of the caller has a say."""
    for name in ("ASCEND_DEVICE_ID", "LOCAL_RANK", *device.VISIBLE.values()):
        monkeypatch.delenv(name, raising=False)
    device._open.cache_clear()
    yield
    device._open.cache_clear()


class Cards:
    """Stands for torch.npu or torch.cuda with some cards."""

    def __init__(self, count, error=None):
        self.count, self.error, self.bound = count, error, None

    def is_available(self):
        return self.count > 0

    def device_count(self):
        return self.count

    def set_device(self, index):
        if self.error:
            raise RuntimeError(self.error)
        self.bound = index


@pytest.fixture
def cards(monkeypatch):
    """Give this host cards: cards(npu=8, cuda=0)."""
    def give(**counts):
        modules = {kind: Cards(count) for kind, count in counts.items()}
        for kind, module in modules.items():
            monkeypatch.setattr(torch, kind, module, raising=False)
        return types.SimpleNamespace(**modules)
    return give


# ---- Versions


def test_versions_are_compared_as_numbers():
    assert device.version("1.11.0") > device.version("1.8.1")  # as text it is the other way round
    assert device.version("2.15.0+cu132") == (2, 15, 0)
    assert device.version("1.8.1a0+56b43f4") == (1, 8, 1)


@pytest.mark.parametrize("version, name", [
    ((1, 8, 1), None), ((1, 12), "npu"), ((2, 7, 1), "npu"), ((2, 8), None),
])
def test_the_pinning_thread_is_told_the_device_where_it_must_be(monkeypatch, version, name):
    monkeypatch.setattr(device, "TORCH_VERSION", version)
    options = device.Device("npu", 0, object(), "hccl").loader_options()
    assert options["pin_memory"] is True
    assert options.get("pin_memory_device") == name


# ---- Which card


@pytest.mark.parametrize("flag, variable, card, says", [
    (None, None, 0, ""),
    (None, "3", 3, ""),
    (2, None, 2, ""),
    (3, "3", 3, ""),
    (0, "3", 0, "--device_id 0 is used; ASCEND_DEVICE_ID=3 is ignored"),
    (None, "", 0, ""),
])
def test_the_flag_wins_over_the_variable_and_the_variable_over_0(monkeypatch, flag, variable, card,
                                                                says):
    if variable is not None:
        monkeypatch.setenv("ASCEND_DEVICE_ID", variable)
    assert device.card_index(flag, None) == (card, says)


def test_a_rank_takes_the_card_of_its_local_rank(monkeypatch):
    monkeypatch.setenv("ASCEND_DEVICE_ID", "7")
    assert device.card_index(None, 5) == (5, "")
    assert device.card_index(5, 5) == (5, "")
    card, note = device.card_index(3, 0)
    assert card == 0
    assert note == "--device_id 3 is ignored: each rank takes the card of its local rank"


@pytest.mark.parametrize("text", ["npu:0", "-1", "0,1", "1.0"])
def test_a_variable_that_is_no_number_is_an_error(monkeypatch, text):
    monkeypatch.setenv("ASCEND_DEVICE_ID", text)
    with pytest.raises(ValueError, match="ASCEND_DEVICE_ID is .*expected the number of a card"):
        device.card_index(None, None)


# ---- Binding


def test_auto_takes_npu_then_cuda_then_cpu(cards):
    for given, expected, backend in (
        ({"npu": 8, "cuda": 8}, "npu", "hccl"), ({"npu": 0, "cuda": 8}, "cuda", "nccl"),
        ({"npu": 0, "cuda": 0}, "cpu", "gloo"),
    ):
        device._open.cache_clear()
        cards(**given)
        chosen = device.select()
        assert (chosen.type, chosen.backend) == (expected, backend)


def test_the_process_is_bound_to_its_card(cards):
    host = cards(npu=8)
    chosen = device.select("npu", 5)
    assert (chosen.index, host.npu.bound, chosen.module) == (5, 5, host.npu)
    assert device.count("npu") == 8


def test_the_cpu_needs_no_card(cards):
    cards(npu=8)
    chosen = device.select("cpu", 5)
    assert chosen == device.Device("cpu", 0, None, "gloo")
    assert chosen.torch_device == torch.device("cpu")
    assert device.count("cpu") == 0


def test_a_card_that_is_not_there_is_an_error_with_the_number_of_cards(cards, monkeypatch):
    cards(npu=8)
    with pytest.raises(ValueError, match="card 8 was asked for, but this host has 8 of kind npu"):
        device.select("npu", 8)
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "0,1")
    with pytest.raises(ValueError, match="ASCEND_RT_VISIBLE_DEVICES=0,1 hides the others"):
        device.select("npu", 9)


def test_more_ranks_than_cards_is_an_error_that_says_how_many_fit(cards, monkeypatch):
    cards(npu=4)
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(ValueError, match="LOCAL_RANK 4 has no card.* at most 4 ranks"):
        device.select("auto", 4)


def test_a_card_that_does_not_open_is_told_in_one_sentence(cards):
    cards(npu=2).npu.error = "NPU error, error code is 507033\n[Error]: long text\n"
    with pytest.raises(ValueError, match=r"card 1 .*\(NPU error, error code is 507033\).*npu-smi"):
        device.select("npu", 1)


def test_a_kind_without_cards_is_an_error_with_a_remedy(cards, monkeypatch):
    cards(npu=0, cuda=0)
    monkeypatch.setattr(device.host, "has_ascend_cards", lambda: False)
    with pytest.raises(ValueError, match="works, but sees no card; there is no /dev/davinci"):
        device.select("npu")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None, raising=False)
    device._open.cache_clear()
    with pytest.raises(ValueError, match=r"built without CUDA; install .*usable here: cpu\)"):
        device.select("cuda")


def test_auto_says_so_where_cards_are_there_but_cannot_be_used(cards, monkeypatch):
    cards(npu=0, cuda=0)
    monkeypatch.setattr(device.host, "has_nvidia_cards", lambda: True)
    note = device.select("auto").note
    assert note.startswith("--device auto takes cpu: torch_npu")
    assert "CUDA" in note
    assert "\n" not in note


def test_auto_says_nothing_where_nothing_was_to_be_expected(cards, monkeypatch):
    cards(cuda=0)
    absent = device.Fault("torch_npu is not installed", "install it", is_meant=False)
    monkeypatch.setattr(device, "_load_torch_npu", lambda: absent)
    monkeypatch.setattr(device.host, "has_nvidia_cards", lambda: False)
    assert device.select("auto") == device.Device("cpu", 0, None, "gloo", "")


# ---- Overflow


def chip(**functions):
    utils = {name: functions.pop(name) for name in ("is_support_inf_nan",) if name in functions}
    module = types.SimpleNamespace(utils=types.SimpleNamespace(**utils), **functions)
    return device.Device("npu", 0, module, "hccl")


def test_chips_that_saturate_are_known():
    assert chip(is_support_inf_nan=lambda: True, get_npu_overflow_flag=None).has_inf_nan
    assert not chip(is_support_inf_nan=lambda: False, get_npu_overflow_flag=None).has_inf_nan
    # torch_npu of the time of PyTorch 1.8 cannot be asked; its chips all saturate.
    assert not chip(get_npu_overflow_flag=None).has_inf_nan
    assert device.select("cpu").has_inf_nan


def test_only_a_saturating_chip_has_a_flag():
    assert device.overflow_flag(device.select("cpu"), dist.all_reduce_sum) is None
    assert device.overflow_flag(chip(is_support_inf_nan=lambda: True), dist.all_reduce_sum) is None
    flag = device.overflow_flag(chip(is_support_inf_nan=lambda: False), dist.all_reduce_sum)
    assert isinstance(flag, device.OverflowFlag)


class Chip:
    """A saturating chip's flag; it is on the CPU so that tensors can be made."""

    def __init__(self, others=0.0):
        self.is_set, self.cleared, self.others = False, 0, others

    def clear_npu_overflow_flag(self):
        self.is_set, self.cleared = False, self.cleared + 1

    def get_npu_overflow_flag(self):
        return self.is_set

    def flag(self):
        place = device.Device("cpu", 0, self, "hccl")
        return device.OverflowFlag(place, lambda tensor: tensor.add_(self.others))


@pytest.mark.parametrize("own, others, overflowed", [
    (False, 0.0, False), (True, 0.0, True), (False, 1.0, True), (True, 7.0, True),
])
def test_an_overflow_on_any_rank_is_one_on_all(own, others, overflowed):
    fake = Chip(others)
    flag = fake.flag()
    flag.clear()
    fake.is_set = own
    assert flag.read() is overflowed


def test_the_scaler_skips_by_the_flag_although_the_gradients_look_healthy():
    fake = Chip()
    scaler = scaling.DynamicScaler(fake.flag())
    gradients = torch.full((2,), 65504.0)  # what a saturating chip makes of infinity
    scaler.before_backward()
    fake.is_set = True
    assert not scaler.unscale(gradients.clone())
    assert scaler.scale == 2.0**15
    scaler.before_backward()
    assert scaler.unscale(gradients)
    assert gradients.tolist() == [65504.0 / 2.0**15] * 2


def test_with_accumulation_an_overflow_of_any_micro_step_is_kept():
    fake = Chip()
    scaler = scaling.DynamicScaler(fake.flag())
    scaler.before_backward()
    fake.is_set = True  # in the first of two micro-steps
    scaler.before_backward()
    assert fake.cleared == 1
    assert not scaler.unscale(torch.ones(1))
    scaler.before_backward()
    assert fake.cleared == 2


def test_the_half_precision_of_an_npu_is_float16_with_dynamic_scaling():
    made = precision.create_precision("O2", chip(is_support_inf_nan=lambda: True))
    assert made.dtype is torch.float16
    assert isinstance(made.scaler, scaling.DynamicScaler)
    assert made.amp_type == "O2 float16"


def test_hardsigmoid_is_not_left_to_the_host_on_an_npu():
    assert not chip().has_fused_activations
    assert device.select("cpu").has_fused_activations


# ---- torch_npu as a package that PyTorch finds


@pytest.fixture
def with_torch_npu(tmp_path):
    """Install a torch_npu of the given text; returns a function that runs Python beside it."""
    def install(text):
        site = tmp_path / "site"
        version = torch.__version__.split("+")[0]
        info = site / f"torch_npu-{version}.dist-info"
        for folder in (site / "torch_npu", info):
            folder.mkdir(parents=True)
        (site / "torch_npu" / "__init__.py").write_text(text)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: torch_npu\nVersion: {version}\n"
        )
        (info / "entry_points.txt").write_text(
            "[torch.backends]\ntorch_npu = torch_npu:_autoload\n"
        )

        def run(*arguments, **variables):
            env = {name: value for name, value in os.environ.items()
                   if not name.startswith(("ASCEND", "TORCH_DEVICE_BACKEND", "RANK", "WORLD_SIZE"))}
            env.update(variables, HOME=str(tmp_path), OMP_NUM_THREADS="1",
                       PYTHONPATH=os.pathsep.join([str(site), str(ROOT)]))
            return subprocess.run(
                [sys.executable, *map(str, arguments)], cwd=str(tmp_path), env=env,
                capture_output=True, text=True,
            )
        return run
    return install


def without_cann(with_torch_npu):
    return with_torch_npu(f"raise ImportError({NO_CANN!r})\n")


@pytest.mark.skipif(device.TORCH_VERSION < (2, 5), reason="PyTorch loads no extensions before 2.5")
def test_without_this_package_a_torch_npu_without_cann_breaks_pytorch(with_torch_npu):
    """What the other tests of this section protect from; if it passes, they show nothing."""
    done = without_cann(with_torch_npu)("-c", "import torch")
    assert done.returncode == 1
    assert "libhccl.so" in done.stderr


def test_a_torch_npu_without_cann_leaves_the_other_devices_alone(with_torch_npu):
    run = without_cann(with_torch_npu)
    assert run(ROOT / "train.py", "--help").returncode == 0
    done = run("-c", "from mobilenetv3 import device; chosen = device.select(); "
               "print(chosen.type); print(chosen.note); print(device.select('cpu').note == '')")
    assert done.returncode == 0, done.stderr
    kind, note, is_quiet = done.stdout.splitlines()
    assert kind in ("cuda", "cpu")
    assert NO_CANN in note
    assert is_quiet == "True"  # who asked for the CPU is not bothered


def test_training_on_the_cpu_needs_no_cann(with_torch_npu, tmp_path):
    done = without_cann(with_torch_npu)(
        ROOT / "train.py", "--device=cpu", "--model=mobilenetv3_small_050", "--img_size=32",
        "--batch_size=4", "--max_steps=1", "--skip_validation", "--workers=0",
        f"--output={tmp_path / 'run'}",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / checkpoint.LAST).exists()


def test_asked_for_an_npu_without_cann_it_says_what_is_missing_and_what_to_source(with_torch_npu,
                                                                                 tmp_path):
    run = without_cann(with_torch_npu)
    script = tmp_path / "with space" / "cann" / "set_env.sh"
    script.parent.mkdir(parents=True)
    script.write_text("")
    done = run(ROOT / "train.py", "--device=npu", ASCEND_HOME=str(tmp_path / "with space"))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("train.py: error: --device npu cannot be used: ")
    assert NO_CANN in done.stderr
    assert f"run `source '{script}'` first" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("autoload", ["0", "1"])
def test_a_working_torch_npu_is_used_whether_or_not_pytorch_loads_it(with_torch_npu, autoload):
    """"0" is also how PyTorch before 2.5, such as 1.8.1, finds it: by our import alone."""
    done = with_torch_npu(WORKING)(
        "-c", "from mobilenetv3 import device; chosen = device.select('auto', 1); "
        "print(chosen.type, chosen.index, repr(chosen.note))",
        TORCH_DEVICE_BACKEND_AUTOLOAD=autoload,
    )
    assert done.stdout == "bound to 1\nnpu 1 ''\n", done.stderr


def test_a_folder_that_is_taken_for_torch_npu_is_told(tmp_path):
    (tmp_path / "torch_npu").mkdir()  # as in a clone of its repository
    done = subprocess.run(
        [sys.executable, "-c", "from mobilenetv3 import device; print(device.fault('npu'))"],
        cwd=str(tmp_path), env=dict(os.environ, PYTHONPATH=str(ROOT)), stdout=subprocess.PIPE,
        text=True,
    )
    assert "a folder named torch_npu" in done.stdout

import os

import pytest

from mobilenetv3 import host

NO_LIBRARY = "{}: cannot open shared object file: No such file or directory"


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    """A host without anything of Ascend's."""
    for name in (*host.HOME_VARIABLES, "LD_LIBRARY_PATH", "ASCEND_RT_VISIBLE_DEVICES",
                 "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(host, "INFO_FILES", (str(tmp_path / "etc" / "cann.info"),))
    monkeypatch.setattr(host, "FOLDERS", (str(tmp_path / "usr"),))
    monkeypatch.setattr(host, "installed", lambda name: "")
    monkeypatch.setattr(host, "has_ascend_cards", lambda: False)
    monkeypatch.setattr(host, "has_nvidia_cards", lambda: False)


def put(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


# ---- CANN


def test_without_cann_there_is_no_script():
    assert host.cann_script() == ""
    assert not host.is_cann_sourced()


@pytest.mark.parametrize("edition", ["cann", "ascend-toolkit", "nnae"])
def test_cann_is_found_in_the_usual_folder(tmp_path, edition):
    assert host.cann_script() == ""
    script = put(tmp_path / "usr" / edition / "set_env.sh")
    assert host.cann_script() == script


def test_the_newest_layout_wins_and_a_variable_wins_over_the_record_and_that_over_the_usual(
        tmp_path, monkeypatch):
    put(tmp_path / "usr" / "nnae" / "set_env.sh")
    usual = put(tmp_path / "usr" / "cann" / "set_env.sh")
    assert host.cann_script() == usual
    recorded = put(tmp_path / "recorded here" / "cann-8.5.0" / "set_env.sh")
    put(tmp_path / "etc" / "cann.info",
        f"version=1\nToolkit_InstallPath={os.path.dirname(recorded)}\n")
    assert host.cann_script() == recorded
    variable = put(tmp_path / "mine" / "ascend-toolkit" / "set_env.sh")
    (tmp_path / "mine" / "ascend-toolkit" / "latest").mkdir()
    # It is what set_env.sh itself sets; the script lies one folder up.
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path / "mine" / "ascend-toolkit" / "latest"))
    assert host.cann_script() == variable


def test_a_record_of_a_parent_folder_serves(tmp_path):
    script = put(tmp_path / "opt" / "ascend-toolkit" / "set_env.sh")
    put(tmp_path / "etc" / "cann.info", f"Install_Path={tmp_path / 'opt'}\r\n")
    assert host.cann_script() == script


def test_cann_is_sourced_when_its_home_is_in_the_library_path(tmp_path, monkeypatch):
    home = tmp_path / "cann-8.5.0"
    (home / "lib64").mkdir(parents=True)
    (tmp_path / "cann").symlink_to(home)
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path / "cann"))
    assert not host.is_cann_sourced()
    for folder in (tmp_path / "cann" / "lib64", home / "lib64"):
        monkeypatch.setenv("LD_LIBRARY_PATH", f"/usr/lib:{folder}")
        assert host.is_cann_sourced()
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path / "gone"))
    assert not host.is_cann_sourced()


@pytest.mark.parametrize("path, text, version", [
    ("cann/x86_64-linux/ascend_toolkit_install.info", "package_name=x\nversion=8.5.0\n", "8.5.0"),
    ("ascend-toolkit/latest/aarch64-linux/ascend_toolkit_install.info", "version=8.0.RC2\n",
     "8.0.RC2"),
    ("nnae/latest/ascend_nnae_install.info", "version=7.0.0\n", "7.0.0"),
    ("ascend-toolkit/latest/compiler/version.info",
     "Version=7.7.T9.0.B057\nversion_dir=8.1.RC1\n", "8.1.RC1"),
    ("cann/readme.txt", "version=1\n", ""),
])
def test_the_version_of_cann_is_read_from_its_records(tmp_path, path, text, version):
    put(tmp_path / "usr" / path, text)
    put(tmp_path / "usr" / path.split("/")[0] / "set_env.sh")
    assert host.cann_version(host.cann_script()) == version


@pytest.mark.parametrize("nvidia", [
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023",
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.104.05  Release Build",
])
def test_drivers_tell_their_versions(tmp_path, monkeypatch, nvidia):
    monkeypatch.setattr(host, "NVIDIA_VERSION", str(tmp_path / "nvidia"))
    monkeypatch.setattr(host, "DRIVER_INFO", str(tmp_path / "info"))
    assert host.drivers() == ""
    put(tmp_path / "nvidia", nvidia + "\nGCC version: gcc version 12.3.0\n")
    put(tmp_path / "opt" / "driver" / "version.info", "Version=24.1.0\nascendhal_version=7.35\n")
    put(tmp_path / "info", f"Driver_Install_Path_Param={tmp_path / 'opt'}\n")
    assert host.drivers() == "Ascend 24.1.0, NVIDIA 535.104.05"


# ---- Faults


def remedy(message):
    return host.torch_npu_fault(ImportError(message), "2.9.0").remedy


def test_a_missing_cann_is_to_be_installed_or_sourced(tmp_path, monkeypatch):
    message = NO_LIBRARY.format("libhccl.so")
    assert "CANN was not found here" in remedy(message)
    assert "source /usr/local/Ascend/ascend-toolkit/set_env.sh" in remedy(message)
    script = put(tmp_path / "usr" / "cann" / "set_env.sh")
    assert f"run `source {script}` first" in remedy(message)


def test_a_cann_that_lacks_a_library_is_of_the_wrong_version(tmp_path, monkeypatch):
    put(tmp_path / "usr" / "cann" / "set_env.sh")
    put(tmp_path / "usr" / "cann" / "version.info", "Version=7.0\n")
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path / "usr" / "cann"))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "usr" / "cann" / "lib64"))
    assert "CANN 7.0 in" in remedy(NO_LIBRARY.format("libnew.so.1"))


@pytest.mark.parametrize("message, part", [
    (NO_LIBRARY.format("libascend_hal.so"), "driver is missing"),
    ("/x/libtorch_npu.so: undefined symbol: _ZN3c10", "built for another PyTorch than 2.9.0"),
    ("No module named 'torch_npu._C'", "a folder named torch_npu"),
    ("Two accelerators cannot be used at the same time in PyTorch: npu and cuda. You", "beside"),
    ("something new", "shows where it fails"),
    ("", "shows where it fails"),
])
def test_other_faults_of_torch_npu_have_their_remedies(message, part):
    assert part in remedy(message)


def test_a_torch_npu_for_another_pytorch_is_told(monkeypatch):
    monkeypatch.setattr(host, "installed", lambda name: "2.14.0.post2")
    assert host.is_torch_npu_for("2.14.1+cpu")
    assert not host.is_torch_npu_for("2.1.0")  # 2.14 is not 2.1
    found = host.torch_npu_fault(AttributeError("no attribute '_x'"), "1.8.1")
    assert found.what == "torch_npu 2.14.0.post2 cannot be imported (no attribute '_x')"
    assert "built for another PyTorch than 1.8.1" in found.remedy


def test_a_host_without_visible_cards_is_told_why(monkeypatch):
    assert "there is no /dev/davinci*" in host.no_ascend_card_fault().remedy
    monkeypatch.setattr(host, "has_ascend_cards", lambda: True)
    fault = host.no_ascend_card_fault(RuntimeError("drv open failed\nmore"))
    assert "(drv open failed)" in fault.what
    assert "npu-smi info" in fault.remedy
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "")
    assert "unset it" in host.no_ascend_card_fault().remedy


def test_cuda_is_expected_only_where_there_are_cards(monkeypatch):
    assert not host.no_cuda_card_fault("2.9.0", False, "").is_meant
    monkeypatch.setattr(host, "has_nvidia_cards", lambda: True)
    assert host.no_cuda_card_fault("2.9.0+cpu", False, "").is_meant
    fault = host.no_cuda_card_fault("2.9.0", True, "The NVIDIA driver is too old.\nUpdate it")
    assert fault.what == "PyTorch 2.9.0 sees no CUDA card (The NVIDIA driver is too old.)"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES is ''" in host.no_cuda_card_fault("2.9.0", True, "").remedy


# ---- CPUs


@pytest.mark.parametrize("files, cpus", [
    ({}, 64),
    ({"/proc/self/cgroup": "0::/a/b\n", "/sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, 64),
    ({"/proc/self/cgroup": "0::/a/b\n", "/sys/fs/cgroup/a/cpu.max": "400000 100000\n",
      "/sys/fs/cgroup/a/b/cpu.max": "800000 100000\n"}, 4),  # the group around it has fewer
    ({"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "250000\n",
      "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 2),
    ({"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
      "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 64),
    ({"/proc/self/cgroup": "5:cpu,cpuacct:/job/step\n4:cpuset:/job\n",
      "/sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "600000\n",
      "/sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n"}, 6),  # of the group around it
    ({"/sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),  # half a CPU is still one to use
])
def test_cpus_are_limited_by_affinity_and_cgroup(monkeypatch, files, cpus):
    monkeypatch.setattr(host, "_AT_START", 64)
    monkeypatch.setattr(host, "read", lambda path: files.get(path, ""))
    assert host.usable_cpus() == cpus


def test_shared_memory_is_in_bytes():
    free = host.shared_memory()
    assert free is None or free >= 0

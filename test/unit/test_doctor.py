import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mobilenetv3 import device, doctor, host, probe

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments, path="", module="mobilenetv3.device"):
    """The command, with the packages of a folder before all others."""
    env = {name: value for name, value in os.environ.items()
           if not name.startswith(("ASCEND", "TORCH_DEVICE_BACKEND"))}
    env.update(PYTHONPATH=os.pathsep.join(filter(None, [str(path), str(ROOT)])))
    return subprocess.run([sys.executable, "-m", module, *arguments], cwd="/", env=env,
                          capture_output=True, text=True)


def package(folder, name, text):
    """Write a package, and nothing in its metadata; returns the folder to search."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(text)
    return folder


def report_of(*checks):
    report = doctor.Report()
    for check in checks:
        check(report)
    return report


# ---- The command


def test_it_tells_what_training_on_the_cpu_has_here():
    done = run("--device=cpu", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["ok"] is True
    facts = found["facts"]
    assert set(facts) == set(doctor.ROWS)
    assert facts["torch"] == torch.__version__
    assert (facts["device"], facts["collectives"]) == ("cpu", "gloo")
    assert facts["AMP"] == "--apex is O2 bfloat16, loss scale 1" or device.TORCH_VERSION < (2, 1)
    assert facts["JPEG"].startswith("Pillow ")
    assert facts["CPUs"].split()[0] == str(host.usable_cpus())
    assert not [problem for problem in found["problems"] if problem["stops"]]


def test_a_device_extension_that_ends_the_process_is_told_beside_all_that_works(tmp_path):
    """CANN ends Python with a core dump where its own Python packages are missing (EH9999)."""
    package(tmp_path, "torch_npu", "import os, sys\n"
            "print('EH9999: Inner Error', file=sys.stderr, flush=True)\nos.abort()\n")
    done = run("--device=npu", path=tmp_path)
    assert done.returncode == 1
    assert f"torch{' ' * 13}{torch.__version__}" in done.stdout
    assert "ERROR: --device npu: the process ended by SIGABRT" in done.stdout
    assert "(its last words: EH9999: Inner Error)" in done.stdout
    assert done.stdout.endswith("Training cannot run here as things are.\n")
    assert done.stderr == ""


def test_where_pytorch_is_broken_it_says_so_and_ends_well(tmp_path):
    for name in ("torchvision", "timm"):
        package(tmp_path, name, "import torch\n")
    package(tmp_path, "torch", "raise ImportError('libcudart.so.12: cannot open shared object')\n")
    done = run(path=tmp_path)
    assert done.returncode == 1
    assert ("ERROR: torch cannot be imported (ImportError: libcudart.so.12: cannot open shared "
            "object); install torch again\n") in done.stdout
    assert "CPUs" in done.stdout
    assert done.stderr == ""


def test_help_needs_no_pytorch(tmp_path):
    package(tmp_path, "torch", "raise ImportError('broken')\n")
    done = run("--help", path=tmp_path)
    assert done.returncode == 0
    assert "usage: python -m mobilenetv3.device" in done.stdout


# ---- The other process


def test_a_process_that_hangs_is_ended(tmp_path, monkeypatch):
    package(tmp_path, "numpy", "import time\ntime.sleep(300)\n")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{tmp_path}")
    # Its own folder comes first on the path; numpy is the first thing that it imports.
    monkeypatch.setattr(doctor, "__file__", str(tmp_path / "mobilenetv3" / "doctor.py"))
    report = doctor.Report()
    doctor.ask_probe(report, "cpu", seconds=3)
    assert [str(problem).split(";")[0] for problem in report.problems] == [
        "import numpy: the process was busy for 3 s"]
    assert not report.is_ok


def test_what_the_process_wrote_before_its_end_is_kept():
    report = doctor.Report()
    lines = ('{"doing": "import torch"}\n{"fact": "torch", "value": "2.9.0"}\n'
             '{"doing": "a convolution on npu:0"}\n{"fact": "AM')
    assert doctor.add_findings(report, lines) == "a convolution on npu:0"
    assert report.facts["torch"] == "2.9.0"


def test_endings_are_named():
    assert doctor.ending(-9) == "by SIGKILL"
    assert doctor.ending(3) == "with status 3"


# ---- Checks


def test_one_check_that_fails_does_not_hide_the_others(monkeypatch):
    def broken(report):
        raise OSError("unreadable")
    monkeypatch.setattr(doctor, "cann", broken)
    monkeypatch.setattr(doctor, "ask_probe", lambda report, kind: None)
    report = doctor.examine()
    assert "the check of broken failed (OSError: unreadable)" in report.text()
    assert "CPUs" in report.facts


@pytest.mark.parametrize("files, version, told, is_wrong", [
    ({"amp/frontend.py": "def initialize(models):\n"}, "0.1", "NVIDIA's, 0.1", False),
    ({"amp/frontend.py": "def initialize(models):\n"}, "0.1+ascend", "Ascend's, 0.1+ascend", False),
    ({"multi_tensor_apply/__init__.py": ""}, "0.1", "NVIDIA's, 0.1, without amp", False),
    ({"models.py": ""}, "0.9.10.dev0", "not Apex, but another package of that name", True),
])
def test_apex_is_told_from_what_bears_its_name(tmp_path, monkeypatch, files, version, told,
                                               is_wrong):
    package(tmp_path, "apex", "raise RuntimeError('nothing of it is run')\n")
    for name, text in files.items():
        (tmp_path / "apex" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "apex" / name).write_text(text)
    info = tmp_path / f"apex-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: apex\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    report = report_of(doctor.apex)
    assert report.facts["Apex"].startswith(told)
    assert [problem.remedy for problem in report.problems] == ["pip uninstall apex"] * is_wrong


def test_python_packages_that_cann_needs_are_named(monkeypatch):
    missing = {"attr": False, "google.protobuf": False}
    monkeypatch.setattr(doctor, "is_there", lambda module: missing.get(module, True))
    monkeypatch.setattr(host, "installed", {"torch_npu": "2.9.0.post4", "torch": "2.9.0"}.get)
    report = report_of(doctor.torch_npu)
    assert report.facts["torch_npu"] == "2.9.0.post4"
    assert [problem.remedy for problem in report.problems] == ["pip install protobuf attrs"]


def test_packages_are_looked_for_without_their_parents_being_there():
    assert doctor.is_there("json.decoder")
    assert not doctor.is_there("no_such_package.below")


def test_a_torch_npu_of_another_version_is_told(monkeypatch):
    monkeypatch.setattr(doctor, "is_there", lambda module: True)
    monkeypatch.setattr(host, "installed", {"torch_npu": "2.1.0.post8", "torch": "2.15.0"}.get)
    assert str(report_of(doctor.torch_npu).problems[0]) == (
        "torch_npu 2.1.0.post8 is not for PyTorch 2.15.0; install the torch_npu of this PyTorch's "
        "version")


def test_cann_is_told_with_its_version_and_whether_it_is_in_use(tmp_path, monkeypatch):
    script = tmp_path / "cann" / "set_env.sh"
    monkeypatch.setattr(host, "cann_script", lambda: str(script))
    monkeypatch.setattr(host, "is_cann_sourced", lambda: False)
    (tmp_path / "cann").mkdir()
    (tmp_path / "cann" / "version.info").write_text("Version=8.5.0\n")
    assert report_of(doctor.cann).facts["CANN"] == f"8.5.0, not sourced ({script})"


def test_a_small_shared_memory_is_told_with_its_remedy(monkeypatch):
    monkeypatch.setattr(host, "shared_memory", lambda: 64 << 20)  # what Docker gives
    report = report_of(doctor.shared_memory)
    assert "/dev/shm has only 64 MiB free" in report.text()
    assert "--shm-size" in report.text()
    assert report.is_ok  # one rank trains with it
    monkeypatch.setattr(host, "shared_memory", lambda: 8 << 30)
    assert not report_of(doctor.shared_memory).problems


def test_cards_of_one_name_are_told_together():
    report = doctor.Report()
    report.facts["cards"] = {"npu": ["Ascend910B3"] * 8}
    assert f"cards{' ' * 13}npu: 8 x Ascend910B3\n" in report.text()


# ---- What is asked of PyTorch, in this process


class Notes:
    """Collects findings."""

    def __init__(self):
        self.lines = []
        self.findings = probe.Findings(lambda line: self.lines.append(json.loads(line)))

    @property
    def problems(self):
        return [(line["problem"], line["stops"]) for line in self.lines if "problem" in line]

    @property
    def facts(self):
        return {line["fact"]: line["value"] for line in self.lines if "fact" in line}


def test_a_kind_that_was_asked_for_and_is_not_usable_stops(monkeypatch):
    monkeypatch.setattr(probe, "import_packages", lambda found: {"torch": torch})
    monkeypatch.setattr(device, "fault", lambda kind: host.Fault("broken", "mend it"))
    notes = Notes()
    probe.probe("npu", notes.findings)
    assert notes.problems == [("broken", True)]
    assert "device" not in notes.facts


def test_with_auto_an_unusable_kind_is_a_note_and_the_next_is_taken(monkeypatch):
    monkeypatch.setattr(probe, "import_packages", lambda found: {"torch": torch})
    faults = {"npu": host.Fault("broken", "mend it"),
              "cuda": host.Fault("not here", "buy one", is_meant=False)}
    monkeypatch.setattr(device, "fault", faults.get)
    notes = Notes()
    probe.probe("auto", notes.findings)
    assert notes.problems == [("broken", False)]
    assert notes.facts["device"] == "cpu"


def test_an_unknown_kind_is_told_with_those_there_are(monkeypatch):
    monkeypatch.setattr(probe, "import_packages", lambda found: {"torch": torch})
    notes = Notes()
    probe.probe("tpu", notes.findings)
    assert notes.lines[-1] == {"problem": "there is no --device tpu",
                               "remedy": "use auto, npu, cuda, cpu", "stops": True}


def test_a_package_that_is_missing_is_told_by_its_name_on_the_index(monkeypatch):
    monkeypatch.setattr(probe, "PACKAGES", (("json", "json", ""), ("no_such_one", "nso", ""),))
    notes = Notes()
    assert list(probe.import_packages(notes.findings)) == ["json"]
    assert notes.lines[-1]["remedy"] == "pip install nso"
    assert notes.problems == [("No module named 'no_such_one'", True)]


def test_a_package_that_is_too_old_is_told(monkeypatch):
    monkeypatch.setattr(probe, "PACKAGES", (("torch", "torch", "99.1"),))
    notes = Notes()
    probe.import_packages(notes.findings)
    assert notes.problems == [(f"torch {torch.__version__} is too old", True)]
    assert probe.numbers("0.9.16+cpu") > probe.numbers("0.9.2")


def test_a_device_that_calculates_wrongly_is_found(monkeypatch):
    probe.check_kernel(device.select("cpu"))
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda images, weights: torch.zeros(1))
    with pytest.raises(RuntimeError, match="a convolution of ones gave 0.0, not 3888"):
        probe.check_kernel(device.select("cpu"))


def test_a_missing_collective_library_is_a_note():
    notes = Notes()
    probe.collectives(device.Device("cpu", 0, None, "nosuchlib"), notes.findings)
    assert notes.problems == [("this PyTorch has no nosuchlib", False)]

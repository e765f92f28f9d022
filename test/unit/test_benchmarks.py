"""The benchmarks: that each runs, and tells what it found. How fast anything is, is not tested.

All of it happens in this process; where a benchmark starts scripts, what these print is made up,
and their command lines are read by the parsers that would read them.
"""
import argparse
import importlib.util
import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from mobilenetv3 import config, data, dist, logfmt
from mobilenetv3 import device as devices
from mobilenetv3 import options as all_options
from mobilenetv3.data import prepare

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SHARED = ("fetching", "measure", "pictures", "processes")
KEYS = {"name", "images_per_second", "ratio", "ratio_to"}


@pytest.fixture()
def script(monkeypatch):
    """script("train") -> the module benchmarks/train.py; nothing of it stays in this process."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in SHARED:
        monkeypatch.delitem(sys.modules, name, raising=False)
    threads = torch.get_num_threads()

    def load(name):
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}",
                                                      str(BENCHMARKS / f"{name}.py"))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    yield load
    torch.set_num_threads(threads)
    for name in SHARED:
        sys.modules.pop(name, None)


@pytest.fixture()
def measure(script):
    return script("measure")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """An ImageFolder of two classes with four small JPEGs each."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(8):
        path = folder / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.effect_noise((48, 40), 20 + number).convert("RGB").save(path)
    return folder


@pytest.fixture()
def rows_of(monkeypatch, tmp_path):
    """rows_of(module, arguments...) -> the rows that its main() writes."""
    def run(module, *arguments):
        file = tmp_path / "rows.json"
        monkeypatch.setattr(sys, "argv", ["benchmark", "--json", str(file), *map(str, arguments)])
        module.main()
        rows = json.loads(file.read_text())
        assert rows and all(set(row) >= KEYS and row["images_per_second"] > 0 for row in rows)
        return {(row["name"], row["ratio_to"]): row for row in rows}
    return run


# ---- measure.py


def parsed(measure, *arguments):
    return measure.add_options(argparse.ArgumentParser(), seconds=6).parse_args(arguments)


def test_cases_take_turns_and_ratios_are_within_a_round(measure):
    order, machine = [], iter([1, 1, 0.5, 0.5, 1, 1])  # in the second round it is half as fast

    def case(name, rate):
        def take(seconds):
            order.append((name, seconds))
            return rate * next(machine)
        return take
    rates = measure.take_turns({"ours": case("ours", 30), "theirs": case("theirs", 20)},
                               parsed(measure, "--rounds", "3"))
    assert order == [("ours", 2.0), ("theirs", 2.0)] * 3  # 6 seconds a case in 3 rounds
    ours, theirs = measure.rows(rates, "theirs")
    assert ours == {"name": "ours", "images_per_second": 30, "ratio": 1.5, "ratio_to": "theirs",
                    "ratio_lowest": 1.5, "ratio_highest": 1.5}
    assert theirs["ratio"] == 1.0
    assert measure.lead(rates, "ours", ["theirs"]) == (1.5, "theirs")


def test_a_case_that_cannot_run_is_told_with_its_reason(measure, capsys):
    def absent():
        raise measure.Skipped("it is not installed")
    cases, skipped = measure.prepare({"ours": lambda: lambda seconds: 5.0, "theirs": absent})
    rows = measure.rows(measure.take_turns(cases, parsed(measure)), "theirs")
    assert rows[0]["ratio"] is None  # there is nothing to compare with
    measure.report(rows, skipped, None)
    out = capsys.readouterr().out
    assert "| ours | 5.0 | - | - |" in out
    assert "theirs: skipped, it is not installed" in out


def test_groups_of_cases_have_bases_of_their_own(measure):
    rows = measure.rows({"a1": [2.0], "b1": [1.0], "a2": [6.0], "b2": [2.0]},
                        {"a1": "b1", "b1": "b1", "a2": "b2", "b2": "b2"})
    assert [row["ratio"] for row in rows] == [2.0, 1.0, 3.0, 1.0]
    assert "| a2 | 6.0 | 3.000 | 3.000 - 3.000 | b2 |" in measure.markdown(rows)


def test_numbers_stand_to_the_right_in_tables(measure):
    table = measure.grid([["option", "cost", "share"], ["--aa", "+12", "-"], ["no", "-0.5", "9%"]])
    assert table.splitlines()[1] == "| --- | ---: | ---: |"


def test_a_rate_counts_whole_steps_by_the_clock_it_is_given(measure):
    ticks = iter([10.0, 14.0])
    done = []
    found = measure.rate(lambda: done.append(1), 0.01, 8, clock=lambda: next(ticks))
    assert found == 8 * len(done) / 4.0


@pytest.mark.parametrize("arguments", [("--seconds", "0"), ("--seconds", "nan"), ("--rounds", "0")])
def test_no_time_and_no_rounds_are_refused(measure, arguments):
    with pytest.raises(SystemExit) as ended:
        parsed(measure, *arguments)
    assert ended.value.code == 2


# ---- data.py


QUICK = ("--seconds", 0.02, "--rounds", 1, "--batch_size", 4, "--img_size", 32)


def test_data_compares_what_is_installed(script, images, rows_of, capsys, monkeypatch):
    data = script("data")
    monkeypatch.setattr(data.pictures.subprocess, "run", prepare_here)
    found = rows_of(data, *QUICK, "--images", images, "--prepared_size", 36)
    names = {name for name, _ in found}
    assert {data.PIL_PRESET, "this package, --decode exact"} <= names
    assert names | skipped(capsys) == set(data.CASES)
    assert (data.PREPARED in names) == (data.OURS in names)  # both need simplejpeg alone


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux for CPU times")
def test_data_counts_loader_processes(script, images, rows_of, capsys, monkeypatch):
    data = script("data")
    for name in [name for name in data.CASES if name not in (data.OURS, data.PIL_PRESET)]:
        del data.CASES[name]
    data.CASES["DALI on the CPU"] = data.by_dali
    spent = {}
    asked = data.fetching.of_process
    monkeypatch.setattr(data.fetching, "of_process",
                        lambda process: spent.setdefault(process, []).append(1) or asked(process))
    rows_of(data, *QUICK, "--images", images, "--workers", 1)
    out = capsys.readouterr().out
    assert "1 worker(s), their CPU time and this process's" in out
    assert "DALI on the CPU: skipped, it has threads in the place of loader processes" in out
    # One loader process a case, asked before and after its one turn.
    cases = 2 if data.decode.is_available() else 1
    assert [len(times) for times in spent.values()] == [2] * cases


def test_the_cpu_time_of_a_process_is_read_from_the_system(script):
    if not Path("/proc/self/stat").exists():
        pytest.skip("asks Linux for CPU times")
    found = script("data").fetching.of_process(os.getpid())
    assert abs(found - time.process_time()) < 0.5


@pytest.mark.parametrize("name", ["data", "train", "scale"])
@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_without_images_is_told_in_a_sentence(
        script, tmp_path, monkeypatch, name, is_there):
    if is_there:
        (tmp_path / "images").mkdir()
    part = ["--part", "ranks"] if name == "scale" else []
    monkeypatch.setattr(sys, "argv", [
        f"{name}.py", "--images", str(tmp_path / "images"), "--rounds", "1", *part])
    with pytest.raises(SystemExit) as ended:
        script(name).main()
    assert "images" in str(ended.value.code)


def skipped(capsys):
    """Names of the cases that were told to be skipped."""
    lines = capsys.readouterr().out.splitlines()
    return {line.partition(": skipped, ")[0] for line in lines if ": skipped, " in line}


def prepare_here(command, **_):
    """In the place of a process: the same command in this one."""
    assert command[1:3] == ["-m", "mobilenetv3.data.prepare"]
    prepare.main(prepare.parser().parse_args([*command[3:], "--workers", "0"]))
    return argparse.Namespace(returncode=0)


def test_data_tells_what_augmentation_costs(script, images, rows_of, capsys):
    data = script("data")
    found = rows_of(data, *QUICK, "--images", images, "--augment")
    assert {name for name, _ in found} == set(data.AUGMENTED)
    assert found[data.PLAIN, data.PLAIN]["ratio"] == 1.0
    assert "| microseconds an image |" in capsys.readouterr().out


# ---- ddp.py


def test_ddp_compares_settings(script, tmp_path, capsys, monkeypatch):
    ddp = script("ddp")
    monkeypatch.setattr(sys, "argv", [
        "ddp.py", "--seconds", "0.01", "--rounds", "1", "--model", "mobilenetv3_small_050",
        "--batch_size", "2", "--img_size", "32", "--json", str(tmp_path / "rows.json"),
    ])
    for name in list(ddp.SETTINGS)[4:]:  # bucket sizes: more of the same
        del ddp.SETTINGS[name]
    torch.distributed.init_process_group(
        "gloo", init_method=(tmp_path / "meeting").as_uri(), rank=0, world_size=1)
    try:
        ddp.compare(ddp.arguments(), dist.ranks(), devices.select("cpu"))
    finally:
        torch.distributed.destroy_process_group()
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows[0]["name"] == rows[0]["ratio_to"] and rows[0]["ratio"] == 1.0
    assert {row["name"] for row in rows} | skipped(capsys) == set(ddp.SETTINGS)


# ---- train.py, and the loops that it starts


def fps_line(rate):
    return f"something else\n{logfmt.Throughput(rate).line()}\n"


@pytest.fixture()
def pretend(monkeypatch):
    """Replaces the processes of a benchmark; their command lines are kept."""
    def replace(module, answer):
        commands = []

        def run(*command, threads=1, cpu_time=False):
            commands.append([str(part) for part in command])
            return answer(commands[-1])
        monkeypatch.setattr(module.processes, "run", run)
        return commands
    return replace


def understood(command):
    """What train.py reads from a command line that begins with its own options."""
    return config.parse(all_options.train_parser(), command)


def test_train_compares_with_timm_and_with_its_own_bare_step(script, images, rows_of, pretend):
    train = script("train")
    rates = {"bare": 100.0, "timm": 50.0}
    commands = pretend(train, lambda command: fps_line(99.0) if "train.py" in command[0]
                       else json.dumps({"images_per_second": rates[command[1]]}))
    train.has_timm = lambda: True  # the processes are made up
    found = rows_of(train, "--images", images, "--seconds", 1, "--rounds", 1, "--batch_size", 4,
                    "--models", "mobilenetv3_small_050", "--layouts", "channels_last", "--workers",
                    1, "--precisions", "bf16", "--ema", "--", "--smoothing", "0.1")
    label = "mobilenetv3_small_050 bf16 channels_last, 1 workers: "
    assert found[label + "train.py", label + "timm"]["ratio"] == pytest.approx(99 / 50)
    assert found[label + "train.py", label + "bare step"]["ratio"] == pytest.approx(0.99)
    own = next(command for command in commands if "train.py" in command[0])
    cfg = understood(own[1:])
    assert (cfg.model_ema, cfg.channels_last, cfg.amp_dtype, cfg.apex_opt_level, cfg.smoothing) == (
        True, True, "bfloat16", "O1", 0.1)
    # A turn of 1 s at 100 images/s is 25 steps of 4, and they are one epoch.
    assert cfg.max_steps == 25
    theirs = next(command for command in commands if command[1] == "timm")
    chosen = script("loops").timm_options(theirs[2:])
    assert (chosen.steps, chosen.workers, chosen.dtype, chosen.ema) == (25, 1, "bfloat16", True)
    bare = next(command for command in commands if command[1] == "bare")
    assert understood(bare[3:]).model == cfg.model


def test_an_epoch_is_as_long_as_a_turn(script, images, tmp_path):
    pictures = script("pictures")
    folder = pictures.lay_out(pictures.gather(str(images), tmp_path), tmp_path / "set", 20)
    found = sorted(folder.glob("train/*/*.jpg"))
    assert len(found) == 24  # 8 images, thrice
    assert all(path.read_bytes() for path in found)
    assert len(list(folder.glob("val/*/*.jpg"))) == 8


def test_a_benchmark_without_images_makes_a_set_that_train_takes(script, tmp_path):
    """It made one class, with which there is nothing to tell apart."""
    pictures = script("pictures")
    made = pictures.lay_out(pictures.gather(None, tmp_path), tmp_path / "set", 64)
    for split in ("train", "val"):
        found = data.open_source("folder", str(made), split)
        assert (len(found.classes), len(found.samples)) == (2, 64)
        assert min(found.samples[5][0].size) >= 225  # the shortest side of pictures.SIZES


def test_images_are_made_smaller_but_never_larger(script, images, tmp_path):
    classes = script("pictures").gather(str(images), tmp_path, side=20)
    for paths in classes.values():
        assert {Image.open(path).size for path in paths} == {(24, 20)}  # of 48 x 40
    larger = tmp_path / "larger"
    larger.mkdir()
    for paths in script("pictures").gather(str(images), larger, side=64).values():
        assert {Image.open(path).size for path in paths} == {(48, 40)}


def test_timms_loop_runs(script, images, tmp_path, capsys):
    if not script("train").has_timm():
        pytest.skip("timm's transforms need a newer torchvision")
    pictures, loops = script("pictures"), script("loops")
    folder = pictures.lay_out(pictures.gather(str(images), tmp_path), tmp_path / "set", 8)
    loops.by_timm(loops.timm_options([
        "2", "--images", str(folder), "--model", "mobilenetv3_small_050", "--batch_size", "4",
        "--img_size", "32", "--workers", "0", "--channels_last", "--ema"]))
    assert json.loads(capsys.readouterr().out)["images_per_second"] > 0


def test_a_process_that_fails_is_told_with_its_last_words(script, tmp_path):
    processes = script("processes")
    path = tmp_path / "broken.py"
    path.write_text("raise SystemExit('out of luck')")
    with pytest.raises(processes.Failed, match=r"broken.py ended with status 1: out of luck"):
        processes.run(path)
    with pytest.raises(processes.Failed, match="no FPS"):
        processes.fps("=> nothing was measured")


# ---- scale.py, and the null model that it starts


def test_scale_tells_efficiency_of_as_many_ranks_as_there_are_cores(script, images, rows_of,
                                                                    pretend, capsys):
    scale = script("scale")
    speed = {"1": 10.0, "2": 18.0, "64": 15.0}

    def answer(command):
        ranks = next(part for part in command if "nproc" in part).partition("=")[2]
        return fps_line(speed[ranks])
    commands = pretend(scale, answer)
    scale.measure.cpus = lambda: 2
    found = rows_of(scale, "--part", "ranks", "--ranks", 1, 2, 64, "--images", images, "--rounds",
                    1, "--batch_size", 4, "--steps", 2)
    assert found["2 ranks", "1 rank"]["ratio"] == pytest.approx(1.8)
    out = capsys.readouterr().out
    assert "| 2 | 18.0 | 1.80 | 90% |" in out
    assert "| 64 | 15.0 | 1.50 |  | more ranks than cores: nothing breaks |" in out
    command = commands[1]
    start = next(number for number, part in enumerate(command) if part.endswith("train.py"))
    assert understood(command[start + 1 :]).batch_size == 8  # 4 a rank


def test_scale_tells_the_cores_that_cards_need(script, images, rows_of, monkeypatch, capsys):
    scale = script("scale")
    told = {"images": 100, "seconds": 1.0, "waited": 0.002, "cpu_seconds": 0.5}

    class Ranks:
        def __init__(self, options, data, count):
            self.processes = [None] * count

        def run(self, seconds, rate=0.0):
            return [dict(told, cpu_seconds=1.0 if len(self.processes) > 1 else 0.5)
                    for _ in self.processes]

        def close(self):
            pass
    monkeypatch.setattr(scale, "Ranks", Ranks)
    monkeypatch.setattr(scale.measure, "cpus", lambda: 2)
    monkeypatch.setattr(scale.pictures, "prepare", lambda *_: images)
    found = rows_of(scale, "--part", "data", "--images", images, "--rounds", 1, "--rate", 50,
                    "--cards", 8)
    # One rank: 100 images in half a second of CPU time; two: 100 in a second each.
    assert found["raw JPEGs, 1 busy", "raw JPEGs, 1 busy"]["images_per_second"] == 200
    assert found["raw JPEGs, 2 busy", "raw JPEGs, 1 busy"]["ratio"] == 0.5
    out = capsys.readouterr().out
    assert "| raw JPEGs | 200 | 100 | 4.0 |" in out  # 8 x 50 / 100
    assert "| raw JPEGs | 200 | 200 | 0.2% |" in out


def test_the_null_model_takes_its_time(script, images):
    null = script("nullmodel")
    null.EPOCH = 64
    options = argparse.Namespace(data=str(images), rank=0, world=1, workers=0, batch_size=4,
                                 img_size=32)
    found, loader = null.batches(options)
    told = null.consume(found, loader, 0.1, rate=100.0)
    # 4 images take 40 ms to compute: three steps fill a tenth of a second, if the host is not slow.
    assert told["images"] <= 12 and told["seconds"] >= told["images"] / 100.0
    assert 0 <= told["waited"] <= told["seconds"]
    assert null.consume(found, loader, 0.01, rate=0.0)["cpu_seconds"] >= 0


# ---- same.py


def test_same_compares_losses_and_accuracies(script, rows_of, pretend, capsys):
    same = script("same")

    def answer(command):
        if command[1] == "losses":
            apart = 0.25 if "--channels_last=true" in command else 0.0
            return json.dumps({"losses": [2.0 + apart, 1.0]})
        return "\n".join([fps_line(100.0), logfmt.Accuracy(
            62.0 if "--channels_last=true" in command else 60.0, 90.0).line()])
    commands = pretend(same, answer)
    found = rows_of(same, "--steps", 2, "--seeds", 1, 2, "--epochs", 1)
    assert found["all on, seed 2", "all off, seed 2"]["acc1"] == 62.0
    out = capsys.readouterr().out
    assert "| --decode=fast | equal | equal |" in out
    assert "| --channels_last=true | 2.5e-01 | 2.5e-01 |" in out
    assert "| fast_backward | equal | equal |" in out
    assert "| all on | 62.00 | 62.00 | 62.00 | 0.00 |" in out
    for command in commands:  # every option is one of train.py's
        given = command[3:] if command[1] == "losses" else command[2:]
        understood([option for option in given if option != "--plain_backward"])
    assert sum("--plain_backward" in command for command in commands) == 7 + 2  # of 9 and 4


def test_images_are_unpacked_and_nothing_outside_of_its_folder(script, tmp_path):
    import tarfile

    pictures, archive = script("pictures"), tmp_path / "set.tar.gz"
    with tarfile.open(str(archive), "w:gz") as file:
        for name in ("set/train/a/1.jpg", "set/val/a/2.jpg", "../outside.jpg"):
            file.addfile(tarfile.TarInfo(name))
    root = pictures.unpack(archive, tmp_path / "unpacked")
    assert sorted(path.name for path in root.glob("*/*/*")) == ["1.jpg", "2.jpg"]
    assert not (tmp_path / "outside.jpg").exists()

"""benchmarks/accuracy.py and its parts: what they compare, what they count, what they write."""
import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from mobilenetv3 import device as devices

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
MODULES = ("accuracy", "budget", "changes", "measure", "parity", "pictures", "processes",
           "timm_run")


@pytest.fixture()
def module(monkeypatch):
    """module("budget") -> benchmarks/budget.py; nothing of it stays in this process."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)
    for name in MODULES:
        sys.modules.pop(name, None)


# ---- parity.py


@pytest.mark.parametrize("recipe", ["sgd", "rmsproptf", "adamw"])
def test_a_plain_loop_of_timms_parts_takes_the_same_steps(recipe, module, monkeypatch):
    """With dropout, skipped blocks, erasing and RandAugment. Rounding differs by 1e-7 a sum."""
    parity = module("parity")
    monkeypatch.setattr(parity, "BATCH", 16)
    result = parity.compare(recipe, None, 4, fast=False)
    assert len(result["ours"]) == len(result["timm"]) == 4
    assert len(set(result["ours"])) == 4  # something is learnt from other images each time
    assert result["loss_apart"] <= 1e-5
    assert result["weights_apart"] <= 1e-5
    assert result["average_apart"] <= 1e-5


def test_a_plain_loop_with_another_learning_rate_is_found_to_differ(module, monkeypatch):
    parity = module("parity")
    monkeypatch.setattr(parity, "BATCH", 16)
    record = parity.record
    recipe = dict(parity.RECIPES["sgd"])

    def other(*arguments):
        found = record(*arguments)
        recipe["lr"] *= 1.01
        return found
    monkeypatch.setattr(parity, "record", other)
    monkeypatch.setitem(parity.RECIPES, "sgd", recipe)
    assert parity.compare("sgd", None, 3, fast=False)["weights_apart"] > 1e-6


# ---- budget.py


def case(budget, is_ours):
    recipe = "cifar10_mobilenetv3_small_100.yaml" if is_ours else "defaults"
    return budget.Case("a", "mobilenetv3_small_100", recipe, 32, is_ours)


@pytest.fixture()
def grows(module, monkeypatch):
    """budget.py, where our images have 32 pixels for the first 70 % of a run, then 48."""
    budget = module("budget")

    def sizes(case, epochs):
        return [[32, 0], [48, epochs * 7 // 10]] if case.is_ours else [[32, 0]]
    monkeypatch.setattr(budget, "sizes", sizes)
    return budget


def test_epochs_fill_a_budget_and_only_the_others_may_overdraw_it(module, monkeypatch):
    budget = module("budget")
    monkeypatch.setattr(budget, "sizes", lambda case, epochs: [[32, 0]])
    # 10 minutes, of which 1 goes before the first step, are 4.5 epochs of 20 steps.
    cost = budget.Cost(1, {32: 0.1})
    assert budget.epochs_in(case(budget, True), 10, cost, 20) == 4
    assert budget.epochs_in(case(budget, False), 10, cost, 20) == 5
    assert budget.epochs_in(case(budget, True), 1, cost, 20) == 1
    # 11 minutes are 5 epochs to the last second.
    assert budget.epochs_in(case(budget, True), 11, cost, 20) == 5
    assert budget.epochs_in(case(budget, False), 11, cost, 20) == 5


def test_each_epoch_costs_what_its_images_do(grows):
    cost = grows.Cost(1, {32: 0.1, 48: 0.2})
    # 10 epochs: 7 of 2 minutes, 3 of 4; the eleventh is of 4.
    assert grows.minutes_of(case(grows, True), 10, cost, 20) == pytest.approx(1 + 7 * 2 + 3 * 4)
    assert grows.epochs_in(case(grows, True), 30, cost, 20) == 10
    assert grows.epochs_in(case(grows, True), 31.5, cost, 20) == 11


def test_the_sizes_of_a_case_are_those_that_its_command_trains(module):
    from mobilenetv3 import build, config, options

    accuracy, budget = module("accuracy"), module("budget")
    for model in ("mobilenetv3_small_100", "mobilenetv3_large_100"):
        own, place = accuracy.own(model), budget.Place("images", "cpu", 0, Path("x"))
        for epochs in (3, 30):
            command = budget.train_command(own, place, 7, epochs, Path("run"))
            cfg = config.parse(options.train_parser(), list(map(str, command[1:])))
            assert budget.sizes(own, epochs) == build.sides(cfg)
            assert build.sides(cfg)[-1][0] == own.img_size
    assert budget.sizes(accuracy.peers_of(model)[1], 5) == [[64, 0]]


def test_a_cost_is_told_apart_from_the_start_even_of_short_epochs(module, monkeypatch, tmp_path):
    """A run of one epoch ended before the steps it was to be measured by."""
    budget = module("budget")
    for number in range(600):  # five batches of 128
        path = tmp_path / "train" / "a" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")

    def spend(command, device):
        epochs, steps = (command[command.index(name) + 1] for name in ("--epochs", "--max_steps"))
        return budget.Spent("", 0.5 + 0.01 * min(steps, 5 * epochs))
    monkeypatch.setattr(budget, "spend", spend)
    for device in ("cpu", "cuda"):
        place = budget.Place(str(tmp_path), device, 0, tmp_path)
        cost = budget.cost(case(budget, False), place)
        assert (cost.fixed, cost.steps) == (pytest.approx(0.5), {32: pytest.approx(0.01)})
    # train.py leaves the last batch of 256 out, for it is not whole; timm's loader does not.
    assert [budget.batches(case(budget, is_ours), str(tmp_path)) for is_ours in (True, False)] == [
        2, 5]


def test_the_cost_of_images_that_grow_is_measured_at_each_size_and_has_the_scoring(
        grows, monkeypatch, tmp_path):
    from mobilenetv3 import build, config, options

    def spend(command, device):
        if Path(command[0]).name == "validate.py":
            return grows.Spent("", 0.25)
        cfg = config.parse(options.train_parser(), list(map(str, command[1:])))
        ((side, _),) = build.sides(cfg)
        return grows.Spent("", 0.5 + 0.001 * side * cfg.max_steps)
    monkeypatch.setattr(grows, "spend", spend)
    # One epoch has all the steps, and is less than the recipe's warm-up.
    monkeypatch.setattr(grows, "batches", lambda case, images: 1000)
    ours = case(grows, True)._replace(img_size=48)
    cost = grows.cost(ours, grows.Place("images", "cpu", 0, tmp_path))
    assert cost.fixed == pytest.approx(0.5 + 0.25)
    assert cost.steps == {32: pytest.approx(0.032), 48: pytest.approx(0.048)}


def test_a_cost_that_the_noise_of_the_machine_hides_is_an_error(module, monkeypatch, tmp_path):
    budget, processes = module("budget"), module("processes")
    spent = iter([2.0, 1.0])
    monkeypatch.setattr(budget, "batches", lambda case, images: 100)
    monkeypatch.setattr(budget, "spend", lambda command, device: budget.Spent("", next(spent)))
    with pytest.raises(processes.Failed, match="120 steps took no longer than 20"):
        budget.cost(case(budget, False), budget.Place("images", "cpu", 0, tmp_path))


def test_minutes_are_cpu_time_and_a_failure_is_told(module):
    budget, processes = module("budget"), module("processes")
    spent = budget.spend(["-c", "import time; time.sleep(1); print('done')"], "cpu")
    assert spent.out == "done\n"
    assert 0 < spent.minutes < 1 / 60  # a second that slept is not one of CPU time
    assert budget.spend(["-c", "import time; time.sleep(1)"], "cuda").minutes > 1 / 60
    with pytest.raises(processes.Failed, match="no such thing"):
        budget.spend(["-c", "raise SystemExit('no such thing')"], "cpu")


def test_the_commands_are_understood(module, tmp_path, monkeypatch):
    from mobilenetv3 import config, options

    accuracy, budget = module("accuracy"), module("budget")
    place = budget.Place("images", "cpu", 0, tmp_path)
    for model in ("mobilenetv3_small_100", "mobilenetv3_large_100"):
        command = budget.train_command(accuracy.own(model), place, 7, 3, tmp_path / "run")
        cfg = config.parse(options.train_parser(), list(map(str, command[1:])))
        assert (cfg.model, cfg.epochs, cfg.seed, cfg.stem_stride) == (model, 3, 7, 1)
        for peer in accuracy.peers_of(model):
            script, *arguments = map(str, budget.train_command(peer, place, 7, 3, tmp_path))
            monkeypatch.setattr(sys, "argv", [script, *arguments])
            assert module("timm_run").arguments().recipe == peer.recipe


# ---- timm_run.py


@pytest.mark.skipif(devices.TORCH_VERSION < (2, 0), reason="timm's loader needs torchvision 0.10")
@pytest.mark.parametrize("recipe", ["defaults", "mobilenetv3"])
def test_timms_parts_train_and_score(recipe, module, tmp_path, monkeypatch, capsys):
    from PIL import Image

    for number in range(24):
        path = tmp_path / ("train", "val")[number % 2] / "ab"[number // 2 % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((32, 32), 20 + number).convert("RGB").save(path)
    run = module("timm_run")
    monkeypatch.setattr(sys, "argv", [
        "timm_run", "--images", str(tmp_path), "--model", "mobilenetv3_small_050", "--img_size",
        "32", "--recipe", recipe, "--epochs", "2", "--batch_size", "4"])
    run.main()
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["images_per_second"] > 0
    assert 0 <= told["acc1"] <= 100
    assert (told["acc1_ema"] is None) == (recipe == "defaults")


# ---- accuracy.py


def rows():
    """As a results file holds them; the numbers are made up."""
    recipe = {"part": "recipes", "model": "mobilenetv3_small_100", "minutes_given": 30,
              "minutes": 29.5, "epochs": 40, "device": "cpu"}
    change = {"part": "changes", "device": "cpu"}
    return [
        {"part": "parity", "recipe": "sgd", "steps": 200, "first_loss": 2.3, "last_loss": 1.5,
         "loss_apart": 2e-5, "weights_apart": 1e-5, "average_apart": 0.0},
        {"part": "parity", "recipe": "adamw", "steps": 200, "first_loss": 2.3, "last_loss": 1.5,
         "loss_apart": 2e-3, "weights_apart": 1e-5, "average_apart": 0.0},
        *({**recipe, "name": "this package", "seed": seed, "acc1": 88.0 + seed}
          for seed in (1, 2, 3)),
        *({**recipe, "name": "timm, defaults, 64x64", "seed": seed, "acc1": 85.0 + seed}
          for seed in (1, 2, 3)),
        *({**change, "name": "float32", "seed": seed, "acc1": 70.0 + seed} for seed in (1, 2, 3)),
        *({**change, "name": "O2", "seed": seed, "acc1": 71.0 + seed} for seed in (1, 2, 3)),
        *({**change, "name": "float32, average of the weights", "seed": seed,
           "acc1": 80.0 + seed} for seed in (1, 2)),
        *({**change, "name": "float32, stopped and resumed", "seed": seed,
           "acc1": 70.0 + seed, "same_bits": True} for seed in (1, 2, 3)),
        {**change, "name": "float32", "device": "cuda", "seed": 1, "acc1": 10.0},
    ]


def test_tables_tell_what_was_met_and_what_was_not(module, tmp_path, monkeypatch, capsys):
    accuracy, path = module("accuracy"), tmp_path / "accuracy.json"
    path.write_text(json.dumps(rows()), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["accuracy", "--json", str(path), "--parts"])
    accuracy.main()
    lines = capsys.readouterr().out.splitlines()
    cells = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
             for line in lines if line.startswith("| ") and "| cuda |" not in line}
    assert cells["sgd"][-1] == "yes"
    assert cells["adamw"][-1] == "NO"
    # The mean of 89, 90 and 91 is 90, their deviation 1; timm's mean is 87.
    ours = "| cpu | this package | 30 | 29.50 ± 0.00 | 40 | 1, 2, 3 | 90.00 ± 1.00 | +3.00 |"
    assert any(ours in line for line in lines)
    # Two means of three values that deviate by 1 differ by noise up to 2 sqrt(1/3 + 1/3) = 1.63.
    assert cells["O2"] == ["cpu", "1, 2, 3", "73.00 ± 1.00", "+1.00", "yes (± 1.63)"]
    # To float32 with the seeds 1 and 2, not with all three: 2 sqrt(0.5/2 + 0.5/2) = 1.41.
    assert cells["float32, average of the weights"][-2:] == ["+10.00", "NO (± 1.41)"]
    assert cells["float32, stopped and resumed"][-2:] == ["+0.00", "the same bits"]


def test_what_a_results_file_holds_is_not_done_again(module, tmp_path, monkeypatch, capsys):
    accuracy, budget = module("accuracy"), module("budget")
    for split in ("train", "val"):
        (tmp_path / "images" / split / "a").mkdir(parents=True)
    for number in range(300):
        (tmp_path / "images" / "train" / "a" / f"{number}.jpg").write_bytes(b"")
    trained = []

    def run(case, place, seed, epochs):
        trained.append((case.key, seed, epochs))
        good = case.recipe == "mobilenetv3" and case.img_size == 64
        return {"acc1": 80.0 + good, "minutes": 1.0, "epochs": epochs, "seed": seed}
    monkeypatch.setattr(budget, "cost", lambda case, place: budget.Cost(
        0.5, {side: 0.01 for side, _ in budget.sizes(case, 1000)}))
    monkeypatch.setattr(budget, "run", run)
    path = tmp_path / "accuracy.json"
    argv = ["accuracy", "--json", str(path), "--images", str(tmp_path / "images"), "--parts",
            "recipes", "--models", "mobilenetv3_small_100", "--minutes", "3", "--seeds", "1", "2"]
    monkeypatch.setattr(sys, "argv", argv)
    accuracy.main()
    best = "mobilenetv3_small_100, timm, mobilenetv3, 64x64"
    assert [key for key, seed, _ in trained[-4:]].count(best) == 2  # what 4 minutes chose
    assert len(trained) == 4 + 4
    # 3 minutes less half a one are 250 steps: of timm's, 3 an epoch, 84 epochs.
    assert {epochs for key, _, epochs in trained[-4:] if key == best} == {84}
    lines = capsys.readouterr().out.splitlines()
    assert sum("timm, mobilenetv3, 64x64" in line for line in lines) == 1
    accuracy.main()
    assert len(trained) == 8  # nothing was done again
    monkeypatch.setattr(sys, "argv", [*argv, "3"])
    accuracy.main()
    assert sorted(seed for _, seed, _ in trained[8:]) == [3, 3]


@pytest.mark.parametrize("page", ["accuracy.md", "accuracy.zh-CN.md"])
def test_the_tables_of_the_page_are_those_of_the_results(page, module):
    accuracy, docs = module("accuracy"), BENCHMARKS.parent / "docs"
    store = accuracy.Store(docs / "accuracy.json")
    text = (docs / page).read_text(encoding="utf-8")
    assert store.rows
    assert accuracy.filled(text, store) == text, "python benchmarks/accuracy.py --pages writes it"
    for part in accuracy.TABLES:
        assert not store.of(part) or f"<!-- {part} -->\n\n|" in text


def test_work_without_images_is_refused(module, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["accuracy", "--json", str(tmp_path / "a.json")])
    with pytest.raises(SystemExit, match="needs --images"):
        module("accuracy").main()


# ---- changes.py


def test_a_network_is_fine_tuned_on_classes_that_it_has_not_seen(module, tmp_path):
    changes = module("changes")
    for split, count in (("train", 5), ("val", 3)):
        for label in "abcd":
            for number in range(count):
                path = tmp_path / "images" / split / label / f"{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"")
    base, fine = changes.halves(tmp_path / "images", tmp_path / "halves", per_class=2)
    assert sorted(path.name for path in (base / "train").iterdir()) == ["a", "c"]
    assert sorted(path.name for path in (fine / "train").iterdir()) == ["b", "d"]
    assert len(list((base / "train").rglob("*.jpg"))) == 2 * 5
    assert len(list((fine / "train").rglob("*.jpg"))) == 2 * 2
    assert len(list((fine / "val").rglob("*.jpg"))) == 2 * 3  # every validation image is scored


def test_a_resumed_run_has_one_to_be_compared_with_even_if_its_row_is_old(
        module, tmp_path, monkeypatch):
    """The weights of an earlier start of the benchmark are gone, and "the same bits" went, too."""
    changes, trained, noted = module("changes"), [], []

    def fine_tune(way, weights, place, output, seed, device):
        output.mkdir()
        trained.append((way, seed))
        return 50.0
    monkeypatch.setattr(changes, "halves", lambda *_: ("base", "fine"))
    monkeypatch.setattr(changes, "base_weights", lambda *_: "weights")
    monkeypatch.setattr(changes, "fine_tune", fine_tune)
    monkeypatch.setattr(changes, "same_weights", lambda one, other: one.is_dir())
    done = [{"name": way, "seed": 1} for way in changes.WAYS if way != changes.RESUMED]
    changes.compare("images", tmp_path, [1], "cpu", 10, done, noted.append)
    assert trained == [(changes.RESUMED, 1), (changes.FLOAT32, 1)]
    assert noted == [{"name": changes.RESUMED, "seed": 1, "acc1": 50.0, "same_bits": True}]

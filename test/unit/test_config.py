"""Configurations: YAML files, precedence, what options mean together, saving, the shipped files."""
import re
from pathlib import Path

import pytest
import yaml

from mobilenetv3 import config, options

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
ASCEND = ROOT / "configs" / "mobilenetv3"


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)


@pytest.fixture
def write(tmp_path):
    def write(text, name="c.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
        return str(path)

    return write


def parse(*argv):
    return config.parse(options.train_parser(), argv)


def validate(*argv):
    return config.parse(options.validate_parser(), argv)


def error_of(capsys, *argv, parse=parse):
    with pytest.raises(SystemExit) as exit_:
        parse(*argv)
    lines = capsys.readouterr().err.splitlines()
    assert exit_.value.code == 2 and len(lines) == 2, lines
    return lines[1].split(": error: ", 1)[1]


# ---------------------------------------------------------------------------------- YAML files


def test_a_file_gives_defaults_and_the_command_line_wins(write):
    path = write("lr: 0.5\nepochs: 7\napex: true\n")
    cfg = parse("DIR", "-c", path, "--epochs=3", "--no-apex")
    assert (cfg.lr, cfg.epochs, cfg.apex, cfg.momentum) == (0.5, 3, False, 0.9)
    assert cfg.config == path


def test_what_is_typed_wins_even_where_it_equals_the_default(write):
    assert parse("DIR", "-c", write("lr: 0.5"), "--lr", "0.1").lr == 0.1


@pytest.mark.parametrize("key", ["batch_size", "batch-size"])
def test_keys_may_have_dashes(write, key):
    assert parse("DIR", "-c", write(f"{key}: 6")).batch_size == 6


@pytest.mark.parametrize("line, name, value", [
    ("learning-rate: 0.3", "lr", 0.3),
    ("arch: mobilenet", "model", "mobilenet"),
    ("data: /d", "data_path", "/d"),
    ("wd: 1e-5", "weight_decay", 1e-5),  # text to PyYAML
    ("lr: 1", "lr", 1.0),
    ("decay_epochs: 2.4", "decay_epochs", 2.4),
    ("scale: [0.2, 1]", "scale", [0.2, 1.0]),
    ("mean: null", "mean", None),
    ("aa: rand-m9-mstd0.5", "aa", "rand-m9-mstd0.5"),
    ("loss_scale: 1024", "loss_scale_value", 1024.0),
    ("loss_scale: dynamic", "loss_scale_value", "dynamic"),
    ("pretrained: true", "pretrained", True),
    ("pretrained: w.pth", "pretrained", "w.pth"),
])
def test_a_key_may_be_any_spelling_and_its_value_gets_the_options_type(write, line, name, value):
    found = getattr(parse("DIR" if "/d" not in line else "--epochs=1", "-c", write(line)), name)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "\ufeff# a byte order mark\n"])
def test_an_empty_file_gives_nothing(write, text):
    cfg = parse("DIR", "-c", write(text))
    assert vars(cfg) == {**vars(parse("DIR")), "config": cfg.config}


@pytest.mark.parametrize("text, message", [
    ("lr: 0.1\nmomentun: 0.9", "line 2: unknown key 'momentun'; did you mean momentum?"),
    ("zzz: 1", "line 1: unknown key 'zzz'"),
    ("1: 2", "line 1: unknown key 1"),
    ("no_apex: true", "line 1: unknown key 'no_apex'; did you mean apex?"),
    ("help: true", "line 1: unknown key 'help'; did you mean hflip?"),
    ("config: x.yaml", "line 1: config: a configuration file cannot name another"),
    ("lr: 0.1\nlr: 0.2", "line 2: lr: given before, as lr in line 1; keep one"),
    ("lr: 1\nlearning-rate: 1",
     "line 2: learning-rate: given before, as lr in line 1; keep one"),
    ("lr: fast", "line 1: lr: expected a positive number, got 'fast'"),
    ("lr: true", "line 1: lr: expected a positive number, got true"),
    ("lr: .nan", "line 1: lr: expected a positive number, got NaN"),
    ("lr: " + "9" * 400, "line 1: lr: expected a positive number, got " + "9" * 400),
    ("lr: [1]", "line 1: lr: expected a positive number, got [1]"),
    ("lr: {a: 1}", 'line 1: lr: expected a positive number, got {"a": 1}'),
    ("epochs: 1.5", "line 1: epochs: expected a positive integer, got 1.5"),
    ("epochs: '90'", "line 1: epochs: expected a positive integer, got '90'"),
    ("epochs: true", "line 1: epochs: expected a positive integer, got true"),
    ("epochs:", "line 1: epochs: expected a positive integer, got null"),
    ("apex: 'true'", "line 1: apex: expected true or false, without quotes, got 'true'"),
    ("apex: 1", "line 1: apex: expected true or false, without quotes, got 1"),
    ("output: 5", "line 1: output: expected text (put it in quotes), got 5"),
    ("sched: cosin", "line 1: sched: expected one of step, cosine, got 'cosin'"),
    ("sched: off", "line 1: sched: expected one of step, cosine, got false"),
    ("scale: 0.5", "line 1: scale: expected a list of 2, got 0.5"),
    ("mean: [0.5, 0.5]", "line 1: mean: expected a list of 3, got [0.5, 0.5]"),
    ("std: [1, 1, 0]", "line 1: std: expected a number above 0, up to 1, got 0"),
    ("lr: [1", "line 1: not valid YAML: expected ',' or ']', but got '<stream end>'"),
    ("model: !!python/object:os.system x", "line 1: not valid YAML: could not determine a "
     "constructor for the tag 'tag:yaml.org,2002:python/object:os.system'"),
    ("a: 1\n---\nb: 2", "line 2: not valid YAML: but found another document"),
    ("output: 2024-13-45", "line 1: not valid YAML: month must be in 1..12"),
    ("lr: &x [*x]", "line 1: expected the value of an option, got one that is too large or nested "
     "without end"),
])
def test_a_mistake_in_a_file_names_file_line_and_key(write, capsys, text, message):
    path = write(text)
    assert error_of(capsys, "DIR", "-c", path) == f"{path}, {message}"


@pytest.mark.parametrize("text, message", [
    ("- lr", "{}: expected lines of NAME: VALUE, found a sequence"),
    ("lr", "{}: expected lines of NAME: VALUE, found a scalar"),
    (b"lr: \xff", "{} is not UTF-8 text (byte 4: invalid start byte)"),
    (b"lr: \x07", "{}: not valid YAML: special characters are not allowed"),
])
def test_a_file_that_is_no_mapping_is_refused(write, capsys, text, message):
    path = write(text)
    assert error_of(capsys, "DIR", "-c", path) == message.format(path)


def test_a_missing_file_is_named(tmp_path, capsys):
    message = error_of(capsys, "-c", str(tmp_path / "none.yaml"))
    assert message == f"cannot read the configuration {tmp_path / 'none.yaml'}: " \
                      "No such file or directory"
    assert "Is a directory" in error_of(capsys, "-c", str(tmp_path))


# -------------------------------------------------------------------------- data and demo recipe


def test_without_data_the_demo_recipe_is_used_and_said(capsys):
    cfg = parse()
    assert cfg.config == str(config.DEMO_RECIPE)
    assert (cfg.dataset, cfg.model, cfg.img_size) == ("demo", "mobilenetv3_small_100", 64)
    assert cfg.hflip == 0.0  # a mirrored digit is another sign
    assert "built-in demo set" in capsys.readouterr().err


def test_the_demo_recipe_is_used_for_dataset_demo_and_yields_to_what_is_typed():
    cfg = parse("--dataset", "demo", "--epochs", "2")
    assert (cfg.config, cfg.epochs, cfg.model) == (
        str(config.DEMO_RECIPE), 2, "mobilenetv3_small_100")


def test_an_explicit_file_replaces_the_demo_recipe(write, capsys):
    cfg = parse("-c", write("lr: 0.2"))
    assert (cfg.dataset, cfg.lr, cfg.img_size) == ("demo", 0.2, 224)
    assert capsys.readouterr().err == ""


def test_a_data_path_makes_it_a_folder_of_images():
    assert parse("DIR").dataset == parse("--data_path=DIR").dataset == "folder"
    assert parse("DIR", "--dataset=imagenet").dataset == "imagenet"
    assert parse("DIR").config == ""


def test_one_data_path_may_be_given_in_two_ways_but_not_two_paths(capsys):
    assert parse("DIR", "--data_path=DIR").data_path == "DIR"
    message = error_of(capsys, "DIR", "--data", "OTHER")
    assert message == "two data paths: 'DIR' and --data_path 'OTHER'; give one"


def test_a_typed_positional_path_wins_over_the_files(write):
    assert parse("DIR", "-c", write("data_path: OTHER")).data_path == "DIR"


@pytest.mark.parametrize("dataset, layout", [
    ("folder", "train/CLASS/*.jpg"), ("imagenet", "train/CLASS/*.jpg"),
])
def test_a_data_set_without_its_path_names_the_option_and_the_layout(capsys, dataset, layout):
    message = error_of(capsys, "--dataset", dataset)
    assert "--data_path" in message and layout in message


def test_the_demo_set_takes_no_path(capsys):
    assert "--dataset folder" in error_of(capsys, "DIR", "--dataset", "demo")


# ------------------------------------------------------------------ what options mean together


@pytest.mark.parametrize("argv, message", [
    (["--mixup=0.2", "-b", "63"], "--batch_size 63: Mixup and CutMix mix images in pairs; give an "
     "even number"),
    (["--cutmix=1", "-b", "63"], "--batch_size 63: Mixup and CutMix mix images in pairs; give an "
     "even number"),
    (["--scale", "1", "0.5"], "--scale 1.0 0.5: expected the lower number first"),
    (["--ratio", "2", "1"], "--ratio 2.0 1.0: expected the lower number first"),
    (["--min-lr=1", "--lr=0.5"], "--min_lr 1 is above --lr 0.5, where the schedule starts"),
    (["--warmup-epochs=5", "--epochs=4"], "--warmup_epochs 5 is more than --epochs 4"),
    (["--start-epoch=4", "--epochs=4"], "--start_epoch 4 leaves nothing to train: epochs count "
     "from 0 and --epochs is 4"),
    (["--resume=auto"], "--resume auto takes the newest checkpoint of a run folder: add --output "
     "DIR"),
    (["--resume=a", "--ckpt_path=b"], "--resume brings its own weights; leave out --pretrained "
     "and --ckpt_path"),
    (["--resume=a", "--pretrained"], "--resume brings its own weights; leave out --pretrained and "
     "--ckpt_path"),
    (["--ckpt_path=a", "--pretrained"], "--pretrained and --ckpt_path both name the weights to "
     "start from; give one"),
    (["--evaluate"], "--evaluate needs weights to score: add --resume FILE, --ckpt_path FILE or "
     "--pretrained"),
])
def test_options_that_contradict_each_other_are_refused(capsys, argv, message):
    assert error_of(capsys, "DIR", *argv) == message


@pytest.mark.parametrize("argv", [
    ["--mixup=0.2", "-b", "64"], ["--warmup-epochs=4", "--epochs=4"], ["--min-lr=0.1"],
    ["--start-epoch=3", "--epochs=4"], ["--resume=auto", "--output=o"], ["--scale", "1", "1"],
    ["-e", "--resume=a"], ["-e", "--ckpt_path=a"], ["-e", "--pretrained"],
])
def test_what_lies_just_inside_the_bounds_is_accepted(argv):
    assert parse("DIR", *argv).data_path == "DIR"


def test_pretrained_that_swallowed_the_data_path_is_noticed(tmp_path, capsys):
    message = error_of(capsys, "--pretrained", str(tmp_path))
    assert "--data_path" in message and "folder" in message


@pytest.mark.parametrize("typed, kept", [
    (["--resume=r", "--output=o"], ("r", "", False)),
    (["--ckpt_path=w"], ("", "w", False)),
    (["--pretrained"], ("", "", True)),
    ([], ("", "start.pth", False)),
])
def test_typed_weights_replace_those_of_the_file(write, typed, kept):
    """So a run is resumed, or scored, with the very configuration that it saved."""
    cfg = parse("DIR", "-c", write("ckpt_path: start.pth\nresume: ''\n"), *typed)
    assert (cfg.resume, cfg.ckpt_path, cfg.pretrained) == kept


@pytest.mark.parametrize("argv, note", [
    (["--sched=cosine", "--decay-rate=0.5"], "--decay_rate has no effect with --sched cosine"),
    (["--min-lr=0.01"], "--min_lr has no effect with --sched step"),
    (["--apex-opt-level=O1"], "--apex_opt_level has no effect without --apex"),
    (["--opt=adamw", "--momentum=0.8"], "--momentum has no effect with Adam and LAMB"),
    (["--mixup-prob=0.5"], "--mixup_prob has no effect without --mixup or --cutmix"),
    (["--no-aug", "--hflip=0"], "--hflip has no effect with --no_aug"),
    (["--aa=original", "--color-jitter=0.4"],
     "--color_jitter has no effect with --aa, which has its own"),
])
def test_a_setting_without_effect_is_told_in_one_line(capsys, argv, note):
    parse("DIR", *argv)
    assert capsys.readouterr().err == f"train.py: {note}\n"


@pytest.mark.parametrize("argv", [
    [], ["--sched=cosine"], ["--apex", "--apex-opt-level=O1"], ["--opt=adamw"],
    ["--apex-opt-level=O2"],  # as Ascend's scripts pass it: the default
])
def test_a_setting_that_counts_or_is_the_default_is_not_told(capsys, argv):
    parse("DIR", *argv)
    assert capsys.readouterr().err == ""


def test_only_the_first_rank_tells(capsys, monkeypatch):
    parse("DIR", "--min-lr=0.01", "--world-size=2", "--dist-rank=1", "--dist-url=tcp://h:1")
    assert capsys.readouterr().err == ""
    for rank, tells in (("0", True), ("1", False), ("10", False)):
        monkeypatch.setenv("RANK", rank)
        parse("DIR", "--min-lr=0.01")
        assert bool(capsys.readouterr().err) is tells


# ------------------------------------------------------------------------------------ validate.py


def test_validation_leaves_open_what_the_checkpoint_decides():
    cfg = validate("--ckpt_path", "w.pth")
    assert cfg.dataset == "demo" and cfg.config == ""
    assert [cfg.model, cfg.img_size, cfg.crop_pct, cfg.interpolation, cfg.num_classes] == [None] * 5


def test_validation_needs_weights(capsys):
    assert error_of(capsys, parse=validate).startswith("no weights to score: give --ckpt_path")
    assert "add --model" in error_of(capsys, "--pretrained", parse=validate)
    assert validate("--pretrained", "-a", "mobilenet").pretrained is True
    assert validate("--resume", "w.pth").ckpt_path == ["w.pth"]


def test_validation_takes_several_files_and_collects_repeated_options(capsys, tmp_path):
    cfg = validate("DIR", "--ckpt_path", "a", "b", "--ema=false", "--ckpt_path=c")
    assert (cfg.ckpt_path, cfg.data_path, cfg.ema) == (["a", "b", "c"], "DIR", False)
    cfg = validate("--ckpt_path", "a", "b", str(tmp_path))  # behind files, a folder is the data's
    assert (cfg.ckpt_path, cfg.data_path) == (["a", "b"], str(tmp_path))
    message = error_of(capsys, "DIR", "--ckpt_path", "a", str(tmp_path), parse=validate)
    assert message.startswith(f"--ckpt_path {tmp_path}: expected files of weights")


def test_validation_asks_where_the_details_of_the_classes_are_to_go(capsys):
    assert validate("--ckpt_path", "w").per_class is False
    assert validate("--ckpt_path", "w", "--per_class", "here").per_class == "here"
    assert validate("--ckpt_path", "w", "--per_class", "--output", "out").per_class is True
    message = error_of(capsys, "--ckpt_path", "w", "--per_class", parse=validate)
    assert message.startswith("--per_class writes several files: give it a folder")


def test_labels_are_for_images_in_a_folder(capsys):
    assert validate("DIR", "--val_labels", "f", "--ckpt_path", "w").val_labels == "f"
    for dataset, path in (("demo", []), ("cifar10", ["DIR"])):
        message = error_of(capsys, *path, "--dataset", dataset, "--val_labels", "f", "--ckpt_path",
                           "w", parse=validate)
        assert message.startswith("--val_labels is for images in a folder")


def test_validation_reads_a_run_of_training_but_never_the_weights_it_started_from(tmp_path):
    path = tmp_path / "config.yaml"
    config.save(parse("DIR", "--pretrained", "--img-size=96", "--lr=0.3"), path)
    cfg = validate("-c", str(path), "--ckpt_path", "best.pth")
    assert (cfg.data_path, cfg.img_size, cfg.model) == ("DIR", 96, "mobilenetv3_large_100")
    assert (cfg.ckpt_path, cfg.pretrained, hasattr(cfg, "lr")) == (["best.pth"], False, False)


def test_validation_reads_its_own_saved_configuration_but_for_the_weights(tmp_path):
    cfg = validate("DIR", "--ckpt_path", "a", "b", "--ema", "--json", "f.json", "--per_class", "d")
    config.save(cfg, tmp_path / "config.yaml")
    again = validate("-c", str(tmp_path / "config.yaml"), "--ckpt_path", "c")
    assert vars(again) == dict(vars(cfg), ckpt_path=["c"], config=str(tmp_path / "config.yaml"))


def test_validation_still_refuses_a_key_that_no_command_has(write, capsys):
    path = write("lr: 0.1\nmomentun: 0.9")
    message = error_of(capsys, "-c", path, "--ckpt_path=w", parse=validate)
    assert message.startswith(f"{path}, line 2: unknown key 'momentun'")


# ------------------------------------------------------------------------------------------ save


@pytest.mark.parametrize("argv", [
    [],
    ["DIR", "--lr", "1e-5", "--scale", "0.5", "1", "--mean", "0.5", "0.5", "0.5", "--apex"],
    ["--data_path", "a path: with 'quotes' # and \n more", "--output", "\u00e9\udc80"],
    ["DIR", "--pretrained", "--loss-scale", "128", "--output", "1e-3", "--aa", "null"],
])
def test_what_is_saved_loads_back_equal(tmp_path, argv):
    cfg = parse(*argv)
    path = tmp_path / "config.yaml"
    config.save(cfg, path)
    again = parse("-c", str(path))
    assert vars(again) == {**vars(cfg), "config": str(path)}
    assert list(vars(again)) == list(vars(cfg))
    types = {name: type(value) for name, value in vars(cfg).items()}
    assert {name: type(value) for name, value in vars(again).items()} == types


def test_the_saved_file_is_plain_and_complete(tmp_path):
    path = tmp_path / "config.yaml"
    config.save(parse("DIR"), path)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert set(yaml.safe_load(text)) == set(vars(parse("DIR"))) - {"config"}
    assert "scale: [0.08, 1.0]" in text  # a list stands on one line


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    path.write_text("old")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(config.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        config.save(parse("DIR"), path)
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]
    assert path.read_text() == "old"


# ------------------------------------------------------------------------------ the shipped files


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_shipped_file_loads_without_a_note(path, capsys):
    argv = [] if path == config.DEMO_RECIPE else ["DIR"]
    cfg = parse("-c", str(path), *argv)
    assert cfg.config == str(path)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_shipped_file_is_headed_by_accuracy_hardware_and_a_command_that_names_it(path):
    header = path.read_text(encoding="utf-8").split("\n\n")[0]
    assert re.search(r"# (Expected|Published) accuracy: +Acc@1 ", header)
    assert "# Hardware:" in header
    command = header[header.index("# Command:"):]
    assert "train.py" in command
    assert path == config.DEMO_RECIPE or path.relative_to(ROOT).as_posix() in command


def test_ascends_recipe_has_the_published_values():
    cfg = parse("DIR", "-c", str(ASCEND / "mobilenetv3_large_100_ascend_8p.yaml"))
    assert (cfg.opt, cfg.lr, cfg.momentum, cfg.opt_eps) == ("rmsprop", 0.064, 0.9, 0.0316)
    assert (cfg.epochs, cfg.sched, cfg.decay_epochs, cfg.decay_rate) == (600, "step", 2, 0.973)
    assert (cfg.batch_size, cfg.weight_decay) == (1024, 1e-5)
    assert (cfg.apex, cfg.apex_opt_level, cfg.loss_scale_value) == (True, "O2", 1024)
    assert (cfg.drop, cfg.bn_eps, cfg.bn_momentum) == (0.2, 1e-3, 0.01)
    assert (cfg.hflip, cfg.reprob, cfg.smoothing) == (0.5, 0.2, 0)


def test_the_files_for_one_and_eight_cards_differ_in_the_lines_their_headers_list():
    one, eight = (ASCEND / f"mobilenetv3_large_100_ascend_{n}p.yaml" for n in (1, 8))
    values = [yaml.safe_load(path.read_text()) for path in (one, eight)]
    differing = {key for key in {*values[0], *values[1]}
                 if values[0].get(key) != values[1].get(key)}
    for path, other in ((one, eight), (eight, one)):
        listed = re.search(rf"# Differs from {other.name} in exactly these lines: (.*)",
                           path.read_text())
        assert set(listed.group(1).split(", ")) == differing
    # The rate follows the batch: the same rate an image.
    assert values[0]["lr"] / values[0]["batch_size"] == values[1]["lr"] / values[1]["batch_size"]


def test_a_runs_own_configuration_scores_it_and_does_not_name_the_folder_of_the_score(tmp_path):
    (tmp_path / "config.yaml").write_text("output: somewhere\nlr: 0.3\napex_opt_level: O1\n")
    cfg = validate("-c", str(tmp_path / "config.yaml"), "--ckpt_path", "x.pth")
    assert cfg.output != "somewhere"


def test_options_of_mixed_precision_without_it_are_told_when_scoring_too(capsys):
    validate("--ckpt_path", "x.pth", "--amp_dtype", "float16")
    assert "--amp_dtype has no effect without --apex" in capsys.readouterr().err

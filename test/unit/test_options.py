"""The command line: spellings, types, errors and --help."""
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mobilenetv3 import config, options

ROOT = Path(__file__).resolve().parents[2]
PARSERS = {"train": options.train_parser, "validate": options.validate_parser}


def parse(*argv):
    return config.parse(options.train_parser(), argv)


def error_of(capsys, *argv, parser=options.train_parser):
    """What a refused command line prints: always two lines, the second of them the error."""
    with pytest.raises(SystemExit) as exit_:
        config.parse(parser(), argv)
    lines = capsys.readouterr().err.splitlines()
    assert exit_.value.code == 2
    assert len(lines) == 2 and "--help" in lines[0], lines
    return lines[1].split(": error: ", 1)[1]


# ----------------------------------------------------------------------------------- spellings


@pytest.mark.parametrize("argv, name, value", [
    # Ascend ModelZoo's command lines
    (["--arch=mobilenet"], "model", "mobilenet"),
    (["-a", "mobilenet"], "model", "mobilenet"),
    (["--data=/d"], "data_path", "/d"),
    (["--batch_size=128"], "batch_size", 128),
    (["-b", "128"], "batch_size", 128),
    (["--learning-rate=0.008"], "lr", 0.008),
    (["--wd=0.00001"], "weight_decay", 1e-5),
    (["--lr-step-size=2"], "decay_epochs", 2.0),
    (["--lr-gamma=0.973"], "decay_rate", 0.973),
    (["--loss-scale-value", "64"], "loss_scale_value", 64.0),
    (["-p", "1"], "print_freq", 1),
    (["-j", "128"], "workers", 128),
    (["--dist-rank=0"], "dist_rank", 0),
    (["--device_id=3"], "device_id", 3),
    (["--max_steps=64"], "max_steps", 64),
    # MindCV's
    (["--data_dir=/d"], "data_path", "/d"),
    (["--num_parallel_workers=8"], "workers", 8),
    (["--ckpt_path=w.ckpt"], "ckpt_path", "w.ckpt"),
    (["--keep_checkpoint_max=10"], "keep_last", 10),
    # timm's
    (["/d"], "data_path", "/d"),
    (["--initial-checkpoint", "w.pth"], "ckpt_path", "w.pth"),
    (["--drop-connect", "0.2"], "drop_path", 0.2),
    (["-vb", "32"], "val_batch_size", 32),
    (["--log-interval", "50"], "print_freq", 50),
    (["--loss-scale", "dynamic"], "loss_scale_value", "dynamic"),
    (["--checkpoint-hist", "5"], "keep_last", 5),
    (["--recovery-interval", "100"], "checkpoint_every", 100),
])
def test_what_users_of_the_peers_type_is_understood(argv, name, value):
    assert getattr(parse(*argv), name) == value


@pytest.mark.parametrize("spelling", ["--val_batch_size", "--val-batch-size", "--val_batch-size"])
def test_dashes_and_underscores_are_the_same(spelling):
    assert parse(spelling, "7").val_batch_size == 7
    assert parse(f"{spelling}=7").val_batch_size == 7


def test_the_last_of_a_repeated_option_counts():
    assert parse("--lr", "1", "--learning_rate", "2").lr == 2.0
    assert parse("--apex", "--no-apex").apex is False


@pytest.mark.parametrize("argv, apex", [
    ([], False), (["--apex"], True), (["--apex=true"], True), (["--apex=False"], False),
    (["--no-apex"], False), (["--no_apex"], False),
])
def test_a_flag_can_be_switched_on_and_off(argv, apex):
    assert parse(*argv).apex is apex


def test_the_short_form_of_a_flag_switches_it_on():
    assert parse("-e", "--ckpt_path", "w").evaluate is True


@pytest.mark.parametrize("argv, value", [
    ([], False), (["--pretrained"], True), (["--pretrained", "w.pth"], "w.pth"),
    (["--pretrained=false"], False),
])
def test_pretrained_is_a_flag_or_a_file(argv, value):
    assert parse("DIR", *argv).pretrained == value


def test_words_after_a_lone_double_dash_are_no_options():
    assert parse("--", "--apex").data_path == "--apex"


def test_no_two_options_share_a_spelling_and_abbreviations_are_refused(capsys):
    assert error_of(capsys, "--epoch", "3") == "unknown option --epoch; did you mean --epochs?"


def test_both_parsers_give_a_namespace_that_holds_no_second_data_path():
    assert not hasattr(parse("DIR"), "data")
    shared = vars(config.parse(options.validate_parser(), ["DIR", "--ckpt_path", "w"]))
    # The same names, fewer of them, but for those of the results.
    own = {"ema", "json", "per_class", "force", "tta_flip", "recalibrate_bn", "save", "fuse_bn"}
    assert set(shared) - own < set(vars(parse("DIR"))) and not own & set(vars(parse("DIR")))


# -------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("argv, message", [
    (["--batch-szie", "3"], "unknown option --batch-szie; did you mean --batch_size?"),
    (["-lr", "0.1"], "unknown option -lr; did you mean --lr?"),
    (["--qqq"], "unknown option --qqq"),
    (["a", "b"], "unexpected argument 'b'"),
    (["--batch_size", "abc"], "--batch_size: expected a positive integer, got 'abc'"),
    (["--batch_size=0"], "--batch_size: expected a positive integer, got '0'"),
    (["-b", "1.5"], "--batch_size: expected a positive integer, got '1.5'"),
    (["--lr", "nan"], "--lr: expected a positive number, got 'nan'"),
    (["--lr", "1e999"], "--lr: expected a positive number, got '1e999'"),
    (["--img-size", "31"], "--img_size: expected an integer of 32 or more, got '31'"),
    (["--drop=1"], "--drop: expected a number of 0 or more, below 1, got '1'"),
    (["--sched", "cos"], "--sched: expected one of step, cosine, got 'cos'"),
    (["--loss-scale", "big"],
     "--loss_scale_value: expected dynamic or a positive number, got 'big'"),
    # ImageNet's mean on the scale of 0..255, a common slip
    (["--mean", "123.675", "116.28", "103.53"],
     "--mean: expected a number from 0 to 1, got '123.675'"),
    (["--scale", "1"], "--scale: expected 2 arguments"),
    (["--lr"], "--lr: expected one argument"),
    (["--apex=maybe"], "--apex: expected true or false, got 'maybe'"),
    (["--no-apex=true"], "--no_apex takes no value, got 'true'"),
])
def test_a_mistake_is_one_sentence(capsys, argv, message):
    assert error_of(capsys, *argv) == message


def test_an_option_of_training_is_refused_by_name_in_validation(capsys):
    message = error_of(capsys, "--lr", "0.1", parser=options.validate_parser)
    assert message == "--lr is an option of training; validate.py has none of that name"


# ---------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("name", PARSERS)
def test_help_shows_every_spelling_of_every_option_in_one_form(name):
    parser = PARSERS[name]()
    shown = parser.format_help()
    for spelling in parser.names():
        assert re.search(rf"--{spelling}\b", shown), spelling
    assert not re.search(r"--\w+-", shown)  # never the form with dashes
    assert not re.search(r"--no_(?!aug\b|NAME\b)", shown)  # never the off spelling of a flag


@pytest.mark.parametrize("name", PARSERS)
def test_every_option_says_what_it_is_and_stands_in_a_group(name):
    parser = PARSERS[name]()
    assert [action.dest for action in parser._actions if len(action.help or "") < 10] == []
    standard = parser._action_groups[:2]  # argparse's own two
    assert [action.dest for group in standard for action in group._group_actions] == []


def test_help_shows_defaults_where_there_are_any():
    shown = re.sub(r"\s+", " ", options.train_parser().format_help())
    assert "(default: 0.1)" in shown
    assert "share of the image's area that a random crop takes (default: 0.08 1)" in shown
    assert "None" not in shown and "False" not in shown


def test_every_flag_takes_no_value_and_all_but_two_default_to_off():
    flags = [action for action in options.train_parser().names().values()
             if type(action).__name__ == "Flag"]
    assert len(flags) > 10
    others = {action.dest: action.default for action in flags if action.default is not False}
    assert others == {"pin_workers": True, "channels_last": None}  # None: what is faster


@pytest.mark.parametrize("name", PARSERS)
def test_examples_in_the_help_are_command_lines_that_parse(name, capsys):
    parser = PARSERS[name]()
    lines = [line.split(f"{name}.py", 1)[1].split() for line in parser.epilog.splitlines()
             if f"{name}.py" in line]
    assert len(lines) >= 3
    for argv in lines:
        if "output/RUN/config.yaml" not in argv:  # a file of the user's
            argv = [str(ROOT / word) if word.startswith("configs/") else word for word in argv]
            config.parse(parser, argv)


def test_options_and_config_load_quickly_and_without_anything_heavy():
    """A misspelt option must not cost the seconds that importing torch takes."""
    code = (
        "import sys, time; start = time.process_time()\n"
        "from mobilenetv3 import config, options\n"
        "options.train_parser().format_help(); took = time.process_time() - start\n"
        "heavy = {'torch', 'numpy', 'timm', 'PIL'} & set(sys.modules)\n"
        "print(took, *heavy)"
    )
    best = 10.0
    for _ in range(3):  # the first run may have to compile the modules
        out = subprocess.run([sys.executable, "-c", code], cwd=str(ROOT), check=True,
                             stdout=subprocess.PIPE, text=True).stdout.split()
        assert out[1:] == []
        best = min(best, float(out[0]))
    assert best < 0.2


@pytest.mark.parametrize("name", ["npufusedsgd", "npufusedrmsprop", "npufusedrmsproptf"])
def test_torch_npus_optimizers_are_names_of_opt(name):
    assert parse("--opt", name).opt == name

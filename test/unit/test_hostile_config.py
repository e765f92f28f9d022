"""Configuration files and command lines that want more than to set options.

Each is refused with status 2 and one sentence, soon, and without the memory that it asks for.
"""
import os
import time
import tracemalloc

import pytest

from mobilenetv3 import config, options, report, yamlfile
from mobilenetv3.convert import __main__ as convert_main
from mobilenetv3.models import __main__ as models_main


def told(capsys, argv):
    """What train.py says of such a command line, which it must refuse."""
    with pytest.raises(SystemExit) as end:
        config.parse(options.train_parser(), argv)
    assert end.value.code == 2
    usage, line = capsys.readouterr().err.rstrip("\n").split("\n")
    assert usage.startswith("usage: ")
    assert line.startswith("train.py: error: ")
    return line[len("train.py: error: "):]


@pytest.fixture
def refused(tmp_path, capsys):
    """refused(text or bytes) -> what is said of a file with that content."""
    def write_and_parse(content):
        path = tmp_path / "c.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        started = time.monotonic()
        message = told(capsys, ["DIR", "-c", str(path)])
        assert time.monotonic() - started < 10
        assert str(path) in message
        return message.replace(str(path), "FILE")
    return write_and_parse


def laughs(levels):
    """`lr` is a list of lists of ..., 9 ** levels texts in all, by aliases."""
    inner = "&a0 [lol]"
    for level in range(1, levels):
        inner = f"&a{level} [{inner}{f', *a{level - 1}' * 8}]"
    return f"lr: {inner}\n"


@pytest.mark.parametrize("content", [laughs(10), laughs(3) * 2, "mean: " + laughs(10)[4:],
                                     "lr: &a [*a]", "lr: " + "[" * 19 + "]" * 19 + "\nlr: {a: " +
                                     "[" * 30 + "]" * 30 + "}"], ids=range(5))
def test_aliases_that_repeat_each_other_are_not_written_out_in_the_message(refused, content):
    tracemalloc.start()
    try:
        assert len(refused(content)) < 2500
        assert tracemalloc.get_traced_memory()[1] < 100_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("content, message", [
    ("lr: " + "[" * 40000, "found more than 1,000 brackets"),
    ("lr: " + "{a: " * 20000, "found more than 1,000 brackets"),
    ("lr: " + "[" * 900, "it is nested without end"),
    ("- " * 40000, "it is nested without end"),
], ids=range(4))
def test_nesting_without_end_exhausts_neither_the_stack_nor_the_patience(refused, content, message):
    assert refused(content).endswith(message)


@pytest.mark.parametrize("value, kind", [
    ("!!int ''", "int"), ("!!float ''", "float"), ("!!bool maybe", "bool"),
    ("!!timestamp x", "timestamp"),
])
def test_a_tag_that_does_not_fit_its_text_is_no_error_inside_pyyaml(refused, value, kind):
    message = refused(f"# x\nlr: {value}\n")
    assert message in (f"FILE, line 2: not valid YAML: the value is no {kind}",
                       "FILE, line 2: expected a number in decimal digits, got ''")


def test_a_date_as_a_key_of_a_value_is_no_error_inside_json(refused):
    assert refused("lr: {2024-01-01: 1}") == (
        "FILE, line 1: lr: expected a positive number, got a dict")


@pytest.mark.parametrize("key", ["[a, b]", "{a: b}", "&a [*a]"])
def test_a_key_that_is_a_list_is_refused(refused, key):
    assert "in the place of the name" in refused(f"? {key}\n: 1\n")


@pytest.mark.parametrize("text", ["010", "0o17", "0x10", "0b11", "1:30", "-0x1"])
@pytest.mark.parametrize("name", ["epochs", "lr"])
def test_a_number_is_not_taken_for_another_by_yamls_old_rules(refused, name, text):
    """YAML 1.1 reads 010 as 8, 0x10 as 16 and 1:30 as 90."""
    message = refused(f"{name}: {text}\n")
    assert "in decimal digits, got" in message or "expected a positive" in message
    assert repr(text) in message


def test_numbers_in_decimal_digits_are_taken(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("lr: 0.5\nepochs: 90\nmomentum: 0\nbn_eps: 1e-3\nseed: 0\nmean: [0, .5, 1.0]\n")
    cfg = config.parse(options.train_parser(), ["DIR", "-c", str(path)])
    assert (cfg.lr, cfg.epochs, cfg.momentum, cfg.bn_eps, cfg.seed, cfg.mean) == (
        0.5, 90, 0.0, 1e-3, 0, [0.0, 0.5, 1.0])


def test_a_pipe_without_a_writer_is_not_waited_for(tmp_path, capsys):
    path = tmp_path / "pipe"
    os.mkfifo(str(path))
    assert told(capsys, ["DIR", "-c", str(path)]) == (
        f"cannot read the configuration {path}: expected a file, and this is a pipe or a device")


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/urandom", "/dev/null"])
def test_a_device_that_never_ends_is_not_read(path, capsys):
    assert "this is a pipe or a device" in told(capsys, ["DIR", "-c", path])


def test_a_file_of_a_hundred_megabytes_is_not_read_to_its_end(tmp_path, capsys):
    path = tmp_path / "c.yaml"
    with open(str(path), "wb") as file:
        file.truncate(100_000_000)
    assert told(capsys, ["DIR", "-c", str(path)]).endswith(
        "expected at most 100,000 bytes, so much is no list of options")


def test_every_option_at_once_is_far_below_the_size_that_is_read(tmp_path):
    cfg = config.parse(options.train_parser(), ["DIR"])
    config.save(cfg, tmp_path / "all.yaml")
    assert (tmp_path / "all.yaml").stat().st_size < yamlfile.MOST_BYTES / 10


@pytest.mark.parametrize("argv", [
    ["--epochs", "9" * 400], ["--epochs", "9" * 5000], ["--batch_size", str(2 ** 63)],
    ["--seed", "-" + "9" * 400], ["-c", "FILE"],
], ids=range(5))
def test_an_integer_beyond_64_bits_is_refused_and_is_no_overflow(argv, tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text("epochs: " + "9" * 4000)
    message = told(capsys, ["DIR", *(word.replace("FILE", str(path)) for word in argv)])
    assert "expected a" in message and len(message) < 2500


@pytest.mark.parametrize("argv", [
    ["a\nb", "c\x1b[31md"], ["--lr", "\x1b]0;title\x07"], ["--mo\x1b[2Jdel=x"], ["--dist_url\r=x"],
    ["-c", "no\nsuch\x1b[31mfile"], ["--\u202eledom=x"],
])
def test_what_was_typed_does_not_command_the_terminal_that_shows_the_error(argv, capsys):
    assert told(capsys, argv).isprintable()


def test_an_argument_of_any_length_makes_a_message_that_can_be_read(capsys):
    for argv in (["--lr", "x" * 100_000], ["--" + "x" * 100_000], ["DIR", "x" * 100_000]):
        assert len(told(capsys, argv)) < 2500


@pytest.mark.parametrize("run, argv", [
    (lambda argv: convert_main.parser().parse_args(argv), ["a.pth", "--bn-eps", "nan"]),
    (lambda argv: convert_main.parser().parse_args(argv), ["a.pth", "--bn-eps", "-1"]),
    (models_main.main, ["--img-size", "1000000"]),
    (models_main.main, ["--img-size", "0"]),
    (report.main, ["run", "--seconds", "-5"]),
    (report.main, ["run", "\x1b[31m", "--case", "\x1b[31m"]),
])
def test_a_number_that_no_network_or_run_has_is_refused(run, argv, capsys):
    with pytest.raises(SystemExit) as end:
        run(argv)
    assert end.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "error: argument" in last and last.isprintable()

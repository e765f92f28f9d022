"""Names of files, classes and tensors that would command a terminal, a spreadsheet or a shell."""
import csv
import os
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from mobilenetv3 import (
    atc,
    checkpoint,
    config,
    confusion,
    convert,
    entry,
    options,
    predictions,
    report,
    results,
)
from mobilenetv3.runfolder import RunFolder
from mobilenetv3.text import cell, printable

ROOT = Path(__file__).resolve().parents[2]
NASTY = ["a b", "it's", '"q"', "a\nb", "-rf", "--help", "$(touch ran)", "`touch ran`",
         "; touch ran", "*", "?", "[a]", "~", "#x", "a\\", "%s", "{x}", "!x", "<b>", "|", "&",
         "a\tb", "\x1b[31mred", "\u202eabc", "\udcff\udcfe", "=cmd()", "@SUM(1)", "+1",
         "\u00e9\u4e2d", "x" * 200]


@pytest.mark.parametrize("text, shown", [
    ("plain \u00e9\u4e2d", "plain \u00e9\u4e2d"), ("a\tb", "a\tb"), ("a\nb\r", r"a\nb\r"),
    ("\x1b[31m", r"\x1b[31m"), ("\u202ex", r"\u202ex"), ("\udcff", r"\udcff"), ("\x9b", r"\x9b"),
    ("\u2028", r"\u2028"), ("\0", r"\x00"),
])
def test_what_is_no_letter_is_shown_as_python_writes_it(text, shown):
    assert printable(text) == shown
    assert printable(text).encode("utf-8")


def test_a_long_text_keeps_its_beginning_and_its_end():
    assert printable("a" * 50 + "b" * 50, 20) == "a" * 10 + " ... " + "b" * 10


# ---- Logs and messages


def test_a_name_in_a_log_line_is_one_line_and_commands_nothing(tmp_path, capsys):
    run = RunFolder(tmp_path)
    for name in NASTY:
        run.log(f"=> class {name} of 3")
    run.close()
    lines = (tmp_path / "train.log").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(NASTY)  # and a name that is no UTF-8 does not lose its line
    assert all(line.replace("\t", "").isprintable() for line in lines)
    captured = capsys.readouterr()
    assert captured.out.splitlines() == lines and captured.err == ""


def test_a_terminal_that_is_gone_does_not_end_the_run_or_lose_its_log(tmp_path):
    """As after `python train.py | head`, or when a session ends: nothing is told, nothing fails."""
    code = """
import os, signal, sys
from mobilenetv3 import entry
from mobilenetv3.runfolder import RunFolder
signal.signal(signal.SIGPIPE, signal.SIG_IGN)
def main(folder):
    run = RunFolder(__import__("pathlib").Path(folder))
    for number in range(3):
        run.log("line %d" % number)
    run.close()
sys.exit(entry.run(main, sys.argv[1], "train.py"))
"""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=str(ROOT), stdout=write,
                          stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "train.log").read_text() == "line 0\nline 1\nline 2\n"


def test_an_error_about_a_file_is_one_line_and_commands_nothing():
    for name in NASTY:
        assert entry.sentence(FileNotFoundError(f"no checkpoint at {name}")).replace(
            "\t", "").isprintable()


def test_a_tensors_name_in_an_error_commands_nothing(tmp_path):
    path = tmp_path / "a.pth"
    weights = {"conv_stem.weight\x1b[31m\n": torch.zeros(3), "\u202eb.weight": torch.zeros(3)}
    checkpoint.save(path, weights)
    with pytest.raises(ValueError, match="cannot be used") as error:
        convert.read(path)
    assert str(error.value).isprintable() and r"\x1b[31m" in str(error.value)


# ---- Tables


def test_a_class_that_is_a_formula_is_text_in_the_csv_files(tmp_path):
    names = ["=cmd|'/c calc'!A0", "+A1+cmd|x!A0", "-HYPERLINK(1)", "@SUM(1)", "\tx", "plain",
             'a,"b"\nc', "\\rx"]
    counts = torch.eye(len(names), dtype=torch.int64)
    names[-1] = "\rx"  # which csv would leave without quotes: the row would end there
    confusion.write_scores(tmp_path / "s.csv", confusion.per_class(counts, names), names)
    confusion.write_counts(tmp_path / "c.csv", counts, names)
    top = [{"class": name, "label": 0, "score": 0.5} for name in names]
    predictions.write_csv(tmp_path / "p.csv", [predictions.Prediction(names[0], top)])
    names[-1] = r"\rx"
    for name in ("s.csv", "c.csv", "p.csv"):
        with open(str(tmp_path / name), newline="", encoding="utf-8") as file:
            cells = [item for row in csv.reader(file) for item in row]
        assert {"'" + formula for formula in names[:5]} | set(names[5:]) <= set(cells)
        assert not any(item.startswith(("=", "+", "-", "@", "\t", "\r")) for item in cells)


@pytest.mark.parametrize("text", ["", "1.5", "-1", "+1", "-dash.jpg", "'=x", "a=b", "x(1)"])
def test_what_is_no_formula_stays_as_it_is_in_the_csv_files(text):
    assert cell(text) == text


def test_a_name_in_a_markdown_table_stays_in_its_cell(tmp_path, capsys):
    for name in ("<script>alert(1)</script>", "a|b", "[x](javascript:1)", "a\x1b[31m", "\udcff"):
        folder = tmp_path / name.replace("/", "_")
        folder.mkdir()
        (folder / "train.log").write_text(" * Acc@1 50.000 Acc@5 60.000\n")
        assert report.main([str(folder)]) == 0
        row = capsys.readouterr().out.splitlines()[2]
        assert row.isprintable() and row.replace("\\|", "").count("|") == 9
        assert "<script" not in row.replace("\\<", "") and "[x]" not in row
    line = results.markdown(["a"], [["x\n| y |"]], 1)[2]
    assert line == r"| x\n\| y \| |"


# ---- Shells


def test_atcs_command_line_is_what_was_meant_when_a_shell_reads_it(tmp_path):
    for number, name in enumerate(NASTY):
        words = atc.command(name + ".onnx", name + ".om", "input", (1, 3, 224, 224), "Ascend310P3",
                            aipp_file=name)
        assert shlex.split(atc.shown(words)) == words
        if number % 5 == 0:  # and by a real one
            script = 'atc() { printf "%s\\0" atc "$@"; }\n' + atc.shown(words)
            done = subprocess.run(["bash", "-c", os.fsencode(script)], cwd=str(tmp_path),
                                  stdout=subprocess.PIPE)
            assert done.stdout.split(b"\0")[:-1] == [os.fsencode(word) for word in words]
    assert not list(tmp_path.iterdir())


def test_no_part_of_the_package_hands_a_line_to_a_shell():
    """Words go to programs one by one: nothing in them is looked at by a shell."""
    for path in [*(ROOT / "mobilenetv3").rglob("*.py"), *ROOT.glob("*.py"),
                 *(ROOT / "deploy").glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        for word in ("shell=True", "os.system(", "os.popen(", "getoutput(", "extractall(",
                     "yaml.load(", "yaml.unsafe_load", " pickle.load", "tempfile.mktemp", '"/tmp'):
            assert word not in text, f"{path} has {word}"


# ---- Network


def test_nothing_is_fetched_unless_it_is_asked_for(tmp_path, monkeypatch):
    """The demo's training, from its data to its last step, with sockets that refuse."""
    def refuse(*arguments, **names):
        raise AssertionError(f"network access: {arguments}")

    for owner, name in [(socket.socket, "connect"), (socket.socket, "connect_ex"),
                        (socket, "getaddrinfo"), (socket, "create_connection"),
                        (torch.hub, "load_state_dict_from_url"),
                        (torch.hub, "download_url_to_file")]:
        monkeypatch.setattr(owner, name, refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    main = runpy.run_path(str(ROOT / "train.py"), run_name="in a test")["main"]
    cfg = config.parse(options.train_parser(), [
        "--device=cpu", "--workers=0", "--max_steps=2", "--batch_size=8", "--img_size=32",
        "--epochs=1", "--warmup_epochs=0", "--skip_validation", f"--output={tmp_path / 'run'}"])
    handlers = {number: signal.getsignal(number)
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        main(cfg)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert (tmp_path / "run" / "checkpoint.pth.tar").is_file()
    with pytest.raises(AssertionError, match="network access"):
        socket.create_connection(("localhost", 1))


def test_temporary_files_are_their_owners_alone(tmp_path, monkeypatch):
    """What is made under the common temporary folder, whose names anybody may guess."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    old = os.umask(0)
    try:
        with tempfile.TemporaryDirectory() as folder:
            assert os.stat(folder).st_mode & 0o777 == 0o700
        script = 'state=$(mktemp -d "${TMPDIR:-/tmp}/mobilenetv3.XXXXXXXX"); stat -c %a "$state"'
        assert script.split(";")[0] in (ROOT / "test" / "supervise.sh").read_text()
        done = subprocess.run(["bash", "-c", script], env=dict(os.environ, TMPDIR=str(tmp_path)),
                              capture_output=True, text=True)
        assert done.stdout == "700\n"
    finally:
        os.umask(old)

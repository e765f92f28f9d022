"""Command lines at random, through the parsers of every command.

    python test/fuzz/command_lines.py --count 500 --seed 0

Refused: status 2, a usage and one sentence. Accepted: every option has the value that was typed for
it last, and the others their defaults. Anything else is a fault.
"""
import argparse
import contextlib
import io
import math
import random
import sys

import common
from common import Case, check_sentence, judge_all

from mobilenetv3 import config, options, report, yamlfile
from mobilenetv3.arguments import Boolean, Choice, Flag, Number, PathOrFlag
from mobilenetv3.convert import __main__ as convert_main
from mobilenetv3.models import __main__ as models_main
from mobilenetv3.options.export import export_parser, parse_export
from mobilenetv3.options.predict import parse_predict, predict_parser

SCRIPTS = {
    "train.py": (options.train_parser, lambda argv: config.parse(options.train_parser(), argv)),
    "validate.py": (options.validate_parser,
                    lambda argv: config.parse(options.validate_parser(), argv)),
    "predict.py": (predict_parser, parse_predict),
    "export.py": (export_parser, parse_export),
}
NASTY = (
    "", " ", "-", "--", "---", "--=", "--=x", "-=", "--no_", "--no-no-apex", "--help=1",
    "--help-me", "-1", "-1e9", "-inf", "nan", "1e400", "9" * 5000, "0x10", "1_000", "1e3", " 5",
    "5 ", "+5", "05", "\N{ARABIC-INDIC DIGIT FIVE}", "true", "True", "none", "null",
    "$(touch ran)", "`touch ran`", "; touch ran", "a b", "a\nb", "\x1b[31mred", "\u202eabc",
    "\udcff", "*", "~", "~root", "/dev/zero", "../../..", "x" * 100000, "--" + "x" * 100000,
    "--" + "\udcff", "--mod\x1b[31mel", "--lr\n", "--Lr", "--LR=1", "--lr=", "--lr==1", "-b",
    "-b=3", "-b3", "-bx", "-b 3", "-eb3", "-ee", "-c", "@file", "%s", "%(prog)s", "{0}", "\\",
    "'", '"', "|", "<b>", "--model --lr", "--data", "-xyz",
)
WORDS = ("a", "mobilenetv3_small_100", "dir/file.pth", "x y", "$(touch ran)", "-", "\u00e9", "a=b",
         "%d")


class Unit:
    """Words of a command line, and what they set: a name and its value, or nothing known."""

    def __init__(self, words, dest="", value=None):
        self.words, self.dest, self.value = list(words), dest, value


def _plain_unit(parser, rng):
    """An option with a value that it takes."""
    name, action = rng.choice(sorted(parser.names().items()))
    if action.dest in ("help", "config", "ckpt_path", "check_images", "pretrained"):
        return Unit([])  # they read files, or take the words behind them
    spelled = "--" + (name if rng.random() < 0.5 else name.replace("_", "-"))
    if isinstance(action, Flag):
        wanted = rng.random() < 0.5
        forms = [[spelled], [f"{spelled}=true"]] if wanted else [
            [f"--no_{name}"], [f"{spelled}=false"], [f"{spelled}=FALSE"]]
        return Unit(rng.choice(forms), action.dest, wanted)
    count = action.nargs if isinstance(action.nargs, int) else 1
    pairs = [_value(action.type, rng) for _ in range(count)]
    texts, values = [text for text, _ in pairs], [value for _, value in pairs]
    value = values[0] if action.nargs is None or action.nargs == "?" else values
    if count == 1 and (texts[0][:1] == "-" or action.nargs == "?" or rng.random() < 0.5):
        return Unit([f"{spelled}={texts[0]}"], action.dest, value)
    return Unit([spelled, *texts], action.dest, value)


def _value(kind, rng):
    """A text that a type takes, and its value by a reading of our own."""
    if isinstance(kind, Choice):
        word = rng.choice(kind.words)
        return word, word
    if isinstance(kind, Boolean):
        return "true", True
    if isinstance(kind, PathOrFlag):
        return rng.choice((("true", True), ("False", False), ("a/b", "a/b")))
    if isinstance(kind, Number):
        candidates = ["0", "1", "2", "32", "64", "224", "0.5", "1e-3", ".25", "1.0", "90"]
        texts = [text for text in candidates if _fits(kind, text)]
        text = rng.choice(texts)
        return text, kind.kind(text)
    text = rng.choice(WORDS)
    return text, text


def _fits(kind, text):
    try:
        number = kind.kind(text)
    except ValueError:
        return False
    return math.isfinite(number) and kind.is_allowed(number)


def _script_case(name, rng):
    parser = SCRIPTS[name][0]()
    units = [_plain_unit(parser, rng) for _ in range(rng.choice((0, 1, 2, 3, 6)))]
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
        option, _ = rng.choice(sorted(parser.names().items()))
        words = rng.choice(([rng.choice(NASTY)], [f"--{option}={rng.choice(NASTY)}"],
                            [f"--{option}", rng.choice(NASTY)], [f"--{_misspelt(option, rng)}=1"]))
        units.insert(rng.randrange(len(units) + 1), Unit(words))
    needed = {"validate.py": ["--pretrained=w.pth"], "predict.py": ["i.jpg", "--pretrained=w.pth"],
              "export.py": ["--pretrained=w.pth"]}.get(name, [])
    if needed and rng.random() < 0.8:
        units.insert(0, Unit(needed))
    words, known = [], {}
    for unit in units:
        words += unit.words
        if unit.dest:
            known[unit.dest] = unit.value
    odd = [unit for unit in units if unit.words and not unit.dest and unit.words != needed]
    return Case(name, (name, [word.replace("\0", "") for word in words], {} if odd else known))


def _misspelt(word, rng):
    at = rng.randrange(len(word))
    return rng.choice((word[:at] + word[at + 1:], word[:at] + "q" + word[at:], word[:at + 1]))


MODULES = {
    "mobilenetv3.convert": ("--to", "--ema", "--no-ema", "--arch", "--bn-eps", "--pad-type",
                            "--force", "mindcv", "timm", "same", "a.pth", "b.pth", "1e-3"),
    "mobilenetv3.report": ("--case", "--seconds", "acc", "perf", "10", "run", "-x", "--output",
                           "--watch", "--interval", "--follow", "--table"),
    "mobilenetv3.models": ("--img-size", "small", "224", "0", "4096", "*", "[", "zzz"),
}


def _module_case(name, rng):
    words = [rng.choice(MODULES[name] + NASTY if rng.random() < 0.4 else MODULES[name])
             for _ in range(rng.randrange(6))]
    return Case(name, (name, words, {}))


def cases(count, seed):
    """Three of five for the scripts' own parsers, the rest for the modules'."""
    rng = random.Random(seed)
    for number in range(count):
        if number % 5 < 4:
            yield _script_case(sorted(SCRIPTS)[number % 5], rng)
        else:
            yield _module_case(sorted(MODULES)[number // 5 % len(MODULES)], rng)


def judge(payload, folder):
    """Let a command's parser have the words."""
    name, argv, known = payload
    out, errors = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(out):
            found = _parse(name, argv)
    except SystemExit as end:
        if end.code == 0:
            assert "usage:" in out.getvalue() and not errors.getvalue()
            return "help"
        assert end.code == 2, end.code
        lines = errors.getvalue().rstrip("\n").split("\n")
        assert lines[0].startswith("usage: "), lines
        assert lines[-1].split(": ")[1] == "error", lines
        check_sentence(lines[-1])
        return "refused"
    for line in errors.getvalue().splitlines():
        check_sentence(line)
    if name in SCRIPTS:
        _compare(SCRIPTS[name][0](), found, known)
    return "accepted, as typed"


def _parse(name, argv):
    if name in SCRIPTS:
        return SCRIPTS[name][1](argv)
    if name == "mobilenetv3.convert":
        return convert_main.parser().parse_args(argv)
    if name == "mobilenetv3.report":
        return report.command._arguments(argv)
    models_main.row = lambda name, size: name  # the networks themselves are not asked for
    models_main.main(argv)
    return argparse.Namespace()


def _compare(parser, found, known):
    defaults, demo = parser.defaults(), {}
    if parser.trains and found.config:
        demo = yamlfile.read(parser, found.config)
    for dest, value in known.items():
        if dest == "data":
            dest = "data_path"
        assert getattr(found, dest) == value, (dest, value, getattr(found, dest))
    for dest, value in {**defaults, **demo}.items():
        number = getattr(found, dest, value)
        assert not isinstance(number, float) or math.isfinite(number), (dest, number)
        is_open = dest in known or dest in ("data", "images", "dataset", "config", "pretrained")
        if known and not is_open:
            assert number == value, (dest, value, number)


def run(count=500, seed=0, keep=None):
    """Judge so many command lines; returns common.Totals."""
    return judge_all("command lines", cases(count, seed), judge, keep)


def main(argv=None):
    return common.command(run, __doc__.splitlines()[0], 500, argv)


if __name__ == "__main__":
    sys.exit(main())

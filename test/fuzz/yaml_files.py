"""Configuration files as nobody writes them, through train.py's reading of its configuration.

    python test/fuzz/yaml_files.py --count 500 --seed 0

Refused: status 2, a usage line and one sentence. Accepted: every value is what an independent
reading of the file (yaml.safe_load) finds there. Anything else is a fault.
"""
import contextlib
import io
import math
import os
import random
import sys
from pathlib import Path

import common
import yaml
from common import Case, check_sentence, judge_all

from mobilenetv3 import config, options

SCALARS = (
    "1", "0", "-1", "1.5", "1e-3", "1e400", "-1e400", ".nan", ".inf", "-.inf", "010", "0x10", "0b1",
    "1:30", "1:30:00.5", "1_000", "true", "false", "yes", "No", "~", "null", "''", '""', '"x"',
    '"\\x1b[31mred"', '"a\\nb"', '"\\u202eabc"', "2024-01-01", "2024-13-45", "0001-01-01 00:00:00 "
    "+23:59", "!!int ''", "!!int abc", "!!float ''", "!!bool maybe", "!!timestamp x", "!!null x",
    "!!binary ====", "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!python/name:os.system",
    "!!python/object/apply:os.system ['touch ran']", "!!python/object/new:os.system ['touch ran']",
    "!!python/tuple [1, 2]", "!ours x", "!<tag:yaml.org,2002:str> x", "[1, 2]", "[0.5, 0.5, 0.5]",
    "[1, [2, [3]]]", "[]", "{}", "{a: 1}", "{2024-01-01: 1}", "{[1]: 2}", "{1: {2: {3: 4}}}",
    "&a x", "*a", "&a [*a]", "&a {b: *a}", "|\n  text\n  more", ">\n  folded", "'it''s'",
    "$(touch ran)", "`touch ran`", "; touch ran", "9" * 30, "9" * 5000, "1" + "0" * 60000,
    "-" + "9" * 400, "x" * 60000, "[" * 2000, "[" * 90000, "{a: " * 500, "- " * 1000,
    "\N{GREEK SMALL LETTER ALPHA}",
    "\N{ARABIC-INDIC DIGIT ONE}", "\N{FULLWIDTH DIGIT ONE}", "? x", "<<: x", "%YAML 9.9", "@x",
    "\tx",
)


def _laughs(levels: int, width: int) -> str:
    """Each level repeats the one before: width ** levels texts out of a few lines."""
    lines = ["a0: &a0 [lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines) + f"\nlr: *a{levels - 1}\n"


def _inline_laughs(name: str) -> str:
    inner = "&a0 [lol, lol]"
    for n in range(1, 10):
        inner = f"&a{n} [{inner}{f', *a{n - 1}' * 8}]"
    return f"{name}: {inner}\n"


FIXED = {
    "laughs behind an unknown key": _laughs(9, 9), "laughs": _inline_laughs("lr"),
    "laughs in a list": _inline_laughs("mean"), "laughs as a key": "? " + _inline_laughs("x")[3:],
    "deep lists": "lr: " + "[" * 40000 + "]" * 40000, "deep maps": "lr: " + "{a: " * 20000,
    "deep blocks": "\n".join(" " * n + "a:" for n in range(400)),
    "deep sequence": "- " * 40000, "many keys": "\n".join(f"k{n}: 1" for n in range(9000)),
    "duplicate": "lr: 0.1\nlr: 0.2", "duplicate by alias": "batch_size: 1\nb: 2\nbatch-size: 3",
    "merge": "x: &x {lr: 0.1}\n<<: *x", "two documents": "lr: 0.1\n---\nlr: 0.2",
    "BOM": b"\xef\xbb\xbflr: 0.25\n", "UTF-16": "lr: 0.1\n".encode("utf-16"),
    "UTF-32": "lr: 0.1\n".encode("utf-32"), "Latin-1": "model: caf\xe9".encode("latin-1"),
    "NUL": b"lr: 0.1\0\n", "escape": b"lr: \x1b[31m", "C1": "lr: \x85\x9b31m",
    "binary": bytes(range(256)),
    "empty": "", "comment": "# nothing", "CR": "lr: 0.25\rmomentum: 0.5\r", "tabs": "\tlr: 0.1",
    "huge integer": "epochs: " + "9" * 90000, "huge exponent": "epochs: 1e99999",
    "long key": "k" * 90000 + ": 1", "control in a key": '"\\x1b]0;x\\x07": 1',
    "key of bytes": "!!binary aGVsbG8=: 1", "key of null": "~: 1", "key of a list": "? [a, b]\n: 1",
    "key of a date": "2024-13-45: 1", "config in config": "config: other.yaml",
    "not a mapping": "[lr, 0.1]", "tags for everything": "!!map {!!str lr: !!float '0.25'}",
}
PLACES = ("folder", "fifo", "zero", "random", "null", "missing", "unreadable", "100 MB", "loop",
          "long name", "name with a line feed")


def corpus():
    """The texts of the recipes, without comments, and the configuration that a run saves."""
    texts = [path.read_text(encoding="utf-8")
             for path in sorted(Path(common.ROOT, "configs").rglob("*.yaml"))]
    texts = ["\n".join(line for line in text.splitlines() if not line.startswith("#"))
             for text in texts]
    defaults = options.train_parser().defaults()
    del defaults["data"], defaults["config"]
    return texts + [yaml.safe_dump(defaults, sort_keys=False)]


def cases(count, seed):
    """Files and places: a tenth of each fixed kind at most, the rest is drawn."""
    rng = random.Random(seed)
    texts, names = corpus(), sorted(options.train_parser().names())
    fixed = [Case("made by hand", (text if isinstance(text, bytes) else text.encode(), key))
             for key, text in FIXED.items()]
    fixed += [Case("no file of text", (None, place)) for place in PLACES]
    rng.shuffle(fixed)
    yield from fixed[:count]
    for number in range(count - len(fixed)):
        text = rng.choice(texts)
        if number % 2:
            yield Case("damaged bytes", (common.mutate(
                text.encode(), rng, other=rng.choice(texts).encode()), ""))
        else:
            yield Case("odd values", (_odd(text, names, rng).encode("utf-8", "replace"), ""))


def _odd(text, names, rng):
    lines = text.splitlines()
    for _ in range(rng.choice((1, 1, 1, 2))):
        name = rng.choice(names) if rng.random() < 0.7 else rng.choice(names).replace("_", "-")
        at = rng.randrange(len(lines) + 1)
        lines.insert(at, f"{name}: {rng.choice(SCALARS)}")
        if rng.random() < 0.7:  # not twice, or nothing but that is ever told
            lines = [line for index, line in enumerate(lines)
                     if index == at or line.split(":")[0].strip() != name]
    return "\n".join(lines) + "\n"


def judge(payload, folder):
    """Let train.py read the file."""
    content, label = payload
    path = _put(content, label, folder)
    errors = io.StringIO()
    parser = options.train_parser()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(errors):
            cfg = config.parse(parser, ["-c", path, "--data_path", "."])
    except SystemExit as end:
        assert end.code == 2, end.code
        usage, _, told = errors.getvalue().rstrip("\n").partition("\n")
        assert usage.startswith("usage: train.py"), usage
        assert told.startswith("train.py: error: "), told
        check_sentence(told)
        assert not os.path.exists("ran")
        return "refused"
    for line in errors.getvalue().splitlines():
        check_sentence(line)
    _compare(parser, cfg, content)
    assert not os.path.exists("ran")
    return "accepted, as written"


def _put(content, label, folder):
    """The path of a file with that content, or of what `label` says."""
    path = os.path.join(folder, "config.yaml")
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)
    if content is not None:
        Path(path).write_bytes(content)
    elif label == "folder":
        return folder
    elif label == "fifo":
        os.mkfifo(path)
    elif label in ("zero", "random", "null"):
        return {"random": "/dev/urandom"}.get(label, f"/dev/{label}")
    elif label == "unreadable":
        Path(path).write_text("lr: 0.1")
        os.chmod(path, 0)
    elif label == "100 MB":
        with open(path, "wb") as file:
            file.truncate(100_000_000)
    elif label == "loop":
        os.symlink(path, path)
    elif label == "long name":
        return "x" * 5000
    elif label == "name with a line feed":
        return "no\nsuch\x1b[31m file.yaml"
    return path


def _compare(parser, cfg, content):
    """Assert that what was accepted is what the file says."""
    names = parser.names()
    for key, value in (yaml.safe_load((content or b"").decode("utf-8-sig")) or {}).items():
        dest = names[key.replace("-", "_")].dest
        if dest in ("data_path", "config"):
            continue  # as typed
        found = getattr(cfg, dest)
        if isinstance(value, (str, int)) and isinstance(found, float):
            value = float(value)  # 1e-3 is text in YAML 1.1, and an integer may have any length
        if dest == "dataset" and value is None:
            value = "folder"
        assert found == value and isinstance(found, bool) == isinstance(value, bool), (
            key, value, found)
        numbers = found if isinstance(found, list) else [found]
        assert all(math.isfinite(n) for n in numbers if isinstance(n, float)), (key, found)


def run(count=500, seed=0, keep=None):
    """Judge so many files; returns common.Totals."""
    return judge_all("YAML files", cases(count, seed), judge, keep)


def main(argv=None):
    return common.command(run, __doc__.splitlines()[0], 500, argv)


if __name__ == "__main__":
    sys.exit(main())

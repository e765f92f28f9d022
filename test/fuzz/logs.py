"""Logs that no training wrote, through python -m mobilenetv3.report: table, page, each result.

    python test/fuzz/logs.py --count 500 --seed 0

The exit status is 0 with a table or a final result that only shows itself, or 1 with a sentence.
What is written beside the log has the name of the network for its name, and no other place. The
page has no element that is not ours, and its data can be read.
"""
import contextlib
import io
import json
import random
import re
import shutil
import sys
from pathlib import Path

import common
from common import Case, check_sentence, judge_all

from mobilenetv3 import report
from mobilenetv3.logfmt import Accuracy, Best, Run, Throughput, TrainLine
from mobilenetv3.report import figures, page, panels, records
from mobilenetv3.report.markup import data

OURS = {"header", "div", "h1", "h2", "h3", "p", "span", "b", "small", "nav", "a", "main", "section",
        "button", "svg", "line", "circle", "path", "table", "thead", "tbody", "tr", "th", "td",
        "ul", "li", "footer"}
"""Elements of the page of a run that has a log alone."""
ODD = ('"x"', "null", "[]", "{}", "-1", "0", "1e999", "NaN", "9" * 400, "9" * 5000, "true", '""',
       '"\\u001b[31m"', '"<script>alert(1)</script>"', '"../../x"', '"a/b"',
       '"/etc/x"', '"%s"', '"\\ud800"', '"|"', '"<b>"',
       '"' + "x" * 300 + '"', "[" * 5000, "1.5", '"a\\nb"', '" "')


def corpus():
    """A log of a run of one epoch."""
    lines = [Run("mobilenetv3_large_100", "demo", "cpu", 2, 128, 1, "O0", "2", 224, 1).line()]
    lines += [TrainLine(0, step, 3, 0.5, 0.5, 256.0, 256.0, 0.0, 0.0, 7.0 - step, 6.5, 1.0, 1.0,
                        5.0, 5.0, 0.1).line() for step in range(3)]
    return "\n".join([*lines, Throughput(1150.0).line(), Accuracy(73.5, 91.3).line(),
                      Best(73.5, 0, "ckpt/model_best.pth.tar").line(), ""])


def cases(count, seed):
    """Half of them with other values in the log's places, half with damaged bytes."""
    rng, text = random.Random(seed), corpus()
    for number in range(count):
        if number % 2:
            yield Case("damaged bytes", common.mutate(text.encode(), rng, [(0, 200)]))
        else:
            yield Case("odd values", _odd(text, rng.choice((0.02, 0.1, 0.3)), rng).encode())


def _odd(text, share, rng):
    """The text with a share of its values replaced."""
    def replaced(match):
        return rng.choice(ODD) if rng.random() < share else match[0]

    return re.sub(r'(?<=[:,] )("[^"]*"|[\d.]+)|(?<=[\[ (\t])[\d.]+', replaced, text)


def judge(payload, folder):
    """Make the table and each of the results."""
    found = []
    for case in ("", "acc", "perf", "eval"):
        run = Path(folder) / "run"
        shutil.rmtree(str(run), ignore_errors=True)
        run.mkdir()
        (run / "train.log").write_bytes(payload)
        out, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            status = report.main([*(["--case", case] if case else ["--table"]), str(run)])
        assert status in (0, 1)
        lines = (out if status == 0 else errors).getvalue().splitlines()
        assert lines
        for line in lines:
            check_sentence(line)
        assert case or status or all(line.count("|") - line.count("\\|") == 9 for line in lines)
        assert {path.name for path in Path(folder).iterdir()} == {"run"}
        found.append(status == 0)
    check_page(run)
    return "reported" if all(found) else "in part" if any(found) else "refused"


def check_page(run):
    """Make the page; whatever the log holds is text in it."""
    found = records.read([run])
    curves = panels.curves([one.history for one in found])
    elements = set(re.findall(r"<([a-z]\w*)", page.content(found, curves)))
    assert elements <= OURS, elements - OURS
    for panel in curves.panels:
        json.loads(data(figures.figure(panel, curves, [found[0].name])))


def run(count=500, seed=0, keep=None):
    """Judge so many logs; returns common.Totals."""
    return judge_all("logs", cases(count, seed), judge, keep)


def main(argv=None):
    return common.command(run, __doc__.splitlines()[0], 500, argv)


if __name__ == "__main__":
    sys.exit(main())

"""Runs to tables and pages: reads logs, writes the result table, report.html and pictures.

    python -m mobilenetv3.report output/* test/output/0      # Markdown, one row a run; and a page
    python -m mobilenetv3.report --follow RUN                # a line that tells where it is
    python -m mobilenetv3.report --case acc --seconds 3600 test/output/0/train_0.log

The meaning of a number is the same wherever it is printed. FPS: images per second over all ranks,
warm-up, validation and checkpoints left out (the last ` * FPS@all` line). Accuracy: the best Acc@1
in percent over the whole validation set. A number that was not measured is left out ("-" in the
table), never guessed.
"""
from .case import case_name
from .command import main
from .logs import Log, find_log, read_log
from .result import table

__all__ = ["Log", "case_name", "find_log", "main", "read_log", "table"]

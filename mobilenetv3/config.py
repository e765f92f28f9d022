"""From a command line and a YAML file to one checked configuration, and back into a file."""
import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import yaml

from mobilenetv3 import checks, yamlfile
from mobilenetv3.arguments import Parser
from mobilenetv3.files import write_atomically
from mobilenetv3.text import printable

DEMO_RECIPE = Path(__file__).resolve().parents[1] / "configs" / "demo.yaml"
WEIGHTS = ("ckpt_path", "pretrained", "resume")
"""The options that say where weights come from."""


def parse(parser: Parser, argv: Optional[Sequence[str]] = None) -> Namespace:
    """Read the command line (sys.argv if None) and the file that its -c names.

    The command line wins over the file, the file over the defaults. A mistake ends the process
    with status 2 and one sentence on standard error; a setting without effect is told there, too.
    """
    try:
        typed = parser.typed(sys.argv[1:] if argv is None else list(argv))
        cfg, notes = _resolve(parser, typed)
    except ValueError as error:
        parser.error(str(error))
    if str(os.environ.get("RANK") or getattr(cfg, "dist_rank", 0)) == "0":
        for note in notes:
            print(f"{parser.prog}: {printable(note)}", file=sys.stderr)
    return cfg


def save(cfg: Namespace, path) -> None:
    """Write a configuration as YAML that -c reads; all of the file appears, or nothing of it."""
    options = {name: value for name, value in vars(cfg).items() if name != "config"}
    header = "# Every option of a run, defaults included. Use it again with -c and this file.\n"
    if cfg.config:
        header += f"# It was made from {cfg.config!r} and the command line.\n"
    body = yaml.safe_dump(options, sort_keys=False, default_flow_style=None, allow_unicode=True)
    write_atomically(path, lambda file: file.write((header + body).encode("utf-8")))


def _resolve(parser: Parser, typed: Dict[str, Any]) -> Tuple[Namespace, List[str]]:
    """The checked configuration, and what is to be said about it."""
    notes = []
    _merge_data_path(typed)
    file = typed.get("config", "")
    if not file and parser.trains and _wants_demo(typed):
        file = str(DEMO_RECIPE)
        notes.append(f"no data path: the built-in demo set (handwritten digits), as in {file}")
    given = yamlfile.read(parser, file) if file else {}
    if any(typed.get(name) for name in WEIGHTS):
        # The file's weights are those of another run; they are no addition to the ones typed.
        given = {name: value for name, value in given.items() if name not in WEIGHTS}
    defaults = parser.defaults()
    del defaults["data"]
    cfg = Namespace(**{**defaults, **given, **typed, "config": file})
    if cfg.dataset is None:
        cfg.dataset = "folder" if cfg.data_path else "demo"
    checks.check(cfg, parser.trains)
    # A run's file that is read to score has much that is of its training.
    notes += checks.without_effect(cfg, defaults, None if parser.trains else typed)
    return cfg, notes


def _merge_data_path(typed: Dict[str, Any]) -> None:
    """Make one of the two ways to type the data path."""
    data, data_path = typed.pop("data", None), typed.get("data_path")
    files = typed.get("ckpt_path")
    if not data and isinstance(files, list) and len(files) > 1 and os.path.isdir(files[-1]):
        data = files.pop()  # --ckpt_path FILE DIR: it takes all that stands behind it
    if data and data_path and data != data_path:
        raise ValueError(f"two data paths: {data!r} and --data_path {data_path!r}; give one")
    if data:
        typed["data_path"] = data


def _wants_demo(typed: Dict[str, Any]) -> bool:
    return not typed.get("data_path") and typed.get("dataset", "demo") == "demo"

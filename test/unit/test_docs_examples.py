"""The Python examples of the documentation run, and those of a translation are the same programs.

The blocks of a page are one program, from top to bottom, run in an empty folder beside `configs`.
A line `<!-- needs NAME VERSION -->` before a block leaves it out where that package is older or
absent.
"""
import ast
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from mobilenetv3.device import version

ROOT = Path(__file__).resolve().parents[2]
PAGES = [path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
         if not path.name.endswith(".zh-CN.md")]
BLOCK = re.compile(r"(?:^<!-- needs (\S+) (\S+) -->\n+)?^```python\n(.*?)^```$", re.M | re.S)


def has(package, least):
    try:
        return version(metadata.version(package)) >= version(least)
    except metadata.PackageNotFoundError:
        return False


def blocks(page):
    """(number of the first line, needs, text) of each Python block."""
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        package, least, code = match.groups()
        yield text.count("\n", 0, match.start(3)), (package, least), code


def program(page):
    """The blocks as one program whose line numbers are the page's."""
    lines = []
    for first, (package, least), code in blocks(page):
        if package is None or has(package, least):
            lines += [""] * (first - len(lines)) + code.splitlines()
    return "\n".join(lines) + "\n"


def name_of(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if list(blocks(page))], ids=name_of)
def test_the_python_examples_of_a_page_run(page, tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    script = tmp_path / (page.name + ".py")
    script.write_text(program(page), encoding="utf-8")
    env = dict(os.environ, PYTHONPATH=str(ROOT), HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1",
               MOBILENETV3_CACHE=str(tmp_path / "cache"))
    run = subprocess.run(
        [sys.executable, str(script)], cwd=str(tmp_path), env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
    )
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_translation_has_the_same_examples(page):
    translation = page.with_name(page.name.replace(".md", ".zh-CN.md"))
    if not translation.exists():
        pytest.skip(f"{name_of(page)} is not translated")
    ours, theirs = list(blocks(page)), list(blocks(translation))
    # Only comments may differ; a syntax tree has none.
    assert [ast.dump(ast.parse(code)) for _, _, code in ours] == [
        ast.dump(ast.parse(code)) for _, _, code in theirs
    ]
    assert [needs for _, needs, _ in ours] == [needs for _, needs, _ in theirs]


def test_blocks_are_found_with_their_lines_and_needs(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A\n\n```python\na = 1\n```\n\n<!-- needs pip 999 -->\n```python\nb = a\n```\n"
        "```bash\nls\n```\n```python\nc = 2\n```\n"
    )
    assert list(blocks(page)) == [
        (3, (None, None), "a = 1\n"), (8, ("pip", "999"), "b = a\n"), (14, (None, None), "c = 2\n"),
    ]
    assert program(page) == "\n\n\na = 1\n" + "\n" * 10 + "c = 2\n"

"""The README's table and picture are those of the records in docs/runs."""
import importlib.util
import json
from pathlib import Path

import pytest

from mobilenetv3.report import pictures

ROOT = Path(__file__).resolve().parents[2]
REMEDY = "run: python docs/refresh.py"


@pytest.fixture(scope="module")
def refresh():
    spec = importlib.util.spec_from_file_location("refresh", str(ROOT / "docs" / "refresh.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_the_table_is_what_the_command_prints(page, refresh, capsys):
    from mobilenetv3 import report

    assert report.main(["--table", *(str(ROOT / "docs" / "runs" / name) for name in refresh.RUNS)]
                       ) == 0
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 2 + len(refresh.RUNS)
    text = (ROOT / page).read_text(encoding="utf-8")
    assert f"{refresh.BEGIN}\n{printed}\n{refresh.END}" in text, REMEDY


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_picture_is_drawn_from_the_records_by_the_code_that_is_here(theme, refresh):
    path = refresh.PICTURES[theme]
    assert pictures.metadata(path)[pictures.DRAWN_FROM] == pictures.fingerprint(
        *refresh.curves()), REMEDY
    assert path.stat().st_size < 300_000
    for page in ("README.md", "README.zh-CN.md"):
        assert str(path.relative_to(ROOT)) in (ROOT / page).read_text(encoding="utf-8")


def test_other_records_are_told(refresh, tmp_path, monkeypatch):
    assert refresh.stale() == []
    fewer = refresh.RUNS[:-1]
    monkeypatch.setattr(refresh, "RUNS", fewer)
    monkeypatch.setattr(refresh, "DRAWN", refresh.RUNS[-1])
    assert refresh.stale() == [*refresh.PAGES, *refresh.PICTURES.values()]


def test_a_readme_without_the_place_of_the_table_is_an_error(refresh):
    with pytest.raises(ValueError, match="no place for the table"):
        refresh.with_results("# Read me\n")


def test_records_are_small_and_whole(refresh):
    for name in refresh.RUNS:
        folder = ROOT / "docs" / "runs" / name
        assert sum(path.stat().st_size for path in folder.iterdir()) < 200_000
        for line in (folder / "environment.jsonl").read_text().splitlines():
            assert json.loads(line)["versions"]["torch"]

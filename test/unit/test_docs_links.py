"""The documentation as Markdown: links lead somewhere, tables are whole, translations keep up."""
import re
import unicodedata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "test").rglob("*.md"),
                *(ROOT / "deploy").rglob("*.md")])
TRANSLATED = [page for page in PAGES if page.name.endswith(".zh-CN.md")]
LINK = re.compile(r"!?\[(?:[^][]|\[[^]]*\])*\]\(\s*<?([^)<>\s]+)>?[^)]*\)")
IMAGE = re.compile(r"""<(?:img|source|a)\b[^>]*?\b(?:src|srcset|href)\s*=\s*["']([^"']+)["']""")


def name_of(page):
    return str(page.relative_to(ROOT))


def prose(page):
    """The text of a page without its fenced blocks; these lines are empty."""
    lines, fence = [], None
    for line in page.read_text(encoding="utf-8").splitlines():
        mark = re.match(r" *(```+|~~~+)", line)
        if mark and fence is None:
            fence = mark.group(1)
        elif mark and mark.group(1) == fence:
            fence = None
        elif fence is None:
            lines.append(line)
            continue
        lines.append("")
    assert fence is None, f"{name_of(page)}: a {fence} is not closed"
    return "\n".join(lines)


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    found = []
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", prose(page), re.M):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        kept = (c for c in text if c in "-_ " or unicodedata.category(c)[0] in "LN")
        anchor = "".join(kept).replace(" ", "-")
        again = sum(each == anchor or re.fullmatch(re.escape(anchor) + r"-\d+", each) is not None
                    for each in found)
        found.append(f"{anchor}-{again}" if again else anchor)
    return found


def links(page):
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    return [*LINK.findall(text), *IMAGE.findall(text)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_within_the_project_leads_somewhere(page):
    broken = []
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_rows_of_a_table_have_as_many_cells_as_its_head(page):
    lines = prose(page).splitlines()
    tables = 0
    for number, line in enumerate(lines):
        if not re.fullmatch(r"\|( *:?-+:? *\|)+", line):
            continue
        tables += 1
        assert lines[number - 1].startswith("|"), f"line {number}: a table without a head"
        before = lines[number - 2] if number > 1 else ""
        assert not before.strip(), f"line {number - 1}: no empty line before a table"
        for offset, row in enumerate(lines[number - 1:]):
            if not row.startswith("|"):
                break
            assert row.endswith("|"), f"line {number + offset}"
            assert cells(row) == cells(line), f"line {number + offset}: {row}"
    assert tables or not re.search(r"^\|", "\n".join(lines), re.M)


def cells(row):
    """Columns of a row, as GitHub counts: any bar parts cells, in code, too, unless escaped."""
    return len(re.sub(r"\\\|", "", row).split("|")) - 2


@pytest.mark.parametrize("page", TRANSLATED, ids=name_of)
def test_a_translation_has_the_sections_and_tables_of_its_original(page):
    original = page.with_name(page.name.replace(".zh-CN.md", ".md"))

    def shape(of):
        return [(len(line) - len(line.lstrip("#")) if line.startswith("#") else line.count("|"))
                for line in prose(of).splitlines()
                if re.match(r"#{1,6} ", line) or re.fullmatch(r"\|( *:?-+:? *\|)+", line)]
    assert shape(page) == shape(original)


def test_every_page_is_translated_and_each_language_links_the_other():
    for page in PAGES:
        if page.parent not in (ROOT, ROOT / "docs"):
            continue
        other = page.with_name(page.name.replace(".zh-CN.md", ".md") if page in TRANSLATED
                               else page.name.replace(".md", ".zh-CN.md"))
        assert other.exists(), f"{name_of(page)} has no counterpart"
        assert other.name in links(page), f"{name_of(page)} does not link {other.name}"


def test_anchors_are_those_of_github(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A `b_c`, (d)\n## A [link](x.md)\n```\n# none\n```\n"
                    "### 多个 rank，以及 CPU 核\n## Twice\n## Twice\n", encoding="utf-8")
    assert anchors(page) == ["a-b_c-d", "a-link", "多个-rank以及-cpu-核", "twice", "twice-1"]


def test_links_are_found_outside_of_code(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("[a](b.md#c) and `[no](no.md)` ![p](p.png \"t\")\n```\n[no](no.md)\n```\n"
                    '<img alt="x" src="q.png">\n', encoding="utf-8")
    assert links(page) == ["b.md#c", "p.png", "q.png"]


@pytest.mark.parametrize("ending", [".md", ".zh-CN.md"])
def test_the_readme_leads_to_every_page_of_its_language(ending):
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")
             if page.name.endswith(".zh-CN.md") == (ending == ".zh-CN.md")}
    assert pages <= set(links(ROOT / f"README{ending}"))

"""Numbers of README and pages that the package itself knows."""
import re
from pathlib import Path

import pytest

import mobilenetv3
from mobilenetv3.models import names

ROOT = Path(__file__).resolve().parents[2]
READMES = ["README.md", "README.zh-CN.md"]
OTHERS = ["CHANGELOG.md", "CHANGELOG.zh-CN.md"]
RECIPES = sorted((ROOT / "configs").glob("*/*.yaml"))


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def published(network):
    """Every Acc@1 in the heads of the recipes of a network, as it is written."""
    found = set()
    for path in RECIPES:
        head = path.read_text(encoding="utf-8").partition("\ndataset:")[0]
        if re.search(network, path.name):
            found.update(re.findall(r"\d\d\.\d+", head.partition("Published")[2]))
    return found


@pytest.mark.parametrize("readme", READMES)
def test_the_published_accuracies_are_those_of_the_recipes(readme):
    table = re.search(r"^\| \| V3-Large \| V3-Small \| V2 \|\n.*\n((?:\|.*\n)+)", text_of(readme),
                      re.M).group(1)
    rows = [[cell.strip() for cell in row.split("|")[2:5]] for row in table.splitlines()]
    assert len(rows) == 7
    for column, network in enumerate(("large_(100|xiaolai)", "small_(100|xiaolai)", "v2_100")):
        cells = [number for row in rows for number in re.findall(r"\d\d\.\d+", row[column])]
        assert len(cells) >= 5 and set(cells) <= published(network)


@pytest.mark.parametrize("page", [*READMES, *OTHERS])
def test_the_number_of_networks_is_right(page):
    count = len(names.MODELS) + len(names.TORCHVISION_WIDTH_ALIASES)
    assert re.findall(r"\b(\d+)(?: names| networks| 个名称| 个网络|(?=\. The most)|(?= 个见))",
                      text_of(page)).count(str(count)) == (2 if page in READMES else 1)


@pytest.mark.parametrize("page", OTHERS)
def test_the_changes_know_the_version_and_the_number_of_recipes(page):
    text = text_of(page)
    assert re.search(r"^## (\d\S*?)[,，]", text, re.M).group(1) == mobilenetv3.__version__
    assert re.search(r"\b(\d+)(?: files| 个文件)", text).group(1) == str(len(RECIPES))


# ---- Options


FOREIGN = {  # of torchrun, docker, pip, pytest; and of "--name=value", the form of an option
    "standalone", "nproc_per_node", "signals_to_handle", "shm_size", "index_url", "name",
}
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.fixture(scope="module")
def known():
    """Every option that a command of this project has, spelt with underscores."""
    sources = [ROOT / "test" / "e2e" / "crash.py"]
    for folder in ("mobilenetv3", "benchmarks", "test/fuzz"):
        sources += (ROOT / folder).rglob("*.py")
    names = {name for path in sources
             for name in re.findall(r"\"--([\w-]+)\"", path.read_text(encoding="utf-8"))}
    for path in (ROOT / "test").glob("*.sh"):
        text = path.read_text(encoding="utf-8")
        names.update(re.findall(r"(?:about|shown|option)\[(\w+)\]", text))
        names.update(re.findall(r"--([a-z][\w-]+)", text))
    return {name.replace("-", "_") for name in names} | FOREIGN


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_that_a_page_names_exist(page, known):
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.M | re.S)  # commands are run elsewhere
    if page.name.startswith("migrating"):  # the left column of a table is the other package's
        text = re.sub(r"^\|[^|]*\|", "|", text.replace("\\|", "/"), flags=re.M)
    named = {name.replace("-", "_") for span in re.findall(r"`([^`]+)`", text)
             for name in re.findall(r"(?<![\w-])--([a-z][\w-]*)", span)}
    unknown = {name for name in named
               if name not in known and re.sub("^no_", "", name) not in known}
    assert not unknown


@pytest.mark.parametrize("readme", READMES)
def test_the_measured_speeds_are_those_of_the_performance_page(readme):
    page = text_of("docs/" + ("performance.md" if readme == "README.md"
                              else "performance.zh-CN.md"))
    head = r"^\| \| (?:this package|本软件包) \| timm \| torchvision \|\n.*\n"
    table = re.search(head + r"((?:\|.*\n)+)", text_of(readme), re.M).group(1)
    figures = re.findall(r"\| (\d+(?:\.\d+)?)(?= \|)", table)
    assert len(figures) >= 8
    for figure in figures:
        assert re.search(rf"\| \**{re.escape(figure)}\**(?: |,)", page), figure

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

"""The shipped recipes: each trains a step as it stands, and holds what its source publishes."""
import re
import runpy
from pathlib import Path

import pytest
import torchvision
import yaml
from PIL import Image

from mobilenetv3 import build, config, device, dist, options

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "configs").glob("*/*.yaml"))
HAS_HALF_ON_CPU = device.TORCH_VERSION >= (2, 1)
HAS_TRIVIAL_AUGMENT = hasattr(torchvision.transforms, "TrivialAugmentWide")


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A folder of 1,000 classes, laid out as ImageNet's, with one and the same image in each."""
    root = tmp_path_factory.mktemp("imagenet")
    image = root / "image.jpg"
    Image.radial_gradient("L").convert("RGB").save(str(image))
    for label in range(1000):
        (root / "train" / f"n{label:08d}").mkdir(parents=True)
        (root / "train" / f"n{label:08d}" / "image.jpg").symlink_to(image)
    (root / "val").symlink_to(root / "train")
    return root


@pytest.fixture
def train(monkeypatch):
    """train.main, as the script has it."""
    monkeypatch.syspath_prepend(str(ROOT))
    return runpy.run_path(str(ROOT / "train.py"))["main"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains_a_step(path, imagenet, train, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    argv = ["-c", str(path), "--data_dir", str(imagenet), "--device", "cpu", "--workers", "0",
            "--img_size", "32", "--batch_size", "8", "--max_steps", "1", "--skip_validation",
            "--output", str(tmp_path / "run")]
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "train_img_size" in recipe:
        argv += ["--train_img_size", "32"]
    if recipe.get("apex") and not HAS_HALF_ON_CPU:
        argv += ["--no_apex"]
    cfg = config.parse(options.train_parser(), argv)
    if recipe.get("aa") == "ta_wide" and not HAS_TRIVIAL_AUGMENT:
        with pytest.raises(ValueError, match="--aa ta_wide is torchvision's TrivialAugmentWide"):
            train(cfg)
        return
    train(cfg)
    log = capsys.readouterr().out
    assert f'"model": "{recipe["model"]}"' in log
    assert len(re.findall(r"^Epoch: \[0\]\[0/125\]", log, re.M)) == 1  # of 1,000 images by 8
    assert (tmp_path / "run" / "checkpoint.pth.tar").is_file()


# Name -> Acc@1, Acc@5 (%), batch, epochs, rate, weight decay: as the sources publish them.
# None: not published. The comments name the sources' own files, tables and model cards.
PUBLISHED = {
    # torchvision: weights' metadata; references/classification; pull request 5560
    "mobilenetv3_large_100_torchvision_v1": (74.042, 91.340, 1024, 600, 0.064, 1e-5),
    "mobilenetv3_large_100_torchvision_v2": (75.274, 92.566, 1024, 600, 0.5, 2e-5),
    "mobilenetv3_small_100_torchvision_v1": (67.668, 87.402, 1024, 600, 0.064, 1e-5),
    "mobilenetv2_100_torchvision_v1": (71.878, 90.286, 256, 300, 0.045, 4e-5),
    "mobilenetv2_100_torchvision_v2": (72.154, 90.822, 1024, 600, 0.5, 2e-5),
    # mmpretrain: configs/mobilenet_v3, configs/mobilenet_v2
    "mobilenetv3_large_100_mmpretrain": (73.49, 91.31, 1024, 600, 0.064, 1e-5),
    "mobilenetv3_small_100_mmpretrain": (66.68, 86.74, 1024, 600, 0.064, 1e-5),
    "mobilenetv3_small_075_mmpretrain": (65.23, 85.44, 1024, 600, 0.064, 1e-5),
    "mobilenetv3_small_050_mmpretrain": (57.91, 80.19, 1024, 600, 0.064, 1e-5),
    "mobilenetv2_100_mmpretrain": (71.86, 90.42, 256, 300, 0.045, 4e-5),
    # MindCV: configs/mobilenetv3, configs/mobilenetv2; the batch is 8 cards'
    "mobilenetv3_large_100_mindcv": (75.59, 92.57, 8 * 75, 420, 1.08, 2e-5),
    "mobilenetv3_small_100_mindcv": (68.07, 87.77, 8 * 75, 470, 0.77, 2e-5),
    "mobilenetv2_075_mindcv": (69.73, 89.35, 8 * 256, 400, 0.3, 3e-5),
    "mobilenetv2_100_mindcv": (72.27, 90.72, 8 * 256, 320, 0.4, 4e-5),
    "mobilenetv2_140_mindcv": (75.56, 92.56, 8 * 256, 300, 0.4, 4e-5),
    # Ascend ModelZoo: ID1784, contrib, MobileNetV2
    "mobilenetv3_large_100_ascend_1p": (73.5, None, 128, 600, 0.008, 1e-5),
    "mobilenetv3_large_100_ascend_8p": (73.5, None, 1024, 600, 0.064, 1e-5),
    "mobilenetv3_large_100_ascend_contrib_8p": (74.934, None, 8 * 512, 600, 1.6, 1e-5),
    "mobilenetv2_100_ascend_8p": (71.3, None, 8 * 512, 600, 0.4, 1e-4),
    # timm: results-imagenet.csv; training_script.mdx; issue 1021
    "mobilenetv3_large_100_timm_ra": (75.784, 92.528, 2 * 512, 600, 0.064, 1e-5),
    "mobilenetv3_large_100_timm_ra4": (76.310, 92.842, None, 3600, None, None),
    "mobilenetv3_rw_timm_rmsp": (75.616, 92.696, None, None, None, None),
    "mobilenetv3_small_100_timm_lamb": (67.636, 87.638, None, 450, 0.005, 0.1),
    "mobilenetv3_small_075_timm_lamb": (65.284, 85.462, None, 450, 0.005, None),
    "mobilenetv3_small_050_timm_lamb": (57.918, 80.144, None, 450, 0.005, None),
    "mobilenetv2_050_timm_lamb": (65.928, 86.114, None, 450, 0.005, 7e-6),
    "mobilenetv2_100_timm_ra": (72.910, 91.000, None, None, None, None),
    "mobilenetv2_110d_timm_ra": (75.056, 92.186, None, None, None, None),
    "mobilenetv2_120d_timm_ra": (77.300, 93.516, None, None, None, None),
    "mobilenetv2_140_timm_ra": (76.528, 93.008, None, None, None, None),
    # Google: Howard et al. 2019, section 6.1.1; the accuracy is timm's of Google's weights
    "tf_mobilenetv3_large_100_google": (75.510, 92.600, 4096, None, 0.1, 1e-5),
    "tf_mobilenetv3_large_075_google": (73.442, 91.332, 4096, None, 0.1, 1e-5),
    "tf_mobilenetv3_large_minimal_100_google": (72.270, 90.664, 4096, None, 0.1, 1e-5),
    "tf_mobilenetv3_small_100_google": (67.922, 87.686, 4096, None, 0.1, 1e-5),
    "tf_mobilenetv3_small_075_google": (65.706, 86.130, 4096, None, 0.1, 1e-5),
    "tf_mobilenetv3_small_minimal_100_google": (62.892, 84.270, 4096, None, 0.1, 1e-5),
    # d-li14 and xiaolai: their READMEs; xiaolai's main.py
    "mobilenetv3_large_100_dli14": (74.280, 91.928, 1024, 150, 0.4, 4e-5),
    "mobilenetv3_large_075_dli14": (72.842, 90.846, 1024, 150, 0.4, 4e-5),
    "mobilenetv3_small_100_dli14": (67.214, 87.304, 1024, 150, 0.4, 4e-5),
    "mobilenetv3_small_075_dli14": (64.876, 85.498, 1024, 150, 0.4, 4e-5),
    "mobilenetv3_large_xiaolai2023": (75.864, 92.466, 8 * 256, 450, 4e-3, 0.05),
    "mobilenetv3_small_xiaolai2023": (69.164, 88.282, 8 * 256, 450, 4e-3, 0.05),
}


def test_every_shipped_recipe_is_compared_with_its_source():
    assert {path.stem for path in RECIPES} == set(PUBLISHED)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_has_the_numbers_of_its_source(path):
    acc1, acc5, *numbers = PUBLISHED[path.stem]
    header = path.read_text(encoding="utf-8").split("\nmodel:")[0]
    told = re.search(r"# Published accuracy: Acc@1 ([\d.]+)(?:, Acc@5 ([\d.]+))?", header)
    assert (float(told.group(1)), told.group(2) and float(told.group(2))) == (acc1, acc5)
    assert re.search(r"not\s+(#\s+)?reproduced\s+(#\s+)?here", header)
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    given = [recipe[name] for name in ("batch_size", "epochs", "lr", "weight_decay")]
    assert [a for a, b in zip(given, numbers) if b is not None] == [b for b in numbers
                                                                   if b is not None]


def test_every_width_of_the_tables_has_a_recipe():
    found = {yaml.safe_load(path.read_text(encoding="utf-8"))["model"] for path in RECIPES}
    assert found >= {
        "mobilenetv3_large_100", "mobilenetv3_small_100", "mobilenetv3_small_075",
        "mobilenetv3_small_050", "tf_mobilenetv3_large_075", "dli14_mobilenetv3_large_075",
        "mobilenetv2_050", "mobilenetv2_075", "mobilenetv2_100", "mobilenetv2_140",
    }


def test_training_may_have_another_image_size_than_validation(monkeypatch, tmp_path):
    monkeypatch.setenv("MOBILENETV3_CACHE", str(tmp_path))
    cfg = config.parse(options.train_parser(), [
        "--train_crop_size", "48", "--img_size", "64", "--workers", "0"])
    train, val, _ = build.loaders(cfg, device.select("cpu"), dist.Ranks())
    assert [tuple(next(iter(loader))[0].shape[2:]) for loader in (train, val)] == [
        (48, 48), (64, 64)]


def test_torchvisions_second_recipe_trains_and_scores_at_its_two_sizes():
    cfg = config.parse(options.train_parser(), [
        "DIR", "-c", str(ROOT / "configs/mobilenetv2/mobilenetv2_100_torchvision_v2.yaml")])
    assert (cfg.train_img_size, cfg.img_size) == (176, 224)
    assert int(cfg.img_size / cfg.crop_pct) == 232  # side of the resized image
    # Every 32 updates their average keeps 1 - 2e-5 x 1024 x 32 / 600 of itself: this, 32 times.
    theirs = (1 - 2e-5 * 1024 * 32 / 600) ** (1 / 32)
    assert cfg.model_ema_decay == pytest.approx(theirs, abs=1e-6)


IMAGES = 1_281_167  # of ImageNet's training set
FPS = {  # published for a recipe, by its own publisher, images/s of all cards
    "mobilenetv3_large_100_ascend_1p": 1660, "mobilenetv3_large_100_ascend_8p": 6879,
    "mobilenetv3_large_100_ascend_contrib_8p": 9638, "mobilenetv2_100_ascend_8p": 13477,
    "mobilenetv3_large_100_mindcv": 10550, "mobilenetv3_small_100_mindcv": 11068,
    "mobilenetv2_075_mindcv": 11726,
}
STAND_INS = {"mobilenetv3_large_100": 10550, "mobilenetv3_small_100": 11068,
             "mobilenetv2_100": 13477}


def hours_of(path):
    """(cards, hours, FPS, whose FPS, epochs) that the header of a recipe tells."""
    found = re.search(r"^# Hours on (\d) cards?: +([\d.]+) at (\d+) img/s, (.+)\n"
                      r"# +\((\d+) epochs x 1,281,167 / FPS, without validation\)$",
                      path.read_text(encoding="utf-8"), re.M)
    cards, hours, fps, whose, epochs = found.groups()
    return int(cards), float(hours), int(fps), whose, int(epochs)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_hours_of_a_recipe_follow_from_its_epochs_and_a_published_rate(path):
    cards, hours, fps, whose, told = hours_of(path)
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    epochs = recipe["epochs"] + recipe.get("cooldown_epochs", 0)
    assert told == epochs
    assert hours == round(epochs * IMAGES / fps / 3600, 1)
    assert cards == (1 if path.stem.endswith("_1p") else 8)
    if path.stem in FPS:
        assert fps == FPS[path.stem] and whose.endswith("'s for this recipe")
    else:
        network = re.fullmatch(r"a stand-in: [\w ]+'s for (\w+)", whose).group(1)
        assert fps == STAND_INS[network]
        kind = "mobilenetv2" if path.stem.startswith("mobilenetv2") else (
            "small" if "small" in path.stem else "large")
        assert kind in network


@pytest.mark.parametrize("page", ["recipes.md", "recipes.zh-CN.md"])
def test_the_page_of_recipes_has_the_numbers_of_the_files(page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(mobilenetv\d/\w+)` \| (.*) \|$", text, re.M))
    assert {Path(name).name for name in rows} == {path.stem for path in RECIPES}
    for path in RECIPES:
        cells = [cell.strip() for cell in rows[f"{path.parent.name}/{path.stem}"].split("|")]
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        acc1, acc5, *_ = PUBLISHED[path.stem]
        assert [float(n) for n in re.findall(r"[\d.]+", cells[1])] == [
            n for n in (acc1, acc5) if n is not None]
        update = recipe["batch_size"] * recipe.get("grad_accum_steps", 1)
        assert cells[2:4] == [str(recipe["epochs"]), str(update)]
        _, hours, fps, whose, _ = hours_of(path)
        mark = "~" if "stand-in" in whose else ""
        assert cells[4] == f"{mark}{fps}" and cells[5].startswith(f"{mark}{hours}")
    budget = re.findall(r"^\| [^|]+ \| (~?[\d.]+) \| `(mobilenetv\d/\w+)`[^|]* \| ([\d.]+) \|$",
                        text, re.M)
    assert len(budget) == 9
    for hours, name, acc1 in budget:
        assert rows[name].split(" | ")[-1] == hours
        assert float(acc1) == PUBLISHED[Path(name).name][0]

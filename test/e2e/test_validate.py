"""validate.py: figures against a plain loop, several files, several ranks, what it refuses.

Most tests call the script's main() in this process; a process of its own takes seconds to start.
"""
import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision import datasets, transforms

from mobilenetv3 import checkpoint, create_model, data

DIGITS = [str(digit) for digit in range(10)]


def weights_file(path, seed, classes=DIGITS, average_of=None):
    """A checkpoint as train.py writes it, of random weights; returns the model."""
    torch.manual_seed(seed)
    model = create_model("mobilenetv3_small_050", num_classes=len(classes or DIGITS)).eval()
    with torch.no_grad():
        model.classifier.weight.normal_()
    checkpoint.save(path, {
        "format": 1, "epoch": 3, "arch": model.config["arch"], "model": model.config,
        "classes": classes, "state_dict": model.state_dict(),
        "state_dict_ema": average_of.state_dict() if average_of else None,
        "config": {"img_size": 40, "crop_pct": 0.9, "interpolation": "bicubic",
                   "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    })
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two checkpoints with names that are hard to print, and their models."""
    folder = tmp_path_factory.mktemp("weights of two runs")
    paths = folder / "model_best.pth.tar", folder / "a|b\nc.pth.tar"
    return [(path, weights_file(path, seed)) for seed, path in enumerate(paths)]


def plain_counts(model, cache):
    """(true, predicted) counts and the mean loss over the demo set, without this package's code."""
    prepare = transforms.Compose([
        transforms.Resize(44, transforms.InterpolationMode.BICUBIC),  # 40 / 0.9
        transforms.CenterCrop(40), transforms.ToTensor(),
        transforms.Normalize([0.5] * 3, [0.25] * 3),
    ])
    images = datasets.ImageFolder(str(cache / "digits-v1" / "val"), prepare)
    batch = torch.stack([image for image, _ in images])
    targets = torch.tensor(images.targets)
    with torch.no_grad():
        output = model(batch)
    counts = torch.zeros(10, 10, dtype=torch.int64)
    for true, predicted in zip(targets.tolist(), output.argmax(1).tolist()):
        counts[true, predicted] += 1
    return counts.tolist(), torch.nn.functional.cross_entropy(output, targets).item()


def read_counts(path):
    with open(str(path), encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    return [[int(cell) for cell in row[1:]] for row in rows[1:]]


def test_several_files_make_a_table_with_all_figures_as_json(script, files, cache, tmp_path):
    paths = [path for path, _ in files]
    result = script("validate.py", "--ckpt_path", paths[0], "--ckpt_path", paths[1], "--device",
                    "cpu", "--workers", 0, "--json", tmp_path / "new" / "scores.json",
                    "--per_class", tmp_path / "classes")
    assert result.status == 0, result.err
    written = json.loads((tmp_path / "new" / "scores.json").read_text())
    assert written["command"].startswith("validate.py --ckpt_path")
    assert written["versions"]["torch"] == torch.__version__
    assert (written["device"]["type"], written["ranks"]) == ("cpu", 1)
    assert (written["data"]["classes"], written["data"]["images"]) == (10, 360)

    rows = [line.strip("| ").split(" | ") for line in result.lines("| ")]
    assert rows[0] == ["file", "arch", "Top-1", "Top-5", "loss", "images", "images/s"]
    assert [row[0] for row in rows[2:]] == [
        str(paths[0]), f'"{paths[1]}"'.replace("\n", "\\n").replace("|", "\\|")]
    assert len(result.lines(" * Acc@1")) == 2
    folders = tmp_path / "classes" / "1_model_best", tmp_path / "classes" / "2_a|b\nc"
    for row, found, (path, model), folder in zip(rows[2:], written["results"], files, folders):
        counts, loss = plain_counts(model, cache)
        correct = sum(counts[digit][digit] for digit in range(10))
        assert read_counts(folder / "confusion.csv") == counts
        assert (found["file"], found["images"], found["correct1"]) == (str(path), 360, correct)
        assert found["top1"] == pytest.approx(100.0 * correct / 360)
        assert found["loss"] == pytest.approx(loss, rel=1e-4)
        assert found["prepare"] == {"img_size": 40, "crop_pct": 0.9, "interpolation": "bicubic",
                                    "mean": [0.5] * 3, "std": [0.25] * 3}
        assert [one["correct"] for one in found["per_class"]] == [
            counts[digit][digit] for digit in range(10)]
        assert row[1:6] == ["mobilenetv3_small_050", f"{found['top1']:.3f}",
                            f"{found['top5']:.3f}", f"{found['loss']:.4f}", "360"]
        with open(str(folder / "per_class.csv"), newline="") as file:
            table = list(csv.DictReader(file))
        assert [line["class"] for line in table] == DIGITS
        assert sum(int(line["correct"]) for line in table) == correct
    # A class with images was recognised by one of the two, or the comparison is of zeros.
    assert max(found["correct1"] for found in written["results"]) > 20


def test_two_ranks_count_every_image_once(launched, files, cache, tmp_path):
    path, model = files[0]
    result = launched(2, "validate.py", "--ckpt_path", path, "--device", "cpu", "--workers", 0,
                      "--batch_size", 50, "--output", tmp_path / "run", "--per_class",
                      "--json", tmp_path / "scores.json")
    assert result.status == 0, result.err
    counts = read_counts(tmp_path / "run" / "confusion.csv")
    assert counts == plain_counts(model, cache)[0]
    written = json.loads((tmp_path / "scores.json").read_text())
    assert (written["ranks"], written["results"][0]["images"]) == (2, 360)
    assert result.out.count(" * Acc@1") == 1
    assert (tmp_path / "run" / "train.log").read_text() == result.out
    # Whoever follows it asks for the lock: it goes on as long as one process had it.
    assert (tmp_path / "run" / "run.lock").read_text().startswith("process ")


def test_what_is_typed_wins_over_the_file(validate, files, tmp_path):
    path, _ = files[0]
    validate("--ckpt_path", path, "--img_size", 32, "--std", 0.5, 0.5, 0.5, "--bn_eps", 0.01,
             "--json", tmp_path / "a.json")
    found = json.loads((tmp_path / "a.json").read_text())["results"][0]
    assert found["prepare"] == {"img_size": 32, "crop_pct": 0.9, "interpolation": "bicubic",
                                "mean": [0.5] * 3, "std": [0.5] * 3}
    assert found["model"]["bn_eps"] == 0.01
    with pytest.raises(ValueError, match="by its names and shapes, not a mobilenetv2_100"):
        validate("--ckpt_path", path, "--model", "mobilenetv2_100")


def test_averaged_or_live_weights_are_scored_as_asked(validate, tmp_path):
    average = weights_file(tmp_path / "none.pth", 1)
    weights_file(tmp_path / "both.pth", 2, average_of=average)
    found = {}
    for name, words in (("default", []), ("ema", ["--ema"]), ("live", ["--no_ema"])):
        validate("--ckpt_path", tmp_path / "both.pth", *words, "--json", tmp_path / f"{name}.json")
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())["results"][0]["loss"]
    assert found["default"] == found["ema"] != found["live"]
    with pytest.raises(ValueError, match="none.pth .*holds no averaged weights"):
        validate("--ckpt_path", tmp_path / "none.pth", "--ema")


def test_a_file_of_another_family_needs_no_word_about_itself(validate, tmp_path):
    import torchvision

    model = torchvision.models.mobilenet_v3_small(num_classes=10)
    torch.save(model.state_dict(), str(tmp_path / "small.pth"))
    validate("--ckpt_path", tmp_path / "small.pth", "--img_size", 32, "--json", tmp_path / "a.json")
    found = json.loads((tmp_path / "a.json").read_text())["results"][0]
    assert (found["family"], found["arch"]) == ("torchvision", "mobilenetv3_small_100")
    assert found["model"]["bn_eps"] == 0.001


def test_timms_weights_by_name_bring_timms_preparation_and_must_fit_the_classes(
        validate, monkeypatch, tmp_path):
    from mobilenetv3 import models

    asked = []
    monkeypatch.setattr(models, "load_timm_weights", lambda model: asked.append(model) or [])
    with pytest.raises(ValueError, match="^timm/mobilenetv3_small_050 has 1000 classes, and demo:"):
        validate("--model", "mobilenetv3_small_050", "--pretrained")
    (tmp_path / "val").mkdir()
    Image.new("RGB", (40, 40)).save(str(tmp_path / "val" / "1.JPEG"))
    (tmp_path / "val.txt").write_text("1 0\n")
    validate(tmp_path, "--val_labels", tmp_path / "val.txt", "--model", "mobilenetv3_small_050",
             "--pretrained", "--img_size", 32, "--json", tmp_path / "a.json")
    found = json.loads((tmp_path / "a.json").read_text())["results"][0]
    assert (found["file"], found["family"]) == ("timm/mobilenetv3_small_050", "timm")
    # timm's default weights of this name are of a LAMB recipe: bicubic, 0.875.
    assert (found["prepare"]["interpolation"], found["prepare"]["crop_pct"]) == ("bicubic", 0.875)
    assert len(asked) == 2


# --------------------------------------------------------------------------------- what is refused


def test_other_classes_are_refused_before_anything_is_scored_or_written(
        validate, files, tmp_path, capsys):
    letters = list("abcdefghij")
    weights_file(tmp_path / "letters.pth", 0, letters)
    weights_file(tmp_path / "three.pth", 0, DIGITS[:3])
    nameless = create_model("mobilenetv3_small_050", num_classes=12)
    torch.save(nameless.state_dict(), str(tmp_path / "nameless.pth"))
    for name, message in (
            ("letters.pth", r"other classes \(10: a, b, c, ...\) than those of demo"),
            ("three.pth", r"other classes \(3: 0, 1, 2, ...\) than those of demo"),
            ("nameless.pth", "has 12 classes, and demo: UCI digits has 10")):
        with pytest.raises(ValueError, match=message):
            validate("--ckpt_path", files[0][0], tmp_path / name, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists() and "Test:" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="--num_classes is 10, and .*nameless.pth has 12 classes"):
        validate("--ckpt_path", tmp_path / "nameless.pth", "--num_classes", 10)
    # More outputs than classes are possible where that is said: train.py's --num_classes.
    validate("--ckpt_path", tmp_path / "nameless.pth", "--num_classes", 12, "--img_size", 32,
             "--per_class", tmp_path / "wide")
    assert len(read_counts(tmp_path / "wide" / "confusion.csv")[0]) == 12


def test_nothing_is_overwritten_unless_it_is_asked(validate, files, tmp_path):
    (tmp_path / "a.json").write_text("mine")
    (tmp_path / "confusion.csv").write_text("mine")
    for words in (["--json", tmp_path / "a.json"], ["--per_class", tmp_path]):
        with pytest.raises(ValueError, match="exists already; give another name, or add --force"):
            validate("--ckpt_path", files[0][0], *words)
    with pytest.raises(ValueError, match="is not empty and nothing in it will be overwritten"):
        validate("--ckpt_path", files[0][0], "--output", tmp_path)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"mine"}
    validate("--ckpt_path", files[0][0], "--json", tmp_path / "a.json", "--force")
    assert json.loads((tmp_path / "a.json").read_text())["results"]


# ------------------------------------------------------------------------------ images in a folder


@pytest.fixture(scope="module")
def flat(cache, tmp_path_factory):
    """The demo set's validation images in one folder, and their labels."""
    root = tmp_path_factory.mktemp("flat set")
    (root / "images").mkdir()
    lines = []
    data.open_source("demo", "", "val")
    for file in sorted((cache / "digits-v1" / "val").rglob("*.jpg")):
        (root / "images" / file.name).symlink_to(file)
        lines.append(f"{file.name} {file.parent.name}")
    (root / "labels.txt").write_text("\n".join(lines[::-1]))
    (root / "train").symlink_to(cache / "digits-v1" / "train")
    return root


def test_a_flat_folder_with_labels_scores_as_class_folders_do(validate, flat, files, tmp_path):
    validate("--ckpt_path", files[0][0], "--json", tmp_path / "a.json")
    validate(flat, "--val_split", "images", "--val_labels", flat / "labels.txt", "--ckpt_path",
             files[0][0], "--json", tmp_path / "b.json")
    first, second = (json.loads((tmp_path / name).read_text())["results"][0]
                     for name in ("a.json", "b.json"))
    assert first["correct1"] == second["correct1"] and second["images"] == 360
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-6)


@pytest.mark.parametrize("names", [None, "words", "synsets"])
def test_a_thousand_classes_are_imagenets_with_and_without_names(validate, tmp_path, names):
    from timm.data import ImageNetInfo

    known = {None: None, "words": ImageNetInfo().label_descriptions(),
             "synsets": ImageNetInfo().label_names()}
    torch.manual_seed(0)
    model = create_model("mobilenetv3_small_050")
    checkpoint.save(tmp_path / "w.pth", {
        "arch": model.config["arch"], "model": model.config, "classes": known[names],
        "state_dict": model.state_dict(), "config": {"img_size": 32}})
    (tmp_path / "val").mkdir()
    for number in range(2):
        Image.new("RGB", (40, 40), (90 * number,) * 3).save(
            str(tmp_path / "val" / f"{number}.JPEG"))
    (tmp_path / "val.txt").write_text("0.JPEG 0\n1.JPEG 999\n")
    validate(tmp_path, "--dataset", "imagenet", "--val_labels", tmp_path / "val.txt",
             "--ckpt_path", tmp_path / "w.pth", "--per_class", tmp_path / "classes")
    with open(str(Path(tmp_path) / "classes" / "per_class.csv"), newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["images"] for line in table].count("1") == 2
    assert (table[0]["class"], table[0]["images"]) == ("tench, Tinca tinca", "1")
    assert (table[999]["images"], table[1]["top1"]) == ("1", "")

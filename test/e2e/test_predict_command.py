"""predict.py: what it finds, in which form, and what it does with images that cannot be read.

Most tests call the script's main() in this process; a process of its own takes seconds to start.
"""
import csv
import importlib.util
import json
import os

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from mobilenetv3 import checkpoint, create_model, inference_model, init_model
from mobilenetv3.options.predict import parse_predict

CLASSES = ["ant", 'bee, "wild"', "\u9f99\u867e", "dog", "elk", "fox"]
NAMES = ["a b.jpg", "it's \"c\".jpg", "new\nline.jpg", "\u00e9t\u00e9.jpg", "sub/deep.png",
         "bytes\udcff.jpg"]


@pytest.fixture(scope="module")
def predict():
    """predict(arguments...): the script's main(), on the CPU, in this process."""
    spec = importlib.util.spec_from_file_location("predict_script", str(ROOT / "predict.py"))
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def run(*arguments):
        script.main(parse_predict([*map(str, arguments), "--device", "cpu"]))
    return run


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model_best.pth.tar"
    torch.manual_seed(0)
    model = create_model("mobilenetv3_small_050", num_classes=len(CLASSES))
    with torch.no_grad():
        model.classifier.weight.normal_()
    checkpoint.save(path, {
        "format": 1, "epoch": 3, "arch": model.config["arch"], "model": model.config,
        "classes": CLASSES, "state_dict": model.state_dict(), "state_dict_ema": None,
        "config": {"img_size": 48, "crop_pct": 1.0, "interpolation": "bicubic"},
    })
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Six images with names of all kinds."""
    folder = tmp_path_factory.mktemp("my photos")
    (folder / "sub").mkdir()
    for number, name in enumerate(NAMES):
        noise = np.random.RandomState(number).randint(0, 255, (6, 8, 3)).astype(np.uint8)
        image = Image.fromarray(noise).resize((80, 60))
        try:
            with open(str(folder / name), "wb") as file:
                image.save(file, "JPEG" if ".j" in name else "PNG")
        except OSError:
            pytest.skip(f"the file system takes no name such as {name!r}")
    return folder


def read_csv(path):
    with open(str(path), encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def test_unreadable_images_are_named_and_the_others_predicted(script, weights, photos, tmp_path):
    bad = tmp_path / "bad images"
    bad.mkdir()
    (bad / "text.jpg").write_text("no image")
    whole = (photos / "a b.jpg").read_bytes()
    (bad / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    result = script(
        "predict.py", photos, bad, tmp_path / "none.jpg", "--ckpt_path", weights, "--device", "cpu",
        "--csv", tmp_path / "new" / "found.csv", "--json", tmp_path / "found.json", "--sheet",
        tmp_path / "sheet.png", "--top_k", 2, "--batch_size", 4, PYTHONIOENCODING="ascii:strict",
    )
    assert result.status == 1
    complaints = result.err.splitlines()
    assert len(complaints) == 4 and complaints[-1] == (
        "predict.py: error: 3 could not be predicted and are named above; 6 could")
    for name, line in zip(("cut.jpg", "text.jpg", "none.jpg"), complaints):
        assert name in line

    rows = read_csv(tmp_path / "new" / "found.csv")
    written = json.loads((tmp_path / "found.json").read_text())
    files = [str(photos / name) for name in sorted(NAMES, key=lambda n: ("/" in n, n))]
    files += [str(bad / "cut.jpg"), str(bad / "text.jpg"), str(tmp_path / "none.jpg")]
    assert [row["file"] for row in rows] == files
    assert [one["file"] for one in written["results"]] == files
    assert (written["images"], written["unreadable"]) == (9, 3)
    assert written["arch"] == "mobilenetv3_small_050" and written["prepare"]["img_size"] == 48
    model = init_model(None, weights, "cpu")
    for row, one in zip(rows[:6], written["results"]):
        answer = inference_model(model, row["file"])
        assert (row["class_1"], row["error"]) == (answer["pred_class"], "")
        assert one["predictions"][0]["index"] == answer["pred_label"]
        assert one["predictions"][0]["score"] == pytest.approx(answer["pred_score"], abs=1e-5)
        assert len(one["predictions"]) == 2
        assert {row["class_1"], row["class_2"]} <= set(CLASSES)
    assert len({row["class_1"] for row in rows[:6]}) > 1  # or equality says little
    for row in rows[6:]:
        assert row["error"] and not row["class_1"]
    assert len([line for line in result.out.splitlines() if "% " in line]) == 6
    assert '"' + str(photos) + '/new\\nline.jpg": ' in result.out
    with Image.open(str(tmp_path / "sheet.png")) as image:
        assert image.format == "PNG" and image.width > 6 * 192


def test_a_good_run_ends_with_status_0_and_overwrites_nothing(script, weights, photos, tmp_path):
    arguments = ["predict.py", photos / "a b.jpg", "--ckpt_path", weights, "--device", "cpu",
                 "--csv", tmp_path / "found.csv"]
    (tmp_path / "found.csv").write_text("mine")
    refused = script(*arguments)
    assert refused.status == 1
    assert refused.last.endswith("found.csv exists already; give another name, or add --force")
    assert (tmp_path / "found.csv").read_text() == "mine"
    result = script(*arguments, "--force")
    assert (result.status, result.err) == (0, "")
    assert len(read_csv(tmp_path / "found.csv")) == 1
    assert result.out.splitlines()[-1].startswith("=> 1 images, ")


def test_what_is_typed_of_the_preparation_wins_over_the_file(predict, weights, photos, tmp_path):
    predict(photos / "a b.jpg", "--ckpt_path", weights, "--img_size", 64, "--mean", 0, 0, 0,
            "--json", tmp_path / "a.json")
    prepare = json.loads((tmp_path / "a.json").read_text())["prepare"]
    assert prepare == {"img_size": 64, "crop_pct": 1.0, "interpolation": "bicubic",
                       "mean": [0.0] * 3, "std": [0.229, 0.224, 0.225]}


def test_photographs_are_turned_where_that_is_asked(predict, weights, photos, tmp_path):
    upright = Image.open(str(photos / "a b.jpg")).convert("RGB")
    note = Image.Exif()
    note[0x0112] = 6  # stored lying; to be turned by 90 degrees clockwise
    upright.transpose(Image.ROTATE_90).save(str(tmp_path / "turned.png"), exif=note)
    upright.save(str(tmp_path / "upright.png"))
    found = {}
    for name, words in (("upright", []), ("turned", ["--exif"]), ("lying", [])):
        file = tmp_path / ("upright.png" if name == "upright" else "turned.png")
        predict(file, "--ckpt_path", weights, *words, "--json", tmp_path / f"{name}.json")
        result = json.loads((tmp_path / f"{name}.json").read_text())["results"][0]
        found[name] = result["predictions"]
    assert found["upright"] == found["turned"] != found["lying"]


def test_a_folder_without_images_is_an_error(predict, weights, photos, tmp_path, capsys):
    with pytest.raises(ValueError, match="there are no images to predict"):
        predict(tmp_path, "--ckpt_path", weights)
    assert f"there are no images in {tmp_path}" in capsys.readouterr().err
    with pytest.raises(ValueError, match="1 could not be predicted and are named above; 1 could"):
        predict(tmp_path, photos / "a b.jpg", "--ckpt_path", weights)
    assert os.listdir(str(tmp_path)) == []


def test_imagenets_names_come_with_weights_of_a_thousand_classes(predict, photos, tmp_path, capsys):
    model = create_model("mobilenetv3_small_050")
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.arange(1000.0) == 1)
    torch.save(model.state_dict(), str(tmp_path / "w.pth"))
    predict(photos / "a b.jpg", "--ckpt_path", tmp_path / "w.pth", "--img_size", 32, "--top_k", 1)
    # softmax: e / (e + 999)
    assert "a b.jpg: 0.3% goldfish, Carassius auratus\n" in capsys.readouterr().out

"""Real photographs: CIFAR-10 as JPEGs, where $MOBILENETV3_TEST_DATA/cifar10_jpeg.tar.gz is."""
import collections
import os
import sys
import tarfile
from pathlib import Path

import pytest

ARCHIVE = Path(os.environ.get("MOBILENETV3_TEST_DATA", "/")) / "cifar10_jpeg.tar.gz"
IMAGES = {"train": 96, "val": 20}  # of each of the ten classes


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory):
    if not ARCHIVE.is_file():
        pytest.skip("MOBILENETV3_TEST_DATA names no folder with cifar10_jpeg.tar.gz")
    root = tmp_path_factory.mktemp("cifar10")
    taken = collections.Counter()
    with tarfile.open(str(ARCHIVE)) as archive:
        for member in archive:
            split, label, name = ("", *Path(member.name).parts)[-3:]
            if not member.isfile() or taken[split, label] == IMAGES.get(split, 0):
                continue
            taken[split, label] += 1
            (root / split / label).mkdir(parents=True, exist_ok=True)
            (root / split / label / name).write_bytes(archive.extractfile(member).read())
    assert len(taken) == 20
    return root


def test_three_epochs_twice_with_one_seed_give_identical_losses(script, cifar10, tmp_path, metrics):
    found = []
    # A Python of its own and a fork of another: an order that differs by process would show.
    for run, python in (("first", sys.executable), ("second", None)):
        result = script(
            "train.py", cifar10, "--device", "cpu", "--model", "mobilenetv3_small_050",
            "--img_size", 32, "--batch_size", 64, "--lr", 0.02, "--epochs", 3, "--workers", 2,
            "--drop", 0.2, "--aa", "rand-m9-mstd0.5", "--reprob", 0.2, "--output", tmp_path / run,
            python=python)
        assert result.status == 0, result.err
        found.append([
            (record["train_loss"], record["val_loss"], record["val_acc1"])
            for record in metrics(tmp_path / run)
        ])
    assert found[0] == found[1]
    assert len(found[0]) == 3
    assert found[0][2][0] < found[0][0][0]  # it learns

"""CIFAR-10: found, fetched from a server on this host, refused in one sentence."""
import errno
import fcntl
import multiprocessing
import shutil
from pathlib import Path

import cifar_archive
import pytest
from torchvision import datasets

from mobilenetv3 import data
from mobilenetv3.data import cifar


@pytest.fixture
def server(tmp_path, monkeypatch):
    """(folder served, paths asked for), with torchvision's CIFAR10 made to fetch from it."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("MOBILENETV3_CACHE", str(tmp_path / "cache"))
    with cifar_archive.served(folder) as (address, asked):
        for name, value in cifar_archive.write(folder).items():
            value = address + value if name == "url" else value
            monkeypatch.setattr(datasets.CIFAR10, name, value)
        yield folder, asked


def test_without_a_data_path_it_is_fetched_once_into_the_cache_folder(server, tmp_path):
    train = data.open_source("cifar10", "", "train", download=True)
    val = data.open_source("cifar10", "", "val")  # from there, without being asked to fetch
    assert (len(train.samples), len(val.samples)) == (80, 16)  # 5 files of 16 images, and 1
    assert train.classes == val.classes == cifar_archive.CLASSES
    assert train.note == val.note == f"=> CIFAR-10 in {tmp_path / 'cache' / 'cifar10'}"
    image, label = train.samples[3]
    assert (image.size, image.mode, label) == ((32, 32), "RGB", 3)
    assert server[1] == ["/" + cifar_archive.NAME] * cifar_archive.REQUESTS


def test_what_is_there_is_not_fetched_again_and_needs_no_network(server, tmp_path, monkeypatch):
    cifar.open_cifar10(tmp_path / "data", True, download=True)
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/nothing")
    assert len(cifar.open_cifar10(tmp_path / "data", True, download=True)) == 80
    assert len(server[1]) == cifar_archive.REQUESTS


def _open(root, results):
    results.put(len(cifar.open_cifar10(root, True, download=True)))


def test_of_several_ranks_one_fetches_and_the_others_wait(server, tmp_path):
    context = multiprocessing.get_context("fork")  # the children inherit the stand-in's address
    results = context.Queue()
    ranks = [context.Process(target=_open, args=(tmp_path / "data", results)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    assert [results.get(timeout=60) for _ in ranks] == [80] * 4
    for rank in ranks:
        rank.join(60)
    assert len(server[1]) == cifar_archive.REQUESTS


def test_without_locks_it_is_fetched_and_that_is_told(server, tmp_path, monkeypatch, capsys):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert len(cifar.open_cifar10(tmp_path / "data", True, download=True)) == 80
    assert f"no lock on {tmp_path / 'data'} (No locks available)" in capsys.readouterr().err


def test_a_file_damaged_after_the_download_is_put_right_from_the_archive(server, tmp_path):
    cifar.open_cifar10(tmp_path, True, download=True)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"cut short")
    with pytest.raises(FileNotFoundError, match="--dataset_download"):
        cifar.open_cifar10(tmp_path, True, download=False)
    assert len(cifar.open_cifar10(tmp_path, True, download=True)) == 80


def test_an_archive_with_another_checksum_is_refused(server, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", "0" * 32)
    with pytest.raises(FileNotFoundError, match="could not be fetched from http://127.0.0.1:"):
        cifar.open_cifar10(tmp_path / "data", True, download=True)
    assert not (tmp_path / "data" / "cifar-10-batches-py").exists()


def test_without_a_network_one_sentence_says_what_to_do(server, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(FileNotFoundError) as caught:
        data.open_source("cifar10", "", "train", download=True)
    message = str(caught.value)
    assert "\n" not in message
    assert "http://127.0.0.1:9/cifar-10-python.tar.gz" in message
    assert f"unpack it in {tmp_path / 'cache' / 'cifar10'}" in message


def test_the_archive_unpacked_by_hand_is_found(server, tmp_path):
    shutil.unpack_archive(str(server[0] / cifar_archive.NAME), str(tmp_path / "by hand"))
    source = data.open_source("cifar10", str(tmp_path / "by hand"), "val")
    assert len(source.samples) == 16 and server[1] == []


@pytest.mark.parametrize("name", ["training", "Train", "validation", "train "])
def test_a_misspelled_split_is_refused_rather_than_taken_for_the_test_part(server, name):
    with pytest.raises(ValueError, match=f"no split '{name}'; .* can be train, val or test"):
        data.open_source("cifar10", "", name, download=True)
    assert server[1] == []


def test_the_test_part_has_two_names(server):
    for name in ("val", "test"):
        assert len(data.open_source("cifar10", "", name, download=True).samples) == 16


def test_the_default_folder_is_beside_the_demo_set(monkeypatch):
    monkeypatch.setenv("MOBILENETV3_CACHE", "/a/cache")
    assert cifar.default_folder() == Path("/a/cache/cifar10")

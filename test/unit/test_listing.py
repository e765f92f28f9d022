"""The list of an image folder: torchvision's, in arrays, and cached while nothing changes."""
import multiprocessing
import os
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from mobilenetv3 import data
from mobilenetv3.data import filelist, listing
from mobilenetv3.data.sources import Files

ODD = [b"plain.jpg", b"with space.JPEG", b"new\nline.png", "gr\u00f6\u00dfe \u4e2d.jpg".encode(),
       "\U0001f41d.jpg".encode(), "\uffee.jpg".encode(), b"latin \xe9\xff.jpg", b"-dash.jpg",
       b"quote's\".webp", b".hidden.jpg", b"TWO.dots.JpG", b"$(x).bmp"]
PASSED_OVER = [b"notes.txt", b"jpg", b"picture.jpg.part", b"page.gif"]


def put(path, times=None):
    path = os.fsencode(str(path)) if isinstance(path, Path) else path
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb"):
        pass
    return path


@pytest.fixture
def odd(tmp_path):
    """A folder with all that names and folders can be."""
    root = os.fsencode(str(tmp_path / "my set"))
    for folder in (b"ant", b"bee/a", b"bee/a-b", b"bee/a/b/c", b"bee/A", "caf\u00e9 \n".encode(),
                   b"nest.jpg/in", b"\xff bytes", "\U0001f41d".encode(), "\uffee".encode()):
        for name in ODD + PASSED_OVER:
            put(os.path.join(root, folder, name))
    elsewhere = os.fsencode(str(tmp_path / "elsewhere"))
    put(os.path.join(elsewhere, b"deep", b"x.jpg"))
    os.symlink(elsewhere, os.path.join(root, b"linked class"))
    os.symlink(elsewhere, os.path.join(root, b"ant", b"linked folder.png"))
    os.symlink(os.path.join(elsewhere, b"deep/x.jpg"), os.path.join(root, b"ant", b"link.jpg"))
    os.symlink(b"nowhere", os.path.join(root, b"ant", b"broken.jpg"))
    os.symlink(b"itself.jpg", os.path.join(root, b"ant", b"itself.jpg"))
    put(os.path.join(root, b"beside.jpg"))
    return tmp_path / "my set"


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A class folder set of two weeks ago, which is cached however small; returns its root."""
    monkeypatch.setattr(listing, "SMALL", 1)
    monkeypatch.setenv("MOBILENETV3_CACHE", str(tmp_path / "cache"))
    for name in ("a/1.jpg", "a/sub/2.jpg", "b/3.jpg"):
        put(tmp_path / "set" / name)
    later(monkeypatch)
    return tmp_path / "set"


def later(monkeypatch, seconds=60):
    """Let the clock of whoever lists be ahead, so that folders were changed a while ago."""
    monkeypatch.setattr(listing.time, "time_ns", lambda: int((time.time() + seconds) * 1e9))


def lists(tmp_path):
    return sorted((tmp_path / "cache").glob("lists-*/*.list*"))


def names(files):
    return [os.path.relpath(path, files.root) for path, _ in files]


def refuse_to_walk(monkeypatch):
    def walk(root):
        raise AssertionError(f"{root} was listed again")
    monkeypatch.setattr(listing, "walk", walk)


# ---- What is in the list


def test_the_list_is_torchvisions_whatever_the_names(odd):
    expected = ImageFolder(str(odd))
    files = listing.list_images(str(odd))
    assert list(files) == expected.samples
    assert listing.classes(files) == expected.classes
    assert len(files) == len(expected.samples) > 100
    assert os.path.exists(files.path(0))


def test_many_class_folders_are_read_by_threads_in_the_same_order(tmp_path):
    for label in range(3 * listing._THREADS):
        put(tmp_path / f"class {label}" / f"{label * 7 % 10}.jpg")
        put(tmp_path / f"class {label}" / "in" / "x.jpg")
    assert list(listing.list_images(str(tmp_path))) == ImageFolder(str(tmp_path)).samples


def test_a_list_is_indexed_as_a_list_is(odd):
    files = listing.list_images(str(odd))
    everything = list(files)
    assert files[-1] == files[len(files) - 1] == everything[-1]
    assert files[np.int64(3)] == everything[3]
    assert type(files[0][1]) is int
    for index in (len(files), -len(files) - 1):
        with pytest.raises(IndexError, match=f"file {index} of {len(files)}"):
            files[index]


def test_a_link_to_a_folder_around_it_is_an_error(tmp_path):
    put(tmp_path / "a" / "b" / "1.jpg")
    (tmp_path / "a" / "b" / "round").symlink_to(tmp_path / "a")
    with pytest.raises(ValueError, match="a/b/round is a link to a folder that it lies in"):
        listing.list_images(str(tmp_path))


def test_a_folder_that_cannot_be_read_is_an_error_and_not_left_out(tmp_path, monkeypatch):
    for name in ("a/1.jpg", "b/2.jpg"):
        put(tmp_path / name)
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(listing.os, "scandir", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        listing.list_images(str(tmp_path))


def test_images_in_one_folder_have_the_labels_they_are_given(tmp_path):
    files = filelist.in_one_folder(str(tmp_path), ["b.jpg", "a \n.jpg"], [7, 0])
    assert list(files) == [(str(tmp_path / "b.jpg"), 7), (str(tmp_path / "a \n.jpg"), 0)]
    assert list(pickle.loads(pickle.dumps(files))) == list(files)
    assert len(filelist.in_one_folder(str(tmp_path), [], [])) == 0


def test_files_read_from_a_list(odd):
    files = Files(listing.list_images(str(odd)))
    index = next(i for i in range(len(files)) if "plain" in files.path(i))
    Path(files.path(index)).write_bytes(b"content")
    assert files.encoded(index) == (b"content", files.samples[index][1])


# ---- The cache


def test_an_unchanged_folder_is_listed_once(cached, tmp_path, monkeypatch):
    first = listing.list_images(str(cached))
    assert first.file == str(lists(tmp_path)[0])
    refuse_to_walk(monkeypatch)
    again = listing.list_images(str(cached))
    assert list(again) == list(first)
    assert names(again) == ["a/1.jpg", "a/sub/2.jpg", "b/3.jpg"]
    assert listing.classes(again) == ["a", "b"]


def test_the_list_has_the_paths_of_the_root_as_it_was_named(cached, tmp_path, monkeypatch):
    listing.list_images(str(cached))
    (tmp_path / "link").symlink_to(cached)
    refuse_to_walk(monkeypatch)
    assert listing.list_images(str(tmp_path / "link")).path(0) == str(tmp_path / "link/a/1.jpg")
    monkeypatch.chdir(tmp_path)
    assert listing.list_images("set").path(0) == "set/a/1.jpg"


@pytest.mark.parametrize("change, expected", [
    (lambda root: put(root / "b" / "4.jpg"), ["a/1.jpg", "a/sub/2.jpg", "b/3.jpg", "b/4.jpg"]),
    (lambda root: os.unlink(str(root / "a/sub/2.jpg")), ["a/1.jpg", "b/3.jpg"]),
    (lambda root: put(root / "a/sub/new/5.jpg"),
     ["a/1.jpg", "a/sub/2.jpg", "a/sub/new/5.jpg", "b/3.jpg"]),
    (lambda root: put(root / "c" / "6.jpg"), ["a/1.jpg", "a/sub/2.jpg", "b/3.jpg", "c/6.jpg"]),
    (lambda root: os.rename(str(root / "b/3.jpg"), str(root / "b/7.jpg")),
     ["a/1.jpg", "a/sub/2.jpg", "b/7.jpg"]),
    (lambda root: os.rename(str(root / "a/sub"), str(root / "sub")),
     ["a/1.jpg", "b/3.jpg", "sub/2.jpg"]),
])
def test_a_change_anywhere_below_is_seen(cached, monkeypatch, change, expected):
    listing.list_images(str(cached))
    change(cached)
    later(monkeypatch, 120)
    assert names(listing.list_images(str(cached))) == expected
    refuse_to_walk(monkeypatch)
    assert names(listing.list_images(str(cached))) == expected


def test_a_change_is_seen_although_the_folders_mtime_was_put_back(cached):
    listing.list_images(str(cached))
    before = os.stat(str(cached / "b"))
    put(cached / "b" / "4.jpg")
    os.utime(str(cached / "b"), ns=(before.st_atime_ns, before.st_mtime_ns))  # as rsync does
    assert names(listing.list_images(str(cached)))[-1] == "b/4.jpg"


def test_a_folder_that_has_just_changed_is_not_trusted(cached, tmp_path, monkeypatch):
    later(monkeypatch, 0)
    assert listing.list_images(str(cached)).file == ""
    assert lists(tmp_path) == []
    later(monkeypatch, 2.0)  # FAT's clock has not ticked yet
    assert listing.list_images(str(cached)).file == ""
    later(monkeypatch, 4.0)
    assert listing.list_images(str(cached)).file != ""


@pytest.mark.parametrize("link", ["c", "a/sub/more", "a/named like an image.jpg"])
def test_a_link_whose_target_comes_later_is_seen(cached, tmp_path, link):
    """No folder of the set changes when the disk that a class lies on is mounted."""
    (cached / link).symlink_to(tmp_path / "disk" / "class")
    before = names(listing.list_images(str(cached)))
    assert not lists(tmp_path)
    put(tmp_path / "disk" / "class" / "4.jpg")
    found = names(listing.list_images(str(cached)))
    assert f"{link}/4.jpg" in found and f"{link}/4.jpg" not in before
    assert found == [os.path.relpath(path, str(cached)) for path, _ in ImageFolder(
        str(cached)).samples]
    assert lists(tmp_path)


def test_a_link_to_itself_does_not_keep_a_folder_from_the_cache(cached, tmp_path):
    (cached / "a" / "itself.jpg").symlink_to(cached / "a" / "itself.jpg")
    listing.list_images(str(cached))
    assert lists(tmp_path)


def test_an_mtime_in_the_future_does_not_keep_a_folder_from_the_cache(cached, monkeypatch):
    os.utime(str(cached / "a"), (4e9, 4e9))
    assert listing.list_images(str(cached)).file != ""


def test_small_sets_are_not_cached(cached, tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "SMALL", 4)
    assert listing.list_images(str(cached)).file == ""
    assert not (tmp_path / "cache").exists()


def cut(content):
    return content[:-70]


def flip(content):
    return content[:300] + bytes([content[300] ^ 1]) + content[301:]


@pytest.mark.parametrize("damage", [
    cut, flip, lambda content: b"", lambda content: b"\x80\x04pickle", lambda content: content[:20],
    lambda content: content.replace(b"list 1", b"list 2"),
])
def test_a_damaged_list_is_made_anew(cached, tmp_path, monkeypatch, damage):
    listing.list_images(str(cached))
    path, = lists(tmp_path)
    content = path.read_bytes()
    path.write_bytes(damage(content))
    found = listing.list_images(str(cached))
    assert names(found) == ["a/1.jpg", "a/sub/2.jpg", "b/3.jpg"]
    assert path.read_bytes() == content


def test_a_list_of_another_folder_under_this_ones_name_is_not_taken(cached, tmp_path):
    put(tmp_path / "other" / "z" / "9.jpg")
    listing.list_images(str(tmp_path / "other"))
    other, = lists(tmp_path)
    listing.list_images(str(cached))
    own, = set(lists(tmp_path)) - {other}
    foreign = own.with_name("-".join([*own.name.split("-")[:2], other.name.split("-")[2]]))
    own.unlink()
    other.rename(foreign)
    assert names(listing.list_images(str(cached)))[0] == "a/1.jpg"


def test_the_caches_folder_is_private_and_one_that_others_may_write_to_is_not_used(
        cached, tmp_path, monkeypatch):
    listing.list_images(str(cached))
    folder = lists(tmp_path)[0].parent
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    assert listing.list_images(str(cached)).file == ""


@pytest.mark.parametrize("block", [
    lambda cache: cache.write_text("a file in the way"),
    lambda cache: (cache.mkdir(), (cache / f"lists-{os.getuid()}").write_text("a file")),
    lambda cache: (cache.mkdir(), (cache / f"lists-{os.getuid()}").symlink_to(cache.parent)),
])
def test_without_a_folder_for_the_cache_the_list_is_had_all_the_same(cached, tmp_path, block):
    block(tmp_path / "cache")
    found = listing.list_images(str(cached))
    assert (names(found)[0], found.file) == ("a/1.jpg", "")


def test_a_disk_that_refuses_to_be_written_leaves_the_list_and_no_litter(
        cached, tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mobilenetv3.files.os.fsync", full)
    assert names(listing.list_images(str(cached)))[0] == "a/1.jpg"
    assert [list(folder.iterdir()) for folder in (tmp_path / "cache").iterdir()] == [[]]


def test_a_file_system_without_hard_links_has_a_cache_too(cached, tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("mobilenetv3.data.listing.os.link", refuse)
    assert listing.list_images(str(cached)).file == str(lists(tmp_path)[0])
    assert len(list(lists(tmp_path)[0].parent.iterdir())) == 1


def test_lists_of_a_path_do_not_pile_up(cached, tmp_path, monkeypatch):
    for number in range(listing.KEEP + 3):
        put(cached / "a" / f"more {number}.jpg")
        later(monkeypatch, 60 + number)
        listing.list_images(str(cached))
    assert len(lists(tmp_path)) == listing.KEEP


def test_hosts_with_copies_of_their_own_at_one_path_do_not_drop_each_others_lists(
        cached, tmp_path, monkeypatch):
    hosts = [tmp_path / f"host {number}" for number in range(listing.KEEP + 3)]
    for host in hosts:
        shutil.copytree(str(cached), str(host / "set"))

    def on(host):  # whose copy lies at the path that all have
        host.rename(tmp_path / "disk")
        try:
            return listing.list_images(str(tmp_path / "disk" / "set"))
        finally:
            (tmp_path / "disk").rename(host)

    firsts = [on(host) for host in hosts]
    assert len(lists(tmp_path)) == len(hosts)
    refuse_to_walk(monkeypatch)
    assert [on(host).file for host in hosts] == [first.file for first in firsts]


def test_lists_of_a_path_that_nobody_used_for_long_are_dropped(cached, tmp_path):
    listing.list_images(str(cached))
    old, = lists(tmp_path)
    put(cached / "c" / "4.jpg")
    listing.list_images(str(cached))
    assert old in lists(tmp_path)
    os.utime(str(old), (time.time() - listing.UNUSED_S - 9,) * 2)
    put(cached / "d" / "5.jpg")
    listing.list_images(str(cached))
    assert old not in lists(tmp_path) and len(lists(tmp_path)) == 2


def test_a_list_that_is_in_use_is_not_written_over(cached, tmp_path, monkeypatch):
    mapped = listing.list_images(str(cached))
    inode = os.stat(mapped.file).st_ino
    monkeypatch.setattr(listing, "_from_cache", lambda root, of: None)  # a rank that began earlier
    assert listing.list_images(str(cached)).file == mapped.file
    assert os.stat(mapped.file).st_ino == inode


# ---- Sharing


def made_up(count):
    """A list as of many files, of which there are none."""
    names = [f"n01440764_{number:06d}.JPEG" for number in range(count)]
    return filelist.in_one_folder("/nowhere/train/n01440764", names, [0] * count)


def private_kilobytes():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def read_all(files, pipe):
    before = private_kilobytes()
    for index in range(0, len(files), 4):  # a page of memory holds more than 4 objects
        last = files[index]
    pipe.send((private_kilobytes() - before, last))


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"),
                    reason="this system does not tell which memory is a process's own")
def test_a_process_that_reads_the_whole_index_copies_none_of_it():
    files = made_up(200000)
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=read_all, args=(files, sending))
    process.start()
    grown, last = receiving.recv()
    process.join()
    assert last == ("/nowhere/train/n01440764/n01440764_199996.JPEG", 0)
    # Of a list of tuples it would be 12 MB; the arrays are 6 MB.
    assert grown < 3000


def test_a_cached_list_crosses_to_another_process_by_the_name_of_its_file(cached, monkeypatch):
    files = listing.list_images(str(cached))
    sent = pickle.dumps(Files(files))
    assert len(sent) < 500
    again = pickle.loads(sent).samples
    assert (list(again), again.file) == (list(files), files.file)


def test_a_list_that_was_dropped_while_it_is_used_crosses_to_another_process_whole(cached):
    files = listing.list_images(str(cached))
    sent = pickle.dumps(files)
    os.unlink(files.file)
    assert list(pickle.loads(pickle.dumps(files))) == list(files)
    with pytest.raises(OSError, match="was dropped from the cache .*; start again"):
        pickle.loads(sent)


def test_an_open_source_reads_the_cached_list(cached, tmp_path, monkeypatch):
    first = data.open_source("folder", str(tmp_path), "set")
    refuse_to_walk(monkeypatch)
    again = data.open_source("folder", str(tmp_path), "set")
    assert list(again.samples.samples) == list(first.samples.samples)

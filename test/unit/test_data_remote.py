"""Prepared sets behind a URL, with a server on this host that can be told to fail."""
import contextlib
import errno
import fcntl
import http.server
import os
import shutil
import socket
import stat
import sys
import threading
import time

import pytest
import shardsets

from mobilenetv3 import build, config, data, device, entry, options, snapshot
from mobilenetv3.data import fetch, manifest, remote, samplers

PLENTY = shardsets.PLENTY


class Server:
    """Serves a folder; `spoil(name, content)` may change what it answers, or send a status."""

    def __init__(self, folder, port=0):
        self.folder, self.asked, self.spoil = folder, [], lambda name, content: content
        self.words = set()  # of authorization
        self.promised = lambda name, answer: len(answer)
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):  # noqa: N802
                name = self.path.split("?")[0].rpartition("/")[2]
                outer.asked.append(self.path)
                outer.words.add(self.headers.get("Authorization"))
                try:
                    answer = outer.spoil(name, outer.whole(name))
                except FileNotFoundError:
                    answer = 404
                if isinstance(answer, int):
                    self.send_error(answer)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(outer.promised(name, answer)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # of who has seen that it is too long
                    self.wfile.write(answer)

            def log_message(self, *words):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/sets/dst"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def whole(self, name):
        return (self.folder / name).read_bytes()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def count(self, name):
        return sum(path.split("?")[0].endswith("/" + name) for path in self.asked)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared set")
    shardsets.prepared(folder)
    return folder / "dst"


@pytest.fixture
def server(whole, monkeypatch):
    monkeypatch.setattr(fetch, "WAITS", (0.01, 0.01))
    found = Server(whole)
    yield found
    found.close()


def open_(url, cache, split="train", **options):
    return data.open_source("folder", url, split, shard_cache=str(cache), **options)


def contents(source):
    return [source.samples.encoded(index) for index in range(len(source.samples))]


def test_a_set_at_a_url_is_the_one_in_the_folder(whole, server, tmp_path):
    for split in ("train", "val"):
        found = open_(server.url + "/", tmp_path / "cache", split)
        local = data.open_source("folder", str(whole), split)
        assert contents(found) == contents(local)
        assert (found.classes, found.name) == (local.classes, "dst")
        assert f" at {server.url}/, kept in {tmp_path / 'cache'}" in found.note


def test_a_shard_is_fetched_when_it_is_needed_and_only_once(whole, server, tmp_path):
    found = open_(server.url, tmp_path / "cache")
    assert not [path for path in server.asked if path.endswith(".tar")]
    found.samples.encoded(0)
    assert server.count("train-000000.tar") == 1 and server.count("train-000001.tar") == 0
    contents(found), contents(open_(server.url, tmp_path / "cache"))
    assert all(server.count(shard.name) == 1 for shard in found.samples.split.shards)
    assert server.count("val-000000.tar") == 0
    folder = str(found.samples.place.root)  # which is a set of its own by now
    assert contents(data.open_source("folder", folder, "train")) == contents(found)


def test_the_cache_is_private_and_has_a_folder_for_each_set(whole, server, tmp_path):
    contents(open_(server.url, tmp_path / "cache"))
    (folder,) = (tmp_path / "cache").iterdir()
    for path in (tmp_path / "cache", folder):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700

    def other(name, content):
        return content.replace(b'"train"', b'"train" ', 1) if name == "manifest.json" else content

    server.spoil = other
    contents(open_(server.url, tmp_path / "cache"))
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_the_cache_lies_beside_the_demo_set_unless_it_is_told_where(
        whole, server, tmp_path, monkeypatch):
    monkeypatch.setenv("MOBILENETV3_CACHE", str(tmp_path / "usual"))
    open_(server.url, "")
    assert (tmp_path / "usual" / "shards").is_dir()


@pytest.mark.parametrize("owner, mode", [(0, 0o777), (0, 0o720), (1, 0o700)])
def test_a_cache_that_others_can_write_is_refused(server, tmp_path, monkeypatch, owner, mode):
    open_(server.url, tmp_path)
    (folder,) = tmp_path.iterdir()
    folder.chmod(mode)
    user = max(1, folder.stat().st_uid)  # root may do anything, and is not kept from it
    monkeypatch.setattr(os, "geteuid", lambda: user)
    if folder.stat().st_uid != user:
        os.chown(str(folder), user, -1)
    monkeypatch.setattr(os, "geteuid", lambda: user + owner)
    with pytest.raises(ValueError, match="can be written by other users"):
        open_(server.url, tmp_path)
    folder.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert open_(server.url, tmp_path)


# ---- What can go wrong on the way


def flipped(content):
    return content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]


@pytest.mark.parametrize("damage, told", [
    (flipped, "its SHA-256 is not the manifest's"),
    (lambda content: content[:-1], "bytes came"),
    (lambda content: content + b"!", "more than .* bytes came"),
], ids=["changed", "cut", "longer"])
def test_a_damaged_download_is_refused_and_fetched_again(server, tmp_path, damage, told):
    def once(name, content):
        is_first = name == "train-000001.tar" and server.count(name) == 1
        return damage(content) if is_first else content

    server.spoil = once
    found = open_(server.url, tmp_path / "one")
    assert sorted(label for _, label in contents(found)) == list(range(PLENTY))
    assert server.count("train-000001.tar") == 2

    server.spoil = lambda name, content: damage(content) if name.endswith("1.tar") else content
    found = open_(server.url, tmp_path / "two")
    with pytest.raises(manifest.Lost, match=f"cannot fetch {server.url}/train-000001.tar in 3 "
                                            f"tries: .*{told}"):
        contents(found)
    assert not [path for path in (tmp_path / "two").rglob("*")
                if path.name.endswith((".tmp", "000001.tar"))]  # neither it nor a part of it


def test_a_shard_that_was_damaged_where_it_lies_is_fetched_again(server, tmp_path, capfd):
    """Its size was as before, so that no later run fetched it."""
    expected = contents(open_(server.url, tmp_path))
    (shard,) = tmp_path.glob("*/train-000001.tar")
    middle = shard.stat().st_size // 2
    shard.write_bytes(bytes(byte ^ 1 if place > middle else byte
                            for place, byte in enumerate(shard.read_bytes())))
    found = open_(server.url, tmp_path)
    assert contents(found) == expected
    assert server.count("train-000001.tar") == 2
    assert "is damaged and is fetched again" in capfd.readouterr().err


def test_a_manifest_that_was_cut_short_on_its_way_is_fetched_again(server, tmp_path):
    """Python reads what came of it without an error, and it was called damaged."""
    def broken_off(name, content):
        return content[:100] if name == manifest.NAME and server.count(name) < lasts else content

    size = len(server.whole(manifest.NAME))
    server.promised = lambda name, answer: size if name == manifest.NAME else len(answer)
    server.spoil, lasts = broken_off, 3
    assert len(contents(open_(server.url, tmp_path))) == PLENTY
    assert server.count(manifest.NAME) == 3
    lasts = 99
    with pytest.raises(manifest.Lost, match=rf"in 3 tries: 100 of {size} bytes came"):
        open_(server.url, tmp_path)


def test_a_damaged_index_is_refused(server, tmp_path):
    server.spoil = lambda name, content: flipped(content + bytes(1001)) if "index" in name \
        else content
    with pytest.raises(manifest.Lost, match="train.index.npy in 3 tries"):
        open_(server.url, tmp_path)


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_that_fails_for_a_moment_is_survived(server, tmp_path, status):
    server.spoil = lambda name, content: status if server.count(name) < 3 else content
    assert len(contents(open_(server.url, tmp_path))) == PLENTY


def test_a_server_that_is_away_for_a_moment_is_survived(whole, server, tmp_path, monkeypatch):
    found = open_(server.url, tmp_path)
    port = server.server.server_address[1]
    server.close()
    again = []

    def meanwhile(seconds):
        again.append(Server(whole, port))
        time.sleep(seconds / 100)

    monkeypatch.setattr(fetch.time, "sleep", lambda seconds: None if again else meanwhile(1))
    try:
        assert len(contents(found)) == PLENTY
    finally:
        again[0].close()


def test_a_missing_file_is_not_asked_for_three_times(server, tmp_path):
    with pytest.raises(manifest.Lost, match="cannot fetch .*/nothing/manifest.json: the server "
                                            "says 404"):
        server.spoil = lambda name, content: 404
        open_(server.url.replace("dst", "nothing"), tmp_path)
    assert len(server.asked) == 1


def test_no_server_is_one_sentence_with_the_url_and_the_cause(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "WAITS", (0.01, 0.01))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/set"
        with pytest.raises(manifest.Lost) as caught:
            open_(url, tmp_path)
    told = str(caught.value)
    assert told.startswith(f"cannot fetch {url}/manifest.json in 3 tries: ")
    assert "refused" in told and "\n" not in told and "urlopen" not in told


def test_a_shard_that_cannot_be_had_ends_the_run_rather_than_giving_way_to_other_images(
        server, tmp_path):
    found = open_(server.url, tmp_path)
    server.spoil = lambda name, content: 503
    images = data.Transformed(found.samples, data.train_transform(16), seed=1, replaces=True)
    with pytest.raises(manifest.Lost, match="cannot fetch .* in 3 tries: the server says 503"):
        images[(0, 0)]


def test_a_full_disk_is_told_with_the_way_out(server, tmp_path, monkeypatch):
    found = open_(server.url, tmp_path)

    def full(path, write):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(remote, "write_atomically", full)
    with pytest.raises(manifest.Lost, match="cannot be kept .No space left on device.; "
                                            "--shard_cache names"):
        found.samples.encoded(0)
    assert server.count("train-000000.tar") <= 1  # another try would not help


def test_a_hostile_manifest_is_refused_before_anything_else_is_fetched(server, tmp_path):
    server.spoil = lambda name, content: content.replace(b"train-000000.tar", b"../../x.tar")
    with pytest.raises(ValueError, match="manifest.json: '../../x.tar' is not the name of a file"):
        open_(server.url, tmp_path)
    assert len(server.asked) == 1 and not list(tmp_path.iterdir())


def test_a_manifest_without_end_is_not_read_to_its_end(server, tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "MAX_BYTES", 1 << 16)
    server.spoil = lambda name, content: bytes(1 << 22)
    with pytest.raises(ValueError, match="has more than 65536 bytes"):
        open_(server.url, tmp_path)


# ---- Processes, room, time


def test_of_several_processes_one_fetches_and_the_others_wait(whole, server, tmp_path):
    def slowly(name, content):
        time.sleep(0.05)
        return content

    server.spoil = slowly
    found = open_(server.url, tmp_path)
    expected = contents(data.open_source("folder", str(whole), "train"))
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = 0 if contents(found) == expected else 2
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert all(server.count(shard.name) == 1 for shard in found.samples.split.shards)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS])
def test_a_cache_on_a_file_system_without_locks_is_used_and_it_is_told_once(
        server, tmp_path, monkeypatch, capsys, code):
    def refuse(file, how):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    source = open_(server.url, tmp_path)
    other = tmp_path / source.samples.place.root.name / ".train-000000.tar.01234567.tmp"
    other.write_bytes(b"another process is writing this")
    assert len(contents(source)) == PLENTY
    assert other.exists()
    told = capsys.readouterr().err
    assert told.count("no locks in ") == 1 and os.strerror(code) in told


def test_a_process_that_is_killed_while_it_fetches_leaves_nothing_in_the_way(server, tmp_path):
    found = open_(server.url, tmp_path)

    def killed():
        remote.hashlib = None  # in the child alone: it fails at its first byte, and is killed then
        try:
            found.samples.encoded(0)
        except AttributeError:
            name = next(tmp_path.iterdir()) / ".train-000000.tar.01234567.tmp"
            name.write_bytes(b"half of it")
            shardsets.die()

    assert shardsets.in_child(killed) == -9
    assert len(contents(found)) == PLENTY
    assert not list(tmp_path.rglob("*.tmp"))


def test_shards_that_were_not_used_for_the_longest_time_give_way(server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "WINDOW", 1)
    found = open_(server.url, tmp_path)
    sizes = [shard.bytes for shard in found.samples.split.shards]
    place = remote.Cache(server.url, found.samples.place.root, sum(sizes[:3]))
    for number in (0, 1, 2, 0, 3, 4):
        os.close(place.open(found.samples.split.shards[number]))
        time.sleep(0.02)  # the clock of file times is a coarse one
    assert sorted(path.name for path in tmp_path.rglob("*.tar")) == [
        f"train-00000{number}.tar" for number in (0, 3, 4)]
    assert len(contents(found)) == PLENTY  # what was dropped is fetched again


def test_a_shard_that_is_dropped_while_it_is_open_can_still_be_read(server, tmp_path):
    found = open_(server.url, tmp_path)
    expected = found.samples.encoded(0)
    for path in tmp_path.rglob("*.tar"):
        path.unlink()
    assert found.samples.encoded(0) == expected
    assert server.count("train-000000.tar") == 1
    found.samples.encoded(PLENTY - 1)  # of another shard, which is when the dropped one is closed
    assert len(found.samples._open) == 1


def test_too_little_room_for_what_is_read_at_a_time_is_refused(server, tmp_path):
    with pytest.raises(ValueError, match="--shard_cache_gb 1e-06 is too little: .* GB"):
        open_(server.url, tmp_path, shard_cache_gb=1e-6)
    assert open_(server.url, tmp_path, shard_cache_gb=1)


def test_the_next_shards_are_fetched_while_training_reads_these(server, tmp_path):
    found = open_(server.url, tmp_path)
    order = samplers.WindowOrder(found.samples.shard_sizes, 8,
                                 fetch_ahead=found.samples.fetch_ahead)
    next(iter(samplers.TrainSampler(PLENTY, 4, 0, 1, 0, order)))  # nothing is read
    deadline = time.monotonic() + 20
    while len(list(tmp_path.rglob("*.tar"))) < 4:  # two windows of two shards or more
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(list(tmp_path.rglob("*.tar"))) < len(found.samples.split.shards)


# ---- Other URLs


@pytest.fixture
def fsspec():
    return pytest.importorskip("fsspec", reason="fsspec is not installed")


def test_what_fsspec_opens_is_a_url_too(fsspec, whole, tmp_path):
    expected = contents(data.open_source("folder", str(whole), "train"))
    assert contents(open_(f"file://{whole}", tmp_path / "file")) == expected
    memory = fsspec.filesystem("memory")
    memory.put(str(whole), "/bucket/dst", recursive=True)
    try:
        assert contents(open_("memory://bucket/dst", tmp_path / "memory")) == expected
    finally:
        memory.rm("/bucket", recursive=True)


def test_what_is_not_there_is_told_without_waiting(fsspec, tmp_path):
    with pytest.raises(manifest.Lost, match="fetch memory://bucket/none/manifest.json: File"):
        open_("memory://bucket/none", tmp_path)


def test_an_unknown_protocol_is_told(fsspec, tmp_path):
    with pytest.raises(manifest.Lost, match="cannot fetch nosuch://x/manifest.json: .*nosuch"):
        open_("nosuch://x", tmp_path)


def test_without_fsspec_its_urls_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(manifest.Lost, match="need fsspec, which is not installed .pip install"):
        open_("s3://bucket/set", tmp_path)


def test_in_a_bucket_a_question_mark_is_a_letter_of_the_name():
    assert fetch.beside("s3://bucket/a?b#c/", "x.tar") == "s3://bucket/a?b#c/x.tar"
    assert fetch.shown("s3://bucket/a?b#c") == "s3://bucket/a?b#c"


def test_passwords_and_signatures_are_used_and_not_shown():
    url = "https://me:secret@host:8080/a%20b/set/?X-Signature=abc"
    assert fetch.beside(url, "x.tar") == (
        "https://me:secret@host:8080/a%20b/set/x.tar?X-Signature=abc")
    assert fetch.shown(fetch.beside(url, "x.tar")) == "https://host:8080/a%20b/set/x.tar"


def test_a_signature_goes_with_every_file(server, tmp_path):
    contents(open_(server.url + "?key=1", tmp_path))
    assert all(path.endswith("?key=1") for path in server.asked)


def test_a_password_reaches_the_server_and_not_the_error(server, tmp_path):
    """urllib takes what stands before @ for a part of the host, and told it in its error."""
    url = server.url.replace("http://", "http://me:se%40cret@")
    assert len(contents(open_(url, tmp_path))) == PLENTY
    assert server.words == {"Basic bWU6c2VAY3JldA=="}  # me:se@cret
    server.spoil = lambda name, content: 401
    with pytest.raises(manifest.Lost, match=r"/sets/dst/\S*: the server says 401") as told:
        open_(url, tmp_path / "other")
    assert "cret" not in str(told.value)


def test_a_signature_is_not_in_the_error_of_a_set_with_too_few_classes(server, tmp_path):
    url = server.url.replace("http://", "http://me:secret@") + "?X-Signature=abc"
    with pytest.raises(ValueError, match=r"expects 1000 classes, http://\S+/sets/dst has") as told:
        data.open_source("imagenet", url, "train", shard_cache=str(tmp_path))
    assert "secret" not in str(told.value) and "abc" not in str(told.value)


def test_what_python_quotes_of_a_url_that_it_refuses_is_told_without_the_signature(tmp_path):
    with pytest.raises(manifest.Lost, match="cannot be asked for") as told:
        open_("http://me:secret@127.0.0.1:9/a set?X-Signature=abc", tmp_path)
    assert "secret" not in str(told.value) and "abc" not in str(told.value)


def test_a_checkpoint_has_the_data_path_without_password_and_signature():
    given = {"data_path": "https://me:secret@host/set?X-Signature=abc", "epochs": 3}
    assert snapshot._for_others(given) == {"data_path": "https://host/set", "epochs": 3}
    assert given["data_path"].endswith("abc")  # config.yaml has it as it was given
    for folder in ({"data_path": "/data/set?"}, {}):
        assert snapshot._for_others(folder) == folder


@pytest.mark.parametrize("url", ["http://host/a//b", "s3://bucket/~me/set", "gs://b/x?y=1&z=2"])
def test_urls_survive_the_command_line_and_the_saved_configuration(url, tmp_path):
    cfg = config.parse(options.train_parser(), ["--data_path", url, "--shard_cache", "~/x",
                                                "--shard_cache_gb", "1.5"])
    assert (cfg.data_path, cfg.dataset, cfg.shard_cache_gb) == (url, "folder", 1.5)
    config.save(cfg, tmp_path / "config.yaml")
    again = config.parse(options.train_parser(), ["-c", str(tmp_path / "config.yaml")])
    assert again.data_path == url
    assert fetch.is_url(url)


def test_training_and_validation_take_a_url_as_their_data_path(whole, server, tmp_path):
    words = ["--data_path", server.url, "--shard_cache", str(tmp_path)]
    train, val = build.sources(config.parse(options.train_parser(), words))
    cfg = config.parse(options.validate_parser(), [*words, "--ckpt_path", "x.pth"])
    for source in (train, val, build.val_source(cfg)):
        assert len(contents(source)) == PLENTY
    assert len(train.note.splitlines()) == 2


@pytest.mark.parametrize("path", ["/data/imagenet", "~/imagenet", "data", "C:\\data", "", "a:b"])
def test_folders_are_no_urls(path):
    assert not fetch.is_url(path)


def test_no_network_is_touched_for_a_folder(whole, monkeypatch):
    def none(*arguments, **options):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", none)
    monkeypatch.setattr(socket, "getaddrinfo", none)
    assert len(contents(data.open_source("folder", str(whole), "val"))) == PLENTY


def test_a_cache_that_cannot_be_made_is_told(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot make the shard cache .*--shard_cache names another"):
        open_(server.url, tmp_path / "file")


def test_a_local_copy_of_the_cache_is_not_needed_to_train_from_a_folder(whole, tmp_path):
    shutil.copytree(str(whole), str(tmp_path / "moved"))
    assert contents(data.open_source("folder", str(tmp_path / "moved"), "train")) == contents(
        data.open_source("folder", str(whole), "train"))


def test_a_server_that_goes_while_a_loader_process_reads_ends_the_command_in_one_sentence(
        server, tmp_path, capsys):
    found = open_(server.url, tmp_path)
    server.spoil = lambda name, content: 503
    sampler = samplers.TrainSampler(PLENTY, 8, 0, 1, 0)
    images = data.Transformed(found.samples, data.train_transform(16), seed=1, replaces=True)
    loader = data.build_loader(images, sampler, device.select("cpu"), 1, seed=0)
    assert entry.run(lambda cfg: list(loader), None, "train.py") == 1
    told = capsys.readouterr().err
    assert told.startswith(f"train.py: error: cannot fetch {server.url}/train-0000")
    assert told.endswith(".tar in 3 tries: the server says 503 Service Unavailable\n")

"""Files that want to run something or to read beyond their bytes.

Every one of them ends in a ValueError that names the file; nothing runs, nothing hangs, and no
memory is taken for bytes that are only claimed.
"""
import argparse
import builtins
import collections
import inspect
import os
import pickle
import tracemalloc

import pytest
import torch
from checkpoint_files import (
    WRITERS,
    Call,
    Ref,
    pickled,
    refused,
    stream_ids,
    tensor,
    write_stream,
    write_zip,
)

from mobilenetv3 import checkpoint

NAMES = ["a.pth", "a.pth.tar", "a.pt", "a.safetensors", "a.ckpt"]


def attribute(owner, state):
    """A container with an attribute, which is pickled as its state."""
    vars(owner).update(state)
    return owner


ATTACKS = {
    "os.system": lambda do: do,
    "in a state dict": lambda do: {"state_dict": {"w": do}},
    "in a list": lambda do: [1, [2, (3, do)]],
    "in a Namespace": lambda do: {"args": argparse.Namespace(lr=0.1, model=do)},
    "in the state of an OrderedDict": lambda do: attribute(
        collections.OrderedDict(), {"_metadata": do}
    ),
    "as a state": lambda do: Call(collections.OrderedDict, state=do),
    "as an argument": lambda do: Call(torch._utils._rebuild_parameter, do, False, None),
    "as a storage": lambda do: Ref("storage", do, "0", "cpu", 1),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_file_that_runs_a_command_is_refused_and_nothing_runs(tmp_path, name, writer, attack):
    marker = tmp_path / "ran"
    content = pickled(ATTACKS[attack](Call(os.system, f"touch '{marker}'")))
    assert b"system" in content
    path = tmp_path / name
    WRITERS[writer](path, content)
    with refused(path, "was refused: it holds a posix.system"):
        checkpoint.load(path)
    assert not marker.exists()


def test_the_attack_of_these_tests_works_on_a_reader_that_trusts(tmp_path):
    marker = tmp_path / "ran"
    pickle.loads(pickled({"w": Call(os.system, f"touch '{marker}'")}))
    assert marker.exists()


@pytest.mark.parametrize("function, arguments, named", [
    (builtins.eval, ("1+1",), "builtins.eval"),
    (builtins.exec, ("pass",), "builtins.exec"),
    (builtins.__import__, ("os",), "builtins.__import__"),
    (builtins.getattr, (collections.OrderedDict, "fromkeys"), "builtins.getattr"),
    (builtins.getattr, (argparse.Namespace, "__init__"), "builtins.getattr"),
    (torch.load, ("other.pth",), "torch.serialization.load"),
    (torch.hub.load, ("a/b", "c"), "torch.hub.load"),
    (torch.nn.Linear, (2, 2), "torch.nn.modules.linear.Linear"),
    (type, ("A", (), {}), "builtins.type"),
])
@pytest.mark.parametrize("write", [write_zip, write_stream], ids=["zip", "legacy"])
def test_a_name_outside_the_table_is_refused_by_name(tmp_path, write, function, arguments, named):
    path = tmp_path / "a.pth"
    write(path, pickled({"w": Call(function, *arguments)}))
    with refused(path, f"it holds a {named}"):
        checkpoint.load(path)


def test_what_torch_refuses_with_weights_only_is_refused_here_too(tmp_path):
    if "weights_only" not in inspect.signature(torch.load).parameters:
        pytest.skip("this PyTorch has no weights_only")
    path = tmp_path / "a.pth"
    for attack in ATTACKS.values():
        write_zip(path, pickled(attack(Call(os.getcwd))))
        with pytest.raises(pickle.UnpicklingError):
            torch.load(str(path), weights_only=True)
        with refused(path, "posix.getcwd"):
            checkpoint.load(path)


SYSTEM = b"cposix\nsystem\n"
NAMESPACE = b"cargparse\nNamespace\n"


@pytest.mark.parametrize("body", [
    NAMESPACE + b"}X\x08\x00\x00\x00__init__K\x01sb.",          # state on the class itself
    NAMESPACE + b")\x81}X\x0c\x00\x00\x00_get_kwargsK\x01sb.",  # its own methods replaced
    NAMESPACE + b")\x81N}X\x01\x00\x00\x00aK\x01s\x86b.",       # slots, set one by one
    b"ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb.",
    b"ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00__code__K\x01sb.",
    b"}K\x01b.",                                                # state on a dict
    b"K\x01)R.", b"]K\x02K\x03s.", b"}K\x01a.",                 # a number called, wrong containers
    b"N(K\x01u.", b"}(K\x01u.",
    b"P1\n.", b"I1\n.", b"(iposix\nsystem\n.", b"(" + SYSTEM + b"o.", b"\x82\x01.",
    b"(" + SYSTEM + b"d.",
    b"cbuiltins\nset\n]}a\x85R.",                               # a set of dicts
    b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.",
    b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",           # two gigabytes of zeros
    b"\x8e\xff\xff\xff\xff\xff\xff\xff\x0fabc", b"B\xff\xff\xff\x7fabc",
    b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc", b"\x8b\xff\xff\xff\x7fabc",
    b"h\x07.", b"j\xff\xff\xff\xff.", b"t.", b".", b"", b"Q.", b"K\x01Q.",
    b"cposix\n", b"c\n\n.", b"K\x01K\x02\x93.", b"X\x02\x00\x00\x00\xff\xfe.",
    b"cnumpy\ndtype\nX\x02\x00\x00\x00O8K\x00K\x01\x87R.",      # numpy's objects are pickles
    b"cnumpy\ndtype\nX\x03\x00\x00\x00V99K\x00K\x01\x87R.",
], ids=repr)
@pytest.mark.parametrize("write", [write_zip, write_stream], ids=["zip", "legacy"])
def test_a_pickle_that_no_torch_writes_is_refused(tmp_path, write, body):
    path = tmp_path / "a.pth"
    write(path, b"\x80\x02" + body)
    before = dict(vars(argparse.Namespace))
    with refused(path):
        checkpoint.load(path)
    assert dict(vars(argparse.Namespace)) == before


@pytest.mark.parametrize("before, behind", [
    (b"}", b"K\x01s."), (b"ccollections\nOrderedDict\n]]", b"aK\x01aa\x85R."),
    (b"cbuiltins\nset\n]", b"a\x85R."), (b"\x8f(", b"\x90."),
], ids=["dict", "OrderedDict", "set", "set, by items"])
def test_a_key_that_is_nested_without_end_is_refused(tmp_path, before, behind):
    """Hashing such a tuple overflows the C stack, which ends the process."""
    path = tmp_path / "a.pth"
    write_zip(path, b"\x80\x02" + before + b")" + b"\x85" * 100_000 + behind)
    with pytest.raises(ValueError, match="holds a tuple as a key"):
        checkpoint.load(path)


@pytest.mark.parametrize("body, told", [
    (b"]q\x00h\x00a.", "nested without end"),                          # a list of itself
    (b"}q\x00X\x01\x00\x00\x00ah\x00s.", "nested without end"),
    (b"]" * 100_001 + b"a" * 100_000 + b".", "nested without end"),
    (b")" + b"q\x00h\x00\x86" * 40 + b".", "repeat each other"),       # 2 ** 40 empty tuples
    (b"ccollections\nOrderedDict\n.", "holds a collections.OrderedDict as a value"),
    (b"]cbuiltins\ngetattr\na.", "holds a builtins.getattr as a value"),
    (b"ctorch\nFloatStorage\n.", "holds a StorageClass as a value"),
], ids=["list", "dict", "deep", "repeated", "class", "function", "storage class"])
def test_what_is_read_can_be_walked_through(tmp_path, body, told):
    path = tmp_path / "a.pth"
    write_zip(path, b"\x80\x02" + body)
    with refused(path, told):
        checkpoint.load(path)


def test_a_memo_index_takes_no_memory(tmp_path):
    """CPython's own unpickler makes room for every index up to the one that is named."""
    path = tmp_path / "a.pth"
    write_zip(path, b"\x80\x02}r\xff\xff\xff\xff.")
    tracemalloc.start()
    assert checkpoint.load(path) == {}
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_a_name_in_a_message_cannot_write_to_the_terminal(tmp_path):
    path = tmp_path / "a.pth"
    write_zip(path, b"\x80\x02cos\n" + b"\x1b[31m" + b"x" * 5000 + b"\n.")
    with pytest.raises(ValueError) as error:
        checkpoint.load(path)
    assert "it holds a os.?[31mxxx" in str(error.value)
    assert len(str(error.value)) < 600 + len(str(path))


# --- tensors that reach beyond their storage ---

OUTSIDE = {
    "offset": (1, (2, 3), (3, 1)),
    "stride": (0, (2, 3), (4, 1)),
    "size": (0, (3, 3), (3, 1)),
    "huge": (0, (2 ** 40,), (1,)),
    "no strides": (0, (2 ** 40, 6), (0, 1)),
    "overflow": (0, (2 ** 62, 2 ** 62), (1, 1)),
    "negative size": (0, (-2, 3), (3, 1)),
    "negative stride": (5, (2, 3), (-3, -1)),
    "negative offset": (-1, (2, 3), (3, 1)),
    "beyond 64 bits": (0, (2 ** 80, 1), (1, 1)),
    "digits without end": (0, (1 << 4_000_000,), (1,)),
    "not numbers": (0, (2.0, 3.0), (3.0, 1.0)),
    "ranks": (0, (2, 3), (1,)),
    "a list": (0, [2, 3], [3, 1]),
    "dimensions": (0, (1,) * 2000, (1,) * 2000),
}


@pytest.mark.parametrize("case", OUTSIDE)
@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_a_tensor_beyond_its_storage_is_refused(tmp_path, container, case):
    path = tmp_path / "a.pth"
    value = tensor(*OUTSIDE[case])
    if container == "zip":
        write_zip(path, pickled({"w": value}), {"0": bytes(24)})
    else:
        write_stream(path, pickled({"w": stream_ids(value)}), {"0": bytes(24)})
    with refused(path):
        checkpoint.load(path)


@pytest.mark.parametrize("kind, elements", [
    (torch.FloatStorage, 7), (torch.DoubleStorage, 6), (torch.FloatStorage, 2 ** 40),
    (torch.FloatStorage, -1), (torch.FloatStorage, None), (torch.float32, 6), (torch.Size, 6),
    ("FloatStorage", 6),
], ids=str)
@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_a_storage_of_a_wrong_type_or_size_is_refused(tmp_path, container, kind, elements):
    path = tmp_path / "a.pth"
    value = tensor(0, (6,), (1,), kind, elements)
    if container == "zip":
        write_zip(path, pickled({"w": value}), {"0": bytes(24)})
    else:
        write_stream(path, pickled({"w": stream_ids(value)}), {"0": bytes(24)})
    with refused(path):
        checkpoint.load(path)


def test_the_tensor_of_these_tests_is_read_where_it_fits(tmp_path):
    path = tmp_path / "a.pth"
    content = torch.arange(6.0).numpy().tobytes()
    write_zip(path, pickled({"w": tensor(1, (2, 2), (3, 1))}), {"0": content})
    assert checkpoint.load(path)["w"].tolist() == [[1, 2], [4, 5]]
    write_stream(path, pickled({"w": stream_ids(tensor(1, (2, 2), (3, 1)))}), {"0": content})
    assert checkpoint.load(path)["w"].tolist() == [[1, 2], [4, 5]]


def test_a_part_of_a_storage_stays_inside_it(tmp_path):
    path = tmp_path / "a.pth"
    for view, fits in ((("1", 2, 4), True), (("1", 2, 5), False), (("1", -1, 2), False)):
        value = tensor(0, (2,), (1,))
        value.reduced[1][0].fields += (view,)
        write_stream(path, pickled(value), {"0": torch.arange(6.0).numpy().tobytes()})
        if fits:
            assert checkpoint.load(path).tolist() == [2, 3]
        else:
            with refused(path):
                checkpoint.load(path)


def test_booleans_are_made_of_zeros_and_ones_only(tmp_path):
    """torch counts on it, and a file may hold any byte."""
    path = tmp_path / "a.pth"
    content = bytes([0, 1, 2, 255])
    write_zip(path, pickled(tensor(0, (4,), (1,), torch.BoolStorage, 4)), {"0": content})
    found = checkpoint.load(path)
    assert found.view(torch.uint8).tolist() == [0, 1, 1, 1]
    bytes_as = Call(
        torch._utils._rebuild_tensor_v2, Ref("storage", torch.ByteStorage, "0", "cpu", 4), 0, (4,),
        (1,), False, None, torch.bool,
    )
    write_zip(path, pickled(bytes_as), {"0": content})
    with refused(path, "boolean"):
        checkpoint.load(path)

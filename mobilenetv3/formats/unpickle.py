"""A pickle machine that only builds data.

Python's own unpickler imports what a file names and calls it. This one looks every name up in a
table that its caller gives; a name that is not there is refused, and what is there makes numbers,
containers and tensors. torch.load(weights_only=True) is made in the same way, but came with PyTorch
1.13, and crafted files got past it up to 2.5 (CVE-2025-32434) and up to 2.9 (CVE-2026-24747). One
machine for every version refuses the same files everywhere.

The opcodes are those of Python's pickletools, protocols 2 to 5, which torch.save writes. They
only ever act on what the file itself built: state goes to objects of the caller's choice, items
to plain containers, and a dictionary is keyed by plain values (hashing a tuple nested a million
deep would overflow the C stack).
"""
import collections
import struct
from typing import Any, BinaryIO, Callable, Dict, List, NamedTuple

from mobilenetv3.formats.tensorbytes import Refusal


class Function:
    """Stands for a name in the file that may be called: `call` is what it does here."""

    def __init__(self, name: str, call: Callable):
        self.name = name
        self.call = call


class Rules(NamedTuple):
    """What a file may build.

    find: (module, name) -> what that name stands for; raises Refusal for one that is not allowed.
    set_state: type -> what to do with (an object of that type, its state).
    persistent: id -> the object that the file keeps outside of the pickle.
    """
    find: Callable[[str, str], Any]
    set_state: Dict[type, Callable[[Any, Any], None]]
    persistent: Callable[[Any], Any]


def load(stream: BinaryIO, rules: Rules) -> Any:
    """Read one pickle from where `stream` stands; leaves it behind the pickle's end.

    Raises:
        Refusal: it holds something that the rules do not allow.
        Exception: of many kinds, where the data is damaged.
    """
    return _Machine(stream, rules).run()


def check_key(key: Any) -> Any:
    """A key of a dictionary or a member of a set, when it is a plain value."""
    if type(key) not in (str, bytes, int, float, bool, type(None)):
        raise Refusal(f"was refused: it holds a {type(key).__name__} as a key")
    return key


class _Machine:
    def __init__(self, stream: BinaryIO, rules: Rules):
        self.stream = stream
        self.rules = rules
        self.stack: List[Any] = []
        self.outer: List[List[Any]] = []  # the stacks below the open marks
        self.memo: Dict[int, Any] = {}

    def run(self) -> Any:
        while True:
            opcode = self.read(1)
            if opcode == b".":
                return self.stack.pop()
            if opcode not in _OPCODES:
                raise Refusal(
                    "was refused: it holds a pickle of a kind that torch.save does not write "
                    f"(opcode {opcode!r})"
                )
            _OPCODES[opcode](self)

    # --- reading ---

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        if len(data) != size:
            raise EOFError("it ends in the middle")
        return data

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.read(struct.calcsize(layout)))[0]

    def line(self) -> str:
        line = self.stream.readline()
        if not line.endswith(b"\n"):
            raise EOFError("it ends in the middle")
        return line[:-1].decode("utf-8")

    # --- building ---

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def pop_mark(self) -> List[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def pop_tuple(self, size: int) -> None:
        items = [self.stack.pop() for _ in range(size)]
        self.push(tuple(reversed(items)))

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def global_name(self) -> None:
        module = self.line()
        self.push(self.find(module, self.line()))

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise ValueError("a global without a name")
        self.push(self.find(module, name))

    def find(self, module: str, name: str) -> Any:
        # Protocol 2 writes the name that Python 2 had.
        return self.rules.find("builtins" if module == "__builtin__" else module, name)

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not Function or type(arguments) is not tuple:
            raise Refusal(f"was refused: it calls a {type(function).__name__}")
        self.push(function.call(*arguments))

    def set_state(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) not in self.rules.set_state:
            name = target.name if type(target) is Function else type(target).__name__
            raise Refusal(f"was refused: it changes the state of a {name}")
        self.rules.set_state[type(target)](target, state)

    def append(self, items: List[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise Refusal(f"was refused: it appends to a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def set_items(self, items: List[Any]) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, collections.OrderedDict, collections.Counter):
            raise Refusal(f"was refused: it sets items of a {type(target).__name__}")
        if len(items) % 2:
            raise ValueError("a key without a value")
        for key, value in zip(items[::2], items[1::2]):
            target[check_key(key)] = value

    def add_items(self) -> None:
        items = self.pop_mark()
        if type(self.stack[-1]) is not set:
            raise Refusal(f"was refused: it adds to a {type(self.stack[-1]).__name__}")
        self.stack[-1].update(check_key(item) for item in items)

    def persistent(self) -> None:
        self.push(self.rules.persistent(self.stack.pop()))


def _text(size: str) -> Callable[[_Machine], None]:
    return lambda m: m.push(m.read(m.number(size)).decode("utf-8", "surrogatepass"))


def _data(size: str) -> Callable[[_Machine], None]:
    return lambda m: m.push(m.read(m.number(size)))


def _integer(size: str) -> Callable[[_Machine], None]:
    return lambda m: m.push(int.from_bytes(m.read(m.number(size)), "little", signed=True))


# The names beside them are pickletools'. Lengths are unsigned and little-endian.
_OPCODES: Dict[bytes, Callable[[_Machine], Any]] = {
    b"\x80": lambda m: m.read(1),                           # PROTO: the version, 2 to 5
    b"\x95": lambda m: m.read(8),                           # FRAME: for reading ahead
    b"N": lambda m: m.push(None),                           # NONE
    b"\x88": lambda m: m.push(True),                        # NEWTRUE
    b"\x89": lambda m: m.push(False),                       # NEWFALSE
    b"J": lambda m: m.push(m.number("<i")),                 # BININT
    b"K": lambda m: m.push(m.number("<B")),                 # BININT1
    b"M": lambda m: m.push(m.number("<H")),                 # BININT2
    b"G": lambda m: m.push(m.number(">d")),                 # BINFLOAT, the one big-endian value
    b"\x8a": _integer("<B"), b"\x8b": _integer("<I"),       # LONG1, LONG4
    b"X": _text("<I"), b"\x8c": _text("<B"), b"\x8d": _text("<Q"),  # BINUNICODE, SHORT_, 8
    b"U": _text("<B"), b"T": _text("<I"),                   # SHORT_BINSTRING, BINSTRING: Python 2's
    b"C": _data("<B"), b"B": _data("<I"), b"\x8e": _data("<Q"),     # SHORT_BINBYTES, BINBYTES, 8
    b")": lambda m: m.push(()),                             # EMPTY_TUPLE
    b"]": lambda m: m.push([]),                             # EMPTY_LIST
    b"}": lambda m: m.push({}),                             # EMPTY_DICT
    b"\x8f": lambda m: m.push(set()),                       # EMPTY_SET
    b"(": _Machine.mark,                                    # MARK
    b"t": lambda m: m.push(tuple(m.pop_mark())),            # TUPLE
    b"\x85": lambda m: m.pop_tuple(1),                      # TUPLE1
    b"\x86": lambda m: m.pop_tuple(2),                      # TUPLE2
    b"\x87": lambda m: m.pop_tuple(3),                      # TUPLE3
    b"a": lambda m: m.append([m.stack.pop()]),              # APPEND
    b"e": lambda m: m.append(m.pop_mark()),                 # APPENDS
    b"s": lambda m: m.set_items([m.stack.pop(), m.stack.pop()][::-1]),  # SETITEM
    b"u": lambda m: m.set_items(m.pop_mark()),              # SETITEMS
    b"\x90": _Machine.add_items,                            # ADDITEMS
    b"q": lambda m: m.put(m.number("<B")),                  # BINPUT
    b"r": lambda m: m.put(m.number("<I")),                  # LONG_BINPUT
    b"\x94": lambda m: m.put(len(m.memo)),                  # MEMOIZE
    b"h": lambda m: m.push(m.memo[m.number("<B")]),         # BINGET
    b"j": lambda m: m.push(m.memo[m.number("<I")]),         # LONG_BINGET
    b"c": _Machine.global_name,                             # GLOBAL
    b"\x93": _Machine.stack_global,                         # STACK_GLOBAL
    b"R": _Machine.call,                                    # REDUCE
    b"\x81": _Machine.call,                                 # NEWOBJ: calls here, too
    b"b": _Machine.set_state,                               # BUILD
    b"Q": _Machine.persistent,                              # BINPERSID
}

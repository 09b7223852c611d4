"""Check of a pickle: the names in it, and the memory that it needs.

A pickle of some kilobytes can build gigabytes, so the memory of every opcode is estimated before torch runs it.
A file may have millions of opcodes: this scanner is several times faster than ``pickletools``.
"""

from __future__ import annotations

import pickle
import pickletools
import sys
from collections.abc import Callable

ORDERED_DICT = "collections OrderedDict"
# It copies the items of a dict to the attributes of a parameter.
WITH_STATE = "torch._utils _rebuild_parameter_with_state"

# The opcodes that torch.load(weights_only=True) reads and that need no further check: the bytes of their argument, the
# memory of the object with its places in the stack and in a list, and how many values they add to the stack.
# The memory is measured with CPython 3.11.
SIMPLE: dict[bytes, tuple[int, int, int]] = {
    pickle.PROTO: (1, 0, 0),
    pickle.NONE: (0, 16, 1),
    pickle.NEWTRUE: (0, 16, 1),
    pickle.NEWFALSE: (0, 16, 1),
    pickle.BININT1: (1, 16, 1),
    pickle.BININT2: (2, 48, 1),
    pickle.BININT: (4, 48, 1),
    pickle.BINFLOAT: (8, 48, 1),
    pickle.EMPTY_LIST: (0, 112, 1),
    pickle.EMPTY_TUPLE: (0, 16, 1),
    pickle.EMPTY_DICT: (0, 208, 1),
    pickle.EMPTY_SET: (0, 240, 1),
    pickle.TUPLE1: (0, 88, 0),
    pickle.TUPLE2: (0, 88, -1),
    pickle.TUPLE3: (0, 88, -2),
    pickle.APPEND: (0, 16, -1),
    pickle.BINPERSID: (0, 48, 0),
    # The largest object that a call returns is a tensor.
    pickle.REDUCE: (0, 448, -1),
}
MEMORY_OF_MARK = 88
MEMORY_OF_TUPLE = 88
MEMORY_OF_TEXT = 32
MEMORY_OF_ITEM = 96
# The memo of the reader is a dict of all numbers.
MEMORY_OF_MEMO = 144
SMALL_MEMORY = 16
# A dict with at most this many items needs no more than an empty one is estimated to need.
FREE_ITEMS = 5


class UnsafePickleError(Exception):
    """The pickle names something that is not allowed; the argument is its name."""


class UnusualPickleError(ValueError):
    """``torch.save`` never writes such a pickle."""


class LargePickleError(ValueError):
    """The pickle needs more memory than it may."""


def needed_memory(data: bytes, allowed: set[str] | None = None, available: float = float("inf")) -> int:
    """Return the memory in bytes that the values in a pickle need, without the memory of its tensors.

    Args:
        data: The pickle.
        allowed: The names of modules and functions that it may contain; None allows all.
        available: The memory that it may need.

    Raises:
        UnsafePickleError: If it contains another name, or an opcode that creates other objects.
        UnusualPickleError: If ``OrderedDict`` is called with arguments.
        LargePickleError: If it needs more than ``available``.
        Exception: Of any type, if the pickle is damaged.
    """
    return _Scanner(data, allowed, available).run()


class _Scanner:
    """The state of ``needed_memory``."""

    def __init__(self, data: bytes, allowed: set[str] | None, available: float) -> None:
        self.data, self.allowed, self.available = data, allowed, available
        self.memory, self.position = 0, 0
        # The number of values above each mark.
        self.counts = [0]
        # Items of dicts, and pairs from which a dict can be filled.
        self.items = 0
        # The places in the memo of the functions that are followed.
        self.functions: dict[int, str] = {}

    def run(self) -> int:
        """Read all opcodes, and return the memory that they need."""
        data, stop, pair = self.data, pickle.STOP[0], pickle.TUPLE2[0]
        while (code := data[self.position]) != stop:
            self.position += 1
            entry = TABLE[code]
            if entry is not None:
                length, memory, added = entry
                self.position += length
                self.memory += memory
                self.counts[-1] += added
                self.items += code == pair
            else:
                HANDLERS.get(code, _Scanner.refuse)(self)
            if self.memory > self.available:
                raise LargePickleError(f"it needs more than {self.available:,} bytes of memory")
        return self.memory

    def refuse(self) -> None:
        """Refuse an opcode that torch does not read."""
        raise UnsafePickleError(_opcode_name(self.data[self.position - 1]))

    def push(self, memory: int) -> None:
        """Count a value on the stack that needs ``memory``."""
        self.counts[-1] += 1
        self.memory += memory

    def number(self, length: int) -> int:
        """Return the next ``length`` bytes as a number."""
        self.position += length
        return int.from_bytes(self.data[self.position - length : self.position], "little")

    def text(self) -> None:
        """Read BINUNICODE or SHORT_BINSTRING."""
        is_short = self.data[self.position - 1] == pickle.SHORT_BINSTRING[0]
        length = self.number(1 if is_short else 4)
        text = self.data[self.position : self.position + length]
        self.position += length
        self.push(
            MEMORY_OF_TEXT + (56 + length if text.isascii() else sys.getsizeof(text.decode("utf-8", "surrogatepass")))
        )

    def long(self) -> None:
        """Read LONG1."""
        length = self.number(1)
        self.position += length
        self.push(48 + length)

    def put(self) -> None:
        """Read BINPUT or LONG_BINPUT."""
        key = self.key()
        if key > 255:
            self.memory += MEMORY_OF_MEMO
        self.functions.pop(key, None)

    def get(self) -> None:
        """Read BINGET or LONG_BINGET."""
        key = self.key()
        self.push(SMALL_MEMORY)
        if key in self.functions:
            self.follow(self.functions[key])

    def key(self) -> int:
        """Return the argument of an opcode of the memo."""
        return self.number(1 if self.data[self.position - 1] in SHORT_MEMO else 4)

    def name(self) -> None:
        """Read GLOBAL: two lines of text."""
        middle = self.data.index(b"\n", self.position)
        end = self.data.index(b"\n", middle + 1)
        name = f"{self.data[self.position : middle].decode()} {self.data[middle + 1 : end].decode()}"
        self.position = end + 1
        self.push(MEMORY_OF_TEXT)
        if self.allowed is not None and name not in self.allowed:
            raise UnsafePickleError(name)
        if name in (ORDERED_DICT, WITH_STATE):
            self.follow(name)

    def follow(self, function: str) -> None:
        """Check how ``function`` on top of the stack is called.

        ``torch.save`` always calls ``OrderedDict`` without arguments and adds the items afterwards. A call with a list as
        argument could copy the same list a thousand times. It always writes the arguments right after the function.
        """
        while self.data[self.position] in PUTS:
            self.position += 1
            self.functions[self.key()] = function
        if function == ORDERED_DICT:
            if self.data[self.position : self.position + 2] != pickle.EMPTY_TUPLE + pickle.REDUCE:
                raise UnusualPickleError("it calls OrderedDict with arguments, which torch.save never does")
            self.position += 2
            self.memory += SIMPLE[pickle.REDUCE][1]
            return
        if self.data[self.position] != pickle.MARK[0]:
            raise UnusualPickleError(f"it calls {function} in another way than torch.save")
        self.memory += MEMORY_OF_ITEM * self.items

    def build(self) -> None:
        """Read BUILD, which copies a dict to the attributes of an object, and it can be the same dict each time."""
        self.counts[-1] -= 1
        self.memory += MEMORY_OF_ITEM * self.items

    def mark(self) -> None:
        """Read MARK."""
        self.counts.append(0)
        self.memory += MEMORY_OF_MARK

    def tuple(self) -> None:
        """Read TUPLE."""
        self.counts.pop()
        self.push(MEMORY_OF_TUPLE)

    def append_items(self) -> None:
        """Read APPENDS."""
        self.counts.pop()
        self.memory += SMALL_MEMORY

    def set_items(self) -> None:
        """Read SETITEMS."""
        count = self.counts.pop() // 2
        self.items += count
        self.memory += MEMORY_OF_ITEM * max(count - FREE_ITEMS, 0)

    def set_item(self) -> None:
        """Read SETITEM."""
        self.counts[-1] -= 2
        self.items += 1
        self.memory += MEMORY_OF_ITEM


PUTS = (pickle.BINPUT[0], pickle.LONG_BINPUT[0])
SHORT_MEMO = (pickle.BINPUT[0], pickle.BINGET[0])
TABLE = [SIMPLE.get(bytes([code])) for code in range(256)]
HANDLERS: dict[int, Callable[[_Scanner], None]] = {
    pickle.BINUNICODE[0]: _Scanner.text,
    pickle.SHORT_BINSTRING[0]: _Scanner.text,
    pickle.LONG1[0]: _Scanner.long,
    pickle.BINPUT[0]: _Scanner.put,
    pickle.LONG_BINPUT[0]: _Scanner.put,
    pickle.BINGET[0]: _Scanner.get,
    pickle.LONG_BINGET[0]: _Scanner.get,
    pickle.GLOBAL[0]: _Scanner.name,
    pickle.BUILD[0]: _Scanner.build,
    pickle.MARK[0]: _Scanner.mark,
    pickle.TUPLE[0]: _Scanner.tuple,
    pickle.APPENDS[0]: _Scanner.append_items,
    pickle.SETITEMS[0]: _Scanner.set_items,
    pickle.SETITEM[0]: _Scanner.set_item,
}


def _opcode_name(code: int) -> str:
    """Return the name of an opcode; its number if Python does not know it."""
    names = (opcode.name for opcode in pickletools.opcodes if opcode.code == chr(code))
    return next(names, f"opcode {code}")

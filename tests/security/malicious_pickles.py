"""Pickles that call functions or need far more memory than their size."""

from __future__ import annotations

import struct
from collections.abc import Callable

MB = 2**20
# Far above the limit, but harmless for the machine that runs the tests.
BOMB = 300 * MB


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    if abs(value) < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(16, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def put(index: int) -> bytes:
    return b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    return b"j" + struct.pack("<I", index)


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return named(module, name) + b"(" + b"".join(arguments) + b"tR"


def dictionary(**values: bytes) -> bytes:
    return b"}(" + b"".join(text(name) + value for name, value in values.items()) + b"u"


def insert(payload: bytes) -> Callable[[bytes], bytes]:
    """Return a function that adds ``payload``, which leaves one object, as one more value to the dict of a pickle."""

    def change(good: bytes) -> bytes:
        assert good.endswith((b"u.", b"b."))  # the dict is the last object, perhaps with attributes
        return good[:-1] + text("inserted") + payload + b"s."

    return change


def calls(canary: str) -> dict[str, bytes]:
    """Return opcodes that call a function, in every way that pickle supports. Each leaves one object."""
    shell = f"touch {canary}"
    python = f"open({canary!r}, 'w')"
    payloads = {
        f"GLOBAL {module}.{name}": call(module, name, *map(text, arguments))
        for module, name, *arguments in [
            ("os", "system", shell),
            ("posix", "system", shell),
            ("nt", "system", shell),
            ("os", "popen", shell),
            ("os", "execlp", "touch", "touch", canary),
            ("os", "unlink", canary),
            ("subprocess", "getoutput", shell),
            ("builtins", "exec", python),
            ("builtins", "eval", python),
            ("builtins", "compile", python, "x", "exec"),
            ("builtins", "open", canary, "w"),
            ("builtins", "__import__", "this"),
            ("__builtin__", "eval", python),
            ("io", "FileIO", canary, "w"),
            ("importlib", "import_module", "this"),
            ("runpy", "run_path", canary),
            ("timeit", "timeit", python),
            ("pydoc", "pipepager", "x", shell),
            ("webbrowser", "open", "http://127.0.0.1:9"),
            ("urllib.request", "urlopen", "http://127.0.0.1:9"),
            ("socket", "create_connection", "127.0.0.1"),
            ("ctypes", "CDLL", canary),
            ("shutil", "rmtree", canary),
            ("torch", "load", canary),
            ("torch.hub", "load", canary, "x"),
            ("torch.jit", "load", canary),
            ("torch._utils", "_import_dotted_name", "this.s"),
            ("torch", "_utils.os.system", shell),
            ("torch.serialization", "os.system", shell),
            ("numpy", "load", canary),
            ("operator", "methodcaller", "system", shell),
            ("code", "interact", python),
            ("easytorch.checkpoint.rotation", "shutil.rmtree", canary),
        ]
    }
    return payloads | {
        "STACK_GLOBAL os.system": text("os") + text("system") + b"\x93" + text(shell) + b"\x85R",
        "STACK_GLOBAL by memo": b"](" + text("system") + put(9999) + text("os") + get(9999) + b"\x93(" + text(shell) + b"tRe",
        "INST os.system": b"(" + text(shell) + b"ios\nsystem\n",
        "OBJ os.system": b"(" + named("os", "system") + text(shell) + b"o",
        "NEWOBJ Popen": named("subprocess", "Popen") + b"(" + text(shell) + b"t\x81",
        "NEWOBJ_EX Popen": named("subprocess", "Popen") + b"(" + text(shell) + b"t}\x92",
        "EXT1": b"\x82\x01",
        "EXT4": b"\x84\x01\0\0\0",
        "PERSID": b"Pos.system\n",
        "BINPERSID a path": text(canary) + b"Q",
        "BUILD __setstate__": b"ccollections\nOrderedDict\n)R" + dictionary(__setstate__=named("os", "system")) + b"b",
        "BUILD a class": b"cbuiltins\nobject\n)R" + dictionary(__class__=named("subprocess", "Popen")) + b"b",
        "REDUCE getattr": call("builtins", "getattr", named("os", "path"), text("os")),
        "REDUCE map": call("builtins", "map", named("os", "system"), b"(" + text(shell) + b"t"),
    }  # fmt: skip


def bombs() -> dict[str, bytes]:
    """Return opcodes that need far more memory or time than their own size."""

    def repeat(function: bytes, arguments: bytes, count: int) -> bytes:
        first_call = function + put(9990) + arguments + put(9991)
        return b"](" + first_call + (get(9990) + get(9991) + b"R") * count + b"e"

    storage = named("torch", "FloatStorage")
    tiny = b"(" + text("storage") + storage + text("0") + text("cpu") + number(1) + b"tQ"
    nothing = b"ccollections\nOrderedDict\n)R"
    items = b"](" + b"".join(number(i) + b"N\x86" for i in range(20_000)) + b"e"
    huge = number(BOMB // 4) + b"\x85"
    entries = b"}(" + b"".join(text(f"n{i}") + b"N" for i in range(20_000)) + b"u"
    parameter = call("torch._utils", "_rebuild_tensor_v2", tiny, number(0), b")", b")", b"\x89", nothing)
    with_state = named("torch._utils", "_rebuild_parameter_with_state")
    return {
        "attributes from one dict": b"](" + entries + put(9991) + (nothing + get(9991) + b"b") * 3_000 + b"e",
        "attributes from one dict that grows": b"](" + entries + put(9991)
        + b"".join(nothing + get(9991) + text(f"m{i}") + b"Nsb" for i in range(3_000)) + b"e",
        "parameters from one state": b"](" + entries + put(9991) + parameter + put(9992)
        + (with_state + b"(" + get(9992) + b"\x88" + nothing + get(9991) + b"tR") * 3_000 + b"e",
        "parameters from one state by the memo": b"](" + entries + put(9991) + parameter + put(9992) + with_state + put(9993)
        + (b"(" + get(9992) + b"\x88" + nothing + get(9991) + b"tR" + get(9993)) * 3_000 + b"e",
        "many numbers as keys": b"}(" + b"".join(number(1000 + i) + b"N" for i in range(700_000)) + b"u",
        "empty lists": b"](" + b"]" * 2_000_000 + b"e",
        "empty dicts": b"](" + b"}" * 2_000_000 + b"e",
        "empty sets": b"](" + b"\x8f" * 1_000_000 + b"e",
        "marks": b"]" + b"(" * 2_000_000 + b"t" * 2_000_000,
        "tensors by memo": repeat(
            named("torch._utils", "_rebuild_tensor_v2"),
            b"(" + tiny + number(0) + b"))\x89" + nothing + b"t", 400_000,
        ),
        "bytearray": call("builtins", "bytearray", number(BOMB)),
        "bytearray of Python 2": call("__builtin__", "bytearray", number(BOMB)),
        "bytearray by memo": b"](" + named("builtins", "bytearray") + put(9999) + get(9999) + number(BOMB) + b"\x85Re",
        "encode repeated": repeat(named("_codecs", "encode"), text("a" * MB) + text("latin1") + b"\x86", 300),
        "encode slowly": call("_codecs", "encode", text("äöü€" * 20_000), text("punycode")),
        "encode by a module": call("_codecs", "encode", text("a"), text("this_is_no_codec")),
        "Size repeated": repeat(named("torch", "Size"), b"(" + number(7) * 200_000 + b"t\x85", 300),
        "OrderedDict repeated": repeat(named("collections", "OrderedDict"), b")", 300_000),
        "OrderedDict filled repeatedly": repeat(
            named("collections", "OrderedDict"), items + b"\x85", 200
        ),
        "OrderedDicts from one list": b"](" + named("collections", "OrderedDict") + put(9990) + items + put(9991) + b"\x85R"
        + (get(9990) + get(9991) + b"\x85R") * 200 + b"e",
        "OrderedDicts from one list by a mark": b"](" + items + put(9991)
        + (named("collections", "OrderedDict") + b"(" + get(9991) + b"tR") * 200 + b"e",
        "UntypedStorage": call("torch.storage", "UntypedStorage", number(BOMB)),
        "a tensor larger than its storage": call(
            "torch._utils", "_rebuild_tensor_v2", tiny, number(0), huge, number(1) + b"\x85", b"\x89", nothing
        ),
        "tensors of no storage": call("torch._utils", "_rebuild_tensor_v2", b"N", number(0), huge, b")", b"\x89", nothing),
        "a negative offset": call(
            "torch._utils", "_rebuild_tensor_v2", tiny, number(-10**6), number(1) + b"\x85", number(1) + b"\x85", b"\x89", nothing
        ),
        "a negative stride": call(
            "torch._utils", "_rebuild_tensor_v2", tiny, number(0), number(5) + b"\x85", number(-3) + b"\x85", b"\x89", nothing
        ),
        "a size that overflows": call(
            "torch._utils", "_rebuild_tensor_v2", tiny, number(0), number(2**62) * 2 + b"\x86",
            number(2**62) + number(1) + b"\x86", b"\x89", nothing,
        ),
        "a storage of wrong size": b"(" + text("storage") + storage + text("0") + text("cpu") + number(2**40) + b"tQ",
        "a storage outside": b"(" + text("storage") + storage + text("../../../etc/passwd") + text("cpu") + number(1) + b"tQ",
        "a storage on another device": b"(" + text("storage") + storage + text("0") + text("cuda:99") + number(2**33) + b"tQ",
        "lists in lists": b"]" * 150_000 + b"a" * 149_999,
        "more lists in lists": b"]" * 2_000_000 + b"a" * 1_999_999,
        "tuples in tuples": b")" + b"\x85" * 1_500_000,
        "dicts in dicts": (b"}" + text("a")) * 150_000 + b"N" + b"s" * 150_000,
        "endless dict updates": b"}" + text("a") + b"q\xfaNs" + b"h\xfaNs" * 1_200_000,
        "memo bomb": b"N" + b"".join(put(i) for i in range(10_000, 500_000)),
        "memo far away": b"N" + put(2**32 - 1),
        "a text of wrong length": b"X\xff\xff\xff\x7f",
        "a number of wrong length": b"\x8b\xff\xff\xff\x7f",
        "a frame of wrong length": b"\x95" + b"\xff" * 8,
    }  # fmt: skip


def laughs() -> bytes:
    """Return a list of a few bytes that needs billions of steps to walk through (a billion laughs attack)."""
    deep = b"](](" + b"N" * 9 + b"e" + put(9000)
    for level in range(30):
        deep += b"](" + get(9000 + level) * 9 + b"e" + put(9001 + level)
    return deep + b"e"

"""Malicious files, and a process that loads each of them while every act of the interpreter is watched.

python -m tests.security.malice FOLDER         writes them to FOLDER, loads them, and prints one JSON line for each load
python -m tests.security.malice FOLDER NAME    loads those with NAME in their name as a reader would that trusts them: they do run
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import gzip
import io
import json
import os
import pickle
import struct
import sys
import tarfile
import time
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from easytorch import Model
from easytorch.checkpoint import files
from tests.loops import blobs
from tests.security.damage import good_files, identical, model, net

MB = 2**20
BOMB = 300 * MB  # far above what is allowed, and harmless for the machine that runs the tests


# Instructions of pickles


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


def beside(payload: bytes) -> Callable[[bytes], bytes]:
    """Return what puts ``payload``, which leaves one object, into the dict of a pickle, as one more value."""

    def change(good: bytes) -> bytes:
        assert good.endswith(b"u.")
        return good[:-2] + text("beside") + payload + b"u."

    return change


# Archives, written by hand so that each field can lie


@dataclasses.dataclass
class Member:
    name: bytes
    data: bytes
    method: int = 0
    flags: int = 0
    local: dict[str, int] = dataclasses.field(default_factory=dict)
    central: dict[str, int] = dataclasses.field(default_factory=dict)
    extra: bytes = b""
    after: bytes = b""
    same_place: bool = False  # as the member before: its data is not written again


def archive(members: Iterable[Member], comment: bytes = b"", prefix: bytes = b"", end: bytes | None = None) -> bytes:
    data, index, place = bytearray(prefix), bytearray(), 0
    count = 0
    for member in members:
        count += 1
        packed = member.data
        if member.method == 8:
            deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
            packed = deflate.compress(packed) + deflate.flush()
        fields = {"crc": zlib.crc32(member.data), "packed": len(packed), "size": len(member.data)}
        here = fields | member.local
        if not member.same_place:
            place = len(data)
            data += struct.pack(
                "<4s5H3L2H", b"PK\3\4", 20, member.flags, member.method, 0, 33,
                here["crc"], here["packed"], here["size"], len(member.name), 0,
            )  # fmt: skip
            data += member.name + packed + member.after
        there = fields | {"place": place, "attributes": 0} | member.central
        index += struct.pack(
            "<4s4B4H3L5H2L", b"PK\1\2", 20, 3, 20, 0, member.flags, member.method, 0, 33,
            there["crc"], there["packed"], there["size"], len(member.name), len(member.extra), 0, 0, 0,
            there["attributes"], there["place"],
        )  # fmt: skip
        index += member.name + member.extra
    start = len(data)
    if end is None:
        end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count % 65536, count % 65536, len(index), start, len(comment))
    return bytes(data + index + end + comment)


def members_of(good: bytes) -> list[Member]:
    with zipfile.ZipFile(io.BytesIO(good)) as zipped:
        return [Member(name.encode(), zipped.read(name)) for name in zipped.namelist()]


def changed(good: bytes, name: str, change: Callable[[bytes], bytes]) -> bytes:
    """Return the archive ``good`` with the data of one member changed."""
    members = members_of(good)
    for member in members:
        if member.name.decode().split("/", 1)[1] == name:
            member.data = change(member.data)
    return archive(members)


def saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


# The files


def calls(canary: str) -> dict[str, bytes]:
    """Return instructions that run something, in every way that pickles know, each leaving one object."""
    shell = f"touch {canary}"
    python = f"open({canary!r}, 'w')"
    found = {
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
    return found | {
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
    """Return instructions that ask for far more memory or time than their own size."""

    def again(function: bytes, arguments: bytes, count: int) -> bytes:
        once = function + put(9990) + arguments + put(9991)
        return b"](" + once + (get(9990) + get(9991) + b"R") * count + b"e"

    storage = named("torch", "FloatStorage")
    tiny = b"(" + text("storage") + storage + text("0") + text("cpu") + number(1) + b"tQ"
    nothing = b"ccollections\nOrderedDict\n)R"
    huge = number(BOMB // 4) + b"\x85"
    return {
        "bytearray": call("builtins", "bytearray", number(BOMB)),
        "bytearray of Python 2": call("__builtin__", "bytearray", number(BOMB)),
        "bytearray by memo": b"](" + named("builtins", "bytearray") + put(9999) + get(9999) + number(BOMB) + b"\x85Re",
        "encode again and again": again(named("_codecs", "encode"), text("a" * MB) + text("latin1") + b"\x86", 300),
        "encode slowly": call("_codecs", "encode", text("äöü€" * 20_000), text("punycode")),
        "encode by a module": call("_codecs", "encode", text("a"), text("this_is_no_codec")),
        "Size again and again": again(named("torch", "Size"), b"(" + number(7) * 200_000 + b"t\x85", 300),
        "OrderedDict again and again": again(named("collections", "OrderedDict"), b")", 300_000),
        "OrderedDict filled again and again": again(
            named("collections", "OrderedDict"), b"](" + b"".join(number(i) + b"N\x86" for i in range(20_000)) + b"e\x85", 200
        ),
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
        "a storage that lies": b"(" + text("storage") + storage + text("0") + text("cpu") + number(2**40) + b"tQ",
        "a storage outside": b"(" + text("storage") + storage + text("../../../etc/passwd") + text("cpu") + number(1) + b"tQ",
        "a storage elsewhere": b"(" + text("storage") + storage + text("0") + text("cuda:99") + number(2**33) + b"tQ",
        "lists in lists": b"]" * 150_000 + b"a" * 149_999,
        "more lists in lists": b"]" * 2_000_000 + b"a" * 1_999_999,
        "tuples in tuples": b")" + b"\x85" * 1_500_000,
        "dicts in dicts": (b"}" + text("a")) * 150_000 + b"N" + b"s" * 150_000,
        "nothing, for hours": b"}" + text("a") + b"q\xfaNs" + b"h\xfaNs" * 1_200_000,
        "memo bomb": b"N" + b"".join(put(i) for i in range(10_000, 500_000)),
        "memo far away": b"N" + put(2**32 - 1),
        "a text that lies": b"X\xff\xff\xff\x7f",
        "a number that lies": b"\x8b\xff\xff\xff\x7f",
        "a frame that lies": b"\x95" + b"\xff" * 8,
    }  # fmt: skip


def laughs() -> bytes:
    """Return a list of a few bytes that is endless for whoever walks through it."""
    deep = b"](](" + b"N" * 9 + b"e" + put(9000)
    for level in range(30):
        deep += b"](" + get(9000 + level) * 9 + b"e" + put(9001 + level)
    return deep + b"e"


def zip_tricks(good: bytes) -> dict[str, bytes]:
    """Return archives that lie about what is in them; what hides in them is a bomb."""
    found: dict[str, bytes] = {}
    bomb = b"\x80\x02" + call("builtins", "bytearray", number(BOMB)) + b"."
    zeros = bytes(BOMB)

    def new_copy() -> tuple[list[Member], Member, list[Member]]:
        members = members_of(good)
        instructions = next(member for member in members if member.name.endswith(b"/data.pkl"))
        return members, instructions, [member for member in members if member is not instructions]

    members, instructions, others = new_copy()
    root = instructions.name.split(b"/")[0] + b"/"
    found["deflated bomb beside"] = archive([*members, Member(root + b"data/999", zeros, 8)])
    found["deflated instructions"] = archive([Member(instructions.name, instructions.data, 8), *others])
    found["deflated instructions that are a bomb"] = archive([Member(instructions.name, zeros, 8), *others])
    largest = max(others, key=lambda member: len(member.data))
    found["deflated values"] = archive(
        [Member(member.name, member.data, 8 if member is largest else 0) for member in members]
    )
    for method, name in ((9, "deflate64"), (12, "bzip2"), (14, "lzma"), (93, "zstd"), (99, "unknown")):
        found[f"{name} method"] = archive([*members, Member(root + b"data/999", b"abc", method)])
    found["duplicate instructions"] = archive([instructions, *others, Member(instructions.name, bomb)])
    found["duplicate instructions, bomb first"] = archive([Member(instructions.name, bomb), *others, instructions])
    found["duplicate values"] = archive([*members, Member(largest.name, bytes(len(largest.data)))])
    found["instructions in capitals"] = archive([Member(root + b"DATA.PKL", bomb), *members])
    found["instructions in capitals alone"] = archive(
        [Member(root + b"DATA.PKL", bomb), *others, Member(root + b"x/data.pkl", instructions.data)]
    )
    found["root in capitals"] = archive([Member(root.upper() + b"data.pkl", bomb), *others, instructions])
    found["two roots"] = archive([Member(b"a/data.pkl", bomb), *members])
    found["two roots, one of them deep"] = archive([*members, Member(b"a/b/data.pkl", bomb)])
    found["name with a zero byte"] = archive([Member(instructions.name + b"\0x", bomb), *members])
    found["name hidden behind a zero byte"] = archive(
        [Member(root + b"data.pkl", bomb), *others, Member(root + b"x/data.pkl\0y", instructions.data)]
    )
    extra = b"\1" + struct.pack("<L", zlib.crc32(instructions.name)) + root + b"data/77"
    found["name in an extra field"] = archive(
        [
            Member(instructions.name, bomb, extra=struct.pack("<HH", 0x7075, len(extra)) + extra),
            *others,
            Member(root + b"x/data.pkl", instructions.data),
        ]
    )
    found["backslash in a name"] = archive([Member(root[:-1] + b"\\data.pkl", bomb), *members])
    for name in (b"../../canary", b"/tmp/canary", b"..\\..\\canary", b"C:\\canary", root + b"../../../canary"):
        found[f"traversal {len(name)}"] = archive([*members, Member(name, b"x")])
    found["symlink"] = archive(
        [*members, Member(root + b"data/998", b"/etc/passwd", central={"attributes": 0xA1FF << 16})]
    )
    found["folder"] = archive([*members, Member(root + b"data/", b"", central={"attributes": 0x10})])
    overlapping = [*members, Member(root + b"data/900", bytes(1000))]
    overlapping += [Member(root + b"data/%d" % (901 + i), bytes(1000), same_place=True) for i in range(500)]
    found["overlapping members"] = archive(overlapping)
    found["overlapping members of one name"] = archive(
        [*members, Member(largest.name, bytes(1000)), *[Member(largest.name, bytes(1000), same_place=True)] * 9]
    )
    for name, field, value in (
        ("size too large", "size", 2**31),
        ("size too small", "size", 1),
        ("packed size too large", "packed", 2**31),
        ("packed size too small", "packed", 1),
        ("checksum zero", "crc", 0),
        ("place at the end", "place", len(good) + 10**6),
        ("place of another", "place", 0),
        ("place behind everything", "place", 2**32 - 2),
    ):
        for member in members:
            member.central = {field: value} if member is largest else {}
        found[f"{name} in the index"] = archive(members)
        for member in members:
            member.central, member.local = {}, {field: value} if member is largest and field != "place" else {}
        if field != "place":
            found[f"{name} before the data"] = archive(members)
    members, instructions, others = new_copy()
    largest = max(others, key=lambda member: len(member.data))
    for name, values in (
        ("zip64: places beyond the world", (len(largest.data), len(largest.data), 2**64 - 1)),
        ("zip64: places beyond half the world", (len(largest.data), len(largest.data), 2**63 - 1)),
        ("zip64: sizes beyond the world", (2**64 - 1, 2**64 - 1, 0)),
        ("zip64: a size of 4 GB", (2**32, len(largest.data), 0)),
        ("zip64: fields missing", ()),
    ):
        largest.central = {"size": 2**32 - 1, "packed": 2**32 - 1, "place": 2**32 - 1}
        largest.extra = struct.pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values)
        found[name] = archive(members)
    members, instructions, others = new_copy()
    for member in members:
        member.flags, member.local = 8, {"crc": 0, "packed": 0, "size": 0}
        member.after = struct.pack("<4s3L", b"PK\7\x08", zlib.crc32(member.data), len(member.data), len(member.data))
    found["data descriptors"] = archive(members)
    for member in members:
        member.after = struct.pack("<4s3L", b"PK\7\x08", 1, 2**31, 2**31)
    found["data descriptors that lie"] = archive(members)
    members, instructions, others = new_copy()
    for member in members:
        member.flags = 1
    found["encrypted"] = archive(members)
    members, instructions, others = new_copy()
    plain = archive(new_copy()[0])
    found["huge comment"] = archive(new_copy()[0], comment=b"PK\5\6" * 16_000)
    ends = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, 0, 0, 0)
    found["an end within the comment"] = archive(new_copy()[0], comment=ends)
    bombed = archive([Member(root + b"data.pkl", bomb), *new_copy()[2]])
    found["another archive in the comment"] = archive(new_copy()[0], comment=bombed[:60_000])
    found["another archive in front"] = archive(new_copy()[0], prefix=bombed)
    found["two archives"] = bombed + plain
    found["two archives, zip64"] = _two_archives(new_copy()[0], [Member(root + b"data.pkl", bomb), *new_copy()[2]])
    found["data in front"] = archive(new_copy()[0], prefix=b"#!/bin/sh\ntouch canary\n")
    found["a program in front"] = archive(new_copy()[0], prefix=b"\x7fELF" + bytes(5000))
    legacy = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    found["old format in front: bomb"] = archive(new_copy()[0], prefix=legacy + bomb)
    found["old format in front: bomb first"] = archive(new_copy()[0], prefix=bomb)
    found["old format in front: other weights"] = archive(
        new_copy()[0],
        prefix=saved({"0.weight": torch.zeros(24, 8)}, _use_new_zipfile_serialization=False),
    )
    found["data behind"] = plain + b"x" * 1000
    found["very many members"] = archive([*members_of(good), *[Member(root + b"e%d" % i, b"") for i in range(50_000)]])
    found["a count that lies"] = plain[:-22] + struct.pack("<4s4H", b"PK\5\6", 0, 0, 9999, 9999) + plain[-10:]
    found["an index that lies"] = plain[:-10] + struct.pack("<2LH", 2**32 - 2, 0, 0)
    found["an empty archive"] = ends
    found["no instructions"] = archive(others)
    found["empty instructions"] = archive([Member(instructions.name, b""), *others])
    found["values cut off"] = archive(
        [Member(m.name, m.data[:-1] if m.name == largest.name else m.data) for m in members]
    )
    found["TorchScript"] = archive(
        [
            *new_copy()[0],
            Member(root + b"constants.pkl", b"\x80\x02)."),
            Member(root + b"code/__torch__.py", b"import os"),
        ]
    )
    found["a program of torch.export"] = archive(
        [Member(b"p/archive_format", b"pt2"), Member(b"p/models/model.json", b"{}"), Member(b"p/data.pkl", bomb)]
    )
    found["byteorder unknown"] = changed(good, "byteorder", lambda _: b"middle")
    found["version of the future"] = changed(good, "version", lambda _: b"999999\n")
    found["version that is none"] = changed(good, "version", lambda _: b"x" * 100)
    return found


def _two_archives(shown: list[Member], hidden: list[Member]) -> bytes:
    """Return a file with two indices: readers disagree which of them the zip64 locator means."""

    def end64(count: int, size: int, place: int) -> bytes:
        return struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, place)

    first, second = archive(hidden, end=b""), archive(shown, end=b"")
    hidden_index, start = first.index(b"PK\1\2"), second.index(b"PK\1\2")
    hidden_end = len(first)
    body = first + end64(len(hidden), len(first) - hidden_index, hidden_index)
    shift, index, at = len(body), bytearray(second[start:]), 0
    while at < len(index):  # the second index tells places in the whole file
        struct.pack_into("<L", index, at + 42, struct.unpack_from("<L", index, at + 42)[0] + shift)
        at += 46 + sum(struct.unpack_from("<3H", index, at + 28))
    body += second[:start] + bytes(index) + end64(len(shown), len(index), shift + start)
    body += struct.pack("<4sLQL", b"PK\6\7", 0, hidden_end, 1)
    return body + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0)


def contents(good: dict[str, Any]) -> dict[str, Any]:
    """Return contents of whole archives, of tensors and plain values, that are not what ``Model.save`` writes."""

    def but(**changes: Any) -> dict[str, Any]:
        return {**good, **changes}

    def less(*names: str) -> dict[str, Any]:
        return {name: value for name, value in good.items() if name not in names}

    def optimizer(**state: Any) -> dict[str, Any]:
        groups = good["optimizer"]["param_groups"]
        return but(optimizer={"state": {**good["optimizer"]["state"], 0: {**good["optimizer"]["state"][0], **state}},
                              "param_groups": groups})  # fmt: skip

    weights = good["module"]
    name = next(iter(weights))
    large = torch.zeros(1, dtype=torch.float64).as_strided((BOMB // 4,), (0,))
    return {
        "no version": less("version"),
        "no weights": less("module"),
        "no optimizer": less("optimizer"),
        "no state": less("state"),
        "no history": less("history"),
        "no recipe": less("compiled"),
        "no feed": less("feed"),
        "no callbacks": less("callbacks"),
        "no environment": less("environment"),
        "nothing but the format": {"format": "easytorch"},
        "version as text": but(version="1"),
        "version that is no number": but(version=float("nan")),
        "version as list": but(version=[1]),
        "version of the future": but(version=10**6),
        "format as list": but(format=["easytorch"]),
        "weights as list": but(module=[1, 2]),
        "weights as number": but(module=3),
        "weights of texts": but(module=dict.fromkeys(weights, "x")),
        "weights by number": but(module=dict(enumerate(weights.values()))),
        "weights None": but(module=None),
        "a weight that is None": but(module={**weights, name: None}),
        "a weight of complex numbers": but(module={**weights, name: weights[name].to(torch.complex64)}),
        "very many other names": but(module={f"layer.{i}.weight": 0 for i in range(45_000)}),
        "a very long name": but(module={**weights, "w" * 5_000_000: 0}),
        "names beside the prefix": but(module={"." * 100_000: 0}),
        "optimizer as list": but(optimizer=[1]),
        "optimizer without groups": but(optimizer={"state": {}}),
        "optimizer with groups of text": but(optimizer={"state": {}, "param_groups": "abc"}),
        "optimizer with no group": but(optimizer={"state": {}, "param_groups": []}),
        "optimizer with groups of numbers": but(optimizer={"state": {}, "param_groups": [1]}),
        "optimizer state as text": but(optimizer={**good["optimizer"], "state": "abc"}),
        "optimizer state of other shapes": optimizer(exp_avg=torch.zeros(3, 3)),
        "optimizer state of texts": optimizer(exp_avg="x"),
        "optimizer state that is a bomb": optimizer(exp_avg=large),
        "weights that are a bomb": but(module={**weights, name: large}),
        "state as list": but(state=[1]),
        "state with methods": but(state={"advance": None, "begin_fit": 1}),
        "state with dunders": but(state={"__class__": 3, "__dict__": {}}),
        "state of texts": but(state=dict.fromkeys(good["state"], "x")),
        "state before the begin": but(state=dict.fromkeys(good["state"], -5)),
        "history as number": but(history=5),
        "history of texts": but(history="abc"),
        "history without end": but(history={"rows": "LAUGHS"}),
        "recipe as list": but(compiled=[1]),
        "recipe with other names": but(compiled={"optimizer": "adam", "loss": "cross_entropy", "nonsense": 1}),
        "recipe that is unknown": but(compiled={"optimizer": "os.system", "loss": "cross_entropy"}),
        "recipe of a path": but(compiled={"optimizer": "../../x", "loss": "__import__", "metrics": ["eval"]}),
        "recipe of numbers": but(compiled={"optimizer": 3, "loss": 4}),
        "schedules as number": but(schedules=5),
        "schedules of texts": but(schedules=["a"]),
        "strategy as list": but(strategy=[1]),
        "callbacks as number": but(callbacks=5),
        "callbacks of numbers": but(callbacks=[1, 2]),
        "feed as number": but(feed=5),
        "feed empty": but(feed={}),
        "feed with other random states": but(feed={**good["train_data"], "random": {"python": [3, [1, 2], None]}}),
        "feed with random states of text": but(feed={**good["train_data"], "random": "abc"}),
        "feed with generators": but(feed={**good["train_data"], "generators": 5}),
        "metrics as number": but(metrics=5),
        "metrics of texts": but(metrics="abc"),
        "environment as number": but(environment=5),
    }


def headers(good: bytes) -> dict[str, bytes]:
    """Return safetensors files with headers that lie."""
    length = int.from_bytes(good[:8], "little")
    header, data = json.loads(good[8 : 8 + length]), good[8 + length :]
    name = next(name for name in header if name != "__metadata__")

    def packed(header: Any, data: bytes = data, length: int | None = None) -> bytes:
        written = header if isinstance(header, bytes) else json.dumps(header).encode()
        return (len(written) if length is None else length).to_bytes(8, "little") + written + data

    def entry(**changes: Any) -> bytes:
        return packed({**header, name: {**header[name], **changes}})

    begin, end = header[name]["data_offsets"]
    first = json.dumps(header).encode()
    plain = {key: value for key, value in header.items() if key != "__metadata__"}
    return {
        "length huge": packed(header, length=2**63),
        "length beyond": packed(header, length=2**64 - 1),
        "length of 4 GB": packed(header, length=2**32),
        "length of 100 MB": packed(header, length=100_000_000),
        "length zero": packed(header, length=0),
        "length one too many": packed(header, length=len(first) + 1),
        "length alone": b"\xff" * 8,
        "seven bytes": b"\1" * 7,
        "offsets negative": entry(data_offsets=[-4, end]),
        "offsets backwards": entry(data_offsets=[end, begin]),
        "offsets overlapping": packed({**plain, "more": header[name]}),
        "offsets beyond": entry(data_offsets=[begin, len(data) + 4096]),
        "offsets beyond the world": entry(data_offsets=[2**63, 2**64 - 1]),
        "offsets of text": entry(data_offsets=["0", "4"]),
        "offsets of fractions": entry(data_offsets=[0.5, 1.5]),
        "offsets missing": packed({**header, name: {"dtype": "F32", "shape": [1]}}),
        "a gap": packed(header, data=data + bytes(4096)),
        "data cut off": packed(header, data=data[:-1]),
        "no data": packed(header, data=b""),
        "bad json": packed(b"{" + first),
        "json of Python": packed(repr(header).encode()),
        "json list": packed([1, 2]),
        "json number": packed(b"5"),
        "json nothing": packed(b"null"),
        "json empty": packed(b"{}"),
        "json of blanks": packed(b" " * 1000),
        "json not a number": packed(first[:-1] + b', "x": NaN}'),
        "not utf-8": packed(b"\xff\xfe" + first),
        "deep nesting": packed(b'{"a":' * 200_000 + b"1" + b"}" * 200_000),
        "deep lists": packed(b'{"a":' + b"[" * 500_000 + b"]" * 500_000 + b"}"),
        "duplicate names": packed(first[:-1] + b", " + json.dumps({name: header[name]}).encode()[1:]),
        "duplicate metadata": packed(b'{"__metadata__": {}, ' + first[1:]),
        "shape huge": entry(shape=[2**62, 2**62]),
        "shape that overflows to the right size": entry(shape=[2**63, 2]),
        "shape huge of nothing": entry(shape=[0, 2**62], data_offsets=[begin, begin]),
        "shape negative": entry(shape=[-1, -192]),
        "shape of texts": entry(shape=["8"]),
        "shape of very many": entry(shape=[1] * 100_000),
        "a number of a million digits": packed(b'{"a":' + b"9" * 1_000_000 + b"}"),
        "another type": entry(dtype="F64"),
        "an unknown type": entry(dtype="os.system"),
        "a new type": entry(dtype="F4"),
        "metadata that is a list": packed({**header, "__metadata__": [1]}),
        "metadata that is nothing": packed({**header, "__metadata__": None}),
        "metadata of numbers": packed({**header, "__metadata__": {"easytorch.sha256": 5}}),
        "another checksum": packed({**header, "__metadata__": {"easytorch.sha256": "0" * 64}}),
        "an empty checksum": packed({**header, "__metadata__": {"easytorch.sha256": ""}}),
        "strange names": packed({**header, "../../canary\0": header.get(name)}),
        "very many other names": packed(
            {f"layer.{i}.weight": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(40_000)}, b""
        ),
    }


def other_formats(canary: str, weights: dict[str, Any], content: Any, good: bytes) -> dict[str, bytes]:
    shell = b"\x80\x02" + call("os", "system", text(f"touch {canary}")) + b"."
    legacy = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as file:
        for name, data in (("sys_info", shell), ("pickle", shell), ("storages", shell), ("tensors", shell)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return {
        "plain pickle that calls": shell,
        "plain pickle of numbers": pickle.dumps({"module": {"0.weight": [1.0]}}),
        "plain pickle of protocol 0": b"cos\nsystem\n(S'touch " + canary.encode() + b"'\ntR.",
        "old format": saved(weights, _use_new_zipfile_serialization=False),
        "old format of a model": saved(content, _use_new_zipfile_serialization=False),
        "old format that calls": b"".join(legacy) + shell,
        "old format, magic alone": legacy[0],
        "oldest format, a tar": tar.getvalue(),
        "protocol 4": saved(content, pickle_protocol=4),
        "gzip": gzip.compress(good),
        "numpy": b"\x93NUMPY\1\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (1,)}" + shell,
        "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(1000),
        "Python": b"import os; os.system('touch " + canary.encode() + b"')\n",
        "a page of the web": b"<!DOCTYPE html><html><body>Not found</body></html>",
        "a pointer of git": b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12345\n",
        "empty": b"",
        "one byte": b"P",
        "the first bytes": good[:4],
        "half": good[: len(good) // 2],
        "almost all": good[:-1],
    }


def write_all(folder: Path) -> None:
    """Write all files to ``folder``, and the good ones that they are made from."""
    canary = str(folder / "canary")
    whole_files = good_files(folder / "good")
    good, weights = whole_files["checkpoint"].read_bytes(), whole_files["weights"].read_bytes()
    content = torch.load(whole_files["checkpoint"], weights_only=True)
    bad: dict[str, bytes] = {}
    instructions = calls(canary) | bombs()
    for name, payload in instructions.items():
        bad[f"pickle: {name}.pt"] = changed(good, "data.pkl", beside(payload))
    weight_bombs = ("GLOBAL os.system", "bytearray", "encode slowly", "a tensor larger than its storage")
    for name in weight_bombs:
        bad[f"pickle of weights: {name}.pt"] = changed(weights, "data.pkl", beside(instructions[name]))
    hiding = dictionary(get=number(1), items=number(2), keys=number(3), values=number(4)) + b"b."
    for name, value in {"a model": content, "weights": content["module"]}.items():
        data = saved(OrderedDict(value))
        bad[f"pickle: BUILD hides the methods of {name}.pt"] = changed(
            data, "data.pkl", lambda data: data[:-1] + hiding
        )
    bad["pickle: laughs.pt"] = changed(good, "data.pkl", beside(laughs()))
    bad["pickle: cut off.pt"] = changed(good, "data.pkl", lambda data: data[:-5])
    bad["pickle: garbage.pt"] = changed(good, "data.pkl", lambda data: b"\xff" * len(data))
    first = content["module"][next(iter(content["module"]))]
    whole = b"K\x18K\x08\x86"  # the sizes of the first weight, as the pickle has them
    assert first.shape == (24, 8)
    sizes = (b"K\x18\x85", b"M\x18\x18\x85")
    bad["pickle: a weight larger than its storage.pt"] = changed(
        good, "data.pkl", lambda data: data.replace(whole, b"M\x00\x40M\x00\x10\x86")
    )
    bad["pickle: a bias larger than its storage.pt"] = changed(good, "data.pkl", lambda data: data.replace(*sizes))
    bad["pickle: a weight that begins late.pt"] = _late(good, whole)
    for name, value in contents(content).items():
        data = saved(value)
        if name == "history without end":
            data = changed(data, "data.pkl", lambda data: data.replace(text("LAUGHS"), laughs()))
        bad[f"content: {name}.pt"] = data
    for name, data in zip_tricks(good).items():
        bad[f"zip: {name}.pt"] = data
    if "safetensors" in whole_files:
        for name, data in headers(whole_files["safetensors"].read_bytes()).items():
            bad[f"header: {name}.safetensors"] = data
        bad["other: pickle.safetensors"] = b"\x80\x02" + call("os", "system", text(f"touch {canary}")) + b"."
        bad["other: archive.safetensors"] = good
        bad["other: safetensors.pt"] = whole_files["safetensors"].read_bytes()
    plain = torch.load(whole_files["weights"], weights_only=True)
    for name, data in other_formats(canary, plain, content, good).items():
        bad[f"other: {name}.pt"] = data
    for name, data in bad.items():
        (folder / name).write_bytes(data)


def _late(good: bytes, sizes: bytes) -> bytes:
    """Return ``good`` with a first weight that begins in the middle of its storage, and so ends behind it."""

    def change(data: bytes) -> bytes:
        at = data.index(sizes)
        assert data[at - 2 : at] == b"K\0"
        return data[: at - 1] + b"\x60" + data[at:]

    return changed(good, "data.pkl", change)


# The process that loads them


ACTS = {
    "exec", "compile", "import", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty",
    "subprocess.Popen", "pty.spawn", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod",
    "os.link", "os.symlink", "shutil.rmtree", "shutil.move", "marshal.loads", "webbrowser.open",
    "urllib.Request", "tempfile.mkstemp", "tempfile.mkdtemp", "ctypes.dlopen", "ctypes.dlsym", "builtins.input",
    "sys.addaudithook", "signal.pthread_kill", "os.kill", "os.putenv",
}  # fmt: skip
FAMILIES = ("socket.", "ftplib.", "smtplib.", "http.", "winreg.", "mmap.__new__", "sqlite3.")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """Records what the interpreter does while it is on."""

    def __init__(self) -> None:
        self.on, self.acts = False, []
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        wrote = event == "open" and (
            (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"))
            or (isinstance(arguments[2], int) and arguments[2] & WRITING)
        )
        if event in ACTS or wrote or event.startswith(FAMILIES):
            self.acts.append(f"{event} {str(arguments)[:200]}")


def _peak() -> int:
    """Return the most memory that was in use since ``_reset_peak``, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM")


def _reset_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _why_not_usable(one: Model) -> str:
    """Return why ``one``, just loaded, cannot train; nothing if it can."""
    if one.optimizer is None:
        return ""
    for parameter, state in one.optimizer.state.items():
        for name, value in state.items():
            if not isinstance(value, torch.Tensor) or value.shape not in (parameter.shape, torch.Size([])):
                return f"{name} of a parameter of {list(parameter.shape)} is {value if isinstance(value, str) else value.shape}"
    try:
        one.fit(*blobs(), batch_size=25, verbose=0)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    return ""


def load_all(folder: Path, only: str = "") -> None:
    """Load every file in every way, and print what happened."""
    from easytorch.callbacks import EMA, Callback

    class Began(Callback):
        """Ends the watch, and the fit: what the file could do is done."""

        priority = -10

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            watch.on = False
            raise InterruptedError("resumed")

    good = torch.load(next((folder / "good" / "run").glob("*.pt")), weights_only=True)
    final = torch.load(folder / "good" / "weights.pt", weights_only=True)
    x, y = blobs()
    watch = Watch()
    cases = [*sorted((folder / "good").glob("*.*")), *sorted((folder / "good" / "run").glob("*.pt"))]
    cases += [path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix in (".pt", ".safetensors")]

    def attempt(path: Path, way: str, armed: bool = True) -> dict[str, Any]:
        for aside in (folder / "good" / "run").glob("*.aside"):  # by a run that went on from an older one
            aside.rename(aside.with_suffix(""))
        one = Model(net(), device="cpu") if way == "load, not compiled" else model()
        if one.optimizer is not None:
            one.optimizer.param_groups[0]["lr"] = 0.125  # that of the files is another
        was = {"weights": {k: v.clone() for k, v in one.module.state_dict().items()}, "step": one.state.step}
        _reset_peak()
        begin_memory, begin, message, kind, place, usable = _peak(), time.process_time(), "", "", "", ""
        watch.acts, watch.on = [], armed
        try:
            if way == "resume":
                one.fit(x, y, epochs=3, batch_size=25, callbacks=[EMA(0.9), Began()], resume=path, verbose=0)
            else:
                getattr(one, way.split(",")[0])(path)
        except InterruptedError:
            pass
        except BaseException as error:
            watch.on = False
            kind, message, where = type(error).__name__, str(error), error.__traceback__
            while where.tb_next is not None:
                where = where.tb_next
            place = f"{Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno}"
        watch.on = False
        seconds, memory = time.process_time() - begin, _peak() - begin_memory
        now = {name: tensor.clone() for name, tensor in one.module.state_dict().items()}
        untouched = identical(now, was["weights"]) and one.state.step == was["step"] and not one.history.epoch
        if one.optimizer is not None:
            untouched = untouched and one.optimizer.param_groups[0]["lr"] == 0.125 and not one.optimizer.state
        if not kind and way.startswith("load") and way != "load_weights":
            usable = _why_not_usable(one)
        return {
            "file": path.name,
            "way": way,
            "kind": kind,
            "message": message[:300],
            "place": place,
            "named": str(path) in message,
            "seconds": round(seconds, 3),
            "memory": memory,
            "size": path.stat().st_size,
            "acts": watch.acts[:5],
            "untouched": untouched,
            "unusable": usable if not kind else "",
            "right": any(identical(now, dict(whole)) for whole in (final, good["module"])),
        }

    ways = ("load", "load, not compiled", "load_weights", "resume")
    b"\xe4".decode("cp437")
    codecs.encode("a", "latin1")
    for path in cases:  # whatever is loaded lazily is loaded now
        if path.parent != folder:
            for way in ways:
                attempt(path, way, armed=False)
    other = folder / "good" / "other.bad"
    other.write_bytes(saved({"0.weihgt": torch.zeros(24, 8)}))
    attempt(other, "load_weights", armed=False)
    for path in cases:
        for way in ways if path.name.startswith("content: ") or path.parent != folder else (ways[0], *ways[2:]):
            if only in path.name:
                print(json.dumps({"begins": path.name, "way": way}), flush=True)
                print(json.dumps(attempt(path, way)), flush=True)


def load_large(folder: Path) -> None:
    """Load a large file, and print how much memory that took."""
    wide = Model(torch.nn.Linear(4096, 4096), device="cpu")
    for name in ("large.pt", "large.safetensors"):
        with contextlib.suppress(ImportError):
            path = wide.save_weights(folder / "good" / name)
            _reset_peak()
            before = _peak()
            wide.load_weights(path)
            print(json.dumps({"large": name, "size": path.stat().st_size, "memory": _peak() - before}))
            path.unlink()


def main() -> None:
    import resource

    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    if not (folder / "good").exists():
        write_all(folder)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 4096 * MB, resource.RLIM_INFINITY))  # should a bomb go off
    warnings.simplefilter("ignore")
    if sys.argv[2:]:  # a control: a reader that trusts one of them
        files.read = lambda path, device="cpu": torch.load(path, weights_only=False)
    else:
        load_large(folder)
    load_all(folder, *sys.argv[2:3])


if __name__ == "__main__":
    main()

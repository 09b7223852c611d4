"""Zip archives whose records contradict each other, or hide other content."""

from __future__ import annotations

import dataclasses
import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import torch

from tests.security.malicious_pickles import BOMB, call, number


@dataclasses.dataclass
class Member:
    """A member of a zip archive, whose header fields may contradict its data."""

    name: bytes
    data: bytes
    method: int = 0
    flags: int = 0
    local: dict[str, int] = dataclasses.field(default_factory=dict)
    central: dict[str, int] = dataclasses.field(default_factory=dict)
    extra: bytes = b""
    after: bytes = b""
    # Whether to refer to the data of the previous member instead of writing data.
    shares_data: bool = False


def archive(members: Iterable[Member], comment: bytes = b"", prefix: bytes = b"", end: bytes | None = None) -> bytes:
    data, index, offset = bytearray(prefix), bytearray(), 0
    count = 0
    for member in members:
        count += 1
        packed = member.data
        if member.method == 8:
            deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
            packed = deflate.compress(packed) + deflate.flush()
        fields = {"crc": zlib.crc32(member.data), "packed": len(packed), "size": len(member.data)}
        local = fields | member.local
        if not member.shares_data:
            offset = len(data)
            data += struct.pack(
                "<4s5H3L2H", b"PK\3\4", 20, member.flags, member.method, 0, 33,
                local["crc"], local["packed"], local["size"], len(member.name), 0,
            )  # fmt: skip
            data += member.name + packed + member.after
        central = fields | {"offset": offset, "attributes": 0} | member.central
        index += struct.pack(
            "<4s4B4H3L5H2L", b"PK\1\2", 20, 3, 20, 0, member.flags, member.method, 0, 33,
            central["crc"], central["packed"], central["size"], len(member.name), len(member.extra), 0, 0, 0,
            central["attributes"], central["offset"],
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


def zip_tricks(good: bytes) -> dict[str, bytes]:
    """Return archives with wrong records. Some hide a pickle that is a memory bomb."""
    archives: dict[str, bytes] = {}
    bomb = b"\x80\x02" + call("builtins", "bytearray", number(BOMB)) + b"."
    zeros = bytes(BOMB)

    def new_copy() -> tuple[list[Member], Member, list[Member]]:
        members = members_of(good)
        instructions = next(member for member in members if member.name.endswith(b"/data.pkl"))
        return members, instructions, [member for member in members if member is not instructions]

    members, instructions, others = new_copy()
    root = instructions.name.split(b"/")[0] + b"/"
    archives["deflated bomb as extra member"] = archive([*members, Member(root + b"data/999", zeros, 8)])
    archives["deflated instructions"] = archive([Member(instructions.name, instructions.data, 8), *others])
    archives["deflated instructions that are a bomb"] = archive([Member(instructions.name, zeros, 8), *others])
    largest = max(others, key=lambda member: len(member.data))
    archives["deflated values"] = archive(
        [Member(member.name, member.data, 8 if member is largest else 0) for member in members]
    )
    for method, name in ((9, "deflate64"), (12, "bzip2"), (14, "lzma"), (93, "zstd"), (99, "unknown")):
        archives[f"{name} method"] = archive([*members, Member(root + b"data/999", b"abc", method)])
    archives["duplicate instructions"] = archive([instructions, *others, Member(instructions.name, bomb)])
    archives["duplicate instructions, bomb first"] = archive([Member(instructions.name, bomb), *others, instructions])
    archives["duplicate values"] = archive([*members, Member(largest.name, bytes(len(largest.data)))])
    archives["instructions in capitals"] = archive([Member(root + b"DATA.PKL", bomb), *members])
    archives["instructions in capitals alone"] = archive(
        [Member(root + b"DATA.PKL", bomb), *others, Member(root + b"x/data.pkl", instructions.data)]
    )
    archives["root in capitals"] = archive([Member(root.upper() + b"data.pkl", bomb), *others, instructions])
    archives["two roots"] = archive([Member(b"a/data.pkl", bomb), *members])
    archives["two roots, one of them deep"] = archive([*members, Member(b"a/b/data.pkl", bomb)])
    archives["name with a zero byte"] = archive([Member(instructions.name + b"\0x", bomb), *members])
    archives["name hidden behind a zero byte"] = archive(
        [Member(root + b"data.pkl", bomb), *others, Member(root + b"x/data.pkl\0y", instructions.data)]
    )
    extra = b"\1" + struct.pack("<L", zlib.crc32(instructions.name)) + root + b"data/77"
    archives["name in an extra field"] = archive(
        [
            Member(instructions.name, bomb, extra=struct.pack("<HH", 0x7075, len(extra)) + extra),
            *others,
            Member(root + b"x/data.pkl", instructions.data),
        ]
    )
    archives["backslash in a name"] = archive([Member(root[:-1] + b"\\data.pkl", bomb), *members])
    for name in (b"../../canary", b"/tmp/canary", b"..\\..\\canary", b"C:\\canary", root + b"../../../canary"):
        archives[f"traversal {len(name)}"] = archive([*members, Member(name, b"x")])
    archives["symlink"] = archive(
        [*members, Member(root + b"data/998", b"/etc/passwd", central={"attributes": 0xA1FF << 16})]
    )
    archives["folder"] = archive([*members, Member(root + b"data/", b"", central={"attributes": 0x10})])
    overlapping = [*members, Member(root + b"data/900", bytes(1000))]
    overlapping += [Member(root + b"data/%d" % (901 + i), bytes(1000), shares_data=True) for i in range(500)]
    archives["overlapping members"] = archive(overlapping)
    archives["overlapping members of one name"] = archive(
        [*members, Member(largest.name, bytes(1000)), *[Member(largest.name, bytes(1000), shares_data=True)] * 9]
    )
    for name, field, value in (
        ("size too large", "size", 2**31),
        ("size too small", "size", 1),
        ("packed size too large", "packed", 2**31),
        ("packed size too small", "packed", 1),
        ("checksum zero", "crc", 0),
        ("offset at the end", "offset", len(good) + 10**6),
        ("offset of another", "offset", 0),
        ("offset after the end", "offset", 2**32 - 2),
    ):
        for member in members:
            member.central = {field: value} if member is largest else {}
        archives[f"{name} in the index"] = archive(members)
        for member in members:
            member.central, member.local = {}, {field: value} if member is largest and field != "offset" else {}
        if field != "offset":
            archives[f"{name} before the data"] = archive(members)
    members, instructions, others = new_copy()
    largest = max(others, key=lambda member: len(member.data))
    for name, values in (
        ("zip64: offsets of 2**64 - 1", (len(largest.data), len(largest.data), 2**64 - 1)),
        ("zip64: offsets of 2**63 - 1", (len(largest.data), len(largest.data), 2**63 - 1)),
        ("zip64: sizes of 2**64 - 1", (2**64 - 1, 2**64 - 1, 0)),
        ("zip64: a size of 4 GB", (2**32, len(largest.data), 0)),
        ("zip64: fields missing", ()),
    ):
        largest.central = {"size": 2**32 - 1, "packed": 2**32 - 1, "offset": 2**32 - 1}
        largest.extra = struct.pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values)
        archives[name] = archive(members)
    members, instructions, others = new_copy()
    for member in members:
        member.flags, member.local = 8, {"crc": 0, "packed": 0, "size": 0}
        member.after = struct.pack("<4s3L", b"PK\7\x08", zlib.crc32(member.data), len(member.data), len(member.data))
    archives["data descriptors"] = archive(members)
    for member in members:
        member.after = struct.pack("<4s3L", b"PK\7\x08", 1, 2**31, 2**31)
    archives["data descriptors of wrong size"] = archive(members)
    members, instructions, others = new_copy()
    for member in members:
        member.flags = 1
    archives["encrypted"] = archive(members)
    members, instructions, others = new_copy()
    plain = archive(new_copy()[0])
    archives["huge comment"] = archive(new_copy()[0], comment=b"PK\5\6" * 16_000)
    ends = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, 0, 0, 0)
    archives["an end within the comment"] = archive(new_copy()[0], comment=ends)
    bombed = archive([Member(root + b"data.pkl", bomb), *new_copy()[2]])
    archives["another archive in the comment"] = archive(new_copy()[0], comment=bombed[:60_000])
    archives["another archive in front"] = archive(new_copy()[0], prefix=bombed)
    archives["two archives"] = bombed + plain
    archives["two archives, zip64"] = _two_archives(new_copy()[0], [Member(root + b"data.pkl", bomb), *new_copy()[2]])
    archives["data in front"] = archive(new_copy()[0], prefix=b"#!/bin/sh\ntouch canary\n")
    archives["a program in front"] = archive(new_copy()[0], prefix=b"\x7fELF" + bytes(5000))
    legacy = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    archives["old format in front: bomb"] = archive(new_copy()[0], prefix=legacy + bomb)
    archives["old format in front: bomb first"] = archive(new_copy()[0], prefix=bomb)
    archives["old format in front: other weights"] = archive(
        new_copy()[0],
        prefix=saved({"0.weight": torch.zeros(24, 8)}, _use_new_zipfile_serialization=False),
    )
    archives["data after the end"] = plain + b"x" * 1000
    archives["very many members"] = archive(
        [*members_of(good), *[Member(root + b"e%d" % i, b"") for i in range(50_000)]]
    )
    archives["a wrong count"] = plain[:-22] + struct.pack("<4s4H", b"PK\5\6", 0, 0, 9999, 9999) + plain[-10:]
    archives["a wrong index"] = plain[:-10] + struct.pack("<2LH", 2**32 - 2, 0, 0)
    archives["an empty archive"] = ends
    archives["no instructions"] = archive(others)
    archives["empty instructions"] = archive([Member(instructions.name, b""), *others])
    archives["values cut off"] = archive(
        [Member(m.name, m.data[:-1] if m.name == largest.name else m.data) for m in members]
    )
    archives["TorchScript"] = archive(
        [
            *new_copy()[0],
            Member(root + b"constants.pkl", b"\x80\x02)."),
            Member(root + b"code/__torch__.py", b"import os"),
        ]
    )
    archives["a program of torch.export"] = archive(
        [Member(b"p/archive_format", b"pt2"), Member(b"p/models/model.json", b"{}"), Member(b"p/data.pkl", bomb)]
    )
    archives["byteorder unknown"] = changed(good, "byteorder", lambda _: b"middle")
    archives["version of the future"] = changed(good, "version", lambda _: b"999999\n")
    archives["version that is no number"] = changed(good, "version", lambda _: b"x" * 100)
    return archives


def _two_archives(shown: list[Member], hidden: list[Member]) -> bytes:
    """Return a file with two indices. Readers disagree about which of them the zip64 locator refers to."""

    def end64(count: int, size: int, offset: int) -> bytes:
        return struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)

    first, second = archive(hidden, end=b""), archive(shown, end=b"")
    hidden_index, start = first.index(b"PK\1\2"), second.index(b"PK\1\2")
    hidden_end = len(first)
    body = first + end64(len(hidden), len(first) - hidden_index, hidden_index)
    shift, index, at = len(body), bytearray(second[start:]), 0
    # The offsets in the second index count from the start of the file.
    while at < len(index):
        struct.pack_into("<L", index, at + 42, struct.unpack_from("<L", index, at + 42)[0] + shift)
        at += 46 + sum(struct.unpack_from("<3H", index, at + 28))
    body += second[:start] + bytes(index) + end64(len(shown), len(index), shift + start)
    body += struct.pack("<4sLQL", b"PK\6\7", 0, hidden_end, 1)
    return body + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0)

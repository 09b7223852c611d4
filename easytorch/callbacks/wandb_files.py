"""Reader of the files ``run-<id>.wandb`` of Weights & Biases.

A file starts with a header of 7 bytes. Blocks of 32 KiB follow, as in the log format of LevelDB: each record has a checksum of
4 bytes, its length in 2 and its type in 1. A record that does not fit into a block is split into fragments.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAGIC = b":W&B"
FILE_HEADER = 7
BLOCK = 32 * 1024
RECORD_HEADER = struct.Struct("<IHB")
FULL, LAST = 1, 4


def read_history(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a run: the values by name, as ``run.log`` got them.

    The end of a file whose process was killed may be missing.

    Args:
        path: The file.

    Raises:
        ValueError: If it is no such file.
    """
    for record in _read_messages(path):
        if record.WhichOneof("record_type") == "history":
            row: dict[str, Any] = {}
            for item in record.history.item:
                name, *inner = item.nested_key or [item.key]
                # The entries of a dict, such as that of an image, are stored one by one.
                place, key = (row.setdefault(name, {}), ".".join(inner)) if inner else (row, name)
                place[key] = json.loads(item.value_json)
            yield row


def has_ended(path: Path) -> bool:
    """Return whether the file has the record of the end of its process."""
    return any(record.WhichOneof("record_type") == "exit" for record in _read_messages(path))


def _read_messages(path: Path) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2

    for content in _read_records(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        yield record


def _read_records(path: Path) -> Iterator[bytes]:
    data = path.read_bytes()
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise ValueError(
            f"{str(path)!r} is no file of Weights & Biases. Pass a file run-....wandb in 'wandb/offline-run-...'."
        )
    position, fragments = FILE_HEADER, b""
    while position + RECORD_HEADER.size <= len(data):
        rest = BLOCK - position % BLOCK
        if rest < RECORD_HEADER.size:
            position += rest
            continue
        _, length, kind = RECORD_HEADER.unpack_from(data, position)
        position += RECORD_HEADER.size
        if kind == 0 and length == 0:  # the end of a block is filled with zeros
            position += BLOCK - position % BLOCK
            continue
        if position + length > len(data):
            return
        fragments += data[position : position + length]
        position += length
        if kind in (FULL, LAST):
            yield fragments
            fragments = b""

"""Unexpected contents, safetensors headers and other file formats."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
from typing import Any

import torch

from tests.security.malicious_archives import saved
from tests.security.malicious_pickles import BOMB, call, text


def contents(good: dict[str, Any]) -> dict[str, Any]:
    """Return contents of tensors and plain values that ``Model.save`` never writes."""

    def replace(**changes: Any) -> dict[str, Any]:
        return {**good, **changes}

    def remove(*names: str) -> dict[str, Any]:
        return {name: value for name, value in good.items() if name not in names}

    def optimizer(**state: Any) -> dict[str, Any]:
        groups = good["optimizer"]["param_groups"]
        return replace(optimizer={"state": {**good["optimizer"]["state"], 0: {**good["optimizer"]["state"][0], **state}},
                              "param_groups": groups})  # fmt: skip

    weights = good["module"]
    name = next(iter(weights))
    large = torch.zeros(1, dtype=torch.float64).as_strided((BOMB // 4,), (0,))
    return {
        "no version": remove("version"),
        "no weights": remove("module"),
        "no optimizer": remove("optimizer"),
        "no state": remove("state"),
        "no history": remove("history"),
        "no recipe": remove("compiled"),
        "no feed": remove("train_data"),
        "no callbacks": remove("callbacks"),
        "no environment": remove("environment"),
        "nothing but the format": {"format": "easytorch"},
        "version as text": replace(version="1"),
        "version that is no number": replace(version=float("nan")),
        "version as list": replace(version=[1]),
        "version of the future": replace(version=10**6),
        "format as list": replace(format=["easytorch"]),
        "weights as list": replace(module=[1, 2]),
        "weights as number": replace(module=3),
        "weights of texts": replace(module=dict.fromkeys(weights, "x")),
        "weights by number": replace(module=dict(enumerate(weights.values()))),
        "weights None": replace(module=None),
        "a weight that is None": replace(module={**weights, name: None}),
        "a weight of complex numbers": replace(module={**weights, name: weights[name].to(torch.complex64)}),
        "very many other names": replace(module={f"layer.{i}.weight": 0 for i in range(45_000)}),
        "a very long name": replace(module={**weights, "w" * 5_000_000: 0}),
        "names of dots": replace(module={"." * 100_000: 0}),
        "optimizer as list": replace(optimizer=[1]),
        "optimizer without groups": replace(optimizer={"state": {}}),
        "optimizer with groups of text": replace(optimizer={"state": {}, "param_groups": "abc"}),
        "optimizer with no group": replace(optimizer={"state": {}, "param_groups": []}),
        "optimizer with groups of numbers": replace(optimizer={"state": {}, "param_groups": [1]}),
        "optimizer state as text": replace(optimizer={**good["optimizer"], "state": "abc"}),
        "optimizer state of other shapes": optimizer(exp_avg=torch.zeros(3, 3)),
        "optimizer state of texts": optimizer(exp_avg="x"),
        "optimizer state that is a bomb": optimizer(exp_avg=large),
        "weights that are a bomb": replace(module={**weights, name: large}),
        "state as list": replace(state=[1]),
        "state with methods": replace(state={"advance": None, "begin_fit": 1}),
        "state with dunders": replace(state={"__class__": 3, "__dict__": {}}),
        "state of texts": replace(state=dict.fromkeys(good["state"], "x")),
        "negative state": replace(state=dict.fromkeys(good["state"], -5)),
        "history as number": replace(history=5),
        "history of texts": replace(history="abc"),
        "endless history": replace(history={"rows": "LAUGHS"}),
        "recipe as list": replace(compiled=[1]),
        "recipe with other names": replace(compiled={"optimizer": "adam", "loss": "cross_entropy", "nonsense": 1}),
        "recipe that is unknown": replace(compiled={"optimizer": "os.system", "loss": "cross_entropy"}),
        "recipe of a path": replace(compiled={"optimizer": "../../x", "loss": "__import__", "metrics": ["eval"]}),
        "recipe of numbers": replace(compiled={"optimizer": 3, "loss": 4}),
        "recipe of a module": replace(compiled={"loss": {"torch object": "os.system", "options": {}}}),
        "recipe of a layer": replace(
            compiled={"loss": {"torch object": "nn.Linear", "options": {"in_features": 10**9}}}
        ),
        "recipe of a loss with text": replace(
            compiled={"loss": {"torch object": "nn.CrossEntropyLoss", "options": {"weight": "os.system"}}}
        ),
        "recipe of a function": replace(
            compiled={"loss": {"torch object": "nn.functional.mse_loss", "options": {"reduction": "__import__"}}}
        ),
        "recipe of an optimizer": replace(
            compiled={
                "optimizer": {"torch object": "optim.SGD", "options": {"lr": "x"}, "groups": [[name]]},
                "loss": "mse",
            }
        ),
        "recipe of other parameters": replace(
            compiled={
                "optimizer": {"torch object": "optim.SGD", "options": {}, "groups": [["__class__"]]},
                "loss": "mse",
            }
        ),
        "recipe of objects": replace(compiled_objects={"loss": "x" * 1000, "optimizer": "\x1b[2J"}),
        "recipe of objects as number": replace(compiled_objects=5),
        "schedules as number": replace(schedules=5),
        "schedules of texts": replace(schedules=["a"]),
        "strategy as list": replace(strategy=[1]),
        "callbacks as number": replace(callbacks=5),
        "callbacks of numbers": replace(callbacks=[1, 2]),
        "feed as number": replace(train_data=5),
        "feed empty": replace(train_data={}),
        "feed with other random states": replace(
            train_data={**good["train_data"], "random": {"python": [3, [1, 2], None]}}
        ),
        "feed with random states of text": replace(train_data={**good["train_data"], "random": "abc"}),
        "feed with generators": replace(train_data={**good["train_data"], "generators": 5}),
        "metrics as number": replace(metrics=5),
        "metrics of texts": replace(metrics="abc"),
        "environment as number": replace(environment=5),
    }


def headers(good: bytes) -> dict[str, bytes]:
    """Return safetensors files with wrong headers."""
    length = int.from_bytes(good[:8], "little")
    header, data = json.loads(good[8 : 8 + length]), good[8 + length :]
    name = next(name for name in header if name != "__metadata__")

    def packed(header: Any, data: bytes = data, length: int | None = None) -> bytes:
        written = header if isinstance(header, bytes) else json.dumps(header).encode()
        return (len(written) if length is None else length).to_bytes(8, "little") + written + data

    def entry(**changes: Any) -> bytes:
        return packed({**header, name: {**header[name], **changes}})

    start, end = header[name]["data_offsets"]
    first = json.dumps(header).encode()
    plain = {key: value for key, value in header.items() if key != "__metadata__"}
    return {
        "length huge": packed(header, length=2**63),
        "length of 2**64 - 1": packed(header, length=2**64 - 1),
        "length of 4 GB": packed(header, length=2**32),
        "length of 100 MB": packed(header, length=100_000_000),
        "length zero": packed(header, length=0),
        "length one too many": packed(header, length=len(first) + 1),
        "length alone": b"\xff" * 8,
        "seven bytes": b"\1" * 7,
        "offsets negative": entry(data_offsets=[-4, end]),
        "offsets backwards": entry(data_offsets=[end, start]),
        "offsets overlapping": packed({**plain, "more": header[name]}),
        "offsets after the end": entry(data_offsets=[start, len(data) + 4096]),
        "offsets of 2**64 - 1": entry(data_offsets=[2**63, 2**64 - 1]),
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
        "shape huge of nothing": entry(shape=[0, 2**62], data_offsets=[start, start]),
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
    """Return files of other formats, some of them with a pickle that creates the file ``canary``."""
    shell = b"\x80\x02" + call("os", "system", text(f"touch {canary}")) + b"."
    legacy = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
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
        "an HTML page": b"<!DOCTYPE html><html><body>Not found</body></html>",
        "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12345\n",
        "empty": b"",
        "one byte": b"P",
        "the first bytes": good[:4],
        "half": good[: len(good) // 2],
        "almost all": good[:-1],
    }

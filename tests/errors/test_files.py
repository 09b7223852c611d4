"""Errors about files name the file, what is wrong, and the fix."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import re

import pytest
import torch
from torch import nn

from easytorch import FileError
from tests.errors.common import X, Y, compiled, equal, everything, fit, refused
from tests.loops import mlp, same_weights

# Files


@pytest.fixture
def saved(tmp_path):
    model = compiled()
    fit(model, X, Y)
    return model, model.save(tmp_path / "good.pt")


def test_a_missing_folder_is_named(tmp_path):
    path = tmp_path / "nowhere" / "model.pt"
    refused(lambda: compiled().save(path), str(path), "does not exist", "Create the folder", kind=FileNotFoundError)


def test_folder_instead_of_a_file_is_reported(tmp_path):
    refused(lambda: compiled().save(tmp_path), str(tmp_path), "is a folder", "another path", kind=IsADirectoryError)


def test_a_path_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("text")
    path = tmp_path / "file" / "model.pt"
    refused(lambda: compiled().save(path), re.escape(str(path)), "Cannot write", kind=OSError)


@pytest.mark.parametrize(
    ("number", "reason", "fix"),
    [
        (errno.ENOSPC, "No space left", "bytes are free"),
        (errno.EROFS, "Read-only", "may write to"),
        (errno.EACCES, "Permission denied", "may write to"),
        (errno.EIO, "put error|Input/output", "another path"),
    ],
    ids=["full", "read-only", "forbidden", "broken"],
)
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_system_error_is_reported_with_reason_and_fix(tmp_path, monkeypatch, function, number, reason, fix):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, function, refuse)
    path = tmp_path / "model.pt"
    refused(lambda: compiled().save(path), f"Cannot write '{path}'", reason, fix, kind=OSError)


@pytest.mark.parametrize("verb", ["load", "load_weights"])
def test_missing_file_is_reported_with_the_most_similar_name(saved, verb):
    model, path = saved
    refused(
        lambda: getattr(model, verb)(path.with_name("goood.pt")),
        "goood.pt",
        "Did you mean 'good.pt'",
        kind=FileNotFoundError,
    )


def not_models(folder):
    """Return files that hold no model, by kind."""
    files = {}
    for name, data in {
        "text": b"PyTorch model\n" * 99,
        "PK text": b"PK, wrote the postman\n" * 99,
        "zeros": bytes(9999),
    }.items():
        files[name] = folder / f"{name}.pt"
        files[name].write_bytes(data)
    files["pickle"] = folder / "pickle.pt"
    files["pickle"].write_bytes(pickle.dumps({"weight": [1.0]}))
    for name, content in {
        "a list": [1, 2],
        "a tensor": torch.ones(3),
        "a number": 3,
        "a model without a module": {"format": "easytorch", "version": 1},
        "a model without a version": {"format": "easytorch", "module": {}},
    }.items():
        files[name] = folder / f"{name}.pt"
        torch.save(content, files[name])
    return files


@pytest.mark.parametrize("verb", ["load", "load_weights"])
@pytest.mark.parametrize(
    "kind",
    [
        "text",
        "PK text",
        "zeros",
        "pickle",
        "a list",
        "a tensor",
        "a number",
        "a model without a module",
        "a model without a version",
    ],
)
def test_a_file_that_is_not_a_model_is_named(tmp_path, kind, verb):
    path = not_models(tmp_path)[kind]
    model = compiled()
    before = everything(model)
    refused(lambda: getattr(model, verb)(path), re.escape(repr(str(path))), kind=FileError)
    assert equal(everything(model), before)


def test_empty_file_is_reported_as_empty(tmp_path):
    path = tmp_path / "model.pt"
    path.touch()
    refused(lambda: compiled().load(path), "model.pt", "empty", "older copy", kind=FileError)


def test_folder_without_checkpoints_is_reported(tmp_path):
    refused(lambda: compiled().load(tmp_path), str(tmp_path), "no checkpoint", "step-", kind=FileNotFoundError)


def test_load_of_a_weights_file_suggests_load_weights(tmp_path):
    path = compiled().save_weights(tmp_path / "weights.pt")
    refused(lambda: compiled().load(path), "weights.pt", r"load_weights\(\)", kind=FileError)


def test_newer_format_version_suggests_an_upgrade(saved):
    model, path = saved
    torch.save(torch.load(path, weights_only=True) | {"version": 99}, path)
    refused(lambda: model.load(path), "99", "pip install --upgrade", kind=FileError)


@pytest.mark.parametrize("verb", ["load", "load_weights"])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99, 0.999, 1])
def test_truncated_file_is_refused_and_changes_nothing(saved, share, verb):
    model, path = saved
    data, before = path.read_bytes(), everything(model)
    path.write_bytes(data[: min(int(len(data) * share), len(data) - 1)])
    refused(lambda: getattr(model, verb)(path), "good.pt", "cut off|damaged", "older copy|again", kind=FileError)
    assert equal(everything(model), before)


@pytest.mark.parametrize("change", [0x01, 0x80, 0xFF])
def test_a_flipped_byte_is_never_silently_wrong(saved, change):
    model, path = saved
    data, before = path.read_bytes(), everything(model)
    refusals = 0
    for position in range(change % 7, len(data), 17):
        damaged = bytearray(data)
        damaged[position] ^= change
        path.write_bytes(damaged)
        try:
            model.load(path)
        except FileError as error:
            assert "good.pt" in str(error)  # noqa: PT017  # not every damage must raise
            refusals += 1
        assert equal(everything(model), before), position
    assert refusals > 50


@pytest.mark.slow
def test_flipped_byte_in_zip_directory_is_never_silently_wrong(saved):
    model, path = saved
    data, before, positions = path.read_bytes(), everything(model), []
    for position in range(data.index(b"PK\x01\x02"), len(data)):
        damaged = bytearray(data)
        # In the attributes this turns a file into a folder, which torch does not read.
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with contextlib.suppress(FileError):
            model.load(path)
        if not equal(everything(model), before):
            positions.append(position)
            path.write_bytes(data)
            model.load(path)
    assert positions == []


def test_a_flipped_byte_in_safetensors_is_never_silently_wrong(tmp_path):
    model = compiled()
    path = model.save_weights(tmp_path / "good.safetensors")
    data, before = path.read_bytes(), everything(model)
    for position in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            model.load_weights(path)
        except FileError as error:
            assert "good.safetensors" in str(error)  # noqa: PT017  # not every damage must raise
        assert equal(everything(model), before), position


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_truncated_safetensors_file_is_refused(tmp_path, share):
    path = compiled().save_weights(tmp_path / "good.safetensors")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    refused(lambda: compiled().load_weights(path), "good.safetensors", "older copy", kind=FileError)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("verb", ["load", "load_weights"])
def test_file_with_python_objects_is_refused_and_runs_no_code(tmp_path, verb):
    torch.save({"weight": torch.ones(1), "bomb": Bomb(tmp_path / "exploded")}, tmp_path / "model.pt")
    refused(
        lambda: getattr(compiled(), verb)(tmp_path / "model.pt"),
        "model.pt",
        "could run code when",
        "weights_only",
        kind=FileError,
    )
    assert not (tmp_path / "exploded").exists()


def test_pickled_module_is_refused_with_the_way_to_read_it(tmp_path):
    torch.save(mlp(), tmp_path / "net.pt")
    refused(lambda: compiled().load_weights(tmp_path / "net.pt"), "net.pt", "load_state_dict", kind=FileError)


class Named(nn.Module):
    def __init__(self, first="first", size=16):
        super().__init__()
        setattr(self, first, nn.Linear(8, size))
        self.last = nn.Linear(size, 3)

    def forward(self, x):
        return self.last(next(self.children())(x))


@pytest.mark.parametrize("verb", ["load", "load_weights"])
def test_other_module_is_reported_in_a_table_with_similar_names(tmp_path, verb):
    path = compiled(Named("frist")).save(tmp_path / "model.pt")
    model = compiled(Named("first"))
    before = everything(model)
    message = refused(lambda: getattr(model, verb)(path), "model.pt", "another module", kind=FileError)
    lines = message.splitlines()
    assert any(
        re.match(r"\s+missing in the file +first\.weight +\[16, 8\] +Did you mean 'frist\.weight'\?", s) for s in lines
    )
    assert any(
        re.match(r"\s+not in the module +frist\.weight +\[16, 8\] +Did you mean 'first\.weight'\?", s) for s in lines
    )
    assert not any("last" in line for line in lines)
    assert equal(everything(model), before)


def test_other_shapes_are_reported_from_file_and_module(tmp_path):
    path = compiled(Named(size=4)).save(tmp_path / "model.pt")
    model = compiled(Named(size=16))
    message = refused(lambda: model.load(path), "another module", kind=FileError)
    row = next(line for line in message.splitlines() if "first.weight" in line)
    assert re.search(r"another shape +first\.weight +\[4, 8\] in the file +\[16, 8\] in the module", row)


def test_table_of_hundreds_of_names_is_shortened(tmp_path):
    path = compiled(mlp()).save(tmp_path / "model.pt")
    deep = nn.Sequential(*(nn.Linear(3, 3) for _ in range(200)))
    message = refused(lambda: compiled(deep).load(path), "another module", "more", kind=FileError)
    assert len(message.splitlines()) < 30


PREFIXES = {
    "module.": lambda name: f"module.{name}",
    "_orig_mod.": lambda name: f"_orig_mod.{name}",
    "module._orig_mod.": lambda name: f"module._orig_mod.{name}",
    "_orig_mod.module.": lambda name: f"_orig_mod.module.{name}",
    "an inner _orig_mod.": lambda name: name.replace(".", "._orig_mod.", 1),
    "module. and an inner _orig_mod.": lambda name: "module." + name.replace(".", "._orig_mod.", 1),
}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_wrapper_prefixes_are_ignored(tmp_path, prefix):
    source, target = mlp(), mlp()
    torch.save({PREFIXES[prefix](name): value for name, value in source.state_dict().items()}, tmp_path / "weights.pt")
    compiled(target).load_weights(tmp_path / "weights.pt")
    assert same_weights(source, target)

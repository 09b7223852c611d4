"""Files that are whole or absent, checked when they are read, and free of code."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from easytorch import verify
from easytorch._utils.atomic_file import _replace
from easytorch._utils.pytree import leaves
from easytorch._utils.registry import nearest
from easytorch._utils.warnings import warn
from easytorch.errors import FileError, ResumeError

FORMAT = "easytorch"
VERSION = 1
NO_MEMORY = MemoryError, torch.OutOfMemoryError  # the file may be as whole as ever


def write(path: str | os.PathLike[str], content: Mapping[str, Any]) -> Path:
    """Write ``content``, of tensors and plain values, so that at no moment is there half a file at ``path``.

    It is written to a temporary file in the same folder, synced, and renamed; then the folder is synced. Whatever goes
    wrong, the file that was there before stays as it is.

    Raises:
        OSError: If it cannot be written; the message names the file, the reason and what to do.
    """
    whole = verify.to_plain(dict(content), "the content")
    return _replace(Path(path), lambda file: torch.save(whole, file), _size(whole))


def check_ending(path: str | os.PathLike[str]) -> None:
    """Raise an error if a whole model is to be written to a file with the name of mere weights."""
    if Path(path).suffix == ".safetensors":
        other = str(Path(path).with_suffix(".pt"))
        raise ValueError(
            f"{os.fspath(path)!r} is a name for weights alone, and this would be a whole model. Name it {other!r}, or keep the "
            "weights: save_weights(path), ModelCheckpoint(path, save_weights_only=True)."
        )


def write_safetensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> Path:
    """Write ``tensors`` in the safetensors format, as safely as ``write``, with a checksum, which the format has not."""
    save = _safetensors().save
    # The format knows neither shared nor strided memory; names that share a tensor are written once each.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    data = save(plain, metadata={verify.CHECKSUM: verify.digest(save(plain))})
    return _replace(Path(path), lambda file: file.write(data), len(data))


def read(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Any:
    """Return what is in ``path``: written by ``write`` or by ``torch.save``, or a ``.safetensors`` file.

    The archive's checksums are verified first, which torch does not do, and nothing in the file is run.

    Raises:
        FileNotFoundError: If there is no such file.
        FileError: If it is not such a file, is damaged, or holds something else than tensors and plain values.
    """
    path = Path(path)
    if not path.exists():
        beside = [other.name for other in path.parent.glob("*") if other.is_file()] if path.parent.exists() else []
        raise FileNotFoundError(f"There is no file {str(path)!r}.{nearest(path.name, beside)}")
    if path.is_dir():
        raise FileError(f"{str(path)!r} is a folder. Name the file in it.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path, device)
    verify.archive(path)
    try:
        return verify.content(torch.load(path, map_location=device, weights_only=True), path)
    except pickle.UnpicklingError as error:
        raise FileError(
            f"{str(path)!r} holds Python objects, which could run code when they are loaded, so it is not read. "
            "If you trust it, read it with torch.load(..., weights_only=False) and pass the state dict to net.load_state_dict()."
        ) from error
    except (FileError, *NO_MEMORY):
        raise
    except Exception as error:  # torch.load raises ten kinds of exceptions on damaged files
        raise FileError(
            f"{str(path)!r} cannot be read: {type(error).__name__}: {error}. Take an older copy."
        ) from error


def step_path(folder: str | os.PathLike[str], step: int) -> Path:
    """Return the name of the checkpoint of ``step`` in ``folder``; the step, not the time, tells which is the newest."""
    return Path(folder) / f"step-{step:010}.pt"


def checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the checkpoints in ``folder``, the newest first."""
    return sorted(Path(folder).glob("step-" + "[0-9]" * 10 + ".pt"), reverse=True)


def newest(folder: str | os.PathLike[str], device: torch.device | str = "cpu") -> tuple[Path, dict[str, Any]]:
    """Return path and content of the newest whole checkpoint in ``folder``, with a warning if a newer one is broken.

    Raises:
        FileNotFoundError: If there is none.
        FileError: If none is whole.
    """
    found = checkpoints(folder)
    if not found:
        raise FileNotFoundError(
            f"There is no checkpoint in {str(folder)!r}: no file named like {step_path(folder, 123).name!r}."
        )
    broken: list[FileError] = []
    for path in found:
        try:
            content = read_model(path, device)
        except FileError as error:
            broken.append(error)
            continue
        if broken:
            warn(f"{broken[0]} Passed over, for the older {path.name!r}.")
        return path, content
    raise FileError(
        f"None of the {len(found)} checkpoints in {str(folder)!r} is whole. The newest: {broken[0]}"
    ) from broken[0]


def set_aside(paths: Iterable[Path]) -> None:
    """Rename checkpoints that a run does not go on from, so that they are neither deleted nor taken for its newest.

    Their parts stay where they are: the files know them by name.
    """
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            names = itertools.chain([f"{path.name}.aside"], (f"{path.name}.aside-{i}" for i in itertools.count(2)))
            path.rename(next(one for name in names if not (one := path.with_name(name)).exists()))


def keep_newest(folder: str | os.PathLike[str], count: int) -> None:
    """Delete all but the ``count`` newest checkpoints in ``folder``."""
    for path in checkpoints(folder)[count:]:
        parts = parts_of(path)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        if parts is not None:
            shutil.rmtree(parts, ignore_errors=True)


def sweep(folder: str | os.PathLike[str]) -> None:
    """Delete what a killed process left half written in ``folder``, and parts that belong to no checkpoint."""
    for path in Path(folder).glob(".step-*.pt.*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
    for parts in Path(folder).glob("step-" + "[0-9]" * 10 + ".parts-*"):
        owners = Path(folder).glob(f"{parts.name.split('.')[0]}.pt*")
        if not any(_may_own(path, parts.name) for path in owners):
            shutil.rmtree(parts, ignore_errors=True)


def unused_parts(path: Path) -> Path:
    """Return the name of a folder, which is not there yet, for the parts of the checkpoint ``path``."""
    stem = path.name.split(".")[0]
    return next(one for i in itertools.count() if not (one := path.with_name(f"{stem}.parts-{i}")).exists())


def parts_of(path: Path) -> Path | None:
    """Return the folder with the parts of the checkpoint ``path``, None if it has none that could be found."""
    if not path.exists() or not any(path.parent.glob(f"{path.name.split('.')[0]}.parts-*")):
        return None  # without having read a large file
    try:
        content = read(path)
        return (
            path.parent / verify.parts_name(content["parts"], path)
            if is_model(content) and "parts" in content
            else None
        )
    except FileError:
        return None


def _may_own(path: Path, parts: str) -> bool:
    """Whether the checkpoint ``path`` has the folder ``parts``, as far as can be told."""
    try:
        content = read(path)
    except FileError:  # nobody knows what it was
        return True
    return is_model(content) and content.get("parts", {}).get("folder") == parts


def is_model(content: Any) -> bool:
    """Whether ``content`` was written by ``Model.save``."""
    return isinstance(content, Mapping) and content.get("format") == FORMAT


def read_model(
    path: str | os.PathLike[str], device: torch.device | str = "cpu", *, verified: bool = False
) -> dict[str, Any]:
    """Return what ``Model.save`` wrote to ``path``; see ``read``. Of a checkpoint in parts this is all but the parts.

    Args:
        path: The file.
        device: Where its tensors go.
        verified: Whether another process has looked at all parts already.

    Raises:
        FileError: Also if it was written by something else, or by a later version of this library; if a part is missing or is
            not the one that was written.
    """
    content = read(path, device)
    if not is_model(content):
        tensors = isinstance(content, Mapping) and any(isinstance(value, Tensor) for value in content.values())
        what = "It holds weights alone: use load_weights()." if tensors else "Name a file that Model.save() wrote."
        raise FileError(f"{str(path)!r} is not a saved model. {what}")
    if not isinstance(content.get("version"), int) or not isinstance(content.get("module"), Mapping):
        raise FileError(
            f"{str(path)!r} is not a whole model: its version or its module is missing. Take an older copy."
        )
    if content["version"] > VERSION:
        raise FileError(
            f"{str(path)!r} has version {content['version']} of the format; this easytorch reads up to {VERSION}: "
            "pip install --upgrade easytorch-fit"
        )
    if content.get("parts") is not None and not verified:
        verify.parts(content["parts"], Path(path))
    return dict(content)


def check_optimizer(
    content: dict[str, Any],
    optimizer: torch.optim.Optimizer | None,
    path: str | os.PathLike[str],
    refuse: type[Exception] | None = None,
) -> None:
    """Leave the optimizer's state out of ``content``, with a warning, where ``optimizer`` is of another kind.

    Args:
        content: What was read from ``path``.
        optimizer: The one that is to have the state.
        path: For the message.
        refuse: Raise this instead of warning.
    """
    state = content.get("optimizer")
    if not state or optimizer is None:
        return
    if _fits_optimizer(content, optimizer):
        return
    content["optimizer"] = None
    told = f"The optimizer's state in {str(path)!r} is not that of {type(optimizer).__name__} with these parameters"
    if refuse is not None:
        raise refuse(f"{told}. Compile as it was compiled, or begin anew in another folder.")
    warn(f"{told}, so it starts anew; all else is restored.")


def _fits_optimizer(content: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> bool:
    """Whether every state in ``content`` belongs to a parameter of its shape: a fused optimizer writes without asking."""
    try:
        groups, states = content["optimizer"]["param_groups"], content["optimizer"]["state"]
        if content.get("optimizer_kind", type(optimizer).__name__) != type(optimizer).__name__:
            return False
        if [len(group["params"]) for group in groups] != [len(group["params"]) for group in optimizer.param_groups]:
            return False
        twin = type(optimizer).__new__(type(optimizer))
        filled = [dict(group) for group in groups]
        # An older torch knew fewer settings: this adds them, as load_state_dict will.
        twin.__setstate__(
            {**vars(optimizer), "state": {}, "param_groups": filled, "defaults": dict(optimizer.defaults)}
        )
        if any(not set(group) >= set(optimizer.defaults) for group in filled):
            return False
        parameters = dict(
            pair
            for group, own in zip(groups, optimizer.param_groups, strict=True)
            for pair in zip(group["params"], own["params"], strict=True)
        )
        known = [kind for kind in type(optimizer).__mro__ if kind.__module__.startswith("torch.optim.")]
        if known == [torch.optim.Optimizer] or isinstance(optimizer, torch.optim.LBFGS):
            return set(states) <= set(parameters)  # what these keep need not be as large as the parameter
        loose = isinstance(optimizer, torch.optim.Adafactor)  # keeps the means of rows and columns alone
        return all(
            value.ndim == 0 or value.shape == parameters[number].shape or loose
            if isinstance(value, Tensor)
            else value is None or isinstance(value, (int, float))
            for number, values in states.items()
            for value in values.values()
        )
    except (TypeError, KeyError, AttributeError, ValueError):
        return False


@contextlib.contextmanager
def refused(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn whatever content of another kind raises inside into an error that names the file."""
    try:
        yield
    except (FileError, ResumeError, OSError, *NO_MEMORY):
        raise
    except (TypeError, KeyError, AttributeError, ValueError, IndexError, RuntimeError, AssertionError) as error:
        raise FileError(
            f"{str(path)!r} is not a whole model: {type(error).__name__}: {error}. Take an older copy."
        ) from error


def plain_or_none(value: Any) -> Any:
    """Return ``value``, NumPy's numbers as Python's, if it is numbers, text, None, lists and dicts of these; else None."""

    def made(part: Any) -> Any:
        part = part.item() if isinstance(part, np.generic) else part
        if isinstance(part, Mapping) and all(isinstance(key, (str, int)) for key in part):
            return {key: made(inner) for key, inner in part.items()}
        if isinstance(part, (list, tuple)):
            return [*map(made, part)] if isinstance(part, list) else (*map(made, part),)
        if part is None or type(part) in (bool, int, float, str):
            return part
        raise TypeError

    try:
        return made(value)
    except TypeError:
        return None


def bare(module: nn.Module) -> dict[str, Any]:
    """Return the module's state dict under its own names, without those of wrappers (DataParallel, torch.compile) in it."""
    wraps = set()
    for name, part in module.named_modules():
        for child in ("module", "_orig_mod"):
            if isinstance(part, WRAPPERS[child]) and hasattr(part, child):
                wraps.add(f"{name}.{child}".lstrip("."))

    def own(name: str) -> str:
        parts = name.split(".")
        return ".".join(part for i, part in enumerate(parts) if ".".join(parts[: i + 1]) not in wraps)

    return {own(name): value for name, value in module.state_dict().items()}


def fit_names(found: Any, module: nn.Module, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the tensors ``found`` in a file under the names of ``module``, wrappers stripped on either side.

    Raises:
        FileError: If a name is missing or too much, or a shape differs, with a table of what does not match.
    """
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        what = type(found).__name__
        raise FileError(f"{str(path)!r} holds no weights: it is {what}, not a state dict of names and tensors.")
    wanted, tensors = module.state_dict(), dict(found)
    if set(wanted) != set(tensors):
        short, names = {_short(name): value for name, value in tensors.items()}, {_short(name): name for name in wanted}
        if len(short) == len(tensors) and len(names) == len(wanted):
            tensors = {names.get(name, name): value for name, value in short.items()}
    rows = []
    missing = [name for name in wanted if name not in tensors]
    unexpected = [name for name in tensors if name not in wanted]
    for what, some, others, shapes in (
        ("missing in the file", missing, unexpected[:ROWS], wanted),
        ("not in the module", unexpected, missing[:ROWS], tensors),
    ):
        hints = {name: nearest(name[:200], others).strip() for name in some[:ROWS]}
        rows += [(what, name[:200], _shape(shapes[name]), hints.get(name, "")) for name in some]
    for name in wanted:
        if name in tensors and isinstance(wanted[name], Tensor) and not _same_kind(tensors[name], wanted[name]):
            there, here = _shape(tensors[name]), _shape(wanted[name])
            rows.append(("another shape", name, f"{there} in the file", f"{here} in the module"))
    if rows:
        raise FileError(
            f"{str(path)!r} belongs to another module: {len(rows)} of {len(set(wanted) | set(tensors))} names do not match.\n"
            + _table(rows)
            + "\nBuild the module with the layers and sizes that were saved. Nothing was changed."
        )
    return tensors


WRAPPERS: dict[str, tuple[type, ...]] = {
    "module": (nn.DataParallel, nn.parallel.DistributedDataParallel),
    "_orig_mod": (nn.Module,),  # nothing but torch.compile's wrapper has such a child
}


def _short(name: str) -> str:
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while parts[0] == "module" and len(parts) > 1:
        del parts[0]
    return ".".join(parts)


def _same_kind(found: Any, wanted: Tensor) -> bool:
    return isinstance(found, Tensor) and found.shape == wanted.shape and found.layout == wanted.layout


ROWS = 20


def _table(rows: list[tuple[str, str, str, str]], most: int = ROWS) -> str:
    widths = [max(len(row[i]) for row in rows[:most]) for i in range(3)] + [0]
    lines = ["  ".join(part.ljust(width) for part, width in zip(row, widths, strict=True)) for row in rows[:most]]
    more = [f"... and {len(rows) - most} more"] if len(rows) > most else []
    return "\n".join("  " + line.rstrip() for line in [*lines, *more])


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def weights_in(content: Any) -> Any:
    """Return the state dict in what a file holds: the whole, or what people call it in a larger dict."""
    if not isinstance(content, Mapping):
        return content
    keys = ("module",) if is_model(content) else ("state_dict", "model_state_dict", "model")
    return next((content[key] for key in keys if isinstance(content.get(key), Mapping)), content)


def _size(content: Any) -> int:
    """Return about how many bytes ``content`` takes in a file."""
    tensors = {leaf.untyped_storage().data_ptr(): leaf for leaf in leaves(content) if isinstance(leaf, Tensor)}
    return sum(one.untyped_storage().nbytes() + 512 for one in tensors.values()) + 4096


def _read_safetensors(path: Path, device: torch.device | str) -> dict[str, Tensor]:
    load = _safetensors().load
    data = path.read_bytes()
    try:
        tensors: dict[str, Tensor] = load(data)
        checksum = verify.checksum(data)
    except Exception as error:  # the library's own exception type is not public
        raise FileError(f"{str(path)!r} is not a whole safetensors file: {error}. Take an older copy.") from error
    if checksum is not None and checksum != verify.digest(data):
        raise FileError(f"{str(path)!r} is damaged: its checksum does not match. Take an older copy.")
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("Files that end in .safetensors need safetensors: pip install safetensors") from error
    return safetensors.torch

"""Damaged files, power cuts and full disks, for the security tests and as a program.

python -m tests.security.damage --variants 10000
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import json
import os
import random
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from easytorch import FileError, Model
from easytorch.callbacks import EMA, BackupAndRestore
from easytorch.checkpoint import files, rotation
from tests.loops import blobs

PAGE = 4096


# The files to damage


def net() -> nn.Module:
    """Return a module with buffers whose checkpoint has several pages."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(8, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 3))


def model() -> Model:
    return Model(net(), device="cpu").compile("adam", "cross_entropy", metrics=["accuracy"])


def good_files(folder: Path) -> dict[str, Path]:
    """Train two epochs, and return a file of each kind that the library writes."""
    folder.mkdir(parents=True, exist_ok=True)
    trained = model()
    backup = BackupAndRestore(folder / "run", save_freq=1, keep=2, delete_checkpoint=False)
    trained.fit(*blobs(), epochs=2, batch_size=25, callbacks=[EMA(0.9), backup], verbose=0)
    paths = {
        "model": trained.save(folder / "model.pt"),
        "weights": trained.save_weights(folder / "weights.pt"),
        "checkpoint": rotation.list_checkpoints(folder / "run")[0],
    }
    with contextlib.suppress(ImportError):
        paths["safetensors"] = trained.save_weights(folder / "weights.safetensors")
    return paths


# The six mutators


def bit_flip(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def zero_64(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) - 64)
    return data[:at] + bytes(64) + data[at + 64 :]


def zero_page(data: bytes, rng: random.Random) -> bytes:
    at = PAGE * rng.randrange(-(-len(data) // PAGE))
    page = data[at : at + PAGE]
    return data[:at] + bytes(len(page)) + data[at + PAGE :]


def zero_tail(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes(len(data) - at)


def byte_swap(data: bytes, rng: random.Random) -> bytes:
    first, second = rng.randrange(len(data)), rng.randrange(len(data))
    changed = bytearray(data)
    changed[first], changed[second] = changed[second], changed[first]
    return bytes(changed)


MUTATORS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bit flip": bit_flip,
    "truncate": truncate,
    "64 zero bytes": zero_64,
    "zero page": zero_page,
    "zero tail": zero_tail,
    "byte swap": byte_swap,
}


def damaged(data: bytes, kind: str, rng: random.Random) -> bytes:
    """Return ``data`` changed by the mutator ``kind``, never equal to ``data``."""
    while (changed := MUTATORS[kind](data, rng)) == data:
        pass
    return changed


def identical(first: Any, second: Any) -> bool:
    """Return whether two contents of files are equal bit for bit, types included."""
    if type(first) is not type(second):
        return False
    if isinstance(first, Tensor):
        if first.dtype != second.dtype or first.shape != second.shape:
            return False
        return first.contiguous().view(-1).view(torch.uint8).equal(second.contiguous().view(-1).view(torch.uint8))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(identical(first[name], second[name]) for name in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(identical, first, second))
    return repr(first) == repr(second)


@dataclasses.dataclass
class Tally:
    """Counts of refused, harmless and wrongly read files."""

    refused: int = 0
    harmless: int = 0
    silent: list[str] = dataclasses.field(default_factory=list)
    other: list[str] = dataclasses.field(default_factory=list)
    kinds: Counter[str] = dataclasses.field(default_factory=Counter)

    def __str__(self) -> str:
        return f"{self.refused} refused, {self.harmless} harmless, {len(self.silent)} silent, {len(self.other)} other"


def _check_model(way: str, path: Path, expected: dict[str, Tensor]) -> str | None:
    """Return a problem if a model that reads ``path`` has neither the weights of the file nor its previous weights."""
    loaded = model()
    before = {name: tensor.clone() for name, tensor in loaded.module.state_dict().items()}
    try:
        loaded.load_weights(path) if way == "load_weights" else loaded.load(path)
    except FileError:
        expected = before
    return None if identical(dict(loaded.module.state_dict()), expected) else f"{way} left other weights"


def run_variants(count: int, folder: Path, seed: int = 0) -> Tally:
    """Damage good files in ``count`` ways and read each: it must raise FileError or have the original content.

    Every twentieth file is read by ``Model.load`` and ``Model.load_weights`` as well.
    """
    good = good_files(folder)
    content = {name: files.read(path) for name, path in good.items()}
    originals = {name: path.read_bytes() for name, path in good.items()}
    weights = {name: dict(value.get("module", value)) for name, value in content.items()}
    assert all(identical(content[name], files.read(path)) for name, path in good.items())
    tally, names, kinds = Tally(), list(good), list(MUTATORS)
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        name, kind = names[number % len(names)], kinds[number // len(names) % len(kinds)]
        path = folder / f"damaged{good[name].suffix}"
        path.write_bytes(damaged(originals[name], kind, rng))
        what = f"variant {number} of seed {seed}: {name}, {kind}"
        try:
            same = identical(files.read(path), content[name])
        except FileError as error:
            tally.refused += 1
            if str(path) not in str(error):
                tally.other.append(f"{what}: the message does not name the file: {error}")
        except Exception as error:
            tally.other.append(f"{what}: {type(error).__name__}: {error}")
        else:
            tally.harmless += same
            if not same:
                tally.silent.append(what)
        tally.kinds[kind] += 1
        if number % 20 == 0:
            for way in ["load_weights"] + ["load"] * (name in ("model", "checkpoint")):
                try:
                    wrong = _check_model(way, path, weights[name])
                except Exception as error:
                    tally.other.append(f"{what}, {way}: {type(error).__name__}: {error}")
                else:
                    tally.silent += [f"{what}: {wrong}"] if wrong else []
    return tally


# Power cuts


@dataclasses.dataclass
class Moment:
    """The folder just before an operation: the content that programs see, and the content on the disk."""

    # Synced names, and the file number of each.
    entries: dict[str, int]
    # Changes of names that are not synced: operation, name, new name, file number.
    pending: list[tuple[str, str, str, int]]
    # The content that a program reads.
    seen: dict[int, bytes]
    # The content that is synced.
    synced: dict[int, bytes]
    # The number of writes that have returned.
    acknowledged: int


class PowerCut:
    """Records how a program changes the files of a folder, and simulates power cuts at any moment.

    The rules are those of POSIX. Data written since the last fsync of a file may exist up to any byte; the rest is missing or
    zero. Renames, creations and deletions since the last fsync of the folder may exist up to any operation.

    Args:
        folder: The folder of the files, empty at first.
        ignored_sync: ``"file"`` or ``"folder"``: the syncs to ignore, as if the program did not call them.
    """

    def __init__(self, folder: Path, ignored_sync: str = "") -> None:
        self.folder, self.ignored_sync = folder, ignored_sync
        self.moments: list[Moment] = []
        self.entries: dict[str, int] = {}
        self.pending: list[tuple[str, str, str, int]] = []
        # The names that programs see.
        self.known: dict[str, int] = {}
        self.seen: dict[int, bytes] = {}
        self.synced: dict[int, bytes] = {}
        # The number of each file by inode. The system reuses inodes.
        self.ids: dict[int, int] = {}
        self.acknowledged = 0

    def look(self) -> None:
        """Record the changes in the folder since the last call."""
        now: dict[str, int] = {}
        with os.scandir(self.folder) as entries:
            inodes = {entry.name: entry.inode() for entry in entries}
        self.ids = {inode: file for inode, file in self.ids.items() if inode in inodes.values()}
        for name, inode in sorted(inodes.items()):
            now[name] = self.ids.setdefault(inode, self._number(inode))
            self.seen[now[name]] = (self.folder / name).read_bytes()
            self.synced.setdefault(now[name], b"")
        gone = {file: name for name, file in self.known.items() if name not in now}
        for name, file in now.items():
            if self.known.get(name) != file:
                source = gone.pop(file, "")
                self.pending.append(("rename", source, name, file) if source else ("make", name, "", file))
        self.pending += [("delete", name, "", file) for file, name in gone.items()]
        self.known = now
        moment = Moment(dict(self.entries), list(self.pending), dict(self.seen), dict(self.synced), self.acknowledged)
        if not self.moments or self.moments[-1] != moment:
            self.moments.append(moment)

    def _number(self, inode: int) -> int:
        return len(self.seen) if inode not in self.ids else self.ids[inode]

    def acknowledge(self) -> None:
        """Record that a write has returned."""
        self.look()
        self.acknowledged += 1
        self.look()

    def _synced(self, descriptor: int) -> None:
        inode = os.fstat(descriptor).st_ino
        kind = "folder" if inode == self.folder.stat().st_ino else "file"
        if kind == self.ignored_sync:
            return
        if kind == "folder":
            self.entries, self.pending = _applied(self.entries, self.pending), []
        elif inode in self.ids:
            self.synced[self.ids[inode]] = self.seen[self.ids[inode]]

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Record all changes inside the ``with`` block."""
        names = [name for name in ("fsync", "fdatasync", "replace", "rename", "unlink", "remove") if hasattr(os, name)]
        real = {name: getattr(os, name) for name in names}

        def watched(name: str) -> Callable[..., None]:
            def do(*args: Any, **options: Any) -> None:
                self.look()
                real[name](*args, **options)
                if "sync" in name:
                    self._synced(args[0] if isinstance(args[0], int) else args[0].fileno())
                self.look()

            return do

        for name in names:
            setattr(os, name, watched(name))
        try:
            yield
        finally:
            for name, function in real.items():
                setattr(os, name, function)

    def states(self, count: int, seed: int = 0) -> Iterator[tuple[Moment, dict[str, bytes]]]:
        """Yield ``count`` folders that power cuts could leave, from each moment in turn."""
        rng = random.Random(seed)
        for number in range(count):
            moment = self.moments[number % len(self.moments)]
            happened = rng.randint(0, len(moment.pending))
            names = _applied(moment.entries, moment.pending[:happened])
            yield moment, {name: self._content(moment, file, rng) for name, file in names.items()}

    def _content(self, moment: Moment, file: int, rng: random.Random) -> bytes:
        seen, synced = moment.seen[file], moment.synced[file]
        if seen == synced:
            return seen
        minimum = len(synced) if seen.startswith(synced) else 0
        arrived = rng.choice((minimum, rng.randint(minimum, len(seen)), len(seen)))
        return seen[:arrived] + (bytes(len(seen) - arrived) if rng.random() < 0.3 else b"")


def _applied(entries: dict[str, int], operations: list[tuple[str, str, str, int]]) -> dict[str, int]:
    entries = dict(entries)
    for operation, name, target, file in operations:
        if operation == "make":
            entries[name] = file
            continue
        entries.pop(name, None)
        if operation == "rename":
            entries[target] = file
    return entries


# A full disk


def numbers_in(text: str) -> list[int]:
    return [int(found.replace(",", "")) for found in re.findall(r"\d[\d,]*", text)]


def full_disk(folder: Path, budgets: int) -> None:
    """Save and train on a disk with a limited number of free bytes, and print the results as JSON lines.

    A limit of the file size simulates the disk: the system refuses the write that would exceed it.
    """
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    @contextlib.contextmanager
    def budget(size: int) -> Iterator[None]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    def report(**facts: Any) -> None:
        lines.append(json.dumps(facts))

    # Printed at the end, because the limit also applies to a redirected stdout.
    lines: list[str] = []
    saved = model()
    ways: dict[str, tuple[Path, Callable[[Path], Any]]] = {
        "save": (folder / "model.pt", saved.save),
        "save_weights": (folder / "weights.pt", saved.save_weights),
    }
    with contextlib.suppress(ImportError):
        import safetensors  # noqa: F401  # save_weights needs it

        ways["safetensors"] = (folder / "weights.safetensors", saved.save_weights)
    for name, (path, write) in ways.items():
        write(path)
        before, size = path.read_bytes(), path.stat().st_size
        for number in range(budgets // len(ways) + 1):
            allowed = number * size // (budgets // len(ways) + 1)
            message = kind = ""
            with budget(allowed):
                try:
                    write(path)
                except BaseException as error:
                    kind, message = type(error).__name__, str(error)
                    code = getattr(error, "errno", None)
            report(
                way=name,
                budget=allowed,
                size=size,
                kind=kind,
                code=code if kind else None,
                message=message,
                path=str(path),
                intact=path.read_bytes() == before,
                left=[entry for entry in os.listdir(folder) if entry.endswith(".tmp")],
            )
    _train_on_full_disk(folder / "run", budget, report)
    print("\n".join(lines))


def _train_on_full_disk(folder: Path, budget: Callable[[int], Any], report: Callable[..., None]) -> None:
    from easytorch.callbacks import LambdaCallback

    for ends_full in (False, True):
        run = folder / str(ends_full)
        trained, stack, epochs = model(), contextlib.ExitStack(), 6

        def fill(epoch: int, logs: Any, stack: Any = stack, ends_full: bool = ends_full, run: Path = run) -> None:
            if epoch == 2:
                report(checkpoints=[path.name for path in rotation.list_checkpoints(run)], run=str(run))
                stack.enter_context(budget(3000))
            elif epoch == 5 and not ends_full:
                stack.close()

        error = ""
        with warnings.catch_warnings(record=True) as caught, stack:
            warnings.simplefilter("always")
            try:
                trained.fit(
                    *blobs(),
                    epochs=epochs,
                    batch_size=25,
                    verbose=0,
                    callbacks=[
                        LambdaCallback(on_epoch_begin=fill),
                        BackupAndRestore(run, delete_checkpoint=False, keep=2),
                    ],
                )
            except OSError as failure:
                error = str(failure)
        report(
            training=True,
            ends_full=ends_full,
            step=trained.state.step,
            expected=2 * epochs,
            error=error,
            warnings=[str(warning.message) for warning in caught],
            checkpoints=[path.name for path in rotation.list_checkpoints(run)],
            newest=rotation.read_newest(run)[1]["state"]["step"],
            left=[entry for entry in os.listdir(run) if entry.endswith(".tmp")],
        )


SYSTEM_ERRORS = [errno.EROFS, errno.EACCES, errno.EMFILE, errno.EDQUOT, errno.EIO, errno.ENOSPC]


def main() -> None:
    parser = argparse.ArgumentParser(description="Damage good files, and check that none is read silently.")
    parser.add_argument("--variants", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full-disk", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.full_disk:
        full_disk(options.full_disk, budgets=100)
        return
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tally = run_variants(options.variants, Path(folder), options.seed)
    print(f"{options.variants} damaged files in {time.monotonic() - start:.0f} s: {tally}")
    for line in [*tally.silent, *tally.other][:40]:
        print(" ", line)
    sys.exit(bool(tally.silent or tally.other))


if __name__ == "__main__":
    main()

"""Malicious files, and a process that loads each of them and records every side effect.

python -m tests.security.malice FOLDER         writes the files to FOLDER, loads them, and prints one JSON line for each load
python -m tests.security.malice FOLDER NAME    loads those with NAME in their name with an unsafe reader: they do run code
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import sys
import time
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from easytorch import Model
from easytorch.checkpoint import files
from tests.loops import blobs
from tests.security.damage import good_files, identical, model, net
from tests.security.malicious_archives import changed, saved, zip_tricks
from tests.security.malicious_contents import contents, headers, other_formats
from tests.security.malicious_pickles import MB, bombs, call, calls, dictionary, insert, laughs, number, text

ACTS = {
    "exec", "compile", "import", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty",
    "subprocess.Popen", "pty.spawn", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod",
    "os.link", "os.symlink", "shutil.rmtree", "shutil.move", "marshal.loads", "webbrowser.open",
    "urllib.Request", "tempfile.mkstemp", "tempfile.mkdtemp", "ctypes.dlopen", "ctypes.dlsym", "builtins.input",
    "sys.addaudithook", "signal.pthread_kill", "os.kill", "os.putenv",
}  # fmt: skip
FAMILIES = ("socket.", "ftplib.", "smtplib.", "http.", "winreg.", "mmap.__new__", "sqlite3.")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def write_all(folder: Path) -> None:
    """Write all malicious files to ``folder``, and the good files that they are made from to ``folder/good``."""
    canary = str(folder / "canary")
    sources = good_files(folder / "good")
    good, weights = sources["checkpoint"].read_bytes(), sources["weights"].read_bytes()
    content = torch.load(sources["checkpoint"], weights_only=True)
    bad: dict[str, bytes] = {}
    instructions = calls(canary) | bombs()
    for name, payload in instructions.items():
        bad[f"pickle: {name}.pt"] = changed(good, "data.pkl", insert(payload))
    weight_bombs = ("GLOBAL os.system", "bytearray", "encode slowly", "a tensor larger than its storage")
    for name in weight_bombs:
        bad[f"pickle of weights: {name}.pt"] = changed(weights, "data.pkl", insert(instructions[name]))
    hiding = dictionary(get=number(1), items=number(2), keys=number(3), values=number(4)) + b"b."
    for name, value in {"a model": content, "weights": content["module"]}.items():
        data = saved(OrderedDict(value))
        bad[f"pickle: BUILD hides the methods of {name}.pt"] = changed(
            data, "data.pkl", lambda data: data[:-1] + hiding
        )
    bad["pickle: laughs.pt"] = changed(good, "data.pkl", insert(laughs()))
    bad["pickle: cut off.pt"] = changed(good, "data.pkl", lambda data: data[:-5])
    bad["pickle: garbage.pt"] = changed(good, "data.pkl", lambda data: b"\xff" * len(data))
    first = content["module"][next(iter(content["module"]))]
    # The opcodes for the shape of the first weight.
    shape = b"K\x18K\x08\x86"
    assert first.shape == (24, 8)
    sizes = (b"K\x18\x85", b"M\x18\x18\x85")
    bad["pickle: a weight larger than its storage.pt"] = changed(
        good, "data.pkl", lambda data: data.replace(shape, b"M\x00\x40M\x00\x10\x86")
    )
    bad["pickle: a bias larger than its storage.pt"] = changed(good, "data.pkl", lambda data: data.replace(*sizes))
    bad["pickle: a weight that starts late.pt"] = _with_late_start(good, shape)
    for name, value in contents(content).items():
        data = saved(value)
        if name == "endless history":
            data = changed(data, "data.pkl", lambda data: data.replace(text("LAUGHS"), laughs()))
        bad[f"content: {name}.pt"] = data
    for name, data in zip_tricks(good).items():
        bad[f"zip: {name}.pt"] = data
    if "safetensors" in sources:
        for name, data in headers(sources["safetensors"].read_bytes()).items():
            bad[f"header: {name}.safetensors"] = data
        bad["other: pickle.safetensors"] = b"\x80\x02" + call("os", "system", text(f"touch {canary}")) + b"."
        bad["other: archive.safetensors"] = good
        bad["other: safetensors.pt"] = sources["safetensors"].read_bytes()
    plain = torch.load(sources["weights"], weights_only=True)
    for name, data in other_formats(canary, plain, content, good).items():
        bad[f"other: {name}.pt"] = data
    for name, data in bad.items():
        (folder / name).write_bytes(data)


def _with_late_start(good: bytes, shape: bytes) -> bytes:
    """Return ``good`` with a first weight that starts in the middle of its storage, and so ends after it."""

    def change(data: bytes) -> bytes:
        at = data.index(shape)
        assert data[at - 2 : at] == b"K\0"
        return data[: at - 1] + b"\x60" + data[at:]

    return changed(good, "data.pkl", change)


class Watch:
    """Records the audit events of side effects while ``on`` is True."""

    def __init__(self) -> None:
        self.on, self.acts = False, []
        sys.addaudithook(self.record)

    def record(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        is_write = event == "open" and (
            (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"))
            or (isinstance(arguments[2], int) and arguments[2] & WRITING)
        )
        if event in ACTS or is_write or event.startswith(FAMILIES):
            self.acts.append(f"{event} {str(arguments)[:200]}")


def _peak() -> int:
    """Return the peak memory since ``_reset_peak``, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM")


def _reset_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _find_problem(trained: Model) -> str:
    """Return why a loaded model cannot train, or an empty string."""
    if trained.optimizer is None:
        return ""
    for parameter, state in trained.optimizer.state.items():
        for name, value in state.items():
            if not isinstance(value, torch.Tensor) or value.shape not in (parameter.shape, torch.Size([])):
                return f"{name} of a parameter of {list(parameter.shape)} is {value if isinstance(value, str) else value.shape}"
    try:
        trained.fit(*blobs(), batch_size=25, verbose=0)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    return ""


def load_all(folder: Path, only: str = "") -> None:
    """Load every file in every way, and print the results."""
    from easytorch.callbacks import EMA, Callback

    class Stop(Callback):
        """Ends the recording and the fit: the file is loaded."""

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
        # A run that resumed from an older checkpoint has archived the newer ones.
        for archived in (folder / "good" / "run").glob("*.archived"):
            archived.rename(archived.with_suffix(""))
        loaded = Model(net(), device="cpu") if way == "load, not compiled" else model()
        if loaded.optimizer is not None:
            # The files have another learning rate.
            loaded.optimizer.param_groups[0]["lr"] = 0.125
        before = {"weights": {k: v.clone() for k, v in loaded.module.state_dict().items()}, "step": loaded.state.step}
        _reset_peak()
        start_memory, start, message, kind, location, problem = _peak(), time.process_time(), "", "", "", ""
        watch.acts, watch.on = [], armed
        try:
            if way == "resume":
                loaded.fit(x, y, epochs=3, batch_size=25, callbacks=[EMA(0.9), Stop()], resume=path, verbose=0)
            else:
                getattr(loaded, way.split(",")[0])(path)
        except InterruptedError:
            pass
        except BaseException as error:
            watch.on = False
            kind, message, where = type(error).__name__, str(error), error.__traceback__
            while where.tb_next is not None:
                where = where.tb_next
            location = f"{Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno}"
        watch.on = False
        seconds, memory = time.process_time() - start, _peak() - start_memory
        now = {name: tensor.clone() for name, tensor in loaded.module.state_dict().items()}
        untouched = (
            identical(now, before["weights"]) and loaded.state.step == before["step"] and not loaded.history.epoch
        )
        if loaded.optimizer is not None:
            untouched = untouched and loaded.optimizer.param_groups[0]["lr"] == 0.125 and not loaded.optimizer.state
        if not kind and way.startswith("load") and way != "load_weights":
            problem = _find_problem(loaded)
        return {
            "file": path.name,
            "way": way,
            "kind": kind,
            "message": message[:300],
            "location": location,
            "named": str(path) in message,
            "seconds": round(seconds, 3),
            "memory": memory,
            "size": path.stat().st_size,
            "acts": watch.acts[:5],
            "untouched": untouched,
            "problem": problem if not kind else "",
            "right": any(identical(now, dict(weights)) for weights in (final, good["module"])),
        }

    ways = ("load", "load, not compiled", "load_weights", "resume")
    b"\xe4".decode("cp437")
    codecs.encode("a", "latin1")
    # Import now whatever is imported lazily.
    for path in cases:
        if path.parent != folder:
            for way in ways:
                attempt(path, way, armed=False)
    other = folder / "good" / "other.bad"
    other.write_bytes(saved({"0.weihgt": torch.zeros(24, 8)}))
    attempt(other, "load_weights", armed=False)
    for path in cases:
        for way in ways if path.name.startswith("content: ") or path.parent != folder else (ways[0], *ways[2:]):
            if only in path.name:
                print(json.dumps({"starts": path.name, "way": way}), flush=True)
                print(json.dumps(attempt(path, way)), flush=True)


def load_large(folder: Path) -> None:
    """Load large files, and print how much memory that needs."""
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
    # A limit in case a bomb is not refused.
    resource.setrlimit(resource.RLIMIT_AS, (used + 4096 * MB, resource.RLIM_INFINITY))
    warnings.simplefilter("ignore")
    # The control: an unsafe reader.
    if sys.argv[2:]:
        files.read = lambda path, device="cpu": torch.load(path, weights_only=False)
    else:
        load_large(folder)
    load_all(folder, *sys.argv[2:3])


if __name__ == "__main__":
    main()

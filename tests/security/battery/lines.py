"""Exceptions at random lines of easytorch, torch and the standard library, and in hooks, while a model is used."""

from __future__ import annotations

import dataclasses
import itertools
import random
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from easytorch import Model
from easytorch.callbacks import EMA, BackupAndRestore, Callback, EarlyStopping, LambdaCallback
from easytorch.callbacks.base import HOOKS
from easytorch.checkpoint import files, rotation
from tests.common_resume import ROWS, X, Y
from tests.security.battery.kills import is_damaged
from tests.security.battery.starts import End, differing, fingerprint

ERRORS = (RuntimeError, KeyboardInterrupt, MemoryError, OSError)
HOOK_ERRORS = (RuntimeError, ValueError, OSError, MemoryError, StopIteration, KeyboardInterrupt, SystemExit)
SCOPES = ("easytorch", "torch", "standard library")
EASYTORCH = str(Path(sys.modules["easytorch"].__file__ or "").parent)
TORCH = str(Path(torch.__file__).parent)
STDLIB = str(Path(tempfile.__file__).parent)
HANDLERS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


@dataclasses.dataclass
class Trial:
    """One exception: where it was raised, and which promises were broken."""

    name: str
    error: str
    place: str
    broken: list[str]


class RaiseAt:
    """Raises ``error`` at the line number ``count`` that runs in one of ``SCOPES``; counts the lines without an error."""

    def __init__(self, scope: str, error: type[BaseException] | None = None, count: int = 0) -> None:
        self.scope, self.error, self.left, self.lines, self.place = scope, error, count, 0, ""
        self._in_scope: dict[str, bool] = {}

    def __enter__(self) -> RaiseAt:
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, _: Any) -> Any:
        name = frame.f_code.co_filename
        if name not in self._in_scope:
            self._in_scope[name] = scope_of(name) == self.scope
        return self._line if self._in_scope[name] else None

    def _line(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            self.lines += 1
            if self.lines == self.left and self.error is not None:
                self.place = f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}"
                sys.settrace(None)
                raise self.error("a fault at this line")
        return self._line


def scope_of(name: str) -> str | None:
    """Return the scope of a file; None for tests and other packages."""
    if name.startswith(EASYTORCH):
        return "easytorch"
    if name.startswith(TORCH):
        return "torch"
    # The import system caches modules that are incomplete.
    is_stdlib = name.startswith(STDLIB) and "site-packages" not in name and "importlib" not in name
    return "standard library" if is_stdlib else None


def new_model() -> Model:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))
    optimizer = lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)  # noqa: E731
    return Model(net, device="cpu").compile(optimizer, "cross_entropy", ["accuracy"], scheduler="cosine")


def fit(model: Model, folder: Path | None, *callbacks: Callback) -> End:
    """Train for two epochs of four updates."""
    random.seed(0)
    torch.manual_seed(0)
    own: list[Callback] = [EMA(0.9), EarlyStopping(patience=9)]
    backup = [] if folder is None else [BackupAndRestore(folder, 2, delete_checkpoint=False)]
    data = DataLoader(ROWS, 13, shuffle=True)
    options: dict[str, Any] = {"validation_data": (X[:20], Y[:20]), "verbose": 0}
    model.fit(data, 2, callbacks=[*own, *backup, *callbacks], **options)
    return End(model, own)


def broken_promises(model: Model, folder: Path) -> list[str]:
    """Return what an exception has left wrong in the model, in this process or in the folder."""
    checks = {
        "the fit is still running": model.train_data is not None,
        "callbacks are still active": bool(model.callbacks.callbacks),
        "gradients are disabled": not torch.is_grad_enabled(),
        "a module is in eval mode": not all(module.training for module in model.module.modules()),
        "a signal handler remains": any(signal.getsignal(number) != handler for number, handler in HANDLERS.items()),
        "a checkpoint is damaged": any(map(is_damaged, rotation.list_checkpoints(folder))),
        "a temporary file remains": bool([*folder.glob(".*.tmp"), *folder.glob("*.tmp")]),
    }
    return [name for name, is_broken in checks.items() if is_broken]


def clean_up() -> None:
    """Restore what a later trial needs."""
    torch.set_grad_enabled(True)
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)


def attack_fit(runs: int, seed: int) -> list[Trial]:
    """Raise an exception at a random line of ``fit``; then fit again, and resume."""
    with tempfile.TemporaryDirectory() as path:
        expected = fingerprint(fit(new_model(), Path(path)))
    lengths = {}
    for scope in SCOPES:
        with tempfile.TemporaryDirectory() as path, RaiseAt(scope) as counter:
            fit(new_model(), Path(path))
        lengths[scope] = counter.lines
    rng, trials = random.Random(seed), []
    for _, scope in zip(range(runs), itertools.cycle(SCOPES), strict=False):
        tracer = RaiseAt(scope, rng.choice(ERRORS), rng.randint(1, lengths[scope]))
        with tempfile.TemporaryDirectory() as path:
            trials.append(_try_fit(Path(path), expected, tracer))
    return trials


def _try_fit(folder: Path, expected: dict[str, Any], tracer: RaiseAt) -> Trial:
    model = new_model()
    raised = None
    try:
        with tracer:
            fit(model, folder)
    except BaseException as error:
        raised = error
    sys.settrace(None)
    assert tracer.error is not None
    trial = Trial("fit", tracer.error.__name__, tracer.place, broken_promises(model, folder))
    if raised is not None and not isinstance(raised, (tracer.error, RuntimeError, OSError, ValueError)):
        trial.broken.append(f"fit raised {type(raised).__name__}")
    clean_up()
    trial.broken += _works_and_resumes(model, folder, expected)
    return trial


def _works_and_resumes(model: Model, folder: Path, expected: dict[str, Any]) -> list[str]:
    broken = []
    try:
        fit(model, None)
    except Exception as error:
        broken.append(f"a second fit fails: {type(error).__name__}: {error}")
    try:
        differences = differing(expected, fingerprint(fit(new_model(), folder)))
    except Exception as error:
        differences = [f"{type(error).__name__}: {error}"]
    return broken + [f"the resumed run differs in {name}" for name in differences]


def attack_calls(runs: int, seed: int) -> list[Trial]:
    """Raise an exception at a random line of the other methods; then call the method again."""
    rng, trials = random.Random(seed), []
    with tempfile.TemporaryDirectory() as path:
        other = new_model()
        fit(other, None)
        saved = other.save(Path(path) / "saved.pt")
        for name, call in CALLS.items():
            lengths, expected = {}, None
            for scope in SCOPES:
                model, folder = new_model(), Path(tempfile.mkdtemp(dir=path))
                with RaiseAt(scope) as counter:
                    expected = _comparable(call(model, saved, folder))
                lengths[scope] = counter.lines
            for _, scope in zip(range(runs // len(CALLS)), itertools.cycle(SCOPES), strict=False):
                if lengths[scope]:
                    tracer = RaiseAt(scope, rng.choice(ERRORS), rng.randint(1, lengths[scope]))
                    folder = Path(tempfile.mkdtemp(dir=path))
                    trials.append(_try_call(name, call, saved, folder, expected, tracer))
    return trials


def _comparable(value: Any) -> Any:
    return {name: float(item) for name, item in value.items()} if hasattr(value, "items") else value


CALLS: dict[str, Callable[[Model, Path, Path], Any]] = {
    "evaluate": lambda model, saved, folder: model.evaluate(X, Y, batch_size=13, verbose=0),
    "predict": lambda model, saved, folder: float(model.predict(X, to=folder / "p.npy", verbose=0).sum()),
    "save": lambda model, saved, folder: files.read_model(model.save(folder / "m.pt"))["state"],
    "load": lambda model, saved, folder: float(model.load(saved).module[0].weight.detach().sum()),
    "compile": lambda model, saved, folder: repr(model.compile("adam", "mse", ["mae"], lr=0.1, scheduler="cosine")),
    "train_on_batch": lambda model, saved, folder: model.train_on_batch(X, Y),
}


def _try_call(name: str, call: Callable[..., Any], saved: Path, folder: Path, expected: Any, tracer: RaiseAt) -> Trial:
    model = new_model()
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    metrics, loss = model.metrics, model.loss
    has_failed = False
    try:
        with tracer:
            call(model, saved, folder)
    except BaseException:
        has_failed = True
    sys.settrace(None)
    assert tracer.error is not None
    trial = Trial(name, tracer.error.__name__, tracer.place, broken_promises(model, folder))
    if name != "compile" and model.metrics is not metrics:
        trial.broken.append("other metrics are active")
    if has_failed and name == "compile" and (model.loss is loss) != (model.metrics is metrics):
        trial.broken.append("compile is half done")
    now = model.module.state_dict()
    changed = [key for key, value in before.items() if not torch.equal(value, now[key])]
    if changed and (name in ("evaluate", "predict", "save", "compile") or (has_failed and name == "load")):
        loaded = files.read_model(saved)["module"]
        if name != "load" or any(not torch.equal(loaded[key], now[key]) for key in now):
            trial.broken.append(f"{len(changed)} weights have changed")
    clean_up()
    if not changed:
        torch.manual_seed(0)
        again = new_model() if name == "compile" else model
        try:
            if _comparable(call(again, saved, folder)) != expected and name != "train_on_batch":
                trial.broken.append("a second call differs")
        except Exception as error:
            trial.broken.append(f"a second call fails: {type(error).__name__}: {error}")
    return trial


def attack_hooks(seed: int, runs: int | None = None) -> list[Trial]:
    """Raise each of ``HOOK_ERRORS`` in each hook, before and after the other callbacks; then resume."""
    with tempfile.TemporaryDirectory() as path:
        expected = fingerprint(fit(new_model(), Path(path)))
    hooks = [hook for hook in HOOKS if "predict" not in hook]
    cases = list(itertools.product(hooks, HOOK_ERRORS, (-10, 50)))
    random.Random(seed).shuffle(cases)
    trials = []
    for hook, error, priority in cases[:runs]:
        with tempfile.TemporaryDirectory() as path:
            trials.append(_try_hook(Path(path), expected, hook, error, priority))
    return trials


def _try_hook(folder: Path, expected: dict[str, Any], hook: str, error: type[BaseException], priority: int) -> Trial:
    calls = itertools.count(1)

    def fail(*_: Any) -> None:
        if next(calls) == (1 if hook in ("on_train_begin", "on_train_end", "on_restore") else 2):
            raise error("a fault in a hook")

    callback = LambdaCallback(**{hook: fail})
    callback.priority = priority
    model, raised = new_model(), None
    try:
        fit(model, folder, callback)
    except BaseException as caught:
        raised = caught
    place = f"{hook} {'before' if priority < 0 else 'after'} the others"
    trial = Trial("hook", error.__name__, place, broken_promises(model, folder))
    is_called = next(calls) > 2 or hook in ("on_train_begin", "on_train_end", "on_restore")
    if is_called and not isinstance(raised, (error, RuntimeError)):
        trial.broken.append(f"fit raised {type(raised).__name__}")
    clean_up()
    trial.broken += _works_and_resumes(model, folder, expected)
    return trial

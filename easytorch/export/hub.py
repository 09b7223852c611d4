"""Models on the Hugging Face Hub: weights, names and a model card."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from easytorch._utils.integers import optional_boolean
from easytorch._utils.paths import to_path
from easytorch.data.class_names import read_names
from easytorch.errors import FileError

if TYPE_CHECKING:
    from easytorch.model import Model
    from easytorch.reports.base import Report
    from easytorch.reports.estimate import Estimate

    M = TypeVar("M", bound=Model)

# "user/name": neither part starts with a dot, as those of relative paths do.
REPOSITORY = re.compile(r"[^./~][^/]*/[^./][^/]*")
WEIGHTS, CONFIG, CARD = "model.safetensors", "easytorch.json", "README.md"


def push(
    model: Model, repo_id: str, *, report: Report | None, private: bool | None, revision: str | None, token: Any
) -> str:
    """Upload the files of ``model``, and return the address of the commit; see ``Model.push_to_hub``."""
    private = optional_boolean("private", private)
    hub = _import_hub("push_to_hub")
    with tempfile.TemporaryDirectory(prefix=".hub-") as folder, model.strategy.group.call("push_to_hub"):
        write_folder(model, Path(folder), repo_id, report)
        if not model.strategy.group.is_main:
            return ""
        api = hub.HfApi(token=token, library_name="easytorch")
        api.create_repo(repo_id, private=private, exist_ok=True)
        message = f"Upload a model after {_count_epochs(model)}"
        commit = api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision, commit_message=message)
        return str(commit.commit_url)


def write_folder(model: Model, folder: Path, name: str, report: Report | None) -> None:
    """Write weights, configuration and model card to ``folder``."""
    model.save_weights(folder / WEIGHTS)
    if not model.strategy.group.is_main:
        return
    (folder / CONFIG).write_text(json.dumps(_config(model), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / CARD).write_text(_card(model, name, report), encoding="utf-8")


def load(model_class: type[M], module: nn.Module, source: Any, *, revision: str | None, token: Any, device: Any) -> M:
    """Return a model with the weights of ``source``; see ``Model.from_hub``."""
    folder = _find_folder(source, revision, token)
    config = _read_config(folder)
    model = model_class(module, device=device)
    model.load_weights(folder / WEIGHTS)
    model.class_names, model.columns = config.get("class_names"), config.get("columns")
    if config.get("loss") is not None:
        model.compile(None, config["loss"], metrics=config.get("metrics", ()))
    return model


def _find_folder(source: Any, revision: str | None, token: Any) -> Path:
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f"source expects a folder, or the name of a repository, received a {type(source).__name__}. Pass the module first: "
            "Model.from_hub(net, 'user/name')."
        )
    if os.path.isdir(source):
        return to_path(source)
    if not isinstance(source, str) or not REPOSITORY.fullmatch(source):
        raise FileNotFoundError(
            f"There is no folder {os.fspath(source)!r}. Pass a folder, or the name of a repository: 'user/name'."
        )
    hub = _import_hub("from_hub")
    # Only what is read below: a repository may hold much more.
    return Path(
        hub.snapshot_download(
            source, revision=revision, token=token, allow_patterns=[WEIGHTS, CONFIG], library_name="easytorch"
        )
    )


def _import_hub(method: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(f'{method}() needs huggingface_hub: pip install "easytorch-fit[hub]"') from error
    return huggingface_hub


# The configuration


def _config(model: Model) -> dict[str, Any]:
    """Return what a model needs besides the module and its weights. Only names are part of it, no Python objects."""
    config: dict[str, Any] = {"module": type(model.module).__name__}
    config |= {"epochs": model.state.epoch, "updates": model.state.step}
    if model.class_names is not None:
        config["class_names"] = read_names(model.class_names)
    if model.columns is not None and all(isinstance(column, str) for column in model.columns):
        config["columns"] = list(model.columns)
    arguments = model.compile_args or {}
    if _is_named(arguments.get("loss")):
        config["loss"] = arguments["loss"]
        metrics = arguments.get("metrics")
        config |= {"metrics": metrics} if _is_named(metrics) else {}
    return config


def _is_named(value: Any) -> bool:
    """Return whether ``value`` is a name, or a structure of names."""
    if isinstance(value, Mapping):
        return all(map(_is_named, value.values()))
    return isinstance(value, str) or (isinstance(value, (list, tuple)) and all(map(_is_named, value)))


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise FileError(
            f"{str(folder)!r} has no file {CONFIG!r}, so that push_to_hub() has not written it. For weights of another library "
            "use Model(net).load_weights(path)."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FileError(f"{str(path)!r} is not JSON: {error}. Upload the model again.") from error
    if not isinstance(config, dict):
        raise FileError(f"{str(path)!r} must contain a JSON object. Upload the model again.")
    return config


# The model card


def _card(model: Model, name: str, report: Report | None) -> str:
    """Return the model card: what the model is, how to load it, and its scores."""
    title, module = name.rpartition("/")[2], type(model.module).__name__
    parts = [
        "---\nlibrary_name: easytorch\ntags:\n- easytorch\n- pytorch\n---",
        f"# {title}",
        f"A `{module}` with {sum(p.numel() for p in model.module.parameters()):,} parameters, trained for "
        f"{_count_epochs(model)} with [easytorch](https://github.com/easytorch-fit/easytorch).",
        "## Use",
        f"```python\nimport easytorch\n\nmodel = easytorch.Model.from_hub({module}(), {name!r})\nmodel.predict(x)\n```",
        f"`{module}` is the class of the network, which is not part of this repository.",
    ]
    names = model.class_names
    if names is not None and not isinstance(names, Mapping):
        parts.append(f"Classes: {', '.join(names)}.")
    if report is not None:
        rows = [
            f"| {key} | {estimate.value:.4g} | {_format_interval(estimate)} |"
            for key, estimate in report.summary.items()
        ]
        parts += [
            "## Evaluation",
            f"On {len(report):,} samples, with 95% intervals.",
            "\n".join(["| score | value | interval |", "|---|---|---|", *rows]),
        ]
    elif model.recorded_history.rows:
        last = model.recorded_history.rows[-1]
        rows = [f"| {key} | {value:.4g} |" for key, value in last.items() if isinstance(value, float)]
        parts += ["## Last epoch of training", "\n".join(["| value | |", "|---|---|", *rows])]
    return "\n\n".join(parts) + "\n"


def _count_epochs(model: Model) -> str:
    return f"{model.state.epoch:,} epoch{'s' * (model.state.epoch != 1)}"


def _format_interval(estimate: Estimate) -> str:
    """Return the interval, or nothing for a score without one."""
    return "" if math.isnan(estimate.low) else f"{estimate.low:.4g} to {estimate.high:.4g}"

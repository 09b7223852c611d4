"""Hints for arguments and attributes that other libraries have."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from torch import nn

from easytorch._utils.registry import did_you_mean
from easytorch._utils.warnings import warn

Class = TypeVar("Class", bound=type)
ARGUMENT_HINTS = {  # what other libraries call it, or have it for
    "learning_rate": "lr=0.001",
    "validation_batch_size": "the batch_size of a DataLoader: validation_data=DataLoader(dataset, 64)",
    "return_dict": "dict(...) of what it returns",
    "lr": "compile(..., lr=0.001)",
    "loss": "compile(optimizer, loss)",
    "optimizer": "compile(optimizer, loss)",
    "metrics": "compile(..., metrics=['accuracy'])",
    "precision": "compile(..., precision='bf16')",
    "scheduler": "compile(..., scheduler='cosine')",
    "val_data": "validation_data=",
    "valid_data": "validation_data=",
    "val_loader": "validation_data=",
    "max_epochs": "epochs=",
    "num_epochs": "epochs=",
    "weighted": "weighted_metrics=",
    "run_eagerly": "jit_compile=False, which is the default",
    "mixed_precision": "precision='bf16'",
    "accumulate_grad_batches": "gradient_accumulation_steps=",
    "gradient_clip_val": "clip_grad_norm=",
    "clipnorm": "clip_grad_norm=",
    "global_clipnorm": "clip_grad_norm=",
    "clipvalue": "clip_grad_value=",
    "workers": "DataLoader(dataset, num_workers=2)",
    "num_workers": "DataLoader(dataset, num_workers=2)",
    "device": "Model(module, device=...)",
    "optimiser": "optimizer=",
    "use_multiprocessing": "DataLoader(dataset, num_workers=2)",
    "overwrite": "always so: the file is replaced when the new one is whole",
    "save_format": "one format, and safetensors for weights: save_weights('model.safetensors')",
    "write_graph": "TensorBoard(log_dir), which writes the numbers",
}
OPTION_HINTS = {  # of what a class is made with
    "BackupAndRestore.double_checkpoint": "keep=2, which is the default",
    "BackupAndRestore.path": "backup_dir=",
    "CSVLogger.path": "filename=",
    "DataParallel.devices": "torchrun --nproc-per-node=2 train.py",
    "EMA.momentum": "decay=",
    "EarlyStopping.check_finite": "a callback of its own, TerminateOnNaN()",
    "EarlyStopping.stopping_threshold": "model.stop_training = True, in a callback of your own",
    "FullySharded.devices": "torchrun --nproc-per-node=2 train.py",
    "Model.loss": "Model(module).compile(optimizer, loss)",
    "Model.optimizer": "Model(module).compile(optimizer, loss)",
    "ModelCheckpoint.dirpath": "filepath='runs/{epoch:02d}.pt'",
    "ModelCheckpoint.every_n_epochs": "save_freq=Every(epochs=2)",
    "ModelCheckpoint.every_n_train_steps": "save_freq=100",
    "ModelCheckpoint.path": "filepath=",
    "ModelCheckpoint.save_top_k": "keep_best=",
    "ReduceLROnPlateau.epsilon": "min_delta=",
    "SWA.swa_epoch_start": "start_epoch=",
    "TensorBoard.profile_batch": "torch.profiler, in a callback of your own",
    "TensorBoard.write_graph": "TensorBoard(log_dir), which writes the numbers",
}
WEIGHTS = "model.module.state_dict(), and load_state_dict() of it"
ATTRIBUTE_HINTS = {  # of a model, in Keras or of a module
    "layers": "the module's own parts: model.module.children()",
    "get_layer": "model.module.get_submodule(name)",
    "weights": "list(model.module.parameters()), with their names by model.module.named_parameters()",
    "variables": "list(model.module.parameters())",
    "trainable_weights": "[p for p in model.module.parameters() if p.requires_grad]",
    "trainable_variables": "[p for p in model.module.parameters() if p.requires_grad]",
    "get_weights": WEIGHTS,
    "set_weights": WEIGHTS,
    "count_params": "model.summary().total_params",
    "metrics_names": "list(model.evaluate(...).keys())",
    "trainable": "model.module.requires_grad_(False), or of a part of it",
    "lr": "model.optimizer.param_groups[0]['lr']",
    "learning_rate": "model.optimizer.param_groups[0]['lr']",
    "add": "model.module.append(layer) of an nn.Sequential, before compile()",
    "build": "nothing: a torch.nn.Module is built when it is made",
    "to_json": "your own code: a file holds weights, not the structure of a module",
    "get_config": "your own code: a file holds weights, not the structure of a module",
    "export": "torch.export.export(model.module, (x,))",
    "reset_states": "model.metrics.reset(), in a loop of your own",
    "fit_generator": "model.fit(generator)",
    "evaluate_generator": "model.evaluate(generator)",
    "predict_generator": "model.predict(generator)",
    "load_model": "Model(net).load(path)",
    "train": "fit(), which changes modes by itself; in a loop of your own model.module.train()",
    "eval": "not needed: evaluate() and predict() run in eval mode; by hand model.module.eval()",
    "compute_loss": "model.loss(y_pred, y)",
    "compiled_loss": "model.loss(y_pred, y)",
    "compiled_metrics": "model.metrics",
    "train_function": "train_step(batch)",
    "to": "Model(module, device=...)",
    "cuda": "Model(module, device='cuda')",
    "cpu": "Model(module, device='cpu')",
    "forward": "model(x), or model.module(x)",
}
ATTRIBUTE_HINTS |= {
    name: f"model.module.{name}()"
    for name in ("parameters", "named_parameters", "children", "modules", "named_modules", "load_state_dict")
}
STEPS = (
    "train_step",
    "test_step",
    "predict_step",
    "update",
    "unpack",
    "batch_size",
)  # what a model of one's own may override
METHOD_HINTS = {  # of a model in other libraries, which nobody would call
    "training_step": "train_step(self, batch)",
    "validation_step": "test_step(self, batch)",
    "validation_epoch_end": "on_test_end of a callback",
    "configure_optimizers": "compile(optimizer, ..., scheduler=...)",
}
PACKAGE = {  # of the package, as keras has it
    "load_model": "Model(net).load(path)",
    "load": "Model(net).load(path)",
    "models": "Model(net).load(path), and easytorch.Model",
    "Sequential": "easytorch.Model(torch.nn.Sequential(...))",
    "layers": "torch.nn",
    "Input": "not needed: a module takes what its forward takes",
    "Dense": "torch.nn.Linear(inputs, outputs)",
    "losses": "a name, such as 'cross_entropy', or one of torch.nn",
    "optimizers": "a name, such as 'adam', or one of torch.optim",
    "metrics": "a name, such as 'accuracy', an easytorch.Metric, or one of torchmetrics",
    "datasets": "torchvision.datasets",
    "utils": "torch.utils, and easytorch.data for data",
    "set_seed": "torch.manual_seed(0)",
    "seed_everything": "torch.manual_seed(0)",
    "Trainer": "easytorch.Model(module).compile(...).fit(...)",
}


def missing_attribute_error(owner: str, name: str, instead: Mapping[str, str], known: Iterable[str]) -> AttributeError:
    """Return the error for an attribute that is not there: what it is here, else the nearest that there is."""
    if name in instead:
        return AttributeError(f"{owner} has no {name!r}. Here it is {instead[name]}.")
    public = [one for one in known if not one.startswith("_")]
    return AttributeError(f"{owner} has no {name!r}.{'' if name.startswith('_') else did_you_mean(name, public, 0.75)}")


def check_steps(cls: type) -> None:
    """Warn of methods that look like steps and are none, and refuse a step that does not take a batch alone.

    Raises:
        TypeError: If a step wants something else.
    """
    for name, value in vars(cls).items():
        if not inspect.isfunction(value):
            continue
        near = "" if name.startswith("_") or name in STEPS else did_you_mean(name, STEPS, 0.8)
        if name in METHOD_HINTS:
            warn(f"Nobody calls {cls.__name__}.{name}. Here it is {METHOD_HINTS[name]}.")
        elif near and not any(hasattr(base, name) for base in cls.__bases__):
            warn(f"Nobody calls {cls.__name__}.{name}, unless your own code does.{near}")
        elif name in ("train_step", "test_step", "predict_step"):
            try:
                inspect.signature(value).bind(None, None)
            except TypeError:
                raise TypeError(
                    f"{cls.__name__}.{name}{inspect.signature(value)} must take the batch alone: def {name}(self, batch)."
                ) from None


def check_assignment(name: str) -> None:
    """Raise an ``AttributeError`` for an attribute of a plain model that nobody would read."""
    if name in ("lr", "learning_rate", "trainable"):
        raise AttributeError(f"Nothing reads model.{name}. Use {ATTRIBUTE_HINTS[name]}.")


class HelpfulInit:
    """A base whose subclasses, yours too, say what to pass where Python only says what not to pass when they are made."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            explain_bad_arguments("__init__")(cls)


def explain_bad_arguments(*names: str) -> Callable[[Class], Class]:
    """Return a decorator that lets these methods of a class say what to pass where Python only says what not."""

    def decorate(cls: Class) -> Class:
        for name in names:
            setattr(cls, name, _explained(getattr(cls, name), cls))
        return cls

    return decorate


def _explained(method: Callable[..., Any], cls: type) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except TypeError as error:
            if error.__traceback__ is None or error.__traceback__.tb_next is not None:  # of what the method does
                raise
            told = str(error).replace(method.__qualname__, _title(method, cls))
            raise TypeError(f"{told}.{_cure(method, cls, args, kwargs)}") from None

    return call


def _title(method: Callable[..., Any], cls: type) -> str:
    return f"{cls.__name__}.{method.__name__}".removesuffix(".__init__")


def _cure(method: Callable[..., Any], cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    title, parameters = _title(method, cls), inspect.signature(method).parameters.values()
    name = title.rpartition(".")[2]
    if not args or not isinstance(args[0], cls):
        return f" It is a method of a model: {cls.__name__}(module).{name}(...)."
    known = [p.name for p in parameters if p.kind != p.VAR_KEYWORD][1:]
    unknown = next((key for key in kwargs if key not in known), None)
    if instead := ARGUMENT_HINTS.get(str(unknown)) if "." in title else OPTION_HINTS.get(f"{title}.{unknown}"):
        return f" Here it is {instead}."
    if unknown is not None:
        return did_you_mean(unknown, known) or f" {name}() takes {', '.join(known) or 'nothing'}."
    positional = [p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD]
    keywords = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY]
    if len(args) > len(positional) and keywords:
        return f" Name what comes after {positional[-1]}: {name}({', '.join(positional[1:])}, {keywords[0]}=..., ...)."
    return f" See help({title})."


TARGETS = {
    "actual", "expected", "ground_truth", "gt", "label", "labels", "target", "targets", "true", "truth", "y", "y_test", "y_true",
}  # fmt: skip
PREDICTIONS = {
    "input", "inputs", "logit", "logits", "output", "outputs", "pred", "prediction", "predictions", "predicted", "preds",
    "probabilities", "probs", "score", "scores", "y_hat", "y_pred", "y_preds", "y_prob", "y_score", "yhat",
}  # fmt: skip


def check_argument_order(kind: str, name: str, function: Any) -> None:
    """Refuse a loss or metric whose first two parameters are named like targets and predictions, as Keras has them.

    Raises:
        ValueError: If both names say so; one alone may mean anything.
    """
    first, second = _first_two(function.forward if isinstance(function, nn.Module) else function)
    if first.lower() not in TARGETS or second.lower() not in PREDICTIONS:
        return
    called = name if inspect.isfunction(function) and name.isidentifier() else "f"
    raise ValueError(
        f"The {kind} {name!r} takes ({first}, {second}), but easytorch calls {called}(y_pred, y), predictions first, as torch "
        f"does. Swap the arguments, or pass lambda y_pred, y: {called}(y, y_pred)."
    )


def _first_two(function: Any) -> tuple[str, str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # built-in functions tell nothing about themselves
        return "", ""
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return (names[0], names[1]) if len(names) > 1 else ("", "")

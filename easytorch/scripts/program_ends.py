"""The sections of a script around the loop: validation, best weights, files, callbacks."""

from __future__ import annotations

import os
import string
from collections.abc import Iterator
from typing import Any

from easytorch.callbacks.every import Every
from easytorch.scripts.describe_metrics import OBJECT
from easytorch.scripts.description import RunDescription
from easytorch.scripts.expressions import VARIABLES, identifier, literal, quote
from easytorch.training.fit_record import CallbackRecord

Lines = list[str]
# Characters of an f-string in one line.
MAX_MESSAGE = 90
# Hooks of custom callbacks that the program calls.
CALLED_HOOKS = ("on_train_begin", "on_epoch_begin", "on_train_batch_end", "on_epoch_end", "on_train_end")
# Callbacks of this package that a script expresses.
EXPRESSED = ("EarlyStopping", "ModelCheckpoint", "ReduceLROnPlateau", "LearningRateScheduler", "LambdaCallback")


def refuse_callbacks(run: RunDescription) -> None:
    """Add to ``run`` what no script can do with its callbacks."""
    custom = [identifier(c.name) for c in run.callbacks if not c.is_internal or c.name == "LambdaCallback"]
    taken = [name for name in custom if custom.count(name) > 1 or name in VARIABLES]
    if taken:
        run.refuse(f"several objects with the name {taken[0]!r}", "Rename the class of a callback")
    for callback in run.callbacks:
        what = _find_obstacle(run, callback)
        if what:
            fix = f"Leave it out: {'to_script(x, y, ..., callbacks=[...])'}"
            run.refuse(what, fix)


def _find_obstacle(run: RunDescription, callback: CallbackRecord) -> str:
    """Return what a script cannot express of ``callback``; empty if it can."""
    options = callback.options
    if callback.is_internal and callback.name not in EXPRESSED:
        return f"the callback {callback.name}"
    monitor = options.get("monitor")
    is_used = callback.name != "ModelCheckpoint" or options.get("save_best_only")
    if callback.is_internal and monitor and is_used and monitor not in known_values(run):
        return f"{callback.name}(monitor={monitor!r}), a value that the script does not compute"
    if callback.name == "EarlyStopping" and options["target"] is not None and options["min_epochs"]:
        return "EarlyStopping with target and min_epochs"
    if callback.name == "ModelCheckpoint":
        return _file_obstacle(run, options)
    if callback.name == "LearningRateScheduler" and not callback.function.isidentifier():
        return "the function of LearningRateScheduler, which has no name"
    if callback.name == "LearningRateScheduler" and run.optimizer is not None and len(set(run.optimizer.rates)) > 1:
        return "LearningRateScheduler with learning rates that differ between parameter groups"
    hooks = [hook for hook in callback.hooks if hook not in CALLED_HOOKS]
    if not callback.is_internal or callback.name == "LambdaCallback":
        return f"{callback.name}.{hooks[0]}" if hooks else ""
    return ""


def _file_obstacle(run: RunDescription, options: Any) -> str:
    frequency = options["save_freq"]
    if frequency.epochs is None:
        return f"ModelCheckpoint(save_freq={frequency!r}), files between two epochs"
    if options.get("keep") is not None or options.get("keep_best") is not None:
        return "ModelCheckpoint with keep or keep_best, which deletes files"
    if options["filepath"].endswith(".safetensors"):
        return "ModelCheckpoint of a .safetensors file"
    fields = [field for _, field, _, _ in string.Formatter().parse(options["filepath"]) if field]
    unknown = [field for field in fields if field != "epoch" and field not in known_values(run)]
    return f"the field {unknown[0]!r} in the name of a file" if unknown else ""


def known_values(run: RunDescription) -> dict[str, str]:
    """Return the variable of each value of the logs at the end of an epoch."""
    train = {"loss": "train_loss"} | {m.name: f"train_{identifier(m.name)}" for m in run.metrics if m.in_training}
    if run.validation is None:
        return train
    names = ["loss", *(metric.name for metric in run.metrics)]
    return train | {f"val_{name}": f"val_{identifier(name)}" for name in names}


# Before the loop


def start_lines(run: RunDescription) -> Lines:
    """Return the lines before the first epoch."""
    lines: Lines = []
    for suffix, callback in _numbered(run, "EarlyStopping"):
        lines.append(f"best{suffix}, wait{suffix} = {_worst(run, callback)}, 0")
        if callback.options["restore_best_weights"]:
            lines[-1] = f"best{suffix}, best_weights{suffix}, wait{suffix} = {_worst(run, callback)}, None, 0"
    for suffix, callback in _numbered(run, "ModelCheckpoint"):
        if callback.options["save_best_only"]:
            threshold = callback.options["initial_value_threshold"]
            lines.append(f"best_saved{suffix} = {_worst(run, callback) if threshold is None else literal(threshold)}")
        folder = os.path.dirname(callback.options["filepath"])
        if folder and "{" not in folder:
            lines.append(f"os.makedirs({quote(folder)}, exist_ok=True)")
    for suffix, callback in _numbered(run, "ReduceLROnPlateau"):
        lines.append(f"plateau_best{suffix}, plateau_wait{suffix} = {_worst(run, callback)}, 0")
        if callback.options["cooldown"]:
            lines.append(f"cooldown{suffix} = 0")
    lines += [
        f"val_{identifier(m.name)}_metric = copy.deepcopy({identifier(m.name)}_metric)"
        for m in run.metrics
        if m.count == OBJECT and run.validation is not None
    ]
    if run.fit is not None and run.fit.steps_per_epoch is not None:
        lines.append("batches = repeat()")
    return lines + [f"{name}.on_train_begin({{}})" for name in _called(run, "on_train_begin")]


def _numbered(run: RunDescription, name: str) -> Iterator[tuple[str, CallbackRecord]]:
    """Yield each callback of a class, with a suffix for its variables."""
    for i, callback in enumerate(run.callbacks_named(name), 1):
        yield ("" if i == 1 else f"_{i}"), callback


def _called(run: RunDescription, hook: str) -> list[str]:
    """Return the variables of the custom callbacks that have a hook."""
    callbacks = [c for c in run.callbacks if not c.is_internal or c.name == "LambdaCallback"]
    return [identifier(callback.name) for callback in callbacks if hook in callback.hooks]


def _direction(run: RunDescription, callback: CallbackRecord) -> str:
    mode = callback.options["mode"]
    return mode if mode != "auto" else run.directions.get(callback.options["monitor"]) or "min"


def _worst(run: RunDescription, callback: CallbackRecord) -> str:
    return 'float("inf")' if _direction(run, callback) == "min" else 'float("-inf")'


def _is_better(run: RunDescription, callback: CallbackRecord, best: str) -> str:
    """Return the condition that the monitored value is better than ``best``."""
    value = known_values(run)[callback.options["monitor"]]
    delta = callback.options.get("min_delta", 0.0)
    sign, relation = ("+", "<") if _direction(run, callback) == "min" else ("-", ">")
    return f"{value} {f'{sign} {literal(delta)} ' if delta else ''}{relation} {best}"


# In the loop


def epoch_begin_lines(run: RunDescription) -> Lines:
    """Return the lines at the start of an epoch."""
    lines = []
    for callback in run.callbacks_named("LearningRateScheduler"):
        current = ', optimizer.param_groups[0]["lr"]' * callback.takes_rate
        lines += [
            f"rate = {callback.function}(epoch{current})",
            "for group in optimizer.param_groups:",
            '    group["lr"] = rate',
        ]
    return lines + [f"{name}.on_epoch_begin(epoch, {{}})" for name in _called(run, "on_epoch_begin")]


def update_end_lines(run: RunDescription) -> Lines:
    """Return the calls of callbacks after an update."""
    return [f"{name}.on_train_batch_end(None, {{}})" for name in _called(run, "on_train_batch_end")]


def validation_lines(run: RunDescription) -> Lines:
    """Return validation and the line that is printed."""
    assert run.fit is not None
    total = f"{run.fit.first_epoch} + epochs" if run.fit.first_epoch else "epochs"
    values = known_values(run)
    train = f"Epoch {{epoch + 1}}/{{{total}}}{_format_values(run, is_validation=False)}"
    if run.validation is None:
        return [f'print(f"{train}")']
    evaluate = f"{', '.join(value for value in values.values() if value.startswith('val_'))} = evaluate(val_loader)"
    val = _format_values(run, is_validation=True)
    if not is_always_validated(run):
        return [
            f'message = f"{train}"',
            f"validates = {_is_due(run.validation.frequency)}",
            "if validates:",
            f"    {evaluate}",
            f'    message += f"{val}"',
            "print(message)",
        ]
    if len(train) + len(val) < MAX_MESSAGE:
        return [evaluate, f'print(f"{train}{val}")']
    return [evaluate, "print(", f'    f"{train}"', f'    f"{val}"', ")"]


def _format_values(run: RunDescription, is_validation: bool) -> str:
    """Return the values of training or of validation, as a part of an f-string."""
    values = known_values(run).items()
    return "".join(f"  {name} {{{v}:.4f}}" for name, v in values if v.startswith("val_") == is_validation)


def is_always_validated(run: RunDescription) -> bool:
    """Return whether each epoch has a validation."""
    frequency = None if run.validation is None else run.validation.frequency
    return (frequency.epochs if isinstance(frequency, Every) else frequency) == 1


def _is_due(frequency: Any) -> str:
    period = frequency.epochs if isinstance(frequency, Every) else frequency
    if isinstance(period, list):
        return f"epoch + 1 in {literal(period)}"
    return f"(epoch + 1) % {period} == 0"


def epoch_end_lines(run: RunDescription) -> Lines:
    """Return what happens after validation: schedules, files, callbacks, and early stopping."""
    lines: Lines = []
    for schedule in run.schedules:
        if schedule.step_every == "epoch":
            value = known_values(run)[schedule.monitor] if schedule.monitor else ""
            lines += _if_validated(run, schedule.monitor, [f"scheduler.step({value})"])
    for suffix, callback in _numbered(run, "ReduceLROnPlateau"):
        lines += _if_validated(run, callback.options["monitor"], _plateau_lines(run, callback, suffix))
    for suffix, callback in _numbered(run, "ModelCheckpoint"):
        monitor = callback.options["monitor"] if callback.options["save_best_only"] else ""
        lines += _if_validated(run, monitor, _file_lines(run, callback, suffix))
    logs = ", ".join(f"{quote(name)}: {value}" for name, value in known_values(run).items())
    lines += [f"{name}.on_epoch_end(epoch, {{{logs}}})" for name in _called(run, "on_epoch_end")]
    for suffix, callback in _numbered(run, "EarlyStopping"):
        lines += _if_validated(run, callback.options["monitor"], _stopping_lines(run, callback, suffix))
    return lines


def _if_validated(run: RunDescription, name: str, lines: Lines) -> Lines:
    """Return ``lines``, only for epochs with a validation if they use a value of it."""
    if not name.startswith("val_") or run.validation is None or is_always_validated(run):
        return lines
    return ["if validates:", *(f"    {line}" for line in lines)]


def _stopping_lines(run: RunDescription, callback: CallbackRecord, suffix: str) -> Lines:
    """Return the lines of early stopping."""
    options = callback.options
    value, best, wait = known_values(run)[options["monitor"]], f"best{suffix}", f"wait{suffix}"
    restores, baseline = options["restore_best_weights"], options["baseline"]
    names, values = [best], [value]
    if restores:
        names.append(f"best_weights{suffix}")
        values.append("copy.deepcopy(net.state_dict())")
    if baseline is None:
        names.append(wait)
        values.append("0")
    lines = [
        "# Early stopping",
        f"{wait} += 1",
        f"if {_is_better(run, callback, best)}:",
        f"    {', '.join(names)} = {', '.join(values)}",
    ]
    if baseline is not None:
        relation = "<" if _direction(run, callback) == "min" else ">"
        lines += [f"    if {value} {relation} {literal(baseline)}:", f"        {wait} = 0"]
    lines += [f"if {_stop_condition(run, callback, wait, value)}:", "    break"]
    start = options["start_from_epoch"]
    return [f"if epoch >= {start}:", *(f"    {line}" for line in lines)] if start else lines


def _stop_condition(run: RunDescription, callback: CallbackRecord, wait: str, value: str) -> str:
    options = callback.options
    patience, target = options["patience"], options["target"]
    conditions = []
    if patience > 0 or target is None:
        first = " and epoch > 0" if patience <= 1 else ""
        conditions.append(f"{wait} >= {max(patience, 1)}{first}")
    if target is not None:
        relation = "<=" if _direction(run, callback) == "min" else ">="
        conditions.append(f"{value} {relation} {literal(target)}")
    condition = " or ".join(conditions)
    if options["min_epochs"]:
        return f"{condition} and epoch + 1 >= {options['min_epochs']}"
    return condition


def _plateau_lines(run: RunDescription, callback: CallbackRecord, suffix: str) -> Lines:
    """Return the lines of the callback ReduceLROnPlateau."""
    options = callback.options
    best, wait, cooldown = f"plateau_best{suffix}", f"plateau_wait{suffix}", f"cooldown{suffix}"
    value, has_cooldown = known_values(run)[options["monitor"]], bool(options["cooldown"])
    lowest = literal(options["min_lr"])
    reduce = [
        f"if {wait} >= {options['patience']}:",
        "    for group in optimizer.param_groups:",
        f'        group["lr"] = min(group["lr"], max(group["lr"] * {literal(options["factor"])}, {lowest}))',
        f"    {wait} = 0" if not has_cooldown else f"    {wait}, {cooldown} = 0, {options['cooldown']}",
    ]
    if options["min_lr"]:
        reduce[0] = f'if {wait} >= {options["patience"]} and max(g["lr"] for g in optimizer.param_groups) > {lowest}:'
    lines = [f"if {cooldown} > 0:", f"    {wait}, {cooldown} = 0, {cooldown} - 1"] if has_cooldown else []
    other = "else:" if not has_cooldown else f"elif {cooldown} == 0:"
    return [
        "# A lower learning rate on a plateau",
        *lines,
        f"if {_is_better(run, callback, best)}:",
        f"    {best}, {wait} = {value}, 0",
        other,
        f"    {wait} += 1",
        *(f"    {line}" for line in reduce),
    ]


def _file_lines(run: RunDescription, callback: CallbackRecord, suffix: str) -> Lines:
    """Return the lines that write files of the model."""
    options = callback.options
    content = "net.state_dict()"
    if not options["save_weights_only"]:
        content = '{"module": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}'
    lines = [f"torch.save({content}, {_path(run, options['filepath'])})"]
    if options["save_best_only"]:
        value, best = known_values(run)[options["monitor"]], f"best_saved{suffix}"
        lines = [f"if {_is_better(run, callback, best)}:", f"    {best} = {value}", f"    {lines[0]}"]
    period = options["save_freq"].epochs
    return lines if period == 1 else [f"if (epoch + 1) % {period} == 0:", *(f"    {line}" for line in lines)]


def _path(run: RunDescription, template: str) -> str:
    """Return an expression of the name of a file."""
    values, text = {**known_values(run), "epoch": "epoch + 1"}, ""
    has_fields = False
    for literal_text, field, spec, _ in string.Formatter().parse(template):
        text += literal_text.replace("{", "{{").replace("}", "}}") if "{" in template else literal_text
        if field:
            has_fields = True
            text += f"{{{values[field]}{f':{spec}' if spec else ''}}}"
    return f"f{quote(text)}" if has_fields else quote(text)


# After the loop


def end_lines(run: RunDescription) -> Lines:
    """Return the lines after the last epoch."""
    lines: Lines = []
    for suffix, callback in _numbered(run, "EarlyStopping"):
        if callback.options["restore_best_weights"]:
            lines += [f"if best_weights{suffix} is not None:", f"    net.load_state_dict(best_weights{suffix})"]
    return ["", *lines, *(f"{name}.on_train_end({{}})" for name in _called(run, "on_train_end"))]

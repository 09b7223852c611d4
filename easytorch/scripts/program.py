"""The sections of a script, each of which returns lines from the description of a run."""

from __future__ import annotations

import re
import textwrap

from easytorch.scripts import program_data, program_ends
from easytorch.scripts.describe_metrics import OBJECT, PAIR
from easytorch.scripts.description import COUNTED, LABELS, SAMPLES, VALUES, MetricInfo, RunDescription
from easytorch.scripts.expressions import identifier, literal

Lines = list[str]
INDENT = "    "
# What a sum over a batch is divided by.
COUNTS = {
    SAMPLES: "len(targets)",
    VALUES: "targets.numel()",
    LABELS: "count_labels(targets)",
    COUNTED: "(targets != {}).sum().item()",
}
# The variable with the total of each.
TOTALS = {SAMPLES: "samples", VALUES: "values", LABELS: "labels", COUNTED: "counted_labels"}


def write_program(run: RunDescription) -> str:
    """Return the program of ``run``, which nothing is refused of."""
    functions = [*helper_lines(run), *evaluation_lines(run)]
    sections = [
        program_data.user_lines(run),
        program_data.setting_lines(run),
        program_data.loader_lines(run),
        [*training_lines(run), *functions, "", *[""] * bool(functions), *program_ends.start_lines(run)],
    ]
    body = "\n\n".join("\n".join(lines) for lines in sections if lines)
    loop = "\n".join([*epoch_lines(run), *program_ends.end_lines(run)])
    imports = "\n".join(import_lines(f"{body}\n{loop}"))
    return f'"""{title(run)}"""\n\n{imports}\n\n{body}\n{loop}'.rstrip() + "\n"


def title(run: RunDescription) -> str:
    """Return what the program does."""
    optimizer, fit = run.optimizer, run.fit
    assert optimizer is not None
    assert fit is not None
    epochs = f"{fit.epochs} epoch{'s' * (fit.epochs != 1)}"
    return f"Train {run.module.name} for {epochs} with {optimizer.title} and {_loss_name(run)}."


def _loss_name(run: RunDescription) -> str:
    return run.loss.title.partition("(")[0]


# The imports that each text needs.
IMPORTS = {
    "copy.": "import copy",
    "csv.": "import csv",
    "functools.": "import functools",
    "itertools.": "import itertools",
    "math.": "import math",
    "os.": "import os",
}
TORCH_IMPORTS = {"nn.": "from torch import nn", "F.": "from torch.nn import functional as F"}
DATA_NAMES = ("DataLoader", "Subset", "TensorDataset")


def import_lines(body: str) -> Lines:
    """Return the imports of what ``body`` uses."""

    def uses(text: str) -> bool:
        return re.search(rf"(?<![\w.]){re.escape(text)}", body) is not None

    standard = [line for text, line in IMPORTS.items() if uses(text)]
    names = [name for name in DATA_NAMES if uses(f"{name}(")]
    data = [f"from torch.utils.data import {', '.join(names)}"] if names else []
    return [
        *standard,
        *[""] * bool(standard),
        "import torch",
        *[line for t, line in TORCH_IMPORTS.items() if uses(t)],
        *data,
    ]


# Loss, optimizer, schedule


def training_lines(run: RunDescription) -> Lines:
    """Return the lines that create loss, optimizer and schedule."""
    assert run.optimizer is not None
    assert run.fit is not None
    lines = ["# Optimizer" if run.loss.is_custom else "# Loss and optimizer"]
    if not run.loss.is_custom:
        device = to_device(run) if "torch.tensor(" in run.loss.function else ""
        lines.append(f"loss_fn = {run.loss.function}{device}")
        if uses_weights(run):
            lines.append(f"loss_per_sample = {run.loss.per_sample}{device}")
    if run.fit.class_weight:
        comment = "  # samples / (classes * samples of the class)" if run.fit.is_balanced else ""
        lines.append(f"class_weights = {run.fit.class_weight}{to_device(run)}{comment}")
    lines.append(f"optimizer = {run.optimizer.expression}")
    if run.precision == "fp16":
        lines.append(f'scaler = torch.amp.GradScaler("{device_type(run)}")')
    for schedule in run.schedules:
        text = "\n".join(schedule.lines)
        if "total_steps" in text:
            lines.append(f"total_steps = epochs * {updates_expression(run)}")
        lines += schedule.lines
    return lines


def updates_expression(run: RunDescription) -> str:
    """Return an expression of the number of updates in an epoch."""
    assert run.fit is not None
    if run.fit.steps_per_epoch is not None:
        return "steps_per_epoch"
    return "len(train_loader)" if run.accumulation == 1 else "math.ceil(len(train_loader) / accumulation_steps)"


def device_type(run: RunDescription) -> str:
    """Return the type of the device, without its number."""
    return run.device.partition(":")[0]


def to_device(run: RunDescription) -> str:
    """Return the end of an expression that moves a tensor to the device."""
    return "" if run.device == "cpu" else ".to(device)"


def uses_weights(run: RunDescription) -> bool:
    """Return whether a loss is weighted, in training or in validation."""
    parts = [data for data in (run.train, run.validation_data) if data is not None]
    return any(data.has_weights for data in parts) or bool(run.fit is not None and run.fit.class_weight)


# Functions


def helper_lines(run: RunDescription) -> Lines:
    """Return the functions that the loop needs."""
    lines: Lines = []
    if used_counts(run).get(LABELS):
        lines += ["", "", "def count_labels(targets):", *textwrap.indent(_count_labels(run), INDENT).splitlines()]
    if run.accumulation > 1:
        lines += [
            "", "", "def windows(batches, size):",
            '    """Yield lists of so many batches, one list for each update; the last one may be shorter."""',
            "    batches = iter(batches)",
            "    while window := list(itertools.islice(batches, size)):",
            "        yield window",
        ]  # fmt: skip
    if run.fit is not None and run.fit.steps_per_epoch is not None:
        source, kind = program_data.batches_expression(run), "batches" if run.accumulation == 1 else "windows"
        inner = f"windows({source}, accumulation_steps)" if run.accumulation > 1 else source
        lines += [
            "", "", "def repeat():",
            f'    """Yield {kind} without end: an epoch continues where the last one has stopped."""',
            "    while True:",
            f"        yield from {inner}",
        ]  # fmt: skip
    return lines


def _count_labels(run: RunDescription) -> str:
    """Return the body of the function that returns what the mean of the loss is divided by."""
    index, weight = run.loss.ignore_index, run.loss.class_weight
    if not weight:
        return f'"""Return the number of labels that are not ignored."""\nreturn (targets != {index}).sum().item()'
    weights = "loss_fn.weight" if run.loss.function.startswith("nn.") else f"{weight}{to_device(run)}"
    if index is None:
        return (
            '"""Return the sum of the class weights of the labels, which the mean is divided by."""\n'
            f"return {weights}[targets].sum(dtype=torch.float64).item()"
        )
    return (
        '"""Return the sum of the class weights of the labels that are not ignored."""\n'
        f"is_counted = targets != {index}\n"
        f"weights = is_counted * {weights}[torch.where(is_counted, targets, 0)]\n"
        "return weights.sum(dtype=torch.float64).item()"
    )


# One batch


def used_counts(run: RunDescription, training: bool = True) -> dict[str, str]:
    """Return the expressions of the counts that are summed over an epoch, by their kind."""
    kinds = [] if run.loss.reduction == "sum" else [run.loss.divisor]
    kinds += [metric.count for metric in metrics_of(run, training)]
    return {kind: COUNTS[kind].format(run.loss.ignore_index) for kind in dict.fromkeys(kinds) if kind in COUNTS}


def metrics_of(run: RunDescription, training: bool) -> list[MetricInfo]:
    """Return the metrics of training or of validation."""
    return [metric for metric in run.metrics if metric.in_training or not training]


def loop_variables(run: RunDescription, training: bool) -> str:
    """Return the variables of a batch, as the target of an assignment."""
    data = run.train if training else run.validation_data
    assert data is not None
    return "inputs, targets, weights" if data.has_weights else "inputs, targets"


def batch_lines(run: RunDescription, training: bool) -> Lines:
    """Return the lines from a batch to its loss."""
    data = run.train if training else run.validation_data
    assert data is not None
    assert run.fit is not None
    lines = _moving_lines(run, training)
    has_class_weight = training and bool(run.fit.class_weight)
    if has_class_weight:
        factor = "weights * " if data.has_weights else ""
        lines.append(f"weights = {factor}class_weights[targets{run.fit.class_index}]")
    inner = [f"outputs = net({data.unpacking}inputs)"]
    if run.loss.conversions:
        inner.append(f"targets = targets{''.join(run.loss.conversions)}")
    inner += _loss_lines(run, data.has_weights or has_class_weight)
    if run.precision == "fp32":
        return [*lines, *inner]
    return [*lines, f"with {autocast(run)}:", *indent(inner)]


def autocast(run: RunDescription) -> str:
    """Return the context of mixed precision."""
    dtype = {"bf16": "torch.bfloat16", "fp16": "torch.float16"}[run.precision]
    return f'torch.autocast("{device_type(run)}", {dtype})'


def _moving_lines(run: RunDescription, training: bool) -> Lines:
    data = run.train if training else run.validation_data
    assert data is not None
    names = loop_variables(run, training).split(", ")
    if run.device != "cpu":
        values = [f"{name}.to(device)" for name in names]
        if data.several_inputs == "tuple":
            values[0] = "tuple(part.to(device) for part in inputs)"
        elif data.several_inputs:
            values[0] = "{name: part.to(device) for name, part in inputs.items()}"
        values = [f"{value}{cast}" for value, cast in zip(values, data.casts, strict=False)]
        return [f"{', '.join(names)} = {', '.join(values)}"]
    return [f"{name} = {name}{cast}" for name, cast in zip(names, data.casts, strict=False) if cast]


def _loss_lines(run: RunDescription, is_weighted: bool) -> Lines:
    """Return the lines that compute ``loss``."""
    loss = run.loss
    function = loss.function if loss.is_custom else "loss_fn"
    divisor = "count_labels(targets)" if loss.divisor == LABELS else "losses.numel()"
    if is_weighted:
        per_sample = function if loss.is_custom else "loss_per_sample"
        lines = [f"losses = {per_sample}(outputs, targets)"]
        total = f"(losses * {_aligned_weights(run)}).sum()"
        if loss.reduction == "sum":
            return [*lines, f"loss = {total}"]
        if loss.reduction == "batchmean":
            divisor = "len(losses)"
        if loss.divisor == LABELS and loss.class_weight:  # the sum of the class weights has 64 bits
            total = f"{total}.double()"
        end = " or 1" if loss.ignore_index is not None and loss.divisor == LABELS else ""
        return [*lines, f"loss = {total} / {f'({divisor}{end})' if end else divisor}"]
    call = f"{function}(outputs, targets)"
    if loss.reduction == "values":
        return [f"loss = {call}.mean()"]
    if loss.ignore_index is not None and loss.divisor == LABELS and loss.reduction != "sum":
        return [f"loss = {call} if count_labels(targets) else 0 * outputs.sum()  # 0 if all labels are ignored"]
    return [f"loss = {call}"]


def _aligned_weights(run: RunDescription) -> str:
    """Return an expression of the weights that broadcasts to the losses of a batch."""
    assert run.fit is not None
    has_labels = bool(run.fit.class_weight) and run.fit.labels_ndim > 1
    ones = 0 if has_labels else run.loss.losses_ndim - 1
    return f"weights.view({', '.join(['-1', *['1'] * ones])})" if ones else "weights"


def sum_lines(run: RunDescription, training: bool) -> Lines:
    """Return the lines that add a batch to the sums of the epoch."""
    is_sum = run.loss.reduction == "sum"
    factor = "" if is_sum else f" * {COUNTS[run.loss.divisor]}"
    lines = [f"loss_sum += loss.item(){factor}"]
    for metric in metrics_of(run, training):
        name = identifier(metric.name)
        if metric.count == OBJECT:
            lines.append(f"{object_name(metric, training)}.update(outputs.detach(), {metric.value})")
        elif metric.count == PAIR:
            lines += [
                f"total, count = {metric.value}",
                f"{name}_sum, {name}_count = {name}_sum + float(total), {name}_count + float(count)",
            ]
        else:
            lines.append(f"{name}_sum += {metric.value}")
    lines += [f"{TOTALS[kind]} += {text}" for kind, text in used_counts(run, training).items()]
    if run.precision == "fp32" or not any(metric.is_custom for metric in metrics_of(run, training)):
        return lines
    # Functions of the user may compute in lower precision, too.
    return [f"with {autocast(run)}:", *indent(lines)]


def object_name(metric: MetricInfo, training: bool) -> str:
    """Return the variable with the object of a metric."""
    return f"{'' if training else 'val_'}{identifier(metric.name)}_metric"


def zero_lines(run: RunDescription, training: bool) -> Lines:
    """Return the lines that start the sums of an epoch."""
    metrics = metrics_of(run, training)
    sums = ["loss_sum", *(f"{identifier(m.name)}_sum" for m in metrics if m.count != OBJECT)]
    counts = [TOTALS[kind] for kind in used_counts(run, training)]
    counts += [f"{identifier(metric.name)}_count" for metric in metrics if metric.count == PAIR]
    values = ["0.0"] * len(sums) + ["0"] * len(counts)
    objects = [f"{object_name(metric, training)}.reset()" for metric in metrics if metric.count == OBJECT]
    return [f"{', '.join([*sums, *counts])} = {', '.join(values)}", *objects]


def means(run: RunDescription, training: bool) -> dict[str, str]:
    """Return an expression of the loss and of each metric over an epoch."""
    result = {"loss": "loss_sum" if run.loss.reduction == "sum" else f"loss_sum / {_total(run, run.loss.divisor)}"}
    for metric in metrics_of(run, training):
        name = identifier(metric.name)
        if metric.count == OBJECT:
            result[metric.name] = f"float({object_name(metric, training)}.compute())"
            continue
        mean = f"{name}_sum / {f'({name}_count or math.nan)' if metric.count == PAIR else _total(run, metric.count)}"
        result[metric.name] = f"math.sqrt({mean})" if metric.root else mean
    return result


def _total(run: RunDescription, kind: str) -> str:
    """Return an expression of a total, which is NaN if all labels of an epoch are ignored."""
    may_be_zero = run.loss.ignore_index is not None and kind in (LABELS, COUNTED)
    return f"({TOTALS[kind]} or math.nan)" if may_be_zero else TOTALS[kind]


# Validation


def evaluation_lines(run: RunDescription) -> Lines:
    """Return the function that evaluates the validation data; none without."""
    if run.validation is None:
        return []
    names = ["loss", *(metric.name for metric in metrics_of(run, False))]
    title = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "loss"
    batches = "loader" if run.validation.steps is None else f"itertools.islice(loader, {run.validation.steps})"
    if run.validation_data is not None and run.validation_data.form.kind == "function":
        batches = batches.replace("loader", "loader()")
    return [
        "", "",
        "@torch.no_grad()",
        "def evaluate(loader):",
        f'    """Return {title} over all samples of the loader."""',
        "    net.eval()",
        *indent(zero_lines(run, False)),
        f"    for {loop_variables(run, False)} in {batches}:",
        *indent([*batch_lines(run, False), *sum_lines(run, False)], 2),
        f"    return {', '.join(means(run, False).values())}",
    ]  # fmt: skip


# The loop


def epoch_lines(run: RunDescription) -> Lines:
    """Return the loop over epochs."""
    assert run.fit is not None
    first = run.fit.first_epoch
    epochs = f"range({first}, {first} + epochs)" if first else "range(epochs)"
    train = means(run, True)
    names = [f"train_{identifier(name)}" for name in train]
    return [
        f"for epoch in {epochs}:",
        *indent(program_ends.epoch_begin_lines(run)),
        "    net.train()",
        *(f"    net.get_submodule({literal(name)}).eval()  # frozen" for name in run.module.in_eval_mode),
        *indent(zero_lines(run, True)),
        *indent(_pass_lines(run)),
        *(f"    {name} = {mean}" for name, mean in zip(names, train.values(), strict=True)),
        *indent(program_ends.validation_lines(run)),
        *indent(program_ends.epoch_end_lines(run)),
    ]


def _pass_lines(run: RunDescription) -> Lines:
    """Return the loop over the batches of an epoch."""
    assert run.fit is not None
    names, batches = loop_variables(run, True), program_data.batches_expression(run)
    steps = run.fit.steps_per_epoch
    if run.accumulation == 1:
        source = batches if steps is None else "itertools.islice(batches, steps_per_epoch)"
        return [
            f"for {names} in {source}:",
            *indent([*batch_lines(run, True), *backward_lines(run, "loss"), *step_lines(run), *sum_lines(run, True)]),
        ]
    source = (
        f"windows({batches}, accumulation_steps)" if steps is None else "itertools.islice(batches, steps_per_epoch)"
    )
    window: Lines = []
    share = "loss"
    if run.loss.reduction != "sum":
        kind = run.loss.divisor
        unused = ["_"] * (len(names.split(", ")) - 2)
        cast = "" if kind != LABELS else "".join(end for end in run.loss.conversions if end == ".long()")
        count = COUNTS[kind].replace("targets", f"targets{cast}")
        if kind == LABELS and run.device != "cpu":
            count = count.replace("(targets", "(targets.to(device)")
        total = f"window_{TOTALS[kind]}"
        window = [f"{total} = sum({count} for {', '.join(['_', 'targets', *unused])} in window)"]
        end = f"({total} or 1)" if run.loss.ignore_index is not None and kind == LABELS else total
        share = f"(loss * ({COUNTS[kind]} / {end}))"
    return [
        f"for window in {source}:",
        *indent(window),
        f"    for {names} in window:",
        *indent([*batch_lines(run, True), *backward_lines(run, share), *sum_lines(run, True)], 2),
        *indent(step_lines(run)),
    ]


def backward_lines(run: RunDescription, loss: str) -> Lines:
    """Return the backward pass of ``loss``, an expression."""
    return [f"scaler.scale({loss}).backward()" if run.precision == "fp16" else f"{loss}.backward()"]


def step_lines(run: RunDescription) -> Lines:
    """Return clipping, the optimizer step, and the step of a schedule that counts updates."""
    assert run.optimizer is not None
    lines: Lines = []
    clips = run.clip_value is not None or run.clip_norm is not None
    if run.precision == "fp16" and clips:
        lines.append("scaler.unscale_(optimizer)")
    if run.clip_value is not None:
        lines.append(f"nn.utils.clip_grad_value_({run.optimizer.parameters}, {literal(run.clip_value)})")
    if run.clip_norm is not None:
        lines.append(f"nn.utils.clip_grad_norm_({run.optimizer.parameters}, {literal(run.clip_norm)})")
    lines += ["scaler.step(optimizer)", "scaler.update()"] if run.precision == "fp16" else ["optimizer.step()"]
    lines.append("optimizer.zero_grad()")
    per_update = [schedule for schedule in run.schedules if schedule.step_every == "update"]
    return [*lines, *["scheduler.step()"] * len(per_update), *program_ends.update_end_lines(run)]


def indent(lines: Lines, depth: int = 1) -> Lines:
    """Return ``lines`` with more space before each."""
    return [f"{INDENT * depth}{line}" if line else "" for line in lines]

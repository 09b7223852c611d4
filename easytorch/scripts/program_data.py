"""The sections of a script about data: what the user defines, settings, and loaders."""

from __future__ import annotations

from easytorch.scripts.describe_metrics import OBJECT
from easytorch.scripts.description import DataInfo, RunDescription
from easytorch.scripts.expressions import identifier, literal
from easytorch.training.fit_record import ArrayForm

Lines = list[str]
GENERATOR = "generator=torch.Generator()"


def user_lines(run: RunDescription) -> Lines:
    """Return the place in which the user defines module, data and other objects."""
    assert run.train is not None
    origin = run.module.origin or "my_module"
    is_torch = not run.module.origin and run.module.name in ("Sequential", "Linear")
    lines = ["# Define your module and your data here:"]
    if is_torch:
        lines.append(f"# net = nn.{run.module.name}(...)")
    else:
        lines += [f"# from {origin} import {run.module.name}", f"# net = {run.module.name}(...)"]
    for data, suffix in ((run.train, ""), (run.validation_data, "_val")):
        is_split = suffix and run.validation is not None and run.validation.split
        if data is not None and not is_split:
            lines.append(
                f"# {', '.join(data_names(data, suffix))} = ...{f'  # batches of {data.example}' if data.example else ''}"
            )
    lines += [f"# {name} = ...  # {text}" for name, text in user_objects(run).items()]
    return lines


def data_names(data: DataInfo, suffix: str) -> list[str]:
    """Return the variables of a data set that the user defines."""
    prefix = "val" if suffix else "train"
    if data.form.kind == "arrays":
        parts = {"x": data.form.x, "y": data.form.y, "sample_weight": data.form.sample_weight}
        return [f"{name}{suffix}" for name, form in parts.items() if form is not None]
    return [
        f"{prefix}_data"
        if data.form.kind in ("dataset", "dataset of another library", "stream")
        else f"{prefix}_loader"
    ]


def user_objects(run: RunDescription) -> dict[str, str]:
    """Return the names of functions and objects of the user that the script calls, with a description of each."""
    objects: dict[str, str] = {}
    if run.loss.is_custom:
        objects[run.loss.function] = (
            "your loss" if run.loss.function == run.loss.title else f"your loss: {run.loss.title}"
        )
    if run.optimizer is not None and run.optimizer.is_custom:
        objects[run.optimizer.title] = "the class of your optimizer"
    for metric in run.metrics:
        if metric.count == OBJECT:
            objects[f"{identifier(metric.name)}_metric"] = f"your metric {metric.name}, with reset, update and compute"
        elif metric.is_custom:
            objects[metric.function] = f"your metric {metric.name}"
    for schedule in run.schedules:
        if schedule.function:
            objects[schedule.function] = "the function of your schedule"
    for callback in run.callbacks:
        if callback.is_internal and callback.name == "LearningRateScheduler":
            objects[callback.function] = "the function of your schedule"
        elif not callback.is_internal or callback.name == "LambdaCallback":
            objects[identifier(callback.name)] = f"your {callback.name}, which has no model here"
    return objects


def setting_lines(run: RunDescription) -> Lines:
    """Return the settings at the top of the program."""
    assert run.fit is not None
    lines = [f"epochs = {run.fit.epochs}"]
    if run.train is not None and run.train.batch_size is not None:
        lines.append(f"batch_size = {run.train.batch_size}")
    if run.accumulation > 1:
        lines.append(f"accumulation_steps = {run.accumulation}  # batches per update")
    if run.fit.steps_per_epoch is not None:
        lines.append(f"steps_per_epoch = {run.fit.steps_per_epoch}  # updates")
    if run.device != "cpu":
        lines += [f'device = "{run.device}"', "net.to(device)"]
    if run.channels_last:
        lines.append("net.to(memory_format=torch.channels_last)")
    if run.jit_compile:
        lines.append("net = torch.compile(net)")
    return lines


def loader_lines(run: RunDescription) -> Lines:
    """Return the lines that make loaders of what the user defines."""
    assert run.train is not None
    assert run.fit is not None
    lines = ["# Data"]
    names = run.fit.class_names
    if names:
        lines.append(f"class_names = {literal(list(names))}")
    is_split = run.validation is not None and bool(run.validation.split)
    lines += _dataset_lines(run, run.train, "", "data" if is_split else "train_data")
    if is_split:
        lines += _split_lines(run)
    if run.train.batch_size is not None:
        lines.append(_loader_line("train", run.train, "batch_size"))
    if run.validation_data is not None:
        if not is_split:
            lines += _dataset_lines(run, run.validation_data, "_val", "val_data")
        if run.validation_data.batch_size is not None:
            size = run.validation_data.batch_size
            same = run.train.batch_size == size
            lines.append(_loader_line("val", run.validation_data, "batch_size" if same else str(size)))
    if any(_is_in_order(line) for line in lines):
        first = next(i for i, line in enumerate(lines) if _is_in_order(line))
        lines.insert(first, "# With a generator, a pass in order draws no global random number")
    return lines if len(lines) > 1 else []


def _is_in_order(line: str) -> bool:
    return "_loader = " in line and GENERATOR in line


def _loader_line(name: str, data: DataInfo, size: str) -> str:
    options = [f"batch_size={size}"]
    if data.form.kind != "stream":
        options.append("shuffle=True" if data.shuffle else GENERATOR)
    return f"{name}_loader = DataLoader({name}_data, {', '.join(options)})"


def _dataset_lines(run: RunDescription, data: DataInfo, suffix: str, name: str) -> Lines:
    """Return the lines that make a dataset ``name`` of arrays."""
    if data.form.kind != "arrays":
        return []
    assert run.fit is not None
    assert run.train is not None
    class_names = run.fit.class_names
    has_columns = run.train.form.x is not None and run.train.form.x.kind.endswith("frame")
    parts = {"x": data.form.x, "y": data.form.y, "sample_weight": data.form.sample_weight}
    dtypes = iter(data.dtypes)
    tensors = []
    for key, form in parts.items():
        if form is not None:
            dtype = data.weight_dtype if key == "sample_weight" else next(dtypes, "")
            # The columns of validation data get the order of those of the training data.
            columns = ""
            if suffix and form.kind.endswith("frame") and has_columns:
                columns = ".select(x.column_names)" if form.kind == "pyarrow frame" else "[x.columns]"
            tensors.append(_tensor_expression(f"{key}{suffix}{columns}", form, dtype, class_names))
    return [f"{name} = TensorDataset({', '.join(tensors)})"]


# The values of frames, series and sparse matrices as an array or a list, by the kind of an ``ArrayForm``.
VALUES = {
    "frame": '{name}.to_numpy("float64")',
    "series": "{name}.to_numpy()",
    "polars frame": '{name}.to_numpy().astype("float64")',
    "polars series": "{name}.to_numpy()",
    "pyarrow series": "{name}.to_numpy(zero_copy_only=False)",
    "datasets series": "{name}[:]",
    "sparse": "{name}.toarray()",
}


def _tensor_expression(name: str, form: ArrayForm, dtype: str, class_names: tuple[str, ...]) -> str:
    """Return an expression of the tensor of an array ``name`` that the user has passed."""
    if form.kind == "text":
        values = f"{name}.to_pylist()" if form.package == "pyarrow" else name
        return f"torch.tensor([class_names.index(label) for label in {values}])"
    if form.kind == "tensor":
        return name if form.dtype == dtype else f"{name}.to(torch.{dtype})"
    if form.kind == "pyarrow frame":
        column = "torch.tensor(column.to_numpy(zero_copy_only=False), dtype=torch.float64)"
        return f"torch.stack([{column} for column in {name}.columns], 1).to(torch.{dtype})"
    values = VALUES.get(form.kind, "{name}").format(name=name)
    end = "" if form.dtype == dtype and "frame" not in form.kind else f", dtype=torch.{dtype}"
    return f"torch.tensor({values}{end})"


def _split_lines(run: RunDescription) -> Lines:
    """Return the lines of ``validation_split``: always the same samples, stratified by class."""
    assert run.validation is not None
    assert run.train is not None
    size, share = run.validation.split_size, run.validation.split
    count = round(size * share)
    lines = [
        f"# A share of {share:g} for validation: always the same samples"
        + (", stratified by class" * run.validation.is_stratified),
        f"order = torch.randperm({size}, generator=torch.Generator().manual_seed(0))",
    ]
    if run.validation.is_stratified:
        y = run.train.form.y
        column = ".squeeze(1)" if y is not None and len(y.shape) == 2 else ""
        lines += [
            f"order = order[torch.argsort(data.tensors[1]{column}[order], stable=True)]",
            f"order = order[((torch.arange({count}, dtype=torch.float64) + 0.5) * {size} / {count}).long()]",
        ]
    else:
        lines.append(f"order = order[{size - count}:]")
    return [
        *lines,
        f"val_rows = torch.isin(torch.arange({size}), order)",
        "train_data = Subset(data, (~val_rows).nonzero().flatten().tolist())",
        "val_data = Subset(data, val_rows.nonzero().flatten().tolist())",
    ]


def batches_expression(run: RunDescription) -> str:
    """Return an expression of the batches of one pass."""
    assert run.train is not None
    return "train_loader()" if run.train.form.kind == "function" else "train_loader"

"""Sentences about what ``fit`` will do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from easytorch._utils.html_table import format_pairs
from easytorch._utils.registry import quote_list
from easytorch.callbacks.every import Every
from easytorch.scripts.description import LABELS, FitInfo, OptimizerInfo, RunDescription, ScheduleInfo
from easytorch.training.fit_record import CallbackRecord

TRACKERS = {"WandbLogger": "Weights & Biases", "MLflowLogger": "MLflow", "TrackioLogger": "Trackio"}
PRECISIONS = {
    "fp32": "in the precision of its weights",
    "bf16": "in bf16 under torch.autocast, with weights and gradients as they are",
    "fp16": "in fp16 under torch.autocast, with a scaled loss, and weights as they are",
}


class Explanation:
    """What ``fit`` will do, as one or more sentences on each subject.

    Attributes:
        sentences: The sentences by subject.

    Examples:
        >>> print(model.explain(x, y, epochs=5))
        >>> model.explain(x, y, epochs=5).sentences["loss"]
    """

    def __init__(self, sentences: dict[str, str]) -> None:
        self.sentences = sentences

    def to_dict(self) -> dict[str, str]:
        """Return the sentences by subject.

        Examples:
            >>> sentences = model.explain(x, y, epochs=5).to_dict()
        """
        return dict(self.sentences)

    def __str__(self) -> str:
        return "\n".join(self.sentences.values())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return a table for a notebook."""
        return format_pairs(self.sentences, "What fit() will do" if "epochs" in self.sentences else "After compile()")


def explain_run(run: RunDescription, verbose: Any = None) -> Explanation:
    """Return the sentences about ``run``; without a fit those about ``compile``.

    Args:
        run: The description.
        verbose: The argument of ``fit``.
    """
    parts = {
        "module": _module(run),
        "device": _device(run),
        "data": _data(run),
        "updates": _updates(run),
        "loss": _loss(run),
        "mean": _mean(run),
        "optimizer": _optimizers(run),
        "learning rate": _rate(run),
        "clipping": _clipping(run),
        "metrics": _metrics(run),
        "validation": _validation(run),
        "epochs": _epochs(run),
        "files": _files(run),
        "callbacks": _callbacks(run),
        "output": "" if run.fit is None else _output(run, verbose),
    }
    return Explanation({subject: text for subject, text in parts.items() if text})


def count(number: int, noun: str) -> str:
    """Return ``"1 sample"`` or ``"2,000 samples"``."""
    plural = {"batch": "batches"}.get(noun, f"{noun}s")
    return f"{number:,} {noun if number == 1 else plural}"


def _module(run: RunDescription) -> str:
    module = run.module
    text = f"{module.name} has {count(module.trainable, 'trainable parameter')}"
    text += f" and {count(module.frozen, 'frozen one')}." if module.frozen else "."
    if module.in_eval_mode:
        text += f" {_join(module.in_eval_mode)} {'stays' if len(module.in_eval_mode) == 1 else 'stay'} in eval mode."
    if run.overridden:
        text += f" Methods of the subclass replace {_join(run.overridden)} of the loop."
    return text


def _device(run: RunDescription) -> str:
    dtype = f", {run.module.dtype}" if run.precision == "fp32" and run.module.dtype else ""
    text = f"It runs on {run.device} {PRECISIONS[run.precision]}{dtype}."
    if run.jit_compile:
        text += " torch.compile compiles it at the first batch."
    if run.channels_last:
        text += " Convolution weights are stored with the channels last."
    return text if run.strategy == "Strategy" else f"{text} {run.strategy} divides each batch among all processes."


def _data(run: RunDescription) -> str:
    train = run.train
    if train is None:
        return ""
    size = "" if train.samples is None else f"{count(train.samples, 'sample')} in "
    batches = "batches" if train.batches is None else count(train.batches, "batch")
    each = "" if train.batch_size is None else f" of {train.batch_size}"
    order = "random order" if train.shuffle else f"the order of {train.sampler or 'the data'}"
    text = f"The training data has {size}{batches}{each}, in {order}."
    if train.draws is not None:
        text += f" An epoch draws {count(train.draws, 'sample')} of it."
    if train.dropped:
        text += (
            f" The last {count(train.dropped, 'sample')} of an epoch {'is' if train.dropped == 1 else 'are'} dropped."
        )
    rest = train.samples % train.batch_size if train.samples and train.batch_size else 0
    if rest and train.batch_size and train.samples and train.samples > train.batch_size:
        text += f" The last batch has {count(rest, 'sample')}."
    if run.fit is not None and run.fit.class_names:
        text += f" Text labels become the numbers of {quote_list(run.fit.class_names, 8)}."
    return text


def _updates(run: RunDescription) -> str:
    fit, size = run.fit, run.accumulation
    text = (
        "Each batch is one update." if size == 1 else f"An update accumulates {size} batches, which count as one batch."
    )
    if fit is None or fit.updates is None:
        return text
    text += f" An epoch has {count(fit.updates, 'update')}"
    if fit.steps_per_epoch is not None:
        return f"{text}, and continues where the last epoch has stopped in the data."
    rest = (run.train.batches or 0) % size if run.train is not None else 0
    return f"{text}, the last of {count(rest, 'batch')}." if rest else f"{text}."


def _loss(run: RunDescription) -> str:
    loss = run.loss
    if _has_custom_loss(run):
        return "A method of the subclass computes the loss."
    if loss.terms:
        return f"The loss is the sum of {_join(loss.terms)}."
    if not loss.function and not loss.title.partition("(")[0].isidentifier():
        return f"The loss is {loss.title}."
    text = f"The loss is {loss.title} of the outputs and the targets."
    if loss.conversions:
        ends = {".view_as(outputs)": "the shape of the outputs", ".float()": "float32", ".double()": "float64",
                ".long()": "int64", ".argmax(1)": "class numbers"}  # fmt: skip
        words = [ends.get(end, "the shape of the classes" if "squeeze" in end else end) for end in loss.conversions]
        text += f" The targets are converted to {_join(words)}."
    return text


def _mean(run: RunDescription) -> str:
    loss, fit = run.loss, run.fit
    if _has_custom_loss(run):
        return ""
    end = " The loss of an epoch is the mean over all samples of the epoch."
    if loss.reduction == "sum":
        text, end = "It is a sum over all samples of an update, not a mean.", " The loss of an epoch is their sum, too."
    elif loss.divisor == LABELS and loss.class_weight:
        text = "The loss of an update is the mean over its labels: it is divided by the sum of their class weights."
        end = " The loss of an epoch is the same over all labels of the epoch."
    elif loss.divisor == LABELS:
        text = f"The loss of an update is the mean over its labels that are not {loss.ignore_index}, which is ignored."
        end = " The loss of an epoch is the same over all labels of the epoch."
    else:
        text = "The loss of an update is the mean over all its samples."
    text += end
    if fit is not None and fit.class_weight:
        kind = "balanced weight" if fit.is_balanced else "weight"
        text += f" The loss of a sample is multiplied by the {kind} of its class, and divided by the number of samples."
    elif run.train is not None and run.train.has_weights:
        text += " The loss of a sample is multiplied by its weight, and divided by the number of samples."
    return text


def _has_custom_loss(run: RunDescription) -> bool:
    """Return whether a method of a subclass computes the loss."""
    return "train_step" in run.overridden or "update" in run.overridden


def _optimizers(run: RunDescription) -> str:
    if not run.optimizers:
        return "There is no optimizer: the model can only be evaluated."
    texts = [_optimizer(name, optimizer) for name, optimizer in run.optimizers.items()]
    if run.fit is not None and run.fit.continues:
        texts.append("It continues with its state after earlier updates.")
    trained = sum(optimizer.count for optimizer in run.optimizers.values())
    if trained < run.module.trainable:
        missing = count(run.module.trainable - trained, "trainable parameter")
        texts.append(f"No optimizer has the other {missing}, which will not change.")
    return " ".join(texts)


def _optimizer(name: str, optimizer: OptimizerInfo) -> str:
    rates = list(dict.fromkeys(optimizer.rates))
    subject = f"{optimizer.title} of {name!r}" if name else optimizer.title
    rate = f"the learning rate {rates[0]:g}"
    if len(rates) > 1:
        rate = f"the learning rates {_join([f'{value:g}' for value in rates])} in its parameter groups"
    return f"{subject} updates {count(optimizer.count, 'parameter')} with {rate}."


def _rate(run: RunDescription) -> str:
    texts = [_schedule(run, schedule) for schedule in run.schedules]
    for callback in run.callbacks_named("ReduceLROnPlateau"):
        options = callback.options
        texts.append(
            f"The learning rate is multiplied by {options['factor']:g} when {options['monitor']} has not improved for "
            f"{count(options['patience'], 'epoch')}."
        )
    for callback in run.callbacks_named("LearningRateScheduler"):
        name = "A function" if callback.function in ("", "<lambda>") else callback.function
        texts.append(f"{name} sets the learning rate before each epoch.")
    return " ".join(texts) or "The learning rate does not change."


def _schedule(run: RunDescription, schedule: ScheduleInfo) -> str:
    moment = f"after each {schedule.step_every}" if schedule.step_every else "after each update or each epoch"
    end = f", by {schedule.monitor}" if schedule.monitor else ""
    total = ""
    if (
        run.fit is not None
        and run.fit.updates is not None
        and schedule.title in ("cosine", "warmup_cosine", "one_cycle")
    ):
        total = f", over all {count(run.fit.updates * run.fit.epochs, 'update')}"
    return f"The schedule {schedule.title} changes the learning rate {moment}{end}{total}."


def _clipping(run: RunDescription) -> str:
    parts = []
    if run.clip_value is not None:
        parts.append(f"each gradient is clipped to {run.clip_value:g}")
    if run.clip_norm is not None:
        parts.append(f"all gradients together are scaled down to the norm {run.clip_norm:g} if theirs is larger")
    return f"Before each optimizer step, {_join(parts)}." if parts else "Gradients are not clipped."


def _metrics(run: RunDescription) -> str:
    names, verb = _join(run.metric_names), "is" if len(run.metric_names) == 1 else "are"
    if _has_custom_loss(run):
        text = "Methods of the subclass decide what else is measured."
        return f"{text} {names} {verb} measured if they call self.metrics.update()." if names else text
    if not run.metric_names:
        return "Only the loss is measured."
    late = [metric.name for metric in run.metrics if not metric.in_training]
    text = f"{names} {verb} measured over all samples of an epoch; in training, on the outputs of train mode."
    return f"{text} {_join(late)} only in evaluations." if late else text


def _validation(run: RunDescription) -> str:
    validation, data = run.validation, run.validation_data
    if run.fit is None:
        return ""
    if validation is None or data is None:
        return "There is no validation."
    subject = f"the data sets {_join(validation.names)}" if len(validation.names) > 1 else "the validation data"
    verb = "are" if len(validation.names) > 1 else "is"
    size = "" if data.samples is None or len(validation.names) > 1 else f" ({count(data.samples, 'sample')}"
    if size and validation.split:
        size += f", {100 * validation.split:.3g}% of the data, always the same"
        size += ", with the same share of each class" if validation.is_stratified else ""
    limit = "" if validation.steps is None else f", {count(validation.steps, 'batch')} of it"
    end = f"{size})" if size else ""
    return f"{_moment(validation.frequency)}, {subject}{end} {verb} evaluated in eval mode without gradients{limit}."


def _moment(frequency: Any) -> str:
    if isinstance(frequency, Every) and frequency.epochs is None:
        number = frequency.updates or frequency.minutes
        return f"After every {number:g} {frequency.unit}"
    period = frequency.epochs if isinstance(frequency, Every) else frequency
    if isinstance(period, Sequence):
        return f"After the epochs {_join([str(epoch) for epoch in period])}"
    return "After each epoch" if period == 1 else f"After every {period} epochs"


def _epochs(run: RunDescription) -> str:
    fit = run.fit
    if fit is None:
        return ""
    start = f", after {count(fit.first_epoch, 'earlier epoch')}" if fit.first_epoch else ""
    total = "" if fit.updates is None else f" with {count(fit.updates * fit.epochs, 'update')}"
    return " ".join([f"Training runs for {count(fit.epochs, 'epoch')}{total}{start}.", *_stops(run, fit)])


def _stops(run: RunDescription, fit: FitInfo) -> Iterator[str]:
    for callback in run.callbacks_named("EarlyStopping"):
        options = callback.options
        name, patience = options["monitor"], max(options["patience"], 1)
        if options["patience"] > 0 or options["target"] is None:
            least = f" by more than {options['min_delta']:g}" if options["min_delta"] else ""
            start = options["start_from_epoch"]
            late = f", not counting the first {count(start, 'epoch')}" if start else ""
            yield f"It ends early when {name} has not improved{least} for {count(patience, 'epoch')}{late}."
        if options["target"] is not None:
            yield f"It ends early when {name} reaches {options['target']:g}."
        if options["restore_best_weights"]:
            yield f"At the end, the weights of the epoch with the best {name} are restored."
    if run.callbacks_named("TerminateOnNaN"):
        yield "It ends at a loss that is NaN or infinite."
    for callback in run.callbacks_named("StopAfter"):
        limits = [f"{value:g} {name}" for name, value in callback.options.items() if isinstance(value, (int, float))]
        yield f"It ends after {_join(limits) or 'a limit'}."


def _files(run: RunDescription) -> str:
    if run.fit is None:
        return ""
    texts = [_checkpoint(callback) for callback in run.callbacks_named("ModelCheckpoint")]
    for callback in run.callbacks_named("BackupAndRestore"):
        texts.append(
            f"The complete state of the run is saved in {callback.options['backup_dir']}, and resumed from there."
        )
    for callback in run.callbacks_named("CSVLogger"):
        texts.append(f"The values of each epoch are written to {callback.options['filename']}.")
    for callback in run.callbacks_named("TensorBoard"):
        texts.append(f"Logs for TensorBoard are written to {callback.options['log_dir']}.")
    for name, place in TRACKERS.items():
        texts += [f"The values of each epoch are written to a run of {place}."] * bool(run.callbacks_named(name))
    for callback in run.callbacks_named("LivePlot"):
        texts += [f"Curves are drawn to {callback.options['path']}."] * bool(callback.options.get("path"))
    if texts:
        return " ".join(texts)
    others = any(not callback.is_internal or callback.name == "LambdaCallback" for callback in run.callbacks)
    return "No file is written, except by custom callbacks." if others else "No file is written."


def _checkpoint(callback: CallbackRecord) -> str:
    options = callback.options
    what = "The weights are" if options["save_weights_only"] else "The model is"
    moment = _moment(options["save_freq"])
    moment = moment[0].lower() + moment[1:]
    if options["save_best_only"]:
        moment += f" that improves {options['monitor']}"
    return f"{what} saved to {options['filepath']} {moment}."


def _callbacks(run: RunDescription) -> str:
    described = ("EarlyStopping", "TerminateOnNaN", "StopAfter", "ModelCheckpoint", "BackupAndRestore", "CSVLogger",
                 "ReduceLROnPlateau", "LearningRateScheduler", "TensorBoard", "LivePlot", *TRACKERS)  # fmt: skip
    others = [c.name for c in run.callbacks if not c.is_internal or c.name not in described]
    return f"{_join(others)} {'is' if len(others) == 1 else 'are'} called, too." if others else ""


def _output(run: RunDescription, verbose: Any) -> str:
    if verbose == 0:
        return "Nothing is printed."
    late = {metric.name for metric in run.metrics if not metric.in_training}
    custom = ["what the subclass logs"] * _has_custom_loss(run)
    names = ["loss", *(name for name in run.metric_names if name not in late), *custom]
    val = _validation_names(run, custom)
    where = "One line per epoch" if verbose == 2 else "A progress bar, or one line per epoch outside of a terminal,"
    return f"{where} shows {_join([*names, *val, 'lr'])}."


def _validation_names(run: RunDescription, custom: Sequence[str]) -> list[str]:
    """Return the names of what the line of an epoch shows of the validation."""
    if run.validation is None:
        return []
    if len(run.validation.names) > 1 or custom:
        return ["the same of each validation" if not custom else "the same of the validation"]
    prefix = "_".join(filter(None, ["val", *run.validation.names]))
    return [f"{prefix}_{name}" for name in ["loss", *run.metric_names]]


def _join(words: Sequence[str]) -> str:
    """Return ``"a, b and c"``."""
    words = list(words)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""

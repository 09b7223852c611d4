"""Model: a module with everything it takes to train it, and the training loop.

Read the loop from ``fit`` downward. Each method is one line of the method above it, and each may be overridden:

    fit          epochs: train, validate, notify the callbacks
    train_epoch  one pass over the data, one update per window of batches
    update       one optimizer step from the batches of a window
    train_step   one batch -> {"loss": ..., plus anything to log}

    evaluate -> test_epoch -> test_step          predict -> predict_step

The tools at the end, such as ``check``, ``report`` and ``find_lr``, are functions of other packages.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from easytorch import optimizer_group, optimizers
from easytorch._utils import api_errors, api_hints
from easytorch._utils.forward_signature import ForwardSignature
from easytorch._utils.integers import boolean, optional_boolean, optional_positive_number, positive_int
from easytorch._utils.internal import is_internal
from easytorch._utils.pytree import map_leaves, to_numpy
from easytorch._utils.tracebacks import hide_internal_frames
from easytorch._utils.train_mode import in_eval_mode, in_train_mode
from easytorch.callbacks.advice import WarnOnMisspelledEntry, advise_on_batches
from easytorch.callbacks.backup import BackupAndRestore
from easytorch.callbacks.base import Callback, CallbackList, as_callback_list
from easytorch.callbacks.every import Every
from easytorch.callbacks.lr_schedulers import LRScheduler
from easytorch.callbacks.progress import progress_callbacks
from easytorch.data import batch as batch_functions
from easytorch.data import predictions
from easytorch.data.arrays import (
    arrays_to_device,
    as_predict_data,
    is_input_list,
    match_columns,
)
from easytorch.data.batch import EMPTY_DATA, Batch, BatchFunctions, Window, count_batches
from easytorch.data.class_names import ClassNames, number_batch, read_names, without_text_targets
from easytorch.data.data_sets import DataSets, as_data_sets, by_name, merge_by_name
from easytorch.data.epoch_iterator import EpochIterator
from easytorch.data.loader import as_loader, as_single_batch
from easytorch.data.tables import refuse_column_names
from easytorch.diagnostics.module_checks import check_module
from easytorch.losses.criterion import Criterion
from easytorch.losses.module_loss import ModuleLoss
from easytorch.losses.resolve import resolve_loss
from easytorch.metrics.aggregation import to_floats
from easytorch.metrics.collection import MetricCollection
from easytorch.metrics.names import resolve_metrics
from easytorch.strategies.base import Strategy
from easytorch.strategies.device import pick_device
from easytorch.training import model_io
from easytorch.training.attributes import AttributeState
from easytorch.training.closures import check_closure
from easytorch.training.compile_arguments import (
    FOR_EVALUATION,
    FOR_PREDICTION,
    arguments_to_save,
    missing_arguments_hint,
)
from easytorch.training.evaluation import evaluation_session, known_targets, separate_metrics
from easytorch.training.fit_data import FitData
from easytorch.training.overrides import adapt_overrides
from easytorch.training.phases import Phase, evaluate_steps
from easytorch.training.results import History, Scores, forward_verbs
from easytorch.training.session import active_callbacks, fit_session, reporting_errors, update_session
from easytorch.training.state import TrainState
from easytorch.training.summary import format_model, print_summary
from easytorch.training.validation import Validation

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from easytorch.checkpoint.storage import Location
    from easytorch.checks.base import Check
    from easytorch.checks.report import CheckReport
    from easytorch.reports.base import Report
    from easytorch.scripts import Explanation, Script
    from easytorch.tuning import BatchSizes, LearningRates, Speeds
    from easytorch.typing import (
        CallbackLike,
        ClassWeightLike,
        DataLike,
        DeviceLike,
        FitOptions,
        LossLike,
        MetricLike,
        OptimizerLike,
        OptimizerOptions,
        PathLike,
        SampleWeightLike,
        SchedulerLike,
        StrategyLike,
        TargetLike,
        ValidationDataLike,
    )


@api_errors.explain_bad_arguments(
    "__init__", "compile", "fit", "evaluate", "predict", "predict_proba", "predict_classes", "predict_on_batch",
    "train_on_batch", "test_on_batch", "save", "load", "save_weights", "load_weights", "export", "push_to_hub", "from_hub",
    "summary", "report", "check", "find_lr", "find_batch_size", "tune_speed", "to_script", "explain",
)  # fmt: skip
class Model:
    """A ``torch.nn.Module`` with everything it takes to train it.

    Args:
        module: Any ``torch.nn.Module``. It is moved to the device and otherwise stays as it is.
        device: ``"auto"`` for the accelerator if there is one, otherwise the CPU; a name, or a ``torch.device``.

    Attributes:
        module: The module.
        optimizer: The optimizer that ``compile`` created or received; None without one. ``model.optimizer.lr = 0.01`` sets the
            learning rate of all its parameter groups.
        loss: The loss as the loop uses it.
        metrics: The metrics of the current pass.
        class_names: The name of each class, which ``predict_classes`` returns: a list, a dict of lists by output, or None.
            ``fit`` learns them from labels that are text; otherwise they may be set.
        strategy: Where and in which precision steps run.
        state: ``epoch`` and ``step`` (updates) so far.
        stop_training: Set it to True in a callback to end ``fit`` after the current update.
        stop_evaluating: Set it to True in a callback to end an evaluation after the current batch.
        stop_predicting: Set it to True in a callback to end ``predict`` after the current batch.

    Examples:
        >>> net = nn.Sequential(nn.Linear(20, 128), nn.ReLU(), nn.Linear(128, 3))
        >>> model = Model(net).compile("adam", "cross_entropy", metrics=["accuracy"])
        >>> model.fit(train_loader, epochs=5, validation_data=val_loader)

        A custom training step:

        >>> class CustomModel(Model):
        ...     def train_step(self, batch):
        ...         x, y, _ = self.unpack(batch)
        ...         y_pred = self(x)
        ...         return {"loss": self.loss(y_pred, y), "mean_output": y_pred.mean()}
    """

    def __init__(self, module: nn.Module, device: DeviceLike = "auto") -> None:
        check_module(module)
        attributes_of_user = set(vars(self))  # that a subclass has set before this call
        self.module = module
        self.signature = ForwardSignature.of(module)
        self.device = pick_device(device)
        self.strategy = Strategy(self.device)
        self.strategy.prepare(module)
        self.state = TrainState()
        self.stop_training = self.stop_evaluating = self.stop_predicting = False
        self.optimizer: torch.optim.Optimizer | None = None
        self.loss: Criterion = ModuleLoss()
        self.metrics = MetricCollection([], self.loss)
        self.schedules: list[LRScheduler] = []
        self.phases: Iterable[Phase] = ()  # the optimizer steps of an update, while fit or train_on_batch runs
        self.clip_grad_norm: float | None = None
        self.clip_grad_value: float | None = None
        self.gradient_accumulation_steps = 1
        self.compile_args: dict[str, Any] | None = None  # arguments of compile that are saved to files
        self.unrestored_arguments: dict[str, Any] | None = None  # those of a loaded model, if the file lacks some
        self.callbacks = CallbackList([], self, {})
        self.batch_advice: list[Callback] = []  # for train_on_batch, until it has no more to say
        self.recorded_history = History()  # ``history`` is a view of it that knows the model
        self.train_data: EpochIterator | None = None  # only while fit runs
        self.last_fit: dict[str, Any] = {}  # data of the last fit, for evaluate() and summary()
        self.class_names: Any = None  # of class numbers, which labels that are text get in fit
        self.columns: list[Any] | None = None  # of the frame of the last fit, whose order other frames get
        self.input_list_length = 0  # of the list that the module takes as its one input
        self.attribute_state = AttributeState(self, frozenset(vars(self)) - attributes_of_user)

    # The loop

    def fit(
        self,
        x: DataLike | None = None,
        y: TargetLike | int | None = None,
        *sizes: int,
        epochs: int = 1,
        batch_size: int | None = None,
        validation_data: ValidationDataLike | None = None,
        validation_split: float = 0.0,
        validation_freq: int | Collection[int] | Every = 1,
        validation_steps: int | None = None,
        steps_per_epoch: int | None = None,
        class_weight: ClassWeightLike | None = None,
        sample_weight: SampleWeightLike | None = None,
        shuffle: bool | None = None,
        initial_epoch: int | None = None,
        callbacks: CallbackLike = (),
        resume: PathLike | None = None,
        on_interrupt: str = "auto",
        dry_run: bool = False,
        verbose: int | str = "auto",
    ) -> History:
        """Train, and return the history of this and all earlier fits.

        A later fit does not change it; ``model.history`` always has all epochs.

        Args:
            x: A ``DataLoader``, a ``Dataset``, tensors, NumPy arrays, frames of pandas, polars or Arrow, sparse matrices,
                dicts or tuples of these, ``(x, y)`` in one tuple, a Hugging Face dataset, a WebDataset pipeline, a generator, a
                function that returns one, or a list of batches. None calls
                ``train_step(None)``, which makes its data itself, ``steps_per_epoch`` times in an epoch.
            y: The targets, unless ``x`` contains them. Labels may be text; their sorted names become ``class_names``. An integer
                means ``epochs``: ``fit(loader, 5)``.
            sizes: ``batch_size`` and ``epochs`` in the order of Keras: ``fit(x, y, 32, 10)``.
            epochs: Number of epochs to train. With ``initial_epoch``, the number of the last epoch, as in Keras.
            batch_size: Samples per batch, 32 by default. Only for data that does not come in batches.
            validation_data: Data to evaluate after epochs, of any kind that ``x`` may be; or a dict of several data sets,
                ``{"clean": ..., "noisy": ...}``, each a loader, a dataset or a tuple ``(x, y)``.
            validation_split: Fraction of the training data to use for validation instead: always the same samples, stratified by
                class.
            validation_freq: Validate every so many epochs, or after exactly these epochs, counted from 1; or an ``Every``, such
                as ``Every(updates=500)`` for validations in the middle of long epochs.
            validation_steps: Number of validation batches of each data set; None for all. Without any data,
                ``test_step(None)`` is called.
            steps_per_epoch: Updates per epoch; None for one pass over the data.
            class_weight: ``{class: weight}`` by number or name, a sequence with one weight per class, or ``"balanced"``.
            sample_weight: One weight per sample. The loss of a sample is multiplied by its weights and averaged over the number
                of samples.
            shuffle: Whether to draw samples in random order. By default yes, unless the data has an order.
            initial_epoch: Number of the first epoch, from 0. By default where the model is.
            callbacks: One or more objects that are called during training; see ``easytorch.callbacks``.
            resume: A folder to save the run in and to resume it from if it was stopped, or the URL of one, such as
                ``"s3://bucket/run"``; or a checkpoint file to resume from.
            on_interrupt: Ctrl-C ends training after the current update. Then ``"raise"`` a ``KeyboardInterrupt``, or ``"return"``
                the history. By default return it in an interactive session (Jupyter, a prompt), and raise in a script.
            dry_run: Check the program: one update, one validation batch, all callbacks, and a checkpoint in a temporary folder.
                Then restore everything, as if ``fit`` had not been called.
            verbose: 0 prints nothing; 1 or ``"auto"`` a live bar in a terminal, a bar and a table in a notebook, and lines
                elsewhere; 2 one line per epoch.

        Returns:
            The history of all epochs.

        Raises:
            RuntimeError: If the model has no optimizer.
            ValueError, TypeError: If an argument or the data is invalid; checked before the first update.
            KeyboardInterrupt: After Ctrl-C; the best weights are restored, a checkpoint is written, and callbacks are closed.

        Examples:
            >>> history = model.fit(x, y, epochs=2, batch_size=20, validation_split=0.2, verbose=0)
            >>> history = model.fit(train_loader, 2, validation_data=val_loader, callbacks=[EarlyStopping(patience=3)], verbose=0)
        """
        self.require_optimizer("fit")
        y, batch_size, epochs = api_errors.read_sizes(y, sizes, batch_size, epochs)
        data = FitData.of(
            self, x, y, epochs=epochs, batch_size=batch_size, steps_per_epoch=steps_per_epoch, shuffle=shuffle,
            class_weight=class_weight, sample_weight=sample_weight, validation_data=validation_data,
            validation_split=validation_split, validation_steps=validation_steps,
        )  # fmt: skip
        validation = Validation.of(data.validation, validation_freq, validation_steps)
        all_callbacks = [*self.schedules, *collect_callbacks(callbacks, verbose), *BackupAndRestore.at(resume)]
        # On entry: on_train_begin, restore a stopped run, try one validation batch, handle signals. On exit: on_train_end.
        with fit_session(
            self, data, validation, record=data.record(self, initial_epoch, validation_freq, all_callbacks),
            callbacks=all_callbacks, state=self.state.plan(epochs, initial_epoch), validation_steps=validation_steps,
            on_interrupt=on_interrupt, is_dry=dry_run, verbose=verbose,
        ):  # fmt: skip
            for epoch in data.train.epochs(self.state):
                self.callbacks.on_epoch_begin(epoch, {})
                logs = self.train_epoch(data.train)
                self._end_epoch(epoch, logs | validation.after(epoch))
                if self.stop_training:
                    break
        return self.history.snapshot()

    def _end_epoch(self, epoch: int, logs: dict[str, float]) -> None:
        """Record the logs of training and validation, and call the callbacks, which may save a checkpoint."""
        logs |= optimizer_group.learning_rates(self.require_optimizer("fit"))
        self.state.end_epoch()  # before the callbacks, so that a checkpoint is taken between two epochs
        self.metrics.reset()  # not at the start of an epoch, since a resumed one continues its sums
        self.recorded_history.append(epoch, logs, self.strategy.timer)
        self.callbacks.on_epoch_end(epoch, logs)

    def train_epoch(self, train_data: Iterable[Window]) -> dict[str, float]:
        """Pass once over the training data, and return the means over all samples of all ranks.

        Args:
            train_data: The windows of batches, one for each update.
        """
        state, metrics, callbacks = self.state, self.metrics, self.callbacks
        update = callbacks.wrap_update(self.update)  # self.update, unless a callback repeats it
        for window in train_data:  # of a resumed epoch, the remaining windows
            index = state.epoch_step
            metrics.window = window  # which knows the batches that are padding and count nothing
            callbacks.on_train_batch_begin(index, {})
            update(window)
            state.advance()
            callbacks.on_train_batch_end(index, metrics.logs)
            if self.stop_training:
                break
        return to_floats(self.strategy.merge_metrics(metrics).compute())

    def update(self, window: Window) -> None:
        """Update the weights once, by the gradients of all batches in ``window``, as if they were one batch."""
        strategy = self.strategy  # The comments describe each call on one device in fp32.
        for phase in self.phases:  # one, unless each of several optimizers has a step
            strategy.run_closure(self._compute_gradients, window, phase)  # self._compute_gradients(window, phase)
            strategy.step(phase.optimizer)  # optimizer.step()
            strategy.zero_grad(phase.optimizer)  # optimizer.zero_grad()

    def _compute_gradients(self, window: Window, phase: Phase) -> None:
        """Add the gradients of all batches in ``window``; an optimizer such as LBFGS asks for them several times."""
        strategy = self.strategy
        weights = strategy.batch_weights(self.loss, window)  # sizes / sum(sizes)
        for i, (batch, weight) in enumerate(zip(window, weights, strict=True)):
            with strategy.accumulating(sync=i == len(window) - 1):  # no-op
                outputs = strategy.run(phase.step, batch)  # train_step(batch.to(device))
                strategy.backward(phase.find_loss(outputs), weight)  # (loss * weight).backward()
            self.metrics.record(outputs, window.sizes[i], phase.prefix)
        strategy.unscale(phase.optimizer)  # no-op
        self.callbacks.on_before_optimizer_step()
        strategy.clip(phase.optimizer, self.clip_grad_norm, self.clip_grad_value)  # clip_grad_norm_(...)

    def train_step(self, batch: Any) -> dict[str, Any]:
        """Return ``{"loss": scalar tensor to minimize, ...}``; all other values are logged."""
        x, y, sample_weight = self.unpack(batch)
        y_pred = self(self.loss.inputs(x, y, batch))  # self(x), or with y if the module computes the loss
        self.metrics.update(y_pred, y, sample_weight, batch)
        return self.loss.terms(y_pred, y, sample_weight, batch)  # {"loss": ...}; with several outputs, the loss of each

    # Evaluation

    def test_epoch(self, loader: Iterable[Any], steps: int | None = None) -> dict[str, float]:
        """Pass once over ``loader`` in eval mode, and return the means over all samples of all ranks.

        Args:
            loader: The batches.
            steps: The number of batches; None for all.

        Returns:
            The means by name.

        Raises:
            ValueError: If there is no batch.

        Examples:
            >>> logs = model.test_epoch(val_loader)
        """
        batches = self.strategy.batches(loader, steps)
        self.callbacks.params["test_steps"] = count_batches(batches)
        self.stop_evaluating = False
        self.callbacks.on_test_begin({})
        with evaluation_session(self, loader), batches:
            for i, batch in enumerate(batches):
                self.metrics.batch = batch  # for callbacks, see current_batch
                self.callbacks.on_test_batch_begin(i, {})
                self.metrics.record(self.strategy.run(self.test_step, batch), self.batch_size(batch))
                self.callbacks.on_test_batch_end(i, self.metrics.logs)
                if self.stop_evaluating:
                    break
            scores = to_floats(self.strategy.merge_metrics(self.metrics).compute())
        if not scores:
            raise ValueError(EMPTY_DATA)
        self.callbacks.on_test_end(scores)
        return scores

    def test_step(self, batch: Any) -> dict[str, Any]:
        """Return the loss of ``batch`` and other values to log; by default what ``train_step`` returns."""
        return evaluate_steps(self, batch)

    def evaluate(
        self,
        x: DataLike | None = None,
        y: TargetLike | None = None,
        *,
        batch_size: int | None = None,
        sample_weight: SampleWeightLike | None = None,
        steps: int | None = None,
        callbacks: CallbackLike = (),
        verbose: int | str = "auto",
        return_dict: bool = False,
    ) -> Scores:
        """Return the loss and the metrics in eval mode: ``loss, accuracy = model.evaluate(loader)``.

        Args:
            x: Data of any kind that ``fit`` takes, or a dict of several data sets, whose scores are ``clean_loss``, ... None for
                the validation data of the last fit, or its training data.
            y: The targets, unless ``x`` contains them.
            batch_size: Samples per batch, 32 by default.
            sample_weight: One weight per sample.
            steps: Number of batches of each data set; None for all.
            callbacks: Objects that are called during the evaluation.
            verbose: See ``fit``.
            return_dict: Return a plain dict of floats, as in Keras, instead of ``Scores``, which has the same items.

        Raises:
            RuntimeError: If ``compile`` was not called.
            ValueError: If there is no data.

        Examples:
            >>> loss, accuracy = model.evaluate(test_loader, verbose=0)
            >>> scores = model.evaluate(x, y, batch_size=20, verbose=0)
            >>> names = list(scores.keys())
        """
        self.require_compiled("evaluate")
        return_dict = boolean("return_dict", return_dict)
        if x is None:
            name, loader = self._last_fit_data(y=y, batch_size=batch_size, sample_weight=sample_weight)
        else:
            data = as_data_sets(x, "x", self.signature.names) if y is None else x
            load = functools.partial(self._load_data, y=y, sample_weight=sample_weight, batch_size=batch_size)
            name, loader = "the given data", data.convert(load, "x") if isinstance(data, DataSets) else load(data)
        evaluate = functools.partial(self._evaluate, name=name, steps=steps, callbacks=callbacks, verbose=verbose)
        scores = merge_by_name({data_set: evaluate(batches, data_set) for data_set, batches in by_name(loader).items()})
        return cast("Scores", scores) if return_dict else Scores(scores, self, name)

    def _load_data(self, x: Any, y: Any, sample_weight: Any, batch_size: int | None) -> Iterable[Any]:
        """Return the batches of one data set of ``evaluate``."""
        refuse_column_names(x, y=y, sample_weight=sample_weight)
        x, y = ClassNames(self.class_names).encode(x, y)
        return as_loader(match_columns(x, self.columns), y, sample_weight, batch_size=batch_size)

    def _evaluate(
        self, loader: Any, data_set: str, *, name: str, steps: int | None, callbacks: CallbackLike, verbose: int | str
    ) -> dict[str, float]:
        """Return the scores of one data set, called ``data_set`` if there are several in the data called ``name``."""
        self.loss.prepare(known_targets(self, loader), self.class_names)
        params = {"verbose": verbose, "data": f"{data_set!r} of {name}" if data_set else name, "data_set": data_set}
        callback_list = CallbackList([*collect_callbacks(callbacks, verbose), WarnOnMisspelledEntry()], self, params)
        with reporting_errors(self, callback_list, "evaluate", loader, steps=steps):
            return self.test_epoch(loader, steps)

    def _last_fit_data(self, **arguments: Any) -> tuple[str, Any]:
        """Return a description and the batches of the last fit's data; ``arguments`` belong to other data."""
        name = next((name for name, value in arguments.items() if value is not None), None)
        if name is not None:
            raise ValueError(f"evaluate() received {name} without data. Pass evaluate(x, y), or leave out {name}.")
        for kind in ("validation", "training"):
            if self.last_fit.get(kind) is not None:
                return f"the {kind} data of the last fit", self.last_fit[kind]
        raise ValueError(
            "evaluate() received no data, and the model has no data of a previous fit; files and copies contain none. Pass "
            "evaluate(x, y)."
        )

    # Prediction

    def predict_step(self, batch: Any) -> Any:
        """Return the outputs of the module for the inputs of ``batch``.

        Args:
            batch: A batch of the data, on the device.

        Examples:
            >>> class Probabilities(Model):
            ...     def predict_step(self, batch):
            ...         return super().predict_step(batch).softmax(1)
            >>> Probabilities(net).predict(x, verbose=0).shape
            (60, 3)
        """
        return self(batch_functions.select_inputs(batch, self.unpack(batch).x, self.signature))

    def __call__(self, x: Any, *, training: bool | None = None) -> Any:
        """Call the module with ``x``: one tensor or array, a tuple of arguments, or a dict of arguments.

        Args:
            x: The inputs.
            training: True runs the module in train mode, False in eval mode; None in the mode in which it is.

        Returns:
            What the module returns.

        Examples:
            >>> model(x[:2]).shape
            torch.Size([2, 3])
        """
        if isinstance(x, torch.Tensor) and training is None:  # by far the most frequent case
            return self.signature.call(self.strategy.forward, x)
        if optional_boolean("training", training) is not None:
            with (in_train_mode if training else in_eval_mode)(self.module):
                return self(x)
        if type(x) is list:
            self.input_list_length = len(x)
        return self.signature.call(self.strategy.forward, arrays_to_device(x, self.strategy.to_device))

    def unpack(self, batch: Any) -> Batch:
        """Split a batch into inputs, targets and sample weights; missing parts are None.

        Labels that are text become class numbers, if they are in ``class_names``.

        Args:
            batch: ``(x, y)``, ``(x, y, sample_weight)``, ``x``, or a dict with an entry such as ``labels``.

        Returns:
            The parts as ``Batch(x, y, sample_weight)``.

        Examples:
            >>> inputs, targets, weights = model.unpack((x, y))
            >>> weights is None
            True
        """
        parts = batch_functions.unpack(batch, self.signature, self.loss.entries, self.loss.ignored_label)
        if self.class_names is None or not isinstance(parts.y, (list, tuple)):
            return parts
        y = number_batch(parts.y, read_names(self.class_names))
        return parts if y is parts.y else parts._replace(y=self.strategy.to_device(y))

    def batch_size(self, batch: Any) -> int:
        """Return the number of samples in ``batch``, by which its loss is weighted.

        Args:
            batch: The batch.

        Examples:
            >>> model.batch_size((x, y))
            60
        """
        return batch_functions.batch_size(batch)

    def predict(
        self,
        x: DataLike,
        *,
        targets: bool = False,
        batch_size: int | None = None,
        steps: int | None = None,
        to: PathLike | None = None,
        callbacks: CallbackLike = (),
        verbose: int | str = "auto",
    ) -> Any:
        """Return the outputs of the module as NumPy arrays, in eval mode and in the order of the samples.

        Args:
            x: Inputs of any kind that ``fit`` takes. Targets are ignored.
            targets: Whether to return the pair of outputs and targets. ``x`` is read as in ``fit`` then: ``(x, y)``, or a loader.
            batch_size: Samples per batch, 32 by default.
            steps: Number of batches; None for all.
            to: A ``.npy`` file for outputs that do not fit in memory; the result is read from it. With several outputs, each gets
                a file ``name.0.npy`` or ``name.key.npy``.
            callbacks: Objects that are called during the prediction.
            verbose: 0 prints nothing; otherwise a live bar in a terminal.

        Returns:
            An array, or the structure of the module's outputs with arrays.

        Examples:
            >>> model.predict(x, verbose=0).shape
            (60, 3)
        """
        return self._predict(
            x, targets=boolean("targets", targets), batch_size=batch_size, steps=steps, to=to, verbose=verbose,
            callbacks=callbacks,
        )  # fmt: skip

    def predict_proba(self, x: DataLike, *, batch_size: int | None = None, verbose: int | str = "auto") -> Any:
        """Return probabilities: the outputs after the softmax, exp or sigmoid that belongs to the loss.

        Args:
            x: Inputs of any kind that ``fit`` takes.
            batch_size: Samples per batch, 32 by default.
            verbose: 0 prints nothing; otherwise a live bar in a terminal.

        Examples:
            >>> model.predict_proba(x, verbose=0).shape
            (60, 3)
        """
        self._require_arguments("predict_proba", FOR_PREDICTION)
        return self._predict(x, self.loss.probabilities, batch_size=batch_size, verbose=verbose)

    def predict_classes(
        self,
        x: DataLike,
        *,
        threshold: float | None = None,
        names: bool = True,
        batch_size: int | None = None,
        verbose: int | str = "auto",
    ) -> Any:
        """Return the most probable class of each sample; for a binary loss 0 or 1 for each label.

        A warning lists the samples for which the module returns NaN: their classes have no meaning.

        Args:
            x: Inputs of any kind that ``fit`` takes. Targets are ignored.
            threshold: For a binary loss, the probability above which a label is 1; None for 0.5.
            names: Whether to return the names in ``class_names``, if the model has them, instead of class numbers.
            batch_size: Samples per batch, 32 by default.
            verbose: 0 prints nothing; otherwise a live bar in a terminal.

        Returns:
            An array of class numbers, or of names, one for each sample; with several outputs one array for each.

        Raises:
            ValueError: If the loss does not determine classes, or ``threshold`` has no effect.

        Examples:
            >>> history = model.fit(x[:3], ["cat", "dog", "bird"], verbose=0)
            >>> names = model.predict_classes(x, verbose=0)
        """
        self._require_arguments("predict_classes", FOR_PREDICTION)
        names = boolean("names", names)
        find_classes = functools.partial(self.loss.classes, threshold=threshold)
        collector = self.strategy.output_collector(predictions.OutputCollector())
        with predictions.ClassFinder(find_classes, collector) as finder:
            classes = self._predict(x, finder, batch_size=batch_size, verbose=verbose)
        return self.loss.name_classes(classes, read_names(self.class_names)) if names else classes

    def _predict(
        self,
        x: Any,
        transform: Callable[[Any], Any] | None = None,
        *,
        targets: bool = False,
        batch_size: int | None = None,
        steps: int | None = None,
        to: PathLike | None = None,
        callbacks: CallbackLike = (),
        verbose: int | str = 0,
    ) -> Any:
        """Return the outputs for ``x``, with ``transform`` applied to the outputs of each batch."""
        x = ClassNames(self.class_names).encode(x)[0] if targets else without_text_targets(x)
        x = match_columns(x, self.columns)
        data = x if targets else as_predict_data(x, self.signature, self.input_list_length)
        loader = predictions.warn_if_shuffled(as_loader(data, batch_size=batch_size))
        collector = self.strategy.output_collector(predictions.OutputCollector.to(to))
        active = [*collect_callbacks(callbacks, verbose), WarnOnMisspelledEntry()]
        callback_list = CallbackList(active, self, {"verbose": verbose})
        session = reporting_errors(self, callback_list, "predict", loader, steps=steps, x=x)
        evaluating = self.strategy.evaluating()
        with (
            session, evaluating, in_eval_mode(self.module), torch.no_grad(), collector,
            self.strategy.batches(loader, steps) as batches,
        ):  # fmt: skip
            self.callbacks.params["test_steps"] = count_batches(batches)
            self.stop_predicting = False
            self.callbacks.on_predict_begin({})
            for i, batch in enumerate(batches):
                self.callbacks.on_predict_batch_begin(i, {})
                outputs = self.strategy.run(self.predict_step, batch)
                outputs = predictions.transform_outputs(transform, outputs, batch)
                rows = predictions.check_one_row_per_sample(outputs, batch)
                rows = predictions.pair_with_targets(rows, self.unpack(batch).y) if targets else rows
                collector.add(map_leaves(to_numpy, rows))
                self.callbacks.on_predict_batch_end(i, {"batch": batch, "outputs": outputs})
                if self.stop_predicting:
                    break
            self.callbacks.on_predict_end({})
        return collector.result()

    # Compilation

    def compile(
        self,
        optimizer: OptimizerLike | None = None,
        loss: LossLike | None = None,
        metrics: MetricLike | None = (),
        *,
        lr: float | None = None,
        loss_weights: Sequence[float] | Mapping[str, float] | None = None,
        weighted_metrics: MetricLike | None = (),
        validation_only: Sequence[str] = (),
        scheduler: SchedulerLike | Mapping[str, SchedulerLike] | None = None,
        update_every: Mapping[str, int] | None = None,
        clip_grad_norm: float | None = None,
        clip_grad_value: float | None = None,
        gradient_accumulation_steps: int = 1,
        precision: str = "fp32",
        jit_compile: bool = False,
        strategy: StrategyLike = "auto",
        channels_last: bool = False,
        **optimizer_options: Unpack[OptimizerOptions],
    ) -> Self:
        """Choose how to train, and return the model. The weights stay as they are.

        Args:
            optimizer: A name (``"adam"``); a class or function that creates an optimizer from parameters; or a
                ``torch.optim`` object. A dict gives each part of the module an optimizer. Its keys are names or patterns of
                submodules and parameters, or ``"*"`` for all others. Its values are optimizers, or pairs of an optimizer and its
                options: ``{"backbone": ("adamw", {"lr": 1e-5}), "head": "adam"}``. None for a model that is only evaluated.
            loss: A name (``"cross_entropy"``, on logits); a ``torch.nn`` loss; any ``f(y_pred, y)``, whose further parameters
                such as ``x`` and ``model`` are passed by name; a list or dict of these, one per output; None if the module or
                ``train_step`` computes it.
            metrics: Names, functions ``f(y_pred, y)``, whose further parameters without a default are passed by name,
                ``easytorch.Metric`` or torchmetrics objects; by output if there are several losses.
            lr: The learning rate; None for the default of the optimizer. With several optimizers, of those that have none.
            loss_weights: The weight of each output's loss.
            weighted_metrics: Metrics that use sample and class weights.
            validation_only: Names, as in the logs, of the metrics that are measured in evaluations only, since they take long.
            scheduler: ``"warmup_cosine"``, ``"cosine"`` or ``"one_cycle"``; a ``torch.optim.lr_scheduler`` or a function that
                creates one from the optimizer, stepped per update or per epoch as its class requires; or a
                ``callbacks.LRScheduler``, which sets this explicitly. With several optimizers, one for all, or a dict by name.
            update_every: For optimizers by name, the number of windows for one update: ``{"generator": 5}``. By default 1.
            clip_grad_norm: Gradient clipping: the maximum of the common norm of all gradients. If each of several optimizers has
                a loss, the norm for each optimizer separately.
            clip_grad_value: Gradient clipping: the maximum absolute value of each gradient.
            gradient_accumulation_steps: Batches per update, which together count as one large batch.
            precision: ``"fp32"``, or mixed precision: ``"bf16"`` or ``"fp16"``.
            jit_compile: Call the module through ``torch.compile``.
            strategy: ``"auto"``: one device, or ``"ddp"`` in a process that ``torchrun`` started. ``"one"``, ``"ddp"``,
                ``"fsdp"``, or an ``easytorch.Strategy`` such as ``DataParallel(sync_batchnorm=True)``.
            channels_last: Store images and convolution weights with the channels last in memory, which is faster on most devices.
                Shapes and files do not change.
            optimizer_options: Options of the optimizer, under the names of torch: ``momentum=0.9``, ``weight_decay=1e-4``,
                ``betas=(0.9, 0.95)``. All others have the defaults of torch.

        Raises:
            ValueError: If a name is unknown or a number is invalid; the model is unchanged then.
            TypeError: If an argument or an option is unknown, or has the wrong type.

        Examples:
            >>> model.compile("sgd", "cross_entropy", lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
            >>> model.compile(torch.optim.AdamW, nn.CrossEntropyLoss(label_smoothing=0.1), betas=(0.9, 0.95))
            >>> model.compile({"backbone": ("adamw", {"lr": 1e-5}), "head": "adam"}, "cross_entropy")
        """
        optimizer_group.check_options(optimizer, optimizer_options, COMPILE_ARGUMENTS)
        window_size = positive_int("gradient_accumulation_steps", gradient_accumulation_steps)
        optional_positive_number("clip_grad_norm", clip_grad_norm)
        optional_positive_number("clip_grad_value", clip_grad_value)
        channels_last = boolean("channels_last", channels_last)
        new_loss = resolve_loss(loss, loss_weights, self.module)
        new_metrics = resolve_metrics(metrics, new_loss, weighted_metrics, validation_only)
        new_strategy = Strategy.of(strategy, self.device, precision=precision, jit_compile=jit_compile)
        new_loss.to(new_strategy.device)
        self.strategy.release_weights()  # so that an optimizer gets the parameters that are trained
        new_optimizer = optimizer_group.resolve_optimizer(
            optimizer, self.module, lr, new_loss.modules, optimizer_options, COMPILE_ARGUMENTS, update_every=update_every,
            model_class=type(self),
        )  # fmt: skip
        check_closure(self, new_optimizer, new_strategy)
        new_schedules = LRScheduler.all_of(scheduler, new_optimizer) if scheduler is not None else []
        new_strategy.channels_last, new_strategy.loss_modules = channels_last, new_loss.modules
        new_strategy.prepare(self.module, new_optimizer)
        # Nothing has changed up to here, so an error leaves the model as it was.
        self.loss, self.metrics, self.strategy = new_loss, new_metrics, new_strategy
        self.loss.bind(self)
        self.metrics.bind(self)
        self.device = new_strategy.device
        self.optimizer, self.schedules = new_optimizer, new_schedules
        self.clip_grad_norm, self.clip_grad_value = clip_grad_norm, clip_grad_value
        self.gradient_accumulation_steps, self.unrestored_arguments = window_size, None
        # The record is of a fit with the settings of the last compile().
        self.last_fit = {**self.last_fit, "record": None} if self.last_fit else {}
        self.compile_args = arguments_to_save(
            optimizer, new_optimizer, lr, optimizer_options, scheduler, new_schedules, update_every, validation_only,
            loss=loss, loss_weights=loss_weights, metrics=metrics, weighted_metrics=weighted_metrics,
            clip_grad_norm=clip_grad_norm, clip_grad_value=clip_grad_value, gradient_accumulation_steps=window_size,
        )  # fmt: skip
        self.batch_advice = advise_on_batches(self)
        self.attribute_state.start()
        return self

    def require_compiled(self, method: str) -> None:
        """Raise a ``RuntimeError`` if ``compile`` was not called before ``method``.

        Args:
            method: The name of the method, for the message.

        Raises:
            RuntimeError: If ``compile`` was not called.

        Examples:
            >>> model.require_compiled("my_method")
        """
        self._require_arguments(method, FOR_EVALUATION)
        if self.compile_args is None:
            raise RuntimeError(f"{method}() needs a compiled model. Call model.compile('adam', 'cross_entropy') first.")

    def require_optimizer(self, method: str) -> torch.optim.Optimizer:
        """Return the optimizer; raise a ``RuntimeError`` if there is none for ``method``.

        Args:
            method: The name of the method, for the message.

        Raises:
            RuntimeError: If ``compile`` was not called, or without an optimizer.

        Examples:
            >>> optimizer = model.require_optimizer("my_method")
        """
        self._require_arguments(method)
        self.require_compiled(method)
        if self.optimizer is None:
            raise RuntimeError(f"{method}() needs an optimizer. Pass one to compile: model.compile('adam', ...).")
        return self.optimizer

    def _require_arguments(self, method: str, names: Sequence[str] = ()) -> None:
        """Raise a ``RuntimeError`` if the loaded file lacks one of the arguments ``names`` of ``compile``; of all by default."""
        hint = missing_arguments_hint(self, names)
        if hint:
            raise RuntimeError(f"{method}() cannot run: {hint}")

    # One batch at a time

    def train_on_batch(
        self, x: DataLike, y: TargetLike | None = None, sample_weight: SampleWeightLike | None = None
    ) -> Scores:
        """Update the weights once, by one batch ``x``, ``y``, and return the scores of this batch.

        Args:
            x: The inputs of the batch: a tensor, an array, or a dict or tuple of these.
            y: The targets.
            sample_weight: One weight per sample.

        Examples:
            >>> scores = model.train_on_batch(x[:20], y[:20])
        """
        self.require_optimizer("train_on_batch")
        batch = self._as_batch(x, y, sample_weight)
        call = self.strategy.group.call("train_on_batch")
        checks = CallbackList([WarnOnMisspelledEntry(), *self.batch_advice], self, {})
        with call, update_session(self, checks), separate_metrics(self):
            window = Window([batch])
            window.functions = BatchFunctions(self.batch_size, self.unpack)
            self.metrics.window = window
            checks.on_train_batch_begin(0, {})
            self.update(window)
            self.state.step += 1
            scores = to_floats(self.strategy.merge_metrics(self.metrics).compute())
            checks.on_train_batch_end(0, scores)
            return Scores(scores, self, "this batch")

    def test_on_batch(
        self, x: DataLike, y: TargetLike | None = None, sample_weight: SampleWeightLike | None = None
    ) -> Scores:
        """Return the scores of one batch in eval mode.

        Args:
            x: The inputs of the batch.
            y: The targets.
            sample_weight: One weight per sample.

        Examples:
            >>> scores = model.test_on_batch(x[:20], y[:20])
        """
        self.require_compiled("test_on_batch")
        batch = self._as_batch(x, y, sample_weight)
        checks = CallbackList([WarnOnMisspelledEntry()], self, {})
        with self.strategy.group.call("test_on_batch"), active_callbacks(self, checks):
            return Scores(self.test_epoch([batch]), self, "this batch")

    def predict_on_batch(self, x: DataLike) -> Any:
        """Return the outputs for one batch as NumPy arrays, in eval mode.

        Args:
            x: The inputs of the batch.

        Examples:
            >>> model.predict_on_batch(x[:20]).shape
            (20, 3)
        """
        batch = as_single_batch(match_columns(without_text_targets(x), self.columns))
        is_input = is_input_list(batch, self.input_list_length) or (
            isinstance(batch, tuple) and self.signature.takes(len(batch))
        )
        return self._predict([(batch,) if is_input else batch])

    def _as_batch(self, x: Any, y: Any, sample_weight: Any) -> Any:
        """Return the arguments of a method for one batch as a batch."""
        x, y = ClassNames(self.class_names).encode(match_columns(x, self.columns), y)
        return as_single_batch(x, y, sample_weight)

    # Files

    def save(self, path: PathLike = "model.pt") -> Location:
        """Write weights, optimizer state, history and compile arguments to a file, and return its path.

        Each argument of ``compile`` is saved by itself if it is a name, a number, a loss of ``torch.nn`` or an optimizer of
        ``torch.optim``.

        The path may be a URL, such as ``"s3://bucket/model.pt"``, and is then returned as an object whose text is the URL.
        The file is written atomically. ``torch.load(path, weights_only=True)["module"]`` is the state dict of the module. All
        ranks must call this; the main rank writes.

        Args:
            path: The file, or a URL. The name may have any ending except ``.safetensors``.

        Raises:
            OSError: If the file cannot be written; an existing file is unchanged then.
            ValueError: If the name ends in ``.safetensors``, which can contain only weights.

        Examples:
            >>> path = model.save("digits.pt")
            >>> loaded = Model(net).load("digits.pt")
        """
        return model_io.save(self, path)

    def load(self, path: PathLike) -> Self:
        """Restore everything from a file of ``save``, or from the newest intact checkpoint of a folder; return the model.

        A model without ``compile`` is compiled as the saved one was. Its precision is restored if the device supports it. If an
        argument was an object that a file cannot hold, such as a custom loss or a scheduler, methods that need it raise an error
        that names it. Pass it to ``compile``, then call ``load`` again.

        Args:
            path: A file of ``save``, a folder of checkpoints, or a URL of one of these.

        Raises:
            FileNotFoundError: If there is no such file.
            FileError: If it is not such a file, is damaged, or belongs to another module; the model is unchanged then.

        Examples:
            >>> path = model.save("digits.pt")
            >>> loaded = Model(net).load("digits.pt")
        """
        model_io.load(self, path)
        return self

    def save_weights(self, path: PathLike) -> Location:
        """Write the state dict of the module, as safetensors if the name ends in ``.safetensors``, and return the path.

        Args:
            path: The file, or a URL.

        Examples:
            >>> path = model.save_weights("digits.safetensors")
        """
        return model_io.save_weights(self, path)

    def load_weights(self, path: PathLike, *, strict: bool = True) -> Self:
        """Load weights from a file of ``save``, ``save_weights`` or ``torch.save(net.state_dict(), ...)``; return the model.

        Args:
            path: The file.
            strict: Refuse a file whose names or shapes differ from those of the module. If False, load the weights that fit,
                and warn of all others.

        Raises:
            FileNotFoundError: If there is no such file.
            FileError: If it has no weights, is damaged, or belongs to another module; the model is unchanged then.

        Examples:
            >>> path = model.save_weights("weights.pt")
            >>> loaded = Model(net).load_weights("weights.pt")
        """
        model_io.load_weights(self, path, boolean("strict", strict))
        return self

    def state_dict(self) -> dict[str, Any]:
        """Return everything that ``save`` writes: tensors and plain values, the weights as ``"module"``.

        Examples:
            >>> weights = model.state_dict()["module"]
        """
        return model_io.state_dict(self)

    def training_state(self) -> dict[str, Any]:
        """Return everything that a run needs to continue exactly here; only while ``fit`` runs."""
        return model_io.training_state(self)

    def load_training_state(self, content: Mapping[str, Any], path: PathLike) -> Callable[[], None] | None:
        """Continue exactly where ``training_state`` was taken; only at the start of ``fit``.

        Returns:
            A function that restores the state once more, for a run that continues in the middle of an epoch: the hooks of
            ``on_epoch_begin`` were called before it was taken, and are called again. Otherwise None.

        Raises:
            ResumeError: If data, callbacks, metrics or optimizer differ from those of the run.
        """
        return model_io.load_training_state(self, content, path)

    def _generator_sources(self) -> dict[str, Any]:
        """Return where random generators may be: what the user has given; see ``walk``."""
        attributes = {name: value for name, value in vars(self).items() if not is_internal(type(value))}
        del attributes["last_fit"]
        return attributes | {"loss": self.loss, "class": type(self)}

    # Inspection

    @property
    def history(self) -> History:
        """The numbers of each epoch, over all fits."""
        return self.recorded_history.with_model(self)

    @property
    def progress(self) -> float:
        """Share of the updates of this fit that are finished, from 0 to 1, for ramps and annealing in a step or a callback.

        It is exact in a resumed run. For data without a length it changes between two epochs only.
        """
        return self.state.progress(self.callbacks.params.get("steps"))

    @property
    def current_window(self) -> list[Any]:
        """The batches of the current update or evaluation step, on the device, for callbacks; see ``current_batch``."""
        return [self.strategy.to_device(batch) for batch in self.metrics.current_batches()]

    @property
    def current_batch(self) -> Any:
        """The batch of the current step of ``fit`` or ``evaluate``, on the device, for the batch hooks of callbacks.

        With gradient accumulation it is the last batch of the window, and ``current_window`` has all of them. Batches are not
        stored after the step. In ``on_predict_batch_end``, ``logs["batch"]`` is the batch.

        Raises:
            RuntimeError: If no step is running.

        Examples:
            >>> class ShowImages(easytorch.callbacks.Callback):
            ...     def on_test_batch_end(self, batch, logs=None):
            ...         if batch == 0:
            ...             x, y, _ = self.model.unpack(self.model.current_batch)
            ...             print(x.shape, self.model(x).shape)
        """
        batches = self.metrics.current_batches()
        if not batches:
            raise RuntimeError(
                "There is no current batch. Read model.current_batch in on_train_batch_begin, on_before_optimizer_step, "
                "on_train_batch_end, on_test_batch_begin or on_test_batch_end of a callback."
            )
        return self.strategy.to_device(batches[-1])

    @property
    def current_outputs(self) -> Any:
        """What the last ``train_step`` or ``test_step`` returned, detached and on the device, for callbacks; None before it."""
        return self.metrics.current_outputs()

    def summary(self, x: DataLike | None = None, **options: Any) -> Any:
        """Print the table of layers and an estimate of memory, and return the statistics of torchinfo.

        Args:
            x: Inputs, a ``DataLoader``, whose first batch is used, or the shape of a batch of floats such as ``(32, 20)``, which
                determine the shapes in the table. By default those of the last fit; without any there are no shapes.
            options: Passed to ``torchinfo.summary``.

        Examples:
            >>> statistics = model.summary((20, 20))
        """
        return print_summary(self, x, **options)

    def log_names(self) -> list[str]:
        """Return the names of the logs of the current fit, apart from those added by custom steps and callbacks.

        Examples:
            >>> class PrintNames(Callback):
            ...     def on_train_begin(self, logs=None):
            ...         print(self.model.log_names())
            >>> history = model.fit(x, y, callbacks=[PrintNames()], verbose=0)
        """
        losses = [*optimizer_group.loss_names(self.optimizer), *self.loss.term_names()]
        prefixes, rates = (
            self.callbacks.params["validation_prefixes"],
            optimizer_group.learning_rates(self.require_optimizer("fit")),
        )
        val_names = [f"{prefix}{name}" for prefix in prefixes for name in (*losses, *self.metrics.evaluation_names)]
        return [*losses, *self.metrics.names, *val_names, *rates]

    def logs_are_open(self) -> bool:
        """Return whether a custom step or callback may add names to the logs."""
        steps = ("train_step", "test_step", "update")
        return any(map(self.overrides, steps)) or self.callbacks.has_user_callbacks()

    def overrides(self, method: str) -> bool:
        """Return whether a subclass overrides ``method``, or has a step for each optimizer instead of ``train_step``."""
        has_steps = method == "train_step" and bool(optimizer_group.step_names(self.optimizer))
        return has_steps or not is_internal(getattr(type(self), method))

    # Tools. Each is a function of a package that is imported at the first call.

    def report(
        self,
        x: DataLike,
        y: TargetLike | None = None,
        *,
        by: Any = None,
        output: str | None = None,
        threshold: float | None = None,
        batch_size: int | None = None,
        bootstrap: int = 1000,
        seed: int = 0,
        verbose: int | str = "auto",
    ) -> Report:
        """Return scores, errors and curves of the predictions for ``x``, each number with a 95% interval.

        Args:
            x: Data of any kind that ``fit`` takes.
            y: The targets, unless ``x`` contains them.
            by: Columns by which the score is divided into slices: a dict of arrays with one value per sample or of functions of
                ``x``, names of columns of the frame ``x``, or a frame.
            output: The output to report on, if there are several losses.
            threshold: For binary labels, the probability above which a label is 1; None for 0.5.
            batch_size: Samples per batch, 32 by default.
            bootstrap: Repeats of the bootstrap for intervals of what is no share; 0 for none.
            seed: Seed of the bootstrap.
            verbose: See ``predict``.

        Raises:
            ImportError: If scikit-learn is not installed.
            ValueError: If there is no report for the loss, or the data has no targets.

        Examples:
            >>> report = model.report(x_test, y_test)
            >>> comparison = report.compare(old_model.report(x_test, y_test))
        """
        from easytorch.reports import report_on

        self._require_arguments("report", FOR_PREDICTION)
        return report_on(
            self, x, y, by=by, output=output, threshold=threshold, batch_size=batch_size, bootstrap=bootstrap, seed=seed,
            verbose=verbose,
        )  # fmt: skip

    def check(
        self,
        x: DataLike | None = None,
        y: TargetLike | None = None,
        *,
        batch_size: int | None = None,
        validation_data: ValidationDataLike | None = None,
        validation_split: float = 0.0,
        steps_per_epoch: int | None = None,
        class_weight: ClassWeightLike | None = None,
        sample_weight: SampleWeightLike | None = None,
        shuffle: bool | None = None,
        ignore: Collection[str] = (),
        checks: Iterable[Check] = (),
    ) -> CheckReport:
        """Return mistakes in the model and its data, with a fix for each, before training; everything stays as it is.

        Args:
            x: The data, as in ``fit``. Samples are read, and a few updates are tried on one batch.
            y: The targets, unless ``x`` contains them.
            batch_size: See ``fit``; so are all arguments up to ``shuffle``.
            validation_data: See ``fit``.
            validation_split: See ``fit``.
            steps_per_epoch: See ``fit``.
            class_weight: See ``fit``.
            sample_weight: See ``fit``.
            shuffle: See ``fit``.
            ignore: Names of checks that do not run: ``ignore=["unbalanced_labels"]``.
            checks: Further checks: functions of a ``Probe`` that yield findings.

        Raises:
            RuntimeError: If the model has no optimizer, or several processes train together.
            ValueError: If an argument is invalid, or the data is a generator, which can be read only once.

        Examples:
            >>> for finding in model.check(x, y).problems:
            ...     print(finding.message, finding.fix)
        """
        from easytorch.checks import check_model

        return check_model(
            self, x, y, batch_size=batch_size, validation_data=validation_data, validation_split=validation_split,
            steps_per_epoch=steps_per_epoch, class_weight=class_weight, sample_weight=sample_weight, shuffle=shuffle,
            ignore=ignore, checks=checks,
        )  # fmt: skip

    def explain(
        self, x: DataLike | None = None, y: TargetLike | int | None = None, *sizes: int, **options: Unpack[FitOptions]
    ) -> Explanation:
        """Return in about a dozen sentences what ``fit`` will do with these arguments.

        Args:
            x: The data, as in ``fit``. Without any argument, the sentences are about ``compile`` alone.
            y: The targets, unless ``x`` contains them.
            sizes: ``batch_size`` and ``epochs``, as in ``fit``.
            options: The other arguments of ``fit``.

        Raises:
            RuntimeError: If ``compile`` was not called.
            ValueError, TypeError: If an argument is invalid, as in ``fit``.

        Examples:
            >>> print(model.explain(x, y, epochs=5, validation_split=0.2))
        """
        from easytorch.scripts import explain

        return explain(self, x, y, sizes, options)

    def to_script(
        self, x: DataLike | None = None, y: TargetLike | int | None = None, *sizes: int, **options: Unpack[FitOptions]
    ) -> Script:
        """Return the program in plain PyTorch that trains the same weights from the same seed, bit for bit, without easytorch.

        It expects the variables ``net`` and, as the data was passed, ``x`` and ``y``, ``train_data`` or ``train_loader``; for
        validation ``x_val`` and ``y_val``, ``val_data`` or ``val_loader``. Functions of the user are called by name.

        Args:
            x: The data, as in ``fit``, for the program of a new run. Without any argument, it is that of the last fit.
            y: The targets, unless ``x`` contains them.
            sizes: ``batch_size`` and ``epochs``, as in ``fit``.
            options: The other arguments of ``fit``.

        Raises:
            ValueError: If the program would not do exactly what ``fit`` does, or there are neither arguments nor a last fit.

        Examples:
            >>> model.to_script(x, y, epochs=5, validation_split=0.2).save("train.py")
        """
        from easytorch.scripts import to_script

        return to_script(self, x, y, sizes, options)

    def find_lr(
        self,
        x: DataLike | None = None,
        y: TargetLike | None = None,
        *,
        min_lr: float = 1e-6,
        max_lr: float = 10.0,
        updates: int = 100,
        runs: int = 6,
        batch_size: int | None = None,
        class_weight: ClassWeightLike | None = None,
        sample_weight: SampleWeightLike | None = None,
        shuffle: bool | None = None,
        verbose: int | str = "auto",
    ) -> LearningRates:
        """Return a learning rate for training on ``x``, from a range test and short trainings; the model stays as it is.

        Args:
            x: The training data, as in ``fit``. It is read several times.
            y: The targets, unless ``x`` contains them.
            min_lr: The first rate of the range test.
            max_lr: The last rate of the range test.
            updates: Number of updates of the range test and of each short training, at least 20.
            runs: Number of short trainings at most; with 0 the suggestion is a quarter of the rate with the lowest loss.
            batch_size: See ``fit``.
            class_weight: See ``fit``.
            sample_weight: See ``fit``.
            shuffle: See ``fit``.
            verbose: 0 displays nothing. ``"auto"`` displays the running training on a line of a terminal or notebook that
                disappears, and a line per training everywhere else; 2 displays lines everywhere.

        Raises:
            RuntimeError: If the model has no optimizer, or ``fit`` is running.
            ValueError: If there are several losses, the optimizer determines the length of its steps (LBFGS), the data can be
                read only once, or the loss does not fall.

        Examples:
            >>> model.optimizer.lr = model.find_lr(x, y).suggestion
        """
        from easytorch.tuning.learning_rates import find_lr

        return find_lr(
            self, x, y, min_lr=min_lr, max_lr=max_lr, updates=updates, runs=runs, batch_size=batch_size,
            class_weight=class_weight, sample_weight=sample_weight, shuffle=shuffle, verbose=verbose,
        )  # fmt: skip

    def find_batch_size(
        self,
        x: DataLike,
        y: TargetLike | None = None,
        *,
        min_size: int = 8,
        max_size: int | None = None,
        class_weight: ClassWeightLike | None = None,
        sample_weight: SampleWeightLike | None = None,
        shuffle: bool | None = None,
        verbose: int | str = "auto",
    ) -> BatchSizes:
        """Return the samples per second of several batch sizes, and the largest that fits; the model stays as it is.

        Args:
            x: Arrays, a dataset, or a ``DataLoader``, whose batch size is replaced.
            y: The targets of arrays.
            min_size: The first size; each further one is twice as large.
            max_size: The last size; None for the number of samples.
            class_weight: See ``fit``.
            sample_weight: See ``fit``.
            shuffle: See ``fit``.
            verbose: 0 displays nothing. ``"auto"`` displays the running measurement on a line of a terminal or notebook that
                disappears, and a line per measurement everywhere else; 2 displays lines everywhere.

        Raises:
            RuntimeError: If the model has no optimizer, or ``fit`` is running.
            ValueError: If the data contains batches whose size cannot be changed, or there are several processes.
            torch.OutOfMemoryError: If the first size does not fit.

        Examples:
            >>> model.fit(x, y, batch_size=model.find_batch_size(x, y).suggestion)
        """
        from easytorch.tuning.sizes import find_batch_size

        return find_batch_size(
            self, x, y, min_size=min_size, max_size=max_size, class_weight=class_weight, sample_weight=sample_weight,
            shuffle=shuffle, verbose=verbose,
        )  # fmt: skip

    def tune_speed(
        self,
        x: DataLike,
        y: TargetLike | None = None,
        *,
        seconds: float = 60.0,
        batch_size: int | None = None,
        class_weight: ClassWeightLike | None = None,
        sample_weight: SampleWeightLike | None = None,
        shuffle: bool | None = None,
        verbose: int | str = "auto",
    ) -> Speeds:
        """Return which settings make this program faster on this machine; the model stays as it is.

        Args:
            x: The training data, as in ``fit``. It is read several times.
            y: The targets, unless ``x`` contains them.
            seconds: The time for all measurements.
            batch_size: See ``fit``.
            class_weight: See ``fit``.
            sample_weight: See ``fit``.
            shuffle: See ``fit``.
            verbose: 0 displays nothing. ``"auto"`` displays the running measurement on a line of a terminal or notebook that
                disappears, and a line per measurement everywhere else; 2 displays lines everywhere.

        Raises:
            RuntimeError: If the model has no optimizer, or ``fit`` is running.
            ValueError: If the data can be read only once, or there are several processes.

        Examples:
            >>> print(model.tune_speed(train_loader))
        """
        from easytorch.tuning.speed import tune_speed

        return tune_speed(
            self, x, y, seconds=seconds, batch_size=batch_size, class_weight=class_weight, sample_weight=sample_weight,
            shuffle=shuffle, verbose=verbose,
        )  # fmt: skip

    def export(
        self,
        path: PathLike,
        x: DataLike | None = None,
        *,
        probabilities: bool = False,
        dynamic: Sequence[int] = (0,),
        tolerance: float | None = None,
    ) -> Path:
        """Write the module as a program for other runtimes whose outputs are those of ``predict``, and return its path.

        Args:
            path: The file to write. ``.onnx`` for ONNX, run by onnxruntime; ``.pt2`` for ``torch.export``.
            x: Example inputs of any kind that ``predict`` takes; by default those of the last fit.
            probabilities: Whether to add the softmax, exp or sigmoid that belongs to the loss, as ``predict_proba`` does.
            dynamic: The dimensions of the inputs whose size may vary. By default the batch; ``(0, 1)`` also the length.
            tolerance: The largest difference from ``predict``, relative to the largest value of the output. By default 1e-4, or
                with mixed precision, which the program does not use, 0.02 (``"fp16"``) and 0.1 (``"bf16"``).

        Raises:
            ImportError: If a package that the format needs is not installed.
            ValueError: If the suffix of ``path`` is unknown, or there is no example.
            RuntimeError: If torch cannot trace the module, or the program does not return what ``predict`` returns; an existing
                file is unchanged then.

        Examples:
            >>> path = model.export("digits.onnx", x, probabilities=True)
        """
        from easytorch.export import export_model

        return export_model(self, path, x, probabilities=probabilities, dynamic=dynamic, tolerance=tolerance)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        report: Report | None = None,
        private: bool | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> str:
        """Upload the weights and a model card to the Hugging Face Hub, and return the address of the commit.

        All ranks must call this; the main rank uploads.

        Args:
            repo_id: The repository, ``"user/name"``. It is created if it does not exist.
            report: What ``report`` returned; its scores and intervals become part of the model card.
            private: Whether a new repository is private; None for the default of the user.
            revision: The branch; None for the main branch.
            token: An access token; by default that of ``hf auth login``.

        Raises:
            ImportError: If huggingface_hub is not installed.

        Examples:
            >>> model.push_to_hub("ada/digits", report=model.report(x_test, y_test))  # doctest: +SKIP
        """
        from easytorch.export import hub

        return hub.push(self, repo_id, report=report, private=private, revision=revision, token=token)

    @classmethod
    def from_hub(
        cls,
        module: nn.Module,
        source: PathLike,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        device: DeviceLike = "auto",
    ) -> Self:
        """Return a model with the weights that ``push_to_hub`` has uploaded. No code of the repository is run.

        Args:
            module: A module of the same class, whose weights are replaced.
            source: The repository, ``"user/name"``, or a folder with its files.
            revision: A branch, tag or commit; None for the main branch.
            token: An access token for private repositories.
            device: As in ``Model``.

        Raises:
            ImportError: If huggingface_hub is not installed.
            FileError: If the files are missing, damaged, or belong to another module.

        Examples:
            >>> model = easytorch.Model.from_hub(make_net(), "ada/digits")  # doctest: +SKIP
        """
        from easytorch.export import hub

        return hub.load(cls, module, source, revision=revision, token=token, device=device)

    # Methods that Python calls

    def __repr__(self) -> str:
        status = "not compiled"
        if self.compile_args is not None:
            title = "no optimizer" if self.optimizer is None else type(self.optimizer).__name__
            status = f"{title} on {self.loss!r}"
        epochs = f"{self.state.epoch} epoch{'s' * (self.state.epoch != 1)}"
        return f"{type(self).__name__}({type(self.module).__name__} on {self.device}, {status}, {epochs})"

    def _repr_html_(self) -> str:
        """Return a small table for a notebook."""
        return format_model(self)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle or a copy contains: no data, and nothing of a running fit."""
        return model_io.pickle_state(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self.optimizer is not None:  # a copied optimizer has no hooks
            for schedule in self.schedules:
                schedule.watch(schedule.optimizer_in(self.optimizer))

    @hide_internal_frames
    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not is_internal(cls):
            api_errors.check_steps(cls)
            adapt_overrides(cls)

    if not TYPE_CHECKING:  # type checkers must still find misspelled attributes

        @hide_internal_frames
        def __getattr__(self, name: str) -> Any:
            if "module" not in vars(self):
                raise AttributeError(
                    f"{type(self).__name__} has no {name!r}, because Model is not initialized. Call super().__init__("
                    "module) in the first line of __init__."
                )
            hints, known = api_hints.ATTRIBUTE_HINTS, dir(type(self))
            raise api_errors.missing_attribute_error(f"A {type(self).__name__}", name, hints, known)

    @hide_internal_frames
    def __setattr__(self, name: str, value: Any) -> None:
        if name == "module" and "module" in vars(self):
            raise AttributeError(
                "The module of a model cannot be replaced. Create a new model: Model(net).compile(...)."
            )
        if name == "loss" and not isinstance(value, Criterion):
            raise TypeError(f"model.loss cannot be set to {value!r}. Choose the loss by compile(optimizer, loss).")
        if isinstance(value, torch.optim.Optimizer):
            optimizers.add_rate_attributes(value)
        if is_internal(type(self)):
            api_errors.check_assignment(name)
        if name.startswith("stop") and name not in vars(self):
            api_errors.check_flag(name)
        super().__setattr__(name, value)


def collect_callbacks(callbacks: Any, verbose: int | str) -> list[Any]:
    """Return the callbacks of the user and those that print progress."""
    return [*as_callback_list(callbacks), *progress_callbacks(verbose)]


COMPILE_ARGUMENTS = api_errors.argument_names(Model.compile)
forward_verbs(Model)  # history.evaluate(...), scores.save(...)

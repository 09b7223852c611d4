"""The loop, and the face it shows: put a module into a ``Model``, then ``compile``, ``fit``, ``evaluate``, ``predict``.

Read the loop from ``fit`` downwards; each method is one line of the one above it, and each may be overridden:

    fit          epochs: train, validate, tell the callbacks
    train_epoch  one pass over the data, one update for each window of batches
    update       one optimizer update from the batches of a window
    train_step   one batch: from data to {"loss": ..., and whatever else is to be logged}

    evaluate -> test_epoch -> test_step          predict -> predict_step
"""

from __future__ import annotations

import numbers
import os
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import nn

from easytorch import data, optimizers
from easytorch._utils import torch_private, train_mode
from easytorch._utils.api_hints import explain_bad_arguments
from easytorch._utils.forward_signature import ForwardSignature
from easytorch._utils.pytree import map_leaves, to_numpy
from easytorch.callbacks.base import Callback, CallbackList, as_callback_list
from easytorch.callbacks.checkpoint import BackupAndRestore
from easytorch.callbacks.lr_schedulers import LRScheduler
from easytorch.callbacks.progress import progress_callbacks
from easytorch.data.batch import EMPTY_DATA, Batch, batch_size, length, unpack
from easytorch.data.epoch_iterator import EpochIterator
from easytorch.data.loader import make_fit_data, one_batch, validated_epochs
from easytorch.data.predictions import OutputCollector, check_one_row_per_sample, inputs, warn_if_shuffled
from easytorch.diagnostics.module_checks import check_module
from easytorch.diagnostics.torch_errors import translate_errors
from easytorch.losses.criterion import Criterion, ModuleLoss, resolve_loss
from easytorch.metrics.aggregation import read
from easytorch.metrics.collection import MetricCollection
from easytorch.metrics.names import resolve_metrics
from easytorch.strategies.base import Strategy
from easytorch.strategies.device import check_matmul, check_numbers, pick_device, set_matmul
from easytorch.training import session
from easytorch.training.looking import Looking
from easytorch.training.model_io import Saving
from easytorch.training.results import History, Scores
from easytorch.training.state import TrainState


@explain_bad_arguments(
    "__init__", "compile", "fit", "evaluate", "predict", "train_on_batch", "test_on_batch", "save", "load"
)
class Model(Looking, Saving):
    """A module and all it takes to train it.

    Args:
        module: Any ``torch.nn.Module``; it is brought to the device and otherwise stays yours.
        device: ``"auto"`` (the accelerator, else the CPU), or a device by name or object.

    Attributes:
        module: Your module.
        optimizer: What ``compile`` made of its argument, as ``loss`` and ``metrics``.
        strategy: Where and in which precision steps run.
        state: ``epoch`` and ``step`` (updates) so far.
        stop_training: Set it True, in a callback, to end ``fit`` after the update that runs.

    Examples:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
        >>> model = Model(net).compile("adam", "cross_entropy", metrics=["accuracy"])
    """

    def __init__(self, module: nn.Module, device: str | torch.device = "auto") -> None:
        check_module(module)
        self.module = module
        self.signature = ForwardSignature.of(module)
        self.device = pick_device(device)
        self.strategy = Strategy(self.device)
        self.strategy.prepare(module)
        self.state = TrainState()
        self.stop_training = False
        self.optimizer: torch.optim.Optimizer | None = None
        self.loss: Criterion = ModuleLoss()
        self.metrics = MetricCollection([], self.loss)
        self.schedules: list[LRScheduler] = []
        self.callbacks = CallbackList([], self, {})
        self._history = History()
        self._compiled: dict[str, Any] | None = None
        self.feed: EpochIterator | None = None  # the training data, while fit runs
        self.last_fit: dict[str, Any] = {}

    def compile(
        self,
        optimizer: Any = None,
        loss: Any = None,
        metrics: Any = (),
        *,
        lr: float | None = None,
        loss_weights: Any = None,
        weighted_metrics: Any = (),
        scheduler: Any = None,
        clip_grad_norm: float | None = None,
        clip_grad_value: float | None = None,
        gradient_accumulation_steps: int = 1,
        precision: str = "fp32",
        jit_compile: bool = False,
        strategy: str | Strategy = "auto",
        channels_last: bool = False,
        float32_matmul_precision: str | None = None,
    ) -> Model:
        """Choose how to train, and return the model. The weights stay as they are.

        Args:
            optimizer: A name, with torch's defaults (``"adam"``); a ``torch.optim`` object; or a function that makes one
                from parameters. None for a model that is only evaluated.
            loss: A name (``"cross_entropy"``, on logits); a ``torch.nn`` loss; any ``f(y_pred, y)``; a list or dict of
                these, one for each output; None when the module, or ``train_step``, makes it.
            metrics: Names, functions ``f(y_pred, y)``, ``easytorch.Metric`` or torchmetrics objects; by output where the
                losses are.
            lr: The learning rate; None is the optimizer's default.
            loss_weights: The weight of each output's loss.
            weighted_metrics: Metrics that take sample and class weights into account.
            scheduler: ``"warmup_cosine"``, ``"cosine"`` or ``"one_cycle"``; a ``torch.optim.lr_scheduler`` or a function
                that makes one from the optimizer, stepped per update or epoch as its class demands; or a
                ``callbacks.LRScheduler``, which says so.
            clip_grad_norm: The largest norm of all gradients together.
            clip_grad_value: The largest value of a single gradient.
            gradient_accumulation_steps: Batches in one update, which then counts as one large batch.
            precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
            jit_compile: Run the module through ``torch.compile``.
            strategy: ``"auto"``: one device, or ``"ddp"`` in a process that ``torchrun`` has started. ``"one"``, ``"ddp"``,
                ``"fsdp"``, or an ``easytorch.Strategy``, such as ``DataParallel(sync_batchnorm=True)``.
            channels_last: Keep images and the weights of convolutions with the channels last in memory, which is faster on most
                devices. Shapes and files stay as they are.
            float32_matmul_precision: ``"high"`` lets products of float32 matrices use TF32 where the device has it, ``"medium"``
                bfloat16; ``"highest"`` neither. It holds for the whole program; None changes nothing.

        Raises:
            ValueError: If a name is unknown, with the nearest that is; nothing has changed then.
            TypeError: If an argument is of a kind that cannot be used.
        """
        elsewhere = ["self", "precision", "jit_compile", "strategy", "channels_last", "float32_matmul_precision"]
        elsewhere += [] if isinstance(scheduler, str) else ["scheduler"]  # an object, which no file holds
        recipe = {key: value for key, value in locals().items() if key not in (*elsewhere, "elsewhere")}
        check_numbers(gradient_accumulation_steps, clip_grad_norm=clip_grad_norm, clip_grad_value=clip_grad_value)
        criterion = resolve_loss(loss, loss_weights)
        measures = resolve_metrics(metrics, criterion, weighted_metrics)
        place = Strategy.of(strategy, self.device, precision, jit_compile)
        check_matmul(float32_matmul_precision)
        made = optimizers.resolve(optimizer, self.module, lr)
        schedules = [LRScheduler.of(scheduler, made)] if scheduler is not None else []
        place.channels_last = channels_last
        place.prepare(self.module, made)
        set_matmul(float32_matmul_precision)
        self.loss, self.metrics, self.strategy, self.device = criterion, measures, place, place.device
        self.optimizer, self.schedules = made, schedules
        self.clip_grad_norm, self.clip_grad_value = clip_grad_norm, clip_grad_value
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self._compiled = recipe
        return self

    # The loop

    def fit(
        self,
        x: Any,
        y: Any = None,
        *,
        epochs: int = 1,
        batch_size: int | None = None,
        validation_data: Any = None,
        validation_split: float = 0.0,
        validation_freq: int | Collection[int] = 1,
        validation_steps: int | None = None,
        steps_per_epoch: int | None = None,
        class_weight: Any = None,
        sample_weight: Any = None,
        shuffle: bool | None = None,
        initial_epoch: int | None = None,
        callbacks: Iterable[Callback] = (),
        resume: str | os.PathLike[str] | None = None,
        on_interrupt: str = "return",
        verbose: int | str = "auto",
    ) -> History:
        """Train, and return the history, which goes on over several fits.

        Args:
            x: A ``DataLoader``, a ``Dataset``, tensors, NumPy arrays or pandas frames, dicts or tuples of these, ``(x, y)``
                in one tuple, a Hugging Face dataset, a generator, a function that returns one, or a list of batches.
            y: The targets, where ``x`` does not bring them; a whole number here means ``epochs``: ``fit(loader, 5)``.
            epochs: How many more epochs to train; with ``initial_epoch`` the number of the last one, as in Keras.
            batch_size: Samples in a batch, 32 by default; not for data that comes in batches.
            validation_data: Measured after epochs; anything that ``x`` may be.
            validation_split: Or the share of the training data to use for that: always the same samples, every class
                with its share.
            validation_freq: Validate every so many epochs, or after exactly these, counted from 1.
            validation_steps: Validate on so many batches; None is all.
            steps_per_epoch: Updates in an epoch; None is one pass over the data.
            class_weight: ``{class: weight}``, one weight for each class, or ``"balanced"``.
            sample_weight: A weight for each sample. A sample's loss is multiplied by its weights and averaged over the
                number of samples.
            shuffle: Draw the samples in random order; by default yes, where nothing gave them an order.
            initial_epoch: The epoch, from 0, to start at; by default where the model is.
            callbacks: Objects that are told what happens; see ``easytorch.callbacks``.
            resume: A folder in which the run is kept: go on exactly there if it has been stopped, else begin. Or a file
                to go on from.
            on_interrupt: Ctrl-C ends training after the update that runs; then ``"return"`` the history, or ``"raise"``.
            verbose: 0 nothing; 1 or ``"auto"`` a live bar in a terminal, lines elsewhere; 2 one line for each epoch.

        Raises:
            RuntimeError: If the model has no optimizer yet.
            ValueError, TypeError: If an argument or the data does not fit, told before anything has changed.
        """
        optimizer = self._require_optimizer("fit")
        if isinstance(y, numbers.Integral):
            y, epochs = None, int(y)
        feed, validation = make_fit_data(
            x, y, batch_size, shuffle, sample_weight, class_weight, validation_data, validation_split,
            self.gradient_accumulation_steps, steps_per_epoch, validation_steps, epochs, self.strategy.group, self.unpack,
        )  # fmt: skip
        validated = validated_epochs(validation_freq if validation is not None else ())
        listeners = [
            *self.schedules,
            *as_callback_list(callbacks),
            *BackupAndRestore.at(resume),
            *progress_callbacks(verbose),
        ]
        state = self.state.planned(epochs, initial_epoch)
        with session.fit_session(self, listeners, state, feed, validation, verbose, on_interrupt):
            for epoch in feed.epochs(self.state):
                self.callbacks.on_epoch_begin(epoch, {})
                logs = self.train_epoch(feed)
                if validated(epoch):
                    scores = self.test_epoch(validation, validation_steps)
                    logs |= {f"val_{name}": value for name, value in scores.items()}
                logs["lr"] = float(optimizer.param_groups[0]["lr"])
                self.state.end_epoch()
                self.metrics.reset()
                self.callbacks.on_epoch_end(epoch, self._history.append(epoch, logs, self.strategy.timer))
                if self.stop_training:
                    break
        return self.history

    def train_epoch(self, feed: Iterable[list[Any]]) -> dict[str, float]:
        """Pass once over the training data, and return the means over all its samples."""
        for window in feed:  # of a resumed epoch, the rest
            batch = self.state.epoch_step
            self.callbacks.on_train_batch_begin(batch, {})
            self.update(window)
            self.state.advance()
            self.callbacks.on_train_batch_end(batch, self.metrics.logs)
            if self.stop_training:
                break
        return read(self.strategy.merge_metrics(self.metrics).compute())

    def update(self, window: list[Any]) -> None:
        """Update the weights once, by the gradients of all batches in ``window``, as if they were one."""
        assert self.optimizer is not None
        sizes = [self.batch_size(batch) for batch in window]
        shares = self.strategy.loss_weights(self.loss, sizes, map(self.unpack, window))
        for i, (batch, size, share) in enumerate(zip(window, sizes, shares, strict=True)):
            with self.strategy.accumulating(sync=i == len(window) - 1):
                outputs = self.strategy.run(self.train_step, batch)  # on the device, in the precision
                self.strategy.backward(outputs["loss"], share)
            self.metrics.record(outputs, size)
        self.strategy.unscale(self.optimizer)
        self.callbacks.on_before_optimizer_step()
        self.strategy.clip(self.module, self.clip_grad_norm, self.clip_grad_value)
        self.strategy.step(self.optimizer)
        torch_private.zero_grad(self.optimizer)

    def train_step(self, batch: Any) -> dict[str, Any]:
        """Return the loss of ``batch``, to be optimized, as ``"loss"``; whatever else is in the dict is logged."""
        x, y, sample_weight = self.unpack(batch)
        y_pred = self(x)
        self.metrics.update(y_pred, y, sample_weight)
        return self.loss.terms(y_pred, y, sample_weight)  # {"loss": ...}, and of several outputs each one's own

    def test_epoch(self, loader: Iterable[Any], steps: int | None = None) -> dict[str, float]:
        """Pass once over ``loader`` in eval mode, and return the means over all its samples."""
        batches = self.strategy.batches(loader, steps)
        self.callbacks.params["test_steps"] = length(batches)
        self.callbacks.on_test_begin({})
        with session.evaluation_session(self):
            for i, batch in enumerate(batches):
                self.callbacks.on_test_batch_begin(i, {})
                self.metrics.record(self.strategy.run(self.test_step, batch), self.batch_size(batch))
                self.callbacks.on_test_batch_end(i, self.metrics.logs)
            scores = read(self.strategy.merge_metrics(self.metrics).compute())
        if not scores:
            raise ValueError(EMPTY_DATA)
        self.callbacks.on_test_end(scores)
        return scores

    def test_step(self, batch: Any) -> dict[str, Any]:
        """Return the loss of ``batch`` and what else is to be logged: the same as in training, unless you override it."""
        return self.train_step(batch)

    def predict_step(self, batch: Any) -> Any:
        """Return the module's outputs for ``batch``, of which only the inputs are used."""
        return self(self.unpack(batch).x)

    def __call__(self, x: Any) -> Any:
        """Call the module, compiled or not, with ``x``: one tensor, a tuple of arguments, or a dict of them."""
        return self.signature.call(self.strategy.forward, x)

    def unpack(self, batch: Any) -> Batch:
        """Split a batch into inputs, targets and sample weights; what is missing is None."""
        return unpack(batch, self.signature)

    def batch_size(self, batch: Any) -> int:
        """Return the number of samples in ``batch``, by which its loss is weighted."""
        return batch_size(batch)

    # Measuring and predicting

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        *,
        batch_size: int | None = None,
        sample_weight: Any = None,
        steps: int | None = None,
        callbacks: Iterable[Callback] = (),
        verbose: int | str = "auto",
    ) -> Scores:
        """Return the loss and the metrics, in eval mode; ``loss, accuracy = model.evaluate(...)``.

        Args:
            x: Anything that ``fit`` takes; None is the validation data of the last fit, else its training data.
            y: The targets, where ``x`` does not bring them.
            batch_size: Samples in a batch, 32 by default.
            sample_weight: A weight for each sample.
            steps: Measure on so many batches; None is all.
            callbacks: Objects that are told what happens.
            verbose: As in ``fit``.
        """
        self._require_compiled("evaluate")
        if x is None:
            name, loader = self._fitted_data(y=y, batch_size=batch_size, sample_weight=sample_weight)
        else:
            name, loader = "the given data", data.as_loader(x, y, sample_weight, batch_size=batch_size)
        self.loss.prepare(data.all_targets(loader))
        listeners = CallbackList(
            [*as_callback_list(callbacks), *progress_callbacks(verbose)], self, {"verbose": verbose, "data": name}
        )
        with session.reporting_errors(self, listeners):
            return Scores(self.test_epoch(loader, steps), self, name)

    def predict(
        self,
        x: Any,
        *,
        batch_size: int | None = None,
        steps: int | None = None,
        to: str | os.PathLike[str] | None = None,
        callbacks: Iterable[Callback] = (),
        verbose: int | str = "auto",
    ) -> Any:
        """Return the module's outputs as NumPy arrays, in eval mode, in the structure and the order of the module's own.

        Args:
            x: Inputs: anything that ``fit`` takes; targets are not used.
            batch_size: Samples in a batch, 32 by default.
            steps: Predict so many batches; None is all.
            to: A ``.npy`` file for outputs that do not fit in memory; what is returned reads from it. Of several outputs
                each gets a file, ``name.0.npy`` or ``name.key.npy``.
            callbacks: Objects that are told what happens.
            verbose: 0 nothing; otherwise a live bar, in a terminal.
        """
        return self._predict(x, lambda y_pred: y_pred, batch_size, steps, callbacks, verbose, OutputCollector.to(to))

    def predict_proba(self, x: Any, *, batch_size: int | None = None, verbose: int | str = "auto") -> Any:
        """Return probabilities: the outputs after the softmax, exp or sigmoid that the loss implies."""
        return self._predict(x, self.loss.probabilities, batch_size, None, (), verbose, OutputCollector())

    def predict_classes(self, x: Any, *, batch_size: int | None = None, verbose: int | str = "auto") -> Any:
        """Return the most probable class of each sample; 0 or 1 for each label of a binary loss."""
        return self._predict(x, self.loss.classes, batch_size, None, (), verbose, OutputCollector())

    def _predict(
        self,
        x: Any,
        finish: Callable[[Any], Any],
        batch_size: int | None,
        steps: int | None,
        callbacks: Any,
        verbose: Any,
        gathered: OutputCollector,
    ) -> Any:
        loader = warn_if_shuffled(data.as_loader(inputs(x, self.signature), batch_size=batch_size))
        listeners = CallbackList(
            [*as_callback_list(callbacks), *progress_callbacks(verbose)], self, {"verbose": verbose}
        )
        gathered, batches = self.strategy.output_collector(gathered), self.strategy.batches(loader, steps)
        with session.reporting_errors(self, listeners), train_mode.in_eval_mode(self.module), torch.no_grad(), gathered:
            self.callbacks.params["test_steps"] = length(batches)
            self.callbacks.on_predict_begin({})
            for i, batch in enumerate(batches):
                self.callbacks.on_predict_batch_begin(i, {})
                outputs = finish(self.strategy.run(self.predict_step, batch))
                gathered.add(map_leaves(to_numpy, check_one_row_per_sample(outputs, batch)))
                self.callbacks.on_predict_batch_end(i, {"outputs": outputs})
            self.callbacks.on_predict_end({})
        return gathered.result()

    # One batch at a time

    def train_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None) -> Scores:
        """Update the weights once, by the whole of ``x`` and ``y``, and return the scores of this batch."""
        self._require_optimizer("train_on_batch")
        batch = one_batch(x, y, sample_weight)
        self.metrics.reset()
        with session.update_session(self, CallbackList([], self, {})):
            self.update([batch])
            self.state.step += 1
        return Scores(read(self.metrics.compute()), self, "this batch")

    def test_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None) -> Scores:
        """Return the scores of one batch, in eval mode."""
        self._require_compiled("test_on_batch")
        with translate_errors(self.module):
            return Scores(self.test_epoch([one_batch(x, y, sample_weight)]), self, "this batch")

    def predict_on_batch(self, x: Any) -> Any:
        """Return the outputs for one batch as NumPy arrays, in eval mode."""
        return self._predict([one_batch(x)], lambda y_pred: y_pred, None, None, (), 0, OutputCollector())

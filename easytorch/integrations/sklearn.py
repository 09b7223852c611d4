"""Estimators of scikit-learn that train a torch module."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets, type_of_target
    from sklearn.utils.validation import _check_sample_weight, check_array, check_is_fitted, column_or_1d, validate_data
except ImportError as error:
    raise ImportError(
        'easytorch.integrations.sklearn needs scikit-learn 1.6 or later: pip install "easytorch-fit[sklearn]"'
    ) from error

from easytorch._utils.integers import boolean, positive_int
from easytorch._utils.pytree import describe, map_leaves
from easytorch._utils.registry import did_you_mean, quote_list
from easytorch._utils.rng import get_rng_state, preserve_rng_state, set_rng_state
from easytorch._utils.seeding import set_seed
from easytorch._utils.tracebacks import is_explained
from easytorch._utils.warnings import translated_warnings
from easytorch.data.predictions import warn_of_nan
from easytorch.losses.criterion import Criterion
from easytorch.losses.resolve import resolve_loss
from easytorch.losses.single_loss import SingleLoss
from easytorch.model import Model

if TYPE_CHECKING:
    from typing_extensions import Self

    from easytorch.training.results import History

__all__ = ["Classifier", "Regressor"]

Array = np.ndarray[Any, Any]
Method = TypeVar("Method", bound=Callable[..., Any])
# What an option is for: an argument of the function that makes the module, of the optimizer, of compile, or of fit.
PREFIXES = ("module__", "optimizer__", "compile__", "fit__")
# The parameters of an estimator that the model is made from, besides those with a prefix.
MODEL_PARAMETERS = ("module", "optimizer", "loss", "metrics", "device")
HIDDEN_UNITS = 100
MAX_SEED = 2**31 - 1
# Parameters of skorch, by what they are here.
SKORCH_HINTS = {
    "criterion": "loss=",
    "max_epochs": "epochs=",
    "train_split": "validation_split=0.2",
    "iterator_train__batch_size": "batch_size=",
    "iterator_train__shuffle": "fit__shuffle=",
    "learning_rate": "lr=",
    "learning_rate_init": "lr=",
    "max_iter": "epochs=",
    "early_stopping": "callbacks=[easytorch.callbacks.EarlyStopping(patience=3)] and validation_split=0.2",
    "build_fn": "module=",
    "model": "module=",
    # Arguments that are parameters of the estimator, or of its fit.
    "compile__optimizer": "optimizer=",
    "compile__loss": "loss=",
    "compile__metrics": "metrics=",
    "fit__verbose": "verbose=",
    "fit__x": "fit(X, y)",
    "fit__y": "fit(X, y)",
    "fit__sample_weight": "fit(X, y, sample_weight=...)",
}

# What messages of ``Model`` suggest, as a pattern, and what an estimator has instead. "{batch_size}" is one that fits.
TRANSLATIONS = {
    r"Use another batch_size, or drop_last=True in the DataLoader\.": "{batch_size}",
    r", or drop_last=True in the DataLoader": "",
    r"compile\((\{[^{}]*\}), \.\.\.\)": r"optimizer=\1",
    r" If the input is one sample, pass \S+\[None\]\.": "",
    r"Pass validation_data or validation_split to fit\(\)\.": (
        "Pass validation_split=0.2 to the estimator, or validation_data=(X_val, y_val) to fit()."
    ),
    r"add a metric in compile\(\)": "add one to metrics=",
    r"pass clip_grad_norm=1\.0 to compile\(\)": "pass compile__clip_grad_norm=1.0 to the estimator",
    r"on the layers to train before compile\(\), or compile with optimizer=None\.": (
        "on the layers to train in the function that makes the module."
    ),
    r"Use batches \(x, y\)\. Let x be one tensor, .* as keys\.": (
        "An estimator passes one tensor, the rows of X. Let forward() take one argument, or use easytorch.Model."
    ),
    r"Pass x\.long\(\), or x\.astype\('int64'\) for a NumPy array\.": (
        "Pass dtype='int64' to the estimator, which converts X to dtype='float32' by default."
    ),
    r"(from|in|to) compile\(metrics=\.\.\.\)": r"\1 metrics=",
}


def __dir__() -> list[str]:
    return __all__


def _check_arguments(method: Method) -> Method:
    """Let ``method`` answer an unknown argument with the parameter of the estimator that is meant."""
    names = list(inspect.signature(method).parameters)[1:]

    @functools.wraps(method)
    def call(self: Estimator, *args: Any, **options: Any) -> Any:
        unknown = next((name for name in options if name not in names), None)
        if unknown is not None:
            raise TypeError(_unknown_argument(self, method.__name__, unknown, names))
        translate = functools.partial(_translate, self, args[0] if args else options.get("X"))
        with translated_warnings(translate):
            try:
                return method(self, *args, **options)
            except Exception as error:
                if is_explained(error) and len(error.args) == 1 and isinstance(error.args[0], str):
                    error.args = (translate(error.args[0]),)
                raise

    return cast(Method, call)


def _translate(estimator: Estimator, x: Any, message: str) -> str:
    """Return ``message``, which names arguments of ``Model``, with the parameters of ``estimator``, for the features ``x``."""
    for pattern, replacement in TRANSLATIONS.items():
        message = re.sub(pattern, replacement, message)
    place = "{batch_size}"
    return message.replace(place, _suggest_batch_size(estimator, x)) if place in message else message


def _suggest_batch_size(estimator: Estimator, x: Any) -> str:
    """Return which batch size leaves no batch of one sample."""
    count = np.shape(x)[0]
    if count == 1:
        return "Pass at least two samples."
    size = next(size for size in range(estimator.batch_size + 1, count + 1 + estimator.batch_size) if count % size != 1)
    title, is_split = type(estimator).__name__, bool(estimator.validation_split)
    return f"Pass another batch_size to the estimator{'' if is_split else f', such as {title}(batch_size={size})'}."


class Estimator(BaseEstimator, ABC):
    """What ``Classifier`` and ``Regressor`` share."""

    def __init__(
        self,
        module: Any = None,
        *,
        optimizer: Any = "adam",
        loss: Any = "auto",
        metrics: Any = None,
        lr: float | None = None,
        epochs: int = 10,
        batch_size: int = 32,
        validation_split: float = 0.0,
        callbacks: Any = None,
        warm_start: bool = False,
        dtype: str | None = "float32",
        device: Any = "auto",
        random_state: Any = None,
        verbose: int | str = 0,
        **options: Any,
    ) -> None:
        self.module, self.optimizer, self.loss, self.metrics, self.lr = module, optimizer, loss, metrics, lr
        self.epochs, self.batch_size, self.validation_split = epochs, batch_size, validation_split
        self.callbacks, self.warm_start, self.dtype = callbacks, warm_start, dtype
        self.device, self.random_state, self.verbose = device, random_state, verbose
        self._options: dict[str, Any] = {}
        self._set_options(options, TypeError)

    # Parameters

    def _set_options(self, options: Mapping[str, Any], error: type[Exception]) -> None:
        for name in options:
            if not name.startswith(PREFIXES) or name in PREFIXES or name in SKORCH_HINTS:
                raise error(_unknown_parameter(type(self).__name__, name, self._get_param_names()))
        self._options = {**self._options, **options}

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return all parameters by name, those such as ``module__hidden`` included.

        Args:
            deep: Has no effect; parameters are no estimators.

        Examples:
            >>> from easytorch.integrations.sklearn import Classifier
            >>> classifier = Classifier(epochs=2, random_state=0)
            >>> classifier.get_params()["epochs"]
            2
        """
        parameters: dict[str, Any] = super().get_params(deep=False)
        return parameters | self._options

    def set_params(self, **params: Any) -> Self:
        """Set parameters by name, and return the estimator.

        Args:
            params: The values by name.

        Raises:
            ValueError: If there is no such parameter.

        Examples:
            >>> from easytorch.integrations.sklearn import Classifier
            >>> classifier = Classifier(epochs=2, random_state=0)
            >>> classifier.set_params(lr=0.01, module__hidden=32).lr
            0.01
        """
        names = set(self._get_param_names())
        self._set_options({name: value for name, value in params.items() if name not in names}, ValueError)
        for name in names & set(params):
            setattr(self, name, params[name])
        return self

    def _options_of(self, prefix: str) -> dict[str, Any]:
        options = {name: value for name, value in self._options.items() if name.startswith(prefix)}
        return {name.removeprefix(prefix): value for name, value in options.items()}

    # Fit

    @_check_arguments
    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, validation_data: Any = None) -> Self:
        """Train a new module, and return the estimator.

        Args:
            X: Features, ``[N, features]`` or ``[N, ...]``: an array, a frame, nested lists, or a sparse matrix, of which only the
                rows of a batch become dense.
            y: Targets.
            sample_weight: One weight per sample. Only ratios of weights matter: their mean is set to 1.
            validation_data: ``(X, y)`` to evaluate after each epoch, for early stopping and ``history_``.

        Raises:
            ValueError, TypeError: If a parameter or the data is invalid.

        Examples:
            >>> from easytorch.integrations.sklearn import Classifier
            >>> classifier = Classifier(epochs=2, random_state=0)
            >>> fitted = classifier.fit(x.numpy(), y.numpy())
        """
        is_new = not (boolean("warm_start", self.warm_start) and hasattr(self, "model_"))
        if not is_new:
            self._apply_changes()
        inputs, targets = self._read(X, y, is_new)
        self.callbacks_ = copy.deepcopy(self.callbacks)
        arguments: dict[str, Any] = {"epochs": positive_int("epochs", self.epochs), "callbacks": self.callbacks_ or ()}
        if validation_data is not None:
            if not isinstance(validation_data, (tuple, list)) or len(validation_data) != 2:
                raise ValueError(
                    f"validation_data expects a pair (X, y), received {describe(validation_data)}. Use fit(X, y, "
                    "validation_data=(X_val, y_val))."
                )
            x_val, y_val = validation_data
            arguments["validation_data"] = self._read(x_val, y_val, False)
        elif self.validation_split:
            arguments["validation_split"] = self.validation_split
        return self._train(inputs, targets, sample_weight, is_new, arguments | self._options_of("fit__"))

    def _train(
        self, inputs: Array, targets: Array, sample_weight: Any, is_new: bool, arguments: Mapping[str, Any]
    ) -> Self:
        weights = _read_weights(sample_weight, inputs)
        arguments = {"batch_size": positive_int("batch_size", self.batch_size), **self._class_weight(), **arguments}
        with self._seeding(is_new):
            if is_new:
                self.model_ = self._make_model(inputs)
            self.model_.fit(inputs, targets, sample_weight=weights, verbose=self.verbose, **arguments)
        return self

    def _read(self, x: Any, y: Any, is_new: bool, classes: Any = None) -> tuple[Array, Array]:
        """Return features and targets as the module and the loss take them; learn from them, or ``classes``, if ``is_new``."""
        _check_is_array(x)
        if y is None:
            name = type(self).__name__
            raise ValueError(
                f"This {name} estimator requires y to be passed, but the target y is None. Pass the targets: fit(X, y)."
            )
        x, y = validate_data(
            self, x, y, reset=is_new, dtype=self._feature_dtype(), allow_nd=True, multi_output=True, y_numeric=False,
            ensure_min_samples=1, accept_sparse="csr",
        )  # fmt: skip
        return x, self._read_targets(y, is_new, classes)

    def _feature_dtype(self) -> str:
        return "numeric" if self.dtype is None else self.dtype

    @contextlib.contextmanager
    def _seeding(self, is_new: bool) -> Iterator[None]:
        """Use random numbers of ``random_state`` inside, and leave the global generators as they are.

        A later ``partial_fit`` continues their sequence. Without ``random_state``, the global generators are used.
        """
        if self.random_state is None:
            yield
            return
        with preserve_rng_state():
            state = getattr(self, "_rng_state", None)
            if is_new or state is None:
                set_seed(_read_seed(self.random_state))
            else:
                set_rng_state(state)
            yield
            self._rng_state = get_rng_state()

    def _make_model(self, inputs: Array) -> Model:
        model = Model(self._make_module(), device=self.device)
        # Lazy layers get their shapes before compile.
        self._check_outputs(_run(model, inputs[:1], self._criterion()))
        compile_options = {"lr": self.lr} | self._options_of("optimizer__") | self._options_of("compile__")
        loss, metrics = copy.deepcopy((self._loss_argument(), self.metrics))  # which may have parameters and states
        self._model_parameters = self._list_model_parameters()
        return model.compile(self.optimizer, loss, metrics or (), **compile_options)

    def _list_model_parameters(self) -> dict[str, Any]:
        """Return the parameters that ``_make_model`` reads; ``"lr"`` is the one that counts."""
        parameters = {name: getattr(self, name) for name in MODEL_PARAMETERS}
        parameters |= {name: value for name, value in self._options.items() if not name.startswith("fit__")}
        rates = [parameters.pop(name) for name in ("compile__lr", "optimizer__lr") if name in parameters]
        return parameters | {"lr": rates[0] if rates else self.lr}

    def _apply_changes(self) -> None:
        """Set the learning rate if it has changed since the model was made.

        Raises:
            ValueError: If another parameter of the model has changed.
        """
        old, new = self._model_parameters, self._list_model_parameters()
        missing = object()
        changed = [n for n in {**old, **new} if not _is_same(old.get(n, missing), new.get(n, missing))]
        if not changed:
            return
        if changed != ["lr"] or new["lr"] is None or isinstance(self.optimizer, Mapping):
            raise ValueError(
                f"{changed[0]!r} has changed since the last fit, but warm_start=True and partial_fit continue with the module "
                "and the optimizer of that fit. Only a learning rate for one optimizer can change: set_params(lr=0.01). To "
                "start with a new module, call fit with warm_start=False, or use sklearn.base.clone(estimator)."
            )
        optimizer: Any = self.model_.optimizer
        optimizer.lr = new["lr"]
        self._model_parameters = new

    def _make_module(self) -> nn.Module:
        """Return a new module: what ``module`` makes, or a copy of it if it is one."""
        options = self._options_of("module__")
        if isinstance(self.module, nn.Module):
            if options:
                raise ValueError(
                    f"module__{next(iter(options))} has no effect, because module is an object. Pass the class or function that "
                    f"makes it: module={type(self.module).__name__}."
                )
            return copy.deepcopy(self.module)
        factory = make_perceptron if self.module is None else self.module
        if not callable(factory):
            raise TypeError(
                f"module expects a class or function that makes a torch.nn.Module, received {factory!r}. Use "
                f"{type(self).__name__}(module=Net) with a class Net(nn.Module)."
            )
        arguments = _complete_options(factory, options, self._facts())
        _check_module_arguments(factory, arguments)
        module = factory(**arguments)
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"module must make a torch.nn.Module, but {factory!r} returned {type(module).__name__}. Return the module."
            )
        return module

    def _facts(self) -> dict[str, int]:
        """Return what a function that makes the module may take by name."""
        return {"n_features_in": self.n_features_in_, "n_outputs": self.n_outputs_}

    @abstractmethod
    def _check_outputs(self, outputs: Tensor) -> None:
        """Raise a ``ValueError`` unless the ``outputs`` for one sample are as many as the loss needs."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    # Prediction

    def _outputs(self, x: Any) -> Tensor:
        """Return the outputs for features of the user."""
        check_is_fitted(self, "model_")
        _check_is_array(x)
        inputs = validate_data(self, x, reset=False, dtype=self._feature_dtype(), allow_nd=True, accept_sparse="csr")
        return _run(self.model_, inputs, self.model_.loss)

    @abstractmethod
    def _loss_argument(self) -> Any:
        """Return the argument ``loss`` of ``compile``."""

    def _class_weight(self) -> dict[str, Any]:
        return {}

    @abstractmethod
    def _read_targets(self, y: Array, is_new: bool, classes: Any = None) -> Array:
        """Return the targets as the loss takes them; ``is_new`` at the first fit, which determines the classes."""

    def _criterion(self) -> SingleLoss:
        """Return the loss.

        Raises:
            ValueError: If there are several losses, or the module computes it.
        """
        loss = resolve_loss(self._loss_argument())
        if not isinstance(loss, SingleLoss):
            raise ValueError(
                f"loss expects one loss, received {self.loss!r}. Pass a name such as 'mse', a torch.nn loss or a function "
                "f(y_pred, y). For several outputs use easytorch.Model."
            )
        return loss

    def _trained_loss(self) -> SingleLoss:
        """Return the loss of the last fit, which ``set_params`` does not change."""
        loss: Any = self.model_.loss
        return loss

    @property
    def history_(self) -> History:
        """The numbers of each epoch."""
        check_is_fitted(self, "model_")
        return self.model_.history

    @property
    def module_(self) -> nn.Module:
        """The trained module."""
        check_is_fitted(self, "model_")
        return self.model_.module

    @property
    def n_iter_(self) -> int:
        """The number of epochs so far."""
        check_is_fitted(self, "model_")
        return self.model_.state.epoch


class Classifier(ClassifierMixin, Estimator):
    """A classifier of scikit-learn that trains a torch module.

    ``y`` has one label per sample, of any type, or is a matrix of 0 and 1 with one column for each of several labels.

    Args:
        module: A class or function that makes the module; its arguments are ``module__name=value``. If it has parameters named
            ``n_features_in``, ``n_outputs`` or ``n_classes``, it gets these numbers. A ``torch.nn.Module`` is copied. None for a
            perceptron with ``module__hidden=100`` units.
        optimizer: As in ``Model.compile``; its options are ``optimizer__momentum=0.9``.
        loss: A name, a ``torch.nn`` loss, or a function. ``"auto"`` is ``"cross_entropy"``, and ``"bce_with_logits"`` for
            several labels. With ``"bce_with_logits"`` and two classes the module has one output.
        metrics: Metrics of ``history_``, as in ``Model.compile``.
        lr: The learning rate; None for the default of the optimizer. ``optimizer__lr`` replaces it.
        epochs: Number of epochs.
        batch_size: Samples per batch.
        validation_split: Fraction of the samples to use for validation.
        class_weight: ``{class: weight}``, ``"balanced"``, or None.
        callbacks: Callbacks of ``fit``, of which each fit uses copies: ``callbacks_``.
        warm_start: Whether ``fit`` continues with the weights of the last one.
        dtype: The dtype of the features; None leaves them as they are, for embeddings of integers.
        device: As in ``Model``.
        random_state: A seed for weights, order and dropout, as in ``easytorch.set_seed``; or a ``RandomState``, which draws it.
            None uses the global generators of torch.
        verbose: As in ``Model.fit``.
        options: ``module__...``, ``optimizer__...``, ``compile__...`` and ``fit__...``: arguments of the function that makes the
            module, options of the optimizer, other arguments of ``Model.compile`` and of ``Model.fit``.

    Attributes:
        classes_: The labels, sorted.
        n_features_in_: The number of features; of ``[N, channels, ...]`` the number of channels.
        feature_names_in_: The names of the columns, if ``X`` was a frame with text as names.
        n_outputs_: The number of outputs that the module needs.
        model_: The trained ``easytorch.Model``.
        module_: Its module.
        history_: The numbers of each epoch.
        n_iter_: The number of epochs.

    Examples:
        >>> from sklearn.model_selection import cross_val_score
        >>> from easytorch.integrations.sklearn import Classifier
        >>> def make_net(n_features_in, n_outputs, hidden=64):
        ...     return nn.Sequential(nn.Linear(n_features_in, hidden), nn.ReLU(), nn.Linear(hidden, n_outputs))
        >>> classifier = Classifier(make_net, module__hidden=128, lr=0.01, epochs=20, random_state=0)
        >>> scores = cross_val_score(classifier, x.numpy(), y.numpy())
    """

    def __init__(
        self,
        module: Any = None,
        *,
        optimizer: Any = "adam",
        loss: Any = "auto",
        metrics: Any = None,
        lr: float | None = None,
        epochs: int = 10,
        batch_size: int = 32,
        validation_split: float = 0.0,
        class_weight: Any = None,
        callbacks: Any = None,
        warm_start: bool = False,
        dtype: str | None = "float32",
        device: Any = "auto",
        random_state: Any = None,
        verbose: int | str = 0,
        **options: Any,
    ) -> None:
        self.class_weight = class_weight
        super().__init__(
            module, optimizer=optimizer, loss=loss, metrics=metrics, lr=lr, epochs=epochs, batch_size=batch_size,
            validation_split=validation_split, callbacks=callbacks, warm_start=warm_start, dtype=dtype, device=device,
            random_state=random_state, verbose=verbose, **options,
        )  # fmt: skip

    @_check_arguments
    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Train for one epoch, from the present weights if there are any, and return the estimator.

        ``validation_split`` and ``callbacks`` belong to ``fit``, and have no effect.

        Args:
            X: As in ``fit``.
            y: As in ``fit``.
            classes: All labels, in the first call; None for those in ``y``.
            sample_weight: As in ``fit``.

        Raises:
            ValueError: If ``class_weight="balanced"``, or a label is not among ``classes``.

        Examples:
            >>> from easytorch.integrations.sklearn import Classifier
            >>> classifier = Classifier(epochs=2, random_state=0)
            >>> fitted = classifier.partial_fit(x.numpy(), y.numpy(), classes=[0, 1, 2])
        """
        is_new = not hasattr(self, "model_")
        if self.class_weight == "balanced":
            raise ValueError(
                "class_weight='balanced' would be computed from this call's samples only. Pass the weights of all samples to "
                "partial_fit: class_weight={label: weight}."
            )
        if not is_new:
            self._apply_changes()
            self._check_classes(classes)
        inputs, targets = self._read(X, y, is_new, classes)
        return self._train(inputs, targets, sample_weight, is_new, self._options_of("fit__") | {"epochs": 1})

    def predict(self, X: Any) -> Array:
        """Return the label of each sample, or 0 or 1 for each of several labels.

        Args:
            X: Features, as in ``fit``.

        Examples:
            >>> from easytorch.integrations.sklearn import Classifier
            >>> classifier = Classifier(epochs=2, random_state=0)
            >>> classifier.fit(x.numpy(), y.numpy()).predict(x.numpy()).shape
            (60,)
        """
        outputs, loss = self._outputs(X), self._trained_loss()
        warn_of_nan(outputs.isnan().reshape(len(outputs), -1).any(1))
        if self._is_multilabel or loss.kind == "binary":
            labels = loss.classes(outputs.double()).numpy().astype(int)
            return labels if self._is_multilabel else self.classes_[labels.reshape(len(labels))]
        return self.classes_[outputs.argmax(1).numpy()]

    def predict_proba(self, X: Any) -> Array:
        """Return the probability of each label, ``[N, labels]``, in the order of ``classes_``.

        Args:
            X: Features, as in ``fit``.

        Raises:
            ValueError: If the loss is custom, so that it is not known what the outputs mean.

        Examples:
            >>> from easytorch.integrations.sklearn import Classifier
            >>> classifier = Classifier(epochs=2, random_state=0)
            >>> classifier.fit(x.numpy(), y.numpy()).predict_proba(x.numpy()).shape
            (60, 3)
        """
        outputs, loss = self._outputs(X), self._trained_loss()
        probabilities: Array = loss.probabilities(outputs.double()).numpy()
        if self._is_multilabel or loss.kind != "binary":
            return probabilities
        return np.column_stack([1 - probabilities.ravel(), probabilities.ravel()])

    def _loss_argument(self) -> Any:
        if isinstance(self.loss, str) and self.loss == "auto":
            return "bce_with_logits" if self._is_multilabel else "cross_entropy"
        return self.loss

    def _class_weight(self) -> dict[str, Any]:
        """Return the class weights by the number of the class."""
        if self.class_weight is None or isinstance(self.class_weight, str):
            return {"class_weight": self.class_weight}
        known = self.classes_.tolist()
        unknown = [label for label in self.class_weight if label not in known]
        if unknown:
            raise ValueError(
                f"class_weight has a weight for the class {unknown[0]!r}, but the classes are {known}. Use the classes of y as "
                f"keys: class_weight={{{known[0]!r}: 1.0}}."
            )
        return {"class_weight": {known.index(label): weight for label, weight in self.class_weight.items()}}

    def _facts(self) -> dict[str, int]:
        return super()._facts() | {"n_classes": len(self.classes_)}

    def _read_targets(self, y: Array, is_new: bool, classes: Any = None) -> Array:
        _check_labels(y)
        is_multilabel = type_of_target(y, input_name="y", raise_unknown=True) == "multilabel-indicator"
        check_classification_targets(y)
        if is_new:
            self._learn_labels(y, is_multilabel, classes)
        if is_multilabel != self._is_multilabel or (is_multilabel and y.shape[1] != len(self.classes_)):
            raise ValueError(
                f"y has the shape {list(y.shape)}, but fit() had other labels: {len(self.classes_)}. Pass y in the format of "
                "fit(), or call fit() for the new labels."
            )
        if is_multilabel:
            return y.astype("float32")
        y = column_or_1d(y, warn=is_new)
        unknown = np.setdiff1d(y, self.classes_)
        if len(unknown):
            raise ValueError(
                f"y has the class {unknown.tolist()[0]!r}, but the classes are {self.classes_.tolist()}. Pass all classes to the "
                "first partial_fit(X, y, classes=...)."
            )
        numbers = np.searchsorted(self.classes_, y)
        return numbers.astype("float32") if self._criterion().kind == "binary" else numbers

    def _learn_labels(self, y: Array, is_multilabel: bool, classes: Any) -> None:
        if is_multilabel:
            self._is_multilabel, self.classes_, self.n_outputs_ = True, np.arange(y.shape[1]), y.shape[1]
            if self._criterion().kind != "binary":
                raise ValueError(f"loss={self.loss!r} is not for several labels. Pass loss='bce_with_logits'.")
            return
        if type_of_target(y) == "multiclass-multioutput":
            raise ValueError("y has several columns of classes. Fit one Classifier for each: MultiOutputClassifier.")
        self.classes_ = np.unique(y if classes is None else np.asarray(classes))
        self._is_multilabel, count = False, len(self.classes_)
        if count < 2:
            raise ValueError(
                f"A Classifier needs at least 2 classes, but y has one class: {self.classes_.tolist()}. Add samples of another "
                "class, or use partial_fit(X, y, classes=...) if later parts have them."
            )
        is_binary = self._criterion().kind == "binary"
        if is_binary and count > 2:
            raise ValueError(f"loss={self.loss!r} is for two classes, but y has {count}. Pass loss='cross_entropy'.")
        self.n_outputs_ = 1 if is_binary else count

    def _check_classes(self, classes: Any) -> None:
        """Raise a ``ValueError`` if a later call of ``partial_fit`` has other ``classes``."""
        if classes is not None and not np.array_equal(np.unique(np.asarray(classes)), self.classes_):
            raise ValueError(
                f"classes={np.unique(np.asarray(classes)).tolist()} differs from the first call of partial_fit or fit: "
                f"{self.classes_.tolist()}. Use sklearn.base.clone(estimator), and pass all classes in its first call."
            )

    def _check_outputs(self, outputs: Tensor) -> None:
        width = outputs.shape[1] if outputs.ndim > 1 else 1
        if outputs.ndim > 2 or width != self.n_outputs_:
            hint = ""
            if width == 1 and self.n_outputs_ == 2:
                hint = " For one output of two classes, pass loss='bce_with_logits'."
            raise ValueError(
                f"The module must have {self.n_outputs_} outputs for {len(self.classes_)} classes and the loss "
                f"{self._loss_argument()!r}, but it returned {describe(outputs)}. Let the function that makes it take n_outputs."
                f"{hint}"
            )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class Regressor(RegressorMixin, Estimator):
    """A regressor of scikit-learn that trains a torch module.

    ``y`` has one number per sample, ``[N]``, or several, ``[N, outputs]``; predictions have the same shape.

    Args:
        module: A class or function that makes the module; its arguments are ``module__name=value``. If it has parameters named
            ``n_features_in`` or ``n_outputs``, it gets these numbers. A ``torch.nn.Module`` is copied. None for a perceptron with
            ``module__hidden=100`` units.
        optimizer: As in ``Model.compile``; its options are ``optimizer__momentum=0.9``.
        loss: A name, a ``torch.nn`` loss, or a function. ``"auto"`` is ``"mse"``.
        metrics: Metrics of ``history_``, as in ``Model.compile``.
        lr: The learning rate; None for the default of the optimizer. ``optimizer__lr`` replaces it.
        epochs: Number of epochs.
        batch_size: Samples per batch.
        validation_split: Fraction of the samples to use for validation.
        callbacks: Callbacks of ``fit``, of which each fit uses copies: ``callbacks_``.
        warm_start: Whether ``fit`` continues with the weights of the last one.
        dtype: The dtype of the features; None leaves them as they are, for embeddings of integers.
        device: As in ``Model``.
        random_state: A seed for weights, order and dropout, as in ``easytorch.set_seed``; or a ``RandomState``, which draws it.
            None uses the global generators of torch.
        verbose: As in ``Model.fit``.
        options: ``module__...``, ``optimizer__...``, ``compile__...`` and ``fit__...``, as for ``Classifier``.

    Attributes:
        n_features_in_: The number of features; of ``[N, channels, ...]`` the number of channels.
        feature_names_in_: The names of the columns, if ``X`` was a frame with text as names.
        n_outputs_: The number of outputs that the module needs.
        model_: The trained ``easytorch.Model``.
        module_: Its module.
        history_: The numbers of each epoch.
        n_iter_: The number of epochs.

    Examples:
        >>> from sklearn.compose import TransformedTargetRegressor
        >>> from sklearn.preprocessing import StandardScaler
        >>> from easytorch.integrations.sklearn import Regressor
        >>> regressor = Regressor(lr=0.01, random_state=0)
        >>> scaled = TransformedTargetRegressor(regressor, transformer=StandardScaler())
        >>> fitted = scaled.fit(x.numpy(), y.float().numpy())
    """

    @_check_arguments
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train for one epoch, from the present weights if there are any, and return the estimator.

        ``validation_split`` and ``callbacks`` belong to ``fit``, and have no effect.

        Args:
            X: As in ``fit``.
            y: As in ``fit``.
            sample_weight: As in ``fit``.

        Examples:
            >>> from easytorch.integrations.sklearn import Regressor
            >>> regressor = Regressor(epochs=2, random_state=0)
            >>> fitted = regressor.partial_fit(x.numpy(), y.float().numpy())
        """
        is_new = not hasattr(self, "model_")
        if not is_new:
            self._apply_changes()
        return self._train(*self._read(X, y, is_new), sample_weight, is_new, self._options_of("fit__") | {"epochs": 1})

    def predict(self, X: Any) -> Array:
        """Return the predictions, ``[N]`` or ``[N, outputs]`` as ``y`` in ``fit``.

        For ``"poisson_nll"`` on logarithms they are the rates.

        Args:
            X: Features, as in ``fit``.

        Examples:
            >>> from easytorch.integrations.sklearn import Regressor
            >>> regressor = Regressor(epochs=2, random_state=0)
            >>> regressor.fit(x.numpy(), y.float().numpy()).predict(x.numpy()).shape
            (60,)
        """
        outputs, loss = self._outputs(X), self._trained_loss()
        if loss.family is nn.PoissonNLLLoss and getattr(loss.function, "log_input", True):
            outputs = outputs.exp()
        return outputs.double().numpy().reshape((len(outputs), *self._target_shape))

    def _loss_argument(self) -> Any:
        return "mse" if isinstance(self.loss, str) and self.loss == "auto" else self.loss

    def _read_targets(self, y: Array, is_new: bool, classes: Any = None) -> Array:
        y = check_array(y, dtype="float32", ensure_2d=False, input_name="y")
        if is_new:
            if self._criterion().kind is not None:
                raise ValueError(f"loss={self.loss!r} is for classes. Use a Classifier, or loss='mse'.")
            self._target_shape, self.n_outputs_ = y.shape[1:], 1 if y.ndim == 1 else y.shape[1]
        if y.shape[1:] != self._target_shape:
            raise ValueError(
                f"y must have the shape {['N', *self._target_shape]} as in fit(), received {list(y.shape)}. Use y.reshape("
                f"{', '.join(map(str, (-1, *self._target_shape)))}), or call fit() for other targets."
            )
        return y.reshape(len(y), -1)

    def _check_outputs(self, outputs: Tensor) -> None:
        if outputs.numel() != self.n_outputs_:
            raise ValueError(
                f"The module must have {self.n_outputs_} output{'s' * (self.n_outputs_ != 1)} for the targets, but it returned "
                f"{describe(outputs)}. Let the function that makes it take n_outputs."
            )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def make_perceptron(n_features_in: int, n_outputs: int, hidden: int = HIDDEN_UNITS) -> nn.Module:
    """Return a network with one hidden layer."""
    return nn.Sequential(nn.Linear(n_features_in, hidden), nn.ReLU(), nn.Linear(hidden, n_outputs))


def _complete_options(factory: Callable[..., Any], options: dict[str, Any], facts: Mapping[str, int]) -> dict[str, Any]:
    """Return ``options``, with the numbers that ``factory`` takes by name.

    Raises:
        TypeError: If ``factory`` has no such parameter.
    """
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # built-in functions have no signature
        return options
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return {name: value for name, value in facts.items() if name in parameters} | options
    for name in options:
        if name not in parameters:
            title = getattr(factory, "__name__", repr(factory))
            known = f"It has {quote_list(parameters)}" if parameters else "It has no parameters"
            raise TypeError(f"module__{name} is no parameter of {title}.{did_you_mean(name, parameters)} {known}.")
    return {name: value for name, value in facts.items() if name in parameters} | options


def _check_module_arguments(factory: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Raise a ``TypeError`` if ``factory`` needs arguments that are not among ``arguments``."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # built-in functions have no signature
        return
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and parameter.kind not in kinds and name not in arguments
    ]
    if missing:
        title = getattr(factory, "__name__", repr(factory))
        raise TypeError(
            f"{title}, which makes the module, needs {quote_list(missing)}. Pass module__{missing[0]}=..., or give it parameters "
            "named n_features_in and n_outputs, which get the numbers of the data."
        )


def _is_same(old: Any, new: Any) -> bool:
    """Return whether two values of a parameter are the same object, or equal plain values."""
    is_plain = isinstance(old, (str, int, float, list, tuple, dict)) and isinstance(new, (*{type(old)}, int, float))
    return old is new or (is_plain and bool(old == new))


def _run(model: Model, inputs: Array, loss: Criterion) -> Tensor:
    """Return the outputs of the module that the loss compares with the targets."""
    outputs = map_leaves(torch.from_numpy, model.predict(inputs, verbose=0))
    prediction = loss.compared_prediction(outputs, None)
    if not isinstance(prediction, Tensor):
        raise ValueError(
            f"An estimator needs a module with one output, but it returned {describe(outputs)}. Use easytorch.Model, or return "
            "one tensor from forward()."
        )
    return prediction


def _read_seed(random_state: Any) -> int:
    """Return the seed: an integer as it is, and otherwise a number that the generator draws."""
    if isinstance(random_state, (int, np.integer)):
        return int(random_state)
    return int(check_random_state(random_state).randint(MAX_SEED))


def _read_weights(sample_weight: Any, x: Array) -> Array | None:
    """Return weights with the mean 1.

    Raises:
        ValueError: If they are negative, all zero, or not one per sample.
    """
    if sample_weight is None:
        return None
    weights: Array = _check_sample_weight(sample_weight, x, dtype=np.float64, ensure_non_negative=True)
    if not weights.any():
        raise ValueError(
            "Sample weights must contain at least one non-zero number, received only zeros. Leave out sample_weight for equal "
            "weights."
        )
    return (weights / weights.mean()).astype("float32")


def _check_labels(y: Array) -> None:
    """Raise a ``ValueError`` for missing labels, and a ``TypeError`` for text among numbers, which have no order."""
    if y.dtype.kind != "O":
        return
    missing = next((i for i, label in enumerate(y.ravel()) if label is None), None)
    if missing is not None:
        raise ValueError(f"y has no label at the index {missing}: it is None. Remove samples without a label.")
    is_text = {isinstance(label, str) for label in y.ravel()}
    if len(is_text) > 1:
        raise TypeError("y contains text and other labels. Convert them all to text: [str(label) for label in y].")


def _check_is_array(x: Any) -> None:
    """Raise a ``TypeError`` if ``x`` is data that scikit-learn cannot index."""
    is_sparse = hasattr(x, "toarray")
    if isinstance(x, (DataLoader, Dataset, Mapping)) and not is_sparse:
        raise TypeError(
            f"An estimator of scikit-learn takes arrays and frames, received a {type(x).__name__}. Pass X and y as arrays, or "
            "use easytorch.Model, which takes any data."
        )


def _unknown_argument(estimator: Estimator, method: str, name: str, names: list[str]) -> str:
    """Return the message about an argument that ``fit`` or ``partial_fit`` does not have."""
    title = type(estimator).__name__
    if name in estimator._get_param_names():
        fix = f" Pass it to the estimator: {title}(..., {name}=...), or set_params({name}=...)."
    elif name in SKORCH_HINTS:
        fix = f" Pass {SKORCH_HINTS[name]} to the estimator: {title}(...)."
    elif name in inspect.signature(Model.fit).parameters or f"fit__{name}" in estimator._options:
        fix = f" Pass it to the estimator: {title}(..., fit__{name}=...)."
    else:
        fix = did_you_mean(name, names) or f" {method}() takes {', '.join(names)}."
    return f"{title}.{method}() got an unexpected keyword argument {name!r}.{fix}"


def _unknown_parameter(title: str, name: str, names: list[str]) -> str:
    if name in SKORCH_HINTS:
        return f"{title} has no parameter {name!r}. Use {SKORCH_HINTS[name]}."
    prefix = name.split("__")[0] if "__" in name else None
    close = did_you_mean(name, names) or did_you_mean(f"{prefix}__", PREFIXES)
    return (
        f"Invalid parameter {name!r} for estimator {title}.{close} It has {quote_list(names)}, and module__..., optimizer__..., "
        "compile__... and fit__...."
    )

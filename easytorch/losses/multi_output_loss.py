"""One loss per output of the module."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from easytorch._utils.pytree import describe
from easytorch._utils.registry import did_you_mean, quote_list
from easytorch.data.batch import Window
from easytorch.data.class_names import names_of
from easytorch.data.sample_weights import check_is_weight
from easytorch.losses.criterion import Counts, Criterion, Share, unpacked
from easytorch.losses.single_loss import SingleLoss


class MultiOutputLoss(Criterion):
    """A weighted sum of losses, one per output of the module.

    Each loss is logged as ``<output>_loss``. A list of losses is for outputs in a list or tuple, which are named
    ``output_1``, ``output_2``, and so on. A dict of losses is for outputs in a dict.

    Args:
        losses: One loss per output. None excludes an output.
        weights: The weight of each loss, in the same order or by the same keys. A missing weight is 1.
    """

    def __init__(self, losses: Sequence[Any] | Mapping[str, Any], weights: Any = None) -> None:
        self.by_name = isinstance(losses, Mapping)
        loss_of_output = losses if isinstance(losses, Mapping) else _number_outputs(losses)
        self.losses = {name: SingleLoss(loss) for name, loss in loss_of_output.items() if loss is not None}
        self.names = list(self.losses)
        self.outputs, self.count = list(loss_of_output), len(loss_of_output)
        self.weights = dict.fromkeys(self.names, 1.0) | self._weights_by_name(weights)
        # The factor of each output in the current batch of a window, and whether there is such a window.
        self._factors: dict[str, Any] = {}
        self._is_shared = False
        self.entries = frozenset().union(*(loss.entries for loss in self.losses.values()))

    def bind(self, model: Any) -> None:
        """Let custom losses that take ``model``, ``module`` or ``x`` use ``model``."""
        for loss in self.losses.values():
            loss.bind(model)

    def _weights_by_name(self, weights: Any) -> dict[str, float]:
        if isinstance(weights, Mapping):
            unknown = [name for name in weights if name not in self.names]
            if unknown:
                raise ValueError(
                    f"loss_weights has a weight for the output {unknown[0]!r}, which has no loss."
                    f"{did_you_mean(unknown[0], self.names)} Pass weights for {quote_list(self.names)}."
                )
            return {name: float(weight) for name, weight in weights.items()}
        if weights is not None and (not hasattr(weights, "__len__") or len(weights) != self.count):
            raise ValueError(
                f"loss_weights expects {self.count} weights, received loss_weights={weights!r}. Pass one weight per output."
            )
        return {name: float(weight) for name, weight in zip(self.outputs, weights or (), strict=False)}

    def terms(self, y_pred: Any, y: Any, sample_weight: Any = None, batch: Any = None) -> dict[str, Tensor]:
        """Return ``{"loss": weighted sum, "<output>_loss": ...}``."""
        outputs, targets = self.by_output(y_pred, "outputs"), self.by_output(y, "targets")
        if sample_weight is not None:
            check_is_weight(sample_weight)
        weights = self.by_output(sample_weight, "sample weights")
        terms: dict[str, Any] = {}
        for name, loss in self.losses.items():
            terms[f"{name}_loss"] = loss(outputs[name], targets[name], weights[name], batch)
            if self._is_shared and loss.returns_count:
                raise ValueError(
                    f"The loss of {name!r}, {loss!r}, returns (sum, count). With several outputs, gradient accumulation and "
                    "several processes need the count before the forward pass. Use a loss by name, or return one value per "
                    "sample."
                )
        scaled = {f"{name}_loss": self._scale_gradient(name, terms[f"{name}_loss"]) for name in self.losses}
        return {"loss": self.sum_of_terms(scaled), **terms}

    def _scale_gradient(self, name: str, term: Tensor) -> Tensor:
        """Return ``term``, with its gradient multiplied by the factor of this output in the current batch."""
        factor = self._factors.get(name, 1.0)
        if not isinstance(factor, Tensor) and factor == 1.0:
            return term
        extra: Tensor = term * (factor - 1.0)
        return term + (extra - extra.detach())

    def sum_of_terms(self, terms: Mapping[str, Any]) -> Any:
        """Return the weighted sum of ``<output>_loss``, None if one is missing."""
        if not all(f"{name}_loss" in terms for name in self.losses):
            return None
        return sum(self.weights[name] * terms[f"{name}_loss"] for name in self.losses)

    def term_names(self) -> list[str]:
        """Return ``<output>_loss`` of every output with a loss."""
        return [f"{name}_loss" for name in self.losses]

    def prepare(self, targets: Any, class_names: Any = None) -> None:
        """Prepare each loss for the targets of its output."""
        by_name = self._by_name(targets)
        for name, loss in self.losses.items():
            loss.prepare(by_name.get(name), self._names_of(class_names, name))

    def check_text_labels(self, class_names: Any) -> None:
        """Raise a ``ValueError`` if a loss cannot use labels that were text, with these ``class_names``."""
        for name, loss in self.losses.items():
            loss.check_text_labels(self._names_of(class_names, name))

    def name_classes(self, classes: Any, class_names: Any) -> Any:
        """Return the name of each class that ``classes`` returned, as NumPy arrays."""
        named = {
            name: self.losses[name].name_classes(value, self._names_of(class_names, name))
            for name, value in (classes if self.by_name else dict(zip(self.names, classes, strict=True))).items()
        }
        return named if self.by_name else tuple(named.values())

    def _names_of(self, class_names: Any, name: str) -> list[str] | None:
        """Return the names of the classes of the output ``name``."""
        is_certain = isinstance(class_names, Mapping) or len(self.names) == 1
        return names_of(class_names, name) if is_certain else None

    def functions(self) -> list[Any]:
        """Return the loss of each output."""
        return [function for loss in self.losses.values() for function in loss.functions()]

    def to(self, device: torch.device) -> None:
        """Move the tensors of each loss to ``device``."""
        for loss in self.losses.values():
            loss.to(device)

    def _by_name(self, tree: Any) -> Mapping[str, Any]:
        """Return outputs or targets by name of their output; none if they belong to no output."""
        if isinstance(tree, Mapping):
            return tree
        if isinstance(tree, (list, tuple)):
            return _number_outputs(tree)
        return {self.names[0]: tree} if len(self.names) == 1 else {}

    def convert_targets(self, y_pred: Any, y: Any) -> Any:
        """Return the targets ``y`` as the losses take them, in the same structure."""
        outputs, targets = self._by_name(y_pred), self._by_name(y)
        converted = {
            name: loss.convert_targets(outputs[name], targets[name])
            for name, loss in self.losses.items()
            if name in outputs and name in targets
        }
        if all(converted[name] is targets[name] for name in converted):
            return y
        if not isinstance(y, (Mapping, list, tuple)):
            return converted[self.names[0]]
        by_name = {**targets, **converted}
        return by_name if isinstance(y, Mapping) else list(by_name.values())

    def take_counts(self) -> Counts:
        """Return what each ``<output>_loss`` of the last call was divided by, and forget it."""
        return {
            f"{name}_{key}": count for name, loss in self.losses.items() for key, count in loss.take_counts().items()
        }

    def why_zero(self, term: str) -> str | None:
        """Return why ``<output>_loss`` of the last batch is 0 although it has samples, and the fix; None if all is well."""
        loss = self.losses.get(term.removesuffix("_loss"))
        return None if loss is None else loss.why_zero("loss")

    def batch_weights(self, window: Window, share: Share) -> Iterator[Any]:
        """Yield the share of each batch in the samples; meanwhile ``terms`` gives the gradient of each term its own share."""
        targets = [self._by_name(batch.y) for batch in unpacked(window)]
        columns = [loss.window_counts(window, [y.get(name) for y in targets]) for name, loss in self.losses.items()]
        by_samples, *by_term = share([window.sizes, *columns])
        self._is_shared = True
        try:
            for i, weight in enumerate(by_samples):
                is_empty = not isinstance(weight, Tensor) and not weight
                factors = [0.0 if is_empty else share[i] / weight for share in by_term]
                self._factors = dict(zip(self.losses, factors, strict=True))
                yield weight
        finally:
            self._factors, self._is_shared = {}, False

    @contextlib.contextmanager
    def knowing(self, targets: Any) -> Iterator[None]:
        """Measure data with these ``targets`` inside; None if they are unknown. Labels are not counted if all of them count."""
        by_name = self._by_name(targets)
        with contextlib.ExitStack() as stack:
            for name, loss in self.losses.items():
                stack.enter_context(loss.knowing(by_name.get(name)))
            yield

    def select(self, y_pred: Any, y: Any, output: str | None) -> tuple[Any, Any]:
        """Return the predictions and targets of ``output``, all of them if it is None."""
        if output is None:
            return y_pred, y
        return self.by_output(y_pred, "outputs")[output], self.by_output(y, "targets")[output]

    def select_weight(self, sample_weight: Any, output: str | None) -> Any:
        """Return the sample weights of ``output``, all of them if it is None."""
        return sample_weight if output is None else self.by_output(sample_weight, "sample weights")[output]

    def compared_prediction(self, y_pred: Any, output: str | None) -> Any:
        """Return the part of the predictions of ``output`` that its loss compares with the targets."""
        return y_pred if output is None else self.losses[output].compared_prediction(y_pred, None)

    def by_output(self, tree: Any, content: str) -> dict[str, Any]:
        """Return the values of each output in ``tree``.

        Args:
            tree: A dict, list or tuple with one entry per output; one tensor or None for all outputs.
            content: ``"outputs"``, ``"targets"`` or ``"sample weights"``, for the message.

        Raises:
            ValueError: If the structure does not match the losses, or if one tensor cannot be for all outputs.
        """
        if tree is None or isinstance(tree, Tensor):
            # One weight per sample is valid for all outputs. One tensor of outputs or targets is not.
            if tree is not None and content != "sample weights":
                self._check_single(tree, content)
            return dict.fromkeys(self.names, tree)
        fits = set(self.names) <= set(tree) if isinstance(tree, Mapping) else len(tree) == self.count
        if isinstance(tree, Mapping) != self.by_name or not fits:
            raise ValueError(
                f"The losses are for {quote_list(self.names)}, but the {content} are {describe(tree)}. Pass losses, outputs "
                "and targets as dicts with the same keys, or as lists or tuples of the same length."
            )
        return dict(tree) if isinstance(tree, Mapping) else _number_outputs(tree)

    def _check_single(self, tensor: Tensor, content: str) -> None:
        """Raise an error if ``tensor`` would be used for several losses."""
        if self.count == 1 or (content == "targets" and len(self.names) == 1):
            return
        variables = [f"y{i + 1}" for i in range(self.count)]
        items = ", ".join(f"{name!r}: {y}" for name, y in zip(self.outputs, variables, strict=True))
        structure = f"{{{items}}}" if self.by_name else f"({', '.join(variables)})"
        if content == "targets":
            raise ValueError(
                f"There are {self.count} outputs with {len(self.names)} losses, but one target, {describe(tensor)}. Pass "
                f"targets {structure}."
            )
        raise ValueError(
            f"There are losses for {self.count} outputs, but the module returned one, {describe(tensor)}. Return {structure} "
            "from the module, or pass one loss."
        )

    def probabilities(self, y_pred: Any) -> Any:
        """Return the probabilities of every output, in the structure of the outputs."""
        return self._map_outputs(y_pred, SingleLoss.probabilities)

    def classes(
        self, y_pred: Any, threshold: float | None = None, *, observe: Callable[[Tensor], Any] = lambda _: None
    ) -> Any:
        """Return the classes of every output, in the structure of the outputs; ``threshold`` is for those with a binary loss."""
        has_effect = any(loss.kind == "binary" for loss in self.losses.values())

        def find_classes(loss: SingleLoss, output: Any) -> Any:
            limit = None if has_effect and loss.kind != "binary" else threshold
            return loss.classes(output, limit, observe=observe)

        return self._map_outputs(y_pred, find_classes)

    def _map_outputs(self, y_pred: Any, function: Callable[[SingleLoss, Any], Any]) -> Any:
        outputs, results = self.by_output(y_pred, "outputs"), {}
        for name, loss in self.losses.items():
            if loss.activation is None:
                raise ValueError(
                    f"easytorch cannot convert the output {name!r} to probabilities, because its loss, {loss!r}, implies no "
                    "activation. Call predict() and apply an activation."
                )
            results[name] = function(loss, outputs[name])
        return results if self.by_name else tuple(results.values())

    def __repr__(self) -> str:
        return repr(self.losses)


def _number_outputs(values: Iterable[Any]) -> dict[str, Any]:
    """Return ``{"output_1": first, "output_2": second, ...}``."""
    return {f"output_{i}": value for i, value in enumerate(values, 1)}

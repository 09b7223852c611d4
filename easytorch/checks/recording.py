"""What happens in the layers and functions of a step."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from easytorch._utils import torch_private
from easytorch.callbacks.averaging import BATCH_NORMS

RELUS = {F.relu, F.relu6, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu_}
SIGMOIDS = {torch.sigmoid, Tensor.sigmoid, Tensor.sigmoid_, F.sigmoid, torch.sigmoid_}
TANHS = {torch.tanh, Tensor.tanh, Tensor.tanh_, F.tanh, torch.tanh_}
DROPOUTS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout}
SOFTMAXES = {F.softmax, F.log_softmax, torch.softmax, torch.log_softmax, Tensor.softmax, Tensor.log_softmax}
# Layers that pass on the values of a linear layer, so that the next one follows it directly.
PASSIVE = (nn.Identity, nn.Dropout, nn.Flatten, nn.Unflatten)
# Linear functions of the inputs that need an activation function before the next one of their kind.
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LINEAR = (nn.Linear, *CONVOLUTIONS)
# The first layers that have weights for the inputs.
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.RNNBase)


@dataclasses.dataclass
class Activation:
    """The outputs of an activation function in one call.

    Attributes:
        layer: The name of the module that called it.
        kind: ``"relu"``, ``"sigmoid"`` or ``"tanh"``.
        share: The share of units that are zero for all samples; of a sigmoid and a tanh, of values at their limits.
    """

    layer: str
    kind: str
    share: float


@dataclasses.dataclass
class Source:
    """A linear layer or a convolution whose values a tensor has.

    Attributes:
        name: The name of the layer.
        layer: The layer.
        tensor: The tensor. It is held, so that no other tensor gets its identity.
        version: The version of the tensor, which a function in place changes.
        is_normalized: Whether batch normalization came in between.
    """

    name: str
    layer: nn.Module
    tensor: Tensor
    version: int
    is_normalized: bool = False

    def moved_to(self, tensor: Tensor, is_normalized: bool) -> Source:
        """Return the source of ``tensor``, which has the same values."""
        version = torch_private.version(tensor)
        return Source(self.name, self.layer, tensor, version, self.is_normalized or is_normalized)


@dataclasses.dataclass
class Recording:
    """What happened in the layers of one step.

    Attributes:
        called: Names of the layers that ran.
        outputs: What the module returned in its first call.
        scales: The standard deviation of the outputs of each layer that has no children.
        first_input: The root mean square of what the first layer with weights got, and the largest column; None if unknown.
        activations: Activation functions in the order of their calls.
        linear_pairs: Names of two linear layers without a nonlinear function between them, and the width between them.
        batch_norms: For each layer of batch normalization in train mode, the values of a channel in the batch.
        random_layers: Layers in which a function of dropout was active, or the name of the module.
        batch_softmaxes: Layers with a softmax over the samples.
        saved_bytes: Bytes that the backward pass needs, without parameters.
    """

    called: set[str] = dataclasses.field(default_factory=set)
    outputs: Any = None
    scales: dict[str, float] = dataclasses.field(default_factory=dict)
    first_input: float | None = None
    activations: list[Activation] = dataclasses.field(default_factory=list)
    linear_pairs: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    batch_norms: dict[str, int] = dataclasses.field(default_factory=dict)
    random_layers: list[str] = dataclasses.field(default_factory=list)
    batch_softmaxes: list[str] = dataclasses.field(default_factory=list)
    saved_bytes: int = 0


class Recorder(TorchFunctionMode):
    """Records the layers and functions of everything that runs inside: ``with Recorder(module) as recording``.

    Args:
        module: The module.
        batch_size: Samples of the batch.
    """

    def __init__(self, module: nn.Module, batch_size: int) -> None:
        super().__init__()
        self.module, self.batch_size = module, batch_size
        self.recording = Recording()
        self._layers = dict(module.named_modules())
        self._names = {layer: name or type(layer).__name__ for name, layer in module.named_modules()}
        self._has_signals = any(isinstance(layer, nn.Conv1d) for layer in module.modules())
        self._running: list[str] = []
        self._incoming: list[Source | None] = []
        self._sources: dict[int, Source] = {}
        self._handles: list[Any] = []

    @contextlib.contextmanager
    def record(self) -> Iterator[Recording]:
        """Record what runs inside."""
        parameters = {id(parameter) for parameter in self.module.parameters()}
        storages: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            if id(tensor) not in parameters and tensor.layout is torch.strided and not tensor.is_meta:
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        for layer in self.module.modules():
            self._handles.append(layer.register_forward_pre_hook(self._enter))
            self._handles.append(layer.register_forward_hook(self._leave))
        try:
            with self, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                yield self.recording
        finally:
            for handle in self._handles:
                handle.remove()
            self._sources, self._handles, self._running, self._incoming = {}, [], [], []
            weights = {parameter.untyped_storage().data_ptr() for parameter in self.module.parameters()}
            self.recording.saved_bytes = sum(size for place, size in storages.items() if place not in weights)

    # Layers

    def _enter(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        name = self._names[layer]
        value = inputs[0] if inputs else None
        # What a layer got, before dropout in place changes it.
        found = self._find_source(value)
        self._running.append(name)
        self._incoming.append(found)
        self.recording.called.add(name)
        if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
            return
        if self.recording.first_input is None and isinstance(layer, WEIGHTED):
            self.recording.first_input = float(value.detach().float().square().mean().sqrt())
        if found is not None and self._are_one_layer(found, name, layer):
            self.recording.linear_pairs.append((found.name, name))
        if isinstance(layer, BATCH_NORMS) and layer.training:
            self.recording.batch_norms[name] = value.numel() // max(value.shape[1], 1) if value.ndim > 1 else 0

    def _leave(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        name, found = self._running.pop(), self._incoming.pop()
        if layer is self.module and self.recording.outputs is None:
            self.recording.outputs = output
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return
        if isinstance(layer, LINEAR):
            self._sources[id(output)] = Source(name, layer, output, torch_private.version(output))
        elif found is not None and isinstance(layer, (*PASSIVE, *BATCH_NORMS)):
            self._sources[id(output)] = found.moved_to(output, isinstance(layer, BATCH_NORMS))
        if not any(True for _ in layer.children()) and output.numel() > 1:
            self.recording.scales[name] = float(output.detach().float().std())

    def _find_source(self, value: Any) -> Source | None:
        """Return the source of ``value``; None if it has none, or other values by now."""
        source = self._sources.get(id(value))
        return source if source is not None and torch_private.version(source.tensor) == source.version else None

    def _are_one_layer(self, source: Source, name: str, layer: nn.Module) -> bool:
        """Return whether a layer and the one before it could be one."""
        first, are_neighbors = source.layer, self._are_in_one_sequence(source.name, name)
        if isinstance(layer, nn.Linear) and isinstance(first, nn.Linear):
            # A narrow layer between two wide ones limits the rank, and has a meaning.
            is_wide = first.out_features >= min(first.in_features, layer.out_features)
            return is_wide and (are_neighbors or not source.is_normalized)
        # Separable and pointwise convolutions need no function between them, nor those whose values a sum reads too.
        return are_neighbors and type(layer) is type(first) and _is_full(layer) and _is_full(first)

    def _are_in_one_sequence(self, first: str, second: str) -> bool:
        """Return whether two layers are in the same ``nn.Sequential``, so that nothing else reads the values between them."""
        parent = first.rpartition(".")[0]
        return parent == second.rpartition(".")[0] and isinstance(self._layers.get(parent), nn.Sequential)

    # Functions

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func``, and record what it returns if it is one of those that are observed."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        record = OBSERVERS.get(func)
        if record is not None and isinstance(result, Tensor) and args:
            record(self, result, args, kwargs)
        return result

    @property
    def _layer(self) -> str:
        return self._running[-1] if self._running else "the training step"

    def _record_relu(self, result: Tensor, args: Any, kwargs: Any) -> None:
        if result.ndim < 2 or len(result) != self.batch_size or len(result) < 2:
            return
        # The units are channels of images and signals, and features otherwise.
        axis = result.ndim - 1 if result.ndim == 3 and not self._has_signals else 1
        active = (result.detach() != 0).transpose(0, axis).flatten(1).any(1)
        self._add("relu", float((~active).float().mean()))

    def _record_limits(self, kind: str, low: float, result: Tensor, args: Any, kwargs: Any) -> None:
        if not result.is_floating_point() or not result.numel():
            return
        values, margin = result.detach(), 0.001 * (1 - low)
        self._add(kind, float(((values < low + margin) | (values > 1 - margin)).float().mean()))

    def _add(self, kind: str, share: float) -> None:
        self.recording.activations.append(Activation(self._layer, kind, share))

    def _record_dropout(self, result: Tensor, args: Any, kwargs: Any) -> None:
        names = ("input", "p", "training", "inplace")
        given = dict(zip(names, args, strict=False)) | kwargs
        if given.get("training", True) and given.get("p", 0.5) > 0:
            self.recording.random_layers.append(self._layer)

    def _record_softmax(self, result: Tensor, args: Any, kwargs: Any) -> None:
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        is_over_samples = dim in (0, -result.ndim) and result.ndim > 1 and len(result) == self.batch_size
        if is_over_samples and result.requires_grad:
            self.recording.batch_softmaxes.append(self._layer)


def _is_full(layer: nn.Module) -> bool:
    """Return whether a layer is a convolution over several pixels and all channels."""
    return isinstance(layer, CONVOLUTIONS) and layer.groups == 1 and max(layer.kernel_size) > 1


Observer = Callable[[Recorder, Tensor, Any, Any], None]


def _observers() -> dict[Any, Observer]:
    """Return what records the result of each function."""
    observers: dict[Any, Observer] = collections.OrderedDict()
    observers |= dict.fromkeys(RELUS, Recorder._record_relu)
    observers |= dict.fromkeys(SIGMOIDS, functools.partial(_record_limits, "sigmoid", 0.0))
    observers |= dict.fromkeys(TANHS, functools.partial(_record_limits, "tanh", -1.0))
    observers |= dict.fromkeys(DROPOUTS, Recorder._record_dropout)
    observers |= dict.fromkeys(SOFTMAXES, Recorder._record_softmax)
    return observers


def _record_limits(kind: str, low: float, recorder: Recorder, result: Tensor, args: Any, kwargs: Any) -> None:
    recorder._record_limits(kind, low, result, args, kwargs)


OBSERVERS = _observers()

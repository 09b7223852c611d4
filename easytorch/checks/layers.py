"""Checks of the layers and their parameters."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from easytorch._utils.pytree import leaves
from easytorch._utils.registry import quote_list
from easytorch._utils.torch_private import graph_leaves
from easytorch.callbacks.averaging import BATCH_NORMS
from easytorch.checks.base import Finding, check, error, info, warning
from easytorch.checks.probe import Probe, named_parameters
from easytorch.optimizer_group import parameters_of

# Below this batch size, the error of batch normalization rises fast (Y. Wu and K. He, Group Normalization, 2018, figure 1).
SMALL_BATCH = 8
# Dropout of more than this leaves too little; 0.5 is usual for hidden layers (N. Srivastava et al., Dropout, 2014, A.4).
HIGH_DROPOUT = 0.8
# The share of units that are zero for a whole batch, and of values at the limits of a sigmoid or tanh.
DEAD_SHARE, SATURATED_SHARE = 0.9, 0.9
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardswish, nn.Mish)
SHOWN_NAMES = 5


@check
def untrained_parameters(probe: Probe) -> Iterator[Finding]:
    """Find parameters that no optimizer has, although they are not frozen."""
    model = probe.model
    if model.optimizer is None or model.overrides("update"):
        return
    owned = {id(parameter) for parameter in parameters_of(model.optimizer)}
    names = [name for name, p in named_parameters(model).items() if p.requires_grad and id(p) not in owned]
    if names:
        yield error(
            f"No optimizer has {quote_list(names, SHOWN_NAMES)}: {_they(names)} will not be trained.",
            "Pass all parameters to the optimizer, or freeze these with requires_grad_(False). A layer that is created after "
            "the optimizer needs a new compile().",
            names,
        )


@check
def unregistered_parameters(probe: Probe) -> Iterator[Finding]:
    """Find weights that the outputs depend on and that the module does not know, such as those of layers in a list."""
    known = {id(p) for p in named_parameters(probe.model).values()}
    inputs = [leaf for leaf in leaves(probe.batch.x if probe.batch else None) if isinstance(leaf, Tensor)]
    # Gradients of the inputs, as for an adversarial example or a differential equation.
    shapes = {leaf.shape for leaf in inputs}
    found = [
        leaf for leaf in graph_leaves(head.y_pred for head in probe.heads)
        if id(leaf) not in known and leaf.shape not in shapes and leaf.ndim
    ]  # fmt: skip
    if found:
        listed = [str(list(leaf.shape)) for leaf in found[:SHOWN_NAMES]]
        more = f" and {len(found) - SHOWN_NAMES} more" if len(found) > SHOWN_NAMES else ""
        yield error(
            f"The outputs depend on weights that are no parameters of the module, of shape {', '.join(listed)}{more}: they are "
            "neither trained nor saved.",
            "Create layers in __init__(), in nn.ModuleList instead of a list, and tensors as nn.Parameter(tensor).",
            len(found),
        )


@check
def unused_layers(probe: Probe) -> Iterator[Finding]:
    """Find layers with parameters that did not run."""
    names = [name for name in _without_gradient(probe) if not _layer_ran(probe, name)]
    if names:
        yield warning(
            f"{quote_list(names, SHOWN_NAMES)} got no gradient, because forward() does not use {_it(names)}.",
            "Use the layer in forward(), or remove it. To keep it unused, freeze it with requires_grad_(False).",
            names,
        )


@check
def detached_layers(probe: Probe) -> Iterator[Finding]:
    """Find layers that ran, but from which no gradient comes back."""
    names = [name for name in _without_gradient(probe) if _layer_ran(probe, name)]
    if names:
        yield error(
            f"{quote_list(names, SHOWN_NAMES)} got no gradient, although the layer ran: the loss does not depend on its output, "
            "or the graph is cut behind it.",
            "Remove .detach(), .data, .item(), .numpy(), torch.tensor(...) and torch.no_grad() after the layer, or freeze it "
            "with requires_grad_(False).",
            names,
        )


@check
def idle_activations(probe: Probe) -> Iterator[Finding]:
    """Find activation functions that are defined but not called."""
    if probe.recording is None or not probe.is_standard:
        return
    names = [
        name for name, layer in probe.module.named_modules()
        if isinstance(layer, ACTIVATIONS) and name and name not in probe.recording.called
    ]  # fmt: skip
    shared = {id(layer) for layer in probe.module.modules()}
    if names and shared and not any(isinstance(layer, nn.MultiheadAttention) for layer in probe.module.modules()):
        yield warning(
            f"forward() does not call {quote_list(names, SHOWN_NAMES)}.",
            "Call the activation function in forward(), or remove it.",
            names,
        )


@check
def linear_layers(probe: Probe) -> Iterator[Finding]:
    """Find two linear layers or convolutions without an activation function between them."""
    pairs = [] if probe.recording is None else list(dict.fromkeys(probe.recording.linear_pairs))
    if pairs:
        (first, second), others = pairs[0], len(pairs) - 1
        more = f" The same holds for {others} more pair{'s' * (others > 1)}." if others else ""
        yield warning(
            f"{second!r} follows {first!r} without an activation function: together they are one linear function.{more}",
            "Put nn.ReLU() between them.",
            pairs,
        )


@check
def dead_units(probe: Probe) -> Iterator[Finding]:
    """Find layers in which a ReLU is zero for all samples of the batch, for almost all units."""
    for activation in [] if probe.recording is None else probe.recording.activations:
        if activation.kind == "relu" and activation.share >= DEAD_SHARE:
            report = error if activation.share == 1 else warning
            yield report(
                f"{activation.share:.0%} of the units of the ReLU in {activation.layer!r} are 0 for all samples of the batch, "
                "and get no gradient.",
                "Use the default initialization, biases of 0, a lower learning rate, scaled inputs, or nn.LeakyReLU().",
                activation.share,
            )
            return


@check
def saturated_layers(probe: Probe) -> Iterator[Finding]:
    """Find a sigmoid or a tanh whose values are almost all at its limits."""
    for activation in [] if probe.recording is None else probe.recording.activations:
        if activation.kind in ("sigmoid", "tanh") and activation.share >= SATURATED_SHARE and probe.is_untrained:
            yield warning(
                f"{activation.share:.0%} of the values of the {activation.kind} in {activation.layer!r} are at its limits, where "
                "the gradient is almost 0.",
                "Scale the inputs to a standard deviation of 1, and use the default initialization.",
                activation.share,
            )
            return


@check
def equal_weights(probe: Probe) -> Iterator[Finding]:
    """Find weights that all have one value, so that all units learn the same."""
    names = []
    for name, weight in probe.module.named_parameters():
        row = probe.rows.get(name)
        if weight.ndim < 2 or weight.numel() < 4 or weight.shape[0] == 1 or row is None or not probe.is_untrained:
            continue
        is_equal = bool((weight.detach() == weight.detach().flatten()[0]).all())
        # Zeros get gradients if the layers around them are not zero, as in LoRA or a residual branch.
        if is_equal and (row.weight or not row.largest):
            names.append(name)
    if names:
        yield error(
            f"All values of {quote_list(names, SHOWN_NAMES)} are equal, so that all units of the layer stay equal.",
            "Use the default initialization, or nn.init.kaiming_normal_(weight).",
            names,
        )


@check
def small_batches(probe: Probe) -> Iterator[Finding]:
    """Find batch normalization over few samples."""
    layers = [] if probe.recording is None else list(probe.recording.batch_norms)
    if not layers:
        return
    fix = "Use a larger batch_size, nn.GroupNorm or nn.LayerNorm. gradient_accumulation_steps does not help batch normalization."
    if probe.batch_size < SMALL_BATCH:
        yield warning(
            f"{layers[0]!r} normalizes over batches of only {probe.batch_size} samples.", fix, probe.batch_size
        )
    # A last batch of one sample, of which a channel may have only one value.
    rest = (probe.samples or 0) % max(probe.batch_size, 1)
    values = min(probe.recording.batch_norms.values()) if probe.recording is not None else 0
    if rest == 1 and not _drops_last(probe) and values == probe.batch_size:
        yield error(
            f"The last batch of an epoch has 1 sample, for which {layers[0]!r} raises an error.",
            "Pass DataLoader(..., drop_last=True), or another batch_size.",
            rest,
        )


@check
def layers_in_eval_mode(probe: Probe) -> Iterator[Finding]:
    """Find layers that stay in eval mode while their parameters are trained."""
    if not probe.module.training:
        return  # fit sets all layers to train mode
    names = []
    for name, layer in probe.module.named_modules():
        if layer.training or not isinstance(layer, (*BATCH_NORMS, *DROPOUTS)):
            continue
        parent = probe.module.get_submodule(name.rpartition(".")[0])
        owner = layer if isinstance(layer, BATCH_NORMS) and layer.affine else parent
        parameters = list(owner.parameters())
        if parameters and all(parameter.requires_grad for parameter in parameters):
            names.append(name)
    if names:
        yield warning(
            f"{quote_list(names, SHOWN_NAMES)} {'is' if len(names) == 1 else 'are'} in eval mode in a module that is trained.",
            "Call net.train() before fit(), or freeze the parameters of the layers too: callbacks.Freeze.",
            names,
        )


@check
def high_dropout(probe: Probe) -> Iterator[Finding]:
    """Find dropout that removes almost everything."""
    for name, layer in probe.module.named_modules():
        if isinstance(layer, DROPOUTS) and layer.p > HIGH_DROPOUT:
            yield warning(
                f"{name!r} sets {layer.p:.0%} of the values to 0. The argument of nn.Dropout is the share that is dropped.",
                f"Use nn.Dropout({max(1 - layer.p, 0.1):.1g}), or 0.2 to 0.5.",
                layer.p,
            )
            return


@check
def frozen_module(probe: Probe) -> Iterator[Finding]:
    """Report how many parameters are frozen."""
    parameters = list(probe.module.parameters())
    frozen = sum(parameter.numel() for parameter in parameters if not parameter.requires_grad)
    total = sum(parameter.numel() for parameter in parameters)
    if frozen:
        yield info(f"{frozen:,} of {total:,} parameters are frozen.", frozen)


def _without_gradient(probe: Probe) -> list[str]:
    """Return the names of parameters of the optimizer that got no gradient in the first update."""
    model = probe.model
    if model.optimizer is None or model.overrides("update") or not probe.rows:
        return []
    owned = {id(parameter) for parameter in parameters_of(model.optimizer)}
    parameters = named_parameters(model)
    return [name for name, row in probe.rows.items() if row.gradient is None and id(parameters[name]) in owned]


def _layer_ran(probe: Probe, parameter: str) -> bool:
    """Return whether the layer with a parameter ran; of a parameter of the module itself, False."""
    layer = parameter.rpartition(".")[0]
    return probe.recording is not None and layer != "" and layer in probe.recording.called


def _drops_last(probe: Probe) -> bool:
    return (probe.steps or 0) * probe.batch_size < (probe.samples or 0)


def _they(names: list[str]) -> str:
    return "it" if len(names) == 1 else "they"


def _it(names: list[str]) -> str:
    return "it" if len(names) == 1 else "them"

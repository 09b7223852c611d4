"""Conversion to the plain values that a file can hold."""

from __future__ import annotations

from typing import Any

import torch

DEPTH = 50


def _bare(tensor: torch.Tensor) -> torch.Tensor | None:
    """Return ``tensor`` without subclass and attributes, with memory for all its values; None if no file can hold it."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        return None
    if hasattr(tensor, "full_tensor"):  # a part of one, which is written by itself
        return tensor
    if type(tensor) is not torch.nn.Parameter and (type(tensor) is not torch.Tensor or vars(tensor)):
        if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:  # its values are elsewhere
            return None
        tensor = tensor.as_subclass(torch.Tensor)
    expanded = tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
    return tensor.clone(memory_format=torch.contiguous_format) if expanded else tensor


def _key(key: Any, where: str) -> Any:
    if type(key) in (str, bool) or (type(key) is int and abs(key) < 2**63):
        return key
    raise TypeError(
        f"{where} has the key {key!r} of type {type(key).__name__}; keys in a file are text or whole numbers."
    )

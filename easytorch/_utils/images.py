"""Images as arrays of bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from easytorch._utils.pytree import to_numpy

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def to_pixels(image: Any) -> Pixels:
    """Return an image as bytes, ``[height, width, 1, 3 or 4]``.

    Args:
        image: A tensor or an array, ``[height, width]``, ``[channels, height, width]`` or ``[height, width, channels]``. Bytes
            stay as they are, as do other integers from 0 to 255 if one is above 1. True is white. Other numbers from 0 to 1 are
            black to white, also integers, as of a mask; if some are outside of this range, the lowest is black and the highest
            white. Values that are not finite are black.

    Raises:
        ValueError: If the shape is not that of an image.
    """
    array = np.asarray(to_numpy(image))
    if array.ndim == 2:
        array = array[..., None]
    elif (
        array.ndim == 3
        and array.shape[0] in (1, 3, 4)
        and (array.shape[-1] not in (1, 3, 4) or min(array.shape[1:]) > 4)
    ):
        array = np.moveaxis(array, 0, -1)
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or not array.size:
        raise ValueError(
            "An image must be [height, width], [channels, height, width] or [height, width, channels] with 1, 3 or 4 channels, "
            f"received an array of shape {list(np.shape(image))}. For a batch of images, pass one of them: images[0]."
        )
    if array.dtype == np.uint8 or (array.dtype.kind in "iu" and array.min() >= 0 and 1 < array.max() <= 255):
        return np.ascontiguousarray(array, dtype=np.uint8)
    values = array.astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if low < 0 or high > 1:
        values = (values - low) / (high - low if high > low else 1)
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    return np.ascontiguousarray((values * 255).round().astype(np.uint8))


def figure_to_pixels(figure: Any) -> Pixels:
    """Return a figure of matplotlib as bytes, ``[height, width, 3]``.

    Raises:
        TypeError: If it is no figure.
    """
    if not hasattr(figure, "savefig") or not hasattr(figure, "set_size_inches"):
        raise TypeError(f"figure must be a figure of matplotlib, received {type(figure).__name__}. Pass report.plot().")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = figure.canvas
    try:
        drawing: Any = FigureCanvasAgg(figure)
        drawing.draw()
        pixels: Pixels = np.array(drawing.buffer_rgba())[..., :3].copy()
    finally:
        # The figure may belong to a window.
        figure.set_canvas(canvas)
    return pixels

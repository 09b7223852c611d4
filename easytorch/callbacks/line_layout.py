"""Lines that fit the width of a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

# A part of a line, which starts with its own separator, and then its shorter forms.
Forms = Sequence[str]


def fit_to_width(
    parts: Mapping[str, Forms], order: Iterable[str], width: int, measure: Callable[[str], int]
) -> dict[str, str]:
    """Return the text of each part, so that the line is at most ``width`` cells wide if that is possible.

    Args:
        parts: The forms of each part, from left to right. The last form may be empty, which drops the part.
        order: The names of the parts in the order in which they are shortened, the least important first. Each occurrence of a
            name takes the next form of its part.
        width: Width of the terminal, in cells.
        measure: Returns the number of cells of a text.
    """
    texts = {name: forms[0] for name, forms in parts.items()}
    shorter = {name: iter(forms[1:]) for name, forms in parts.items()}
    excess = sum(map(measure, texts.values())) - width
    for name in order:
        if excess <= 0:
            break
        text = next(shorter[name])
        excess -= measure(texts[name]) - measure(text)
        texts[name] = text
    return texts

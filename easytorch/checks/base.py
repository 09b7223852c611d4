"""Findings, and the list of all checks."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from easytorch.checks.probe import Probe

# From the worst to what is no problem.
SEVERITIES = ("error", "warning", "info")

Check = Callable[["Probe"], "Iterable[Finding]"]
CHECKS: list[Check] = []


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a check has found.

    Attributes:
        severity: ``"error"`` for what cannot work, ``"warning"`` for what makes the result worse, ``"info"`` for a fact.
        message: What is wrong, in a sentence.
        fix: What to do; empty for a fact.
        name: The name of the check.
        value: The number behind the message, if there is one.

    Examples:
        >>> finding = Finding("warning", "The batch is large.", "Pass a smaller batch_size.")
        >>> finding.is_problem
        True
    """

    severity: str
    message: str
    fix: str = ""
    name: str = ""
    value: Any = None

    @property
    def is_problem(self) -> bool:
        """Whether it is an error or a warning."""
        return self.severity != "info"

    def __repr__(self) -> str:
        return f"{self.severity} {self.name}: {self.message} {self.fix}".rstrip()


def check(function: Check) -> Check:
    """Add a function to the checks of ``Model.check``; it yields findings, which get its name.

    Examples:
        >>> @check
        ... def large_batches(probe):
        ...     if probe.batch_size > 10_000:
        ...         yield warning(f"A batch has {probe.batch_size:,} samples.", "Pass a smaller batch_size.")
    """
    CHECKS.append(function)
    return function


def error(message: str, fix: str, value: Any = None) -> Finding:
    """Return a finding about a program that cannot work.

    Args:
        message: What is wrong, in a sentence.
        fix: What to do, in a sentence.
        value: The number behind the message, if there is one.

    Examples:
        >>> def large_batches(probe):
        ...     if probe.batch_size > 10_000:
        ...         yield easytorch.checks.error("The batch is large.", "Pass a smaller batch_size.")
        >>> report = model.check(x, y, checks=[large_batches])
    """
    return Finding("error", message, fix, value=value)


def warning(message: str, fix: str, value: Any = None) -> Finding:
    """Return a finding about a program whose result will be worse than it could be.

    Args:
        message: What is wrong, in a sentence.
        fix: What to do, in a sentence.
        value: The number behind the message, if there is one.

    Examples:
        >>> def large_batches(probe):
        ...     if probe.batch_size > 10_000:
        ...         yield easytorch.checks.warning("The batch is large.", "Pass a smaller batch_size.")
        >>> report = model.check(x, y, checks=[large_batches])
    """
    return Finding("warning", message, fix, value=value)


def info(message: str, value: Any = None, fix: str = "") -> Finding:
    """Return a fact.

    Args:
        message: The fact, in a sentence.
        value: The number behind the message, if there is one.
        fix: What could be done, if anything.

    Examples:
        >>> def large_batches(probe):
        ...     if probe.batch_size > 10_000:
        ...         yield easytorch.checks.info(f"A batch has {probe.batch_size} samples.", probe.batch_size)
        >>> report = model.check(x, y, checks=[large_batches])
    """
    return Finding("info", message, fix, value=value)


# What the sentence with the fix starts with, in the messages of this package: "Use ...", "For two classes, use ...".
IMPERATIVES = re.compile(
    r"(?<=\. )(?:(?:Add|Change|Check|Convert|Divide|End|Freeze|Give|If|Keep|Let|Look|Override|Pad|Pass|Put|Remove|Renumber|"
    r"Replace|Return|Scale|Set|Use)\b|(?:For|To) [^.,]+, (?:add|give|pass|use)\b|[^.:]+: (?:pass|use)\b)"
)


def split_message(text: str) -> tuple[str, str]:
    """Return what is wrong and the fix of a message of this package."""
    start = IMPERATIVES.search(text)
    return (text[: start.start()].strip(), text[start.start() :]) if start else (text, "")

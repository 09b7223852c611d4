"""Exceptions that users may catch."""

from __future__ import annotations


class FileError(ValueError):
    """A file that is not what it should be: its name, what is wrong with it, and what to do."""


class ResumeError(ValueError):
    """A run that cannot go on exactly where it stopped: why, and what to do."""

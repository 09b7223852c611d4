"""A stand-in for IPython in a notebook, which records what is displayed."""

from __future__ import annotations

import sys
import types

import pytest


class FakeNotebook:
    """Outputs of a notebook.

    Attributes:
        updates: Everything that was sent, in this order: a bundle of contents by type, or an object.
        outputs: What the running cell shows now, one entry per output.
    """

    def __init__(self):
        self.updates, self.outputs = [], []
        # IPython's class in a kernel; that of Colab is a subclass.
        self.shell = type("Shell", (type("ZMQInteractiveShell", (), {}),), {})()
        self.shell.execution_count = 1

    @property
    def pages(self):
        """The HTML of all updates."""
        return [update["text/html"] for update in self.updates]

    @property
    def page(self):
        """The HTML that the running cell shows."""
        return "".join(output["text/html"] for output in self.outputs)

    def start_cell(self):
        self.shell.execution_count += 1
        self.outputs = []

    def display(self, content, raw=False, display_id=None):
        index = len(self.outputs)
        self.outputs.append(content)
        self.updates.append(content)
        return types.SimpleNamespace(update=lambda content, raw=False: self._update(self.outputs, index, content))

    def _update(self, outputs, index, content):
        outputs[index] = content
        self.updates.append(content)


@pytest.fixture
def notebook(monkeypatch):
    notebook = FakeNotebook()
    package, module = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    package.get_ipython = lambda: notebook.shell
    package.version_info = (9, 0)  # matplotlib reads it
    module.display = notebook.display
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return notebook

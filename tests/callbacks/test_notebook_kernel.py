"""A real notebook, executed by one kernel: what it shows, and how much it sends to the browser."""

from __future__ import annotations

import json
import re

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

pytestmark = pytest.mark.slow

SETUP = """
import os, signal
import torch
from torch import nn
from easytorch import Model
from easytorch.callbacks import LambdaCallback, LivePlot

torch.manual_seed(0)
x, y = torch.randn(64, 10), torch.randint(0, 2, (64,))

def compiled_model():
    net = nn.Sequential(nn.Linear(10, 2))
    return Model(net, device="cpu").compile("sgd", "cross_entropy", metrics=["accuracy"])

def in_second_epoch(action):
    epochs = []
    return LambdaCallback(
        on_epoch_begin=lambda epoch, logs: epochs.append(epoch),
        on_train_batch_end=lambda batch, logs: action() if (epochs[-1], batch) == (1, 2) else None,
    )

def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)
"""

# In this order. No cell before "plot in the middle" has imported pyplot.
CELLS = {
    "setup": SETUP,
    "fit": "model = compiled_model()\nhistory = model.fit(x, y, epochs=3, validation_data=(x, y))",
    "plot in the middle": "history.plot()\nprint('after')",
    "plot as value": "history.plot()",
    "plot to a file": "history.plot(path='curves.png')\nprint('after')",
    "imports": "import matplotlib.pyplot as plt",
    "plot as value, with pyplot": "history.plot()",
    "plot in the middle, with pyplot": "history.plot()\nprint('after')",
    "plot and plt.show": "history.plot()\nplt.show()",
    "plot and its show": "history.plot().show()",
    "changed plot": "figure = history.plot()\nfigure.axes[0].set_yscale('log')",
    "changed plot, again": "figure",
    "plot after %matplotlib inline": "%matplotlib inline\nhistory.plot()",
    "plot in the middle, after %matplotlib inline": "history.plot()\nprint('after')",
    "plot, inline and plt.show": "history.plot()\nplt.show()",
    "open figures": "print(plt.get_fignums())",
    "fit as value": "model.fit(x, y, epochs=2)",
    "history as value": "history",
    "model as value": "model",
    "summary as value": "model.summary()",
    "evaluate as value": "model.evaluate(x, y)",
    "evaluate in the middle": "scores = model.evaluate(x, y)\nprint('after')",
    "scores as value": "scores",
    "many epochs": "_ = compiled_model().fit(x, y, batch_size=64, epochs=4000)",
    "live curves": "_ = compiled_model().fit(x, y, epochs=30, callbacks=[LivePlot()])",
    "error": "_ = compiled_model().fit(x, y, epochs=3, batch_size=8, callbacks=[in_second_epoch(lambda: 1 / 0)])",
    "interrupt": "compiled_model().fit(x, y, epochs=3, batch_size=8, callbacks=[in_second_epoch(press_ctrl_c)])",
}
PLOTS = [name for name in CELLS if "plot" in name]


class Result:
    """What one cell shows, and the bytes that it has sent."""

    def __init__(self):
        self.outputs, self.sent = [], 0

    @property
    def images(self):
        return sum("image/png" in output.get("data", {}) for output in self.outputs)

    @property
    def pages(self):
        return [output["data"]["text/html"] for output in self.outputs if "text/html" in output.get("data", {})]

    @property
    def epochs(self):
        return re.findall(r"<tr><td[^>]*>(.*?)</td>", "".join(self.pages))

    @property
    def stored(self):
        return len(json.dumps(self.outputs))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Execute the notebook, and return the result of each cell by name."""
    results = {name: Result() for name in CELLS}
    by_index = list(results.values())

    class Client(nbclient.NotebookClient):
        def process_message(self, message, cell, cell_index):
            if message["msg_type"] in ("display_data", "update_display_data", "execute_result", "stream"):
                by_index[cell_index].sent += len(json.dumps(message["content"]))
            return super().process_message(message, cell, cell_index)

    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, CELLS.values())))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MPLBACKEND", raising=False)
        folder = str(tmp_path_factory.mktemp("notebook"))
        Client(notebook, timeout=300, allow_errors=True, resources={"metadata": {"path": folder}}).execute()
    for result, cell in zip(by_index, notebook.cells, strict=True):
        result.outputs = cell.outputs
    return results


def test_no_cell_fails_but_the_one_that_must(results):
    failed = {
        name: output["evalue"] for name, result in results.items() for output in result.outputs if "evalue" in output
    }
    failed.pop("interrupt", None)
    assert failed == {"error": "division by zero"}


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_is_one_image(results, name):
    assert results[name].images == 1


def test_no_figure_stays_open(results):
    assert results["open figures"].outputs[0]["text"].strip() == "[]"


def test_a_fit_is_one_table_with_a_row_per_epoch(results):
    assert results["fit"].epochs == ["1/3", "2/3", "3/3"]
    assert len(results["fit"].outputs) == 1
    assert "<progress" not in results["fit"].pages[0]


def test_a_fit_as_value_does_not_repeat_its_rows(results):
    assert results["fit as value"].epochs == ["4/5", "5/5"]
    assert results["history as value"].epochs == ["1", "2", "3"]


def test_the_numbers_of_an_evaluation_are_shown_once(results):
    for name in ("evaluate as value", "evaluate in the middle", "scores as value"):
        assert len([page for page in results[name].pages if page]) == 1
    assert "Scores on the given data" in "".join(results["evaluate as value"].pages)
    assert "Evaluated on the given data" in "".join(results["evaluate in the middle"].pages)


def test_model_and_summary_are_small_tables(results):
    for name in ("model as value", "summary as value"):
        assert len(results[name].pages) == 1
        assert results[name].stored < 5000


def test_4000_epochs_send_little_and_store_little(results, record_property):
    many = results["many epochs"]
    assert many.epochs == [f"{epoch}/4000" for epoch in range(3981, 4001)]
    assert "... 3,980 earlier epochs: history.to_frame()" in many.pages[0]
    record_property("bytes of 4,000 epochs", f"sent {many.sent}, stored {many.stored}")
    assert many.sent < 2_000_000
    assert many.stored < 10_000


def test_live_curves_are_one_image_below_the_table(results):
    assert ["text/html" in output["data"] for output in results["live curves"].outputs] == [True, False]
    assert results["live curves"].images == 1


@pytest.mark.parametrize("name", ["error", "interrupt"])
def test_the_row_of_the_unfinished_epoch_stays(results, name):
    assert results[name].epochs == ["1/3", "2/3, stopped at 3/8"]


def test_an_interrupted_row_has_the_values_of_its_last_update(results):
    page = results["interrupt"].pages[0]
    assert re.search(r"stopped at 3/8</td><td[^>]*>[^<]+</td><td[^>]*>\d\.\d{4}</td><td[^>]*>\d\.\d{4}</td>", page)

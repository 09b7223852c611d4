"""Curves that are drawn while a fit runs."""

from __future__ import annotations

import sys

import pytest

from easytorch import Model
from easytorch._utils.notebook import Output
from easytorch.callbacks import LambdaCallback, LivePlot, live_plot
from tests.loops import blobs, mlp

X, Y = blobs(32)
PNG = b"\x89PNG"


class Clock:
    """A clock that advances only when a test advances it."""

    now = 1000.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(live_plot, "time", clock)
    return clock


def fit(epochs, plot, clock=None, seconds=0.0, **options):
    def advance(epoch, logs):
        clock.now += seconds

    model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy", metrics=["accuracy"])
    callbacks = [plot, *([LambdaCallback(on_epoch_end=advance)] if clock else [])]
    return model.fit(X, Y, epochs=epochs, callbacks=callbacks, verbose=0, **options)


def epochs_shown(figure):
    return len(figure.axes[0].lines[0].get_xdata())


def test_a_notebook_shows_one_figure_that_is_redrawn(notebook, clock):
    fit(9, LivePlot(), clock, 1.0, validation_data=(X, Y))
    assert len(notebook.outputs) == 1
    assert [epochs_shown(figure) for figure in notebook.updates] == [1, 3, 5, 7, 9]
    assert [axes.get_title() for axes in notebook.outputs[0].axes] == ["loss", "accuracy"]


def test_the_last_figure_has_all_epochs(notebook, clock):
    fit(50, LivePlot(), clock, 0.01)
    assert [epochs_shown(figure) for figure in notebook.updates] == [1, 50]


def test_a_figure_that_takes_long_is_drawn_less_often(notebook, clock, monkeypatch):
    drawn = []

    def show_slowly(self, figure):
        drawn.append(figure)
        clock.now += 1

    monkeypatch.setattr(Output, "show_value", show_slowly)
    fit(50, LivePlot(), clock, 1.0)
    assert len(drawn) <= 4


def test_only_the_named_values_are_drawn(notebook):
    fit(2, LivePlot("accuracy"))
    assert [axes.get_title() for axes in notebook.outputs[0].axes] == ["accuracy"]


def test_a_name_that_is_not_in_the_first_epoch_is_drawn_later(notebook):
    fit(2, LivePlot("val_loss"), validation_data=(X, Y), validation_freq=2)
    assert len(notebook.updates) == 1
    assert list(notebook.outputs[0].axes[0].lines[1].get_xdata()) == [2]


def test_pyplot_does_not_know_the_figures(notebook):
    from matplotlib import pyplot

    fit(2, LivePlot())
    assert pyplot.get_fignums() == []


def test_an_unknown_name_is_refused_before_training(notebook):
    with pytest.raises(ValueError, match=r"LivePlot plots 'acuracy'.*Did you mean 'accuracy'"):
        fit(2, LivePlot("acuracy"))


def test_a_script_needs_a_file():
    with pytest.raises(ValueError, match=r"does not run in one\. .*LivePlot\(path='curves\.png'\)"):
        LivePlot()


def test_a_script_writes_the_file_and_creates_its_folder(tmp_path):
    path = tmp_path / "run" / "curves.png"
    fit(2, LivePlot(path=path))
    assert path.read_bytes().startswith(PNG)


def test_a_file_that_matplotlib_cannot_write_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"cannot write 'curves\.txt'.*path='curves\.png'"):
        LivePlot(path="curves.txt")


def test_a_missing_matplotlib_is_reported_before_training(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    with pytest.raises(ImportError, match="LivePlot needs matplotlib: pip install matplotlib"):
        LivePlot()


def test_verbose_plot_names_the_callback():
    model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy")
    with pytest.raises(ValueError, match=r"Unknown verbose 'plot'.*callbacks=\[LivePlot\(\)\]"):
        model.fit(X, Y, verbose="plot")

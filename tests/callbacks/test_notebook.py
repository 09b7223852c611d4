"""Progress in a notebook, and values of cells."""

from __future__ import annotations

import gc
import os
import re
import signal
import weakref

import pytest
import torch
from torch import nn

from easytorch import Model
from easytorch._utils.html_table import format_table
from easytorch._utils.notebook import in_notebook
from easytorch.callbacks import LambdaCallback, progress
from easytorch.callbacks import notebook as notebook_module
from tests.loops import blobs, mlp

X, Y = blobs(32)


class Clock:
    """A clock that advances only when a test advances it."""

    def __init__(self):
        self.now = 1000.0

    def perf_counter(self):
        return self.now

    def after_batches(self, seconds):
        """Return a callback that makes each batch take ``seconds``."""

        def advance(batch, logs):
            self.now += seconds

        return LambdaCallback(on_train_batch_end=advance, on_test_batch_end=advance, on_predict_batch_end=advance)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in (progress, notebook_module):
        monkeypatch.setattr(module, "time", clock)
    return clock


def compiled_model():
    return Model(mlp(), device="cpu").compile("sgd", "cross_entropy", metrics=["accuracy"])


def fit(epochs, *callbacks, model=None, **options):
    return (model or compiled_model()).fit(X, Y, epochs=epochs, batch_size=8, callbacks=callbacks, **options)


def rows(page):
    """Return the cells of each row below the header."""
    lines = re.findall(r"<tr>(.*?)</tr>", page)
    return [re.findall(r"<td[^>]*>(.*?)</td>", line) for line in lines if "<td" in line]


def columns(page):
    return re.findall(r"<th(?: [^>]*)?>(.*?)</th>", page)


# A fit


def test_a_notebook_shows_one_row_per_epoch(notebook, clock):
    history = fit(3, clock.after_batches(0.25), validation_data=(X, Y))
    assert len(notebook.outputs) == 1
    assert [row[0] for row in rows(notebook.page)] == ["1/3", "2/3", "3/3"]
    assert columns(notebook.page) == ["epoch", "time", "loss", "accuracy", "val_loss", "val_accuracy", "lr"]
    last = [f"{history[name][-1]:.4f}" for name in ("loss", "accuracy", "val_loss", "val_accuracy")]
    assert rows(notebook.page)[-1] == ["3/3", "2.0 s", *last, "0.001"]
    assert "<progress" not in notebook.page


def test_the_bar_shows_steps_rate_and_times(notebook, clock):
    fit(2, clock.after_batches(0.5))
    bar = next(page for page in notebook.pages if 'value="2"' in page)
    assert '<progress value="2" max="4"' in bar
    assert re.search(r"<b>Epoch 1/2</b>  2/4  ·  [12](\.\d)?/s  ·  [\d.]+ m?s elapsed, [\d.]+ m?s left  ·  fit: ", bar)
    assert re.search(r"fit: [\d.]+ m?s elapsed, [\d.]+ m?s left", bar)


def test_a_bar_of_unknown_length_counts_steps(notebook, clock):
    compiled_model().fit(iter([(X, Y)] * 4), callbacks=[clock.after_batches(1)])
    assert any(re.search(r"<progress style.*step 2  ·", page) for page in notebook.pages)


def test_the_columns_are_the_same_from_the_first_page_to_the_last(notebook, clock):
    fit(3, clock.after_batches(0.3), validation_data=(X, Y), validation_freq=2)
    assert len(notebook.pages) > 5
    assert len({tuple(columns(page)) for page in notebook.pages}) == 1


def test_a_validation_does_not_replace_the_values_of_training(notebook, clock):
    fit(1, clock.after_batches(0.6), validation_data=(X, Y))
    before = next(page for page in reversed(notebook.pages) if "<b>Epoch 1/1</b>" in page)
    during = next(page for page in notebook.pages if "<b>Epoch 1/1 validation</b>" in page)
    assert rows(during)[0][2:4] == rows(before)[0][2:4]
    assert rows(before)[0][4:6] == ["", ""]
    assert "" not in rows(during)[0][4:6]


def test_a_notebook_gets_at_most_two_updates_a_second(notebook, clock):
    start = clock.now
    fit(200, clock.after_batches(0.01), validation_data=(X, Y))
    seconds = clock.now - start
    assert seconds > 10
    # One update at the start and one at the end come on top.
    assert seconds < len(notebook.updates) <= 2 * seconds + 2


def test_short_epochs_are_shown_as_often_as_long_ones(notebook, clock):
    start = clock.now
    fit(100, clock.after_batches(0.06))
    assert len(notebook.updates) > 1.5 * (clock.now - start)


def test_a_table_shows_the_last_epochs_and_the_number_of_the_others(notebook, clock):
    history = fit(150, clock.after_batches(0.01))
    assert [row[0] for row in rows(notebook.page)] == [f"{epoch}/150" for epoch in range(131, 151)]
    assert "... 130 earlier epochs: history.to_frame()" in notebook.page
    assert max(map(len, notebook.pages)) < 6000
    notebook.start_cell()
    assert "... 130 earlier epochs: history.to_frame()" in history._repr_html_()
    assert [row[0] for row in rows(history._repr_html_())] == [str(epoch) for epoch in range(131, 151)]


def test_a_table_has_where_the_time_of_the_last_epoch_went(notebook):
    fit(2)
    assert re.search(r"<div[^>]*>Epoch 2/2: data \d+%, model \d+%, optimizer \d+%, rest \d+%</div>", notebook.page)


def test_no_epoch_is_in_a_table_twice(notebook, clock):
    fit(5, clock.after_batches(0.3), validation_data=(X, Y))
    for page in notebook.pages:
        epochs = [row[0] for row in rows(page)]
        assert len(set(epochs)) == len(epochs)
        assert not any("Epoch" in cell for row in rows(page) for cell in row)


# The end of a fit


def stop_at(epoch, batch, error=None):
    """Return a callback that presses Ctrl-C, or raises ``error``, after a batch of an epoch."""
    position = {"epoch": -1}

    def start(index, logs):
        position["epoch"] = index

    def stop(index, logs):
        if (position["epoch"], index) == (epoch, batch):
            if error is not None:
                raise error
            os.kill(os.getpid(), signal.SIGINT)

    return LambdaCallback(on_epoch_begin=start, on_train_batch_end=stop)


def test_the_row_of_an_interrupted_epoch_stays(notebook, clock):
    model = compiled_model()
    fit(3, clock.after_batches(0.01), stop_at(1, 2), model=model, on_interrupt="return")
    assert [row[0] for row in rows(notebook.page)] == ["1/3", "2/3, stopped at 3/4"]
    # The values are those of the last update, although no redraw was due.
    assert re.fullmatch(r"\d\.\d{4}", rows(notebook.page)[1][2])
    assert "<progress" not in notebook.page


def test_the_row_of_a_failed_epoch_stays(notebook, clock):
    with pytest.raises(RuntimeError, match="broken"):
        fit(3, clock.after_batches(0.6), stop_at(1, 2, RuntimeError("broken")))
    assert [row[0] for row in rows(notebook.page)] == ["1/3", "2/3, stopped at 3/4"]
    assert "<progress" not in notebook.page


def test_an_epoch_that_stops_in_its_validation_stays(notebook):
    stop = LambdaCallback(on_test_batch_end=lambda batch, logs: os.kill(os.getpid(), signal.SIGINT))
    fit(2, stop, validation_data=(X, Y), on_interrupt="return")
    assert [row[0] for row in rows(notebook.page)] == ["1/2, stopped in the validation"]


def test_a_fit_that_fails_before_its_first_update_leaves_nothing(notebook):
    model = Model(nn.Linear(8, 3), device="cpu").compile("sgd", "cross_entropy")
    with pytest.raises(Exception, match="8"):
        model.fit(torch.ones(4, 5), torch.zeros(4, dtype=torch.int64))
    assert notebook.page == ""


def test_a_row_that_a_later_fit_stops_is_no_row_of_the_history(notebook):
    model = compiled_model()
    history = fit(2, model=model)
    notebook.start_cell()
    assert fit(3, stop_at(2, 1), model=model, on_interrupt="return").epoch == history.epoch
    assert "3/5, stopped at 2/4" in notebook.page
    assert len(rows(history._repr_html_())) == 2


# Evaluations and predictions


def test_an_evaluation_leaves_one_line(notebook, clock):
    scores = compiled_model().evaluate(X, Y, batch_size=8, callbacks=[clock.after_batches(0.4)])
    line = f"Evaluated on the given data  1.6 s  loss {scores.loss:.4f}  accuracy {scores.accuracy:.4f}"
    assert re.fullmatch(r"<div[^>]*>(.*)</div>", notebook.page)[1] == line
    assert any('<progress value="2" max="4"' in page and "<b>Evaluating</b>" in page for page in notebook.pages)


def test_a_short_prediction_leaves_no_output(notebook):
    compiled_model().predict(X)
    assert notebook.outputs == []


def test_a_long_prediction_removes_its_bar(notebook, clock):
    compiled_model().predict(X, batch_size=8, callbacks=[clock.after_batches(0.4)])
    assert any("<b>Predicting</b>" in page for page in notebook.pages)
    assert notebook.page == ""


def test_a_failed_evaluation_shows_where_it_stopped(notebook, clock):
    def fail(batch, logs):
        if batch == 3:
            raise RuntimeError("broken")

    callbacks = [clock.after_batches(0.6), LambdaCallback(on_test_batch_end=fail)]
    with pytest.raises(RuntimeError, match="broken"):
        compiled_model().evaluate(X, Y, batch_size=8, callbacks=callbacks)
    assert re.match(r"<div[^>]*>Evaluating  stopped at 3/4", notebook.page)
    assert "<progress" not in notebook.page


# Values of cells


def test_scores_as_value_of_the_cell_replace_the_line(notebook):
    scores = compiled_model().evaluate(X, Y)
    table = scores._repr_html_()
    assert notebook.page == ""
    assert "Scores on the given data" in table
    assert rows(table) == [["loss", f"{scores.loss:.4f}"], ["accuracy", f"{scores.accuracy:.4f}"]]


def test_scores_in_a_later_cell_leave_the_line_in_place(notebook):
    scores = compiled_model().evaluate(X, Y)
    notebook.start_cell()
    updates = len(notebook.updates)
    assert len(rows(scores._repr_html_())) == 2
    assert len(notebook.updates) == updates


def test_a_history_does_not_repeat_the_table_of_its_cell(notebook):
    history = fit(2)
    assert history._repr_html_() is None
    assert len(rows(notebook.page)) == 2
    notebook.start_cell()
    assert [row[0] for row in rows(history._repr_html_())] == ["1", "2"]


def test_verbose_0_shows_nothing_and_values_show_all(notebook):
    model = compiled_model()
    history = fit(2, model=model, verbose=0)
    scores = model.evaluate(X, Y, verbose=0)
    assert notebook.outputs == []
    assert len(rows(history._repr_html_())) == len(rows(scores._repr_html_())) == 2


def test_a_summary_is_a_table_that_is_shown_once(notebook, capsys):
    statistics = compiled_model().summary(X)
    assert len(notebook.outputs) == 1
    assert columns(notebook.page) == ["Layer (type (var_name))", "Output Shape", "Param #", "Mult-Adds"]
    assert "195 parameters: 195 trainable, 0 not" in notebook.page
    assert capsys.readouterr().out.startswith("Memory for training")
    assert statistics._repr_html_() is None
    page = notebook.page
    notebook.start_cell()
    assert statistics._repr_html_() == page


def test_a_summary_has_the_columns_and_the_depth_of_its_options(notebook):
    Model(nn.Sequential(mlp()), device="cpu").summary(X, col_names=("input_size", "trainable"), depth=1)
    assert columns(notebook.page)[1:] == ["Input Shape", "Trainable"]
    assert len(rows(notebook.page)) == 2


def test_a_model_is_a_small_table(notebook):
    model = compiled_model()
    fit(2, model=model, verbose=0)
    facts = dict(rows(model._repr_html_()))
    assert facts["module"] == "Sequential, 195 parameters"
    assert facts["optimizer"] == "SGD, lr 0.001"
    assert facts["metrics"] == "accuracy"
    assert facts["trained"] == "2 epochs, 8 updates"
    assert len(model._repr_html_()) < 2000


def test_a_model_without_compile_is_a_table_too():
    assert "compile() was not called" in Model(mlp(), device="cpu")._repr_html_()


def test_a_model_with_lazy_layers_is_a_table_too():
    assert "first batch decides" in Model(nn.Sequential(nn.LazyLinear(3)), device="cpu")._repr_html_()


def test_values_outside_of_a_notebook_are_the_same_tables():
    history = fit(2, verbose=0)
    assert len(rows(history._repr_html_())) == 2
    assert Model(mlp(), device="cpu").history._repr_html_() is None


def test_outputs_do_not_hold_a_model_that_was_deleted(notebook):
    model = compiled_model()
    fit(1, model=model)
    model.evaluate(X, Y)
    model.summary(X)
    module = weakref.ref(model.module)
    del model
    gc.collect()
    assert module() is None


def test_tables_escape_names_and_have_no_colors(notebook):
    def add(epoch, logs):
        logs["<script>&"] = 1 / 3
        logs["note"] = "<b>bold</b>"

    model = compiled_model()
    history = fit(1, LambdaCallback(on_epoch_end=add), model=model)
    notebook.start_cell()
    for table in (*notebook.pages, history._repr_html_(), model._repr_html_()):
        assert "<script>" not in table
        assert "<b>bold" not in table
        assert "color" not in table
    assert "&lt;script&gt;&amp;" in history._repr_html_()


def test_a_table_has_a_column_for_every_name():
    table = format_table([{"epoch": "1", "loss": "1"}, {"epoch": "2", "val_loss": "3"}], ["epoch"])
    assert columns(table) == ["epoch", "loss", "val_loss"]
    assert rows(table) == [["1", "1", ""], ["2", "", "3"]]


def test_a_kernel_of_another_vendor_is_a_notebook(notebook):
    assert type(notebook.shell).__name__ == "Shell"
    assert in_notebook()


def test_a_script_is_no_notebook():
    assert not in_notebook()

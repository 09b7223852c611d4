"""History and Scores, the results of fit and evaluate."""

from __future__ import annotations

import copy
import json
import math
import pickle
import sys

import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from torch import nn

from easytorch import History, Model, Scores
from easytorch.callbacks import LambdaCallback
from tests.loops import blob_loader, blobs, mlp

X, Y = blobs()


def compiled_model(**options):
    return Model(mlp(), device="cpu").compile("adam", "cross_entropy", **options)


def fit_history(epochs=3, **options):
    model = compiled_model(metrics=["accuracy"])
    return model.fit(blob_loader(), **({"epochs": epochs, "validation_data": blob_loader(), "verbose": 0} | options))


def scripted_history(name, values):
    """Return the history of a fit with ``values`` in the logs."""

    def add(epoch, logs):
        logs[name] = values[epoch]

    model = compiled_model()
    return model.fit(X, Y, epochs=len(values), verbose=0, callbacks=[LambdaCallback(on_epoch_end=add)])


# History


def test_history_maps_names_to_lists_with_a_value_per_epoch():
    history = fit_history(3)
    assert list(history) == ["loss", "accuracy", "val_loss", "val_accuracy", "lr"]
    assert {len(values) for values in history.values()} == {3}
    assert "loss" in history
    assert "los" not in history
    assert len(history) == 5


def test_history_values_are_plain_floats():
    assert {type(value) for values in fit_history().values() for value in values} == {float}


def test_history_history_is_a_dict_as_in_keras():
    history = fit_history()
    assert isinstance(history.history, dict)
    assert json.loads(json.dumps(history.history)) == history.history
    assert copy.deepcopy(history.history) == pickle.loads(pickle.dumps(history.history)) == history.history
    assert history.history.get("missing") is None
    assert history.history == dict(history)
    assert history.history["loss"] == history["loss"]


def test_history_has_epoch_params_and_model_as_in_keras():
    model = compiled_model()
    history = model.fit(blob_loader(), epochs=2, verbose=0)
    assert history.epoch == [0, 1]
    assert history.params == {"epochs": 2, "steps": 7, "verbose": 0}
    assert history.model is model


def test_a_callback_can_add_values_to_the_history():
    assert scripted_history("temperature", [1.0, 2.0])["temperature"] == [1.0, 2.0]


@pytest.mark.parametrize(("name", "best"), [("loss", min), ("val_loss", min), ("val_accuracy", max)])
def test_best_returns_the_epoch_with_the_best_value(name, best):
    history = fit_history(4)
    row = history.best(name)
    assert row[name] == best(history[name])
    assert history[name][row["epoch"]] == row[name]


def test_best_returns_all_values_and_the_epoch():
    history = fit_history(2)
    assert history.best().keys() == {"epoch", "loss", "accuracy", "val_loss", "val_accuracy", "lr"}


@pytest.mark.parametrize(
    ("mode", "values", "epoch"),
    [("min", [math.nan, 2.0, 1.0, 3.0], 2), ("max", [math.nan, 2.0, 1.0, 3.0], 3), ("min", [2.0, math.nan], 0)],
)
def test_nan_is_never_the_best_value(mode, values, epoch):
    assert scripted_history("score", values).best("score", mode)["epoch"] == epoch


def test_best_of_only_nan_is_an_error():
    with pytest.raises(ValueError, match="'score' was NaN in each epoch"):
        scripted_history("score", [math.nan, math.nan]).best("score", "min")


def test_best_of_a_custom_value_needs_a_mode():
    with pytest.raises(ValueError, match="Pass mode='min' or mode='max'"):
        scripted_history("score", [1.0]).best("score")


def test_best_refuses_an_unknown_mode():
    with pytest.raises(ValueError, match=r"'maxx'.*Did you mean 'max'"):
        scripted_history("score", [1.0]).best("score", "maxx")


def test_best_of_the_learning_rate_needs_a_mode():
    with pytest.raises(ValueError, match=r"'lr'.*mode"):
        fit_history().best("lr")


def test_to_frame_has_a_row_for_each_epoch():
    history = fit_history(3, validation_freq=2)
    frame = history.to_frame()
    assert list(frame.columns) == ["loss", "accuracy", "lr", "val_loss", "val_accuracy"]
    assert list(frame.index) == [0, 1, 2]
    assert frame["loss"].tolist() == history["loss"]
    assert frame["val_loss"].isna().tolist() == [True, False, True]


def test_plot_has_a_panel_per_value_and_writes_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    figure = fit_history().plot()
    assert isinstance(figure, Figure)
    assert [axes.get_title() for axes in figure.axes] == ["loss", "accuracy"]
    assert [len(axes.lines) for axes in figure.axes] == [2, 2]
    assert list(tmp_path.iterdir()) == []


def test_plot_has_a_panel_for_values_of_validation_only():
    class CustomModel(Model):
        def test_step(self, batch):
            return super().test_step(batch) | {"iou": torch.tensor(0.5)}

    model = CustomModel(mlp(), device="cpu").compile("sgd", "cross_entropy")
    figure = model.fit(X, Y, epochs=2, validation_data=(X, Y), verbose=0).plot()
    assert [(axes.get_title(), len(axes.lines)) for axes in figure.axes] == [("loss", 2), ("iou", 1)]


def test_plot_writes_the_file_of_path(tmp_path):
    fit_history().plot(path=tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("names", "titles"),
    [
        (["accuracy"], ["accuracy"]),
        (["accuracy", "loss"], ["accuracy", "loss"]),
        ([["loss", "lr"]], ["loss", "lr"]),
        (["loss", "val_loss"], ["loss"]),
    ],
)
def test_plot_draws_the_named_values(names, titles):
    assert [axes.get_title() for axes in fit_history().plot(*names).axes] == titles


def test_plot_reports_unknown_names_and_names_of_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyError, match="Did you mean 'accuracy'"):
        fit_history().plot("acuracy")
    with pytest.raises(KeyError, match=r"pass path='curves\.png'"):
        fit_history().plot("curves.png")
    assert list(tmp_path.iterdir()) == []


def test_plot_has_whole_epochs_on_its_axis():
    for epochs in (1, 2, 3):
        axes = fit_history(epochs).plot("loss").axes[0]
        ticks = [tick for tick in axes.get_xticks() if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
        assert ticks == list(range(1, epochs + 1))


def test_plot_leaves_out_text():
    assert [axes.get_title() for axes in scripted_history("phase", ["warm", "hot"]).plot().axes] == ["loss"]


def test_plt_show_shows_the_figure_of_a_script():
    figure = fit_history().plot()
    assert [pyplot.figure(number) for number in pyplot.get_fignums()] == [figure]
    figure.axes[0].set_title("still the current figure")
    assert pyplot.gcf() is figure


def test_the_method_show_of_a_figure_waits_as_plt_show_does(monkeypatch):
    calls = []
    monkeypatch.setattr(pyplot, "show", lambda: calls.append(pyplot.get_fignums()))
    fit_history().plot().show()
    assert calls == [[1]]


@pytest.mark.parametrize("options", [{"show": False}, {"path": "curves.png"}])
def test_a_figure_for_a_file_does_not_need_pyplot(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # an import of it fails
    monkeypatch.delattr("matplotlib.pyplot")
    figure = fit_history().plot(**options)
    figure.savefig("other.png")
    with pytest.raises(RuntimeError, match=r"has no window.*history\.plot\(show=True\)\.show\(\)"):
        figure.show()


def test_many_figures_of_a_script_are_a_warning():
    history = fit_history()
    with pytest.warns(RuntimeWarning, match="More than 20 figures"):
        _ = [history.plot("loss") for _ in range(21)]


def test_a_history_without_epochs_cannot_be_plotted():
    with pytest.raises(
        ValueError, match=r"nothing to plot, because no epoch has ended yet\. Call model\.fit\(\) first"
    ):
        compiled_model().history.plot()


def test_plot_shows_validation_at_the_validated_epochs():
    figure = fit_history(4, validation_freq=2).plot()
    assert list(figure.axes[0].lines[1].get_xdata()) == [2, 4]


def test_the_history_continues_over_several_fits():
    model = compiled_model()
    first = model.fit(blob_loader(), 2, verbose=0)
    second = model.fit(blob_loader(), 3, verbose=0)
    assert second.epoch == [0, 1, 2, 3, 4]
    assert second["loss"][:2] == first["loss"][:2]
    assert len(model.history["loss"]) == 5


def test_values_that_start_later_have_fewer_entries():
    model = compiled_model()
    model.fit(blob_loader(), 2, verbose=0)
    history = model.fit(blob_loader(), 1, validation_data=blob_loader(), verbose=0)
    assert (len(history["loss"]), len(history["val_loss"])) == (3, 1)
    assert history.best()["epoch"] == 2


def test_a_new_model_has_an_empty_history():
    history = compiled_model().history
    assert dict(history) == {}
    assert repr(history) == "History(no epochs)"


def test_the_repr_of_a_history_shows_the_last_epoch():
    assert repr(fit_history(3)).startswith("History(3 epochs; last: loss=")


# Validation frequency and initial epoch


@pytest.mark.parametrize(
    ("frequency", "epochs"),
    [(1, [0, 1, 2, 3]), (2, [1, 3]), (3, [2]), ([1, 4], [0, 3]), ({2}, [1]), (range(2, 4), [1, 2])],
)
def test_validation_freq_selects_the_epochs_with_validation(frequency, epochs):
    history = fit_history(4, validation_freq=frequency)
    validated = [epoch for epoch, row in zip(history.epoch, history.rows, strict=True) if "val_loss" in row]
    assert validated == epochs


@pytest.mark.parametrize("frequency", [0, -1, "2", 1.5, None])
def test_a_wrong_validation_freq_is_refused(frequency):
    with pytest.raises(ValueError, match="validation_freq must be"):
        fit_history(4, validation_freq=frequency)


def test_validation_freq_counts_the_epochs_of_all_fits():
    model = compiled_model()
    options = {"validation_data": blob_loader(), "validation_freq": 2, "verbose": 0}
    model.fit(blob_loader(), epochs=1, **options)
    history = model.fit(blob_loader(), epochs=1, **options)
    assert ["val_loss" in row for row in history.rows] == [False, True]


def test_with_initial_epoch_epochs_is_the_end_as_in_keras():
    history = fit_history(10, initial_epoch=7)
    assert history.epoch == [7, 8, 9]
    assert history.params["epochs"] == 10


def test_initial_epoch_zero_restarts_the_count_of_epochs():
    model = compiled_model()
    model.fit(blob_loader(), epochs=2, verbose=0)
    history = model.fit(blob_loader(), epochs=2, initial_epoch=0, verbose=0)
    assert history.epoch == [0, 1, 0, 1]


def test_without_initial_epoch_epochs_are_added():
    model = compiled_model()
    model.fit(blob_loader(), epochs=5, initial_epoch=3, verbose=0)
    assert model.fit(blob_loader(), epochs=2, verbose=0).epoch == [3, 4, 5, 6]


def test_callbacks_receive_the_number_of_each_epoch():
    epochs = []
    fit_history(5, initial_epoch=3, callbacks=[LambdaCallback(on_epoch_begin=lambda epoch, logs: epochs.append(epoch))])
    assert epochs == [3, 4]


# Scores


@pytest.fixture
def scores():
    return compiled_model(metrics=["accuracy"]).evaluate(X, Y, verbose=0)


def test_scores_unpack_in_the_order_of_compile(scores):
    loss, accuracy = scores
    assert loss > 0
    assert 0 <= accuracy <= 1
    assert scores.keys() == ["loss", "accuracy"]


def test_a_score_is_read_by_name_attribute_or_position(scores):
    assert scores["accuracy"] == scores.accuracy == scores[1] == list(scores)[-1]
    assert len(scores) == 2
    assert dict(scores.items()) == {"loss": scores.loss, "accuracy": scores.accuracy}


def test_scores_convert_to_a_dict(scores):
    assert dict(scores) == {"loss": scores.loss, "accuracy": scores.accuracy}


def test_scores_equal_the_list_of_their_values(scores):
    assert scores == [scores.loss, scores.accuracy]
    assert scores == (scores.loss, scores.accuracy)
    assert scores != [scores.loss]
    assert scores != "scores"


def test_scores_are_plain_floats(scores):
    assert {type(value) for value in scores} == {float}


def test_a_single_score_converts_to_a_number():
    scores = compiled_model().evaluate(X, Y, verbose=0)
    assert float(scores) == scores.loss
    assert f"{scores:.3f}" == f"{scores.loss:.3f}"


def test_several_scores_do_not_convert_to_a_number(scores):
    with pytest.raises(TypeError, match=r"There are 2 scores, .* Use scores\.loss or scores\.accuracy"):
        float(scores)


def test_several_scores_are_formatted_like_str(scores):
    assert (
        f"{scores}"
        == str(scores)
        == f"Scores(loss={scores.loss:.4g}, accuracy={scores.accuracy:.4g}; on the given data)"
    )


def test_a_format_applies_to_each_of_several_scores(scores):
    text = f"{scores:.2f}"
    assert f"{scores.loss:.2f}" in text
    assert f"{scores.accuracy:.2f}" in text


def test_an_unknown_score_gets_a_suggestion(scores):
    with pytest.raises(AttributeError, match=r"There is no score 'acuracy'.*Did you mean 'accuracy'"):
        _ = scores.acuracy
    with pytest.raises(KeyError, match=r"no score 'los'.*Did you mean 'loss'"):
        _ = scores["los"]


def test_evaluate_is_the_mean_over_all_samples():
    model = compiled_model(metrics=["accuracy"])
    # The last batch has 2 of the 50 samples.
    loss, accuracy = model.evaluate(X, Y, batch_size=8, verbose=0)
    with torch.no_grad():
        y_pred = model.module(X)
    assert loss == pytest.approx(nn.functional.cross_entropy(y_pred, Y).item(), rel=1e-6)
    assert accuracy == pytest.approx((y_pred.argmax(1) == Y).double().mean().item())


# Chained calls


def test_compile_fit_evaluate_and_save_can_be_chained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Model(mlp(), device="cpu").compile("adam", "cross_entropy").fit(blob_loader(), 5).evaluate().save()
    assert path.name == "model.pt"
    assert len(torch.load(path, weights_only=True)["history"]["epoch"]) == 5


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict", "predict_proba", "predict_classes"])
def test_history_and_scores_have_the_methods_of_the_model(method):
    history = fit_history(1)
    for link in (history, history.evaluate(verbose=0)):
        result = getattr(link, method)(blob_loader(), verbose=0)
        assert type(result) is type(getattr(history.model, method)(blob_loader(), verbose=0))


def test_fit_returns_a_history_and_evaluate_scores():
    history = fit_history(1)
    assert isinstance(history, History)
    assert isinstance(history.evaluate(verbose=0), Scores)


def test_evaluate_without_data_uses_the_validation_data():
    model = compiled_model()
    model.fit(blob_loader(), validation_data=(X[:20], Y[:20]), verbose=0)
    scores = model.evaluate(verbose=0)
    assert scores == model.evaluate(X[:20], Y[:20], verbose=0)
    assert "on the validation data of the last fit" in repr(scores)


def test_evaluate_without_validation_data_uses_training_data(capsys):
    model = compiled_model()
    model.fit(blob_loader(), verbose=0)
    scores = model.evaluate()
    assert scores == model.evaluate(blob_loader(), verbose=0)
    assert "on the training data of the last fit" in repr(scores)
    assert "Evaluated on the training data of the last fit" in capsys.readouterr().out


def test_train_on_batch_does_not_change_the_data_of_evaluate():
    model = compiled_model()
    model.fit(blob_loader(), validation_data=(X[:20], Y[:20]), verbose=0)
    model.train_on_batch(X[:8], Y[:8])
    assert "validation data" in repr(model.evaluate(verbose=0))


def test_a_step_can_log_a_value_per_sample():
    class CustomModel(Model):
        def train_step(self, batch):
            x, y, _ = self.unpack(batch)
            y_pred = self(x)
            return {"loss": torch.nn.functional.cross_entropy(y_pred, y), "hits": (y_pred.argmax(1) == y).float()}

    x, y = blobs()
    model = CustomModel(mlp(), device="cpu").compile("sgd", lr=0.0)
    model.fit(x, y, verbose=0)
    assert model.history["hits"] == pytest.approx([float((model.module(x).argmax(1) == y).float().mean())])


def test_a_history_without_epochs_reports_the_reason():
    with pytest.raises(KeyError, match="no 'loss', because no epoch has ended yet"):
        _ = History()["loss"]


def test_a_history_and_scores_can_be_pickled_without_the_model():
    model = Model(mlp()).compile("sgd", "cross_entropy")
    history = model.fit(blob_loader(), 2, verbose=0)
    history_copy = pickle.loads(pickle.dumps(history))
    assert history_copy.history == history.history
    scores = model.evaluate(blob_loader(), verbose=0)
    assert pickle.loads(pickle.dumps(scores)) == scores


def test_a_value_of_a_history_as_attribute_gets_a_hint():
    history = Model(mlp()).compile("sgd", "cross_entropy").fit(blob_loader(), 1, verbose=0)
    with pytest.raises(AttributeError, match=r"Its values are items: history\['loss'\]"):
        _ = history.loss
    with pytest.raises(AttributeError, match=r"A history has no attribute 'anything'\. Its values are items"):
        _ = history.anything


def test_a_string_in_the_logs_is_shown_and_saved_like_a_number(tmp_path, capsys):
    def note(epoch, logs):
        logs["phase"] = f"part {epoch + 1}"

    x, y = blobs(20)
    options = {"callbacks": [LambdaCallback(on_epoch_end=note)], "verbose": 2, "resume": tmp_path}
    Model(mlp()).compile("sgd", "cross_entropy").fit(x, y, epochs=2, **options)
    model = Model(mlp()).compile("sgd", "cross_entropy")
    assert model.fit(x, y, epochs=3, **options)["phase"] == ["part 1", "part 2", "part 3"]
    assert "phase part 2" in capsys.readouterr().out
    assert "phase=part 3" in repr(model.history)

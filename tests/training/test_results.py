"""What fit and evaluate return: History and Scores, as a Keras user expects them."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from easytorch import History, Model, Scores
from easytorch.callbacks import LambdaCallback
from tests.loops import blob_loader, blobs, mlp

X, Y = blobs()


def compiled(**options):
    return Model(mlp(), device="cpu").compile("adam", "cross_entropy", **options)


def fitted(epochs=3, **options):
    model = compiled(metrics=["accuracy"])
    return model.fit(blob_loader(), **({"epochs": epochs, "validation_data": blob_loader(), "verbose": 0} | options))


def scripted(name, values):
    """Return the history of a fit whose logs were given ``values``."""

    def add(epoch, logs):
        logs[name] = values[epoch]

    model = compiled()
    return model.fit(X, Y, epochs=len(values), verbose=0, callbacks=[LambdaCallback(on_epoch_end=add)])


# History


def test_history_is_a_mapping_of_lists_with_a_value_for_each_epoch():
    history = fitted(3)
    assert list(history) == ["loss", "accuracy", "val_loss", "val_accuracy", "lr"]
    assert {len(values) for values in history.values()} == {3}
    assert "loss" in history
    assert "los" not in history
    assert len(history) == 5


def test_the_values_of_a_history_are_plain_floats():
    assert {type(value) for values in fitted().values() for value in values} == {float}


def test_history_history_is_keras_plain_dict():
    history = fitted()
    assert type(history.history) is dict
    assert history.history == dict(history)
    assert history.history["loss"] == history["loss"]


def test_history_has_keras_epoch_params_and_model():
    model = compiled()
    history = model.fit(blob_loader(), epochs=2, verbose=0)
    assert history.epoch == [0, 1]
    assert history.params == {"epochs": 2, "steps": 7, "verbose": 0}
    assert history.model is model


def test_a_callback_may_add_to_the_history():
    assert scripted("temperature", [1.0, 2.0])["temperature"] == [1.0, 2.0]


@pytest.mark.parametrize(("name", "best"), [("loss", min), ("val_loss", min), ("val_accuracy", max)])
def test_the_best_epoch_is_the_one_with_the_best_value(name, best):
    history = fitted(4)
    row = history.best(name)
    assert row[name] == best(history[name])
    assert history[name][row["epoch"]] == row[name]


def test_best_gives_the_whole_row_and_its_epoch():
    history = fitted(2)
    assert history.best().keys() == {"epoch", "loss", "accuracy", "val_loss", "val_accuracy", "lr"}


@pytest.mark.parametrize(
    ("mode", "values", "epoch"),
    [("min", [math.nan, 2.0, 1.0, 3.0], 2), ("max", [math.nan, 2.0, 1.0, 3.0], 3), ("min", [2.0, math.nan], 0)],
)
def test_nan_is_never_the_best(mode, values, epoch):
    assert scripted("score", values).best("score", mode)["epoch"] == epoch


def test_the_best_of_nothing_but_nan_is_an_error():
    with pytest.raises(ValueError, match="'score' was NaN in each epoch"):
        scripted("score", [math.nan, math.nan]).best("score", "min")


def test_the_best_of_a_value_of_unknown_direction_asks_for_the_mode():
    with pytest.raises(ValueError, match="Pass mode='min' or mode='max'"):
        scripted("score", [1.0]).best("score")


def test_an_unknown_mode_of_best_is_refused():
    with pytest.raises(ValueError, match=r"'maxx'.*Did you mean 'max'"):
        scripted("score", [1.0]).best("score", "maxx")


def test_the_learning_rate_has_no_best_without_a_mode():
    with pytest.raises(ValueError, match=r"'lr'.*mode"):
        fitted().best("lr")


def test_a_history_becomes_a_frame_with_a_row_for_each_epoch():
    history = fitted(3, validation_freq=2)
    frame = history.to_frame()
    assert list(frame.columns) == ["loss", "accuracy", "lr", "val_loss", "val_accuracy"]
    assert list(frame.index) == [0, 1, 2]
    assert frame["loss"].tolist() == history["loss"]
    assert frame["val_loss"].isna().tolist() == [True, False, True]


def test_plot_returns_a_figure_with_a_panel_for_each_value_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    figure = fitted().plot()
    assert isinstance(figure, Figure)
    assert [axes.get_title() for axes in figure.axes] == ["loss", "accuracy"]
    assert [len(axes.lines) for axes in figure.axes] == [2, 2]
    assert list(tmp_path.iterdir()) == []


def test_plot_has_a_panel_for_what_validation_alone_measures():
    class Measured(Model):
        def test_step(self, batch):
            return super().test_step(batch) | {"iou": torch.tensor(0.5)}

    model = Measured(mlp(), device="cpu").compile("sgd", "cross_entropy")
    figure = model.fit(X, Y, epochs=2, validation_data=(X, Y), verbose=0).plot()
    assert [(axes.get_title(), len(axes.lines)) for axes in figure.axes] == [("loss", 2), ("iou", 1)]


def test_plot_writes_the_file_that_was_asked_for(tmp_path):
    fitted().plot(path=tmp_path / "curves.png")
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
def test_plot_draws_the_values_that_were_named(names, titles):
    assert [axes.get_title() for axes in fitted().plot(*names).axes] == titles


def test_plot_tells_of_a_name_that_is_not_there_and_of_a_file_in_its_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyError, match="Did you mean 'accuracy'"):
        fitted().plot("acuracy")
    with pytest.raises(KeyError, match=r"pass path='curves\.png'"):
        fitted().plot("curves.png")
    assert list(tmp_path.iterdir()) == []


def test_a_validation_now_and_then_is_plotted_where_it_was_made():
    figure = fitted(4, validation_freq=2).plot()
    assert list(figure.axes[0].lines[1].get_xdata()) == [2, 4]


def test_the_history_goes_on_over_several_fits():
    model = compiled()
    first = model.fit(blob_loader(), 2, verbose=0)
    second = model.fit(blob_loader(), 3, verbose=0)
    assert second.epoch == [0, 1, 2, 3, 4]
    assert second["loss"][:2] == first["loss"][:2]
    assert len(model.history["loss"]) == 5


def test_a_value_that_began_later_keeps_its_own_length():
    model = compiled()
    model.fit(blob_loader(), 2, verbose=0)
    history = model.fit(blob_loader(), 1, validation_data=blob_loader(), verbose=0)
    assert (len(history["loss"]), len(history["val_loss"])) == (3, 1)
    assert history.best()["epoch"] == 2


def test_a_new_model_has_an_empty_history():
    history = compiled().history
    assert dict(history) == {}
    assert repr(history) == "History(no epochs)"


def test_a_history_says_its_last_epoch():
    assert repr(fitted(3)).startswith("History(3 epochs; last: loss=")


# When it validates and where it starts


@pytest.mark.parametrize(
    ("frequency", "epochs"),
    [(1, [0, 1, 2, 3]), (2, [1, 3]), (3, [2]), ([1, 4], [0, 3]), ({2}, [1]), (range(2, 4), [1, 2])],
)
def test_validation_freq_says_after_which_epochs_to_validate(frequency, epochs):
    history = fitted(4, validation_freq=frequency)
    validated = [epoch for epoch, row in zip(history.epoch, history.rows, strict=True) if "val_loss" in row]
    assert validated == epochs


@pytest.mark.parametrize("frequency", [0, -1, "2", 1.5, None])
def test_a_wrong_validation_freq_is_refused(frequency):
    with pytest.raises(ValueError, match="validation_freq must be"):
        fitted(4, validation_freq=frequency)


def test_validation_freq_counts_from_the_first_epoch_over_all_fits():
    model = compiled()
    options = {"validation_data": blob_loader(), "validation_freq": 2, "verbose": 0}
    model.fit(blob_loader(), epochs=1, **options)
    history = model.fit(blob_loader(), epochs=1, **options)
    assert ["val_loss" in row for row in history.rows] == [False, True]


def test_with_initial_epoch_epochs_is_the_last_one_as_in_keras():
    history = fitted(10, initial_epoch=7)
    assert history.epoch == [7, 8, 9]
    assert history.params["epochs"] == 10


def test_with_initial_epoch_zero_epochs_are_counted_from_zero_again():
    model = compiled()
    model.fit(blob_loader(), epochs=2, verbose=0)
    history = model.fit(blob_loader(), epochs=2, initial_epoch=0, verbose=0)
    assert history.epoch == [0, 1, 0, 1]


def test_without_initial_epoch_epochs_are_more_epochs():
    model = compiled()
    model.fit(blob_loader(), epochs=5, initial_epoch=3, verbose=0)
    assert model.fit(blob_loader(), epochs=2, verbose=0).epoch == [3, 4, 5, 6]


def test_callbacks_are_told_the_number_of_each_epoch():
    told = []
    fitted(5, initial_epoch=3, callbacks=[LambdaCallback(on_epoch_begin=lambda epoch, logs: told.append(epoch))])
    assert told == [3, 4]


# Scores


@pytest.fixture
def scores():
    return compiled(metrics=["accuracy"]).evaluate(X, Y, verbose=0)


def test_scores_are_unpacked_in_the_order_of_compile(scores):
    loss, accuracy = scores
    assert loss > 0
    assert 0 <= accuracy <= 1
    assert scores.keys() == ["loss", "accuracy"]


def test_a_score_is_found_by_name_by_attribute_and_by_position(scores):
    assert scores["accuracy"] == scores.accuracy == scores[1] == list(scores)[-1]
    assert len(scores) == 2
    assert dict(scores.items()) == {"loss": scores.loss, "accuracy": scores.accuracy}


def test_scores_become_a_dict(scores):
    assert dict(scores) == {"loss": scores.loss, "accuracy": scores.accuracy}


def test_scores_equal_the_list_of_their_values(scores):
    assert scores == [scores.loss, scores.accuracy]
    assert scores == (scores.loss, scores.accuracy)
    assert scores != [scores.loss]
    assert scores != "scores"


def test_scores_are_plain_floats(scores):
    assert {type(value) for value in scores} == {float}


def test_scores_of_the_loss_alone_are_a_number():
    scores = compiled().evaluate(X, Y, verbose=0)
    assert float(scores) == scores.loss
    assert f"{scores:.3f}" == f"{scores.loss:.3f}"


def test_several_scores_are_no_single_number(scores):
    with pytest.raises(TypeError, match=r"There are 2 scores, .* Use scores\.loss or scores\.accuracy"):
        float(scores)


def test_several_scores_are_formatted_as_their_text(scores):
    assert (
        f"{scores}"
        == str(scores)
        == f"Scores(loss={scores.loss:.4g}, accuracy={scores.accuracy:.4g}; on the given data)"
    )


def test_several_scores_are_formatted_one_by_one(scores):
    text = f"{scores:.2f}"
    assert f"{scores.loss:.2f}" in text
    assert f"{scores.accuracy:.2f}" in text


def test_scores_name_the_nearest_to_an_unknown_one(scores):
    with pytest.raises(AttributeError, match=r"There is no score 'acuracy'.*Did you mean 'accuracy'"):
        _ = scores.acuracy
    with pytest.raises(KeyError, match=r"no score 'los'.*Did you mean 'loss'"):
        _ = scores["los"]


def test_evaluate_is_the_mean_over_all_samples():
    model = compiled(metrics=["accuracy"])
    loss, accuracy = model.evaluate(X, Y, batch_size=8, verbose=0)  # 50 samples: the last batch has two
    with torch.no_grad():
        y_pred = model.module(X)
    assert loss == pytest.approx(nn.functional.cross_entropy(y_pred, Y).item(), rel=1e-6)
    assert accuracy == pytest.approx((y_pred.argmax(1) == Y).double().mean().item())


# The chain


def test_the_whole_chain_in_one_breath(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Model(mlp(), device="cpu").compile("adam", "cross_entropy").fit(blob_loader(), 5).evaluate().save()
    assert path.name == "model.pt"
    assert len(torch.load(path, weights_only=True)["history"]["epoch"]) == 5


@pytest.mark.parametrize("verb", ["fit", "evaluate", "predict", "predict_proba", "predict_classes"])
def test_history_and_scores_pass_on_the_verbs_of_their_model(verb):
    history = fitted(1)
    for link in (history, history.evaluate(verbose=0)):
        result = getattr(link, verb)(blob_loader(), verbose=0)
        assert type(result) is type(getattr(history.model, verb)(blob_loader(), verbose=0))


def test_fit_returns_a_history_and_evaluate_scores():
    history = fitted(1)
    assert isinstance(history, History)
    assert isinstance(history.evaluate(verbose=0), Scores)


def test_evaluate_without_data_uses_the_validation_data_of_the_last_fit_and_says_so():
    model = compiled()
    model.fit(blob_loader(), validation_data=(X[:20], Y[:20]), verbose=0)
    scores = model.evaluate(verbose=0)
    assert scores == model.evaluate(X[:20], Y[:20], verbose=0)
    assert "on the validation data of the last fit" in repr(scores)


def test_evaluate_without_data_or_validation_uses_the_training_data_and_says_so(capsys):
    model = compiled()
    model.fit(blob_loader(), verbose=0)
    scores = model.evaluate()
    assert scores == model.evaluate(blob_loader(), verbose=0)
    assert "on the training data of the last fit" in repr(scores)
    assert "Evaluated on the training data of the last fit" in capsys.readouterr().out


def test_train_on_batch_leaves_the_data_of_the_last_fit_for_evaluate():
    model = compiled()
    model.fit(blob_loader(), validation_data=(X[:20], Y[:20]), verbose=0)
    model.train_on_batch(X[:8], Y[:8])
    assert "validation data" in repr(model.evaluate(verbose=0))


def test_a_step_may_log_one_value_for_each_sample():
    class Own(Model):
        def train_step(self, batch):
            x, y, _ = self.unpack(batch)
            y_pred = self(x)
            return {"loss": torch.nn.functional.cross_entropy(y_pred, y), "hits": (y_pred.argmax(1) == y).float()}

    x, y = blobs()
    model = Own(mlp(), device="cpu").compile("sgd", lr=0.0)
    model.fit(x, y, verbose=0)
    assert model.history["hits"] == pytest.approx([float((model.module(x).argmax(1) == y).float().mean())])


def test_a_history_without_epochs_says_so():
    with pytest.raises(KeyError, match="no 'loss', because no epoch has ended yet"):
        _ = History()["loss"]


def test_a_history_and_scores_can_be_pickled_without_the_model():
    model = Model(mlp()).compile("sgd", "cross_entropy")
    history = model.fit(blob_loader(), 2, verbose=0)
    again = pickle.loads(pickle.dumps(history))
    assert again.history == history.history
    scores = model.evaluate(blob_loader(), verbose=0)
    assert pickle.loads(pickle.dumps(scores)) == scores


def test_the_values_of_a_history_as_attributes_are_answered_with_how_they_are_had():
    history = Model(mlp()).compile("sgd", "cross_entropy").fit(blob_loader(), 1, verbose=0)
    with pytest.raises(AttributeError, match=r"Its values are items: history\['loss'\]"):
        _ = history.loss
    with pytest.raises(AttributeError, match=r"A history has no attribute 'anything'\.$"):
        _ = history.anything


def test_a_word_in_the_logs_is_shown_and_kept_like_a_number(tmp_path, capsys):
    def note(epoch, logs):
        logs["phase"] = f"part {epoch + 1}"

    x, y = blobs(20)
    options = {"callbacks": [LambdaCallback(on_epoch_end=note)], "verbose": 2, "resume": tmp_path}
    Model(mlp()).compile("sgd", "cross_entropy").fit(x, y, epochs=2, **options)
    model = Model(mlp()).compile("sgd", "cross_entropy")
    assert model.fit(x, y, epochs=3, **options)["phase"] == ["part 1", "part 2", "part 3"]
    assert "phase part 2" in capsys.readouterr().out
    assert "phase=part 3" in repr(model.history)

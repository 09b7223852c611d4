"""Hooks, monitored values and early stopping."""

from __future__ import annotations

import inspect
import signal
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from easytorch import Model
from easytorch import callbacks as callbacks_module
from easytorch.callbacks import Callback, EarlyStopping, LambdaCallback, ReduceLROnPlateau, TerminateOnNaN
from tests.loops import blobs, mlp
from tests.scripted import (
    NAN,
    UPDATES,
    Fragile,
    Scripted,
    Weights,
    X,
    Y,
    breaking,
    equal,
    new_model,
    raising,
    train,
)

pytestmark = pytest.mark.filterwarnings("ignore:The validation loss of epoch")  # scripted values

HOOKS = [
    hook
    for phase in ("train", "epoch", "train_batch", "test", "test_batch", "predict", "predict_batch")
    for hook in (f"on_{phase}_begin", f"on_{phase}_end")
] + ["on_before_optimizer_step", "on_interrupt", "on_exception"]


class Recorder(Callback):
    """Records the name and the arguments of every hook that runs."""

    def __init__(self):
        self.events = []

    def calls_of(self, hook):
        return [arguments for name, arguments in self.events if name == hook]


def _record(hook):
    def record(self, *arguments):
        values = [dict(value.items()) if hasattr(value, "items") else value for value in arguments]
        self.events.append((hook, values))

    return record


for _hook in HOOKS:
    setattr(Recorder, _hook, _record(_hook))


# The hooks


def test_hooks_run_in_the_order_of_keras():
    recorder = Recorder()
    train(new_model(), 2, recorder, steps_per_epoch=2)
    seen = [
        hook.removeprefix("on_") + "".join(f"({one})" for one in arguments if isinstance(one, int))
        for hook, arguments in recorder.events
    ]
    assert seen == [
        "train_begin",
        *("epoch_begin(0)",),
        *("train_batch_begin(0)", "before_optimizer_step", "train_batch_end(0)"),
        *("train_batch_begin(1)", "before_optimizer_step", "train_batch_end(1)"),
        *("test_begin", "test_batch_begin(0)", "test_batch_end(0)", "test_end"),
        *("epoch_end(0)", "epoch_begin(1)"),
        *("train_batch_begin(0)", "before_optimizer_step", "train_batch_end(0)"),
        *("train_batch_begin(1)", "before_optimizer_step", "train_batch_end(1)"),
        *("test_begin", "test_batch_begin(0)", "test_batch_end(0)", "test_end"),
        *("epoch_end(1)", "train_end"),
    ]


def test_begin_hooks_get_empty_logs():
    recorder = Recorder()
    model = new_model()
    train(model, 1, recorder)
    model.predict(X, callbacks=[recorder], verbose=0)
    begin_logs = [arguments[-1] for hook, arguments in recorder.events if hook.endswith("_begin")]
    assert begin_logs == [{}] * len(begin_logs)


def test_batch_logs_are_the_means_so_far():
    recorder, model = Recorder(), new_model(optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    losses = [F.cross_entropy(model.module(X[i : i + 16]), Y[i : i + 16]).item() for i in (0, 16, 32)]
    train(model, 1, recorder)
    means = [sum(losses[: n + 1]) / (n + 1) for n in range(3)]
    assert [logs["loss"] for _, logs in recorder.calls_of("on_train_batch_end")] == pytest.approx(means)


def test_only_epoch_logs_and_final_logs_have_validation_values():
    recorder = Recorder()
    train(new_model(metrics=["accuracy"]), 2, recorder)
    epoch_logs = [logs for _, logs in recorder.calls_of("on_epoch_end")]
    assert all(set(logs) == {"loss", "accuracy", "val_loss", "val_accuracy", "lr"} for logs in epoch_logs)
    assert recorder.calls_of("on_train_end") == [[epoch_logs[-1]]]
    for hook in ("on_train_batch_end", "on_test_batch_end", "on_test_end"):
        assert all(set(arguments[-1]) == {"loss", "accuracy"} for arguments in recorder.calls_of(hook)), hook


def test_epoch_logs_are_floats():
    recorder = Recorder()
    train(new_model(metrics=["accuracy"]), 1, recorder)
    assert {type(value) for value in recorder.calls_of("on_epoch_end")[0][1].values()} == {float}


def test_history_records_a_tensor_learning_rate_as_float():
    model = new_model(optimizer=lambda p: torch.optim.Adam(p, lr=torch.tensor(0.5)))
    halve = LambdaCallback(on_epoch_end=lambda epoch, logs: model.optimizer.param_groups[0]["lr"].mul_(0.5))
    history = train(model, 3, halve)
    assert history["lr"] == [0.5, 0.25, 0.125]
    assert {type(value) for value in history["lr"]} == {float}


def test_evaluate_and_predict_call_their_hooks():
    recorder, model = Recorder(), new_model()
    model.evaluate(X, Y, batch_size=32, callbacks=[recorder], verbose=0)
    batches = ["on_test_batch_begin", "on_test_batch_end"] * 2
    assert [hook for hook, _ in recorder.events] == ["on_test_begin", *batches, "on_test_end"]
    recorder.events.clear()
    outputs = model.predict(X, batch_size=32, callbacks=[recorder], verbose=0)
    batches = ["on_predict_batch_begin", "on_predict_batch_end"] * 2
    assert [hook for hook, _ in recorder.events] == ["on_predict_begin", *batches, "on_predict_end"]
    shown = [logs["outputs"] for _, logs in recorder.calls_of("on_predict_batch_end")]
    assert torch.equal(torch.cat(shown), torch.from_numpy(outputs))


def test_hooks_count_an_accumulated_window_as_one_batch():
    recorder = Recorder()
    train(new_model(gradient_accumulation_steps=2), 1, recorder)
    assert [batch for batch, _ in recorder.calls_of("on_train_batch_end")] == [0, 1]
    assert len(recorder.calls_of("on_before_optimizer_step")) == 2


def test_a_callback_has_the_model_and_the_params_of_the_fit():
    callback, model = Callback(), new_model()
    train(model, 2, callback)
    assert callback.model is model
    assert {name: callback.params[name] for name in ("epochs", "steps", "verbose")} == {
        "epochs": 2,
        "steps": UPDATES,
        "verbose": 0,
    }


def test_on_before_optimizer_step_has_unclipped_gradients():
    norms = []

    class Norms(Callback):
        def on_before_optimizer_step(self):
            norms.append(self.model.module.weight.grad.norm().item())

    model = new_model(clip_grad_norm=1e-9)
    expected = torch.autograd.grad(F.cross_entropy(model.module(X[:16]), Y[:16]), model.module.weight)[0].norm().item()
    train(model, 1, Norms(), steps_per_epoch=1)
    assert norms == pytest.approx([expected])


def test_callbacks_run_in_the_order_of_the_list():
    order = []
    callbacks = [LambdaCallback(on_epoch_end=lambda *_, name=name: order.append(name)) for name in "abc"]
    train(new_model(), 1, *callbacks)
    assert order == ["a", "b", "c"]


def test_values_added_to_the_logs_reach_history_and_callbacks():
    seen = []
    add = LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(twice=2.0 * epoch))
    see = LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(logs["twice"]))
    history = train(new_model(), 3, add, see)
    assert history.history["twice"] == seen == [0.0, 2.0, 4.0]


def test_history_continues_over_fits():
    model, recorder = new_model(), Recorder()
    train(model, 2)
    history = train(model, 3, recorder)
    assert history.epoch == [0, 1, 2, 3, 4]
    assert len(history["loss"]) == len(history["lr"]) == 5
    assert [epoch for epoch, _ in recorder.calls_of("on_epoch_end")] == [2, 3, 4]


def test_callbacks_may_be_none():
    assert len(new_model().fit(X, Y, callbacks=None, verbose=0)["loss"]) == 1


@pytest.mark.parametrize("hook", ["on_batch_begin", "on_batch_end"])
def test_keras_aliases_of_batch_hooks_are_called(hook):
    batches = []
    callback = type("Own", (Callback,), {hook: lambda self, batch, logs=None: batches.append(batch)})()
    train(new_model(), 1, callback)
    assert batches == [0, 1, 2]


def test_a_class_instead_of_a_callback_is_refused():
    with pytest.raises(TypeError, match=r"class EarlyStopping\. Create an instance: EarlyStopping\(\)"):
        train(new_model(), 1, EarlyStopping)


def test_lambda_callback_accepts_any_hook_and_none():
    batches = []
    train(
        new_model(), 1, LambdaCallback(on_train_batch_end=lambda batch, logs: batches.append(batch), on_epoch_end=None)
    )
    assert batches == [0, 1, 2]


def test_lambda_callback_refuses_an_unknown_hook():
    with pytest.raises(ValueError, match=r"Unknown hook 'on_epoch_ends'. Did you mean 'on_epoch_end'"):
        LambdaCallback(on_epoch_ends=print)


# Stopping


def test_stop_in_a_batch_hook_ends_and_validates_the_epoch():
    recorder, model = Recorder(), new_model()

    def stop(batch, logs):
        model.stop_training = batch == 1

    history = train(model, 5, LambdaCallback(on_train_batch_end=stop), recorder)
    assert [batch for batch, _ in recorder.calls_of("on_train_batch_end")] == [0, 1]
    assert model.state.step == 2
    assert (
        len(history["val_loss"])
        == len(recorder.calls_of("on_epoch_end"))
        == len(recorder.calls_of("on_train_end"))
        == 1
    )


def test_stop_in_an_epoch_hook_starts_no_further_epoch():
    recorder, model = Recorder(), new_model()

    def stop(epoch, logs):
        model.stop_training = epoch == 1

    train(model, 5, LambdaCallback(on_epoch_end=stop), recorder)
    assert [epoch for epoch, _ in recorder.calls_of("on_epoch_begin")] == [0, 1]
    assert len(recorder.calls_of("on_train_end")) == 1


def test_a_fit_after_a_stopped_one_trains_again():
    model = new_model()
    train(model, 5, LambdaCallback(on_epoch_end=lambda *_: setattr(model, "stop_training", True)))
    assert train(model, 2).epoch == [0, 1, 2]


# Interruptions and errors


def interrupt(at):
    return LambdaCallback(on_train_batch_end=lambda batch, logs: batch == at and signal.raise_signal(signal.SIGINT))


def test_ctrl_c_ends_training_and_on_train_end_runs():
    recorder, model = Recorder(), new_model()
    history = train(model, 2, interrupt(at=1), recorder, on_interrupt="return")
    assert history.interrupted
    assert model.state.step == 2
    assert [hook for hook, _ in recorder.events][-3:] == ["on_train_batch_end", "on_interrupt", "on_train_end"]
    assert not train(model, 1).interrupted


def test_ctrl_c_raises_after_on_train_end():
    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt):
        train(new_model(), 2, interrupt(at=1), recorder)
    assert recorder.events[-1][0] == "on_train_end"


def test_an_error_closes_every_callback_and_is_raised_unchanged():
    before, after, error = Recorder(), Recorder(), ValueError("mine")
    with pytest.raises(ValueError, match=r"^mine$") as caught:
        train(new_model(), 2, before, raising("on_epoch_begin", at=1, error=error), after)
    assert caught.value is error
    for recorder in (before, after):
        assert recorder.events[-2] == ("on_exception", [error])
        assert recorder.events[-1][0] == "on_train_end"


def test_an_error_in_on_train_begin_closes_every_callback():
    recorder, model = Recorder(), new_model()
    with pytest.raises(RuntimeError, match=r"on_train_begin failed"):
        train(model, 1, recorder, raising("on_train_begin"))
    assert [hook for hook, _ in recorder.events] == ["on_train_begin", "on_exception", "on_train_end"]
    assert model.state.step == 0


def test_an_error_in_the_module_restores_its_mode():
    model = new_model(Fragile)
    model.module.eval()
    with pytest.raises(RuntimeError, match=r"the module broke"):
        train(model, 2, breaking(1, "training"))
    assert not model.module.training


@pytest.mark.parametrize("hook", ["on_exception", "on_train_end"])
def test_a_second_error_is_a_warning(hook):
    recorder = Recorder()
    fails_twice = raising(hook, error=KeyError("second"))
    with (
        pytest.warns(UserWarning, match=rf"LambdaCallback.{hook} also failed: KeyError: 'second'") as warned,
        pytest.raises(ValueError, match=r"^first$"),
    ):
        train(new_model(), 1, raising("on_epoch_end", error=ValueError("first")), fails_twice, recorder)
    assert len(warned) == 1
    assert [hook for hook, _ in recorder.events][-2:] == ["on_exception", "on_train_end"]


def test_an_error_in_on_train_end_is_raised_after_all_hooks():
    recorder = Recorder()
    with pytest.raises(RuntimeError, match=r"on_train_end failed"):
        train(new_model(), 1, raising("on_train_end"), recorder)
    assert recorder.events[-1][0] == "on_train_end"


# EarlyStopping


def stopped(values, name="val_loss", metrics=("accuracy",), **options):
    """Return the number of epochs of a run with these values, and the callback."""
    stopping, model = EarlyStopping(name, **options), new_model(metrics=list(metrics))
    return len(train(model, len(values), Scripted(**{name: values}), stopping).epoch), stopping


def test_early_stopping_has_the_arguments_of_keras():
    stopping = EarlyStopping("val_loss", 0, 0, 0, "auto", None, False, 0)
    default = EarlyStopping()
    assert {name: vars(default)[name] for name in vars(default)} == vars(stopping)


def test_early_stopping_stops_after_patience_epochs():
    epochs, stopping = stopped([3, 2, 2.5, 2, 2.1, 1, 1], patience=3)
    assert epochs == 5
    assert (stopping.stopped_epoch, stopping.best_epoch, stopping.best) == (4, 1, 2)


def test_an_improvement_resets_the_patience_of_early_stopping():
    assert stopped([3, 3, 2, 2, 1, 1, 1, 1], patience=2)[0] == 7


def test_early_stopping_without_patience_stops_at_once():
    assert stopped([3, 2, 2, 1])[0] == 3


def test_early_stopping_does_not_stop_an_improving_run():
    epochs, stopping = stopped([4, 3, 2, 1])
    assert epochs == 4
    assert stopping.stopped_epoch is None


def test_an_improvement_exceeds_min_delta():
    assert stopped([1.0, 0.95, 0.91, 0.5], patience=2, min_delta=0.1)[0] == 3
    assert stopped([1.0, 0.95, 0.85, 0.5], patience=2, min_delta=0.1)[0] == 4


@pytest.mark.parametrize(
    ("name", "mode", "values", "best"),
    [
        ("val_loss", "auto", [3, 1, 2], 1),
        ("val_accuracy", "auto", [0.3, 0.1, 0.2], 0.3),
        ("val_accuracy", "min", [0.3, 0.1, 0.2], 0.1),
        ("val_loss", "max", [2, 3, 1], 3),
    ],
)
def test_the_direction_comes_from_the_metric_or_the_user(name, mode, values, best):
    assert stopped(values, name, mode=mode, patience=9)[1].best == best


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match=r"Unknown mode 'maximum'.*'min', 'max'"):
        EarlyStopping(mode="maximum")


def test_only_values_better_than_the_baseline_reset_patience():
    assert stopped([3, 2.5, 2, 1.8], baseline=1.5, patience=3)[0] == 3
    assert stopped([3, 1.4, 2, 2, 2, 2], baseline=1.5, patience=3)[0] == 5


def test_epochs_before_start_from_epoch_do_not_count():
    epochs, stopping = stopped([0, 0, 3, 2, 2.5, 2.6, 2.7], start_from_epoch=2, patience=2)
    assert epochs == 6
    assert (stopping.best, stopping.best_epoch) == (2, 3)


def test_epochs_without_the_value_do_not_count():
    assert stopped([3, None, None, None, 3, 3, 3], patience=2)[0] == 6


def test_nan_in_the_first_epoch_is_not_the_best():
    epochs, stopping = stopped([NAN, 3, 2, 1, 0.5], patience=3)
    assert epochs == 5
    assert (stopping.best_epoch, stopping.best) == (4, 0.5)


@pytest.mark.parametrize(("name", "best"), [("val_loss", 1), ("val_accuracy", 1)])
def test_nan_is_not_an_improvement(name, best):
    epochs, stopping = stopped([1, NAN, NAN, 1], name, patience=2)
    assert epochs == 3
    assert (stopping.best_epoch, stopping.best) == (0, best)


WAYS_OUT = {
    "patience": [],
    "last epoch": [],
    "another callback": [LambdaCallback(on_epoch_end=lambda epoch, _: epoch == 3 and stop())],
    "error in a callback": [raising("on_epoch_begin", at=3)],
    "error in the module": [breaking(3, "training")],
    "error in validation": [breaking(3, "evaluation")],
    "Ctrl-C": [LambdaCallback(on_epoch_begin=lambda epoch, _: epoch == 3 and signal.raise_signal(signal.SIGINT))],
}


def stop():
    WAYS_OUT["another callback"][0].model.stop_training = True


@pytest.mark.parametrize("way", WAYS_OUT)
def test_best_weights_are_restored_on_every_way_out(way):
    values = [3, 1, 2, 2, 2, 2] if way != "last epoch" else [3, 1, 2, 2]
    stopping = EarlyStopping(patience=2 if way == "patience" else 9, restore_best_weights=True)
    weights, model = Weights(), new_model(Fragile)
    run = [Scripted(val_loss=values), weights, stopping, *WAYS_OUT[way]]
    if "error" in way:
        with pytest.raises(RuntimeError, match=r"failed|broke"):
            train(model, len(values), *run)
    else:
        train(model, len(values), *run, on_interrupt="return")
    assert len(weights.copies) == (3 if "error" in way or way == "Ctrl-C" else 4)
    assert equal(model.module.state_dict(), weights.copies[1])
    assert not equal(weights.copies[1], weights.copies[-1])


def test_best_weights_are_not_restored_by_default():
    weights, model = Weights(), new_model()
    train(model, 4, Scripted(val_loss=[3, 1, 2, 2]), weights, EarlyStopping(patience=2))
    assert equal(model.module.state_dict(), weights.copies[-1])


def test_weights_are_unchanged_if_every_value_is_nan():
    weights, model = Weights(), new_model()
    train(model, 3, Scripted(val_loss=[NAN] * 3), weights, EarlyStopping(patience=2, restore_best_weights=True))
    assert equal(model.module.state_dict(), weights.copies[-1])


def test_a_second_fit_resets_early_stopping():
    stopping, weights, model = EarlyStopping(patience=2, restore_best_weights=True), Weights(), new_model()
    scripted = Scripted(val_loss=[1, 2, 2, 5, 4, 6])
    assert train(model, 3, scripted, weights, stopping).epoch == [0, 1, 2]
    assert stopping.stopped_epoch == 2
    assert train(model, 3, scripted, weights, stopping).epoch == [0, 1, 2, 3, 4, 5]
    assert (stopping.best, stopping.best_epoch, stopping.stopped_epoch) == (4, 4, None)
    assert equal(model.module.state_dict(), weights.copies[4])


def test_verbose_early_stopping_prints_when_it_stops(capsys):
    stopped([1, 2, 2], patience=2, verbose=1, restore_best_weights=True)
    assert capsys.readouterr().out == (
        "Epoch 3: early stopping, val_loss did not improve for 2 epochs\nRestored the weights of epoch 1\n"
    )


def test_unknown_monitor_is_refused_before_the_first_step():
    model = new_model()
    with pytest.raises(ValueError, match=r"EarlyStopping monitors 'val_los'.*Did you mean 'val_loss'\?"):
        train(model, 1, EarlyStopping("val_los"))
    assert model.state.step == 0


def test_val_monitor_without_validation_data_is_refused():
    model = new_model()
    with pytest.raises(ValueError, match=r"Pass validation_data or validation_split to fit"):
        train(model, 1, EarlyStopping("val_loss"), validation_data=None)
    assert model.state.step == 0


def spread(y_pred, y):
    return y_pred.std()


def test_unknown_direction_is_refused_before_the_first_step():
    model = new_model(metrics=[spread])
    with pytest.raises(ValueError, match=r"whether higher or lower values of 'val_spread' are better.*mode='min'"):
        train(model, 1, EarlyStopping("val_spread"))
    assert model.state.step == 0
    train(model, 1, EarlyStopping("val_spread", mode="min"))


class CustomStep(Model):
    def train_step(self, batch):
        return super().train_step(batch) | {"extra": torch.zeros(())}


def test_a_value_of_a_custom_step_can_be_monitored():
    stopping = EarlyStopping("val_extra", mode="min", patience=1)
    model = CustomStep(torch.nn.Linear(8, 3), device="cpu").compile("sgd", "cross_entropy")
    assert train(model, 3, stopping).epoch == [0, 1]


def test_a_monitor_that_no_step_logs_is_an_error():
    """The values of a custom step are known only after the first epoch."""
    model = CustomStep(torch.nn.Linear(8, 3), device="cpu").compile("sgd", "cross_entropy")
    with pytest.raises((ValueError, UserWarning), match=r"val_extar.*val_extra"):
        train(model, 3, EarlyStopping("val_extar", mode="min"))


def test_missing_val_value_is_an_error_after_the_first_epoch():
    """A custom callback may log it, so it is an error only after the first epoch."""
    model = new_model()
    with pytest.raises(ValueError, match="EarlyStopping monitors 'val_loss', which is not in the logs"):
        train(model, 3, Scripted(loss=[1, 1, 1]), EarlyStopping("val_loss"), validation_data=None)
    assert model.state.epoch == 1


def test_a_value_that_a_callback_logs_can_be_monitored():
    brings = LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(val_own=[3, 1, 2, 2][epoch]))
    stopping = EarlyStopping("val_own", mode="min", patience=2)
    train(new_model(), 4, brings, stopping, validation_data=None)
    assert stopping.best == 1


def test_a_misspelled_hook_is_a_warning():
    with pytest.warns(
        UserWarning, match=r"Mine\.on_epoch_finish is not a hook and is never called\. Did you mean 'on_epoch"
    ):

        class Mine(Callback):
            def on_epoch_finish(self, epoch, logs=None):
                raise AssertionError


@pytest.mark.parametrize("patience", ["3", -1, 1.5, True])
def test_a_patience_that_is_no_number_of_epochs_is_refused(patience):
    for callback in (EarlyStopping, ReduceLROnPlateau):
        with pytest.raises(ValueError, match="patience must be a non-negative integer, received"):
            callback(patience=patience)


def test_disconnected_hook_is_not_called_again_in_this_fit():
    calls = []

    class Once(Callback):
        def on_train_batch_end(self, batch, logs=None):
            calls.append(("once", batch))
            self.model.callbacks.disconnect(self, "on_train_batch_end")

    other = LambdaCallback(on_train_batch_end=lambda batch, logs: calls.append(("other", batch)))
    model, once = Model(mlp(), device="cpu").compile("sgd", "cross_entropy"), Once()
    for _ in range(2):
        model.fit(*blobs(6), batch_size=3, shuffle=False, callbacks=[once, other], verbose=0)
    assert calls == 2 * [("once", 0), ("other", 0), ("other", 1)]


FLAGS = ("bool", "bool | None")
REQUIRED: dict[str, Any] = {"filename": "log.csv", "filepath": "model.pt", "backup_dir": "run"}


def flags_of_callbacks():
    for name in callbacks_module.__all__:
        if inspect.isabstract(getattr(callbacks_module, name)):
            continue
        parameters = inspect.signature(getattr(callbacks_module, name)).parameters
        yield from ((name, flag) for flag, each in parameters.items() if str(each.annotation) in FLAGS)


@pytest.mark.parametrize(("name", "flag"), list(flags_of_callbacks()))
def test_a_flag_of_a_callback_is_true_or_false(name, flag):
    kind = getattr(callbacks_module, name)
    required = [each for each, parameter in inspect.signature(kind).parameters.items() if each in REQUIRED]
    with pytest.raises(
        (TypeError, ImportError), match=rf"{flag} must be True or False, received 'best.pt'|pip install"
    ):
        kind(**{each: REQUIRED[each] for each in required}, **{flag: "best.pt"})


def test_a_path_in_place_of_a_flag_is_an_error():
    with pytest.raises(
        TypeError, match=r"raise_error must be True or False, received 'nan.pt'.* other arguments by name"
    ):
        TerminateOnNaN("nan.pt")


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("on_epoch_finish", "on_epoch_end"),
        ("on_train_start", "on_train_begin"),
        ("on_batch_finish", "on_train_batch_end"),
        ("on_epoch_ends", "on_epoch_end"),
        ("on_step_end", "on_train_batch_end"),
        ("on_step_start", "on_train_batch_begin"),
    ],
)
def test_the_hook_that_another_word_means_is_suggested(name, hook):
    with pytest.raises(ValueError, match=f"Did you mean '{hook}'"):
        LambdaCallback(**{name: print})


@pytest.mark.parametrize("base", [EarlyStopping, callbacks_module.ModelCheckpoint, callbacks_module.CSVLogger])
def test_a_missing_super_init_is_explained(base):
    def initialize(self):
        self.extra = 1

    Custom = type("Custom", (base,), {"__init__": initialize})  # noqa: N806
    with pytest.raises(TypeError, match=rf"Custom.__init__ does not call that of {base.__name__}.*super\(\).__init__"):
        train(new_model(), 1, Custom())


def test_a_misspelled_number_in_a_file_name_is_corrected(tmp_path):
    with pytest.raises(ValueError, match=r"'epch'.* Did you mean 'epoch'\?.*'epoch'"):
        train(new_model(), 1, callbacks_module.ModelCheckpoint(tmp_path / "a-{epch}.pt"))

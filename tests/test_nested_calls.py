"""Calls of a model inside its own callbacks, and in two threads."""

from __future__ import annotations

import copy
import threading

import pytest
import torch

from easytorch import Model
from easytorch.callbacks import Callback, LambdaCallback
from tests.cases import slow_after_first
from tests.loops import blob_loader, blobs, mlp, same_weights

X, Y = blobs(50)
HOOKS = (
    "on_epoch_end",
    "on_train_begin",
    "on_epoch_begin",
    "on_train_batch_begin",
    "on_train_batch_end",
    "on_before_optimizer_step",
    "on_test_begin",
    "on_test_batch_end",
    "on_test_end",
)


def new_model():
    torch.manual_seed(0)
    return Model(mlp(), device="cpu").compile(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "cross_entropy")


class TestFit:
    @pytest.mark.parametrize("hook", slow_after_first(HOOKS))
    def test_fit_inside_a_callback_is_refused(self, hook):
        model = new_model()
        again = LambdaCallback(**{hook: lambda *_: model.fit(X, Y, verbose=0)})
        with pytest.raises(RuntimeError, match=r"running already.*copy\.deepcopy"):
            model.fit(X, Y, epochs=3, validation_data=(X, Y), callbacks=[again], verbose=0)

    def test_fit_works_again_after_a_refused_one(self):
        model, refused = new_model(), []

        def fit_again(epoch, logs):
            try:
                model.fit(X, Y, verbose=0)
            except RuntimeError as error:
                refused.append(error)

        history = model.fit(X, Y, epochs=2, callbacks=[LambdaCallback(on_epoch_end=fit_again)], verbose=0)
        assert len(refused) == len(history["loss"]) == 2
        assert len(model.fit(X, Y, verbose=0)["loss"]) == 3

    def test_fit_works_after_any_exception_of_a_fit(self):
        model = new_model()

        def interrupt(batch, logs):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            model.fit(X, Y, callbacks=[LambdaCallback(on_train_batch_end=interrupt)], verbose=0)
        assert model.train_data is None
        model.fit(X, Y, verbose=0)

    def test_fit_in_a_second_thread_is_refused(self):
        model, has_begun, may_end = new_model(), threading.Event(), threading.Event()

        class Wait(Callback):
            def on_train_begin(self, logs=None):
                has_begun.set()
                assert may_end.wait(10)

        thread = threading.Thread(target=lambda: model.fit(X, Y, callbacks=[Wait()], verbose=0))
        thread.start()
        assert has_begun.wait(10)
        with pytest.raises(RuntimeError, match="another one"):
            model.fit(X, Y, verbose=0)
        may_end.set()
        thread.join()
        assert model.state.epoch == 1

    def test_a_copy_may_be_fitted_inside_a_callback(self):
        model, plain = new_model(), new_model()

        class FitCopy(Callback):
            def on_epoch_end(self, epoch, logs=None):
                with torch.random.fork_rng():
                    copy.deepcopy(self.model).fit(X, Y, verbose=0)

        model.fit(blob_loader(), 2, callbacks=[FitCopy()], verbose=0)
        plain.fit(blob_loader(), 2, verbose=0)
        assert same_weights(model.module, plain.module)


class TestOtherCalls:
    def test_evaluate_and_predict_inside_callbacks_change_nothing(self):
        class Call(Callback):
            def on_train_batch_end(self, batch, logs=None):
                self.model.evaluate(X, Y, verbose=0)
                self.model.predict(X, verbose=0)
                self.model.test_on_batch(X, Y)

        model, plain = new_model(), new_model()
        history = model.fit(blob_loader(), 2, callbacks=[Call()], verbose=0)
        assert history["loss"] == plain.fit(blob_loader(), 2, verbose=0)["loss"]
        assert same_weights(model.module, plain.module)

    def test_train_on_batch_in_a_callback_is_not_in_the_epoch_loss(self):
        class Extra(Callback):
            def on_epoch_end(self, epoch, logs=None):
                self.model.train_on_batch(X, Y)

            def on_train_batch_end(self, batch, logs=None):
                if batch == 1:
                    self.model.train_on_batch(X, Y)

        model, net = new_model(), new_model().module
        history = model.fit([(X[:25], Y[:25]), (X[25:], Y[25:])], callbacks=[Extra()], verbose=0)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        losses = []
        for x, y in ((X[:25], Y[:25]), (X[25:], Y[25:]), (X, Y), (X, Y)):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert same_weights(model.module, net)
        assert history["loss"] == [pytest.approx(sum(losses[:2]) / 2)]


class TestStop:
    class Stop(Callback):
        batches = 0

        def on_test_batch_end(self, batch, logs=None):
            self.batches += 1
            self.model.stop_evaluating = batch == 4

        def on_predict_batch_end(self, batch, logs=None):
            self.batches += 1
            self.model.stop_predicting = batch == 4

    def test_stop_evaluating_ends_an_evaluation_after_the_batch(self):
        model, stop = new_model(), self.Stop()
        scores = model.evaluate(X, Y, batch_size=2, callbacks=[stop], verbose=0)
        assert stop.batches == 5
        assert scores["loss"] == pytest.approx(model.evaluate(X[:10], Y[:10], verbose=0)["loss"])
        assert model.evaluate(X, Y, verbose=0)["loss"] != scores["loss"]  # the next evaluation is complete

    def test_stop_predicting_ends_a_prediction_after_the_batch(self):
        model, stop = new_model(), self.Stop()
        assert len(model.predict(X, batch_size=2, callbacks=[stop], verbose=0)) == 10
        assert len(model.predict(X, batch_size=2, verbose=0)) == 50

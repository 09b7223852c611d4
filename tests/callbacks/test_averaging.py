"""Averages of the weights, compared with means computed by hand."""

from __future__ import annotations

import copy
import math
import shutil
import signal

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

from easytorch import Model
from easytorch.callbacks import EMA, SWA, EarlyStopping, LambdaCallback, ModelCheckpoint
from tests.loops import same_weights
from tests.scripted import (
    UPDATES,
    VALIDATION,
    Fragile,
    Weights,
    X,
    Y,
    breaking,
    close,
    equal,
    loss_of,
    mean_of,
    new_model,
    raising,
    train,
)


def normed():
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


def with_weights(weights, make=lambda: nn.Linear(8, 3)):
    net = make()
    net.load_state_dict(weights)
    return net


def ema_of(copies, decay):
    """Compute the moving average of state dicts by hand."""
    average = dict(copies[0])
    for weights in copies[1:]:
        average = {name: decay * average[name] + (1 - decay) * weights[name] for name in average}
    return average


def averaged_run(average, epochs=2, make=lambda: nn.Linear(8, 3), **options):
    """Return the model and copies of the training weights after every update."""
    model, weights = new_model(make), Weights(every="update")
    train(model, epochs, weights, average, **options)
    return model, weights.copies


# EMA


def test_ema_averages_the_weights_after_every_update():
    ema = EMA(0.8)
    _, copies = averaged_run(ema)
    assert len(copies) == 2 * UPDATES
    close(ema.average.module.state_dict(), ema_of(copies, 0.8))


def test_ema_counts_an_accumulated_window_as_one_update():
    ema, model, weights = EMA(0.8), new_model(gradient_accumulation_steps=2), Weights(every="update")
    train(model, 1, weights, ema)
    assert int(ema.average.n_averaged) == len(weights.copies) == 2
    close(ema.average.module.state_dict(), ema_of(weights.copies, 0.8))


def test_validation_uses_the_average():
    ema = EMA(0.8)
    model, copies = averaged_run(ema)
    expected = [loss_of(with_weights(ema_of(copies[:n], 0.8))) for n in (UPDATES, 2 * UPDATES)]
    assert model.history["val_loss"] == pytest.approx(expected, rel=1e-5)
    assert model.history["val_loss"][-1] != pytest.approx(loss_of(model.module), rel=1e-5)


def test_ema_averages_the_statistics_of_batch_norm():
    ema = EMA(0.8)
    _, copies = averaged_run(ema, make=normed)
    average = ema.average.module.state_dict()
    for name in ("1.running_mean", "1.running_var"):
        torch.testing.assert_close(average[name], ema_of(copies, 0.8)[name])


@pytest.mark.parametrize("average", [lambda: EMA(0.8), lambda: SWA(0)], ids=["EMA", "SWA"])
def test_an_average_does_not_change_the_training(average):
    plain, averaged, callback = new_model(normed), new_model(normed), average()
    for model, callbacks in ((plain, []), (averaged, [callback])):
        torch.manual_seed(1)
        for _ in range(2):
            train(model, 2, *callbacks, shuffle=True)
    assert same_weights(plain.module, averaged.module)
    assert plain.history["loss"] == averaged.history["loss"]
    assert plain.history["val_loss"] != averaged.history["val_loss"]


def interrupt_in_validation_of(epoch):
    """Send SIGINT once, in the validation of an epoch."""

    def press(*_):
        if callback.model.state.step == UPDATES * (epoch + 1):
            signal.raise_signal(signal.SIGINT)

    callback = LambdaCallback(on_test_batch_end=press)
    return callback


@pytest.mark.parametrize("average", [lambda: EMA(0.8), lambda: SWA(0)], ids=["EMA", "SWA"])
def test_ctrl_c_in_validation_restores_the_training_weights(average):
    weights, model = Weights(every="update"), new_model()
    history = train(model, 3, weights, average(), interrupt_in_validation_of(epoch=1), on_interrupt="return")
    assert history.interrupted
    assert equal(model.module.state_dict(), weights.copies[-1])


@pytest.mark.parametrize("average", [lambda: EMA(0.8), lambda: SWA(0)], ids=["EMA", "SWA"])
def test_a_run_stopped_in_validation_resumes_exactly(average, tmp_path):
    def program(folder, *more):
        callback, model = average(), new_model(normed)
        validation = DataLoader(TensorDataset(*VALIDATION), 16, shuffle=True)  # draws from the global generator
        options = {"validation_data": validation, "resume": folder, "on_interrupt": "return"}
        history = train(model, 3, callback, *more, shuffle=True, **options)
        return model, callback.average.module, history

    undisturbed = program(tmp_path / "undisturbed")
    assert program(tmp_path / "stopped", interrupt_in_validation_of(epoch=1))[2].interrupted
    continued = program(tmp_path / "stopped")
    assert same_weights(undisturbed[0].module, continued[0].module)
    assert same_weights(undisturbed[1], continued[1])
    assert undisturbed[2].history == continued[2].history


@pytest.mark.parametrize("average", [lambda: EMA(0.8), lambda: SWA(0)], ids=["EMA", "SWA"])
@pytest.mark.parametrize("where", ["evaluation", "another callback"])
def test_an_error_in_validation_restores_the_training_weights(average, where):
    weights, model = Weights(every="update"), new_model(Fragile)
    fails = breaking(2, "evaluation") if where == "evaluation" else raising("on_test_batch_end")
    with pytest.raises(RuntimeError, match=r"broke|failed"):
        train(model, 3, weights, average(), fails)
    assert equal(model.module.state_dict(), weights.copies[-1])


def test_an_error_in_evaluate_restores_the_training_weights():
    ema, model = EMA(0.8), new_model(Fragile)
    train(model, 2, ema)
    before = copy.deepcopy(model.module.state_dict())
    model.module.breaks_in = "evaluation"
    with pytest.raises(RuntimeError, match=r"the module broke"):
        model.evaluate(X, Y, callbacks=[ema], verbose=0)
    assert equal(model.module.state_dict(), before)


def test_evaluate_with_the_callback_uses_the_average():
    ema = EMA(0.8)
    model, copies = averaged_run(ema)
    scores = model.evaluate(*VALIDATION, callbacks=[ema], verbose=0)
    assert float(scores) == pytest.approx(loss_of(with_weights(ema_of(copies, 0.8))), rel=1e-5)
    assert equal(model.module.state_dict(), copies[-1])


def test_averaged_loads_the_average_only_inside_the_block():
    ema = EMA(0.8)
    model, copies = averaged_run(ema)
    with ema.averaged():
        close(model.module.state_dict(), ema_of(copies, 0.8))
    assert equal(model.module.state_dict(), copies[-1])
    with pytest.raises(KeyError), ema.averaged():
        raise KeyError
    assert equal(model.module.state_dict(), copies[-1])
    close(ema.average.module.state_dict(), ema_of(copies, 0.8))


@pytest.mark.parametrize("keep_average", [False, True])
def test_keep_average_leaves_the_average_in_the_module(keep_average):
    model, copies = averaged_run(EMA(0.8, keep_average=keep_average))
    close(model.module.state_dict(), ema_of(copies, 0.8) if keep_average else copies[-1])


def test_keep_average_leaves_the_average_in_the_callback_too():
    ema = EMA(0.8, keep_average=True)
    model, copies = averaged_run(ema)
    close(ema.average.module.state_dict(), ema_of(copies, 0.8))
    with ema.averaged():
        close(model.module.state_dict(), ema_of(copies, 0.8))


def test_a_second_fit_continues_the_average():
    ema, model, weights = EMA(0.8), new_model(), Weights(every="update")
    train(model, 1, weights, ema)
    train(model, 1, weights, ema)
    close(ema.average.module.state_dict(), ema_of(weights.copies, 0.8))


def test_another_model_starts_a_new_average():
    ema = EMA(0.8)
    averaged_run(ema)
    other, weights = new_model(optimizer=lambda p: torch.optim.SGD(p, lr=0.001)), Weights(every="update")
    train(other, 1, weights, ema)
    close(ema.average.module.state_dict(), ema_of(weights.copies, 0.8))


@pytest.mark.parametrize("decay", [-0.1, 1.1])
def test_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=r"decay must be between 0 and 1"):
        EMA(decay)


# SWA


@pytest.mark.parametrize(("start_epoch", "first"), [(0, 0), (1, 1), (3, 3), (0.5, 2), (0.75, 3), (0.0, 0)])
def test_swa_is_the_mean_of_the_weights_of_the_last_epochs(start_epoch, first):
    swa, weights = SWA(start_epoch), Weights()
    train(new_model(), 4, weights, swa)
    close(swa.average.module.state_dict(), mean_of(weights.copies[first:]))


def test_swa_averages_the_last_quarter_by_default():
    assert SWA().start_epoch == 0.75


@pytest.mark.parametrize("start_epoch", [-1, 1.5, "late"])
def test_invalid_start_epoch_is_refused(start_epoch):
    with pytest.raises((TypeError, ValueError), match=r"start_epoch"):
        SWA(start_epoch)


def test_validation_uses_the_swa_average():
    swa, weights, model = SWA(1), Weights(), new_model()
    train(model, 4, weights, swa)
    expected = [weights.copies[0], weights.copies[1], weights.copies[1], mean_of(weights.copies[1:3])]
    assert model.history["val_loss"] == pytest.approx([loss_of(with_weights(one)) for one in expected], rel=1e-5)
    assert equal(model.module.state_dict(), weights.copies[-1])


def measured_again(weights, make, inputs):
    net = with_weights(weights, make)
    update_bn(inputs, net)
    return net.state_dict()


def test_swa_computes_the_statistics_of_batch_norm_again():
    def make():
        return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))

    swa, weights, model = SWA(1), Weights(), new_model(make)
    train(model, 3, weights, swa)
    mean = mean_of([{name: value.float() for name, value in one.items()} for one in weights.copies[1:]])
    close(swa.average.module.state_dict(), measured_again(mean, make, X.split(16)))
    assert equal(model.module.state_dict(), weights.copies[-1])


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, a, b):
        return self.head(self.norm(a + b))


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_swa_computes_batch_norm_of_modules_with_several_inputs(kind):
    swa, model = SWA(0), new_model(TwoInputs)
    x = (X, X + 1) if kind == "tuple" else {"a": X, "b": X + 1}
    model.fit(x, Y, epochs=2, batch_size=48, callbacks=[swa], verbose=0)
    close({"mean": swa.average.module.norm.running_mean}, {"mean": (2 * X + 1).mean(0)})


def test_swa_retains_batch_norm_statistics_with_a_generator():
    batches, swa, model = [(X[i : i + 16], Y[i : i + 16]) for i in (0, 16, 32)], SWA(0), new_model(normed)
    with pytest.warns(UserWarning, match=r"BatchNorm"):
        model.fit((batch for batch in batches), epochs=1, callbacks=[swa], verbose=0)
    assert swa.average.module[1].running_mean.abs().max() > 0


def test_swa_of_a_complete_run_is_the_same_in_a_loaded_model(tmp_path):
    train(new_model(normed), 2, first := SWA(0), resume=tmp_path)
    again = new_model(normed).load(tmp_path)
    train(again, 2, second := SWA(0), resume=tmp_path)
    assert again.state.epoch == 2
    close(second.average.module.state_dict(), first.average.module.state_dict())


def test_swa_can_be_left_in_the_module():
    weights, model = Weights(), new_model()
    train(model, 3, weights, SWA(1, keep_average=True))
    close(model.module.state_dict(), mean_of(weights.copies[1:]))


class Tables(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(8, 3)
        self.register_buffer("order", torch.arange(8))
        self.register_buffer("mask", torch.ones(8, dtype=torch.bool))

    def forward(self, x):
        return self.out((x * self.mask)[:, self.order])


@pytest.mark.parametrize("average", [EMA(0.9), SWA(0)], ids=["EMA", "SWA"])
def test_indices_and_masks_are_not_averaged(average):
    _, copies = averaged_run(average, 3, Tables)
    module = average.average.module
    assert torch.equal(module.order, torch.arange(8))
    assert module.mask.all()
    assert not torch.equal(module.out.weight, copies[-1]["out.weight"])


def test_a_checkpoint_of_swa_contains_the_evaluated_weights(tmp_path):
    path, model = tmp_path / "{val_loss:.6f}.pt", new_model(optimizer="sgd")
    history = train(model, 4, SWA(0), ModelCheckpoint(path, save_best_only=True))
    files = sorted(tmp_path.iterdir())
    assert f"{min(history['val_loss']):.6f}.pt" in {file.name for file in files}
    for file in files:
        weights = new_model().load_weights(file).module
        assert loss_of(weights) == pytest.approx(float(file.stem), abs=1e-5)


@pytest.mark.parametrize("make", [lambda: EMA(0.5, keep_average=True), lambda: SWA(0, keep_average=True)])
@pytest.mark.parametrize("first", [True, False], ids=["average first", "stopping first"])
def test_best_weights_are_restored_with_keep_average(make, first):
    model, stopping, wrong = new_model(), EarlyStopping(patience=2, restore_best_weights=True), 2 - VALIDATION[1]
    callbacks = [make(), stopping] if first else [stopping, make()]
    history = train(model, 8, *callbacks, validation_data=(VALIDATION[0], wrong))
    assert stopping.best == min(history["val_loss"]) < history["val_loss"][-1]
    assert loss_of(model.module, y=wrong) == pytest.approx(stopping.best, rel=1e-5)


@pytest.mark.parametrize("hook", ["on_epoch_end", "on_epoch_begin"])
def test_swa_counts_each_epoch_once_in_a_resumed_run(hook, tmp_path):
    def program(swa, *more, **options):
        train(new_model(), 4, swa, *more, **options)
        return swa.average.module.state_dict()

    def interrupt(epoch, logs):
        if epoch == 2:
            signal.raise_signal(signal.SIGINT)

    program(SWA(0), LambdaCallback(**{hook: interrupt}), resume=tmp_path, on_interrupt="return")
    resumed = SWA(0)
    close(program(resumed, resume=tmp_path), program(SWA(0)))
    assert resumed.average.n_averaged == 4


@pytest.mark.parametrize("others", [lambda: EMA(0.5), lambda: SWA(0)], ids=["EMA", "SWA"])
def test_two_averages_in_one_fit_are_refused(others):
    model = new_model()
    with pytest.raises(ValueError, match=r"both average the weights.*Pass one of them"):
        train(model, 1, EMA(0.8), others())
    assert model.state.step == 0


def test_two_averages_in_one_evaluation_are_refused():
    ema, swa, model = EMA(0.8), SWA(0), new_model()
    train(model, 1, ema)
    train(model, 1, swa)
    before = copy.deepcopy(model.module.state_dict())
    with pytest.raises(ValueError, match=r"both average the weights.*Pass one of them"):
        model.evaluate(X, Y, callbacks=[ema, swa], verbose=0)
    assert equal(model.module.state_dict(), before)


class Counting(nn.Linear):
    def __init__(self):
        super().__init__(8, 3)
        self.register_buffer("places", torch.arange(100))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x):
        self.calls += self.training
        return super().forward(x)


@pytest.mark.parametrize("average", [lambda: EMA(0.8), lambda: SWA(0)], ids=["EMA", "SWA"])
def test_integer_buffers_are_copied_and_not_averaged(average):
    callback = average()
    train(new_model(Counting), 3, callback)
    assert callback.average.module.places.tolist() == list(range(100))
    assert callback.average.module.calls == 3 * UPDATES


# What is averaged, and what is copied


class Masked(nn.Module):
    """Attention with a mask of -inf."""

    def __init__(self, persistent):
        super().__init__()
        self.embedding, self.qkv, self.head = nn.Embedding(7, 8), nn.Linear(8, 24), nn.Linear(8, 7)
        self.register_buffer("mask", torch.full((6, 6), float("-inf")).triu(1), persistent=persistent)

    def forward(self, tokens):
        q, k, v = self.qkv(self.embedding(tokens)).chunk(3, -1)
        return self.head(nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)).transpose(1, 2)


class Frozen(nn.Module):
    """A frozen parameter with -inf, a float counter and a queue of unit vectors."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 7)
        self.limit = nn.Parameter(torch.tensor([0.0, float("-inf")]), requires_grad=False)
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("queue", nn.functional.normalize(torch.randn(3, 4), dim=1))

    def forward(self, x):
        if self.training:
            self.steps += 1
            self.queue = nn.functional.normalize(torch.randn(3, 4), dim=1)
        return self.layer(x) + self.limit[0]


KEEPING = [lambda: EMA(0.9, keep_average=True), lambda: SWA(start_epoch=0, keep_average=True)]


@pytest.mark.parametrize("make", KEEPING, ids=["ema", "swa"])
@pytest.mark.parametrize("persistent", [True, False])
def test_a_mask_of_minus_infinity_is_copied(make, persistent):
    tokens = torch.randint(7, (32, 6))
    model = Model(Masked(persistent), device="cpu").compile("sgd", "cross_entropy", lr=0.05)
    history = model.fit(tokens, tokens, epochs=3, validation_data=(tokens, tokens), callbacks=[make()], verbose=0)
    assert all(map(math.isfinite, history["val_loss"]))
    assert not model.module.mask.isnan().any()
    assert math.isfinite(model.evaluate(tokens, tokens, verbose=0)["loss"])


@pytest.mark.parametrize("make", KEEPING, ids=["ema", "swa"])
def test_frozen_parameters_counters_and_queues_are_copied(make):
    torch.manual_seed(0)
    x, y = torch.randn(32, 4), torch.arange(32) % 7
    average = make()
    model = Model(Frozen(), device="cpu").compile("sgd", "cross_entropy")
    model.fit(x, y, epochs=2, batch_size=8, validation_data=(x, y), callbacks=[average], verbose=0)
    for module in (model.module, average.average.module):
        assert module.steps == 8
        assert torch.allclose(module.queue.norm(dim=1), torch.ones(3))
        assert module.limit.tolist() == [0, float("-inf")]


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_the_vectors_of_spectral_norm_stay_unit_vectors(norm):
    torch.manual_seed(0)
    net = nn.Sequential(norm(nn.Linear(4, 16)), nn.ReLU(), nn.Linear(16, 1))
    x = torch.randn(64, 4)
    ema = EMA(0.9)
    model = Model(net, device="cpu").compile("adam", "mse", lr=0.01)
    model.fit(x, x[:, :1], epochs=3, validation_data=(x, x[:, :1]), callbacks=[ema], verbose=0)
    vectors = [value for name, value in ema.average.module.named_buffers() if name.endswith(("_u", "_v"))]
    assert len(vectors) == 2
    assert all(vector.norm() == pytest.approx(1, abs=1e-5) for vector in vectors)


class Grows(nn.Module):
    def __init__(self, persistent):
        super().__init__()
        self.norm, self.layer, self.persistent = nn.BatchNorm1d(4), nn.Linear(4, 3), persistent

    def forward(self, x):
        if not hasattr(self, "bias") or len(self.bias) < len(x):
            self.register_buffer("bias", torch.zeros(len(x), 1), persistent=self.persistent)
        return self.layer(self.norm(x)) + self.bias[: len(x)]


@pytest.mark.parametrize("make", KEEPING, ids=["ema", "swa"])
@pytest.mark.parametrize("persistent", [True, False])
def test_buffers_that_appear_or_grow_are_copied(make, persistent, tmp_path):
    x, y = torch.randn(40, 4) + 3, torch.arange(40) % 3
    batches = [(x[:8], y[:8]), (x[8:], y[8:])]
    average = make()
    model = Model(Grows(persistent), device="cpu").compile("sgd", "cross_entropy")
    model.fit(batches, epochs=3, validation_data=batches, callbacks=[average], resume=tmp_path, verbose=0)
    module = average.average.module
    assert len(module.bias) == 32
    assert 0 < float(module.norm.running_mean.mean()) < 4
    if persistent:
        return  # a new module has no such buffer to load into
    restored = make()
    Model(Grows(persistent), device="cpu").compile("sgd", "cross_entropy").fit(
        batches, epochs=3, validation_data=batches, callbacks=[restored], resume=tmp_path, verbose=0
    )
    assert torch.equal(restored.average.module.layer.weight, module.layer.weight)


def test_swa_leaves_a_frozen_batch_norm_alone():
    def make_net():
        net = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        )
        net[1].running_mean.fill_(0.5)
        net[1].running_var.fill_(2.0)
        net[1].requires_grad_(False).eval()
        return net

    x, y = torch.randn(64, 4), torch.arange(64) % 3
    net = make_net()
    model = Model(net, device="cpu").compile("sgd", "cross_entropy", lr=0.1)
    model.fit(x, y, epochs=3, batch_size=16, callbacks=[SWA(start_epoch=1, keep_average=True)], verbose=0)
    assert (net[1].running_mean == 0.5).all()
    assert (net[1].running_var == 2.0).all()
    assert not net[1].training
    hidden = net[3](net[2](net[1](net[0](x))))  # with the frozen statistics
    assert torch.allclose(net[4].running_mean, hidden.mean(0), atol=0.1)


def test_a_module_that_cannot_be_copied_is_an_error_that_names_the_callback():
    class Remembers(nn.Linear):
        def forward(self, x):
            self.last = super().forward(x)
            return self.last

    net, x, y = Remembers(4, 3), torch.randn(8, 4), torch.arange(8) % 3
    net(x)
    model = Model(net, device="cpu").compile("sgd", "cross_entropy")
    with pytest.raises(TypeError, match=r"EMA needs a copy of the module.*detach\(\)"):
        model.fit(x, y, callbacks=[EMA()], verbose=0)
    assert model.state.step == 0


class Part(nn.Module):
    def __init__(self, compiled):
        super().__init__()
        body = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.body = torch.compile(body, backend="eager") if compiled else body
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.body(x))


@pytest.mark.parametrize(
    "make",
    [lambda: EMA(0.9), lambda: EarlyStopping(restore_best_weights=True, patience=9)],
    ids=["ema", "early stopping"],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_run_resumes_with_or_without_compilation_of_a_part(make, first, tmp_path):
    x, y = torch.randn(32, 4), torch.arange(32) % 3

    def run(compiled, epochs):
        torch.manual_seed(1)
        worse = LambdaCallback(on_epoch_begin=lambda epoch, logs: epoch >= 2 and set_rate(model, 20.0))
        model = Model(Part(compiled), device="cpu").compile("sgd", "cross_entropy", lr=0.1)
        callbacks = [worse, make()]
        model.fit(x, y, epochs=epochs, validation_data=(x, y), callbacks=callbacks, resume=tmp_path, verbose=0)
        return [value.detach().clone() for value in model.module.parameters()]

    def set_rate(model, rate):
        model.optimizer.param_groups[0]["lr"] = rate

    run(first, 2)
    resumed = run(not first, 4)
    shutil.rmtree(tmp_path)
    for value, expected in zip(resumed, run(first, 4), strict=True):
        assert torch.allclose(value, expected)

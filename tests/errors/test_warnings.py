"""Promise 4: errors state what was expected, what was received and the fix, and wrong input loses nothing."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from easytorch import Model
from tests.errors.common import X, Y, compiled, fit, refused
from tests.loops import mlp

# Programs that run but do not do what was intended


def test_softmax_before_cross_entropy_warns():
    net = nn.Sequential(mlp(), nn.Softmax(1))
    with pytest.warns(UserWarning, match=r"applies a softmax itself.*predict_proba"):
        fit(compiled(net), X, Y)


def test_custom_loss_that_broadcasts_warns():
    net = nn.Linear(8, 1)
    with pytest.warns(
        UserWarning, match=r"output is \[32, 1\] and the targets are \[32\].*broadcasts them to \[32, 32\]"
    ):
        fit(compiled(net, loss=lambda y_pred, y: ((y_pred - y) ** 2).mean()), X, X[:, 0])


@pytest.mark.parametrize("labels", [lambda y: y * 2 - 1, lambda y: y + 1], ids=["-1 and 1", "1 and 2"])
def test_binary_labels_outside_0_and_1_raise(labels):
    y = labels((Y > 0).float())[:, None]
    refused(lambda: fit(compiled(nn.Linear(8, 1), loss="bce_with_logits"), X, y), "targets go from", "0 and 1", "y - 1")


@pytest.mark.parametrize(
    "value", [lambda loss: loss, lambda loss: None, lambda loss: (loss,)], ids=["tensor", "None", "tuple"]
)
def test_step_that_returns_no_dict_raises(value):
    class Custom(Model):
        def train_step(self, batch):
            x, y, _ = self.unpack(batch)
            return value(nn.functional.cross_entropy(self(x), y))

    refused(
        lambda: fit(Custom(mlp(), device="cpu").compile("sgd"), X, Y), "train_step returned", "'loss'", kind=TypeError
    )


def test_step_that_calls_backward_raises():
    class Custom(Model):
        def train_step(self, batch):
            x, y, _ = self.unpack(batch)
            loss = nn.functional.cross_entropy(self(x), y)
            loss.backward()
            return {"loss": loss}

    refused(
        lambda: fit(Custom(mlp(), device="cpu").compile("sgd"), X, Y), "Leave backward", "update", kind=RuntimeError
    )


def test_error_in_validation_data_names_the_validation_data():
    refused(
        lambda: fit(compiled(), X, Y, validation_data=(X[:, :5], Y)), "^The validation data does not fit", "8 features"
    )
    refused(
        lambda: fit(compiled(), X[:, :5], Y, validation_data=(X, Y)), "^The training data does not fit", "8 features"
    )


def test_an_error_of_both_data_blames_neither():
    message = refused(lambda: fit(compiled(), X[:, :5], Y, validation_split=0.2), "expects 8 features, received 5")
    assert "validation" not in message
    labels = refused(lambda: fit(compiled(), X, Y, validation_data=(X, Y + 3)), "the training data did not: The labels")
    assert "Flatten" not in labels


def test_custom_error_in_validation_stays_as_it_is():
    class PickyError(ValueError):
        def __init__(self, what, why):
            super().__init__(f"{what}: {why}")

    class Failing(nn.Linear):
        def forward(self, x):
            if not self.training:
                raise PickyError("this input", "I do not like it")
            return super().forward(x)

    model = compiled(Failing(8, 3))
    refused(lambda: fit(model, X, Y, validation_split=0.2), "^this input: I do not like it$", kind=PickyError)


@pytest.mark.parametrize("given", [{"y": Y}, {"sample_weight": torch.ones(50)}, {"batch_size": 8}], ids=str)
def test_evaluate_without_data_rejects_data_arguments(given):
    model = compiled()
    fit(model, X, Y)
    refused(lambda: model.evaluate(verbose=0, **given), f"received {next(iter(given))} without data", kind=ValueError)


def test_outputs_without_one_row_per_sample_raise():
    model = Model(nn.LSTM(8, 4, batch_first=True), device="cpu")
    refused(lambda: model.predict(X.reshape(-1, 1, 8), verbose=0), "one row for each sample", "predict_step")


def test_missing_flatten_is_reported():
    net = nn.Sequential(nn.Unflatten(1, (1, 2, 4)), nn.Conv2d(1, 3, 1), nn.Linear(4, 5))
    refused(lambda: fit(compiled(net), X, Y), r"\[N, classes\]", "Flatten")


def test_optimizer_instead_of_loss_raises():
    with pytest.raises(ValueError, match=r"'adam', which is an optimizer.*compile\('adam', 'cross_entropy'\)"):
        Model(mlp()).compile("cross_entropy", "adam")


def test_list_of_samples_instead_of_batches_raises():
    for samples in ([(X[i], int(Y[i])) for i in range(9)], [(X[i], Y[i]) for i in range(9)]):
        with pytest.raises(ValueError, match=r"received a list of samples: .* DataLoader\(samples, batch_size=32"):
            Model(mlp()).compile("sgd", "cross_entropy").fit(samples, 1, verbose=0)


def test_inputs_and_targets_in_a_list_raise():
    model = Model(mlp()).compile("sgd", "cross_entropy")
    with pytest.raises(ValueError, match=r"looks like inputs and targets. Pass them as a tuple, \(x, y\)"):
        model.fit(X, Y, validation_data=[X, Y], verbose=0)


@pytest.mark.parametrize("shape", [(), (nn.Flatten(0),)])
def test_sigmoid_before_bce_with_logits_warns(shape):
    net = nn.Sequential(nn.Linear(X.shape[1], 1), nn.Sigmoid(), *shape)
    with pytest.warns(UserWarning, match="Remove the sigmoid"):
        Model(net).compile("sgd", "bce_with_logits").fit(X, (Y > 0).float().reshape(-1, *[1] * (not shape)), verbose=0)


def test_logits_between_0_and_1_do_not_warn():
    net = nn.Linear(X.shape[1], 1)
    with torch.no_grad():
        net.weight.mul_(0.01)
        net.bias.fill_(0.5)
    Model(net).compile("sgd", "bce_with_logits").fit(X, (Y > 0).float()[:, None], verbose=0)


def test_class_weight_without_targets_warns():
    model = Model(mlp()).compile("sgd", "cross_entropy")
    with pytest.warns(UserWarning, match="class_weight of class 7 has no effect"):
        model.fit(X, Y, class_weight={0: 2.0, 7: 3.0}, verbose=0)


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [(True, "inputs of sample 0 of the data have values that are not finite"), (False, "a lower learning rate")],
)
def test_nan_loss_warns_once(spoil, cause):
    x = X.clone()
    x[:, 0] = float("nan") if spoil else x[:, 0]
    model = Model(mlp()).compile("sgd", "cross_entropy", lr=0.1 if spoil else 1e30)
    with pytest.warns(UserWarning, match=f"The loss of epoch 1 is nan. .*{cause}.* TerminateOnNaN") as caught:
        model.fit(DataLoader(TensorDataset(x, Y), 32), epochs=3, verbose=0)
    assert len(caught) == 1


class FourParts(Model):
    def train_step(self, batch):
        x, y, _, _ = batch
        return {"loss": self.loss(self(x), y) * float("nan")}


def test_a_loss_that_is_not_finite_does_not_end_a_run_on_custom_batches():
    data = [(X[:8], Y[:8], "a", "b"), (X[8:16], Y[8:16], "c", "d")]
    model = FourParts(mlp(), device="cpu").compile("sgd", "cross_entropy", lr=0.0)
    with pytest.warns(UserWarning, match="The loss of epoch 1 is nan"):
        model.fit(data, epochs=2, verbose=0)
    assert model.state.epoch == 2


# Entries of a dict that nothing takes


class Masked(nn.Module):
    """A module with optional inputs."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None, **options):
        return self.head(input_ids if attention_mask is None else input_ids * attention_mask)


def entries(**others):
    return {"input_ids": X, "labels": Y} | others


def warnings_of(run):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("name", ["attention_masks", "attn_mask", "attentionmask"])
def test_a_misspelled_entry_of_a_dict_warns_once(name):
    model, batch = compiled(Masked()), entries(**{name: torch.ones_like(X)})
    message = [f"The entry {name!r} of the batch is ignored. Did you mean 'attention_mask'?"]
    assert warnings_of(lambda: fit(model, batch, epochs=2, validation_data=batch)) == message
    assert warnings_of(lambda: model.evaluate(batch, verbose=0)) == message
    assert warnings_of(lambda: model.predict(batch, verbose=0)) == message
    del batch["labels"]
    assert warnings_of(lambda: model.predict(batch, verbose=0)) == message


def test_a_misspelled_entry_warns_in_every_verb():
    model, batch = compiled(Masked()), entries(attention_masks=torch.ones_like(X))
    for verb in ("train_on_batch", "test_on_batch", "predict_on_batch", "predict_proba", "predict_classes"):
        found = warnings_of(lambda verb=verb: getattr(model, verb)(batch))
        assert found == ["The entry 'attention_masks' of the batch is ignored. Did you mean 'attention_mask'?"], verb
        assert not warnings_of(lambda verb=verb: getattr(model, verb)(entries()))


def test_a_misspelled_entry_of_the_validation_data_warns():
    batch = entries(attention_masks=torch.ones_like(X))
    assert len(warnings_of(lambda: fit(compiled(Masked()), entries(), validation_data=batch))) == 1


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"attention_mask": torch.ones_like(X)},
        {"attention_mask": torch.ones_like(X), "attention_masks": torch.ones_like(X)},
        {"special_tokens_mask": X, "offset_mapping": X, "length": Y, "idx": Y, "word_ids": Y, "target": Y},
        {"sample_weight": torch.ones(len(X))},
    ],
    ids=["none", "right", "both", "others", "weight"],
)
def test_other_entries_of_a_dict_do_not_warn(others):
    model = compiled(Masked())
    assert not warnings_of(lambda: fit(model, entries(**others)))
    assert not warnings_of(lambda: model.predict(entries(**others), verbose=0))


def test_entries_that_a_loss_takes_do_not_warn():
    def by_name(y_pred, y, attention_masks):
        return functional.cross_entropy(y_pred, y) * attention_masks.mean()

    def by_batch(y_pred, y, batch):
        return functional.cross_entropy(y_pred, y) * batch["attention_masks"].mean()

    data = entries(attention_masks=torch.ones_like(X))
    assert not warnings_of(lambda: fit(compiled(Masked(), loss=by_name), data))
    assert not warnings_of(lambda: fit(compiled(Masked(), loss=by_batch), data))


def test_entries_that_a_custom_step_may_take_do_not_warn():
    class Custom(Model):
        def train_step(self, batch):
            y_pred = self({"input_ids": batch["input_ids"], "attention_mask": batch["attention_masks"]})
            return {"loss": self.loss(y_pred, batch["labels"])}

    model = Custom(Masked(), device="cpu").compile("sgd", "cross_entropy")
    assert not warnings_of(lambda: fit(model, entries(attention_masks=torch.ones_like(X))))


def test_a_numbered_entry_is_no_misspelling_of_another():
    class Two(nn.Linear):
        def forward(self, image_1, image_2=None):
            return super().forward(image_1)

    assert not warnings_of(lambda: fit(compiled(Two(8, 3)), {"image_1": X, "image_3": X, "labels": Y}))

"""Several loaders at once: batches, modes, weights, workers and resumed runs."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from easytorch import Model, ResumeError
from easytorch.callbacks import BackupAndRestore
from easytorch.data import combine, in_memory, seeded
from tests.cases import slow_after_first
from tests.common_resume import AugmentedDataset, CrashAfter, CustomSampler, SimulatedCrash, X, Y
from tests.common_sources import OwnStream
from tests.loops import same_weights

ROWS = TensorDataset(X, Y)
FEW = TensorDataset(X[:20], Y[:20])


class SemiSupervised(Model):
    """The loss of labeled samples, and the distance of two noisy outputs of samples without labels."""

    def train_step(self, batch):
        x, y = batch["labeled"]
        unlabeled = batch["unlabeled"][0]
        loss = nn.functional.cross_entropy(self(x), y)
        consistency = (self(unlabeled) - self(unlabeled)).square().mean()
        return {"loss": loss + consistency, "consistency": (consistency * len(unlabeled), len(unlabeled))}

    def test_step(self, batch):
        x, y = batch["labeled"]
        return {"loss": nn.functional.cross_entropy(self(x), y)}


def new_net():
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


def new_model(kind=SemiSupervised, **options):
    return kind(new_net(), device="cpu").compile("sgd", "cross_entropy", lr=0.1, **options)


def two_loaders(labeled=FEW, unlabeled=ROWS, size=4, **options):
    options = {"shuffle": True, "drop_last": True} | options
    return {"labeled": DataLoader(labeled, size, **options), "unlabeled": DataLoader(unlabeled, 8, **options)}


# Batches


def test_a_batch_has_one_batch_of_each_loader_by_name():
    both = combine(two_loaders(shuffle=False))
    batches = list(both)
    assert len(both) == len(batches) == 6
    assert [list(batch) for batch in batches] == [["labeled", "unlabeled"]] * 6
    assert torch.equal(batches[5]["labeled"][0], X[:4])
    assert torch.equal(batches[5]["unlabeled"][0], X[40:48])


def test_shortest_ends_with_the_shortest_loader():
    both = combine(two_loaders(shuffle=False), mode="shortest")
    assert len(both) == len(list(both)) == 5


def test_loaders_in_a_list_make_tuples():
    first, second = next(iter(combine([[X[:4]], [X[4:8]]])))
    assert torch.equal(first, X[:4])
    assert torch.equal(second, X[4:8])


def test_a_cycled_loader_shuffles_again():
    torch.manual_seed(0)
    rows = [batch["labeled"][0] for batch in combine(two_loaders(unlabeled=TensorDataset(X.repeat(4, 1))))]
    first, second = torch.cat(rows[:5]), torch.cat(rows[5:10])
    assert not torch.equal(first, second)
    assert torch.equal(first.sort(0).values, second.sort(0).values)


@pytest.mark.parametrize("mode", ["longest", "shortest"])
def test_fit_equals_a_plain_loop_bit_for_bit(mode):
    model = new_model()
    model.fit(combine(two_loaders(), mode), 2, verbose=0)
    net, loaders = new_net(), two_loaders()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        # Each loader starts when its first batch is read.
        labeled, unlabeled = iter(loaders["labeled"]), None
        for step in range(6 if mode == "longest" else 5):
            if step == 5:
                parts = {"unlabeled": next(unlabeled)}
                labeled = iter(loaders["labeled"])
                parts["labeled"] = next(labeled)
            else:
                parts = {"labeled": next(labeled)}
                unlabeled = iter(loaders["unlabeled"]) if step == 0 else unlabeled
                parts["unlabeled"] = next(unlabeled)
            x, y = parts["labeled"]
            z = parts["unlabeled"][0]
            loss = nn.functional.cross_entropy(net(x), y) + (net(z) - net(z)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert same_weights(model.module, net)


@pytest.mark.parametrize("mode", ["longest", "shortest"])
def test_a_plain_loop_reads_the_batches_of_fit(mode):
    model = new_model()
    model.fit(combine(two_loaders(), mode), 2, verbose=0)
    net = new_net()
    both = combine(two_loaders(), mode)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        for batch in both:
            x, y = batch["labeled"]
            z = batch["unlabeled"][0]
            loss = nn.functional.cross_entropy(net(x), y) + (net(z) - net(z)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert same_weights(model.module, net)


def test_an_empty_loader_and_equal_names_are_refused():
    with pytest.raises(ValueError, match=r"loader '0' of .* has no batch"):
        list(combine([DataLoader(TensorDataset(X[:3]), 4, drop_last=True), DataLoader(ROWS, 8)]))
    same: Any = {1: DataLoader(FEW, 4), "1": DataLoader(ROWS, 8)}
    with pytest.raises(ValueError, match="same name"):
        combine(same)


def test_accumulated_batches_equal_one_large_batch():
    def weights(loaders, window):
        torch.manual_seed(0)
        model = NoNoise(nn.Linear(8, 3), device="cpu")
        model.compile("sgd", "cross_entropy", lr=0.1, gradient_accumulation_steps=window)
        model.fit(combine(loaders), 1, verbose=0)
        return model.module.weight

    class NoNoise(SemiSupervised):
        def train_step(self, batch):
            x, y = batch["labeled"]
            return {"loss": nn.functional.cross_entropy(self(x), y) + self(batch["unlabeled"][0]).square().mean()}

    many = TensorDataset(X[:40])
    small = {"labeled": DataLoader(FEW, 5), "unlabeled": DataLoader(many, 10)}
    large = {"labeled": DataLoader(FEW, 10), "unlabeled": DataLoader(many, 20)}
    assert torch.allclose(weights(small, 2), weights(large, 1), atol=1e-6)


def test_it_is_validation_data_and_is_evaluated():
    model = new_model()
    both = combine(two_loaders(shuffle=False, drop_last=False))
    history = model.fit(combine(two_loaders()), 2, validation_data=both, verbose=0)
    assert history["val_loss"][-1] == pytest.approx(model.evaluate(both, verbose=0).loss)


def test_the_mean_is_weighted_by_the_first_loader():
    class Sizes(Model):
        def train_step(self, batch):
            first, second = batch
            loss = 0 * self(first).sum() + len(first)
            return {"loss": loss, "second": (second.sum(), len(second))}

    model = Sizes(nn.Linear(2, 1), device="cpu").compile("sgd", lambda y_pred, y: y_pred.mean())
    first, second = [torch.zeros(4, 2), torch.zeros(1, 2)], [torch.ones(2, 1), 3 * torch.ones(6, 1)]
    history = model.fit(combine([first, second]), verbose=0)
    assert history["loss"] == [pytest.approx((4 * 4 + 1 * 1) / 5)]
    assert history["second"] == [pytest.approx((2 + 18) / 8)]


# Resume

LOADERS = {
    "in memory": lambda: two_loaders(in_memory(FEW, verbose=0), in_memory(ROWS, verbose=0), 10),
    "augmented": lambda: two_loaders(AugmentedDataset(), AugmentedDataset(), 20),
    "workers": lambda: two_loaders(size=10, num_workers=1),
    "seeded in persistent workers": lambda: two_loaders(
        seeded(AugmentedDataset()), size=20, num_workers=1, persistent_workers=True
    ),
    "one generator": lambda: two_loaders(size=10, generator=torch.Generator().manual_seed(3)),
    "custom sampler": lambda: {
        "labeled": DataLoader(ROWS, 20, sampler=CustomSampler()),
        "unlabeled": DataLoader(ROWS, 8, shuffle=True),
    },
    "stream": lambda: {"labeled": DataLoader(FEW, 4, shuffle=True), "unlabeled": DataLoader(OwnStream(), 8)},
    "lists": lambda: {"labeled": [(X[:4], Y[:4]), (X[4:8], Y[4:8])], "unlabeled": [(X[:9],), (X[9:20],), (X[20:30],)]},
}


def program(folder, make_loaders, crash=None, mode="longest", **options):
    """Run the program of a user from its first line; return the weights, or None after a crash."""
    model = new_model(gradient_accumulation_steps=options.pop("accumulate", 1))
    callbacks = [BackupAndRestore(folder, save_freq=1, delete_checkpoint=False)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(loaded again and discarded|cannot be restored).*")
        try:
            model.fit(
                combine(make_loaders(), mode),
                3,
                validation_data=combine(make_loaders()),
                callbacks=[*callbacks, *([CrashAfter(crash)] if crash else [])],
                verbose=0,
                **options,
            )
        except SimulatedCrash:
            return None
    return {**model.module.state_dict(), "next": torch.rand(3)}, dict(model.history.history)


def check_each_stop(folder, make_loaders, stops, **options):
    expected = program(folder / "undisturbed", make_loaders, **options)
    for step in stops:
        place = folder / str(step)
        assert program(place, make_loaders, step, **options) is None
        weights, history = program(place, make_loaders, **options)
        assert history == expected[1]
        for name, value in weights.items():
            assert torch.equal(value, expected[0][name]), (step, name)


@pytest.mark.parametrize("kind", slow_after_first(LOADERS))
def test_a_resumed_run_is_equal_bit_for_bit(kind, tmp_path):
    check_each_stop(tmp_path, LOADERS[kind], (2, 3) if kind == "lists" else (2, 3, 5, 6, 8))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"mode": "shortest"}, {"steps_per_epoch": 4}, {"accumulate": 2}], ids=str)
def test_each_update_can_be_resumed(options, tmp_path):
    check_each_stop(tmp_path, LOADERS["augmented"], range(1, 7), **options)


def test_a_run_does_not_resume_with_other_loaders(tmp_path):
    program(tmp_path, LOADERS["in memory"], 2)
    with pytest.raises(ResumeError, match="combined the loaders"):
        program(tmp_path, lambda: {f"{name}2": loader for name, loader in two_loaders().items()})


# What is refused


def test_the_default_step_names_train_step():
    with pytest.raises(ValueError, match="Override train_step"):
        new_model(Model).fit(combine(two_loaders()), verbose=0)


def test_accumulation_of_unequal_ratios_is_refused_before_training():
    model = new_model(gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match=r"last batch of 'unlabeled' has another size: 2 samples.*drop_last=True"):
        model.fit(combine(two_loaders(drop_last=False)), verbose=0)
    assert model.state.step == 0


def test_an_unknown_unequal_ratio_is_refused_when_it_is_read():
    model = new_model(gradient_accumulation_steps=2)
    lists = {"labeled": [(X[:4], Y[:4])] * 3, "unlabeled": [(X[:4],), (X[:4],), (X[:3],)]}
    with pytest.raises(ValueError, match="'unlabeled' has another size: 3 samples"):
        model.fit(combine(lists), verbose=0)


def test_a_program_may_choose_the_weight_of_a_batch():
    class Weighted(SemiSupervised):
        def batch_size(self, batch):
            return len(batch["labeled"][0])

    new_model(Weighted, gradient_accumulation_steps=2).fit(combine(two_loaders(drop_last=False)), verbose=0)


@pytest.mark.parametrize(
    ("loaders", "error", "message"),
    [
        ({}, ValueError, "no loader"),
        (ROWS, TypeError, "a dict or a list of loaders"),
        ({"a": ROWS}, TypeError, "'a' is a TensorDataset, which contains samples"),
        ({"a": iter([X])}, ValueError, "can be read only once"),
        ({"a": combine([[X]])}, TypeError, "Pass its loaders to one"),
    ],
)
def test_what_is_no_loader_is_refused(loaders, error, message):
    with pytest.raises(error, match=message):
        combine(loaders)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="mode"):
        combine([[X]], mode="max")


def test_class_weights_are_refused():
    with pytest.raises(ValueError, match="class_weight has no effect on combined"):
        new_model().fit(combine(two_loaders()), class_weight="balanced", verbose=0)


def test_a_non_finite_loss_is_reported():
    class Bad(SemiSupervised):
        def train_step(self, batch):
            return {"loss": super().train_step(batch)["loss"] * float("nan")}

    with pytest.warns(UserWarning, match="is nan"):
        new_model(Bad).fit(combine(two_loaders()), verbose=0)

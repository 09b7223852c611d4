"""Models, optimizers, schedulers and Mixup of timm, with random weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, default_collate

from easytorch import Model
from easytorch.callbacks import LRScheduler
from tests.common_resume import CrashAfter, SimulatedCrash
from tests.loops import hand_loop, mlp, same_weights

pytestmark = pytest.mark.slow

X = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 4


def network(**options):
    import timm

    torch.manual_seed(0)
    return timm.create_model("test_resnet", pretrained=False, num_classes=4, **options)


def test_a_model_trains_as_in_the_hand_written_loop(tmp_path):
    from timm.optim import create_optimizer_v2

    net = network(drop_rate=0.1)
    plain = copy.deepcopy(net)
    loader = DataLoader(TensorDataset(X, Y), 4)
    settings = {"opt": "adamw", "lr": 1e-3, "weight_decay": 0.05, "layer_decay": 0.7}
    torch.manual_seed(1)
    model = Model(net, device="cpu").compile(
        create_optimizer_v2(net, **settings), "cross_entropy", metrics=["accuracy"]
    )
    history = model.fit(loader, epochs=2, verbose=0)
    torch.manual_seed(1)
    means = hand_loop(plain, loader, create_optimizer_v2(plain, **settings), F.cross_entropy, 2)
    assert same_weights(net, plain)
    assert history["loss"] == pytest.approx(means, abs=1e-6)
    assert model.module.default_cfg["architecture"] == "test_resnet"
    twin = Model(network(), device="cpu").load_weights(model.save_weights(tmp_path / "weights.safetensors"))
    assert (twin.predict(X, verbose=0) == model.predict(X, verbose=0)).all()


def test_features_are_predicted_as_a_list():
    net = network(features_only=True)
    outputs = Model(net, device="cpu").predict(X, batch_size=5, verbose=0)
    expected = net.eval()(X)
    assert [output.shape for output in outputs] == [tuple(each.shape) for each in expected]


def test_mixup_in_the_collate_function():
    from timm.data import Mixup

    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=4)
    loader = DataLoader(TensorDataset(X, Y), 4, collate_fn=lambda samples: mixup(*default_collate(samples)))
    model = Model(network(), device="cpu").compile("sgd", "cross_entropy", lr=0.1, metrics=["accuracy"])
    history = model.fit(loader, validation_data=(X, Y), verbose=0)
    assert {"accuracy", "val_loss", "val_accuracy"} <= set(history.history)


def make_scheduler(optimizer, in_epochs=True):
    from timm.scheduler import CosineLRScheduler

    length = 4 if in_epochs else 12
    return CosineLRScheduler(optimizer, length, warmup_t=2, warmup_lr_init=0.01, t_in_epochs=in_epochs, noise_range_t=3)


@pytest.mark.parametrize("in_epochs", [True, False])
def test_a_scheduler_gets_the_number_of_epochs_or_updates(in_epochs):
    torch.manual_seed(0)
    x, y = torch.randn(12, 8), torch.arange(12) % 3
    net = mlp()
    plain = copy.deepcopy(net)
    model = Model(net, device="cpu")
    model.compile("sgd", "cross_entropy", lr=0.1, scheduler=lambda optimizer: make_scheduler(optimizer, in_epochs))
    history = model.fit(x, y, epochs=4, batch_size=4, shuffle=False, verbose=0)
    optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    scheduler, updates, rates = make_scheduler(optimizer, in_epochs), 0, []
    for epoch in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        for inputs, labels in zip(x.split(4), y.split(4), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(plain(inputs), labels).backward()
            optimizer.step()
            updates += 1
            scheduler.step_update(num_updates=updates)
        scheduler.step(epoch + 1)
    assert same_weights(net, plain)
    assert len(set(rates)) == 4
    if in_epochs:
        assert history["lr"] == rates
    assert repr(model.schedules[0]) == "LRScheduler(CosineLRScheduler)"


def test_a_run_with_a_scheduler_is_resumed(tmp_path):
    def fit(**options):
        torch.manual_seed(0)
        model = Model(mlp(), device="cpu").compile(
            "sgd", "cross_entropy", lr=0.1, scheduler=LRScheduler(make_scheduler)
        )
        model.fit(torch.randn(12, 8), torch.arange(12) % 3, epochs=4, batch_size=4, verbose=0, **options)
        return model

    with pytest.raises(SimulatedCrash):
        fit(resume=tmp_path, callbacks=[CrashAfter(8)])
    resumed, expected = fit(resume=tmp_path), fit()
    assert same_weights(resumed.module, expected.module)
    assert resumed.history["lr"] == expected.history["lr"]


@pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated:FutureWarning")
def test_a_scheduler_of_plateaus_is_refused():
    from timm.scheduler import PlateauLRScheduler

    with pytest.raises(
        ValueError, match=r"PlateauLRScheduler needs the value.*easytorch\.callbacks\.ReduceLROnPlateau"
    ):
        Model(mlp(), device="cpu").compile("sgd", "cross_entropy", scheduler=PlateauLRScheduler)


def test_tools_work_on_a_model():
    model = Model(network(), device="cpu").compile("adam", "cross_entropy", metrics=["accuracy"])
    model.fit(X, Y, batch_size=4, verbose=0)
    assert "accuracy" in str(model.report(X, Y, bootstrap=0))
    assert "CrossEntropyLoss" in str(model.explain(X, Y))
    assert "for epoch in" in str(model.to_script())

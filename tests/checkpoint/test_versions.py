"""The versions of modules, by which torch converts old state dicts, are saved in every file."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from easytorch import Model
from easytorch.callbacks import EMA, EarlyStopping
from easytorch.checkpoint import rotation
from tests.loops import blobs, same_weights
from tests.test_interrupts import SendSignal

X, Y = blobs(48)


class Centered(nn.Linear):
    """Its first version had a scale of 1, which its files did not need; the second one learns it."""

    _version = 2

    def __init__(self, inputs=8, outputs=3):
        super().__init__(inputs, outputs)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return super().forward(x) * self.scale

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if local_metadata.get("version") in (None, 1):
            state_dict[prefix + "scale"] = torch.ones(())
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def new_model(module=None):
    torch.manual_seed(0)
    net = module or nn.Sequential(nn.Linear(8, 8), Centered())
    return Model(net, device="cpu").compile(lambda p: torch.optim.SGD(p, lr=0.1), "cross_entropy")


def fit(model, **options):
    model.fit(X, Y, batch_size=8, validation_data=(X, Y), on_interrupt="return", verbose=0, **options)
    return model


@pytest.mark.parametrize("kind", ["save", "save_weights", "torch.save"])
def test_current_weights_are_not_converted_as_old_ones(kind, tmp_path):
    model = fit(new_model())
    if kind == "torch.save":
        torch.save(model.module.state_dict(), tmp_path / "m.pt")
    else:
        getattr(model, kind)(tmp_path / "m.pt")
    loaded = new_model()
    (loaded.load if kind == "save" else loaded.load_weights)(tmp_path / "m.pt")
    assert same_weights(loaded.module, model.module)
    assert loaded.module[1].scale.item() != 1


def test_weights_in_a_file_are_right_for_torch_too(tmp_path):
    model = fit(new_model())
    content = torch.load(model.save(tmp_path / "m.pt"), weights_only=True)
    net = nn.Sequential(nn.Linear(8, 8), Centered())
    net.load_state_dict(content["module"])
    assert same_weights(net, model.module)


@pytest.mark.parametrize("step", [4, 9])
def test_a_resumed_run_does_not_convert_its_weights(step, tmp_path):
    def run(folder, *callbacks):
        own = [EMA(0.9), EarlyStopping(patience=5, restore_best_weights=True)]
        return fit(new_model(), epochs=3, resume=folder, callbacks=[*own, *callbacks])

    undisturbed = run(tmp_path / "undisturbed")
    run(tmp_path / "run", SendSignal(step))
    assert rotation.list_checkpoints(tmp_path / "run")
    assert same_weights(run(tmp_path / "run").module, undisturbed.module)


def test_versions_follow_the_names_of_a_compiled_part(tmp_path):
    model = fit(new_model())
    model.save(tmp_path / "m.pt")
    part = nn.Sequential(nn.Linear(8, 8), torch.compile(Centered(), backend="eager"))
    loaded = new_model(part).load(tmp_path / "m.pt")
    assert loaded.module[1].scale.item() == model.module[1].scale.item() != 1


def test_old_weights_are_still_converted(tmp_path):
    old = {name: value for name, value in new_model().module.state_dict().items() if "scale" not in name}
    torch.save(old, tmp_path / "old.pt")
    assert new_model().load_weights(tmp_path / "old.pt").module[1].scale.item() == 1

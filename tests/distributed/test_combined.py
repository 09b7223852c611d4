"""Several loaders at once on several ranks."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from easytorch import Model
from easytorch.callbacks import BackupAndRestore
from easytorch.data import combine
from tests.common_resume import CrashAfter, SimulatedCrash
from tests.loops import blobs
from tests.many import furthest, run_ranks

X, Y = blobs(64)


class SemiSupervised(Model):
    def train_step(self, batch):
        x, y = batch["labeled"]
        SEEN.append((x.clone(), batch["unlabeled"][0].clone()))
        return {"loss": nn.functional.cross_entropy(self(x), y) + self(batch["unlabeled"][0]).square().mean()}

    test_step = train_step


SEEN = []


def program(folder, crash=None, labeled=24, processes=2, save=True, **options):
    """Train and return the weights, the history and the rows of each update; None after a crash, the text of an error."""
    torch.manual_seed(0)
    SEEN.clear()
    loaders = {
        "labeled": DataLoader(TensorDataset(X[:labeled], Y[:labeled]), 8 // processes, shuffle=True),
        "unlabeled": DataLoader(TensorDataset(X), 16 // processes, shuffle=True),
    }
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    model = SemiSupervised(net, device="cpu").compile("sgd", lr=0.1, **options)
    callbacks = [BackupAndRestore(folder, save_freq=1, delete_checkpoint=False)] * save
    try:
        model.fit(
            combine(loaders),
            2,
            validation_data=combine(loaders, "shortest"),
            callbacks=[*callbacks, *([CrashAfter(crash)] if crash else [])],
            verbose=0,
        )
    except SimulatedCrash:
        return None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return {name: value.clone() for name, value in net.state_dict().items()}, dict(model.history.history), list(SEEN)


def test_two_ranks_equal_one_process_with_larger_batches(tmp_path):
    (weights, history, first), (_, _, second) = run_ranks(program, tmp_path)
    expected, expected_history, _ = program(tmp_path / "one", processes=1, save=False)
    assert furthest(weights, expected) < 1e-6
    assert history["loss"] == pytest.approx(expected_history["loss"], abs=1e-6)
    # Each rank has other rows, and together they have all rows once for each pass over them.
    for part, size in enumerate((24, 64)):
        rows = torch.cat([seen[part] for seen in [*first[:3], *second[:3]]])
        assert len(rows.unique(dim=0)) == len(rows) == min(size, 3 * (8, 16)[part])


def resume_after_each_step(folder, steps):
    expected = program(folder / "uninterrupted")[:2]
    return expected, [(program(folder / str(step), step), program(folder / str(step))[:2])[1] for step in steps]


@pytest.mark.distributed
def test_two_ranks_resume_bit_for_bit_in_any_cycle(tmp_path):
    for expected, resumed in run_ranks(resume_after_each_step, tmp_path, (1, 3, 4, 6)):
        for weights, history in resumed:
            assert furthest(weights, expected[0]) == 0
            assert history == expected[1]


def test_a_part_that_ranks_cannot_divide_evenly_is_refused(tmp_path):
    for message in run_ranks(program, tmp_path, None, 21):
        assert "'labeled' has another size: 5 samples, which 2 processes divide. Pass drop_last=True" in message


def test_another_number_of_ranks_is_refused(tmp_path):
    run_ranks(program, tmp_path, 2)
    warnings.filterwarnings("ignore", ".*world_size changed")
    assert "Start 2 processes" in program(tmp_path)

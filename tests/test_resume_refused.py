"""Errors and warnings of runs that cannot resume exactly."""

from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from easytorch import FileError, Model, ResumeError
from tests.common_resume import (
    LOADERS,
    ROWS,
    AugmentedDataset,
    CustomSampler,
    DropoutNet,
    SimulatedCrash,
    X,
    Y,
    program,
    stop_and_resume,
)
from tests.loops import blobs, mlp


class LazySampler(CustomSampler):
    def __iter__(self):
        return (int(torch.randint(50, ())) for _ in range(50))


def test_a_sampler_that_draws_during_iteration_is_an_error(tmp_path):
    with pytest.raises(ResumeError, match=r"another order.*draw while it runs"):
        stop_and_resume(tmp_path, lambda: DataLoader(ROWS, 8, sampler=LazySampler()), 4)


def test_different_data_is_an_error(tmp_path):
    with pytest.raises(SimulatedCrash):
        program(tmp_path, LOADERS["shuffled"], 4)
    with pytest.raises(ResumeError, match=r"had 50 samples, and this program has 40\. Pass the same data"):
        program(tmp_path, lambda: DataLoader(TensorDataset(X[:40], Y[:40]), 8, shuffle=True))


def test_a_different_module_is_an_error(tmp_path):
    with pytest.raises(SimulatedCrash):
        program(tmp_path, LOADERS["shuffled"], 4)
    model = Model(mlp(), device="cpu").compile("adam", "cross_entropy")
    with pytest.raises(FileError, match="belongs to another module"):
        model.fit(LOADERS["shuffled"](), 2, resume=tmp_path, verbose=0)


def test_different_callbacks_are_an_error(tmp_path):
    with pytest.raises(SimulatedCrash):
        program(tmp_path, LOADERS["shuffled"], 4)
    model = Model(DropoutNet(), device="cpu").compile("adam", "cross_entropy")
    with pytest.raises(ResumeError, match=r"had the callbacks .*EMA"):
        model.fit(LOADERS["shuffled"](), 2, resume=tmp_path, verbose=0)


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_out_of_memory_does_not_mark_a_checkpoint_as_damaged(error, tmp_path, monkeypatch):
    program(tmp_path, LOADERS["in order"])
    files = sorted(tmp_path.iterdir())

    def raise_error(*_, **__):
        raise error("out of memory")

    monkeypatch.setattr(torch, "load", raise_error)
    with pytest.raises(error):
        program(tmp_path, LOADERS["in order"])
    assert sorted(tmp_path.iterdir()) == files


def compiled_model(**options):
    torch.manual_seed(0)
    return Model(mlp()).compile(**{"optimizer": "adam", "loss": "cross_entropy", "scheduler": "cosine"} | options)


def test_a_changed_rate_is_a_warning_and_has_no_effect(tmp_path):
    compiled_model(scheduler=None).fit(*blobs(), epochs=1, resume=tmp_path, verbose=0)
    with pytest.warns(
        UserWarning, match=r"lr changed from None to 0\.1; the resumed run keeps the old value.*without resume"
    ):
        compiled_model(scheduler=None, lr=0.1).fit(*blobs(), epochs=2, resume=tmp_path, verbose=0)
    history = compiled_model(scheduler=None).fit(*blobs(), epochs=3, resume=tmp_path, verbose=0)
    assert max(history["lr"]) <= 0.001


def test_a_changed_clipping_is_a_warning_and_takes_effect(tmp_path):
    compiled_model(scheduler=None).fit(*blobs(), epochs=1, resume=tmp_path, verbose=0)
    model = compiled_model(scheduler=None, clip_grad_norm=1e-9)
    with pytest.warns(UserWarning, match="clip_grad_norm changed from None to 1e-09; continuing with the new value"):
        model.fit(*blobs(), epochs=2, resume=tmp_path, verbose=0)


def test_a_different_scheduler_is_an_error(tmp_path):
    compiled_model().fit(*blobs(), epochs=1, resume=tmp_path, verbose=0)
    with pytest.raises(ResumeError, match="had the scheduler cosine, and this program has warmup_cosine"):
        compiled_model(scheduler="warmup_cosine").fit(*blobs(), epochs=2, resume=tmp_path, verbose=0)
    with pytest.raises(FileError, match=r"another scheduler than OneCycleLR.*load_weights"):
        compiled_model(scheduler=lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, 100)).load(
            next(tmp_path.glob("*.pt"))
        )


def test_a_changed_number_of_threads_is_a_warning(tmp_path):
    with pytest.raises(SimulatedCrash):
        program(tmp_path, LOADERS["shuffled"], 4)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        _, _, messages = program(tmp_path, LOADERS["shuffled"])
    finally:
        torch.set_num_threads(threads)
    assert any(f"threads changed from {threads} to {threads + 1}" in message for message in messages)


def test_augmentation_by_workers_is_a_warning_unless_seeded(tmp_path):
    _, _, messages = stop_and_resume(tmp_path, lambda: DataLoader(AugmentedDataset(), 8, num_workers=1), 3)
    assert any("easytorch.data.seeded" in message for message in messages)

"""Programs, data and callbacks of the tests of resumed runs."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset, WeightedRandomSampler

from easytorch import Model
from easytorch.callbacks import EMA, BackupAndRestore, Callback, EarlyStopping
from easytorch.data.seeded import seeded
from tests.loops import blobs

X, Y = blobs(50)
EPOCHS = 2


class SimulatedCrash(BaseException):
    """Ends a fit like a power failure: only the files remain."""


class CrashAfter(Callback):
    """Raises ``SimulatedCrash`` after the update ``step``."""

    # After the checkpoint of the update.
    priority = 25

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if self.model.state.step == self.step:
            raise SimulatedCrash


class AugmentedDataset(Dataset):
    """Augments with the global generators of the process."""

    loaded = 0

    def __len__(self):
        return 50

    def __getitem__(self, index):
        AugmentedDataset.loaded += 1
        noise = 0.1 * torch.randn(8) + 0.1 * random.random() + 0.1 * float(np.random.rand())
        return X[index] + noise, Y[index]


class DatasetNoise(AugmentedDataset):
    """Augments with generators of the dataset and of its transforms."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(3)
        self.transform = Compose([Shift(), Shift()])

    def __getitem__(self, index):
        x = X[index] + 0.1 * torch.randn(8, generator=self.generator)
        return self.transform(x), Y[index]


class Compose:
    def __init__(self, transforms):
        self.transforms = transforms

    def __call__(self, x):
        for transform in self.transforms:
            x = transform(x)
        return x


class Shift:
    def __init__(self):
        self.rng = np.random.default_rng(3)

    def __call__(self, x):
        return x + 0.1 * float(self.rng.random())


class CustomSampler:
    """A custom sampler that draws the complete order when iteration starts."""

    def __init__(self):
        self.rng = random.Random(4)

    def __len__(self):
        return 50

    def __iter__(self):
        order = list(range(50))
        self.rng.shuffle(order)
        return iter(order)


class CustomBatchSampler:
    def __len__(self):
        return 7

    def __iter__(self):
        order = torch.randperm(50).tolist()
        return iter([order[i : i + 8] for i in range(0, 50, 8)])


ROWS = TensorDataset(X, Y)
LOADERS = {
    "shuffled": lambda: DataLoader(ROWS, 8, shuffle=True),
    "in order": lambda: DataLoader(ROWS, 8),
    "custom generator": lambda: DataLoader(ROWS, 8, shuffle=True, generator=torch.Generator().manual_seed(9)),
    "generator of the sampler": lambda: DataLoader(
        ROWS, 8, sampler=RandomSampler(ROWS, generator=torch.Generator().manual_seed(9))
    ),
    "custom sampler": lambda: DataLoader(ROWS, 8, sampler=CustomSampler()),
    "custom batch sampler": lambda: DataLoader(ROWS, batch_sampler=CustomBatchSampler()),
    "weighted sampler": lambda: DataLoader(ROWS, 8, sampler=WeightedRandomSampler(torch.linspace(0.1, 1, 50), 50)),
    "random augmentation": lambda: DataLoader(AugmentedDataset(), 8, shuffle=True),
    "augmentation by generators of the dataset": lambda: DataLoader(DatasetNoise(), 8, shuffle=True),
    "two persistent workers": lambda: DataLoader(ROWS, 8, shuffle=True, num_workers=2, persistent_workers=True),
    "two workers": lambda: DataLoader(ROWS, 8, shuffle=True, num_workers=2),
    "two workers, custom generator": lambda: DataLoader(
        ROWS, 8, shuffle=True, num_workers=2, generator=torch.Generator().manual_seed(9)
    ),
    "two workers, seeded augmentation": lambda: DataLoader(seeded(AugmentedDataset()), 8, shuffle=True, num_workers=2),
}


class DropoutNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))

    def forward(self, x):
        return self.net(x)


def program(
    folder,
    make_loader,
    crash=None,
    accumulate=1,
    epochs=EPOCHS,
    metrics=("accuracy",),
    precision="fp32",
    save_freq=1,
    **fit,
):
    """Run the program of a user from its first line. It knows only the folder of earlier runs."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    model = Model(DropoutNet(), device="cpu").compile(
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        "cross_entropy",
        metrics=list(metrics),
        gradient_accumulation_steps=accumulate,
        precision=precision,
        scheduler=lambda optimizer: lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=40),
    )
    fit["validation_data"] = fit["validation_data"]() if "validation_data" in fit else (X[:20], Y[:20])
    ema = EMA(0.9)
    callbacks = [ema, EarlyStopping(patience=5), BackupAndRestore(folder, save_freq, delete_checkpoint=False)]
    if crash is not None:
        callbacks.append(crash if isinstance(crash, Callback) else CrashAfter(crash))
    with warnings.catch_warnings(record=True) as caught_warnings:
        warnings.simplefilter("always")
        model.fit(make_loader(), epochs, callbacks=callbacks, on_interrupt="return", verbose=0, **fit)
    return model, ema, [str(warning.message) for warning in caught_warnings]


def stop_and_resume(folder, make_loader, crash, **options):
    """Stop the program after the update ``crash``, and resume it to the end."""
    with pytest.raises(SimulatedCrash):
        program(folder, make_loader, crash, **options)
    return program(folder, make_loader, **options)

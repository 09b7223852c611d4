"""Promise 3: kill it anywhere, the same command continues, bit for bit."""

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


class PulledPlug(BaseException):
    """Ends a fit as a pulled plug ends a process: what is not in the files is gone."""


class PullPlug(Callback):
    priority = 25  # after the checkpoint of the update

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if self.model.state.step == self.step:
            raise PulledPlug


class Noisy(Dataset):
    """Augments at random, from the generator of whoever loads it."""

    loaded = 0

    def __len__(self):
        return 50

    def __getitem__(self, index):
        Noisy.loaded += 1
        noise = 0.1 * torch.randn(8) + 0.1 * random.random() + 0.1 * float(np.random.rand())
        return X[index] + noise, Y[index]


class OwnNoise(Noisy):
    """Augments from generators of its own, some of them in transforms that are listed in one."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(3)
        self.transform = Both([Shift(), Shift()])

    def __getitem__(self, index):
        x = X[index] + 0.1 * torch.randn(8, generator=self.generator)
        return self.transform(x), Y[index]


class Both:
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


class OwnOrder:
    """A sampler as people write them: it draws all of its order when it begins."""

    def __init__(self):
        self.rng = random.Random(4)

    def __len__(self):
        return 50

    def __iter__(self):
        order = list(range(50))
        self.rng.shuffle(order)
        return iter(order)


class OwnBatches:
    def __len__(self):
        return 7

    def __iter__(self):
        order = torch.randperm(50).tolist()
        return iter([order[i : i + 8] for i in range(0, 50, 8)])


ROWS = TensorDataset(X, Y)
LOADERS = {
    "shuffled": lambda: DataLoader(ROWS, 8, shuffle=True),
    "in order": lambda: DataLoader(ROWS, 8),
    "own generator": lambda: DataLoader(ROWS, 8, shuffle=True, generator=torch.Generator().manual_seed(9)),
    "generator of the sampler": lambda: DataLoader(
        ROWS, 8, sampler=RandomSampler(ROWS, generator=torch.Generator().manual_seed(9))
    ),
    "own sampler": lambda: DataLoader(ROWS, 8, sampler=OwnOrder()),
    "own batch sampler": lambda: DataLoader(ROWS, batch_sampler=OwnBatches()),
    "weighted sampler": lambda: DataLoader(ROWS, 8, sampler=WeightedRandomSampler(torch.linspace(0.1, 1, 50), 50)),
    "random augmentation": lambda: DataLoader(Noisy(), 8, shuffle=True),
    "augmentation by generators of the dataset": lambda: DataLoader(OwnNoise(), 8, shuffle=True),
    "two workers that live on": lambda: DataLoader(ROWS, 8, shuffle=True, num_workers=2, persistent_workers=True),
    "two workers": lambda: DataLoader(ROWS, 8, shuffle=True, num_workers=2),
    "two workers, own generator": lambda: DataLoader(
        ROWS, 8, shuffle=True, num_workers=2, generator=torch.Generator().manual_seed(9)
    ),
    "two workers, seeded augmentation": lambda: DataLoader(seeded(Noisy()), 8, shuffle=True, num_workers=2),
}


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))

    def forward(self, x):
        return self.net(x)


def program(
    folder,
    make_loader,
    plug=None,
    accumulate=1,
    epochs=EPOCHS,
    metrics=("accuracy",),
    precision="fp32",
    save_freq=1,
    **fit,
):
    """Run the user's program from its first line: it knows nothing of earlier runs but the folder."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    model = Model(Dropping(), device="cpu").compile(
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
    if plug is not None:
        callbacks.append(plug if isinstance(plug, Callback) else PullPlug(plug))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(make_loader(), epochs, callbacks=callbacks, verbose=0, **fit)
    return model, ema, [str(warning.message) for warning in caught]


def stopped_and_continued(folder, make_loader, plug, **options):
    with pytest.raises(PulledPlug):
        program(folder, make_loader, plug, **options)
    return program(folder, make_loader, **options)

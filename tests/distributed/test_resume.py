"""Resumed runs of several ranks, after failures at any time."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from easytorch import DataParallel, Model, ResumeError
from easytorch.callbacks import EMA, BackupAndRestore, CSVLogger, EarlyStopping, ModelCheckpoint
from tests import elastic
from tests.common_resume import CrashAfter, SimulatedCrash
from tests.loops import blobs
from tests.many import furthest, run_ranks

X, Y = blobs(50)
ROWS = TensorDataset(X, Y)


class RowDataset(torch.utils.data.Dataset):
    def __len__(self):
        return 50

    def __getitem__(self, index):
        return ROWS[index]


DATA = {
    "in memory": lambda: DataLoader(ROWS, 6, shuffle=True),
    "DataLoader": lambda: DataLoader(RowDataset(), 6, shuffle=True),
    "stream": lambda: [(X[i : i + 6], Y[i : i + 6]) for i in range(0, 50, 6)],
}


def program(folder, kind="in memory", crash=None):
    """Run the program of a user from its first line. It knows only the folder of earlier runs."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))
    model = Model(net, device="cpu").compile("adam", "cross_entropy", metrics=["accuracy"])
    data = DATA[kind]()
    ema = EMA(0.9)
    backup = BackupAndRestore(folder, save_freq=1, delete_checkpoint=False)
    callbacks = [ema, EarlyStopping("loss", patience=9), CSVLogger(folder.parent / "log.csv"), backup]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(loaded again and discarded|differ in the last bits).*")
        try:
            model.fit(data, 2, callbacks=[*callbacks, *([CrashAfter(crash)] if crash else [])], verbose=0)
        except SimulatedCrash:
            return None
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    averages = {name: value.clone() for name, value in ema.average.module.state_dict().items()}
    return weights, averages, dict(model.history.history)


def resume_after_each_step(folder, kind, steps):
    """Run the program without a stop, then once for each of ``steps`` with a stop and a resume."""
    expected = program(folder / "uninterrupted", kind)
    return expected, [(program(folder / str(step), kind, step), program(folder / str(step), kind))[1] for step in steps]


@pytest.mark.parametrize(("kind", "processes"), [("in memory", 2), ("in memory", 3), ("DataLoader", 2), ("stream", 2)])
def test_the_same_number_of_ranks_resumes_bit_for_bit(kind, processes, tmp_path):
    steps = {2: (1, 5, 9), 3: (2,)}[processes] if kind == "in memory" else (3,)
    for rank, (expected, resumed) in enumerate(
        run_ranks(resume_after_each_step, tmp_path, kind, steps, processes=processes)
    ):
        for weights, averages, history in resumed:
            assert furthest(weights, expected[0]) == 0
            # Checkpoints have the BatchNorm statistics of rank 0 only.
            assert rank or furthest(averages, expected[1]) == 0
            assert history == expected[2]


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize(("before", "after"), [(3, 2), (2, 1), (1, 3)])
def test_another_number_of_ranks_trains_on_the_remaining_data(kind, before, after, tmp_path):
    row_folder = tmp_path / "rows"
    row_folder.mkdir()
    counts = {1: 2, 2: 2, 3: 1}[before]
    run_ranks(rows_seen, tmp_path / "run", row_folder, kind, counts, "before", processes=before)
    run_ranks(rows_seen, tmp_path / "run", row_folder, kind, None, "after", processes=after)
    rows = torch.cat([torch.load(path, weights_only=True) for path in sorted(row_folder.iterdir())])
    assert torch.equal(rows.sort(0).values, torch.cat([X, X]).sort(0).values)


SEEN = []  # not an attribute of the model, which would be resumed


class RecordingModel(Model):
    def train_step(self, batch):
        SEEN.append(batch[0].clone())
        return super().train_step(batch)


def rows_seen(folder, row_folder, kind, crash, name):
    torch.manual_seed(0)
    model = RecordingModel(nn.Linear(8, 3), device="cpu").compile("sgd", "cross_entropy", metrics=["accuracy"])
    SEEN.clear()
    backup = BackupAndRestore(folder, save_freq=1, delete_checkpoint=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(loaded again and discarded|differ in the last bits).*")
        try:
            model.fit(DATA[kind](), 2, callbacks=[backup, *([CrashAfter(crash)] if crash else [])], verbose=0)
        except SimulatedCrash:
            pass
        else:
            assert model.history.rows[0]["accuracy"] * 50 == pytest.approx(
                round(model.history.rows[0]["accuracy"] * 50)
            )
    torch.save(torch.cat(SEEN), row_folder / f"{name}-{model.strategy.group.rank}.pt")


def train_on_separate_data(folder, crash):
    torch.manual_seed(0)
    model = Model(nn.Linear(8, 3), device="cpu")
    model.compile("sgd", "cross_entropy", strategy=DataParallel("cpu", split_data=False))
    backup = BackupAndRestore(folder, save_freq=1, delete_checkpoint=False)
    try:
        model.fit(DATA["stream"](), 2, callbacks=[backup, *([CrashAfter(crash)] if crash else [])], verbose=0)
    except SimulatedCrash:
        return None
    except ResumeError as error:
        return str(error)
    return "resumed"


def test_separate_data_of_ranks_needs_the_same_number_of_ranks(tmp_path):
    run_ranks(train_on_separate_data, tmp_path, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert all(
            "separate data each" in message
            for message in run_ranks(train_on_separate_data, tmp_path, None, processes=3)
        )


def save_and_load_best(folder):
    torch.manual_seed(0)
    model = Model(nn.Linear(8, 3), device="cpu").compile("sgd", "cross_entropy")
    best = ModelCheckpoint(folder / "best-{epoch}.pt", "loss", save_best_only=True, keep=1)
    model.fit(ROWS, 3, callbacks=[best], verbose=0)
    model.load(best.best_path)
    return best.best_path, [len(best.written), model.state.epoch]


def test_all_ranks_load_the_same_best_file(tmp_path):
    (path, counts), (other, others) = run_ranks(save_and_load_best, tmp_path)
    assert path == other
    assert counts == others == [1, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["best-3.pt"]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("kills", "options"),
    [(2, {}), (1, {"how": "raise", "strategy": "fsdp"}), (1, {"machines": 2})],
    ids=["SIGKILL", "error, sharded weights", "two machines"],
)
def test_torchrun_restarts_a_dead_rank_without_loss(kills, options, tmp_path):
    report = elastic.run(kills, tmp_path, seed=3, **options)
    assert report.kills == kills
    assert report.equal

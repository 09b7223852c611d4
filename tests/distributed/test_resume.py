"""Promise 3, of many processes: kill any of them, at any time, and the same program goes on; with as many bit for bit."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from easytorch import DataParallel, Model, ResumeError
from easytorch.callbacks import EMA, BackupAndRestore, Callback, CSVLogger, EarlyStopping, ModelCheckpoint
from tests import elastic
from tests.loops import blobs
from tests.many import furthest, together

X, Y = blobs(50)
ROWS = TensorDataset(X, Y)


class PulledPlug(BaseException):
    """Ends a fit as a pulled plug ends a process: what is not in the files is gone."""


class PullPlug(Callback):
    priority = 25  # after the checkpoint of the update

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if self.model.state.step == self.step:
            raise PulledPlug


class Loaded(torch.utils.data.Dataset):
    def __len__(self):
        return 50

    def __getitem__(self, index):
        return ROWS[index]


DATA = {
    "in memory": lambda: DataLoader(ROWS, 6, shuffle=True),
    "by a loader": lambda: DataLoader(Loaded(), 6, shuffle=True),
    "a stream": lambda: [(X[i : i + 6], Y[i : i + 6]) for i in range(0, 50, 6)],
}


def program(folder, kind="in memory", plug=None):
    """Run the user's program from its first line: it knows nothing of earlier runs but the folder."""
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
            model.fit(data, 2, callbacks=[*callbacks, *([PullPlug(plug)] if plug else [])], verbose=0)
        except PulledPlug:
            return None
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    averages = {name: value.clone() for name, value in ema.average.module.state_dict().items()}
    return weights, averages, dict(model.history.history)


def stopped_at_each(folder, kind, steps):
    """Run the program to its end, then again and again, each time stopped after another update and taken up."""
    whole = program(folder / "whole", kind)
    return whole, [(program(folder / str(step), kind, step), program(folder / str(step), kind))[1] for step in steps]


@pytest.mark.parametrize(
    ("kind", "processes"), [("in memory", 2), ("in memory", 3), ("by a loader", 2), ("a stream", 2)]
)
def test_as_many_processes_go_on_bit_for_bit(kind, processes, tmp_path):
    steps = {2: (1, 5, 9), 3: (2,)}[processes] if kind == "in memory" else (3,)
    for rank, (whole, resumed) in enumerate(together(stopped_at_each, tmp_path, kind, steps, processes=processes)):
        for weights, averages, history in resumed:
            assert furthest(weights, whole[0]) == 0
            assert rank or furthest(averages, whole[1]) == 0  # of statistics of BatchNorm, those of process 0 are kept
            assert history == whole[2]


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize(("before", "after"), [(3, 2), (2, 1), (1, 3)])
def test_another_number_of_processes_trains_on_what_is_left(kind, before, after, tmp_path):
    seen = tmp_path / "seen"
    seen.mkdir()
    counts = {1: 2, 2: 2, 3: 1}[before]
    together(rows_seen, tmp_path / "run", seen, kind, counts, "before", processes=before)
    together(rows_seen, tmp_path / "run", seen, kind, None, "after", processes=after)
    rows = torch.cat([torch.load(path, weights_only=True) for path in sorted(seen.iterdir())])
    assert torch.equal(rows.sort(0).values, torch.cat([X, X]).sort(0).values)


class Watching(Model):
    def train_step(self, batch):
        self.seen.append(batch[0].clone())
        return super().train_step(batch)


def rows_seen(folder, place, kind, plug, name):
    torch.manual_seed(0)
    model = Watching(nn.Linear(8, 3), device="cpu").compile("sgd", "cross_entropy", metrics=["accuracy"])
    model.seen = []
    backup = BackupAndRestore(folder, save_freq=1, delete_checkpoint=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(loaded again and discarded|differ in the last bits).*")
        try:
            model.fit(DATA[kind](), 2, callbacks=[backup, *([PullPlug(plug)] if plug else [])], verbose=0)
        except PulledPlug:
            pass
        else:
            assert model.history.rows[0]["accuracy"] * 50 == pytest.approx(
                round(model.history.rows[0]["accuracy"] * 50)
            )
    torch.save(torch.cat(model.seen), place / f"{name}-{model.strategy.group.rank}.pt")


def own_data(folder, plug):
    torch.manual_seed(0)
    model = Model(nn.Linear(8, 3), device="cpu")
    model.compile("sgd", "cross_entropy", strategy=DataParallel("cpu", split_data=False))
    backup = BackupAndRestore(folder, save_freq=1, delete_checkpoint=False)
    try:
        model.fit(DATA["a stream"](), 2, callbacks=[backup, *([PullPlug(plug)] if plug else [])], verbose=0)
    except PulledPlug:
        return None
    except ResumeError as error:
        return str(error)
    return "went on"


def test_data_that_processes_bring_themselves_needs_as_many(tmp_path):
    together(own_data, tmp_path, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert all("separate data each" in told for told in together(own_data, tmp_path, None, processes=3))


def checkpointed(folder):
    torch.manual_seed(0)
    model = Model(nn.Linear(8, 3), device="cpu").compile("sgd", "cross_entropy")
    best = ModelCheckpoint(folder / "best-{epoch}.pt", "loss", save_best_only=True, keep=1)
    model.fit(ROWS, 3, callbacks=[best], verbose=0)
    model.load(best.best_path)
    return best.best_path, [len(best.written), model.state.epoch]


def test_the_best_file_is_one_that_all_can_load(tmp_path):
    (path, counts), (other, others) = together(checkpointed, tmp_path)
    assert path == other
    assert counts == others == [1, 3]
    assert [one.name for one in tmp_path.iterdir()] == ["best-3.pt"]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("kills", "options"),
    [(2, {}), (1, {"how": "raise"}), (1, {"strategy": "fsdp"}), (1, {"machines": 2})],
    ids=["killed", "by an error", "parts of the weights", "on two machines"],
)
def test_torchrun_restarts_a_dead_process_without_loss(kills, options, tmp_path):
    report = elastic.run(kills, tmp_path, seed=3, **options)
    assert report.kills == kills
    assert report.equal

"""Promise 4: a file is whole or absent, a damaged one is refused, and none can do harm."""

from __future__ import annotations

import builtins
import collections
import errno
import io
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from easytorch import FileError, Model
from easytorch.callbacks import EMA, BackupAndRestore, LambdaCallback, ModelCheckpoint
from easytorch.checkpoint import files, rotation
from tests.damage import (
    MUTATORS,
    SYSTEM_ERRORS,
    PowerCut,
    damaged,
    good_files,
    identical,
    model,
    numbers_in,
    run_variants,
)
from tests.loops import blobs, mlp, same_weights

MB = 2**20
X, Y = blobs(50)


def run_module(*arguments: str, timeout: int = 300) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "faulthandler", "-m", *map(str, arguments)],
        capture_output=True, text=True, timeout=timeout, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    last = done.stdout.splitlines()[-1:]
    assert done.returncode == 0, f"died with {done.returncode} after {last}\n{done.stderr[-3000:]}"
    return done.stdout


# Damaged files


def test_no_damaged_file_is_read_wrongly(tmp_path):
    tally = run_variants(600, tmp_path, seed=1)
    assert not tally.silent
    assert not tally.other
    assert tally.refused > 500
    assert min(tally.kinds.values()) >= 90


def test_the_check_sees_a_reader_that_believes_everything(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "read", lambda path, device="cpu": _trusting(path))
    tally = run_variants(240, tmp_path, seed=1)
    assert tally.silent
    assert tally.other


def _trusting(path):
    if Path(path).suffix == ".safetensors":
        return pytest.importorskip("safetensors.torch").load_file(path)
    return torch.load(path, weights_only=True)


def test_every_file_of_safetensors_that_we_write_has_a_checksum_that_counts(tmp_path):
    pytest.importorskip("safetensors", reason="safetensors is optional")
    path = model().save_weights(tmp_path / "weights.safetensors")
    whole, wrong = path.read_bytes(), []
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            files.read(path)
        except FileError:
            continue
        if at > 8 + int.from_bytes(whole[:8], "little"):
            wrong.append(at)
    assert not wrong


def test_damage_that_hits_both_the_checksums_name_and_a_value_is_refused(tmp_path):
    pytest.importorskip("safetensors", reason="safetensors is optional")
    path = model().save_weights(tmp_path / "weights.safetensors")
    whole = path.read_bytes()
    key = whole.index(b"sha256")
    path.write_bytes(whole[:key] + b"x" + whole[key + 1 : -2] + b"\1" + whole[-1:])
    with pytest.raises(FileError, match=r"damaged|checksum"):
        files.read(path)


@pytest.mark.parametrize("kind", MUTATORS)
def test_a_folder_whose_newest_file_is_damaged_gives_the_one_before_and_says_so(kind, tmp_path):
    good_files(tmp_path)
    newest, older = rotation.list_checkpoints(tmp_path / "run")
    wanted = files.read(older)
    data, rng = newest.read_bytes(), random.Random(kind)
    newest.write_bytes(damaged(data, kind, rng))
    while _is_whole(newest):
        newest.write_bytes(damaged(data, kind, rng))
    loaded = model()
    with pytest.warns(UserWarning, match=newest.name) as caught:
        loaded.load(tmp_path / "run")
    assert [older.name in str(warning.message) for warning in caught] == [True]
    assert identical(dict(loaded.module.state_dict()), wanted["module"])
    assert loaded.state.step == wanted["state"]["step"]


def _is_whole(path):
    try:
        files.read(path)
    except FileError:
        return False
    return True


def _program(folder, epochs=4, **options):
    torch.manual_seed(0)
    one = Model(mlp(), device="cpu").compile(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "cross_entropy")
    keeper = BackupAndRestore(folder, delete_checkpoint=False, **options)
    one.fit(X, Y, epochs=epochs, batch_size=25, callbacks=[keeper], verbose=0)
    return one


def _stopped(folder, epoch, **options):
    def stop(now, logs):
        if now == epoch:
            raise KeyboardInterrupt

    torch.manual_seed(0)
    one = Model(mlp(), device="cpu").compile(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "cross_entropy")
    keeper = BackupAndRestore(folder, delete_checkpoint=False, **options)
    with pytest.raises(KeyboardInterrupt):
        one.fit(X, Y, epochs=4, batch_size=25, callbacks=[keeper, LambdaCallback(on_epoch_begin=stop)], verbose=0)


def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before_to_the_same_end(tmp_path):
    undisturbed = _program(tmp_path / "undisturbed")
    _stopped(tmp_path / "run", 3)
    newest = rotation.list_checkpoints(tmp_path / "run")[0]
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=newest.name):
        resumed = _program(tmp_path / "run")
    assert same_weights(undisturbed.module, resumed.module)


def test_a_folder_of_damaged_files_alone_is_an_error_that_names_the_newest(tmp_path):
    good_files(tmp_path)
    for path in rotation.list_checkpoints(tmp_path / "run"):
        path.write_bytes(path.read_bytes()[:1000])
    for load in (lambda: model().load(tmp_path / "run"), lambda: model().fit(X, Y, resume=tmp_path / "run", verbose=0)):
        with pytest.raises(FileError, match=r"step-0000000004\.pt"):
            load()


@pytest.mark.parametrize("keep", [1, 2])
def test_a_broken_newest_file_never_costs_the_whole_ones(keep, tmp_path):
    _stopped(tmp_path / "run", 3, keep=2)
    newest = rotation.list_checkpoints(tmp_path / "run")[0]
    newest.write_bytes(newest.read_bytes()[:-100])
    wholes = []

    def look(step, logs):
        wholes.append(sum(map(_is_whole, rotation.list_checkpoints(tmp_path / "run"))))

    torch.manual_seed(0)
    one = Model(mlp(), device="cpu").compile(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "cross_entropy")
    looker = LambdaCallback(on_train_batch_end=look)
    looker.priority = 20
    keeper = BackupAndRestore(tmp_path / "run", save_freq=1, keep=keep, delete_checkpoint=False)
    with pytest.warns(UserWarning, match=newest.name):
        one.fit(X, Y, epochs=4, batch_size=25, callbacks=[keeper, looker], verbose=0)
    assert min(wholes) >= 1, wholes


def test_whoever_goes_back_to_an_older_file_keeps_what_is_written_from_there(tmp_path):
    _program(tmp_path / "run", save_freq=1, keep=8)
    older = rotation.step_path(tmp_path / "run", 2)
    for path in rotation.list_checkpoints(tmp_path / "run"):  # so that the new ones can be told from the old ones
        os.utime(path, (0, 0))
    torch.manual_seed(0)
    one = Model(mlp(), device="cpu").compile(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "cross_entropy")
    one.fit(X, Y, epochs=2, batch_size=25, resume=older, verbose=0)
    last = rotation.step_path(tmp_path / "run", 4)
    assert one.state.step == 4
    assert last.exists()
    assert last.stat().st_mtime > 0


def test_at_the_end_only_the_checkpoints_are_deleted(tmp_path):
    (tmp_path / "run" / "thesis").mkdir(parents=True)
    mine = [tmp_path / "run" / "thesis" / "chapter.tex", tmp_path / "run" / "best.pt", tmp_path / "run" / "log.csv"]
    for path in mine:
        path.write_text("months of work")
    one = Model(mlp(), device="cpu").compile("sgd", "cross_entropy")
    one.fit(X, Y, epochs=2, callbacks=[BackupAndRestore(tmp_path / "run")], verbose=0)
    assert all(path.exists() for path in mine)
    assert not rotation.list_checkpoints(tmp_path / "run")


def test_a_checkpoint_file_given_to_backup_and_restore_does_not_cost_its_folder(tmp_path):
    (tmp_path / "thesis.tex").write_text("months of work")
    shutil.copytree(good_files(tmp_path / "good")["checkpoint"].parent, tmp_path / "run")
    start = rotation.list_checkpoints(tmp_path / "run")[0]
    shutil.move(start, tmp_path / "start.pt")
    one = model()
    keeper = BackupAndRestore(tmp_path / "start.pt")
    one.fit(X, Y, epochs=3, batch_size=25, callbacks=[EMA(0.9), keeper], verbose=0)
    assert (tmp_path / "thesis.tex").exists()


def test_what_a_killed_process_left_half_written_is_swept(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    half = run / f".{rotation.step_path(run, 7).name}.abc.tmp"
    half.write_bytes(b"half")
    model().fit(X, Y, resume=run, verbose=0)
    assert not half.exists()


Named = collections.namedtuple("Named", "a b")
VALUES = {
    "NumPy number": lambda: np.float64(0.5),
    "NumPy array": lambda: np.arange(3),
    "set": lambda: {1, 2},
    "path": lambda: Path("a"),
    "defaultdict": lambda: collections.defaultdict(list, a=[1]),
    "named tuple": lambda: Named(1, 2),
    "deque": lambda: collections.deque([1.0]),
    "huge number": lambda: 2**4000,
    "bytes": lambda: b"abc",
    "sparse tensor": lambda: torch.eye(3).to_sparse(),
    "parameter": lambda: nn.Parameter(torch.ones(2)),
    "complex number": lambda: 1 + 2j,
    "data type": lambda: torch.float16,
    "bool tensor": lambda: torch.tensor([True]),
    "quarter precision": lambda: torch.ones(3).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("kind", VALUES)
def test_what_is_written_can_be_read_again_or_is_refused_when_it_is_written(kind, tmp_path):
    path = tmp_path / "run.pt"
    value = VALUES[kind]()
    refusal = _refusal(lambda: files.write(path, {"callbacks": [["Mine", {"best": value}]]}))
    if refusal is not None:
        assert "best" in str(refusal)  # which of all the values it was
        assert not path.exists()
        return
    found = files.read(path)["callbacks"][0][1]["best"]
    if isinstance(value, torch.Tensor):
        assert torch.equal(found.to_dense().float(), value.to_dense().float())
    elif isinstance(value, np.ndarray):
        assert found.tolist() == value.tolist()
    else:
        assert found == value or list(found) == list(value)


def _refusal(function):
    """Return the error by which ``function`` refuses what it is given, None if it does not."""
    try:
        function()
    except (TypeError, ValueError) as error:
        return error
    return None


# Malicious files


@pytest.fixture(scope="module")
def malicious(tmp_path_factory):
    if sys.platform != "linux":
        pytest.skip("the process that loads malicious files is watched through /proc, which only Linux has")
    folder = tmp_path_factory.mktemp("malice")
    rows = [json.loads(line) for line in run_module("tests.malice", folder).splitlines()]
    assert not (folder / "canary").exists(), "a file ran code"
    assert not (folder.parent / "canary").exists()
    return folder, rows


@pytest.fixture(scope="module")
def verdicts(malicious):
    return malicious[1]


CATEGORIES = ["pickle", "zip", "header", "other", "content"]


def rows_of(verdicts, category):
    rows = [row for row in verdicts if "kind" in row and row["file"].startswith(category)]
    assert len({row["file"] for row in rows}) >= 15
    return rows


def shown(rows, *facts):
    return "\n".join(f"{row['file']}, {row['way']}: {[row[fact] for fact in facts]}" for row in rows)


def test_there_are_many_malicious_files_and_each_is_loaded_in_every_way(verdicts):
    loaded = [(row["file"], row["way"]) for row in verdicts if "kind" in row]
    names = {name for name, _ in loaded if ": " in name}
    assert len(names) >= 250
    assert all((name, way) in loaded for name in names for way in ("load", "load_weights", "resume"))


def test_good_files_load_and_nothing_is_run_imported_or_written_for_it(verdicts):
    rows = [row for row in verdicts if "kind" in row and ": " not in row["file"]]
    loaded = {row["file"]: row["way"] for row in rows if not row["kind"] and row["right"]}
    assert {"model.pt", "weights.pt", "step-0000000004.pt"} <= set(loaded)
    acts = [
        act
        for row in rows
        for act in row["acts"]
        if not (act.startswith("os.rename") and act.endswith(".aside', -1, -1)"))
    ]
    assert not acts  # going on from an older checkpoint sets the newer one aside
    checkpoint = [row["kind"] for row in rows if row["file"].startswith("step-") and row["way"] != "load, not compiled"]
    assert checkpoint == [""] * 6


@pytest.mark.parametrize("category", CATEGORIES)
def test_no_malicious_file_runs_imports_or_writes_anything(category, verdicts):
    guilty = [row for row in rows_of(verdicts, category) if row["acts"]]
    assert not guilty, shown(guilty, "acts")


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_malicious_file_is_refused_by_a_file_error_that_names_it(category, verdicts):
    allowed = {"load": {"FileError"}, "load_weights": {"FileError"}, "resume": {"FileError", "ResumeError"}}
    guilty = [
        row
        for row in rows_of(verdicts, category)
        if row["kind"] and not (row["kind"] in allowed.get(row["way"], {"FileError"}) and row["named"])
    ]
    assert not guilty, shown(guilty, "kind", "message", "place")


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_malicious_file_that_is_not_refused_gives_the_right_weights_and_a_model_that_trains(category, verdicts):
    guilty = [row for row in rows_of(verdicts, category) if not row["kind"] and not row["right"]]
    assert not guilty, shown(guilty, "right")
    guilty = [row for row in rows_of(verdicts, category) if row["unusable"]]
    assert not guilty, shown(guilty, "unusable")


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_refused_file_leaves_the_model_as_it_was(category, verdicts):
    guilty = [row for row in rows_of(verdicts, category) if row["kind"] and not row["untouched"]]
    assert not guilty, shown(guilty, "kind", "message")


@pytest.mark.parametrize("category", CATEGORIES)
def test_no_malicious_file_takes_more_memory_than_twice_its_size(category, verdicts):
    guilty = [row for row in rows_of(verdicts, category) if row["memory"] > 2 * row["size"] + 64 * MB]
    assert not guilty, shown(guilty, "memory", "size")


@pytest.mark.parametrize("category", CATEGORIES)
def test_no_malicious_file_takes_more_than_two_seconds(category, verdicts):
    guilty = [row for row in rows_of(verdicts, category) if row["seconds"] > 2]
    assert not guilty, shown(guilty, "seconds")


def test_the_watch_sees_what_malicious_files_do_to_a_reader_that_trusts_them(malicious):
    folder, _ = malicious
    rows = [json.loads(line) for line in run_module("tests.malice", folder, ": GLOBAL os.system").splitlines()]
    (folder / "canary").unlink()  # so it was made
    assert all(any(act.startswith("os.system") for act in row["acts"]) for row in rows if "kind" in row)
    rows = [json.loads(line) for line in run_module("tests.malice", folder, "pickle: bytearray.pt").splitlines()]
    assert any(row["memory"] > 200 * MB for row in rows if "kind" in row)


def test_loading_a_large_file_takes_at_most_twice_its_size(verdicts):
    large = [row for row in verdicts if "large" in row]
    assert large
    assert all(row["size"] > 60 * MB for row in large)
    assert all(row["size"] / 2 < row["memory"] <= 2.2 * row["size"] for row in large), large


def test_a_checkpoint_cannot_make_us_delete_a_file_that_training_did_not_write(tmp_path):
    def fit(callback, **options):
        one = Model(mlp(), device="cpu").compile("sgd", "cross_entropy")
        one.fit(X, Y, epochs=2, batch_size=25, callbacks=[callback], verbose=0, **options)

    fit(ModelCheckpoint(tmp_path / "models" / "{epoch}.pt", keep=1), resume=tmp_path / "run")
    victim = tmp_path / "thesis.tex"
    victim.write_text("months of work")
    path = rotation.list_checkpoints(tmp_path / "run")[-1]
    content = files.read(path)
    state = next(state for name, state in content["callbacks"] if name == "ModelCheckpoint")
    state["written"] = [[str(victim), None]]
    files.write(tmp_path / "evil.pt", content)
    again = ModelCheckpoint(tmp_path / "models" / "{epoch}.pt", keep=1)
    refusal = _refusal(lambda: fit(again, resume=tmp_path / "evil.pt"))
    assert victim.exists()
    assert refusal is None or "evil.pt" in str(refusal)  # to refuse the file is as good


class Two(nn.Module):
    """The same layers, in the order that the program happens to name them in."""

    def __init__(self, order):
        super().__init__()
        for name in order:
            setattr(self, name, nn.Linear(8, 5, bias=False) if name == "a" else nn.Linear(5, 3, bias=False))

    def forward(self, x):
        return self.b(self.a(x))


def test_the_optimizers_state_never_goes_to_parameters_of_another_shape(tmp_path):
    first = Model(Two("ab"), device="cpu").compile("adam", "cross_entropy")
    first.fit(X, Y, verbose=0)
    first.save(tmp_path / "model.pt")
    second = Model(Two("ba"), device="cpu").compile("adam", "cross_entropy")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            second.load(tmp_path / "model.pt")
        except FileError:
            return
    state = {name: second.optimizer.state.get(value) for name, value in second.module.named_parameters()}
    moments = {name: found["exp_avg"] for name, found in state.items() if found}
    assert all(moments[name].shape == second.module.get_parameter(name).shape for name in moments)
    assert moments or caught  # taken by name, or started anew with a warning


# Power cuts

FOLDERS_SYNC = pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot sync a folder")


def _content(step):
    return {"format": files.FORMAT, "version": files.VERSION, "step": step, "module": {"w": torch.full((600,), step)}}


def _cut_while_replacing(folder, write=files.write, writes=4, states=2500, **options):
    """Replace a file again and again, and cut the power: return how often it was destroyed, and how often lost."""
    folder.mkdir()
    cut, images = PowerCut(folder, **options), []
    with cut.watching():
        cut.look()
        for step in range(writes):
            write(folder / "model.pt", _content(step))
            images.append((folder / "model.pt").read_bytes())
            cut.acknowledge()
    destroyed = lost = 0
    for moment, left in cut.states(states):
        data = left.get("model.pt")
        destroyed += data is not None and data not in images
        lost += moment.acknowledged > 0 and data not in images[moment.acknowledged - 1 :]
    assert len(cut.moments) >= 2 * writes
    return destroyed, lost


def _cut_while_keeping(folder, keep=1, writes=5, states=2500, tidy=None, **options):
    """Write checkpoints and delete old ones, and cut the power."""
    folder.mkdir()
    cut, images = PowerCut(folder, **options), {}
    with cut.watching():
        cut.look()
        for step in range(1, writes + 1):
            path = rotation.step_path(folder, step)
            if tidy is not None:
                tidy(folder)
            files.write(path, _content(step))
            images[path.name] = path.read_bytes()
            cut.acknowledge()
            rotation.delete_old(folder, keep)
    destroyed, lost, examples = 0, 0, []
    for number, (moment, left) in enumerate(cut.states(states)):
        names = [name for name in left if not name.startswith(".")]
        whole = [int(name[5:15]) for name in names if left[name] == images[name]]
        destroyed += len(whole) < len(names)
        lost += max(whole, default=0) < moment.acknowledged
        if number % 60 == 0 and moment.acknowledged:
            examples.append((moment, left))
    return destroyed, lost, examples


@FOLDERS_SYNC
def test_no_power_cut_destroys_a_file_or_loses_one_that_was_acknowledged(tmp_path):
    assert _cut_while_replacing(tmp_path / "a") == (0, 0)


@FOLDERS_SYNC
@pytest.mark.parametrize("keep", [1, 2])
def test_no_power_cut_loses_an_acknowledged_checkpoint_of_a_run(keep, tmp_path):
    destroyed, lost, examples = _cut_while_keeping(tmp_path / "a", keep)
    assert (destroyed, lost) == (0, 0)
    for number, (moment, left) in enumerate(examples):  # as the library itself reads what is left
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, data in left.items():
            (folder / name).write_bytes(data)
        rotation.remove_stale(folder)
        assert rotation.read_newest(folder)[1]["step"] >= moment.acknowledged
        assert all(path.name.startswith("step-") for path in folder.iterdir())


@FOLDERS_SYNC
def test_the_model_of_power_cuts_sees_every_step_that_is_left_out(tmp_path):
    destroyed, _ = _cut_while_replacing(tmp_path / "a", deaf_to="file")
    assert destroyed > 100
    _, lost = _cut_while_replacing(tmp_path / "b", deaf_to="folder")
    assert lost > 100
    destroyed, _ = _cut_while_replacing(tmp_path / "c", write=lambda path, content: torch.save(content, path))
    assert destroyed > 100
    _, lost, _ = _cut_while_keeping(tmp_path / "d", deaf_to="folder")
    assert lost > 100
    _, lost, _ = _cut_while_keeping(tmp_path / "e", tidy=lambda folder: rotation.delete_old(folder, 0))
    assert lost > 100


# Full disks, read-only disks, folders that vanish


@pytest.fixture(scope="module")
def full_disks(tmp_path_factory):
    pytest.importorskip("resource", reason="the size of files can be limited on Unix only")
    folder = tmp_path_factory.mktemp("full")
    return [json.loads(line) for line in run_module("tests.damage", "--full-disk", folder).splitlines()]


def test_a_full_disk_leaves_the_file_that_was_there_and_no_other(full_disks):
    saves = [row for row in full_disks if "way" in row]
    assert len(saves) >= 100
    assert all(row["kind"] == "OSError" and row["code"] in (errno.EFBIG, errno.ENOSPC) for row in saves), saves[0]
    assert all(row["intact"] and not row["left"] for row in saves)


def test_the_error_of_a_full_disk_names_the_path_and_the_bytes_that_are_needed(full_disks):
    for row in full_disks:
        if "way" in row:
            assert row["path"] in row["message"]
            assert "unchanged" in row["message"]
            bare = row["message"].replace(row["path"], "")
            assert any(0.8 * row["size"] <= n <= 1.3 * row["size"] + 4096 for n in numbers_in(bare)), row["message"]


def test_training_goes_on_when_the_disk_is_full_and_only_the_last_save_raises(full_disks):
    for row in (row for row in full_disks if row.get("training")):
        assert row["step"] == row["wanted"]
        assert len(row["warnings"]) >= 3
        assert all("step-" in warning and "goes on" in warning for warning in row["warnings"])
        assert ("step-" in row["error"]) == row["ends_full"]
        assert row["newest"] == (4 if row["ends_full"] else row["wanted"])
        assert not row["left"]
    assert [row["ends_full"] for row in full_disks if row.get("training")] == [False, True]


def test_a_disk_that_is_known_to_be_too_full_is_told_before_anything_is_written(tmp_path, monkeypatch):
    path = model().save(tmp_path / "model.pt")
    size = path.stat().st_size
    full = type("Full", (), {"f_bavail": 1, "f_bfree": 1, "f_blocks": 10**6, "f_frsize": 1000, "f_bsize": 1000})()
    monkeypatch.setattr(os, "statvfs", lambda path: full, raising=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    replaced = []
    monkeypatch.setattr(os, "replace", lambda *args: replaced.append(args))
    with pytest.raises(OSError, match="1,000 bytes are free") as caught:
        model().save(path)
    assert caught.value.errno == errno.ENOSPC
    assert str(path) in str(caught.value)
    assert any(0.5 * size <= n <= 1.3 * size + 4096 for n in numbers_in(str(caught.value).replace(str(path), "")))
    assert not replaced


STEPS = ["make", "sync", "replace", "sync folder"]


def fail(monkeypatch, step, code, folder):
    """Let the system refuse one of the steps in which a file is written to ``folder``."""
    real = {name: getattr(os, name) for name in ("open", "fsync", "replace")}
    real_open = builtins.open

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    def inside(path):
        return not isinstance(path, int) and Path(os.fspath(path)).parent == folder

    def os_open(path, flags, *args, **options):
        if inside(path) and flags & os.O_CREAT:
            refuse()
        return real["open"](path, flags, *args, **options)

    def plain_open(path, mode="r", *args, **options):
        if inside(path) and set(mode) & set("wxa"):
            refuse()
        return real_open(path, mode, *args, **options)

    def fsync(descriptor):
        if _is_folder(descriptor) == (step == "sync folder"):
            refuse()
        real["fsync"](descriptor)

    if step == "make":
        monkeypatch.setattr(os, "open", os_open)
        monkeypatch.setattr(builtins, "open", plain_open)
        monkeypatch.setattr(io, "open", plain_open)
    elif step == "replace":
        monkeypatch.setattr(os, "replace", refuse)
    else:
        monkeypatch.setattr(os, "fsync", fsync)


def _is_folder(descriptor):
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


def left_over(folder):
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


@FOLDERS_SYNC
@pytest.mark.parametrize("there", [True, False], ids=["there", "new"])
@pytest.mark.parametrize("code", SYSTEM_ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("step", STEPS)
def test_whatever_the_system_refuses_the_error_names_the_file_and_tells_the_truth(
    step, code, there, tmp_path, monkeypatch
):
    path = tmp_path / "model.pt"
    before = files.write(path, _content(1)).read_bytes() if there else None
    fail(monkeypatch, step, code, tmp_path)
    with pytest.raises(OSError, match=r"model\.pt") as caught:
        files.write(path, _content(2))
    monkeypatch.undo()
    assert caught.value.errno == code
    assert str(path) in str(caught.value)
    assert not left_over(tmp_path)
    if path.exists():
        assert files.read(path)["step"] in (1, 2)
    if step != "sync folder":
        assert (path.read_bytes() if path.exists() else None) == before
    if "unchanged" in str(caught.value):
        assert there
        assert path.read_bytes() == before


def test_a_disk_that_turns_read_only_is_told_by_the_name_of_the_file(tmp_path, monkeypatch):
    path = files.write(tmp_path / "model.pt", _content(1))
    before = path.read_bytes()
    fail(monkeypatch, "sync", errno.EIO, tmp_path)

    def unlink(path, *args, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "unlink", unlink)
    monkeypatch.setattr(os, "remove", unlink)
    with pytest.raises(OSError, match=r"Cannot write") as caught:
        files.write(path, _content(2))
    monkeypatch.undo()
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["save", "save_weights", "safetensors"])
def test_a_folder_that_is_none_or_not_there_is_told_with_the_path(kind, tmp_path):
    if kind == "safetensors":
        pytest.importorskip("safetensors", reason="safetensors is optional")
    one, name = model(), "w.safetensors" if kind == "safetensors" else "m.pt"
    write = one.save if kind == "save" else one.save_weights
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "gone" / name, tmp_path / "file" / name):
        with pytest.raises(OSError, match="Cannot write") as caught:
            write(path)
        assert str(path) in str(caught.value)
    assert (tmp_path / "file").read_text() == "x"
    with pytest.raises(OSError, match="folder"):
        one.save(tmp_path / "folder")


def _fit_with_trouble(callback, trouble, ends_in_trouble, epochs=5):
    """Train with trouble from epoch 2 on, to the end or until epoch 4; return model, warnings and error."""
    one = Model(mlp(), device="cpu").compile("sgd", "cross_entropy")
    undo = []

    def begin(epoch, logs):
        if epoch == 2:
            undo.append(trouble())
        if epoch == 4 and not ends_in_trouble:
            undo.pop()()

    error = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            one.fit(
                X,
                Y,
                epochs=epochs,
                batch_size=25,
                callbacks=[LambdaCallback(on_epoch_begin=begin), callback],
                verbose=0,
            )
        except OSError as failure:
            error = failure
    for function in undo:
        function()
    return one, [str(warning.message) for warning in caught], error


KEEPERS = {
    "BackupAndRestore": lambda folder: BackupAndRestore(folder, delete_checkpoint=False),
    "ModelCheckpoint": lambda folder: ModelCheckpoint(folder / "{epoch}.pt"),
    "ModelCheckpoint of the best": lambda folder: ModelCheckpoint(folder / "best.pt", "loss", save_best_only=True),
}


@pytest.mark.parametrize("ends_in_trouble", [False, True], ids=["passes", "stays"])
@pytest.mark.parametrize("code", SYSTEM_ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("kind", KEEPERS)
def test_training_goes_on_when_files_cannot_be_written_and_only_the_last_one_raises(
    kind, code, ends_in_trouble, tmp_path, monkeypatch
):
    folder = tmp_path / "run"

    def trouble():
        fail(monkeypatch, "make", code, folder)
        return monkeypatch.undo

    one, told, error = _fit_with_trouble(KEEPERS[kind](folder), trouble, ends_in_trouble)
    assert one.state.step == 10
    assert told
    assert all(str(folder) in line and "goes on" in line for line in told)
    assert (error is not None) == ends_in_trouble
    assert all(_is_whole(path) for path in folder.glob("*.pt"))
    assert list(folder.glob("*.pt"))
    assert not left_over(folder)
    if error is not None:
        assert error.errno == code
        assert str(folder) in str(error)


@pytest.mark.parametrize("kind", KEEPERS)
def test_a_folder_that_vanishes_is_made_again(kind, tmp_path):
    folder = tmp_path / "run"

    def trouble():
        shutil.rmtree(folder)
        return lambda: None

    one, _, error = _fit_with_trouble(KEEPERS[kind](folder), trouble, False)
    assert (one.state.step, error) == (10, None)
    assert list(folder.glob("*.pt"))


@pytest.mark.parametrize("kind", KEEPERS)
def test_a_folder_that_becomes_a_file_is_a_warning_until_the_end(kind, tmp_path):
    folder = tmp_path / "run"

    def trouble():
        shutil.rmtree(folder)
        folder.write_text("mine")
        return lambda: None

    one, told, error = _fit_with_trouble(KEEPERS[kind](folder), trouble, True)
    assert one.state.step == 10
    assert told
    assert all(str(folder) in line and "goes on" in line for line in told)
    assert isinstance(error, OSError)
    assert str(folder) in str(error)
    assert folder.read_text() == "mine"


@pytest.mark.parametrize("how", ["resume", "callback"])
def test_a_folder_that_cannot_be_made_is_told_before_training(how, tmp_path):
    (tmp_path / "file").write_text("mine")
    folder = tmp_path / "file" / "run"
    one = model()
    options = {"resume": folder} if how == "resume" else {"callbacks": [BackupAndRestore(folder)]}
    with pytest.raises(OSError, match=r"Cannot keep|Cannot write") as caught:
        one.fit(X, Y, verbose=0, **options)
    assert str(folder) in str(caught.value)
    assert one.state.step == 0

"""Runs and files in object stores, without a server."""

import json
import re
from pathlib import Path

import fsspec
import pytest
import torch
from torch import nn

from easytorch import FileError, Model, ResumeError
from easytorch.callbacks import BackupAndRestore, CSVLogger, LambdaCallback, ModelCheckpoint, TensorBoard
from easytorch.checkpoint import lease, rotation, store_client
from easytorch.checkpoint.remote_path import RemotePath
from easytorch.checkpoint.storage import storage_of, to_location

X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
Y = torch.randint(2, (40,), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def store():
    """Yield the file system of ``memory://``, which is empty before and after."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    yield memory
    memory.store.clear()


def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 2))
    return Model(net, device="cpu").compile("adam", "cross_entropy")


def fit(epochs, folder, **options):
    trained = model()
    trained.fit(X, Y, epochs=epochs, resume=folder, verbose=0, **options)
    return trained


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.module.parameters(), second.module.parameters(), strict=True))


def names(store, folder):
    return sorted(Path(name).name for name in store.find(f"/{folder}"))


def test_run_resumes_with_the_same_bits(store):
    fit(2, "memory://runs/a")
    assert names(store, "runs/a") == ["step-0000000002.pt", "step-0000000004.pt"]
    resumed = fit(4, "memory://runs/a")
    assert equal(resumed, fit(4, None))
    assert names(store, "runs/a") == ["step-0000000006.pt", "step-0000000008.pt"]
    assert equal(model().load("memory://runs/a"), resumed)


def test_slashes_at_the_end_and_twice_change_nothing(store):
    resumed = fit(1, "memory://runs/a/")
    assert names(store, "runs/a") == ["step-0000000002.pt"]
    for url in ("memory://runs/a", "memory://runs/a/", "memory://runs//a//", "memory:///runs/a/"):
        assert equal(model().load(url), resumed)
    assert equal(fit(2, "memory://runs//a//"), fit(2, None))
    assert str(resumed.save("memory://files//b.pt")) == "memory://files/b.pt"
    for save in (model().save, model().save_weights, lambda url: model().fit(X, Y, callbacks=ModelCheckpoint(url))):
        with pytest.raises(ValueError, match=r"Use 'memory://files/model.pt'|such as 'memory://files/model-"):
            save("memory://files/")
    with pytest.raises(FileError, match="is a folder"):
        model().load_weights("memory://runs/a/")
    with pytest.raises(
        FileNotFoundError, match=r"no checkpoint in 'memory://files'.*pass a file: 'memory://files/b.pt'"
    ):
        model().load("memory://files/")


def test_a_checkpoint_of_a_killed_process_is_deleted_by_the_next_save(store):
    fit(2, "memory://runs/a")
    # A process that is killed between the upload and the deletion leaves a third one.
    store.pipe_file("/runs/a/step-0000000001.pt", store.cat_file("/runs/a/step-0000000002.pt"))
    assert len(names(store, "runs/a")) == 3
    fit(3, "memory://runs/a")
    assert names(store, "runs/a") == ["step-0000000004.pt", "step-0000000006.pt"]


def test_finished_run_may_be_deleted(store):
    backup = BackupAndRestore("memory://run", save_freq=1)
    model().fit(X, Y, epochs=2, callbacks=[backup], verbose=0)
    assert names(store, "run") == []


def test_run_resumes_from_one_checkpoint_of_a_folder(store):
    first = fit(2, "memory://run")
    fit(3, "memory://run/step-0000000002.pt")
    assert "step-0000000004.pt.archived" in names(store, "run")
    assert equal(first, fit(2, None))


def test_damaged_and_cut_off_objects_are_never_loaded(store):
    fit(2, "memory://run")
    complete = store.cat_file("/run/step-0000000004.pt")
    for content in (complete[:-100], b"", complete[:1000] + b"\xff" + complete[1001:]):
        store.pipe_file("/run/step-0000000004.pt", content)
        with pytest.warns(UserWarning, match="older checkpoint 'step-0000000002.pt' is used"):
            path, _ = rotation.read_newest("memory://run")
        assert path.name == "step-0000000002.pt"


def test_model_and_weights_are_saved_and_loaded():
    saved = model()
    path = saved.save("memory://models/model.pt")
    assert str(path) == "memory://models/model.pt"
    assert equal(model().load(path), saved)
    saved.save_weights("memory://models/weights.safetensors")
    assert equal(model().load_weights("memory://models/weights.safetensors"), saved)


def test_missing_names_get_a_suggestion():
    model().save("memory://models/model.pt")
    with pytest.raises(FileNotFoundError, match=r"Did you mean 'model\.pt'"):
        model().load("memory://models/modell.pt")
    with pytest.raises(ValueError, match="is a folder"):
        model().load_weights("memory://models")


def test_model_checkpoint_keeps_the_last_and_the_best(store):
    saved = ModelCheckpoint("memory://models/{epoch}.pt", "loss", keep=1, keep_best=1)
    trained = model()
    trained.fit(X, Y, epochs=4, callbacks=[saved], verbose=0)
    losses = trained.history["loss"]
    best = losses.index(min(losses)) + 1
    assert saved.best_path == f"memory://models/{best}.pt"
    assert names(store, "models") == sorted({"4.pt", f"{best}.pt"})
    assert model().load(saved.best_path).state.epoch == best


def test_dry_run_changes_nothing_in_the_store(store):
    fit(1, "memory://run")
    before = {name: store.cat_file(name) for name in store.find("/")}
    model().fit(X, Y, epochs=2, resume="memory://run", dry_run=True, verbose=0)
    assert {name: store.cat_file(name) for name in store.find("/")} == before


def test_file_urls_are_paths(tmp_path):
    url = (tmp_path / "a folder").as_uri()
    fit(1, url)
    assert [path.name for path in (tmp_path / "a folder").iterdir()] == ["step-0000000002.pt"]
    saved = ModelCheckpoint(f"{url}/{{epoch}}.pt")
    model().fit(X, Y, callbacks=[saved], verbose=0)
    assert (tmp_path / "a folder" / "1.pt").exists()
    with pytest.raises(ValueError, match="third slash"):
        model().save("file://model.pt")


def test_path_objects_that_were_urls_are_refused():
    with pytest.raises(ValueError, match=r"Pass resume='s3://bucket/run'"):
        fit(1, Path("s3://bucket/run"))
    with pytest.raises(ValueError, match=r"Pass path='gs://bucket/model\.pt'"):
        model().save("gs:/bucket/model.pt")


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("s3:bucket/run", "resume='s3://bucket/run'"),
        ("s3//bucket/run", "resume='s3://bucket/run'"),
        ("memory:run", "resume='memory://run'"),
        ("simplecache::memory://run", "resume='memory://run'"),
    ],
)
def test_misspelled_urls_are_no_local_folders(text, fix):
    with pytest.raises(ValueError, match=re.escape(fix)):
        fit(1, text)


def test_a_folder_is_not_overwritten_by_a_file(store):
    fit(1, "memory://b/run")
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        model().save("memory://b/run")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sftp://host/run", "could leave half a file"),
        ("s3://", "must name a bucket"),
        ("memory://run/../other", "complete URL"),
    ],
)
def test_urls_that_cannot_be_used_are_refused(url, message):
    with pytest.raises(ValueError, match=message):
        fit(1, url)


@pytest.mark.parametrize("make", [CSVLogger, TensorBoard])
def test_other_files_must_be_local(make):
    with pytest.raises(ValueError, match="must be a path on this machine"):
        make("s3://bucket/log")


@pytest.mark.parametrize(
    ("url", "module", "command"), [("gs://b/r", "gcsfs", "gcsfs"), ("s3://b/r", "s3fs", r"\[s3\]")]
)
def test_missing_packages_are_named(url, module, command, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ImportError, match=f"needs {module}: pip install .*{command}"):
        fit(1, url)


def test_failed_writes_are_warnings_until_the_last(store, monkeypatch):
    monkeypatch.setattr(store_client, "PAUSES", ())
    put, failures = type(store).put_file, [OSError(5, "the store is out of order")] * 2

    def fail(self, *args, **options):
        if failures:
            raise failures.pop()
        return put(self, *args, **options)

    monkeypatch.setattr(type(store), "put_file", fail)
    with pytest.warns(UserWarning, match="out of order.*Training continues"):
        fit(3, "memory://run")
    assert names(store, "run") == ["step-0000000006.pt"]
    failures += [OSError(5, "the store is out of order")] * 9
    with (
        pytest.warns(UserWarning, match="out of order"),
        pytest.raises(OSError, match=r"Cannot write 'memory://run/step-0000000008\.pt'"),
    ):
        fit(4, "memory://run")


def test_temporary_errors_are_tried_again(store, monkeypatch):
    monkeypatch.setattr(store_client, "PAUSES", (0.0,))
    put, failures = type(store).put_file, [TimeoutError("slow down")]

    def fail_once(self, *args, **options):
        if failures:
            raise failures.pop()
        return put(self, *args, **options)

    monkeypatch.setattr(type(store), "put_file", fail_once)
    model().save("memory://model.pt")
    assert not failures


def test_upload_that_was_cut_off_is_an_error(store, monkeypatch):
    monkeypatch.setattr(store_client, "PAUSES", ())
    monkeypatch.setattr(type(store), "put_file", lambda self, name, url, **options: self.pipe_file(url, b"half"))
    with pytest.raises(OSError, match="the store has 4 of"):
        model().save("memory://model.pt")


def test_two_runs_do_not_share_a_folder(store):
    refusals = []

    def second(epoch, logs):
        with pytest.raises(ResumeError, match="this one"):
            fit(1, "memory://run")
        refusals.append(json.loads(store.cat_file("/run/.easytorch.lock"))["number"])

    fit(1, "memory://run", callbacks=[LambdaCallback(on_epoch_begin=second)])
    assert refusals == [1]
    assert names(store, "run") == ["step-0000000002.pt"]


def test_lock_of_a_dead_process_is_free_at_once(store):
    store.pipe_file(
        "/run/.easytorch.lock", json.dumps({"process": [*(lease._machine() or []), 2**22 + 1, "1"]}).encode()
    )
    if lease._machine() is None:
        pytest.skip("this system does not identify processes")
    fit(1, "memory://run")
    assert names(store, "run") == ["step-0000000002.pt"]


def test_lock_of_another_machine_expires(store, monkeypatch, capsys):
    monkeypatch.setattr(lease, "EXPIRY", 0.2)
    monkeypatch.setattr(lease, "REPORT", 0.0)
    store.pipe_file("/run/.easytorch.lock", b'{"holder": "process 1 on \\u001b[2Jother"}')
    fit(1, "memory://run")
    assert "in use: process 1 on \\x1b[2Jother. Waiting" in " ".join(capsys.readouterr().err.split())


def test_renewed_lock_is_refused(store, monkeypatch):
    contents = iter([b'{"holder": "process 1 on other"}', b'{"holder": "process 1 on other", "number": 2}'])
    monkeypatch.setattr(lease.Lease, "_read", lambda self: next(contents, b'{"holder": "process 1 on other"}'))
    with pytest.raises(ResumeError, match="process 1 on other"):
        fit(1, "memory://run")


def test_run_that_has_lost_its_folder_ends(store, monkeypatch):
    monkeypatch.setattr(lease, "RENEWAL", 0.01)

    def steal(epoch, logs):
        if epoch == 1:
            store.pipe_file("/run/.easytorch.lock", b'{"holder": "process 1 on other"}')
            (lock,) = (each._lock for each in trained.callbacks.callbacks if isinstance(each, BackupAndRestore))
            while not lock.is_lost:
                pass

    trained = model()
    with pytest.raises(ResumeError, match="process 1 on other"):
        trained.fit(X, Y, epochs=5, resume="memory://run", callbacks=[LambdaCallback(on_epoch_begin=steal)], verbose=0)
    assert names(store, "run") == [".easytorch.lock", "step-0000000002.pt"]


def test_names_in_a_store_are_no_local_paths(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(1, "memory://run")
    for name in ("..%2Fescape.pt", "step-0000000009.pt\n", "$(touch x)", "step-9999999999.pt.exe"):
        store.pipe_file(f"/run/{name}", b"x")
    fit(2, "memory://run")
    assert not list(tmp_path.iterdir())


def test_remote_paths_behave_as_paths():
    path = RemotePath.parse("S3A://bucket//run/model.tar.pt")
    assert (str(path), path.name, path.stem, path.suffix) == (
        "s3a://bucket/run/model.tar.pt",
        "model.tar.pt",
        "model.tar",
        ".pt",
    )
    assert str(path.parent.parent.parent) == "s3a://bucket"
    assert str(path.with_suffix(".bin")) == "s3a://bucket/run/model.tar.bin"
    assert storage_of(path).real_path(path) == "s3://bucket/run/model.tar.pt"
    assert to_location(path) is path

"""Runs and files on an S3 server."""

import collections
import functools
import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from easytorch import Model, ResumeError
from easytorch.callbacks import BackupAndRestore, ModelCheckpoint
from easytorch.checkpoint import lease, object_store, store_client
from easytorch.checkpoint.storage import storage_of, to_location
from tests import chaos_s3
from tests.checkpoint import test_dcp
from tests.many import furthest, run_ranks
from tests.s3_server import BUCKET, environment, names, s3_server

s3fs = pytest.importorskip("s3fs", reason="needs s3fs")
pytest.importorskip("moto", reason="needs moto, an S3 server for tests")
pytestmark = pytest.mark.slow
X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
Y = torch.randint(2, (40,), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def address():
    with s3_server() as started:
        yield started


@pytest.fixture
def folder(address, monkeypatch, request):
    """Return the URL of an empty folder on the server."""
    for name, value in environment(address).items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{request.node.name}"


@pytest.fixture
def requests(folder, monkeypatch):
    """Return the list of the requests that this process makes from now on."""
    made, call = [], s3fs.S3FileSystem._call_s3

    async def recorded(self, method, *args, **options):
        made.append(method)
        return await call(self, method, *args, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", recorded)
    return made


def model(width=8):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, width), nn.Dropout(0.3), nn.Linear(width, 2))
    return Model(net, device="cpu").compile("adam", "cross_entropy")


def fit(epochs, folder, **options):
    trained = model()
    trained.fit(X, Y, epochs=epochs, resume=folder, verbose=0, **options)
    return trained


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.module.parameters(), second.module.parameters(), strict=True))


def in_folder(folder):
    return names(folder.split("/")[-1])


def test_run_resumes_on_s3_with_the_same_bits(folder):
    fit(2, folder)
    assert equal(fit(4, folder), fit(4, None))
    assert in_folder(folder) == ["step-0000000006.pt", "step-0000000008.pt"]


def test_a_checkpoint_takes_five_requests(folder, requests):
    counts = []

    def count(epochs):
        requests.clear()
        backup = BackupAndRestore(f"{folder}-{epochs}", save_freq=1, delete_checkpoint=False)
        model().fit(X, Y, epochs=epochs, callbacks=[backup], verbose=0)
        counts.append(collections.Counter(requests))

    count(2)
    count(3)
    for_two = counts[1] - counts[0]  # of an epoch
    assert for_two == {"put_object": 2, "head_object": 2, "list_objects_v2": 4, "delete_object": 2}


def test_large_files_are_uploaded_in_parts(folder, requests, monkeypatch):
    monkeypatch.setattr(object_store, "PART_SIZE", 2000)
    saved = model(1000)
    saved.save(f"{folder}/model.pt")
    assert requests.count("upload_part") > 2
    assert equal(model(1000).load(f"{folder}/model.pt"), saved)


def test_unfinished_uploads_of_a_run_are_aborted(folder):
    client = store_client.client(folder)
    key = folder.split("/", 3)[3]
    for name in (f"{key}/step-0000000002.pt", f"{key}/other.pt"):
        client.call_s3("create_multipart_upload", Bucket=BUCKET, Key=name)
    fit(1, folder)
    uploads = client.call_s3("list_multipart_uploads", Bucket=BUCKET, Prefix=key)["Uploads"]
    assert [upload["Key"] for upload in uploads] == [f"{key}/other.pt"]


@pytest.mark.parametrize(
    ("variable", "value", "error", "message"),
    [
        (None, None, FileNotFoundError, "the bucket 'missing' does not exist. Create it"),
        ("AWS_ACCESS_KEY_ID", None, PermissionError, "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", ConnectionError, "the store does not answer.*Check the network"),
    ],
)
@pytest.mark.parametrize("use", ["resume", "ModelCheckpoint"])
def test_problems_are_errors_before_training(use, variable, value, error, message, folder, monkeypatch):
    if variable is not None:
        monkeypatch.delenv(variable) if value is None else monkeypatch.setenv(variable, value)
    monkeypatch.setattr(store_client, "PAUSES", ())
    url = f"s3://{BUCKET if variable else 'missing'}/run"
    options = {"resume": url} if use == "resume" else {"callbacks": [ModelCheckpoint(f"{url}/a.pt")]}
    untrained, trained = model(), model()
    with pytest.raises(error, match=message):
        trained.fit(X, Y, verbose=0, **options)
    assert equal(trained, untrained)


def test_workers_and_the_client_do_not_disturb_each_other(folder):
    def program(url, epochs):
        trained = model()
        loader = DataLoader(TensorDataset(X, Y), 8, shuffle=True, num_workers=1)
        trained.fit(loader, epochs, resume=url, verbose=0)
        return trained

    program(folder, 1)
    assert equal(program(folder, 2), program(None, 2))


def test_a_lock_is_created_and_replaced_on_conditions(folder):
    """Tried one after the other, because moto, unlike S3, does not check the condition and write in one step."""
    location = to_location(folder)
    first, second = (storage_of(location).lock(location, lambda: True) for _ in range(2))
    assert (first._create(), second._create()) == (True, False)
    content = first._read()
    assert (second._replace(content), first._replace(content)) == (True, False)
    assert first._read() == second._written


def test_folder_of_a_killed_process_is_free(folder, monkeypatch):
    monkeypatch.setattr(lease, "RENEWAL", 0.2)
    program = (
        "import sys, time\nfrom easytorch.checkpoint.storage import storage_of, to_location\n"
        "folder = to_location(sys.argv[1])\nlock = storage_of(folder).lock(folder, lambda: True)\nlock.acquire()\n"
        "print('held', flush=True)\ntime.sleep(100)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, folder], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ResumeError, match=f"process {holder.pid} on "):
            fit(1, folder)
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()
    if lease._machine() is None:  # then the lock expires
        monkeypatch.setattr(lease, "EXPIRY", 0.2)
    fit(1, folder)
    assert in_folder(folder) == ["step-0000000002.pt"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_kills_during_requests_lose_nothing(tmp_path):
    with s3_server() as address:
        points = chaos_s3.POINTS[2:7]  # from the first part of an upload to the deletion of the oldest checkpoint
        report = chaos_s3.run(len(points), tmp_path, address, points)
    assert report.equal
    assert (report.kills, report.damaged, report.stray) == (len(points), 0, 0)
    assert report.during_uploads >= 2


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_resume_from_s3(strategy, folder):
    train = functools.partial(test_dcp.train, save_freq=4)
    expected, losses, _ = run_ranks(train, f"{folder}/complete", None, 6, strategy, timeout=240)[0]
    run_ranks(train, f"{folder}/stopped", 4, 6, strategy, timeout=240)
    for weights, again, (step, _) in run_ranks(train, f"{folder}/stopped", None, 6, strategy, timeout=240):
        assert step == 4
        assert furthest(weights, expected) == 0
        assert again == losses

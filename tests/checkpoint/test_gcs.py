"""Runs and files on an emulator of Google Cloud Storage: ``pip install gcsfs gcp-storage-emulator``."""

import pytest
from torch import nn

from easytorch import Model
from easytorch.checkpoint import store_client
from tests.checkpoint.test_object_store import equal, fit, model

pytest.importorskip("gcsfs", reason="needs gcsfs")
emulator = pytest.importorskip("gcp_storage_emulator.server", reason="needs gcp-storage-emulator")
pytestmark = [
    pytest.mark.slow,
    # The emulator does not know conditions, with which runs that start at the same moment notice each other.
    pytest.mark.filterwarnings("ignore:Two runs that start at the same moment:UserWarning"),
]


@pytest.fixture
def bucket(monkeypatch):
    """Start the server with a bucket, and return the URL of the bucket."""
    server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    server.start()
    address = "http://{}:{}".format(*server._api._httpd.server_address)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    yield "gs://bucket"
    server.stop()


def test_runs_and_files_on_google_cloud_storage(bucket):
    fit(2, f"{bucket}/run/")
    resumed = fit(4, f"{bucket}/run")
    assert equal(resumed, fit(4, None))
    names = sorted(store_client.client(bucket).find(f"{bucket}/run"))
    assert names == ["bucket/run/step-0000000006.pt", "bucket/run/step-0000000008.pt"]
    assert equal(model().load(f"{bucket}/run/"), resumed)
    assert equal(model().load(resumed.save(f"{bucket}/model.pt")), resumed)
    with pytest.raises(FileNotFoundError, match=r"no file 'gs://bucket/none.pt'"):
        Model(nn.Linear(1, 1)).load(f"{bucket}/none.pt")
    with pytest.raises(OSError, match=r"gs://missing/model.pt"):
        model().save("gs://missing/model.pt")

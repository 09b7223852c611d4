"""Models on the Hugging Face Hub, tested with its real client and a server on 127.0.0.1."""

import base64
import hashlib
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from torch import nn

from easytorch import Model
from easytorch.errors import FileError
from easytorch.export import hub as hub_module

huggingface_hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")

NAMES = ["cat", "dog"]


def make_net():
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def fitted_model():
    model = Model(make_net(), device="cpu").compile("adam", "cross_entropy", metrics=["accuracy"])
    model.fit(torch.randn(8, 3), NAMES * 4, verbose=0)
    return model


class HubServer(BaseHTTPRequestHandler):
    """The part of the Hub's API that uploads and downloads of small files use."""

    protocol_version = "HTTP/1.1"
    repositories: dict[str, dict[str, bytes]] = {}  # noqa: RUF012 -- each request has a handler
    commit = "a" * 40

    def log_message(self, *_):
        """Print nothing."""

    def _answer(self, content, status=200, headers=()):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": self.commit, **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/api/repos/create":
            request = json.loads(body)
            name = f"{request.get('organization') or 'ada'}/{request['name'].rpartition('/')[2]}"
            self.repositories.setdefault(name, {})
            self._answer({"url": f"http://127.0.0.1/{name}"})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            self._answer({"files": modes})
        elif "/commit/" in self.path:
            repository = self.repositories["/".join(self.path.split("/")[3:5])]
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    repository[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            url = f"http://{self.headers['Host']}/{'/'.join(self.path.split('/')[3:5])}/commit/{self.commit}"
            self._answer({"commitUrl": url, "commitOid": self.commit, "success": True})
        else:
            self._answer({"error": self.path}, 404)

    def do_GET(self):
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            files = self.repositories.get("/".join(parts[2:4]))
            if files is None:
                self._answer({"error": "not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            elif "tree" in parts:
                self._answer([{"type": "file", "path": n, "size": len(c), "oid": _hash(c)} for n, c in files.items()])
            else:
                siblings = [{"rfilename": name} for name in files]
                self._answer({"id": "/".join(parts[2:4]), "sha": self.commit, "siblings": siblings, "private": False})
            return
        content = self.repositories.get("/".join(parts[:2]), {}).get("/".join(parts[4:]))
        if content is None:
            self._answer({"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        else:
            self._answer(content, headers={"ETag": f'"{_hash(content)}"', "Accept-Ranges": "bytes"})

    do_HEAD = do_GET  # noqa: N815 -- http.server calls it


def _hash(content):
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubServer)
    HubServer.repositories = {}
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(10)


def run_client(code, server, cache, **environment):
    """Run ``code`` in another process, since the client reads its settings when it is imported."""
    variables = {
        "HF_ENDPOINT": server, "HF_HOME": str(cache), "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", **environment,
    }  # fmt: skip
    start = f"import os\nos.environ.update({variables!r})\nfrom tests.export.test_hub import *\n"
    result = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, timeout=180)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.mark.slow
def test_a_model_comes_back_from_the_hub_and_offline(server, tmp_path):
    weight = fitted_model().module.weight
    push = (
        "model = fitted_model(); print(model.push_to_hub('ada/digits', report=None)); print(model.module.weight.sum())"
    )
    first = run_client(push, server, tmp_path)
    assert "commit" in first
    assert set(HubServer.repositories["ada/digits"]) == {"model.safetensors", "easytorch.json", "README.md"}
    pull = (
        "model = Model.from_hub(nn.Linear(3, 2), 'ada/digits', device='cpu')\n"
        "print(model.module.weight.sum()); print(model.class_names, model.predict_classes(torch.ones(1, 3))[0] in NAMES)"
    )
    assert weight.shape == (2, 3)
    for offline in ("0", "1"):
        received = run_client(
            pull, server if offline == "0" else "http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE=offline
        )
        total, facts = received.strip().splitlines()[-2:]
        assert total == first.strip().splitlines()[-1]
        assert facts == f"{NAMES} True"


def test_a_folder_gives_weights_names_and_metrics(tmp_path):
    model = fitted_model()
    hub_module.write_folder(model, tmp_path, "ada/digits", None)
    copy = Model.from_hub(nn.Linear(3, 2), tmp_path, device="cpu")
    x = torch.randn(5, 3)
    assert (copy.predict_classes(x) == model.predict_classes(x)).all()
    y = ["cat", "dog", "dog", "cat", "cat"]
    assert copy.evaluate(x, y, verbose=0) == model.evaluate(x, y, verbose=0)


def test_the_model_card_has_the_scores_of_the_report(tmp_path):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    model = fitted_model()
    x, y = torch.randn(20, 3), ["cat", "dog"] * 10
    report = model.report(x, y, bootstrap=0, verbose=0)
    hub_module.write_folder(model, tmp_path, "ada/digits", report)
    card = (tmp_path / "README.md").read_text()
    assert huggingface_hub.ModelCard(card).data.to_dict()["library_name"] == "easytorch"
    accuracy = report.summary["accuracy"]
    assert f"| accuracy | {accuracy.value:.4g} | {accuracy.low:.4g} to {accuracy.high:.4g} |" in card
    assert "Model.from_hub(Linear(), 'ada/digits')" in card
    assert "Classes: cat, dog." in card
    assert "trained for 1 epoch with" in card
    assert "nan" not in card
    assert f"| calibration_error | {report.summary['calibration_error'].value:.4g} |  |" in card


def test_without_a_report_the_card_has_the_last_epoch(tmp_path):
    model = fitted_model()
    hub_module.write_folder(model, tmp_path, "ada/digits", None)
    assert f"| loss | {model.history['loss'][-1]:.4g} |" in (tmp_path / "README.md").read_text()


def test_a_loss_that_is_an_object_is_left_out(tmp_path):
    model = Model(make_net(), device="cpu").compile("adam", nn.CrossEntropyLoss())
    hub_module.write_folder(model, tmp_path, "ada/digits", None)
    assert "loss" not in json.loads((tmp_path / "easytorch.json").read_text())
    assert Model.from_hub(nn.Linear(3, 2), tmp_path, device="cpu").compile_args is None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda folder: (folder / "easytorch.json").unlink(), FileError, "load_weights"),
        (lambda folder: (folder / "easytorch.json").write_text("{"), FileError, "not JSON"),
        (lambda folder: (folder / "easytorch.json").write_text("[]"), FileError, "JSON object"),
        (lambda folder: (folder / "model.safetensors").unlink(), FileNotFoundError, r"model\.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"0" * 50), FileError, r"model\.safetensors"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path, change, error, message):
    hub_module.write_folder(fitted_model(), tmp_path, "ada/digits", None)
    change(tmp_path)
    with pytest.raises(error, match=message):
        Model.from_hub(nn.Linear(3, 2), tmp_path, device="cpu")


def test_another_module_is_refused(tmp_path):
    hub_module.write_folder(fitted_model(), tmp_path, "ada/digits", None)
    with pytest.raises(FileError):
        Model.from_hub(nn.Linear(4, 2), tmp_path, device="cpu")


class Doubled(Model):
    def predict_step(self, batch):
        return 2 * super().predict_step(batch)


def test_a_subclass_gives_its_own_model(tmp_path):
    hub_module.write_folder(fitted_model(), tmp_path, "ada/digits", None)
    x = torch.randn(5, 3)
    plain, doubled = (kind.from_hub(nn.Linear(3, 2), tmp_path, device="cpu") for kind in (Model, Doubled))
    assert type(doubled) is Doubled
    assert (doubled.predict(x, verbose=0) == 2 * plain.predict(x, verbose=0)).all()


def test_wrong_arguments_of_from_hub_are_named(tmp_path):
    with pytest.raises(TypeError, match=r"Pass the module first: Model\.from_hub\(net, 'user/name'\)"):
        Model.from_hub(str(tmp_path), nn.Linear(3, 2))
    with pytest.raises(TypeError, match=r"'source'\. See help\(Model\.from_hub\)"):
        Model.from_hub(str(tmp_path))
    for path in ("./missing", "../missing", "~/missing", "/missing"):
        with pytest.raises(FileNotFoundError, match="There is no folder"):
            Model.from_hub(nn.Linear(3, 2), path)


def test_a_missing_folder_names_both_kinds_of_sources():
    with pytest.raises(FileNotFoundError, match="'user/name'"):
        Model.from_hub(nn.Linear(3, 2), "missing", device="cpu")


def test_a_missing_package_is_named_with_the_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r'pip install "easytorch-fit\[hub\]"'):
        fitted_model().push_to_hub("ada/digits")

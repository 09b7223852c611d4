"""Kubernetes: the manifest of the guide has the fields of the API, and its pods continue exactly after evictions.

There is no cluster: two processes stand for the pods, and the test for the controller of the job, which starts failed pods again.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from easytorch.checkpoint import files, rotation

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
LIMIT = 300  # seconds for all pods
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
PROGRAM = """
import os, time
import torch
from torch import nn
from easytorch import Model
from easytorch.callbacks import BackupAndRestore, LambdaCallback
from tests.loops import blob_loader

torch.set_num_threads(1)
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))
model = Model(net, device="cpu").compile("adam", "cross_entropy")
backup = BackupAndRestore(os.environ["RUNS"] + "/first", save_freq=1, delete_checkpoint=False)
slow = LambdaCallback(on_train_batch_end=lambda batch, logs: time.sleep(0.05))
model.fit(blob_loader(shuffle=True), 12, callbacks=[backup, slow], verbose=0)
model.save_weights(os.environ["RUNS"] + "/final.pt")
"""
# The fields of the objects in the reference of the API, https://kubernetes.io/docs/reference/kubernetes-api/, that a manifest
# for training may need. A list has the fields of its entries.
POD = {
    "subdomain": str, "restartPolicy": str, "terminationGracePeriodSeconds": int,
    "containers": {
        "name": str, "image": str, "command": list, "args": list, "env": {"name": str, "value": str},
        "resources": {"limits": dict, "requests": dict}, "volumeMounts": {"name": str, "mountPath": str},
    },
    "volumes": {"name": str, "emptyDir": {"medium": str}, "persistentVolumeClaim": {"claimName": str}},
}  # fmt: skip
FIELDS = {
    "Service": {
        "apiVersion": str, "kind": str, "metadata": {"name": str},
        "spec": {"clusterIP": str, "publishNotReadyAddresses": bool, "selector": dict},
    },
    "Job": {
        "apiVersion": str, "kind": str, "metadata": {"name": str},
        "spec": {
            "completionMode": str, "completions": int, "parallelism": int, "backoffLimit": int,
            "podFailurePolicy": {"rules": {"action": str, "onPodConditions": {"type": str, "status": str}}},
            "template": {"spec": POD},
        },
    },
}  # fmt: skip


def read_manifest():
    text = (ROOT / "docs/guides/clusters.md").read_text(encoding="utf-8")
    (manifest,) = re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S)
    return list(yaml.safe_load_all(manifest))


def find_faults(value, fields, path):
    """Return the fields that the API does not have, and values of another type."""
    if isinstance(fields, type):
        return [] if type(value) is fields else [f"{path}: expected {fields.__name__}, received {value!r}"]
    if isinstance(value, list):
        return [fault for i, entry in enumerate(value) for fault in find_faults(entry, fields, f"{path}[{i}]")]
    if not isinstance(value, dict):
        return [f"{path}: expected fields, received {value!r}"]
    unknown = [f"{path}.{name}: no such field" for name in value.keys() - fields.keys()]
    return unknown + [
        fault
        for name in value.keys() & fields.keys()
        for fault in find_faults(value[name], fields[name], f"{path}.{name}")
    ]


def test_manifest_has_fields_of_the_kubernetes_api():
    service, job = read_manifest()
    for part in (service, job):
        assert find_faults(part, FIELDS[part["kind"]], part["kind"]) == []
    assert (service["apiVersion"], job["apiVersion"]) == ("v1", "batch/v1")
    name, spec = job["metadata"]["name"], job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    # The controller gives this label to the pods of a job, and host names of the subdomain if a service has its name.
    assert service["spec"]["selector"] == {"job-name": name}
    assert service["spec"]["clusterIP"] == "None"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert NAME.fullmatch(name)
    # An index per pod, all at the same time. A failure policy requires pods that are not restarted in place.
    assert (spec["completionMode"], pod["restartPolicy"]) == ("Indexed", "Never")
    assert spec["completions"] == spec["parallelism"]
    assert spec["podFailurePolicy"]["rules"][0]["action"] in ("FailJob", "Ignore", "Count", "FailIndex")
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    options = dict(option.partition("=")[::2] for option in shlex.split(container["args"][0]))
    assert options["--nnodes"] == str(spec["completions"])
    assert options["--nproc-per-node"] == str(container["resources"]["limits"]["nvidia.com/gpu"])
    assert options["--rdzv-endpoint"].startswith(f"{name}-0.{pod['subdomain']}:")


def test_faults_of_a_manifest_are_found():
    assert find_faults({"kind": "Job", "spec": {"replicas": 2, "completions": "2"}}, FIELDS["Job"], "Job") == [
        "Job.spec.replicas: no such field",
        "Job.spec.completions: expected int, received '2'",
    ]


class Pods:
    """Two processes with the command of the manifest; the host name and the number of GPUs are those of this machine."""

    def __init__(self, folder: Path) -> None:
        (container,) = read_manifest()[1]["spec"]["template"]["spec"]["containers"]
        with socket.create_server(("127.0.0.1", 0)) as server:
            endpoint = f"127.0.0.1:{server.getsockname()[1]}"
        (script,) = container["args"]
        script = script.replace("train-0.train:29500", endpoint).replace("--nproc-per-node=8", "--nproc-per-node=1")
        assert endpoint in script
        self.command, self.folder = [*container["command"], script], folder
        (folder / "bin").mkdir()
        launcher = folder / "bin/torchrun"
        launcher.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m torch.distributed.run "$@"\n')
        launcher.chmod(0o755)
        (folder / "train.py").write_text(PROGRAM)
        self.environment = os.environ | {entry["name"]: entry["value"] for entry in container["env"]}
        self.environment |= {
            "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "RUNS": str(folder),
            "OMP_NUM_THREADS": "1", "PET_LOCAL_ADDR": "127.0.0.1",
        }  # fmt: skip
        self.processes = [self.start(index) for index in range(2)]
        self.restarts = 0

    def start(self, index: int) -> subprocess.Popen[bytes]:
        environment = self.environment | {"JOB_COMPLETION_INDEX": str(index)}
        with (self.folder / f"log{index}").open("ab") as log:
            return subprocess.Popen(
                self.command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def control(self) -> bool:
        """Start failed pods again, as the controller of a job does; return whether all have succeeded."""
        codes = [process.poll() for process in self.processes]
        for index, code in enumerate(codes):
            if code:
                self.restarts += 1
                self.processes[index] = self.start(index)
        return codes == [0, 0]

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def log(self) -> str:
        return "\n".join((self.folder / f"log{index}").read_text(errors="replace")[-3000:] for index in range(2))


def last_step(folder: Path) -> int:
    paths = rotation.list_checkpoints(folder / "first")
    return int(paths[0].stem.removeprefix("step-")) if paths else 0


def run_pods(folder: Path, evictions: dict[int, int]) -> int:
    """Run the job, send SIGTERM to the pod ``evictions[step]`` after each step, and return the number of restarted pods."""
    folder.mkdir()
    pods, deadline = Pods(folder), time.monotonic() + LIMIT
    try:
        waiting = dict(evictions)
        while not pods.control():
            assert time.monotonic() < deadline, f"not complete after {LIMIT} s\n{pods.log()}"
            assert pods.restarts <= 8, pods.log()
            if waiting and last_step(folder) >= min(waiting):
                pods.processes[waiting.pop(min(waiting))].terminate()
            time.sleep(0.1)
        assert not waiting
    finally:
        pods.close()
    return pods.restarts


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.skipif(os.name != "posix", reason="pods have a POSIX shell")
def test_pods_of_the_manifest_continue_exactly_after_evictions(tmp_path):
    """The second eviction is that of the pod that hosts the rendezvous."""
    assert run_pods(tmp_path / "uninterrupted", {}) == 0
    assert run_pods(tmp_path / "evicted", {8: 1, 20: 0}) >= 2
    expected, weights = (files.read(tmp_path / name / "final.pt") for name in ("uninterrupted", "evicted"))
    assert set(expected) == set(weights)
    assert all(torch.equal(weights[name], value) for name, value in expected.items())

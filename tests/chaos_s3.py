"""Kills of a training process whose checkpoints are on an S3 server: ``python -m tests.chaos_s3 --kills 50``.

As in ``tests.chaos``, each process is forked and runs one program from its first line. It knows of the others only the objects
of the run. A checkpoint of 130 kB is uploaded in parts of 20 kB.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import s3fs
import torch
from torch import nn

from easytorch import FileError, Model
from easytorch.callbacks import EMA, BackupAndRestore
from easytorch.checkpoint import files, object_store, rotation, store_client
from tests.loops import blob_loader
from tests.s3_server import BUCKET, environment, names, s3_server

EPOCHS = 2
# Requests before or after which a process kills itself.
POINTS = [
    f"{when} {request}"
    for request in (
        "create_multipart_upload",
        "upload_part",
        "complete_multipart_upload",
        "delete_object",
        "put_object",
    )
    for when in ("before", "after")
]


@dataclasses.dataclass
class Report:
    """The counts of ``run``."""

    kills: int = 0
    during_uploads: int = 0
    runs: int = 0
    damaged: int = 0
    unfinished_uploads: int = 0
    stray: int = 0
    equal: bool = True
    seconds: float = 0.0


def program(url: str | None) -> dict[str, torch.Tensor]:
    """Train with the run in the folder ``url``, and return the weights."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 100), nn.BatchNorm1d(100), nn.Dropout(0.2), nn.Linear(100, 100), nn.Linear(100, 3))
    model = Model(net, device="cpu").compile(lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9), "cross_entropy")
    backup = [] if url is None else [BackupAndRestore(url, save_freq=3, delete_checkpoint=False)]
    model.fit(blob_loader(shuffle=True), EPOCHS, callbacks=[EMA(0.9), *backup], verbose=0)
    return net.state_dict()


def fork(function: Callable[[], object]) -> int:
    """Call ``function`` in a forked process, and return the process id. This process makes no request itself."""
    process = os.fork()
    if process:
        return process
    try:
        function()
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def train(url: str, folder: Path, point: str | None) -> None:
    """Run the program, with a file ``uploading`` during each upload, and kill this process at ``point``."""
    object_store.PART_SIZE = 20_000  # the server accepts small parts
    marker, upload = folder / "uploading", object_store._upload

    def marked(*args: object) -> None:
        marker.touch()
        upload(*args)
        marker.unlink()

    object_store._upload = marked
    marker.unlink(missing_ok=True)
    if point is not None:
        kill_at(*point.split(), random.randrange(1, 3))
    files.write(folder / "final.pt", program(url))


def kill_at(when: str, request: str, number: int) -> None:
    """Kill this process before or after the request of this name and number."""
    call, remaining = s3fs.S3FileSystem._call_s3, [number]

    async def counted(self: object, method: str, *args: object, **kwargs: object) -> object:
        remaining[0] -= method == request
        is_due = method == request and remaining[0] == 0
        if is_due and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = await call(self, method, *args, **kwargs)
        if is_due:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    s3fs.S3FileSystem._call_s3 = counted


def inspect(name: str, result: Path) -> None:
    """Write what the bucket holds of a run: its objects, how many are damaged, and the uploads that are not complete."""
    damaged = 0
    for path in rotation.list_checkpoints(f"s3://{BUCKET}/{name}"):
        try:
            files.read_model(path)
        except FileError:
            damaged += 1
    client = store_client.client(f"s3://{BUCKET}")
    uploads = client.call_s3("list_multipart_uploads", Bucket=BUCKET, Prefix=f"{name}/").get("Uploads") or []
    result.write_text(json.dumps({"damaged": damaged, "names": names(name), "uploads": len(uploads)}))


def wait(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def run(kills: int, folder: Path, address: str, points: list[str] | None = None, seed: int = 0) -> Report:
    """Kill a process ``kills`` times, at random moments or at ``points``, in as many runs as needed.

    Raises:
        RuntimeError: If a process failed.
    """
    started_at, rng, report = time.monotonic(), random.Random(seed), Report()
    os.environ.update(environment(address))
    expected = program(None)  # it also loads what torch imports at first use
    length = time.monotonic()
    assert wait(fork(lambda: train(f"s3://{BUCKET}/measured", folder, None))) == 0
    length = time.monotonic() - length
    while report.kills < kills:
        report.runs += 1
        name, final = f"run-{report.runs}", folder / "final.pt"
        final.unlink(missing_ok=True)
        while not final.exists():
            point = None if points is None or report.kills >= kills else points[report.kills % len(points)]
            process = fork(lambda name=name, point=point: train(f"s3://{BUCKET}/{name}", folder, point))
            if points is None and report.kills < kills:
                deadline = time.monotonic() + rng.uniform(0, 0.5 * length)
                while time.monotonic() < deadline and not final.exists():
                    time.sleep(0.001)
                if not final.exists():
                    os.kill(process, signal.SIGKILL)
            status = wait(process)
            if status not in (0, -signal.SIGKILL):
                raise RuntimeError(f"a process failed with status {status}")
            report.kills += status != 0
            report.during_uploads += status != 0 and (folder / "uploading").exists()
            assert wait(fork(lambda name=name: inspect(name, folder / "found.json"))) == 0
            found = json.loads((folder / "found.json").read_text())
            report.damaged += found["damaged"]
            report.unfinished_uploads += found["uploads"]
        report.stray += len(found["names"]) != 2 or not all(map(rotation.is_checkpoint_name, found["names"]))
        report.stray += found["uploads"]
        if report.stray:
            print(found, file=sys.stderr)
        weights = files.read(final)
        report.equal &= all(torch.equal(weights[key], value) for key, value in expected.items())
        print(report, flush=True)
    report.seconds = time.monotonic() - started_at
    return report


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--kills", type=int, default=50)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--points", action="store_true", help="kill at chosen requests instead of random moments")
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder, s3_server() as address:
        report = run(args.kills, Path(folder), address, POINTS if args.points else None, args.seed)
    print(report)
    raise SystemExit(0 if report.equal and not report.damaged and not report.stray else 1)


if __name__ == "__main__":
    main()

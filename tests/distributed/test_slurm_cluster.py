"""A cluster of SLURM with two nodes on this machine: jobs that are requeued and preempted."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from easytorch.distributed import slurm
from tests.cluster_program import program
from tests.many import run_ranks

ROOT = Path(__file__).parents[2]
MISSING = [name for name in ("munged", "slurmctld", "slurmd", "sbatch", "srun") if shutil.which(name) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.distributed,
    pytest.mark.skipif(bool(MISSING), reason=f"needs SLURM (apt-get install slurm-wlm munge): no {', '.join(MISSING)}"),
    pytest.mark.skipif(
        getattr(os, "geteuid", lambda: 1)() != 0, reason="needs root, which starts the daemons of SLURM"
    ),
]

LIMIT = 240.0  # seconds for a job, whose processes import torch in each run

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
MailProg=/bin/true
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1
KillWait=5
NodeName=node[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}] CPUs=2
PartitionName=preemptible Nodes=ALL Default=YES PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""

BATCH = """#!/bin/bash
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
export MASTER_ADDR=127.0.0.1
srun {python} -m tests.cluster_program {folder} 0.4
"""


class Cluster:
    """The daemons of SLURM in a folder, and its commands."""

    def __init__(self, folder):
        self.folder = folder
        host = socket.gethostname().partition(".")[0]
        values = {"host": host, "user": getpass.getuser(), "folder": folder, "ports": free_ports(3)}
        (folder / "state").mkdir()
        (folder / "slurm.conf").write_text(CONFIGURATION.format(**values))
        (folder / "key").write_bytes(os.urandom(1024))
        (folder / "key").chmod(0o400)
        paths = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "SLURM_CONF": str(folder / "slurm.conf")}
        names = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "MASTER_"))}
        self.environment = names | paths

    def start(self):
        files = {"key-file": "key", "socket": "munge.sock", "pid-file": "munged.pid", "log-file": "munged.log"}
        files |= {"seed-file": "seed"}
        self.call("munged", "--force", *(f"--{name}={self.folder / file}" for name, file in files.items()))
        self.call("slurmctld", "-c")
        for node in ("node1", "node2"):
            self.call("slurmd", "-c", "-N", node)
        self.wait(lambda: "idle" in self.call("sinfo", "--noheader", "--format=%T"), 20)

    def call(self, *command):
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, env=self.environment, cwd=ROOT
        )
        assert result.returncode == 0, f"{command}: {result.stderr}"
        return result.stdout.strip()

    def submit(self, name, script, *options):
        (self.folder / f"{name}.sh").write_text(script)
        output = f"--output={self.folder / name}.out"
        return self.call("sbatch", "--parsable", output, *options, str(self.folder / f"{name}.sh"))

    def state(self, job):
        """Return the state of a job and the number of its restarts."""
        text = self.call("scontrol", "show", "job", job)
        fields = dict(field.split("=", 1) for field in text.split() if "=" in field)
        state, restarts = fields["JobState"], int(fields["Restarts"])
        if state == "PENDING" and fields["Reason"] == "BeginTime":
            # SLURM holds a requeued job back for two minutes.
            self.call("scontrol", "update", f"JobId={job}", "StartTime=now")
        return state, restarts

    def wait(self, condition, seconds=LIMIT):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.1)

    def logs(self):
        return "\n".join(path.read_text()[-3000:] for path in sorted(self.folder.glob("*.out")))

    def stop(self):
        with contextlib.suppress(Exception):  # the controller may not run
            self.call("scancel", "--signal=KILL", "--full", "--user", getpass.getuser())
            self.wait(lambda: not self.call("squeue", "--noheader", "--states=running,completing"), 15)
        for name in ("slurmd-node1", "slurmd-node2", "slurmctld", "munged"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
                pid = int((self.folder / f"{name}.pid").read_text())
                os.kill(pid, signal.SIGTERM)
                for _ in range(50):
                    os.kill(pid, 0)
                    time.sleep(0.1)
                os.kill(pid, signal.SIGKILL)


def free_ports(count):
    """Return consecutive free ports."""
    for first in range(21_000 + os.getpid() % 5000, 31_000, count):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return list(range(first, first + count))
    raise RuntimeError("no free ports")


@pytest.fixture(scope="module")
def cluster():
    # Short, since the paths of sockets are limited to 108 characters.
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    # munged refuses a folder that others may write to.
    folder.chmod(0o755)
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)


def train_only(folder):
    program(folder)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The weights of an undisturbed run of two processes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run_ranks(train_only, folder)
    return torch.load(folder / "final.pt")


def updates(folder):
    path = folder / "updates"
    return [int(line.split()[0]) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_requeued_and_preempted_job_continues_exactly(cluster, expected, tmp_path):
    job = cluster.submit("job", BATCH.format(python=sys.executable, folder=tmp_path), "--signal=USR1@60")
    cluster.wait(lambda: len(updates(tmp_path)) >= 2)
    # As before the time limit. A signal alone does not put a job back into the queue.
    cluster.call("scancel", "--signal=USR1", job)
    cluster.wait(lambda: cluster.state(job)[1] == 1)
    first = updates(tmp_path)
    cluster.wait(lambda: cluster.state(job) and len(updates(tmp_path)) > len(first))

    urgent = cluster.submit("urgent", "#!/bin/bash\ntrue\n", "--partition=urgent", "--nodes=2", "--exclusive")
    # SLURM requeues a job that still runs when its grace time is over; this one ends earlier.
    cluster.wait(lambda: cluster.state(job)[1] == 2)
    cluster.wait(lambda: cluster.state(job)[0] not in ("PENDING", "RUNNING", "COMPLETING"))

    output = cluster.logs()
    assert [cluster.state(name)[0] for name in (job, urgent)] == ["COMPLETED", "COMPLETED"], output
    # No update is missing, and none was made twice.
    assert updates(tmp_path) == list(range(1, 33))
    weights = torch.load(tmp_path / "final.pt")
    assert all(torch.equal(value, weights[name]) for name, value in expected.items())


def test_lists_of_nodes_are_expanded_as_by_scontrol(cluster):
    nodes = "node[01-03,07],gpu5,r[1-2]n[08-11]"
    assert slurm.expand_nodes(nodes) == cluster.call("scontrol", "show", "hostnames", nodes).split()

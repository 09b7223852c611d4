"""Programs in jobs of SLURM, with the variables that its ``srun`` sets; ``test_slurm_cluster`` has a real one."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import socket
import sys
import traceback

import pytest
import torch

from easytorch import Model, RankError
from easytorch.callbacks import LambdaCallback, SlurmRequeue
from easytorch.distributed import slurm
from easytorch.distributed.process_group import is_launched, launcher_variables, local_rank
from tests.cluster_program import program
from tests.loops import blobs, same_weights
from tests.many import run_ranks

X, Y = blobs(50)
# As srun of SLURM 22.05 sets them in the last of four tasks on two nodes.
TASK = {
    "SLURM_JOB_ID": "41",
    "SLURM_JOB_NODELIST": "node[1-3]",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NODELIST": "node[2-3]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "3,1",
    "SLURM_TASK_PID": "7",
}
BATCH = {"SLURM_JOB_ID": "41", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_TASK_PID": "7"}


@pytest.fixture(autouse=True)
def _outside_of_slurm(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM", "MASTER_")):
            monkeypatch.delenv(name)


@pytest.fixture
def in_job(monkeypatch):
    def set_variables(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


@contextlib.contextmanager
def terminal(monkeypatch):
    """Give this process a terminal as its input."""
    main, other = os.openpty()
    with os.fdopen(other) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        yield
    os.close(main)


# Variables


def test_a_task_has_the_variables_of_torchrun():
    assert slurm.launcher_variables(TASK) == {
        "RANK": "3",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "4",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "node2",
        "MASTER_PORT": str(15_000 + 41 + 202),
    }


def test_tasks_of_one_node_meet_at_its_own_address():
    variables = TASK | {"SLURM_NODEID": "0", "SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_STEP_NODELIST": "node2"}
    assert slurm.launcher_variables(variables)["MASTER_ADDR"] == "127.0.0.1"
    assert slurm.launcher_variables(variables)["LOCAL_WORLD_SIZE"] == "4"


def test_an_address_of_the_user_wins():
    variables = slurm.launcher_variables(TASK | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"})
    assert (variables["MASTER_ADDR"], variables["MASTER_PORT"]) == ("10.0.0.1", "29500")


def test_steps_and_restarts_of_a_job_have_their_own_names():
    restarted = TASK | {"SLURM_RESTART_COUNT": "1"}
    names = [slurm.step_name(variables) for variables in (TASK, TASK | {"SLURM_STEP_ID": "3"}, restarted, BATCH)]
    assert names == ["slurm-41.2-0", "slurm-41.3-0", "slurm-41.2-1", ""]
    ports = {slurm.launcher_variables(TASK | {"SLURM_STEP_ID": str(i)})["MASTER_PORT"] for i in range(50)}
    assert len(ports) == 50


def test_variables_of_torchrun_inside_srun_win(in_job):
    torchrun = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    in_job(TASK | torchrun)
    assert {name: launcher_variables()[name] for name in torchrun} == torchrun
    assert local_rank() == 1


def test_a_task_chooses_the_accelerator_of_its_node(in_job):
    in_job(TASK | {"SLURM_LOCALID": "2"})
    assert is_launched()
    assert local_rank() == 2


@pytest.mark.parametrize(
    "variables",
    [
        BATCH,
        BATCH | {"SLURM_STEP_ID": "4294967291", "SLURM_STEP_NUM_TASKS": "4"},
        TASK | {"SLURM_STEP_ID": "4294967290"},
        TASK | {"SLURM_STEP_NUM_TASKS": "1"},
        {name: value for name, value in TASK.items() if name != "SLURM_PROCID"},
        {},
    ],
    ids=["batch", "batch step", "interactive step", "one task", "allocation", "no job"],
)
def test_one_process_of_a_job_is_not_distributed(variables, in_job, recwarn):
    in_job(variables)
    assert not is_launched()
    assert slurm.launcher_variables(variables) == {}


def test_a_shell_in_the_first_task_is_not_distributed(in_job, monkeypatch):
    in_job(TASK)
    with terminal(monkeypatch):
        assert not is_launched()
        # "srun --pty python train.py" is a task itself.
        monkeypatch.setenv("SLURM_TASK_PID", str(os.getpid()))
        assert is_launched()


def test_an_interactive_interpreter_is_not_distributed(in_job, monkeypatch):
    in_job(TASK)
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    assert not is_launched()


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("node1", ["node1"]),
        ("node[01-03,07],gpu5", ["node01", "node02", "node03", "node07", "gpu5"]),
        ("a[1-2]b[9-10]-x,c", ["a1b9-x", "a1b10-x", "a2b9-x", "a2b10-x", "c"]),
        ("n[098-101]", ["n098", "n099", "n100", "n101"]),
        ("", []),
    ],
)
def test_lists_of_nodes_are_expanded(nodes, expected):
    assert slurm.expand_nodes(nodes) == expected


@pytest.mark.parametrize("nodes", ["node[1-", "node[]", "node[a-b]"])
def test_an_unreadable_list_of_nodes_names_the_fix(nodes):
    with pytest.raises(ValueError, match="Set MASTER_ADDR"):
        slurm.expand_nodes(nodes)


def test_a_program_without_srun_gets_a_warning(in_job):
    in_job(BATCH)
    with pytest.warns(UserWarning, match=r"has 4 tasks, but the program runs in one process.*'srun python train.py'"):
        Model(torch.nn.Linear(8, 3), device="cpu").compile("sgd", "cross_entropy")


def test_an_unknown_address_is_an_error():
    with pytest.raises(RankError, match=r"cannot find the address 'no-such-node\.invalid' of rank 0.*Set MASTER_ADDR"):
        slurm.check_address("no-such-node.invalid")


# Signals


def signal_at(number, update=2):
    return LambdaCallback(on_train_batch_end=lambda batch, logs: batch + 1 == update and os.kill(os.getpid(), number))


def fit(*callbacks, **options):
    torch.manual_seed(0)
    model = Model(torch.nn.Linear(8, 3), device="cpu").compile("sgd", "cross_entropy")
    model.fit(X, Y, epochs=2, batch_size=10, callbacks=list(callbacks), verbose=0, **options)
    return model


@pytest.mark.parametrize(("number", "status"), [(signal.SIGUSR1, 138), (signal.SIGUSR2, 140), (signal.SIGTERM, 143)])
def test_a_warning_of_a_job_saves_the_run(number, status, in_job, tmp_path, capsys):
    in_job({"SLURM_JOB_ID": "41"})
    with pytest.raises(SystemExit) as caught:
        fit(signal_at(number), resume=tmp_path)
    assert caught.value.code == status
    assert f"Stopped by {number.name} after update 2, in epoch 1 of 2. The run is saved" in capsys.readouterr().err
    assert signal.getsignal(number) == signal.SIG_DFL
    assert same_weights(fit(resume=tmp_path).module, fit().module)


def test_sigterm_after_a_warning_ends_the_same_way(in_job, scontrol, tmp_path):
    in_job({"SLURM_JOB_ID": "41"})
    both = LambdaCallback(
        on_train_batch_end=lambda batch, logs: [os.kill(os.getpid(), n) for n in (signal.SIGUSR1, signal.SIGTERM)]
    )
    requeue = SlurmRequeue()
    with pytest.raises(SystemExit) as caught:
        fit(both, requeue, resume=tmp_path / "run")
    # The job is canceled, or its time is over.
    assert caught.value.code == 143
    assert scontrol() == ["show job 41"]
    assert not requeue.requeued


def test_handlers_of_other_code_stay(in_job, tmp_path):
    in_job({"SLURM_JOB_ID": "41"})
    received = []
    previous = signal.signal(signal.SIGUSR2, lambda number, frame: received.append(number))
    with open(tmp_path / "stacks", "w") as file:
        faulthandler.register(signal.SIGUSR1, file=file)
        try:
            fit(signal_at(signal.SIGUSR1, 1), signal_at(signal.SIGUSR2, 2))
        finally:
            faulthandler.unregister(signal.SIGUSR1)
            signal.signal(signal.SIGUSR2, previous)
    assert received == [signal.SIGUSR2] * 2
    assert "most recent call first" in (tmp_path / "stacks").read_text()


def test_outside_of_a_job_sigusr1_is_left_alone():
    assert slurm.warning_signals(os.environ) == ()


# The queue


@pytest.fixture
def scontrol(monkeypatch, tmp_path):
    """A program that records how it is called, since there is no SLURM in this job."""
    folder = tmp_path / "bin"
    folder.mkdir()
    command, calls = folder / "scontrol", folder / "calls"
    command.write_text(f'#!/bin/sh\necho "$@" >> {calls}\necho "$ANSWER"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return lambda: calls.read_text().splitlines() if calls.exists() else []


def test_the_job_is_requeued_after_the_checkpoint(in_job, scontrol, tmp_path, capsys):
    in_job({"SLURM_JOB_ID": "41"})
    requeue = SlurmRequeue()
    with pytest.raises(SystemExit):
        fit(signal_at(signal.SIGUSR1), requeue, resume=tmp_path / "run")
    assert scontrol() == ["requeue 41"]
    assert requeue.requeued
    assert "SIGUSR1: the run is saved after update 2; requeueing job 41" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2], ids=lambda number: number.name)
def test_another_signal_does_not_requeue(number, in_job, scontrol, tmp_path):
    in_job({"SLURM_JOB_ID": "41"})
    with pytest.raises(SystemExit):
        fit(signal_at(number), SlurmRequeue(), resume=tmp_path / "run")
    assert "requeue 41" not in scontrol()
    with pytest.raises(SystemExit):
        fit(signal_at(number), SlurmRequeue(number.name), resume=tmp_path / "run2")
    assert "requeue 41" in scontrol()


@pytest.mark.parametrize(
    ("fields", "calls"),
    [
        ("JobState=RUNNING PreemptTime=2026-01-02T03:04:05", ["show job 41", "requeue 41"]),
        ("JobState=RUNNING PreemptTime=None", ["show job 41"]),
        ("JobState=COMPLETING PreemptTime=None", ["show job 41"]),
        ("JobState=PENDING PreemptTime=2026-01-02T03:04:05", ["show job 41"]),
    ],
    ids=["preempted", "running", "canceled", "requeued by SLURM"],
)
def test_sigterm_requeues_a_job_that_is_preempted(fields, calls, in_job, scontrol, tmp_path):
    in_job({"SLURM_JOB_ID": "41", "ANSWER": fields})
    with pytest.raises(SystemExit):
        fit(signal_at(signal.SIGTERM), SlurmRequeue(), resume=tmp_path / "run")
    assert scontrol() == calls


def test_one_task_of_an_array_is_requeued_alone(in_job, scontrol, tmp_path):
    in_job({"SLURM_JOB_ID": "41", "SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": "3"})
    with pytest.raises(SystemExit):
        fit(signal_at(signal.SIGUSR1), SlurmRequeue(), resume=tmp_path / "run")
    assert scontrol() == ["requeue 41_3"]


def test_a_refused_requeue_is_a_warning_with_the_fix(in_job, monkeypatch, tmp_path):
    in_job({"SLURM_JOB_ID": "41"})
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho 'Requested operation is presently disabled' >&2; exit 1\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    requeue = SlurmRequeue()
    with (
        pytest.raises(SystemExit),
        pytest.warns(UserWarning, match=r"Job 41 was not requeued:.*disabled.*#SBATCH --requeue"),
    ):
        fit(signal_at(signal.SIGUSR1), requeue, resume=tmp_path / "run")
    assert not requeue.requeued


def test_without_scontrol_the_run_is_saved(in_job, monkeypatch, tmp_path):
    in_job({"SLURM_JOB_ID": "41", "PATH": str(tmp_path)})
    with pytest.raises(SystemExit), pytest.warns(UserWarning, match=r"not requeued: .*No such file.*scontrol"):
        fit(signal_at(signal.SIGUSR1), SlurmRequeue(), resume=tmp_path / "run")
    assert same_weights(fit(resume=tmp_path / "run").module, fit().module)


def test_a_job_that_saves_nothing_is_not_requeued_for_ever():
    with pytest.raises(ValueError, match=r"SlurmRequeue needs a saved run.*resume='run/'"):
        fit(SlurmRequeue())


def test_an_unknown_signal_is_refused():
    assert SlurmRequeue("usr2").signal == "SIGUSR2"
    with pytest.raises(ValueError, match="one of 'SIGUSR1', 'SIGUSR2', 'SIGTERM', received 'HUP'"):
        SlurmRequeue("HUP")


def test_a_dry_run_requeues_nothing(in_job, scontrol, tmp_path):
    in_job({"SLURM_JOB_ID": "41"})
    fit(SlurmRequeue(), resume=tmp_path / "run", dry_run=True)
    assert scontrol() == []


# Several tasks


def run_tasks(function, *args, tasks=2, nodes=1, variables=None):
    """Run ``function`` in copies of this process with the variables of ``srun``; return their exit statuses.

    Nodes share this machine, so that the address of rank 0 is given, as some clusters need it.
    """
    context = multiprocessing.get_context("fork")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    count = tasks // nodes
    shared = {
        "SLURM_JOB_ID": "41",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_STEP_NODELIST": f"node[1-{nodes}]",
        "SLURM_STEP_TASKS_PER_NODE": f"{count}(x{nodes})",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        **(variables or {}),
    }
    processes = []
    for rank in range(tasks):
        own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank % count), "SLURM_NODEID": str(rank // count)}
        processes.append(context.Process(target=run_task, args=(function, args, shared | own)))
        processes[-1].start()
    try:
        for process in processes:
            process.join(60)
        return [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()


def run_task(function, args, variables):
    os.environ.update(variables)
    os.environ["SLURM_TASK_PID"] = str(os.getpid())
    status = 0
    try:
        function(*args)
    except SystemExit as error:
        status = error.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # Without the exit handlers of pytest.
    os._exit(status)


def in_folder(tmp_path, name):
    (tmp_path / name).mkdir()
    return tmp_path / name


@pytest.mark.slow
def test_srun_on_two_nodes_trains_as_torchrun_does(tmp_path):
    assert run_tasks(program, in_folder(tmp_path, "srun"), tasks=2, nodes=2) == [0, 0]
    run_ranks(train_only, in_folder(tmp_path, "torchrun"))
    weights = [torch.load(tmp_path / name / "final.pt") for name in ("srun", "torchrun")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert "1 of 2\n" in (tmp_path / "srun" / "updates").read_text()


def train_only(folder):
    program(folder)


@pytest.mark.slow
def test_a_requeued_job_continues_exactly(tmp_path, scontrol):
    folder = in_folder(tmp_path, "job")
    assert run_tasks(warned_program, folder) == [128 + signal.SIGUSR1] * 2
    assert scontrol() == ["requeue 41"]
    assert run_tasks(program, folder, variables={"SLURM_RESTART_COUNT": "1"}) == [0, 0]
    updates = [int(line.split()[0]) for line in (folder / "updates").read_text().splitlines()]
    assert updates == list(range(1, 33))
    run_ranks(train_only, in_folder(tmp_path, "undisturbed"))
    weights = [torch.load(tmp_path / name / "final.pt") for name in ("job", "undisturbed")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def warned_program(folder):
    """Get a signal in rank 1 only, in the middle of the second epoch."""
    rank, pid = os.environ["SLURM_PROCID"], os.getpid()
    program(folder, on_update=lambda step: rank == "1" and step == 6 and os.kill(pid, signal.SIGUSR1))


@pytest.mark.slow
def test_a_port_in_use_is_an_error_with_the_fix(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        variables = {"MASTER_PORT": str(server.getsockname()[1])}
        assert run_tasks(expect_port_error, tasks=2, variables=variables) == [0, 0]


def expect_port_error():
    if os.environ["SLURM_PROCID"] == "0":
        with pytest.raises(RankError, match=r"cannot listen on port .* Set MASTER_PORT to a free port"):
            Model(torch.nn.Linear(8, 3), device="cpu").compile("sgd", "cross_entropy")

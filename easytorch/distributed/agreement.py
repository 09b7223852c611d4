"""Agreement of all ranks about the call that they make next."""

from __future__ import annotations

import atexit
import datetime
import json
import os
import socket
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch.distributed as dist

from easytorch._utils import torch_private
from easytorch.errors import RankError

# Pauses between two looks at the store. The store has one server for all ranks, so a long wait looks less often.
FIRST_PAUSE, LONGEST_PAUSE = 0.0003, 0.2
# Seconds between two looks for a rank that has ended.
END_CHECK_SECONDS = 0.5
# Seconds that a rank with an error waits for the error of the others, before it closes its connections.
GRACE_SECONDS = 3.0
# Seconds in which the report of a rank that has closed its connections arrives.
REPORT_SECONDS = 2.0

DATA_ARGUMENTS = ("samples", "rows", "batches", "batch_size", "sampler", "validation")
SAME_CALLS = (
    "All ranks must make the same calls in the same order. Make each call on every rank, without 'if rank == 0': rank 0 prints "
    "and writes files, and all ranks get the results."
)
LOST_CONNECTION = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Failed to recv")
NO_ANSWER = ("Timed out waiting", "wait timeout", "Application timeout caused pair closure", "Socket Timeout")

Error = TypeVar("Error", bound=BaseException)


class Agreement:
    """Numbered records of what each rank does next, in the store of the process group.

    A collective in which one rank does not take part hangs, and one with another collective on the other side aborts the
    process. So each rank writes a record before it enters one. Rank 0 compares the records and writes a verdict, which all
    ranks read. A rank that fails or ends writes that too.

    Args:
        store: The store of the process group.
        rank: The rank of this process.
        world_size: The number of ranks.

    Attributes:
        stack: The names of the calls that this rank is in, the outermost first.
        files: Files that this rank has saved since the last verdict.
        closed: Why the connections were closed; None while they are open.
    """

    def __init__(self, store: Any, rank: int, world_size: int) -> None:
        self.store, self.rank, self.world_size = store, rank, world_size
        self.stack: list[str] = []
        self.files: list[str] = []
        self.closed: str | None = None
        self._number = 0
        self._replicas: weakref.WeakSet[Any] = weakref.WeakSet()

    # Calls

    def enter(self, name: str, arguments: Mapping[str, Any], timeout: float) -> None:
        """Wait until all ranks make the call ``name``.

        Args:
            name: The name of the method.
            arguments: Plain values that must be the same on all ranks.
            timeout: Seconds after which another rank that has not made a call is an error.

        Raises:
            RankError: On all ranks, if one makes another call, has other arguments, has failed or has ended.
        """
        self.stack.append(name)
        try:
            self._exchange({"does": f"called {self._place()}", "arguments": dict(arguments)}, timeout)
        except BaseException:
            self.stack.pop()
            raise

    def enter_collective(self, name: str, timeout: float) -> None:
        """Wait until all ranks are at the collective ``name`` of the current call; see ``enter``."""
        self._exchange({"does": f"continued with {self._place()}", "collective": name}, timeout)

    def _place(self) -> str:
        if not self.stack:
            return "the program"
        return f"{self.stack[-1]}()" + "".join(f" inside {name}()" for name in reversed(self.stack[:-1]))

    def _exchange(self, record: dict[str, Any], timeout: float) -> None:
        self.check_open()
        if self.store is None:
            return
        self._number += 1
        number = self._number
        self._write(number, {**record, "depth": len(self.stack), "files": self.files})
        try:
            verdict = self._find_verdict(number, time.monotonic() + timeout, timeout)
        except dist.DistNetworkError as error:
            raise RankError(self._close("Rank 0, or the launcher, has ended; see its error.")) from error
        self.files = []
        self.store.delete_key(f"record/{number}/{self.rank}")
        if verdict["closes"]:
            self._close(verdict["error"])
        if verdict["error"] is not None:
            raise as_reported(RankError(verdict["error"]))

    def _write(self, number: int, record: Mapping[str, Any]) -> None:
        self.store.set(f"record/{number}/{self.rank}", json.dumps(record))

    def _find_verdict(self, number: int, deadline: float, timeout: float) -> dict[str, Any]:
        """Return ``{"error": text or None, "closes": whether the ranks cannot continue}``."""
        if self.rank:
            message = self._wait([f"verdict/{number}"], deadline)
            if message is not None:
                return {"error": self._describe_missing(message, timeout), "closes": True}
            verdict: dict[str, Any] = json.loads(self.store.get(f"verdict/{number}"))
            return verdict
        keys = [f"record/{number}/{rank}" for rank in range(self.world_size)]
        message = self._wait(keys, deadline)
        if message is None:
            verdict = _compare([json.loads(value) for value in self.store.multi_get(keys)])
        else:
            verdict = {"error": self._describe_missing(message, timeout), "closes": True}
        self.store.set(f"verdict/{number}", json.dumps(verdict))
        # All ranks have read the previous verdict, since they have written this record.
        if message is None and number > 1:
            self.store.delete_key(f"verdict/{number - 1}")
        return verdict

    def _wait(self, keys: list[str], deadline: float) -> str | None:
        """Wait for ``keys``; return None when they are there, otherwise what is known of the missing rank."""
        pause, next_check = FIRST_PAUSE, time.monotonic() + END_CHECK_SECONDS
        while not self.store.check(keys):
            now = time.monotonic()
            if now >= next_check:
                if (end := self._read("ended")) is not None:
                    return None if self.store.check(keys) else end
                next_check = now + END_CHECK_SECONDS
            if now >= deadline:
                return ""
            time.sleep(pause)
            pause = min(1.5 * pause, LONGEST_PAUSE)
        return None

    def _describe_missing(self, message: str, timeout: float) -> str:
        if message:
            fix = SAME_CALLS if message.endswith("has ended.") else "See the error of that rank."
            return f"Rank {self.rank} called {self._place()}, but {message} {fix}"
        missing = [
            str(rank) for rank in range(self.world_size) if not self.store.check([f"record/{self._number}/{rank}"])
        ]
        return (
            f"Rank {self.rank} called {self._place()}, but rank {', '.join(missing) or '0'} made no call within {timeout:g} "
            f"seconds. {SAME_CALLS} If a rank needs more time before the call, pass a longer time: "
            "easytorch.DataParallel(timeout=3600)."
        )

    def _read(self, key: str) -> str | None:
        return self.store.get(key).decode() if self.store.check([key]) else None

    # Errors and ends

    def report(self, error: BaseException) -> BaseException:
        """Report ``error``, which leaves a call, to the other ranks; return it, or an error of another rank that caused it.

        If all ranks have an error, they may continue with another call. If some have none, they wait in a collective for this
        rank. The connections are closed then, so that the others stop waiting.
        """
        if self.store is None or self.closed is not None or _is_reported(error):
            return error
        explained = self._explain(error)
        if explained is not None:
            self._close(str(explained))
            return as_reported(explained)
        as_reported(error)
        self._number += 1
        text = _describe(error)
        try:
            self._write_failure(text)
            # Ctrl-C and sys.exit() end the process, so the others need not be freed.
            if isinstance(error, Exception) and not self._all_have_failed():
                self._close(f"Rank {self.rank} failed in {self._place()} and the others did not. {text}")
        except dist.DistNetworkError:  # the launcher has ended
            self._close(f"Rank {self.rank} failed in {self._place()}. {text}")
        return error

    def _write_failure(self, text: str) -> None:
        message = f"rank {self.rank} failed in {self._place()} with {text}"
        self.store.compare_set(f"failure/{self._number}", "", message)
        self._write(self._number, {"does": message, "failed": True, "depth": len(self.stack), "files": []})

    def _all_have_failed(self) -> bool:
        """Return whether all ranks leave a call, or wait for the next one, within ``GRACE_SECONDS``."""
        keys = [f"record/{self._number}/{rank}" for rank in range(self.world_size)]
        if (
            self._wait(keys if self.rank == 0 else [f"verdict/{self._number}"], time.monotonic() + GRACE_SECONDS)
            is not None
        ):
            return False
        if self.rank == 0:
            verdict = _compare([json.loads(value) for value in self.store.multi_get(keys)])
            self.store.set(f"verdict/{self._number}", json.dumps(verdict))
        else:
            verdict = json.loads(self.store.get(f"verdict/{self._number}"))
        return not verdict["closes"]

    def _explain(self, error: BaseException) -> RankError | None:
        """Return an error that names the rank whose end or error caused ``error``; None if it has another cause."""
        if not is_connection_error(error):
            return None
        deadline = time.monotonic() + REPORT_SECONDS
        message = None
        try:
            while message is None and time.monotonic() < deadline:
                message = self._read(f"failure/{self._number + 1}") or self._read("ended")
                time.sleep(0.02)
        except dist.DistNetworkError:
            message = "the launcher, or rank 0, has ended."
        if message is None:
            message = (
                "another rank has not answered in time."
                if any(text in str(error) for text in NO_ANSWER)
                else "the connection to another rank was lost."
            )
        return RankError(f"Rank {self.rank} stopped in {self._place()}, because {message} See the error of that rank.")

    def report_end(self, error: BaseException | None = None) -> None:
        """Report that this process ends; called at its exit, once."""
        # torch prints a long message about a store that has ended.
        if self.store is None or not _server_answers():
            return
        cause = "." if error is None else f" with {_describe(error)}"
        try:
            self.store.compare_set("ended", "", f"rank {self.rank} has ended{cause}")
        except RuntimeError:  # the store has ended before
            return

    # Connections

    def add_replica(self, replica: Any) -> None:
        """Remember a DDP wrapper, which holds the connections."""
        self._replicas.add(replica)

    def check_open(self) -> None:
        """Raise a ``RankError`` if the connections are closed."""
        if self.closed is not None:
            raise as_reported(RankError(f"The ranks are no longer connected. {self.closed} Start the program again."))

    def _close(self, reason: str) -> str:
        """Close the connections to the other ranks, so that those that wait for this one get an error; return ``reason``."""
        if self.closed is None:
            self.closed = reason
            for replica in list(self._replicas):
                torch_private.release_replica(replica)
            if dist.is_initialized():
                torch_private.abort_process_group()
        return reason


def _server_answers() -> bool:
    """Return whether the server of the store still runs; True if its address is unknown."""
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if address is None or port is None:
        return True
    try:
        socket.create_connection((address, int(port)), timeout=1.0).close()
    except OSError:
        return False
    return True


def is_connection_error(error: BaseException) -> bool:
    """Return whether ``error`` is one of the transport: another rank has ended, has failed or does not answer."""
    if isinstance(error, RankError) or not isinstance(error, RuntimeError):
        return False
    return any(text in str(error) for text in (*LOST_CONNECTION, *NO_ANSWER))


def _compare(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the verdict about the records of all ranks: an error that names two sides, or None."""
    failed = [record for record in records if record.get("failed")]
    # After an error outside of other calls all ranks are at the same place again.
    closes = any(record["depth"] > 1 for record in records)
    if failed:
        error = None if len(failed) == len(records) else f"{_capitalize(failed[0]['does'])} See the error of that rank."
        return {"error": error, "closes": False if error is None else closes}
    first = records[0]
    for rank, record in enumerate(records[1:], 1):
        if error := _compare_calls(first, record, rank) or _compare_files(first, record, rank):
            return {"error": error, "closes": closes}
    return {"error": None, "closes": False}


def _compare_calls(first: dict[str, Any], record: dict[str, Any], rank: int) -> str | None:
    if first["does"] != record["does"]:
        return f"Rank 0 {first['does']}, but rank {rank} {record['does']}. {SAME_CALLS}"
    if first.get("collective") != record.get("collective"):
        return (
            f"Rank 0 and rank {rank} {first['does']} at different places ({first['collective']}, {record['collective']}). Their "
            "data, callbacks or decisions differ: pass the same on all ranks."
        )
    ours, theirs = first.get("arguments", {}), record.get("arguments", {})
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if not names:
        return None
    # Without validation data it has no size, and another optimizer has other arguments.
    names = [name for name in names if name in ours and name in theirs] or names
    sides = [", ".join(f"{name}={_quote(values.get(name))}" for name in names) for values in (ours, theirs)]
    return f"Rank 0 {first['does']} with {sides[0]}, and rank {rank} with {sides[1]}. {_fix(names)}"


def _compare_files(first: dict[str, Any], record: dict[str, Any], rank: int) -> str | None:
    """Return the error for files that another rank has saved and rank 0, which writes files, has not."""
    missing = [path for path in record["files"] if path not in first["files"]]
    if not missing:
        return None
    return (
        f"Rank {rank} saved {missing[0]!r}, but rank 0, which writes files, did not, so there is no such file. Call save() on "
        "all ranks with the same name."
    )


def _quote(value: Any) -> str:
    return str(value) if not isinstance(value, str) else repr(value)


def _fix(names: list[str]) -> str:
    fixes = []
    if any(name.startswith(DATA_ARGUMENTS) for name in names):
        fixes.append(
            "All ranks must pass the same data, which is divided between them. If each rank has separate data, pass "
            "strategy=easytorch.DataParallel(split_data=False)."
        )
    if "callbacks" in names:
        fixes.append("Pass the same callbacks on all ranks; one with all_ranks = False runs on rank 0 only.")
    return " ".join(fixes) or "Pass the same on all ranks."


def _describe(error: BaseException) -> str:
    """Return class and message of ``error`` as a sentence."""
    text = f"{type(error).__name__}: {error}".rstrip(": \n")
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _capitalize(text: str) -> str:
    return text[:1].upper() + text[1:]


def _is_reported(error: BaseException | None) -> bool:
    """Return whether the ranks know of ``error``, or of the one that it explains."""
    while error is not None:
        if getattr(error, "_easytorch_reported", False):
            return True
        error = error.__cause__
    return False


def as_reported(error: Error) -> Error:
    """Return ``error``, marked as one that all ranks raise, so that none reports it."""
    vars(error)["_easytorch_reported"] = True
    return error


_current: Agreement | None = None


def current(make_store: Callable[[], Any], rank: int, world_size: int) -> Agreement:
    """Return the agreement of this process, made at the first call; its numbers continue while the process lives."""
    global _current  # torch has one default group in a process
    if _current is None or _current.world_size != world_size:
        store = make_store()
        if store is not None:
            clone = getattr(store, "clone", None)
            # A connection that waits for an answer blocks the other threads that use it.
            connection = clone() if clone is not None else store
            store = torch_private.stores.PrefixStore("easytorch/calls", connection)
            store.set_timeout(datetime.timedelta(seconds=60))
        _current = Agreement(store, rank, world_size)
        atexit.register(report_end)
    return _current


def check_open() -> None:
    """Raise a ``RankError`` if the connections to the other ranks were closed after an error."""
    if _current is not None:
        _current.check_open()


def report_end(error: BaseException | None = None) -> None:
    """Report to the other ranks that this process ends, by ``error`` or by an exception that nothing has caught."""
    if _current is not None:
        _current.report_end(error or getattr(sys, "last_value", None))

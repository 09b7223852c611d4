"""Lock of a run's folder in an object store.

A store does not notice that a process has died.
So the process that holds the lock writes its object again in short intervals, and an object that stays the same is free.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from easytorch._utils.paths import printable
from easytorch._utils.terminal import print_message
from easytorch._utils.warnings import warn
from easytorch.checkpoint import folder_lock, store_client
from easytorch.checkpoint.folder_lock import NAME, Lock
from easytorch.checkpoint.remote_path import RemotePath

# Seconds between two writes of the object by its owner.
RENEWAL = 15.0
# A lock that does not change for so many seconds is free. No clocks are compared.
EXPIRY = 60.0
# Message after so many seconds.
REPORT = 3.0


class Lease(Lock):
    """A lock that ends when its process no longer renews it.

    Two processes cannot both create the object, because the store refuses the second (``If-None-Match: *``).
    A lock of a dead process of this machine is free at once; that of another machine after ``EXPIRY`` seconds.

    Args:
        folder: The folder.
        key: The real path of the folder.
        is_active: Returns whether the run of this lock still trains.
    """

    def __init__(self, folder: RemotePath, key: str, is_active: Callable[[], bool]) -> None:
        super().__init__(folder, key, is_active)
        self.wait_seconds = EXPIRY + 5.0
        self.path = folder / NAME
        self._token, self._number = secrets.token_hex(8), 0
        self._written = b""
        self._seen: tuple[bytes, float] | None = None
        self._has_reported = False
        self._is_held = self._is_lost = False
        self._stopped, self._renewing = threading.Event(), threading.Lock()

    @property
    def is_held(self) -> bool:
        """Whether this process holds the lock."""
        return self._is_held and self._pid == os.getpid()

    @property
    def is_lost(self) -> bool:
        """Whether another run has taken the folder, because this process did not renew its lock in time."""
        return self._is_lost

    def _try_to_acquire(self) -> bool:
        current = self._read()
        if current is None:
            if not self._create():
                return False
            self._warn_if_unconditional()
            if self._read() != self._written:  # two created it at the same moment, in a store that permits it
                return False
        elif not self._is_free(current) or not self._replace(current):
            return False
        self._is_held = True
        threading.Thread(target=self._renew, name="easytorch-lease", daemon=True).start()
        return True

    def _is_free(self, current: bytes) -> bool:
        """Return whether the process that wrote ``current`` is dead; raise the error if it is alive."""
        now, content = time.monotonic(), _decode(current)
        is_alive = _is_alive(content.get("process"))
        if content.get("token") == self._token or is_alive is False:
            return True
        if self._seen is None:
            self._seen = current, now
        seconds = now - self._seen[1]
        # A process that was stopped may still write its last checkpoint.
        if self._seen[0] != current or (is_alive and seconds > folder_lock.WAIT_SECONDS):
            raise self._error(self._read_holder())
        if seconds > REPORT and not self._has_reported:
            self._has_reported = True
            print_message(
                f"The folder {self._key!r} may be in use: {self._read_holder()}. Waiting up to {EXPIRY:.0f} seconds until "
                "that run renews its lock, or the lock expires.",
                sys.stderr,
            )
        return seconds > EXPIRY

    def _pause(self) -> float:
        return 1.0 if self._has_reported else 0.25

    def _release(self) -> None:
        if not self.is_held:
            return
        self._is_held = False
        self._stopped.set()
        folder_lock._held.pop(self._key, None)
        with contextlib.suppress(OSError), self._renewing:  # after an error it expires
            if self._read() == self._written:
                self.path.unlink(missing_ok=True)

    def _renew(self) -> None:
        """Write the object in intervals, until the lock is released or lost."""
        while not self._stopped.wait(RENEWAL) and self._pid == os.getpid():
            with self._renewing, contextlib.suppress(OSError):  # the next attempt may succeed
                if not self._stopped.is_set() and not self._replace(self._written):
                    self._is_lost = True
                    return

    # Requests

    def _read(self) -> bytes | None:
        """Return the content of the object; None if it does not exist."""
        try:
            content: bytes = store_client.call("read", self.path.url, lambda client: client.cat_file(self.path.url))
        except store_client.MissingObjectError:
            return None
        return content

    def _create(self) -> bool:
        """Create the object, and return whether it did not exist."""
        content = self._encode()
        try:
            self._pipe(content, mode="create")
        except FileExistsError:
            return False  # if the answer to a first attempt was lost, the next one finds the token
        self._written = content
        return True

    def _replace(self, current: bytes) -> bool:
        """Replace the object, and return whether its content was ``current``."""
        condition: dict[str, str] = {}
        if store_client.protocol_of(self.path.url) == "s3":
            condition["IfMatch"] = self._etag()
        if self._read() != current:
            return False
        content = self._encode()
        try:
            self._pipe(content, **condition)
        except (FileExistsError, store_client.MissingObjectError):
            if self._read() != content:  # the answer to a first attempt was lost
                return False
        self._written = content
        return True

    def _etag(self) -> str:
        try:
            info = store_client.call("read", self.path.url, lambda client: client.info(self.path.url))
        except store_client.MissingObjectError:
            return "missing"
        return str(info["ETag"])

    def _pipe(self, content: bytes, **options: Any) -> None:
        store_client.call("lock", self.path.url, lambda client: client.pipe_file(self.path.url, content, **options))

    def _warn_if_unconditional(self) -> None:
        """Warn if the store creates an object that exists."""
        with contextlib.suppress(FileExistsError):
            self._pipe(self._written, mode="create")
            warn(
                f"Two runs that start at the same moment in {self._key!r} would not notice each other, because the store does "
                "not support conditional writes. Start one run at a time."
            )

    def _encode(self) -> bytes:
        self._number += 1
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        content = {"holder": holder, "process": _process(), "token": self._token, "number": self._number}
        return json.dumps(content).encode()

    def _read_holder(self) -> str:
        with contextlib.suppress(OSError):
            if isinstance(holder := _decode(self._read() or b"").get("holder"), str):
                return printable(holder)
        return "another process"


def _decode(content: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(decoded := json.loads(content[:2000]), dict):
            return decoded
    return {}


@functools.lru_cache(maxsize=1)
def _machine() -> list[str] | None:
    """Return what identifies this start of this machine and its numbers of processes; None if the system does not say."""
    try:
        return [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    except OSError:
        return None


def _process() -> list[Any] | None:
    """Return what identifies this process; None if the system does not say."""
    machine, started_at = _machine(), _start_time(os.getpid())
    return None if machine is None or started_at is None else [*machine, os.getpid(), started_at]


def _is_alive(process: Any) -> bool | None:
    """Return whether ``process`` exists, if it is one of this machine; None otherwise."""
    machine = _machine()
    if machine is None or not isinstance(process, list) or len(process) != 4 or process[:2] != machine:
        return None
    number, started_at = process[2:]
    return isinstance(number, int) and _start_time(number) == started_at


def _start_time(number: int) -> str | None:
    """Return when a process was started, in ticks since the start of the machine; None if it does not exist."""
    try:
        status = Path(f"/proc/{number}/stat").read_text()
    except OSError:
        return None
    fields = status.rpartition(")")[2].split()  # the name of the program may contain spaces and brackets
    return None if fields[0] in "ZX" else fields[19]

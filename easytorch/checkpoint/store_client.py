"""Requests to object stores through fsspec, with bounded retries and errors that name the fix."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

Result = TypeVar("Result")

# The stores whose uploads are atomic: the module that reads them, and the command that installs it.
PACKAGES = {
    "s3": ("s3fs", 'pip install "easytorch-fit[s3]"'),
    "s3a": ("s3fs", 'pip install "easytorch-fit[s3]"'),
    "gs": ("gcsfs", "pip install gcsfs"),
    "gcs": ("gcsfs", "pip install gcsfs"),
    "memory": ("fsspec", "pip install fsspec"),
}
# Each request is tried so often, with these pauses, after the retries of the client itself.
PAUSES = (1.0,)
# The clients of a store retry by themselves, which takes minutes with their defaults if the store does not answer.
CLIENT_RETRIES = 2
# The beginnings of environment variables that a client reads when it is created.
VARIABLES = ("AWS_", "FSSPEC_", "GOOGLE_", "GCLOUD_", "GCSFS_", "STORAGE_EMULATOR_")
CREDENTIALS = ("NoCredentials", "PartialCredentials", "DefaultCredentials", "TokenRetrieval", "Unauthorized", "SSO")
UNREACHABLE = (
    "EndpointConnection",
    "ConnectTimeout",
    "ReadTimeout",
    "ConnectionClosed",
    "ClientConnector",
    "ProxyConn",
)
FIX_CREDENTIALS = {
    "s3": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.",
    "gs": "Set GOOGLE_APPLICATION_CREDENTIALS, or run: gcloud auth application-default login.",
}
FIX_ADDRESS = {"s3": "Check the network, AWS_ENDPOINT_URL and AWS_DEFAULT_REGION."}
# The codes of S3 and of HTTP for a condition that does not hold.
CONFLICTS = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")

_lock = threading.Lock()
_clients: dict[Any, Any] = {}


def protocol_of(url: str) -> str:
    """Return ``"s3"`` for ``"s3://bucket/run"``; of several names of one store the short one."""
    return {"s3a": "s3", "gcs": "gs"}.get(protocol := url.split("://", 1)[0], protocol)


def check_installed(protocol: str) -> None:
    """Raise an ``ImportError`` if the package of a store is missing, with the command that installs it."""
    module, command = PACKAGES[protocol]
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{protocol}:// needs {module}: {command}") from error


def call(verb: str, url: str, request: Callable[[Any], Result]) -> Result:
    """Return what ``request`` returns for the client of ``url``; repeat it after errors that may be temporary.

    Args:
        verb: What the request does, for the message: ``"read"``.
        url: The object or the folder.
        request: Gets the file system of fsspec.

    Raises:
        OSError: If the request fails, with the URL, the reason and the fix. A missing object is a ``MissingObjectError``.
    """
    for pause in (*PAUSES, None):
        with _errors(verb, url):
            try:
                return request(client(url))
            except Exception as error:
                if isinstance(error, FileNotFoundError) or is_conflict(error):
                    raise
                forget(url)
                if pause is None or not _is_temporary(error):
                    raise
                time.sleep(pause)
    raise AssertionError  # the last attempt returns or raises


def client(url: str) -> Any:
    """Return the file system of fsspec for ``url``, without its caches."""
    check_installed(url.split("://", 1)[0])
    import fsspec

    protocol = protocol_of(url)
    key = (os.getpid(), protocol, _settings())
    with _lock:
        if key not in _clients:
            options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
            if protocol == "s3":
                configured = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
                retries = {"total_max_attempts": CLIENT_RETRIES, "mode": "standard"}
                options["config_kwargs"] = {"retries": retries, **configured}
            _clients[key] = fsspec.filesystem(protocol, **options)
            if protocol == "s3":
                _clients[key].retries = CLIENT_RETRIES
        return _clients[key]


def forget(url: str) -> None:
    """Create a new client for the next request, which reads the credentials again."""
    with _lock:
        _clients.pop((os.getpid(), protocol_of(url), _settings()), None)


def is_conflict(error: Exception) -> bool:
    """Return whether a write was refused because its condition does not hold."""
    return isinstance(error, FileExistsError) or not _codes(error).isdisjoint(CONFLICTS)


def _settings() -> Any:
    """Return what a client depends on: environment variables and the configuration of fsspec."""
    import fsspec

    variables = sorted(item for item in os.environ.items() if item[0].startswith(VARIABLES))
    return tuple(variables), repr(fsspec.config.conf)


@contextlib.contextmanager
def _errors(verb: str, url: str) -> Iterator[None]:
    """Turn the errors of all clients into an ``OSError`` that names the URL, the reason and the fix."""
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        raise _to_os_error(verb, url, error) from error


def _to_os_error(verb: str, url: str, error: Exception) -> OSError:
    protocol, reason, names = protocol_of(url), _reason(error), _type_names(error)
    bucket = url.split("://", 1)[1].split("/")[0]
    start = f"Cannot {verb} {url!r}: "
    if is_conflict(error):
        return FileExistsError(errno.EEXIST, f"{start}it exists. Pass another name.")
    if isinstance(error, FileNotFoundError):
        if "NoSuchBucket" in _codes(error) or "bucket does not exist" in reason.lower():
            fix = "Create it, or correct its name."
            return FileNotFoundError(errno.ENOENT, f"{start}the bucket {bucket!r} does not exist. {fix}")
        return MissingObjectError(errno.ENOENT, f"{start}it does not exist. Pass another name.")
    if any(name.startswith(CREDENTIALS) for name in names):
        fix = FIX_CREDENTIALS.get(protocol, "Set the credentials of the store.")
        return PermissionError(errno.EACCES, f"{start}{reason}. {fix}")
    if isinstance(error, PermissionError):
        fix = FIX_CREDENTIALS.get(protocol, "")
        return PermissionError(
            errno.EACCES,
            f"{start}{reason}. The credentials must permit to list, read, write and delete objects there. {fix}".rstrip(),
        )
    if any(name.startswith(UNREACHABLE) for name in names) or isinstance(error, (ConnectionError, TimeoutError)):
        fix = FIX_ADDRESS.get(protocol, "Check the network.")
        return ConnectionError(errno.ECONNABORTED, f"{start}the store does not answer: {reason}. {fix}")
    code = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
    return OSError(code, f"{start}{reason}. Check the name and the settings of the store.")


class MissingObjectError(FileNotFoundError):
    """An object does not exist. That of a bucket is another error."""


def _codes(error: BaseException | None) -> set[str]:
    """Return the codes that a store has sent with ``error`` or with its causes."""
    codes = set()
    while error is not None:
        response = getattr(error, "response", None)  # botocore
        if isinstance(response, dict):
            codes.add(str(response.get("Error", {}).get("Code")))
        codes.add(str(getattr(error, "code", "")))  # gcsfs
        error = error.__cause__ or error.__context__
    return codes


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split()).rstrip(".")[:300]


def _type_names(error: BaseException) -> list[str]:
    return [base.__name__ for base in type(error).__mro__]


def _is_temporary(error: Exception) -> bool:
    if isinstance(error, (PermissionError, ImportError)):
        return False
    return not any(name.startswith(CREDENTIALS) or name == "ParamValidationError" for name in _type_names(error))

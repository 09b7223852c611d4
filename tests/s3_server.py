"""An S3 server for tests: ``python -m tests.s3_server`` prints its port, and ends with its standard input."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

from easytorch.checkpoint import store_client

BUCKET = "bucket"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Start the server of moto, with a bucket, in another process, and yield its address. It ends with this process."""
    command = [sys.executable, "-m", "tests.s3_server"]
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        port = server.stdout.readline().strip()
        assert port, "the S3 server did not start"
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stdin.close()
        server.stdout.close()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def environment(address: str) -> dict[str, str]:
    """Return the environment variables of a user of the server at ``address``."""
    return {**CREDENTIALS, "AWS_ENDPOINT_URL": address, "AWS_EC2_METADATA_DISABLED": "true"}


def names(folder: str) -> list[str]:
    """Return the names of the objects in a folder of the server."""
    url = f"s3://{BUCKET}/{folder}"
    prefix = f"{BUCKET}/{folder}/"
    return sorted(name.removeprefix(prefix) for name in store_client.client(url).find(url))


def main() -> None:
    os.environ["S3_UPLOAD_PART_MIN_SIZE"] = "1000"  # so that small files have several parts
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    urllib.request.urlopen(
        urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT"), timeout=60
    ).close()
    print(port, flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()

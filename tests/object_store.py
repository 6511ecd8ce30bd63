"""An S3 server for tests."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx

S3_USER = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "tests",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""Credentials for the server, as environment variables; it takes any."""


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """URL of moto's S3 server, a process of its own, with an empty bucket `lab`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for(process, port)
            httpx.put(f"{url}/lab").raise_for_status()
            yield url
        finally:
            process.kill()


def _wait_for(process: "subprocess.Popen[bytes]", port: int) -> None:
    while True:
        assert process.poll() is None, "moto's server ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)

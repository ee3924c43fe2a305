"""An S3 server on loopback, which fails as object stores do."""

from __future__ import annotations

import logging
import os
import socket
import threading
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psutil
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# What a client finds in its environment. Without keys it would ask the address of its instance.
KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}
UNAVAILABLE, DROPPED, CUT_SHORT, LOST_ANSWER = "unavailable", "dropped", "cut short", "lost answer"
KILLED = "killed"  # the client, by SIGKILL


@dataclass
class ObjectStore:
    """Running server; `fault` chooses what happens to a request."""

    endpoint: str
    # Called with method and path.
    fault: Callable[[str, str], str | None] = lambda _method, _path: None
    requests: list[tuple[str, str]] = field(default_factory=list)

    def create_bucket(self) -> str:
        """Return the URL of a new bucket."""
        import boto3

        name = f"bucket-{uuid.uuid4().hex}"
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=KEYS["AWS_REGION"],
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )
        client.create_bucket(Bucket=name)
        return f"s3://{name}"

    @property
    def environment(self) -> dict[str, str]:
        """Environment of clients."""
        return KEYS | {"AWS_ENDPOINT": self.endpoint}


@contextmanager
def serve_s3() -> Iterator[ObjectStore]:
    """Serve S3 in a thread."""
    # Buckets are at a random address, not at one of Amazon.
    app = DomainDispatcherApplication(create_backend_app)
    store = ObjectStore("")

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        store.requests.append((method, path))
        fault = store.fault(method, path)
        if fault == UNAVAILABLE:
            start("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        if fault == KILLED:
            _kill(environ)
        if fault in {DROPPED, KILLED}:
            _drop(environ)
            return [b""]
        body = b"".join(app(environ, start))
        if fault == LOST_ANSWER:
            _drop(environ)
            return [b""]
        if fault == CUT_SHORT:
            # werkzeug sends the status and headers with the first part of the body.
            return _cut_short(environ, body)
        return [body]

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, answer, threaded=True)
    store.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _kill(environ: dict[str, Any]) -> None:
    """Kill the process at the other end of the connection."""
    port = int(environ["REMOTE_PORT"])
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if any(found.laddr.port == port for found in process.net_connections("tcp4")):
                process.kill()


def _drop(environ: dict[str, Any]) -> None:
    """Close the connection without an answer."""
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)


def _cut_short(environ: dict[str, Any], body: bytes) -> Iterator[bytes]:
    yield body[: len(body) // 2]
    _drop(environ)


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set variables of the environment within a context."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)

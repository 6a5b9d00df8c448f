"""A real S3 server on loopback, which fails when it is told to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from moto.backends import get_backend
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from vcrd_ray.runs.storage import Store

_BUCKET = "bucket"


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


@dataclass
class Bucket:
    """One bucket of the server."""

    port: int
    fails: Callable[[str, str], bool] = lambda method, path: False
    """Which requests, by method and path, are answered 503."""
    asked: list[tuple[str, str]] = field(default_factory=list)

    def uri(self, name: str) -> str:
        """What a configuration calls a folder in it."""
        return f"s3://{_BUCKET}/{name}?endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"

    def store(self, name: str, *, attempts: int = 3) -> Store:
        """A folder in it."""
        return Store(self.uri(name), attempts)


@contextmanager
def bucket_server() -> Iterator[Bucket]:
    """Serve an empty bucket for the time of the block."""
    # What an earlier server of this process was given goes with it.
    get_backend("s3").reset()
    application = DomainDispatcherApplication(create_backend_app)

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        bucket.asked.append((method, path))
        if bucket.fails(method, path):
            start("503 Slow Down", [("Content-Type", "application/xml")])
            return [b"<Error><Code>SlowDown</Code><Message>by the test</Message></Error>"]
        response: Iterable[bytes] = application(environ, start)
        return response

    server = make_server("127.0.0.1", 0, answer, threaded=True, request_handler=_Quiet)
    bucket = Bucket(server.server_port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        import boto3

        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{bucket.port}", region_name="us-east-1")
        client.create_bucket(Bucket=_BUCKET)
        yield bucket
    finally:
        server.shutdown()
        thread.join()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    # Nobody asks the addresses where a cloud's machines find their role.
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with bucket_server() as served:
        yield served

"""A chat endpoint on loopback that answers as a test says, and notes what it was asked."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Said:
    """What the server sends back."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    hang: bool = False
    """Send nothing at all until the server ends."""
    trickle: bool = False
    """Send a body without end, a byte at a time."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request."""

    body: dict[str, Any]
    path: str
    authorization: str | None

    @property
    def text(self) -> str:
        """All messages."""
        return "\n".join(message["content"] for message in self.body["messages"])


Respond = Callable[[Asked, int], Said]
"""From the request and how many of the same text came before it."""


def completion(text: str, *, finish_reason: str = "stop", tokens: tuple[int, int] | None = (100, 10)) -> Said:
    """A well-formed answer."""
    answer: dict[str, Any] = {
        "model": "served-model",
        "choices": [{"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text}}],
    }
    if tokens is not None:
        answer["usage"] = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    return Said(body=json.dumps(answer).encode())


class ChatServer:
    """What a test holds of a running server."""

    def __init__(self, respond: Respond, certificate: ssl.SSLContext | None = None) -> None:
        self.respond = respond
        self.asked: list[Asked] = []
        self.most_at_once = 0
        self._now = 0
        self._turn = threading.Lock()
        self.ended = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        if certificate is not None:
            # The handshake belongs to the connection's own thread.
            self._http.socket = certificate.wrap_socket(
                self._http.socket, server_side=True, do_handshake_on_connect=False
            )
        scheme = "http" if certificate is None else "https"
        self.base_url = f"{scheme}://127.0.0.1:{self._http.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.ended.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _say(self, asked: Asked) -> Said:
        with self._turn:
            before = sum(one.text == asked.text for one in self.asked)
            self.asked.append(asked)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            said = self.respond(asked, before)
            if said.hang:
                self.ended.wait(60)
            return said
        finally:
            with self._turn:
                self._now -= 1

    def _handler(server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                said = server._say(Asked(body=body, path=self.path, authorization=self.headers["Authorization"]))
                if said.hang:
                    self.close_connection = True
                    return
                self.send_response(said.status)
                for name, value in said.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(1 << 30 if said.trickle else len(said.body)))
                self.end_headers()
                self.wfile.write(said.body)
                with suppress(ConnectionError):
                    while said.trickle and not server.ended.wait(0.02):
                        self.wfile.write(b" ")

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


@contextmanager
def chat_server(respond: Respond, *, certificate: ssl.SSLContext | None = None) -> Iterator[ChatServer]:
    """A server that ends with the block."""
    server = ChatServer(respond, certificate)
    try:
        yield server
    finally:
        server.stop()

"""A chat-completions endpoint on loopback that misbehaves as told."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any


@dataclasses.dataclass
class Act:
    """What the server does with one request.

    Attributes:
        content: What the model says, in a right completion; else `body` is sent as it is.
        message: More fields of its message, in place of those.
        cut: Announce the whole answer, send half of it and close.
        hold: Event to wait for before answering.
    """

    content: str = ""
    status: int = 200
    body: str | None = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    cut: bool = False
    hold: threading.Event | None = None
    finish: str = "stop"
    message: dict[str, Any] = dataclasses.field(default_factory=dict)
    refusal: str | None = None
    usage: dict[str, int] | None = dataclasses.field(
        default_factory=lambda: {"prompt_tokens": 100, "completion_tokens": 50}
    )

    def payload(self) -> bytes:
        if self.body is not None:
            return self.body.encode()
        message: dict[str, Any] = {
            "role": "assistant",
            "content": self.content,
            "refusal": self.refusal,
        }
        message |= self.message
        whole = {
            "id": "x",
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "finish_reason": self.finish}],
        }
        return json.dumps(whole | ({"usage": self.usage} if self.usage else {})).encode()


@dataclasses.dataclass
class Endpoint:
    """A running server.

    Attributes:
        url: For --base-url.
        requests: Headers and body of every request, in the order they came.
    """

    url: str
    requests: list[tuple[dict[str, str], dict[str, Any]]]


@contextlib.contextmanager
def serving(script: Callable[[int, dict[str, Any]], Act]) -> Iterator[Endpoint]:
    """Serve; `script` is given the number of the request (from 0) and its body."""
    requests: list[tuple[dict[str, str], dict[str, Any]]] = []
    lock = threading.Lock()
    closing = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(requests)
                requests.append((dict(self.headers), body | {"path": self.path}))
            act = script(number, body)
            if act.hold is not None:
                while not (act.hold.wait(0.02) or closing.is_set()):
                    pass
            data = act.payload()
            with contextlib.suppress(ConnectionError):
                self.send_response(act.status)
                self.send_header("Content-Length", str(len(data)))
                for name, value in ({"Content-Type": "application/json"} | act.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if act.cut else data)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield Endpoint(f"http://127.0.0.1:{server.server_port}/v1", requests)
    finally:
        closing.set()
        server.shutdown()
        thread.join()
        server.server_close()

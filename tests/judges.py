"""A judge that speaks OpenAI's chat completions on this machine, as good or as bad as a test wants it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = str | bytes | tuple[int, dict[str, str], bytes]
"""A judge's text; the bytes of a body; or status, headers and body."""


def completion(text: Any, finish: str = "stop") -> bytes:
    message = {"role": "assistant", "content": text}
    return json.dumps({"choices": [{"message": message, "finish_reason": finish}]}).encode()


@dataclass
class Server:
    """Answers by `reply`, which gets the text of the request and how often that text was asked for before."""

    reply: Callable[[str, int], Reply]
    endpoint: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)
    """Set when the test is over: whoever hangs until then may go."""

    def texts(self) -> list[str]:
        return [request["messages"][0]["content"] for request in self.asked]

    def answer(self, request: dict[str, Any], headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        text = request["messages"][0]["content"]
        with self.lock:
            before = self.texts().count(text)
            self.asked.append(request)
            self.headers.append(headers)
        found = self.reply(text, before)
        if isinstance(found, tuple):
            return found
        return 200, {}, found if isinstance(found, bytes) else completion(found)


@contextmanager
def serving(reply: Callable[[str, int], Reply]) -> Iterator[Server]:
    """A server in threads of its own, which is gone behind the block."""
    server = Server(reply)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, headers, body = server.answer({**request, "path": self.path}, dict(self.headers))
            try:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                pass  # whoever asked did not wait for it

        def log_message(self, *_: object) -> None: ...

    class Http(ThreadingHTTPServer):
        daemon_threads = True

    with Http(("127.0.0.1", 0), Handler) as http:
        server.endpoint = f"http://127.0.0.1:{http.server_address[1]}/v1"
        thread = threading.Thread(target=http.serve_forever, args=[0.01], daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            http.shutdown()
            thread.join()

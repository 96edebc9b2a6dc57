"""A server of the chat-completions protocol on the loopback, which misbehaves on demand."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[list[dict[str, str]]], str]  # from the messages to what the model says


class QuietServer(ThreadingHTTPServer):
    """A client that has hung up is no news for stderr, where the command under test may write."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class ChatServer:
    """faults: what the next requests get instead of a reply, in order, one each:
    ("status", code, headers, body), ("body", bytes), ("hang", seconds), ("drop",)."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.faults: list[tuple[Any, ...]] = []
        self.asked: list[dict[str, Any]] = []  # bodies of the requests that were answered
        self.attempts = 0
        self.keys: set[str] = set()
        self.open = self.most_open = 0
        self.pause = 0.0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                self.send(200, b'{"object": "list", "data": []}')

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.attempts += 1
                    outer.open += 1
                    outer.most_open = max(outer.most_open, outer.open)
                    outer.keys.add(self.headers["Authorization"])
                    fault = outer.faults.pop(0) if outer.faults else None
                try:
                    time.sleep(outer.pause)
                    self.answer(body, fault)
                finally:
                    with outer.lock:
                        outer.open -= 1

            def answer(self, body: dict[str, Any], fault: tuple[Any, ...] | None) -> None:
                match fault:
                    case ("status", code, headers, text):
                        self.send(code, text, headers)
                    case ("body", text):
                        self.send(200, text)
                    case ("hang", seconds):
                        time.sleep(seconds)
                        self.close_connection = True
                    case ("drop",):
                        self.close_connection = True
                    case _:
                        said = outer.reply(body["messages"])
                        with outer.lock:
                            outer.asked.append(body)
                        self.send(200, completion(said))

            def send(self, code: int, body: bytes, headers: Any = ()) -> None:
                self.send_response(code)
                for name, value in dict(headers).items():
                    self.send_header(name, value)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.http = QuietServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.block_on_close = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/v1"


def completion(text: str) -> bytes:
    message = {"role": "assistant", "content": text}
    return json.dumps(
        {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "judge",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }
    ).encode()


@contextmanager
def serving(reply: Reply) -> Iterator[ChatServer]:
    server = ChatServer(reply)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()

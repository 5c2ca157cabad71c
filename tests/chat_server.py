"""A small chat server on a local port: OpenAI's chat completions, as far as a client asks for an answer.

It speaks HTTP over a real socket. The answer is a function of the two texts. Attributes make it hold an answer back
until something has happened, answer with a status or with bytes that are not JSON, or drop connections after some
request, like a server that dies. It never waits for a time: tests must not depend on which side is faster.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[str, str], str]
"""Function from the system's and the user's text to the answer."""


class ChatServer:
    """Context manager that runs the server inside its block."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[dict[str, Any]] = []
        """Every request that was answered."""
        self.keys: list[str | None] = []
        self.hold: Callable[[int, str], Any] = lambda number, user: None
        """Hook called before a request is answered, with its number from 0 and the user's text; it may wait."""
        self.status, self.message = 200, ""
        self.body: bytes | None = None
        """Body to send instead of a completion."""
        self.content_type = "application/json"
        self.write: Callable[[Any], Any] | None = None
        """Writes the response instead of a completion, status line and headers included."""
        self.dies_after: int | None = None
        """Number of requests to answer before dropping every later connection; None: the server is up (again)."""
        self.most_at_once = 0
        self._at_once, self._came = 0, threading.Condition()
        handler = type("Handler", (_Handler,), {"chat": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.port = self._server.server_port
        self.base_url = f"http://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> ChatServer:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def users(self) -> list[str]:
        """Return the user's text of each request."""
        return [request["messages"][-1]["content"] for request in self.asked]

    def wait_for(self, count: int) -> None:
        """Wait until so many requests came."""
        with self._came:
            self._came.wait_for(lambda: len(self.asked) >= count)

    def admit(self, request: dict[str, Any], key: str | None) -> int | None:
        """Return the number of a request to answer, or None if the server has died."""
        with self._came:
            if self.dies_after is not None and len(self.asked) >= self.dies_after:
                return None
            self.asked.append(request)
            self.keys.append(key)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            self._came.notify_all()
            return len(self.asked) - 1

    def done(self) -> None:
        with self._came:
            self._at_once -= 1


class _Handler(BaseHTTPRequestHandler):
    chat: ChatServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        number = self.chat.admit(request, self.headers.get("Authorization"))
        if number is None:
            self.close_connection = True
            return
        try:
            self.chat.hold(number, request["messages"][-1]["content"])
            self._answer(request)
        except ConnectionError:
            pass  # the client has stopped waiting
        finally:
            self.chat.done()

    def _answer(self, request: dict[str, Any]) -> None:
        if self.chat.write is not None:
            self.close_connection = True
            self.chat.write(self.wfile)
        elif self.path != "/v1/chat/completions":
            self._send(404, {"error": {"message": "no such endpoint"}})
        elif self.chat.status != 200:
            self._send(self.chat.status, {"error": {"message": self.chat.message}})
        elif self.chat.body is not None:
            self._send(200, self.chat.body)
        else:
            texts = {message["role"]: message["content"] for message in request["messages"]}
            text = self.chat.answer(texts.get("system", ""), texts["user"])
            read, written = len(" ".join(texts.values()).split()), len(text.split())
            usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
            message = {"role": "assistant", "content": text}
            self._send(
                200,
                {
                    "id": "chatcmpl-1",
                    "object": "chat.completion",
                    "created": 0,
                    "model": request["model"],
                    "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                    "usage": usage,
                },
            )

    def _send(self, status: int, content: Any) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", self.chat.content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def planted(system: str, user: str) -> str:
    """Answer by a rule about one word: the last word of the question's description, or the word most often marked.

    A request for an explanation gets "mentions of WORD". One for numbers gets 10 for each line with WORD and 0 for the
    others. One for a list gets 1 for each prompt with WORD, within the marks if there are any.
    """
    found = re.search(r"^Description: .*?(\S+)$", user, re.MULTILINE)
    if found is None:
        marked = [word for span in re.findall(r"<<(.*?)>>", user) for word in re.findall(r"\w+", span)]
        return f"They have one thing in common.\nExplanation: mentions of {max(marked, key=marked.count)}"
    word = found[1]
    if lines := re.findall(r"^(\d+): (.*)$", user, re.MULTILINE):
        return "\n".join(f"{number}: {10 if word in text else 0}" for number, text in lines)
    prompts = re.findall(r"^Prompt \d+: (.*)$", user, re.MULTILINE)
    seen = [" ".join(re.findall(r"<<(.*?)>>", prompt)) if "<<" in prompt else prompt for prompt in prompts]
    return str([int(word in text) for text in seen])

"""Servers with OpenAI's chat completions API: OpenAI, vLLM, llama.cpp, Ollama, `transformers serve`."""

from __future__ import annotations

import importlib
import os
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit

from excise.chat.backend import Question, Reply, Unavailable
from excise.errors import ExciseError, MissingExtra, one_line

_LONGEST = 4 << 20
"""Bytes of a response, after which reading stops. An answer of some thousand tokens has a hundredth of that."""
_MOST_TOKENS = 10_000_000
"""Largest number of tokens that is believed: more than any model reads or writes."""
_WAIT = 8.0
"""Longest pause of the client before a retry, in seconds, as far as the server does not ask for a longer one."""
_SECRET = 8
"""Shortest key that is removed from answers. Shorter ones, such as "none", may be words of the answer."""


class _TooLong(Exception):
    """A response that is refused for its size or its compression."""


class OpenAIBackend:
    """Model behind an OpenAI-compatible endpoint. May be called from several threads.

    Args:
        model: Name of the model on the server.
        base_url: Endpoint with its path, such as http://localhost:8000/v1. None: OPENAI_BASE_URL, else OpenAI's.
        key_variable: Environment variable that holds the API key. Your own endpoint may not need one.
        timeout: Seconds for one try, from the request to the last byte of the answer. A question as a whole ends after
            the time of all its tries and the pauses between them, whatever the server does.
        retries: Number of retries by the client, which waits longer each time.
        seed: Sampling seed sent with each request.
        temperature: Sampling temperature; None for models that refuse it.
        limit: Name of the token limit; "max_completion_tokens" for models that refuse "max_tokens".

    Redirects are not followed, and a response of more than 4 MiB is refused.

    Raises ExciseError for an impossible value, a user or password in the URL, a missing key where one is needed, or if
    `openai` is not installed.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        key_variable: str = "OPENAI_API_KEY",
        *,
        timeout: float = 60.0,
        retries: int = 2,
        seed: int = 0,
        temperature: float | None = 0.0,
        limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise MissingExtra("asking a server needs the openai package: pip install 'excise[chat]'") from error
        if not model:
            raise ExciseError("the model's name is empty; name the model on the server")
        if timeout <= 0 or retries < 0:
            raise ExciseError("timeout must be more than 0 seconds, and retries must be 0 or more")
        if base_url is not None:
            _checked(base_url)
        elif "OPENAI_BASE_URL" in os.environ:
            _checked(os.environ["OPENAI_BASE_URL"])
        self._key = os.environ.get(key_variable, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise ExciseError(f"the key in {key_variable} has invalid characters, perhaps a line break; set it again")
        if not self._key and base_url is None and "OPENAI_BASE_URL" not in os.environ:
            raise ExciseError(f"{key_variable} holds no API key; set it, or name another endpoint")
        # Compressed, a small response may unpack to a huge one.
        http = openai.DefaultHttpxClient(
            follow_redirects=False,
            headers={"Accept-Encoding": "identity"},
            event_hooks={"request": [self._started], "response": [self._limited]},
        )
        self._client = openai.OpenAI(
            api_key=self._key or "none", base_url=base_url, timeout=timeout, max_retries=retries, http_client=http
        )
        self.model, self.key_variable, self.timeout = model, key_variable, timeout
        self._deadline = (retries + 1) * timeout + retries * _WAIT
        # httpx or its successor, whichever the client is built on.
        names = [base.__module__.partition(".")[0] for base in type(http).__mro__]
        library = next(name for name in names if name.startswith("httpx"))
        self._limited_stream = _stream_class(importlib.import_module(library))
        self._options: dict[str, Any] = {"seed": seed}
        if temperature is not None:
            self._options["temperature"] = temperature
        self._limit = limit
        # User, password and query are left out, as they may be secret.
        url = urlsplit(str(self._client.base_url))
        self.endpoint = f"{url.hostname}{f':{url.port}' if url.port else ''}{url.path.rstrip('/')}"

    @property
    def name(self) -> str:
        settings = ", ".join(f"{key}={value:g}" for key, value in sorted(self._options.items()))
        return f"openai:{self.model} at {self.endpoint} ({settings})"

    def ask(self, question: Question) -> Reply:
        # The client's own time-outs are for single reads, so a server that sends a byte now and then evades them.
        # Only another thread can be left behind wherever it waits.
        outcomes: queue.SimpleQueue[Reply | Exception] = queue.SimpleQueue()

        def work() -> None:
            try:
                outcomes.put(self._ask(question))
            except Exception as error:
                outcomes.put(error)

        threading.Thread(target=work, daemon=True).start()
        try:
            outcome = outcomes.get(timeout=self._deadline)
        except queue.Empty:
            raise self._late() from None
        if isinstance(outcome, Reply):
            return outcome
        raise outcome

    def _started(self, request: Any) -> None:
        request.extensions["excise_until"] = time.monotonic() + self.timeout

    def _limited(self, response: Any) -> None:
        response.stream = self._limited_stream(response, response.request.extensions["excise_until"])

    def _late(self) -> Unavailable:
        return Unavailable(f"{self.endpoint} did not answer within {self.timeout:g} s; is it overloaded?")

    def _ask(self, question: Question) -> Reply:
        import openai

        system = [{"role": "system", "content": question.system}] if question.system else []
        request: Any = {
            "model": self.model,
            "messages": [*system, {"role": "user", "content": question.user}],
            self._limit: question.max_tokens,
            **self._options,
        }
        # `from None`, as the client's errors carry the key with them.
        try:
            return self._reply(self._client.chat.completions.create(**request))
        except openai.APITimeoutError:
            raise self._late() from None
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, _TooLong):
                raise ExciseError(f"{self.endpoint} {error.__cause__}; check the endpoint") from None
            reason = self._clean(str(error.__cause__ or error))
            raise Unavailable(f"cannot reach {self.endpoint} ({reason}); is it running?") from None
        except openai.APIStatusError as error:
            raise self._refused(error.status_code, self._clean(error.message)) from None
        except (
            openai.OpenAIError,
            ArithmeticError,
            AttributeError,
            LookupError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            kind = type(error).__name__
            raise ExciseError(
                f"{self.endpoint} did not answer with a chat completion ({kind}); check the endpoint"
            ) from None

    def _reply(self, answer: Any) -> Reply:
        choice = answer.choices[0]
        text = choice.message.content
        if not isinstance(text, str) or not text.strip():
            cut = choice.finish_reason == "length"
            why = ": it used all its tokens before answering; allow more" if cut else "; use another model"
            raise ExciseError(f"{self.model} at {self.endpoint} gave an empty answer{why}")
        # Half of a surrogate pair, such as an emoji that was cut, can be neither saved nor printed.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if len(self._key) >= _SECRET:
            text = text.replace(self._key, "…")
        used = answer.usage
        return Reply(text, _tokens(used.prompt_tokens) if used else 0, _tokens(used.completion_tokens) if used else 0)

    def _refused(self, status: int, message: str) -> ExciseError:
        if 300 <= status < 400:
            return Unavailable(
                f"{self.endpoint} redirects elsewhere ({status}), which is not followed; name the target"
            )
        if status in (401, 403):
            return Unavailable(f"{self.endpoint} refuses the key in {self.key_variable} ({status}); set another")
        if status == 404:
            return Unavailable(
                f"{self.endpoint} has no model {self.model!r}, or no chat completions ({status}); check both names"
            )
        if status == 429:
            return Unavailable(f"{self.endpoint} is over its rate limit ({status}); ask fewer at once, or later")
        if status >= 500:
            return Unavailable(f"{self.endpoint} failed ({status}); look at its log")
        return ExciseError(f"{self.endpoint} refuses the question ({status}): {message}")

    def _clean(self, text: str) -> str:
        """Return one line of at most 200 characters, without the key."""
        line = " ".join(text.split())
        return one_line(line.replace(self._key, "…") if self._key else line)[:200]


def _checked(base_url: str) -> SplitResult:
    """Return the parts of a base URL.

    Raises ExciseError, without the URL, if it cannot be one or holds a user: the client would send the password in the
    place of the key, and servers' error messages quote it.
    """
    try:
        url = urlsplit(base_url)
        sound = url.scheme in ("http", "https") and bool(url.hostname) and (url.port or 1) > 0
    except ValueError:
        sound = False
    if not sound:
        raise ExciseError("a base URL must begin with http:// or https://, such as http://localhost:8000/v1")
    if "@" in url.netloc:
        raise ExciseError("the base URL holds a user or password; leave them out, and set the API key instead")
    return url


def _tokens(count: Any) -> int:
    """Return a server's count of tokens, within what is possible."""
    return max(0, min(_MOST_TOKENS, int(count or 0)))


def _stream_class(httpx: Any) -> Any:
    """Return the class of a response's stream that ends at `_LONGEST` bytes or at a time of `time.monotonic`.

    `httpx` is the library of that name that the client was made with.
    """

    class Limited(httpx.SyncByteStream):  # type: ignore[misc]
        def __init__(self, response: Any, until: float) -> None:
            self._response, self._stream, self._until = response, response.stream, until

        def __iter__(self) -> Iterator[bytes]:
            if self._response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise _TooLong("compresses its responses though it was asked not to")
            count = 0
            for part in self._stream:
                count += len(part)
                if count > _LONGEST:
                    raise _TooLong(f"sent a response of more than {_LONGEST >> 20} MiB")
                if time.monotonic() > self._until:
                    raise httpx.ReadTimeout("the response took too long", request=self._response.request)
                yield part

        def close(self) -> None:
            self._stream.close()

    return Limited

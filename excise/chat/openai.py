"""Servers with OpenAI's chat completions API: OpenAI, vLLM, llama.cpp, Ollama, `transformers serve`."""

from __future__ import annotations

import os
from typing import Any, Literal
from urllib.parse import urlsplit

from excise.chat.backend import Question, Reply, Unavailable
from excise.errors import ExciseError, MissingExtra


class OpenAIBackend:
    """Model behind an OpenAI-compatible endpoint. May be called from several threads.

    Args:
        model: Name of the model on the server.
        base_url: Endpoint with its path, such as http://localhost:8000/v1. None: OPENAI_BASE_URL, else OpenAI's.
        key_variable: Environment variable that holds the API key. Your own endpoint may not need one.
        timeout: Seconds for one try.
        retries: Number of retries by the client, which waits longer each time.
        seed: Sampling seed sent with each request.
        temperature: Sampling temperature; None for models that refuse it.
        limit: Name of the token limit; "max_completion_tokens" for models that refuse "max_tokens".

    Raises ExciseError for an impossible value, a missing key where one is needed, or if `openai` is not installed.
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
        if base_url is not None and urlsplit(base_url).scheme not in ("http", "https"):
            raise ExciseError("a base URL must begin with http:// or https://, such as http://localhost:8000/v1")
        self._key = os.environ.get(key_variable, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise ExciseError(f"the key in {key_variable} has invalid characters, perhaps a line break; set it again")
        if not self._key and base_url is None and "OPENAI_BASE_URL" not in os.environ:
            raise ExciseError(f"{key_variable} holds no API key; set it, or name another endpoint")
        self._client = openai.OpenAI(
            api_key=self._key or "none", base_url=base_url, timeout=timeout, max_retries=retries
        )
        self.model, self.key_variable, self.timeout = model, key_variable, timeout
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
            raise Unavailable(f"{self.endpoint} did not answer within {self.timeout:g} s; is it overloaded?") from None
        except openai.APIConnectionError as error:
            reason = self._clean(str(error.__cause__ or error))
            raise Unavailable(f"cannot reach {self.endpoint} ({reason}); is it running?") from None
        except openai.APIStatusError as error:
            raise self._refused(error.status_code, self._clean(error.message)) from None
        except (openai.OpenAIError, ValueError, TypeError, AttributeError, LookupError) as error:
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
        used = answer.usage
        return Reply(text, int(used.prompt_tokens) if used else 0, int(used.completion_tokens) if used else 0)

    def _refused(self, status: int, message: str) -> ExciseError:
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
        return (line.replace(self._key, "…") if self._key else line)[:200]

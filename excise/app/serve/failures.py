"""The service's answers to requests that it refuses or cannot fulfil, in OpenAI's shape."""

from __future__ import annotations

from fastapi import Response
from fastapi.responses import JSONResponse

from excise.app.serve import asking
from excise.app.serve.engine import NotReady, OutOfMemory, Refused
from excise.app.serve.policy import NotAllowed
from excise.errors import ExciseError, InvalidSetting, one_line


class Failure(ExciseError):
    """An answer other than 200: its status, and OpenAI's type, code and param (the field that is wrong) of it."""

    def __init__(self, status: int, message: str, kind: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.code, self.param = status, kind, code, param


INVALID, DENIED, SERVER = "invalid_request_error", "permission_error", "server_error"
_ANSWERS: dict[type[ExciseError], tuple[int, str, str]] = {
    Refused: (403, DENIED, "prompt_refused"),
    NotAllowed: (403, DENIED, "not_allowed"),
    asking.NoSuchModel: (404, INVALID, "model_not_found"),
    InvalidSetting: (400, INVALID, "invalid_request"),
    NotReady: (503, SERVER, "not_ready"),
    OutOfMemory: (503, SERVER, "out_of_memory"),
}
"""Status, type and code of each expected error."""
_HOPELESS = ("out_of_memory", "generation_failed")
"""Codes of failures that the same request would most likely meet again."""


def as_failure(error: Exception) -> Failure:
    """Return the answer to an error. That to an unexpected one says nothing of it."""
    if isinstance(error, Failure):
        return error
    for kind, (status, group, code) in _ANSWERS.items():
        if isinstance(error, kind):
            return Failure(status, str(error), group, code, getattr(error, "field", None))
    message = str(error) if isinstance(error, ExciseError) else "the picture could not be generated"
    return Failure(500, message, SERVER, "generation_failed")


def response_of(failure: Failure) -> Response:
    """Return a failure as one line of JSON, in OpenAI's shape. Headers tell OpenAI's client whether to try again."""
    about = {"type": failure.kind, "param": failure.param, "code": failure.code}
    headers = {"Retry-After": "5"} if failure.status in (429, 503) else {}
    if failure.code in _HOPELESS:
        headers = {"X-Should-Retry": "false"}
    body = {"error": {"message": one_line(str(failure)), **about}}
    return JSONResponse(body, status_code=failure.status, headers=headers)


def client_gone() -> Failure:
    """Return the failure of a request whose client has gone; only the log and the metrics tell of it."""
    return Failure(499, "the client has gone", INVALID, "client_closed_request")

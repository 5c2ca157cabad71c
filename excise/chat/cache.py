"""Cache of replies on disk, so that no question is paid for twice."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from excise.chat.backend import Question, Reply
from excise.errors import ExciseError
from excise.files import read_json, sha256, write_atomic


@dataclass(frozen=True)
class Cache:
    """Replies in `folder`, one small JSON file each, named by the SHA-256 of backend and question."""

    folder: Path

    def path(self, name: str, question: Question) -> Path:
        """Return the path for the reply of the backend `name`."""
        digest = sha256(
            json.dumps([name, asdict(question)], ensure_ascii=False, sort_keys=True).encode(errors="surrogatepass")
        )
        return self.folder / digest[:2] / f"{digest}.json"

    def get(self, name: str, question: Question) -> Reply | None:
        """Return the reply, marked as cached, or None if it is missing or unreadable, so that it is asked again."""
        try:
            found = read_json(self.path(name, question))
            reply = found["reply"]
            text, prompt, completion = reply["text"], reply["prompt_tokens"], reply["completion_tokens"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        sound = isinstance(text, str) and isinstance(prompt, int) and isinstance(completion, int)
        if not sound or found.get("backend") != name or found.get("question") != asdict(question):
            return None
        return Reply(text, prompt, completion, cached=True)

    def put(self, name: str, question: Question, reply: Reply) -> None:
        """Save a reply. Raises ExciseError if the disk refuses."""
        kept = {key: value for key, value in asdict(reply).items() if key != "cached"}
        content = {"backend": name, "question": asdict(question), "reply": kept}
        path = self.path(name, question)
        if path.is_dir():
            raise ExciseError(f"{path} is a folder, where the cache needs a file; choose another cache folder")
        write_atomic(path, json.dumps(content, ensure_ascii=False, indent=1).encode(errors="surrogatepass"))

"""A small model hub on a local port: the endpoints that huggingface_hub calls to push and fetch files.

It speaks HTTP and keeps commits in memory, so that the library's real client runs as on the real hub. It has only model
repositories. Only the token `TOKEN` may write. Binary files go through git LFS, as on the real hub.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_for_tests"
LARGE = (".safetensors", ".sig")
"""Suffixes that go through LFS, as in a new repository's .gitattributes."""


class Repository:
    """Branches and commits of one repository; a commit maps paths to bytes."""

    def __init__(self, private: bool) -> None:
        self.private = private
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.messages: list[str] = []
        self.commit(
            "main", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}, "initial commit"
        )

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        """Make `files` the contents of the branch."""
        listed = json.dumps([len(self.commits), {path: hashlib.sha1(data).hexdigest() for path, data in files.items()}])
        sha = hashlib.sha1(listed.encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        self.messages.append(message)
        return sha

    def at(self, revision: str) -> str | None:
        """Return the commit of a branch name or commit hash."""
        sha = self.branches.get(revision, revision)
        return sha if sha in self.commits else None


class Hub:
    """Context manager that runs the server inside its block; `stop` ends it earlier."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        """Every request, as `METHOD path`."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """Return the files of a branch of a repository."""
        repository = self.repositories[name]
        return repository.commits[repository.branches[revision]]

    def alter(self, name: str, changes: dict[str, bytes | None]) -> None:
        """Replace, add or (None) delete files, as someone with access to the server could."""
        kept = {**self.files(name), **changes}
        self.repositories[name].commit("main", {p: d for p, d in kept.items() if d is not None}, "altered")


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        for method, pattern, handle in _ROUTES:
            if method == self.command and (found := re.fullmatch(pattern, path)):
                if method in ("POST", "PUT") and not self._may_write():
                    self._refuse(401, None, "Invalid credentials in Authorization header")
                else:
                    handle(self, *found.groups())
                return
        self._refuse(404, None, "no such endpoint")

    def _may_write(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}" or self.path.startswith("/lfs/")

    def _send(self, data: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str | None, message: str) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._send({"error": message}, status, headers)

    def _repository(self, name: str) -> Repository | None:
        """Return the repository if the client may see it. The refusal, like the real hub's, names no reason."""
        found = self.hub.repositories.get(name)
        if found is None or (found.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            self._refuse(404, "RepoNotFound", "Repository not found")
            return None
        return found

    def _commit_of(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if (repository := self._repository(name)) is None:
            return None
        if (sha := repository.at(revision)) is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return sha, repository.commits[sha]

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
        exists = name in self.hub.repositories
        if not exists:
            self.hub.repositories[name] = Repository(asked.get("visibility") == "private" or bool(asked.get("private")))
        self._send({"url": f"{self.hub.endpoint}/{name}", "name": name}, 409 if exists else 200)

    def branch(self, name: str, branch: str) -> None:
        if (repository := self._repository(name)) is None:
            return
        exists = branch in repository.branches
        repository.branches.setdefault(branch, repository.branches["main"])
        self._send({}, 409 if exists else 200)

    def validate(self) -> None:
        """Check that the card's front matter is YAML, as the real hub does."""
        import yaml

        front = json.loads(self.body)["content"].split("---\n")[1]
        good = isinstance(yaml.safe_load(front), dict)
        self._send({"warnings": [], "errors": [] if good else [{"message": "no metadata"}]}, 200 if good else 400)

    def preupload(self, name: str, revision: str) -> None:
        if self._commit_of(name, revision) is None:
            return
        files = [file["path"] for file in json.loads(self.body)["files"]]
        modes = {path: "lfs" if path.endswith(LARGE) else "regular" for path in files}
        self._send({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})

    def batch(self, name: str) -> None:
        wanted = json.loads(self.body)["objects"]
        answer = [
            {**wish, "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{wish['oid']}"}}}
            if wish["oid"] not in self.hub.objects
            else wish
            for wish in wanted
        ]
        self._send({"transfer": "basic", "objects": answer})

    def store(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self._refuse(400, None, "the object is not what its name says")
            return
        self.hub.objects[oid] = self.body
        self._send({})

    def commit(self, name: str, revision: str) -> None:
        if (found := self._commit_of(name, revision)) is None:
            return
        files = dict(found[1])
        message = ""
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        sha = self.hub.repositories[name].commit(revision, files, message)
        self._send({"commitUrl": f"{self.hub.endpoint}/{name}/commit/{sha}", "commitOid": sha, "success": True})

    def info(self, name: str, revision: str = "main") -> None:
        if (found := self._commit_of(name, revision)) is not None:
            sha, files = found
            self._send({"id": name, "sha": sha, "siblings": [{"rfilename": path} for path in files]})

    def tree(self, name: str, revision: str) -> None:
        at, _, below = revision.partition("/")
        if below and (found_at := self._repository(name)) and found_at.at(revision) is None and found_at.at(at):
            self._refuse(404, "EntryNotFound", f"{below} does not exist")  # no repository here has folders
            return
        if (found := self._commit_of(name, revision)) is not None:
            self._send([{"type": "file", "path": p, "size": len(d), "oid": _etag(d)} for p, d in found[1].items()])

    def resolve(self, name: str, revision: str, path: str) -> None:
        if (found := self._commit_of(name, revision)) is None:
            return
        sha, files = found
        if path not in files:
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        self._send(files[path], headers={"ETag": f'"{_etag(files[path])}"', "X-Repo-Commit": sha})


def _etag(data: bytes) -> str:
    """Return a git blob's hash, as the real hub does."""
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


_NAME = r"([^/]+/[^/]+)"
_ROUTES: tuple[tuple[str, str, Any], ...] = (
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("POST", f"/api/models/{_NAME}/branch/(.+)", _Handler.branch),
    ("POST", f"/api/models/{_NAME}/preupload/(.+)", _Handler.preupload),
    ("POST", f"/api/models/{_NAME}/commit/(.+)", _Handler.commit),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", "/lfs/([0-9a-f]{64})", _Handler.store),
    ("GET", f"/api/models/{_NAME}", _Handler.info),
    ("GET", f"/api/models/{_NAME}/revision/(.+)", _Handler.info),
    ("GET", f"/api/models/{_NAME}/tree/(.+)", _Handler.tree),
    ("HEAD", f"/{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
    ("GET", f"/{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
)

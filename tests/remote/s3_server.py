"""A small S3 server on a local port: the requests that pyarrow makes to read, write, list and delete objects.

It speaks HTTP and keeps objects in memory, so that pyarrow's real client runs. It can refuse requests and tell of them,
which no other server does. `nox -s s3` runs the same tests on moto's server.
"""

from __future__ import annotations

import email.utils
import hashlib
import io
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import IO, Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 7
"""Names in a page of a list; of S3's it is 1000."""


class Store:
    """A server with the bucket `bucket`."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, float]] = {}
        """Bytes and time of change by `bucket/name`."""
        self.refusals: Counter[str] = Counter()
        """How many of the next requests of each method are answered by 503."""
        self.told: Callable[[str, str], object] = lambda method, path: None
        """Called with the method and path of each request before it is answered."""
        self.closed = False
        self._parts: dict[str, dict[int, bytes]] = {}
        store = self

        class Handler(_Handler):
            of = store

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.closed = True
        self._server.shutdown()
        self._server.server_close()

    def put(self, name: str, data: bytes) -> None:
        self.objects[name] = data, time.time()

    def files(self) -> dict[str, bytes]:
        """Return the bytes of all objects but pyarrow's empty ones that stand for folders."""
        return {name: data for name, (data, _) in self.objects.items() if not name.endswith("/")}

    def begin(self) -> str:
        upload = f"upload-{len(self._parts)}"
        self._parts[upload] = {}
        return upload

    def part(self, upload: str, number: int, data: bytes) -> None:
        self._parts[upload][number] = data

    def finish(self, name: str, upload: str) -> None:
        self.put(name, b"".join(data for _, data in sorted(self._parts[upload].items())))


class _Handler(BaseHTTPRequestHandler):
    of: Store
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are written apart

    def do_GET(self) -> None:
        name, query = self._asked()
        if "list-type" in query:
            self._list(name, query)
            return
        if name not in self.of.objects:
            self._answer(404, b"" if self.command == "HEAD" else _error("NoSuchKey"))
            return
        data, changed = self.of.objects[name]
        headers = {"Last-Modified": email.utils.formatdate(changed, usegmt=True), "ETag": _etag(data)}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2]), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            self._answer(206, data[first : last + 1], headers)
        else:
            self._answer(200, data, headers)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        name, query = self._asked()
        data = self._body()
        if "uploadId" in query:
            self.of.part(query["uploadId"], int(query["partNumber"]), data)
        else:
            self.of.put(name, data)
        self._answer(200, b"", {"ETag": _etag(data)})

    def do_POST(self) -> None:
        name, query = self._asked()
        self._body()
        if name.partition("/")[0] != "bucket":
            self._answer(404, _error("NoSuchBucket"))
        elif "uploads" in query:
            answer = f"<InitiateMultipartUploadResult><UploadId>{self.of.begin()}</UploadId>"
            self._answer(200, f"{answer}</InitiateMultipartUploadResult>".encode())
        else:
            self.of.finish(name, query["uploadId"])
            answer = "<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"
            self._answer(200, answer.encode())

    def do_DELETE(self) -> None:
        self.of.objects.pop(self._asked()[0], None)
        self._answer(204, b"")

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        if bucket != "bucket":
            self._answer(404, _error("NoSuchBucket"))
            return
        after = query.get("continuation-token", "")
        start = f"bucket/{query.get('prefix', '')}"
        names = sorted(name for name in self.of.objects if name.startswith(start) and name > after)
        rows = "".join(
            f"<Contents><Key>{escape(name.partition('/')[2])}</Key><Size>{len(data)}</Size><LastModified>"
            f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(changed))}.000Z</LastModified></Contents>"
            for name, (data, changed) in ((name, self.of.objects[name]) for name in names[:PAGE])
        )
        more = f"<NextContinuationToken>{escape(names[PAGE - 1])}</NextContinuationToken>" if names[PAGE:] else ""
        cut = f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>"
        self._answer(200, f"<ListBucketResult>{cut}{more}{rows}</ListBucketResult>".encode())

    def _asked(self) -> tuple[str, dict[str, str]]:
        """Return a request's `bucket/name` and query."""
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
        return unquote(parts.path)[1:], query

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        if self.of.closed:  # the connection was opened before
            self.close_connection = True
            return False
        self.of.told(self.command, self.path)
        if self.of.refusals[self.command] > 0:
            self.of.refusals[self.command] -= 1
            self._body()
            self._answer(503, b"")
            return False
        return True

    def _body(self) -> bytes:
        """Return a request's body. The client sends it in HTTP's chunks, and these in AWS's chunks with a checksum."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = _unchunked(self.rfile)
        return _unchunked(io.BytesIO(data)) if "aws-chunked" in self.headers.get("Content-Encoding", "") else data

    def _answer(self, code: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


def _unchunked(file: IO[bytes]) -> bytes:
    whole = b""
    while length := int(file.readline().partition(b";")[0], 16):
        whole += file.read(length)
        file.readline()
    while file.readline().strip():  # checksums
        pass
    return whole


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def _error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()

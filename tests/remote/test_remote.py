"""A folder in an object store and its copies: what is fetched, what is written first, and what fails."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from excise.errors import ExciseError, InvalidSetting, MissingExtra
from excise.remote import Remote, StoreFailed, _opened, url_of
from tests.remote.s3_server import PAGE, Store


def opened(url: str = "s3://bucket/some/run") -> Remote:
    remote = Remote.at(url)
    assert remote is not None
    return remote


def content(remote: Remote) -> dict[str, bytes]:
    files = (path for path in remote.copy.rglob("*") if path.is_file())
    return {path.relative_to(remote.copy).as_posix(): path.read_bytes() for path in files}


def test_urls_are_told_from_folders_also_after_pathlib_took_a_slash() -> None:
    for given in ("s3://bucket/run", Path("s3://bucket/run"), "s3://bucket/run/", "s3:/bucket/run"):
        assert url_of(given) == "s3://bucket/run"
    assert url_of(Path("gs://b/r")) == "gs://b/r"
    assert url_of(Path("s3://b/r?endpoint_override=localhost:1&scheme=http")) == (
        "s3://b/r?endpoint_override=localhost:1&scheme=http"
    )
    for folder in ("run", "/s3/run", "s3", "s3:run", "C:/run", Path("runs/s3:/run"), "http://bucket/run"):
        assert url_of(folder) is None
        assert Remote.at(folder) is None


@pytest.mark.usefixtures("bucket")
def test_two_machines_see_each_others_files() -> None:
    one, other = opened(), opened()
    assert one.copy != other.copy
    names = [f"blocks/snce+k=10=ice cream/{n:05}.zip" for n in range(2 * PAGE + 1)] + ["done/none=gun", "run.json"]
    for n, name in enumerate(names):
        one.write(one.copy / name, f"{n}" if n else b"")
    assert content(other) == {}
    other.pull()
    assert content(other) == content(one) == {name: f"{n}".encode() if n else b"" for n, name in enumerate(names)}
    other.write(other.copy / "run.json", "longer than before")
    assert one.fetch(one.copy / "run.json")
    assert (one.copy / "run.json").read_text() == "longer than before"
    one.remove(one.copy / "run.json")
    one.remove(one.copy / "run.json")
    assert not (one.copy / "run.json").exists()
    other.pull()
    assert (other.copy / "run.json").exists(), "others may be about to read it"
    assert not other.fetch(other.copy / "run.json")
    assert not (other.copy / "run.json").exists()
    one.remove(one.copy / names[0])
    other.pull(exact=True)
    assert content(other) == content(one)
    assert sorted(one.names()) == sorted(names[1:-1])
    assert opened("s3://bucket/some/ru").names() == [], "a name that begins alike is another folder"


def test_what_did_not_change_is_not_fetched_again(store: Store) -> None:
    one, other = opened(), opened()
    one.write(one.copy / "a", b"first")
    other.pull()
    asked: list[tuple[str, str]] = []
    store.told = lambda method, path: asked.append((method, path))
    for remote in (one, other):
        remote.pull()
    assert [method for method, _ in asked] == ["GET", "GET"], "two lists"
    store.objects["bucket/some/run/a"] = b"other", store.objects["bucket/some/run/a"][1] + 5
    one.pull()
    assert content(one) == {"a": b"other"}, "as long, and younger"


@pytest.mark.usefixtures("bucket")
def test_the_first_of_two_files_and_the_first_of_two_folders_stay() -> None:
    one, other = opened(), opened()
    for remote, text in ((one, "one"), (other, "other")):
        remote.write_once(remote.copy / "searched" / "gun.json", text)
        (remote.copy / "erasers" / "gun").mkdir(parents=True)
        for name in ("manifest.json", "eraser.json", "weights"):
            (remote.copy / "erasers" / "gun" / name).write_text(f"{text} {name}")
        remote.push(remote.copy / "erasers" / "gun", "manifest.json")
    assert content(one) == content(other)
    assert (other.copy / "searched" / "gun.json").read_text() == "one"
    assert (other.copy / "erasers" / "gun" / "weights").read_text() == "one weights"


def test_a_folder_is_written_in_the_order_in_which_it_can_be_read(store: Store) -> None:
    remote = opened()
    folder = remote.copy / "eraser"
    folder.mkdir()
    for name in ("a", "manifest.json", "z"):
        (folder / name).write_text(name)
    remote.push(folder, "manifest.json")
    assert list(store.files()) == [f"bucket/some/run/eraser/{name}" for name in ("a", "z", "manifest.json")]


def test_the_store_has_a_file_before_the_copy(store: Store) -> None:
    remote = opened()
    path = remote.copy / "fits" / "none=gun.json"
    there: list[bool] = []
    store.told = lambda method, asked: there.append(path.exists()) if method in ("PUT", "POST") else None
    remote.write(path, "done")
    assert there and not any(there), "a worker that is killed in between has not made the item"


def test_a_write_that_is_refused_twice_is_tried_again(store: Store) -> None:
    remote = opened()
    store.refusals.update(PUT=2, POST=2)
    remote.write(remote.copy / "a", b"x" * 100_000)
    assert store.files() == {"bucket/some/run/a": b"x" * 100_000}
    store.refusals.update(GET=2, HEAD=2)
    other = opened()
    other.pull()
    assert content(other) == {"a": b"x" * 100_000}
    assert store.refusals.total() == 0


def test_a_server_that_is_gone_ends_in_one_line_and_nothing_is_half_there(store: Store) -> None:
    remote = opened()
    remote.write(remote.copy / "a", b"whole")
    store.close()
    with pytest.raises(StoreFailed, match=r"cannot write s3://bucket/some/run \(NETWORK_CONNECTION .*the network"):
        remote.write(remote.copy / "b", b"lost")
    with pytest.raises(StoreFailed, match=r"cannot read s3://bucket/some/run \("):
        remote.pull()
    assert content(remote) == {"a": b"whole"}


def test_ctrl_c_within_a_write_leaves_the_whole_file(store: Store) -> None:
    remote = opened()

    def stop(method: str, path: str) -> None:
        if path.endswith("?uploads"):  # the first of three requests of a write
            store.told = lambda method, path: None  # pyarrow repeats a request that takes long
            os.kill(os.getpid(), signal.SIGINT)

    store.told = stop
    with pytest.raises(KeyboardInterrupt):
        remote.write(remote.copy / "a", b"whole")
    for thread in threading.enumerate():  # a thread that Ctrl-C met at its start is joined when Python ends
        if thread.name.startswith("ThreadPoolExecutor"):
            thread.join(30)
    assert store.files() == {"bucket/some/run/a": b"whole"}


@pytest.mark.usefixtures("bucket")
def test_a_bucket_that_is_not_there_is_named() -> None:
    remote = opened("s3://nowhere/run")
    with pytest.raises(StoreFailed, match=r"cannot write s3://nowhere/run \(NO_SUCH_BUCKET "):
        remote.write(remote.copy / "run.json", "{}")
    assert content(remote) == {}
    assert remote.names() == []


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "a\\b", "a//b"])
def test_a_name_that_leads_out_of_the_copy_is_refused(store: Store, name: str) -> None:
    store.put(f"bucket/some/run/{name}", b"bad")
    store.put("bucket/some/run/good", b"good")
    remote = opened()
    with pytest.raises(ExciseError, match="leads out of it"):
        remote.pull()
    assert content(remote) == {}


def test_a_url_that_cannot_be_used_is_refused_before_any_request(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("s3://", "s3:///x?nonsense=1", "s3://bucket/run?nonsense=1", "s3://bucket/with space"):
        with pytest.raises(InvalidSetting, match="write s3://BUCKET/FOLDER"):
            opened(url)
    with pytest.raises(InvalidSetting, match="a URL with credentials would be printed") as said:
        opened("s3://key:secret@bucket/run")
    assert "secret" not in str(said.value)
    _opened.cache_clear()
    monkeypatch.setitem(sys.modules, "pyarrow.fs", None)
    with pytest.raises(MissingExtra, match=r"pip install 'excise\[parquet\]'"):
        opened()


@pytest.mark.usefixtures("bucket")
def test_a_copy_goes_with_what_it_belongs_to_and_where_names_files() -> None:
    remote = opened("s3://bucket/run?region=eu-west-1")
    copy = remote.copy
    assert remote.where() == "s3://bucket/run?region=eu-west-1"
    assert remote.where("failures") == "s3://bucket/run/failures"
    assert copy.is_dir()
    del remote
    assert not copy.exists()

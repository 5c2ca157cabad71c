"""The studio in a real browser: every tab, refusals, two visitors, the keyboard, and no request to another machine."""

from __future__ import annotations

import socket
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch

import excise
from excise.app.studio import server
from excise.app.studio.studio import Studio, load_candidates
from excise.app.studio.tabs import audit, untouched
from excise.erasers.edits.sae_rows import sae_digest
from excise.neurons.context import Context
from excise.neurons.database.database import NeuronDatabase
from excise.neurons.database.entry import Entry, Provenance, Tag
from tests.app.conftest import needs_browser

OLD = Path(__file__).parents[2] / "erasers" / "old"
SECONDS = 120_000
"""Milliseconds to wait for an answer on a busy machine."""
NEURON = 1153
"""The bundled SAE's neuron for "gun"."""

pytestmark = needs_browser


@pytest.fixture(scope="module")
def connections() -> Iterator[list[Any]]:
    """Addresses of other machines that this process tried to reach. Every such attempt fails."""
    tried: list[Any] = []
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            tried.append(address)
            raise OSError("no other machine may be reached")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield tried


@pytest.fixture(scope="module")
def studio(one_bundled_pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A studio with an SNCE and a UCE eraser of "gun", four steps a picture, and a database of one neuron."""
    from excise import reference, sae

    database = tmp_path_factory.mktemp("studio") / "neurons.db"
    folder = reference.sae_folder()
    about = Provenance(
        sae_digest(sae.load(folder)), "text_encoder/encoder.layers.5", 2048, "two captions", 2, "", "2026"
    )
    with NeuronDatabase.create(database, about) as made:
        seen = Context(("a", " gun", " <b>here</b>"), (0.0, 4.0, 1.0))
        made.add([Entry(NEURON, density=0.01, peak=4.0, contexts=(seen,), tags=(Tag("gun", 1.0, 1.0),))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(untouched, "EACH", 1)
        patch.setattr(audit, "COUNTS", {"20": 20})
        candidates = load_candidates([OLD / "snce", OLD / "uce"])
        opened = Studio(one_bundled_pipe, candidates, steps=4, sae=folder, database=database)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address(studio: Studio, connections: list[Any]) -> Iterator[str]:
    """Address of the running studio."""
    with closing(server.listening(0)) as listener:
        running = server.server_of(studio)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        yield server.address_of(listener)
        running.should_exit = True
        thread.join(60)


@pytest.fixture
def visit(address: str, browser: Any) -> Iterator[Callable[..., Any]]:
    """Return a function that opens the page as a new visitor. All requests must be to the studio."""
    opened, elsewhere, complaints = [], list[str](), list[str]()

    def new(**options: Any) -> Any:
        context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        page = context.new_page()
        page.set_default_timeout(SECONDS)
        page.on("request", lambda asked: _is_elsewhere(asked.url) and elsewhere.append(asked.url))
        page.on("dialog", lambda shown: complaints.append(shown.message) or shown.dismiss())
        page.on("console", lambda line: line.type == "error" and complaints.append(line.text))
        page.goto(address)
        page.wait_for_selector("#erase-verdict .says")
        opened.append(context)
        return page

    yield new
    for context in opened:
        context.close()
    assert elsewhere == [] and complaints == []


def _is_elsewhere(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme not in ("data", "blob") and parts.hostname != server.HOST


def says(page: Any, text: str, where: str = "#erase-verdict") -> str:
    """Wait until a part of the page has the text, and return all of it."""
    page.wait_for_function("([at, text]) => document.querySelector(at)?.innerText.includes(text)", arg=[where, text])
    return str(page.inner_text(where))


def ask(page: Any, prompt: str) -> None:
    page.fill("#erase-prompt textarea", prompt)
    page.click("#erase-go")


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def test_one_prompt_without_and_with_the_eraser(
    visit: Callable[..., Any], studio: Studio, connections: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    page = visit()
    text = says(page, "the picture is different")
    assert f"Fires: neuron {NEURON}" in text and "neuron fires" in text and "picture changed" in text
    assert page.locator("#erase-pictures img").count() == 2
    fired = page.locator("#erase-codes .above .token").all_inner_texts()
    assert fired[0] == "gun" and "a" not in fired
    hostile = "a cat on grass <img src=x onerror=alert(1)> ${alert(2)} {{7*7}}"
    ask(page, hostile)
    text = says(page, "Silent")
    assert "No text state was edited, and the picture is identical, bit for bit." in text
    tokens = page.locator("#erase-codes .token").all_inner_texts()
    assert {"<", "alert", "7"} <= set(tokens) and page.locator("#erase-codes img").count() == 0
    ask(page, "a gun on sand")
    says(page, "Fires")
    page.fill("#erase-strength input[type=number]", "0")
    page.keyboard.press("Tab")
    assert "At strength 0 nothing is edited" in says(page, "identical")
    assert connections == []
    out = capfd.readouterr()
    assert "sand" not in out.out + out.err and "gun on" not in out.out + out.err, "no prompt is logged"


def test_bad_input_and_a_refusal_leave_no_picture(visit: Callable[..., Any], one_bundled_pipe: Any) -> None:
    page = visit()
    ask(page, "  ")
    assert says(page, "Not done", "#erase-notice").strip() == "Not done: write a prompt first."
    assert page.locator("#erase-pictures img").count() == 0 and page.inner_text("#erase-verdict").strip() == ""
    weight = one_bundled_pipe.text_encoder.get_input_embeddings().weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.mul_(1.5)
        ask(page, "a gun on grass")
        assert "changed" in says(page, "Refused", "#erase-notice")
        assert page.locator("#erase-pictures img").count() == 0 and page.inner_text("#erase-verdict").strip() == ""
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_the_end_of_a_long_prompt_is_named(visit: Callable[..., Any]) -> None:
    page = visit()
    ask(page, f"a cat on grass{' and a quiet river runs along the valley' * 10} with a gun")
    assert "with a gun”. “gun” is in that end." in says(page, "It did not read the end")


def test_two_visitors_at_once_get_their_own_answers(visit: Callable[..., Any]) -> None:
    first, second = visit(), visit()
    ask(first, "a gun on wood")
    ask(second, "a frog on wood")
    assert "Fires" in says(first, "Fires") and "Silent" in says(second, "Silent")
    assert "gun" in first.locator("#erase-codes .token").all_inner_texts()
    assert "frog" in second.locator("#erase-codes .token").all_inner_texts()


def test_the_keyboard_is_enough(visit: Callable[..., Any]) -> None:
    page = visit()

    def to(selector: str) -> None:
        for _ in range(40):
            if page.evaluate("at => document.activeElement?.closest(at) !== null", selector):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"the keyboard does not reach {selector}")

    to("#erase-prompt")
    page.keyboard.press("Control+a")
    page.keyboard.type("a dog on sand")
    page.keyboard.press("Enter")
    says(page, "Silent")
    to("#erase-strength")
    to("#erase-go")
    page.evaluate("document.activeElement.blur()")
    to("#tab-what-it-leaves-alone-button")
    page.keyboard.press("Enter")
    page.wait_for_selector("#untouched-go", state="visible")


def test_what_it_leaves_alone(visit: Callable[..., Any]) -> None:
    page = visit()
    tab(page, "What it leaves alone")
    page.fill("#untouched-own textarea", "a panda on grass")
    page.click("#untouched-go")
    text = says(page, " of 5", "#untouched-gallery")
    assert page.locator("#untouched-gallery figure").count() == 5 and "a panda on grass" in text
    assert page.locator("#untouched-gallery .same").count() == int(text.split(" of 5")[0].split()[-1])
    page.wait_for_function("() => !document.querySelector('#untouched-gallery').innerText.includes('to go')")
    assert page.locator("#untouched-gallery figure").first.inner_text().startswith("identical")


def test_erasers_of_two_methods_are_compared(visit: Callable[..., Any]) -> None:
    page = visit()
    tab(page, "Compare")
    page.fill("#compare-prompts textarea", "a cat on grass")
    page.fill("#compare-count input[type=number]", "1")
    page.click("#compare-go")
    says(page, "gun-uce 0 of 1 identical", "#compare-table")
    assert page.locator("#compare-table td img").count() == 3
    heads = page.locator("#compare-table thead th").all_inner_texts()
    assert len(heads) == 4 and "snce" in heads[2] and "uce" in heads[3]
    assert page.locator("#compare-table td .badge").all_inner_texts() == ["identical", "changed"]


def test_a_neuron_is_searched_and_turned(visit: Callable[..., Any]) -> None:
    page = visit()
    tab(page, "Neurons")
    page.fill("#neurons-words textarea, #neurons-words input", "gun")
    page.keyboard.press("Enter")
    page.locator("#neurons-found label").first.click()
    assert "in two captions" in says(page, f"Neuron {NEURON}", "#neurons-about")
    assert page.locator("#neurons-about .tokens b").count() == 0, "text from prompts is escaped"
    page.click("#neurons-go")
    assert "is turned up: 1 times its usual peak" in says(page, "turned up", "#neurons-verdict")
    page.fill("#neurons-amount input[type=number]", "-1")
    page.keyboard.press("Tab")
    assert "identical" in says(page, f"nothing of neuron {NEURON} to turn down", "#neurons-verdict")


@pytest.mark.slow
def test_an_audit_is_shown_and_downloaded(visit: Callable[..., Any], tmp_path: Path) -> None:
    page = visit()
    tab(page, "Audit")
    page.click("#audit-go")
    text = says(page, "red flag", "#audit-flags")
    assert "of 20 prompts that do not mention “gun” change at all" in text
    with page.expect_download() as waiting:
        page.click("#audit-download")
    waiting.value.save_as(tmp_path / "audit.html")
    assert (tmp_path / "audit.html").read_text().startswith("<!doctype html>")


@pytest.mark.slow
def test_an_eraser_is_made_downloaded_and_tried(
    visit: Callable[..., Any], one_bundled_pipe: Any, tmp_path: Path
) -> None:
    page = visit()
    tab(page, "Find")
    page.fill("#find-words textarea, #find-words input", "apple")
    page.click("#find-go")
    says(page, "Neurons for “apple”", "#find-ranking")
    page.click("#find-make")
    says(page, "apple", "#find-made")
    with page.expect_download() as waiting:
        page.click("#find-download")
    waiting.value.save_as(tmp_path / "eraser.zip")
    zipfile.ZipFile(tmp_path / "eraser.zip").extractall(tmp_path)
    assert all(check.passed for check in excise.verify(tmp_path / "eraser"))
    tab(page, "Erase")
    ask(page, "an apple on grass")
    assert "the picture is different" in says(page, "Fires")
    assert "Silent" not in page.inner_text("#erase-verdict")


def test_another_site_cannot_use_the_visitors_browser(address: str) -> None:
    import httpx

    with httpx.Client(base_url=address) as client:
        assert client.get("/").status_code == 200
        assert client.get("/", headers={"Origin": "https://other.example"}).status_code == 403
        assert client.get("/", headers={"Host": "other.example"}).status_code == 403
        sent = client.post("/gradio_api/upload", files={"files": ("a.txt", b"text")})
        assert sent.status_code == 413, "the page takes no file"

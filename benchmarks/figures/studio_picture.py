"""The picture of docs/how-to/studio.md: a tab of the studio in Chromium, after its button was pressed.

    python benchmarks/figures/studio_picture.py
    python benchmarks/figures/studio_picture.py --tab Audit --width 390 --out build/audit.png

It needs the extra `app`, playwright and the system's Chromium; nothing is downloaded. The eraser is SNCE's of "gun" for
the bundled model. `--width` is the window's, in pixels of a page that is not enlarged: 390 is a phone's.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from excise import erase, reference
from excise.app.studio.server import address_of, listening, server_of
from excise.app.studio.studio import Studio, load_candidates
from excise.errors import ExciseError
from excise.files import write_atomic

DONE = {
    "Erase": ("erase", "#erase-verdict .says"),
    "What it leaves alone": ("untouched", "#untouched-gallery figure:nth-of-type(8)"),
    "Audit": ("audit", "#audit-flags .score"),
    "Neurons": ("neurons", "#neurons-verdict .says"),
}
"""What the ids of each tab begin with, and what is there once its button was answered. The other tabs ask first."""
MILLISECONDS = 600_000
"""Longest wait for an answer."""
FADED = 1500
"""Milliseconds after which nothing on the page moves."""
COLOURS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tab", choices=list(DONE), default="Erase")
    parser.add_argument("--width", type=int, default=1160)
    parser.add_argument("--dark", action="store_true", help="in the dark colours")
    parser.add_argument("--out", type=Path, default=Path("docs/images/studio.png"))
    options = parser.parse_args()
    colours = "dark" if options.dark else "light"
    with visited(viewport={"width": options.width, "height": 900}, color_scheme=colours) as page:
        write_atomic(options.out, picture(page, options.tab))


@contextmanager
def visited(**options: Any) -> Iterator[Any]:
    """Serve the studio with an eraser of "gun", and yield its page in Chromium with a first answer on it.

    `options` are those of Playwright's `new_page`. Raises ExciseError if there is no Chromium.
    """
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise ExciseError("there is no Chromium on this machine; install it with the system's package manager")
    pipe = reference.load()
    with tempfile.TemporaryDirectory() as folder, closing(listening(0)) as listener:
        erase(pipe, "gun").save(Path(folder) / "gun-snce")
        studio = Studio(pipe, load_candidates([Path(folder) / "gun-snce"]), model="bundled", sae=reference.sae_folder())
        running = server_of(studio)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            with sync_playwright() as started:
                chromium = started.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
                page = chromium.new_page(**options)
                page.set_default_timeout(MILLISECONDS)
                page.goto(address_of(listener))
                page.wait_for_selector(DONE["Erase"][1])
                yield page
                chromium.close()
        finally:
            running.should_exit = True
            thread.join()
            studio.close()


def open_tab(page: Any, tab: str) -> None:
    """Open a tab of the page. On a narrow page it may be in the menu of those that have no room."""
    button = page.get_by_role("tab", name=tab, exact=True)
    if not button.count():
        page.get_by_role("button", name="More tabs").click()
        button = page.locator(".overflow-dropdown").get_by_role("button", name=tab, exact=True)
    button.click()


def picture(page: Any, tab: str) -> bytes:
    """Return a PNG of a tab, once its button has been answered."""
    name, done = DONE[tab]
    if tab != "Erase":
        open_tab(page, tab)
        page.click(f"#{name}-go")
        page.wait_for_selector(done)
    page.mouse.move(0, 0)
    page.wait_for_timeout(FADED)
    shot = page.screenshot(full_page=True)
    with Image.open(io.BytesIO(shot)) as image, io.BytesIO() as file:
        image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
        return file.getvalue()


if __name__ == "__main__":
    main()

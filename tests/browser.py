"""A page in headless Chromium: what its console says, what is drawn where, and a picture of it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_to_its_end

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium here: apt-get install chromium")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--enable-logging=stderr", "--virtual-time-budget=3000",
)  # fmt: skip
# Run at the end of the page: the size of what is drawn, told to the frame around it.
MEASURE = """<script>
const box = (e) => { const r = e.getBoundingClientRect(); return {left: r.left, right: r.right, height: r.height}; };
const said = (n) => n.nodeType === 3 && n.textContent.trim();
const own = (e) => !e.matches("title, script") && [...e.childNodes].some(said);
const scrolls = (e) => e.closest(".wide") !== null;
parent.postMessage({
  width: document.documentElement.scrollWidth, window: window.innerWidth, height: document.documentElement.scrollHeight,
  pictures: [...document.querySelectorAll("svg")].map((e) => ({
    name: e.getAttribute("aria-label"), scrolls: scrolls(e), ...box(e), marks: e.querySelectorAll("*").length})),
  texts: [...document.querySelectorAll("body *")].filter(own).map((e) => ({
    text: e.textContent.trim().slice(0, 40), scrolls: scrolls(e), ...box(e),
    size: e instanceof SVGElement ? parseFloat(getComputedStyle(e).fontSize) * e.getScreenCTM().a
                                  : parseFloat(getComputedStyle(e).fontSize)})),
}, "*");
</script>"""
FRAME = """<!doctype html><meta charset="utf-8"><title>?</title><body style="margin: 0">
<script>onmessage = (event) => { document.title = JSON.stringify(event.data); };</script>
<iframe src="page.html" style="border: 0; width: %dpx; height: %dpx"></iframe>"""


@dataclass(frozen=True)
class Seen:
    """What the browser made of a page; `picture` shows its top."""

    console: list[str]
    width: int
    window: int
    pictures: list[dict[str, Any]]
    texts: list[dict[str, Any]]
    picture: Path


def look(page: Path, folder: Path, width: int, height: int = 2400) -> Seen:
    """Open a page in a window of so many CSS pixels; a frame, since Chromium's own is never narrower than 500."""
    assert BROWSER is not None
    text = page.read_text(encoding="utf-8")
    (folder / "page.html").write_text(text.replace("</body>", MEASURE + "</body>"), encoding="utf-8")
    (folder / "frame.html").write_text(FRAME % (width, height))
    picture = folder / f"{width}.png"
    address = (folder / "frame.html").as_uri()
    size = f"--window-size={max(width, 500)},{height}"
    console: list[str] = []
    found = None
    for task in ("--dump-dom", f"--screenshot={picture}"):
        profile = f"--user-data-dir={folder / 'profile'}"
        done = run_to_its_end([BROWSER, *FLAGS, size, profile, task, address], timeout=120)
        console += [line for line in done.err.splitlines() if ":CONSOLE" in line]
        found = found or re.search(r"<title>(\{.*?\})</title>", done.out, re.DOTALL)
    assert found is not None, console
    facts = json.loads(unescape(found[1]))
    return Seen(console, facts["width"], facts["window"], facts["pictures"], facts["texts"], picture)

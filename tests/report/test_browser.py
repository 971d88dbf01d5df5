"""The pages in a real browser, where there is one: nothing from outside runs, nothing is asked of a network, nothing is too wide."""

from __future__ import annotations

import html
import json
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from slimrl.report.report import write_reports
from slimrl.report.run import write_run_page
from tests.report.runs import write_run
from tests.report.test_report import SPITE, spiteful
from tests.test_payloads import PAYLOADS

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)


@pytest.fixture
def proxy() -> Iterator[tuple[int, list[bytes]]]:
    """A port to which the browser is told to send everything; whatever comes is written down."""
    asked: list[bytes] = []
    server = socket.create_server(("127.0.0.1", 0))

    def listen() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                asked.append(connection.recv(200))

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    yield server.getsockname()[1], asked
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


def chromium(page: Path, folder: Path, port: int, *options: str) -> str:
    """What it prints of a page after a while."""
    return subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", f"--user-data-dir={folder}", f"--proxy-server=127.0.0.1:{port}",
            "--proxy-bypass-list=<-loopback>", "--virtual-time-budget=3000", *options, page.as_uri(),
        ],
        capture_output=True, text=True, check=True, timeout=120,
    ).stdout  # fmt: skip


def from_pages(asked: list[bytes]) -> list[bytes]:
    """Without what the browser asks for by itself."""
    return [request for request in asked if b"google" not in request and b"gstatic" not in request]


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
def test_nothing_hostile_runs_and_nothing_leaves(tmp_path: Path, proxy: tuple[int, list[bytes]]) -> None:
    port, asked = proxy
    page, profile = write_reports(spiteful(SPITE), tmp_path), tmp_path / "profile"
    canary = tmp_path / "canary.html"
    canary.write_text("<title>quiet</title><img src=http://outside.example/x><script>document.title='owned'</script>")
    assert "<title>owned</title>" in chromium(canary, profile, port, "--dump-dom"), "scripts do run here"
    assert any(b"outside.example" in request for request in from_pages(asked)), "the trap is set"
    asked.clear()
    document = chromium(page, profile, port, "--dump-dom")
    assert "<script" not in document
    assert "owned</title>" not in document
    assert document.count("<table") == page.read_text().count("<table")
    assert from_pages(asked) == []


PROBE = """<script>
addEventListener("load", () => {
  const wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
  const tokens = [...document.querySelectorAll(".tokens i")].filter((t) => t.checkVisibility());
  const first = tokens[0], picker = document.getElementById("picker");
  first.dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
  const readout = first.closest("figure").querySelector(".readout").textContent;
  const colours = () => tokens.map((t) => getComputedStyle(t).backgroundColor).join();
  const before = colours();
  document.querySelector("#q-e").click();
  parent.postMessage(JSON.stringify([
    document.title, wide, !picker.hidden, tokens.length, readout, innerWidth, matchMedia("(prefers-color-scheme: dark)").matches,
    before != colours(),
  ]), "*");
});
</script>"""
"""Looks at a page of which it is a part; the policy does not let it run, so it is taken out for it."""


FRAME = """<meta name="color-scheme" content="light dark"><title>waiting</title>
<script>addEventListener("message", (event) => document.title = event.data);</script>
<iframe src="probed.html" width="{width}" height="900" style="border: 0; color-scheme: light dark"></iframe>"""
"""A window of any width: that of a browser is at least 500 pixels wide."""


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_a_hostile_run_is_shown_and_stays_within_the_window(
    tmp_path: Path, proxy: tuple[int, list[bytes]], width: int, scheme: str
) -> None:
    """With scripts on: the page as it is, and a copy without its policy, where whatever could run would."""
    port, asked = proxy
    page, profile = write_run_page(write_run(tmp_path / "run", PAYLOADS, steps=12)), tmp_path / "profile"
    options = [
        "--dump-dom",
        "--window-size=1500,900",
        *(["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []),
    ]
    document = chromium(page, profile, port, *options)
    assert document.count("<script") == 1
    assert '<fieldset id="picker">' in document, "our own script ran under the policy"
    assert 'id="picker" hidden' in page.read_text(), "without scripts it is not there"
    text = page.read_text()
    probed = tmp_path / "probed.html"
    probed.write_text(re.sub("<meta http-equiv=[^>]*>", "", text).replace("</body>", f"{PROBE}</body>"))
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(width=width))
    found = re.search("<title>(.*?)</title>", chromium(frame, profile, port, *options), re.DOTALL)
    assert found is not None
    title, wide, picks, tokens, readout, seen, dark, recoloured = json.loads(html.unescape(found[1]))
    assert "Held-out accuracy rose by 50.0 points" in title
    assert (seen, dark) == (width, scheme == "dark")
    assert not wide, "no sideways scroll"
    assert picks
    assert tokens == 40, "one problem of one step"
    assert "sampler" in readout
    assert recoloured, "a control acts on the tokens below it"
    assert from_pages(asked) == []


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
def test_a_run_is_whole_without_scripts(tmp_path: Path, proxy: tuple[int, list[bytes]]) -> None:
    """The policy of a copy lets no script run: every step, every control and every table is there all the same."""
    port, asked = proxy
    page = write_run_page(write_run(tmp_path / "run", PAYLOADS, steps=3))
    bare = tmp_path / "bare.html"
    bare.write_text(re.sub("script-src '[^']*'", "script-src 'none'", page.read_text()))
    document = chromium(bare, tmp_path / "profile", port, "--dump-dom")
    assert 'id="picker" hidden' in document
    assert document.count('<details class="step"') == 3
    assert document.count('type="radio"') == 8
    assert document.count("<tr><td>1</td>") == 3 * 2 * 4
    assert from_pages(asked) == []

"""The report in a real browser with scripts on, where there is one: nothing in it runs, nothing is asked of a network."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from slimrl.report.report import write_reports
from tests.report.test_report import SPITE, spiteful

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

"""One page on loopback: only that file, only for its own address, until it is interrupted."""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from lavis_ext.browse.serve import PageServer, serve_page
from lavis_ext.common.errors import UsageError


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PageServer]:
    (tmp_path / "page.html").write_text("<p>ä page</p>", encoding="utf-8")
    (tmp_path / "secret.txt").write_text("secret")
    with PageServer(tmp_path / "page.html") as found:
        thread = Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield found
        found.shutdown()
        thread.join(5)
        assert not thread.is_alive()


def ask(port: int, path: str, method: str = "GET", host: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request(method, path, headers={"Host": host} if host else {})
    response = connection.getresponse()
    return response.status, response.read().decode()


def test_the_page_and_nothing_else(server: PageServer) -> None:
    port = server.server_address[1]
    assert server.server_address[0] == "127.0.0.1"
    assert ask(port, "/") == ask(port, "/page.html?x=1") == (200, "<p>ä page</p>")
    assert ask(port, "/", "HEAD") == (200, "")
    for path in ("/secret.txt", "/../secret.txt", "/%2e%2e/secret.txt", "/favicon.ico"):
        assert ask(port, path)[0] == 404
    assert ask(port, "/", "POST")[0] == 501


def test_a_page_that_is_written_anew_is_shown_anew(server: PageServer) -> None:
    server.page.write_text("new")
    assert ask(server.server_address[1], "/") == (200, "new")
    server.page.unlink()
    assert ask(server.server_address[1], "/")[0] == 404


def test_foreign_names_for_this_machine_are_refused(server: PageServer) -> None:
    port = server.server_address[1]
    assert ask(port, "/", host="evil.example")[0] == 403
    assert ask(port, "/", host=f"localhost:{port}")[0] == 200


def test_a_taken_port_is_told(server: PageServer) -> None:
    with pytest.raises(UsageError, match="cannot be served"):
        serve_page(server.page, print, server.server_address[1])


def test_the_verb_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"kind": "train", "step": 1, "epoch": 0, "loss": 1}\n')
    command = [sys.executable, "-m", "lavis_ext", "browse", str(tmp_path), "--serve", "--out", str(tmp_path / "r.html")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            found = re.search(r"http://127\.0\.0\.1:(\d+)/", process.stderr.readline())
            assert found
            status, text = ask(int(found.group(1)), "/")
            assert status == 200 and "run report" in text
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 130
        finally:
            process.kill()

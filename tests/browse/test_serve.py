"""Pages on loopback: only for who has the token, only by this machine's names, no file, until it is interrupted."""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lavis_ext.browse.serve import PageApp, PageServer, Reply, serve
from lavis_ext.cli import main
from lavis_ext.common.errors import UsageError
from tests.support.serving import ask, cookie_of, served


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PageServer]:
    (tmp_path / "page.html").write_text("<p>ä page</p>", encoding="utf-8")
    (tmp_path / "secret.txt").write_text("secret")
    with served(PageApp(tmp_path / "page.html")) as found:
        yield found


def test_the_page_and_nothing_else(server: PageServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert ask(server, "/").text == ask(server, "/page.html?x=1").text == "<p>ä page</p>"
    assert (ask(server, "/", "HEAD").status, ask(server, "/", "HEAD").text) == (200, "")
    for path in (
        "/secret.txt",
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "//secret.txt",
        "/favicon.ico",
    ):
        assert ask(server, path).status == 404
    assert ask(server, "/", "POST").status == 501
    assert ask(server, "/?" + "&".join(f"a{i}=1" for i in range(99))).status == 400


def test_without_the_token_nothing_is_answered(server: PageServer) -> None:
    for path in ("/", "/page.html", "/secret.txt", "/state", f"/{server.token[:-1]}", f"/?token={server.token}"):
        assert ask(server, path, cookie="").status == 403
    for wrong in ("lavis_ext_1=x", f"{server.cookie}=", f"{server.cookie}=ä", "\x01", f"other={server.token}"):
        found = ask(server, "/", cookie=wrong)
        assert found.status == 403 and server.token not in found.text


def test_the_token_moves_from_the_address_into_a_cookie(server: PageServer) -> None:
    first = ask(server, f"/{server.token}", cookie="")
    assert (first.status, first.headers["Location"], first.text) == (303, "/", "")
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(first.headers["Set-Cookie"].split("; "))
    page = ask(server, "/", cookie=first.headers["Set-Cookie"].partition(";")[0])
    assert page.status == 200 and server.token not in page.text + str(page.headers)
    assert page.headers["Referrer-Policy"] == "no-referrer" and page.headers["Cache-Control"] == "no-store"
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]


def test_each_server_has_a_token_of_its_own(server: PageServer) -> None:
    with served(server.app) as other:
        assert other.token != server.token
        assert ask(other, "/", cookie=cookie_of(server)).status == 403


def test_a_page_that_is_written_anew_is_shown_anew(server: PageServer) -> None:
    page = server.app.page  # type: ignore[attr-defined]
    page.write_text("new")
    assert ask(server, "/").text == "new"
    page.unlink()
    assert ask(server, "/").status == 404


def test_foreign_names_for_this_machine_are_refused(server: PageServer) -> None:
    port = server.server_address[1]
    for host in ("evil.example", f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", ""):
        assert ask(server, "/", host=host).status == 403
        assert ask(server, f"/{server.token}", host=host, cookie="").status == 403
    assert ask(server, "/", host=f"localhost:{port}").status == 200
    for names in ([f"127.0.0.1:{port}", "evil.example"], [f"127.0.0.1:{port}"] * 2, []):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.putrequest("GET", "/", skip_host=True)
        for name in names:
            connection.putheader("Host", name)
        connection.putheader("Cookie", cookie_of(server))
        connection.endheaders()
        assert connection.getresponse().status == 403, names
        connection.close()


def test_a_page_that_fails_does_not_end_the_server() -> None:
    class Failing:
        name = "nothing"

        def answer(self, path: str, asked: object) -> Reply | None:
            if path == "/":
                raise RuntimeError("broken")
            return Reply(b"whole")

    said: list[str] = []
    with served(Failing(), said.append) as server:
        assert ask(server, "/").status == 500 and ask(server, "/other").text == "whole"
        assert said == ["a page failed: RuntimeError: broken"]


@pytest.mark.parametrize("port", [None, 70_000, -1])
def test_a_port_that_cannot_be_had_is_told(server: PageServer, port: int | None) -> None:
    with pytest.raises(UsageError, match="--port"):
        serve(server.app, print, server.server_address[1] if port is None else port)


def test_a_port_without_a_server_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").touch()
    assert main(["browse", str(tmp_path), "--port", "8000"]) == 2


def test_the_verb_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    run, port = tmp_path / "run", 0
    run.mkdir()
    (run / "log.jsonl").write_text('{"kind": "train", "step": 1, "epoch": 0, "loss": 1}\n')
    command = [sys.executable, "-m", "lavis_ext", "browse", str(run), "--serve"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            found = re.search(r"http://127\.0\.0\.1:(\d+)(/\S{20,})", process.stderr.readline())
            assert found
            port = int(found[1])
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", found[2])
            key = connection.getresponse().headers["Set-Cookie"].partition(";")[0]
            connection.close()
            connection.request("GET", "/", headers={"Cookie": key})
            answer = connection.getresponse()
            assert answer.status == 200 and "run report" in answer.read().decode()
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
            said = process.stderr.read()
            assert found[2] not in said and "GET" not in said  # no request is logged
        finally:
            process.kill()
    assert [one.name for one in run.iterdir()] == ["log.jsonl"]  # it writes nothing

"""Faults at the command line: where it runs, what it prints and to whom, and that what it says is what happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from lavis_ext.cli import main
from lavis_ext.common.errors import ConfigError
from lavis_ext.fetch import lock
from lavis_ext.fetch.backends import confirmed_url
from lavis_ext.fetch.lock import Ownership
from lavis_ext.fetch.transfer import Failure
from lavis_ext.prepare.urls import fetch_list
from tests.support.canary import planted
from tests.support.fetching import CANARY, FAST, IMPATIENT, SIZE, World
from tests.support.server import Fault, Server, payload, wait_until
from tests.support.toyfamily import ROOT, Family, pictures, rows_of, tree, zip_bytes
from tests.support.weblist import WebList, make_job

COMMAND = [sys.executable, "-m", "lavis_ext"]


@pytest.fixture
def toy(server: Server, tmp_path: Path) -> Family:
    """A family of two archives."""
    return Family(server, tmp_path / "root")


def run(toy: Family, *words: str, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    """A command of the family, in a process of its own."""
    configs = toy.write_card(toy.root.parent / "configs")
    around = toy.environment(configs, **more)
    return subprocess.run([*COMMAND, *words], cwd=cwd, env=around, capture_output=True, text=True, check=False)


# Where it runs


@pytest.mark.fault("F14")
def test_nothing_is_written_into_the_working_folder(toy: Family, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    assert run(toy, "prepare", "toy", cwd=tmp_path / "here").returncode == 0
    assert toy.complete() and list((tmp_path / "here").iterdir()) == []


@pytest.mark.fault("F14")
def test_a_working_folder_that_is_gone(toy: Family, tmp_path: Path) -> None:
    around = toy.environment(toy.write_card(tmp_path / "configs"))
    (tmp_path / "gone").mkdir()
    script = f"cd {tmp_path}/gone && rmdir ../gone && exec {' '.join(COMMAND)} prepare toy"
    done = subprocess.run(["sh", "-c", script], env=around, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert toy.complete() and not (tmp_path / "gone").exists()


@pytest.mark.fault("F14")
@pytest.mark.parametrize("script", sorted((ROOT / "prepare_data").rglob("*.sh")), ids=lambda path: path.name)
def test_scripts_do_not_go_on_where_a_step_fails(tmp_path: Path, script: Path) -> None:
    (tmp_path / "here").mkdir()
    step = tmp_path / "python"
    step.write_text(f"#!/bin/sh\necho called >> {tmp_path}/calls\nexit 6\n")
    step.chmod(0o755)
    done = subprocess.run(
        ["sh", str(script)], cwd=tmp_path / "here", env={**os.environ, "PYTHON": str(step)}, check=False
    )
    assert done.returncode == 6 and (tmp_path / "calls").read_text() == "called\n"
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.fault("P09")
def test_a_package_that_is_not_there_is_named(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gdown", None)
    monkeypatch.setitem(sys.modules, "gdown.download", None)
    monkeypatch.setitem(sys.modules, "img2dataset", None)
    with pytest.raises(Failure, match=r"gdown is not installed: pip install"):
        confirmed_url("<html>download anyway</html>", "f.zip")
    web = WebList(server)
    web.fill(3)
    with pytest.raises(ConfigError, match=r"is not installed; pip install") as caught:
        fetch_list(make_job(tmp_path, web.write(tmp_path / "rows.json")))
    assert caught.value.exit_code == 3 and server.log == []


# What it prints, and to whom


@pytest.mark.fault("U03", "F10")
@pytest.mark.parametrize("words", [["-m", "lavis_ext", "prepare"], ["-c", "{}", "prepare"]], ids=["command", "called"])
def test_names_outside_ascii_in_a_locale_that_has_none(server: Server, tmp_path: Path, words: list[str]) -> None:
    """The command works; where a program of others' calls it, it says what to set, before a file is touched."""
    train = {f"bälle/{name}.jpg": payload(500, n) for n, name in enumerate(["☃", "日本", "ä", "a"])}
    toy = Family(server, tmp_path / "röot", train)
    card = toy.write_card(tmp_path / "configs")
    off = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LANG": "C", "LC_ALL": "C"}
    program = "import sys; from lavis_ext.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, *(word.format(program) for word in words), "toy", "--json"]
    done = subprocess.run(command, env=toy.environment(card, **off), capture_output=True, timeout=60)
    assert b"Traceback" not in done.stderr and b"internal error" not in done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    if words[0] == "-m":
        assert done.returncode == 0 and toy.complete()
    else:
        assert done.returncode == answer["exit_code"] == 3 and b"PYTHONUTF8" in done.stderr + done.stdout


@pytest.mark.fault("U03")
@pytest.mark.parametrize("words", [["list"], ["show", "toy"], ["prepare", "toy"], ["status", "toy"], ["verify", "toy"]])
def test_a_narrow_terminal_without_colour_or_unicode(server: Server, tmp_path: Path, words: list[str]) -> None:
    toy = Family(server, tmp_path / "root", train={**pictures("train", 3), "train/Bälle ☃.jpg": b"\xff\xd8x"})
    plain = {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "COLUMNS": "20", "NO_COLOR": "1", "TERM": "dumb"}
    if words[0] in ("status", "verify"):
        assert toy.prepare().exit_code == 0
    done = run(toy, *words, **plain)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.fault("S10")
@pytest.mark.parametrize("field", ["x-ms-error-code", "Location", "ETag"])
def test_a_server_writes_nothing_to_the_terminal(toy: Family, field: str) -> None:
    text = "\x1b[2J\x1b]0;owned\x07"
    status = 302 if field == "Location" else 403
    value = f"http://127.0.0.1:1/{text}" if field == "Location" else text
    toy.server.script(toy.path("val.zip"), Fault(status=status, headers={field: value}, body=text.encode()))
    done = run(toy, "prepare", "toy", "--split", "val")
    assert done.returncode in (4, 7) and "Traceback" not in done.stderr
    assert "\x1b" not in done.stdout + done.stderr and "\x07" not in done.stdout + done.stderr


def unpreparable(toy: Family) -> None:
    toy.root.write_text("a file where the cache root belongs")


def not_found(toy: Family) -> None:
    del toy.server.objects[toy.path("val.zip")]


def other_bytes(toy: Family) -> None:
    data = bytearray(toy.blobs["val.zip"])
    data[100] ^= 1
    toy.server.put(toy.path("val.zip"), bytes(data))


def denied(toy: Family) -> None:
    toy.server.script(toy.path("val.zip"), Fault(status=403))


@pytest.mark.fault("U04")
@pytest.mark.parametrize(
    ("words", "spoil", "code"),
    [
        (["prepare", "nothing"], None, 2),
        (["prepare", "toy", "--splitt", "val"], None, 2),
        (["check", "CONFIGS/datasets/toy/bad.yaml"], None, 3),
        (["prepare", "toy"], not_found, 4),
        (["prepare", "toy", "--offline"], None, 4),
        (["prepare", "toy"], other_bytes, 5),
        (["prepare", "toy"], unpreparable, 6),
        (["prepare", "toy"], denied, 7),
    ],
)
def test_json_stays_json_on_every_way_to_fail(
    toy: Family,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    spoil: Callable[[Family], None] | None,
    code: int,
) -> None:
    configs = toy.write_card(tmp_path / "configs")
    for name, value in toy.environment(configs).items():
        monkeypatch.setenv(name, value)
    if spoil is not None:
        spoil(toy)
    if code == 3:
        (configs / "datasets" / "toy" / "bad.yaml").write_text("datasets: {mine: {builder: image_captoin}}")
    assert main([word.replace("CONFIGS", str(configs)) for word in words] + ["--json"]) == code
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert objects and objects[-1]["exit_code"] == code


@pytest.mark.fault("U04")
@pytest.mark.parametrize("code", [8, 9, 10])
def test_json_of_a_part_an_owner_and_unsafe_content(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    toy = Family(server, tmp_path / "root", threshold=0.99 if code == 8 else 1.0, declared=code != 10)
    if code == 8:
        toy.offer("val.json", rows_of([*sorted(toy.val), "val/lost.jpg"]))
    if code == 10:
        toy.offer("val.zip", zip_bytes({**toy.val, "../evil": b"x"}))
    for name, value in toy.environment(toy.write_card(tmp_path / "configs")).items():
        monkeypatch.setenv(name, value)
    with ExitStack() as held:
        if code == 9:
            folder = toy.root / "toy/.lavis_ext"
            folder.mkdir(parents=True)
            held.enter_context(Ownership(folder / "prepare.owner", folder / "prepare.pulse", FAST))
            fast = SimpleNamespace(monotonic=lambda: 1000 * time.monotonic(), sleep=time.sleep)
            monkeypatch.setattr(lock, "time", fast)  # two minutes without progress pass in a moment
        assert main(["prepare", "toy", "--json"]) == code
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert objects[-1]["exit_code"] == code


@pytest.mark.fault("S08")
def test_doctor_says_of_secrets_only_whether_they_are_set(tmp_path: Path) -> None:
    planted(tmp_path / ".netrc").write_text(f"machine huggingface.co login me password {CANARY}\n")
    (tmp_path / ".netrc").chmod(0o600)
    names = ("HF_TOKEN", "LAVIS_EXT_AZURE_SAS_OSCAR", "LAVIS_EXT_AZURE_SAS_MINE")
    around = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "LAVIS_EXT_CACHE_ROOT": str(tmp_path / "d")}
    around |= dict.fromkeys(names, f"sv=1&sp=r&sig={CANARY}")
    around["HTTPS_PROXY"] = f"http://user:{CANARY}@proxy.example:1"
    for more in ([], ["--json"]):
        done = subprocess.run([*COMMAND, "doctor", *more], env=around, capture_output=True, text=True, check=False)
        assert CANARY not in done.stdout + done.stderr and done.returncode in (0, 3, 6)
        assert "LAVIS_EXT_AZURE_SAS_OSCAR" in done.stdout


# What it says is what happened


@pytest.mark.fault("U10")
def test_the_last_line_is_what_the_server_s_log_says(toy: Family) -> None:
    path = toy.path("train.zip")
    toy.server.script(path, Fault(times=1, cut_at=20_000), Fault(times=1, status=503))
    toy.server.script(toy.path("val.json"), Fault(status=403))
    done = run(toy, "prepare", "toy", "--json", "--jobs", "1")
    [said, last] = map(json.loads, done.stdout.splitlines())
    assert done.returncode == said["exit_code"] == last["exit_code"] == 7
    outcomes = [one["outcome"] for one in said["outcomes"]]
    assert (outcomes.count("downloaded"), outcomes.count("failed")) == (3, 1)
    sent = toy.server.sent()
    assert sent == sum(len(data) for name, data in toy.blobs.items() if name != "val.json")
    assert said["bytes"] == sum(one["bytes"] for one in said["outcomes"]) == sent
    toy.server.faults.clear()
    done = run(toy, "prepare", "toy", "--json")
    [said, last] = map(json.loads, done.stdout.splitlines())
    assert last["exit_code"] == 0 and said["bytes"] == len(toy.blobs["val.json"]) == toy.server.sent() - sent


@pytest.mark.fault("U05")
def test_the_second_command_moves_nothing_within_two_seconds(toy: Family) -> None:
    assert run(toy, "prepare", "toy").returncode == 0
    data = [path for path in toy.root.rglob("*") if ".lavis_ext" not in path.parts]
    before = {path: path.stat().st_mtime_ns for path in data}
    sent, begun = toy.server.sent(), os.times()
    done = run(toy, "prepare", "toy")
    took = os.times()  # of the processor: a busy machine may take longer
    assert took.children_user + took.children_system - begun.children_user - begun.children_system < 2
    assert done.returncode == 0 and toy.server.sent() == sent
    assert {path: path.stat().st_mtime_ns for path in data} == before


@pytest.mark.fault("U06")
def test_so_many_samples_and_the_same_ones_in_a_larger_number(server: Server, tmp_path: Path) -> None:
    shown = {}
    for root, number in (("a", 3), ("b", 3), ("c", 5)):
        toy = Family(server, tmp_path / root)
        report = toy.prepare(max_samples=number)
        assert report.exit_code == 0
        assert {split.split: split.samples for split in report.splits} == {"train": number, "val": number}
        shown[root] = tree(toy.images)
        assert len(shown[root]) == number + -(-number // 2)  # two captions a picture of val
    assert shown["a"] == shown["b"] and shown["a"].items() <= shown["c"].items()
    toy = Family(server, tmp_path / "a")
    assert toy.prepare(max_samples=5).exit_code == 0 and tree(toy.images) == shown["c"]


@pytest.mark.fault("U01")
def test_a_dry_run_of_a_command_connects_to_nobody(toy: Family, tmp_path: Path) -> None:
    """Without a mirror that has a manifest to ask for, in a network that is not there."""
    configs = toy.write_card(tmp_path / "configs")
    around = toy.environment(configs, LAVIS_EXT_MIRROR="")
    command = ["unshare", "-rn", *COMMAND, "prepare", "toy", "--dry-run"]
    if subprocess.run(["unshare", "-rn", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no network namespace may be made here")
    done = subprocess.run(command, env=around, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not toy.root.exists() and toy.server.log == []


@pytest.mark.fault("U08")
def test_a_licence_is_shown_and_its_acceptance_is_asked_for(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toy = Family(server, tmp_path / "root", declared=False)
    configs = toy.write_card(tmp_path / "configs")
    card = configs / "datasets" / "toy" / "artifacts.yaml"
    gated = json.loads(card.read_text())
    gated["artifacts"]["val"]["url"] = "hf:datasets/owner/gated/val.zip"
    card.write_text(json.dumps(gated))
    path = "/datasets/owner/gated/resolve/main/val.zip"
    server.put(path, toy.blobs["val.zip"])
    server.put("/val.json", toy.blobs["val.json"])
    server.script(path, Fault(status=403, headers={"X-Error-Code": "GatedRepo"}))
    for name, value in toy.environment(configs, HF_ENDPOINT=server.base, HF_TOKEN=CANARY, HF_HUB_OFFLINE="0").items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LAVIS_EXT_MIRROR")
    assert main(["show", "toy"]) == 0 and "licence: for nobody" in capsys.readouterr().out
    gated["artifacts"]["val_rows"]["url"] = server.url("/val.json")
    card.write_text(json.dumps(gated))
    assert main(["prepare", "toy", "--split", "val"]) == 7
    said = capsys.readouterr()
    assert f"{server.base}/datasets/owner/gated" in said.out + said.err and CANARY not in said.out + said.err
    server.faults.clear()
    assert main(["prepare", "toy", "--split", "val"]) == 0


# Signals, pipes and clocks


@pytest.mark.fault("P07")
@pytest.mark.parametrize("how", ["closed", "hangup"])
def test_nobody_reads_any_more(toy: Family, tmp_path: Path, how: str) -> None:
    around = toy.environment(toy.write_card(tmp_path / "configs"))
    toy.server.script(toy.path("train.zip"), Fault(stall_at=20_000, stall=60.0 if how == "hangup" else 0.5))
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [*COMMAND, "prepare", "toy"],
        env=around,
        stdout=pipe,
        stderr=pipe,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # which `nohup` has ignored for all below it
    )
    assert process.stdout is not None and process.stderr is not None
    if how == "closed":
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
        assert process.wait(60) == 0
    else:
        assert wait_until(lambda: toy.server.sent() >= 20_000, 60)
        process.send_signal(signal.SIGHUP)
        assert "Traceback" not in process.communicate(timeout=60)[1]
    toy.server.faults.clear()
    assert run(toy, "prepare", "toy").returncode == 0 and toy.complete()


@pytest.mark.fault("P08")
def test_the_clock_jumps_while_a_file_is_fetched(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = iter(range(1, 10**9))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + (86_400 * 365 if next(jumps) % 2 else -86_400 * 365))
    world.server.script(
        "/f.bin",
        Fault(times=1, stall_at=100_000, stall=60.0),
        Fault(times=1, status=503, headers={"Retry-After": "1"}),
        Fault(times=1, rate=600_000.0),
    )
    world.policy = IMPATIENT
    begun = time.monotonic()
    assert world.get().bytes_moved == SIZE
    assert time.monotonic() - begun < 60


@pytest.mark.fault("P08")
def test_a_folder_stamped_in_another_year_is_no_owner_and_no_record_lost(toy: Family) -> None:
    assert toy.prepare().exit_code == 0
    for path in [*toy.root.rglob("*")]:
        os.utime(path, (4e9, 4e9))
    sent = toy.server.sent()
    assert toy.prepare().exit_code == 0 and toy.complete()
    assert toy.server.sent() - sent < 1000

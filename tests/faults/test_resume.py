"""Faults between two runs: what is resumed, what starts over, and what is never taken for the declared file."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from lavis_ext.common.errors import IntegrityError
from lavis_ext.fetch import Figures, Source, fetch
from lavis_ext.fetch import engine as existing
from tests.support.fetching import SIZE, World
from tests.support.server import Fault, payload


@pytest.mark.fault("R01")
def test_object_replaced_between_runs(world: World) -> None:
    world.leave_partial()
    world.data = payload(SIZE, seed=2)
    world.server.put("/f.bin", world.data)
    assert world.get().bytes_moved == SIZE
    assert world.server.log[0].headers["If-Range"].strip('"') == hashlib.md5(payload(SIZE)).hexdigest()


@pytest.mark.fault("R02")
def test_one_bit_flipped(world: World) -> None:
    world.server.script("/f.bin", Fault(times=1, flip_at=1234))
    assert world.get().bytes_moved == 2 * SIZE
    world.target.unlink()
    world.server.script("/f.bin", Fault(flip_at=1234))
    assert world.get(world.first_url, world.second_url).source == world.second_url
    world.target.unlink()
    world.fails(IntegrityError, "expected sha256 .* got ")
    assert len(world.server.requests("/f.bin")) == 6
    world.heals()


@pytest.mark.fault("R03")
def test_partial_file_tampered(world: World) -> None:
    world.leave_partial()
    with world.part.open("r+b") as file:
        file.write(b"tampered")
    assert world.get().bytes_moved == SIZE // 2 + SIZE


@pytest.mark.fault("R04")
def test_partial_file_too_long(world: World) -> None:
    world.leave_partial()
    with world.part.open("ab") as file:
        file.write(b"x" * SIZE)
    assert world.get().bytes_moved == SIZE


@pytest.mark.fault("R05")
def test_sidecar_of_no_use(world: World) -> None:
    other = {"format": 1, "done": [[0, 999_999_999]]}
    for text in ("{half", json.dumps(other), json.dumps([]), None):
        world.leave_partial()
        if text is None:
            world.sidecar.unlink()
        else:
            world.sidecar.write_text(text)
        world.log.clear()
        assert world.get().bytes_moved == SIZE
        assert "starting over" in world.log.text
        world.target.unlink()
    another = world.server.url("/another.bin")
    world.leave_partial(url=another)
    assert fetch(world.bare(), world.policy).bytes_moved == SIZE // 2  # the strong ETag says: the same object
    world.target.unlink()
    world.leave_partial(url=another)
    world.sidecar.write_text(json.dumps(json.loads(world.sidecar.read_text()) | {"etag": '"other"'}))
    assert fetch(world.bare(), world.policy).bytes_moved == SIZE
    assert world.target.read_bytes() == world.data


@pytest.mark.fault("R06")
def test_second_exact_mirror_continues(world: World) -> None:
    world.server.script("/f.bin", Fault(times=1, cut_at=180_000), Fault(status=503))
    result = world.get(world.first_url, world.second_url)
    assert result.bytes_moved == SIZE and world.second.log[0].range == "bytes=180000-"
    assert "If-Range" not in world.second.log[0].headers


@pytest.mark.fault("R07")
def test_mirror_with_other_bytes_starts_over(world: World) -> None:
    other = payload(200_000, seed=3)
    own = Source(
        world.second.put("/o.bin", other), "reencoded", size=len(other), sha256=hashlib.sha256(other).hexdigest()
    )
    world.server.script("/f.bin", Fault(times=1, cut_at=180_000), Fault(status=503))
    result = fetch(world.transfer(world.first_url, own), world.policy)
    assert (result.equivalence, result.verified, world.second.log[0].range) == ("reencoded", True, None)
    assert world.target.read_bytes() == other
    assert fetch(world.transfer(world.first_url, own), world.policy).reused


@pytest.mark.fault("R08")
def test_wrong_file_is_set_aside(world: World) -> None:
    world.target.parent.mkdir(parents=True)
    world.target.write_bytes(b"mine" * (SIZE // 4))
    name = f"f.bin.bad-{hashlib.sha256(b'mine' * (SIZE // 4)).hexdigest()[:8]}"
    assert name in world.get().notes[0]
    assert world.target.with_name(name).read_bytes() == b"mine" * (SIZE // 4)


@pytest.mark.fault("R09")
def test_empty_file_of_an_earlier_tool(world: World) -> None:
    world.target.parent.mkdir(parents=True)
    world.target.touch()
    world.get()
    world.target.write_bytes(b"")
    assert fetch(world.bare(), world.policy).bytes_moved == SIZE


@pytest.mark.fault("R10")
def test_declared_md5_is_honoured(world: World) -> None:
    world.fails(IntegrityError, "expected md5 0123", sha256=None, md5="0123" * 8)
    world.get(sha256=None, md5=hashlib.md5(world.data).hexdigest().upper())


@pytest.mark.fault("R11")
def test_republished_under_a_new_hash(world: World) -> None:
    world.server.put("/f.bin", payload(SIZE, seed=9))
    message = world.fails(IntegrityError, "expected sha256")
    assert hashlib.sha256(payload(SIZE, seed=9)).hexdigest() in message and "checksum NAME --accept" in message
    world.server.put("/f.bin", world.data)
    world.heals()


@pytest.mark.fault("R13")
def test_killed_between_rename_and_record(world: World) -> None:
    world.get()
    (world.target.parent / ".lavis_ext" / "ledger.jsonl").unlink()
    world.sidecar.write_text("{}")
    again = world.get()
    assert again.reused and len(world.server.log) == 1
    assert (world.target.parent / ".lavis_ext" / "ledger.jsonl").stat().st_size > 0


@pytest.mark.fault("R14")
def test_hashed_again_only_if_it_changed(world: World) -> None:
    world.get()
    hashed: list[Path] = []
    real = existing.hash_file

    def counted(path: Path, figures: Figures) -> tuple[str, str | None]:
        hashed.append(path)
        return real(path, figures)

    world.patch.setattr(existing, "hash_file", counted)
    world.get()
    assert not hashed
    os.utime(world.target, (1, 1))
    assert world.get().reused and len(hashed) == 1
    world.get()
    assert len(hashed) == 1
    stat = world.target.stat()
    with world.target.open("r+b") as file:
        file.write(b"X")
    os.utime(world.target, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    world.policy = replace(world.policy, deep=True)
    assert not world.get().reused and len(world.server.log) == 2

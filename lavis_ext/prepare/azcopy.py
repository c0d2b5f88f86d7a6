"""`--engine azcopy`: blobs come through azcopy, which is led to a door on loopback, so that it is told no token."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lavis_ext.errors import LavisExtError, NetworkError, UsageError
from lavis_ext.fetch import Policy, Progress, Session, Transfer, redact
from lavis_ext.fetch.failures import conclude
from lavis_ext.fetch.openers import scheme_of
from lavis_ext.fetch.relay import Relay
from lavis_ext.fetch.sas import FILE_VARIABLE, VARIABLE
from lavis_ext.prepare.placing import disk_errors

PROGRAM = "azcopy"
PARTIAL = ".azcopy"
FLAGS = ["--from-to=BlobLocal", "--overwrite=true", "--check-length=true", "--output-type=json", "--log-level=ERROR"]


def azcopy_path() -> str:
    """Where azcopy is; raises UsageError where it is not installed."""
    found = shutil.which(PROGRAM)
    if found is None:
        raise UsageError("--engine azcopy", "azcopy is not on the PATH", "install it, or leave out --engine")
    return found


def bring(
    transfers: Sequence[Transfer], home: Path, policy: Policy, progress: Progress
) -> dict[Path, int | LavisExtError]:
    """Copy the blobs among these transfers that are not there: path → bytes that moved, or why it failed.

    What came is not judged here: it lies where it belongs, and the fetch engine compares it with what is declared.
    azcopy keeps its log and its plans below `home`. Raises UsageError where there is no azcopy.
    """
    wanted = [one for one in transfers if scheme_of(one.sources[0].url) == "azure" and not one.path.exists()]
    if not wanted or policy.offline:
        return {}
    program = azcopy_path()
    labels = {one.sources[0].url: one.name for one in wanted}
    with Session(policy, progress) as session, Relay(session, labels) as relay:
        return {one.path: _bring_one(program, one, relay, home) for one in wanted}


def _bring_one(program: str, transfer: Transfer, relay: Relay, home: Path) -> int | LavisExtError:
    url, partial = transfer.sources[0].url, transfer.path.with_name(transfer.path.name + PARTIAL)
    with disk_errors(transfer.path):
        transfer.path.parent.mkdir(parents=True, exist_ok=True)
    relay.session.progress.begin(transfer.name, transfer.size)
    outcome = "failed"
    try:
        done = subprocess.run(
            [program, "copy", relay.url(url), str(partial), *FLAGS],
            env=environment(home),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode == 0 and partial.is_file():
            partial.replace(transfer.path)
            outcome = "fetched"
            return relay.moved[url]
    finally:
        relay.session.progress.end(transfer.name, outcome)
    if url in relay.failures:
        return conclude(transfer.name, [(url, relay.failures[url])])
    what = f"azcopy ended with {done.returncode}: {last_words(done.stdout + done.stderr)}"
    return NetworkError(transfer.name, what, "run again, or leave out --engine azcopy")


def environment(home: Path) -> dict[str, str]:
    """The environment of azcopy: without tokens and without proxies for loopback, its records in our bookkeeping."""
    secret = (VARIABLE, FILE_VARIABLE, "HF_TOKEN")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(secret)}
    place = str(home / PROGRAM)
    return {**kept, "NO_PROXY": "127.0.0.1", "AZCOPY_LOG_LOCATION": place, "AZCOPY_JOB_PLAN_LOCATION": place}


def last_words(output: str) -> str:
    """The last message of azcopy's JSON lines (`MessageContent`), else its last line, without secrets, on one line."""
    lines = [line for line in output.splitlines() if line.strip()]
    for line in reversed(lines):
        try:
            told = json.loads(line)["MessageContent"]
        except (ValueError, TypeError, KeyError):
            continue
        return redact(" ".join(str(told).split())[:300])
    return redact(lines[-1][:300]) if lines else "it said nothing"

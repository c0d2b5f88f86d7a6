"""The bookkeeping of format 1 (0.1 before there were records): read where there is no record, never written.

The next `prepare` writes a record of today's format and removes these files.
"""

from __future__ import annotations

import logging
import zlib
from dataclasses import asdict
from pathlib import Path

from lavis_ext.common.config.cards import Artifact
from lavis_ext.common.files import decode_json, read_file
from lavis_ext.prepare.records import UNREADABLE, ArtifactRecord, Member, MemberTable, Origin, Proof, record_path

log = logging.getLogger(__name__)


def old_record(root: Path, artifact: Artifact) -> ArtifactRecord | None:
    """`stamps/<file>.json` as a record, `legacy` set; None where there is none that can be read."""
    path = record_path(root, artifact, "stamps")
    try:
        old = decode_json(read_file(path))
        if old.pop("format") != 1:
            return None
        declared, listing = old.pop("declared"), record_path(root, artifact, "members", ".tsv")
        proof: Proof = {"crc32": "crc", "": "none"}.get(old["verified"], old["verified"])
        # where single members were fetched, format 1 kept the declared digest, which nothing was compared with
        sha256 = None if proof == "crc" and old["sha256"] == declared else old["sha256"]
        listed = ("", listing.stat().st_size if listing.is_file() else -1) if artifact.unpack else None
        return ArtifactRecord(
            **{key: old[key] for key in ("artifact", "file", "equivalence", "state", "files", "bytes", "folders")},
            origin=_origin(declared, old["url"]),
            fetched_from=old["source"],
            size=old["size"],
            sha256=sha256,
            verified=proof,
            against="" if proof == "none" else "its own directory" if proof == "crc" else "the card",
            table=listed,
            wanted=old["wanted"],
            when=old["when"],
            version=old["version"],
            legacy=True,
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UNREADABLE as error:
        log.warning("%s: cannot be read and is ignored (%s)", path, error)
        return None


def _origin(declared: str, url: str) -> Origin:
    """What a card promised, as format 1 wrote it: a digest, or `url size`."""
    if len(declared) in (32, 64) and " " not in declared:
        sha256, md5 = (declared, None) if len(declared) == 64 else (None, declared)
        return Origin(url=url, sha256=sha256, md5=md5)
    place, _, size = declared.rpartition(" ")
    return Origin(url=place, size=int(size) if size.isdigit() else None)


def old_table(root: Path, artifact: Artifact) -> MemberTable | None:
    """`members/<file>.tsv` and, where only some of them were fetched, the journal that says which."""
    path = record_path(root, artifact, "members", ".tsv")
    record = old_record(root, artifact)
    if record is None:
        return None  # nothing says of which version it is
    try:
        head, _, body = read_file(path).decode().partition("\n")
        about = decode_json(head)
        members = [_member(line) for line in body.split("\n")[:-1]]
        if about.pop("members") != len(members):
            raise ValueError("it is cut off")
        about["origin"] = asdict(record.origin)
        if record.state != "partial":
            return MemberTable(members, about, range(len(members)) if record.state == "complete" else ())
        noted, *lines = record_path(root, artifact, "journal", ".log").read_bytes().split(b"\n")
        same = decode_json(noted)["inventory"] == f"{len(members)}-{zlib.crc32(body.encode()):08x}"
        return MemberTable(members, about, map(int, lines[:-1]) if same else ())
    except FileNotFoundError:
        return None
    except UNREADABLE as error:
        log.warning("%s: cannot be read and is ignored (%s)", path, error)
        return None


def _member(line: str) -> Member:
    name, size, crc, offset, packed, method = line.split("\t")
    return Member(name, int(size), int(crc, 16), int(offset), int(packed), int(method))

"""Two artifacts that put different bytes into one place: told before anything there is set aside or replaced.

Archives of one family often share a folder (COCO's do), and nobody knows before they are listed that a name comes
twice. Without this each would set the other's file aside, run after run, and both would count as verified.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from lavis_ext.common.config.cards import Artifact
from lavis_ext.common.errors import ConfigError, Problem
from lavis_ext.fetch.ledger import hash_file, mismatch
from lavis_ext.fetch.transfer import Transfer
from lavis_ext.prepare.records import open_table, read_record

if TYPE_CHECKING:
    from lavis_ext.prepare.plan import PrepareContext

SHOWN = 5


def claimed(context: PrepareContext, artifact: Artifact, paths: Iterable[Path]) -> dict[Path, str]:
    """Of some paths below the cache root, those that hold what another artifact put there, with its title.

    That is the file of each that is declared, and every member that the record of an archive lists.
    """
    wanted = {path.relative_to(context.root).as_posix(): path for path in paths}
    found: dict[Path, str] = {}
    for other in context.artifacts():
        title = f"{other.family}/{other.name}"
        if other.file == artifact.file or other.folder is not None:
            continue
        if other.file in wanted:
            found.setdefault(wanted[other.file], title)
        below = _below(wanted, other) if other.unpack else []
        record = read_record(context.root, other) if below else None
        if record is None or record.state == "packed" or not record.is_of(other):
            continue
        table = open_table(context.root, other, record)
        held = {table.members[number].name for number in table.held} if table is not None else set()
        found |= {wanted[whole]: title for whole, name in below if name in held and wanted[whole] not in found}
    return found


def _below(wanted: Iterable[str], other: Artifact) -> list[tuple[str, str]]:
    """The wanted paths below an archive's folder, each with the name that its member would have."""
    folder = PurePosixPath(other.storage)
    paths = [(path, PurePosixPath(path)) for path in wanted]
    return [(whole, path.relative_to(folder).as_posix()) for whole, path in paths if path.is_relative_to(folder)]


def refuse_claimed(context: PrepareContext, artifact: Artifact, paths: Sequence[Path]) -> None:
    """Before files are set aside: raise ConfigError where some are of other artifacts.

    Nothing is changed then: what came first stays, and is what its record says.
    """
    found = claimed(context, artifact, paths)
    if found:
        where, way_out = f"artifact '{artifact.family}/{artifact.name}'", "give one of the two another `storage`"
        problems = [
            Problem(where, f"has other bytes for {path} than '{title}', which is there", way_out)
            for path, title in list(found.items())[:SHOWN]
        ]
        if len(found) > SHOWN:
            problems.append(Problem(where, f"{len(found) - SHOWN:,} more files of others are in its place", way_out))
        raise ConfigError.of(problems)


def refuse_claimed_file(context: PrepareContext, artifact: Artifact, transfer: Transfer) -> None:
    """The same for a file that is fetched whole, where another one is in its place; raises ConfigError, DiskError."""
    path = context.root / artifact.file
    if not path.is_file() or not claimed(context, artifact, [path]):
        return
    kinds = [transfer.figures(), *map(transfer.figures, transfer.sources)]
    if all(mismatch(figures, path.stat().st_size, *hash_file(path, figures)) for figures in kinds if figures.declared):
        refuse_claimed(context, artifact, [path])

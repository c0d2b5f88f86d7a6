"""The verb `checksum`: what cards, a project's lock, the disk and the sources say of each file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lavis_ext.cli.verb import Answer, Names, Options, Quiet, cache_root_of, examples, flag, progress_of
from lavis_ext.common.errors import Problem
from lavis_ext.common.wording import columns


@dataclass(frozen=True, kw_only=True)
class Checksum(Names, Quiet, Options):
    """Flags of `checksum`."""

    accept: bool = flag(False, help="write what the sources offer now into ./lavis-ext.lock")


@examples("checksum coco_caption", "checksum coco_caption nocaps --accept")
def checksum(args: Checksum) -> Answer:
    """Old against new of every file: exit code 5 where a source has changed, until it is accepted by hand."""
    from concurrent.futures import ThreadPoolExecutor

    from lavis_ext.prepare import PrepareOptions, plan
    from lavis_ext.prepare.lockfile import Lock, accepted, compare

    root, lock = cache_root_of(args), Lock.read()
    options = PrepareOptions(cache_root=root)
    made = plan(args.names, options)
    items = [(item.request.artifact, item.disk.record) for item in made.items if item.request and not item.listed]
    parted = [one for one, _ in items if "{part" in one.url]
    with ThreadPoolExecutor(8) as pool:
        known = [pair for pair in items if pair[0] not in parted]
        found = list(pool.map(lambda pair: compare(pair[0], pair[1], lock, options.policy), known))
    lines = columns([["artifact", "state", "locked", "declared", "on disk", "at the source"], *map(_row, found)])
    lines += [f"{one.key}: {one.error}" for one in found if one.error]
    lines += [f"{one.family}/{one.name}: a list in parts is not pinned" for one in parted]
    code = max((5 if one.changed else one.error.exit_code if one.error else 0 for one in found), default=0)
    if args.accept:
        errors: list[Problem] = []
        with progress_of(args) as progress:
            for one in found:
                try:
                    lock.pins[one.key] = accepted(one, root, options.policy, progress)
                except Exception as error:
                    if not hasattr(error, "problems"):
                        raise
                    errors += error.problems
                    code = error.exit_code  # type: ignore[attr-defined]
        lock.write()
        lines += [f"{lock.path}: {len(found) - len(errors)} of {len(found)} accepted, {len(lock.pins)} pinned in all"]
        code = code if errors else 0
    elif any(one.changed for one in found):
        lines.append("accept what has changed with --accept, or name another source")
    return Answer(lines, [one.as_dict() for one in found], code)


def _row(one: Any) -> list[str]:
    pin = {"size": one.pin.size, "sha256": one.pin.sha256} if one.pin else {}
    return [one.key, one.state, *(_figures(told) for told in (pin, one.declared, one.disk, one.source))]


def _figures(told: Any) -> str:
    """`1,234 ab12cd34…`, as much of it as is known."""
    size, digest = told.get("size"), told.get("sha256") or told.get("md5") or told.get("version")
    words = [f"{size:,}" if size is not None else "", str(digest)[:12] if digest else ""]
    return " ".join(filter(None, words)) or "–"

"""`lavis-ext doctor`: versions, disk, settings and environment; imports nothing heavy, opens no connection."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from lavis_ext.common.config.resolve import cache_root_origin, config_roots
from lavis_ext.common.secrets import split_url

FLOORS = {
    "torch": ("2.6", "CVE-2025-32434: torch.load ran code even with weights_only"),
    "pillow": ("10.3", "CVE-2024-28219: buffer overflow"),
    "transformers": ("4.48", "CVE-2024-11392 and others: unsafe deserialisation"),
    "urllib3": ("2.5", "CVE-2025-50181: redirects followed when switched off"),
    "pyarrow": ("14.0.1", "CVE-2023-47248: code run from IPC files"),
}
"""The first version without a hole that foreign weights or images could use, and the advisory."""
NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "lustre", "gpfs", "cifs", "smb3", "beegfs", "ceph", "fuse.sshfs"}
GIB = 1 << 30


@dataclass(frozen=True)
class MachineCheck:
    """One thing that was looked at: `ok`, `warn` (works, with care) or `bad` (will not work)."""

    name: str
    state: Literal["ok", "warn", "bad"]
    text: str


def examine(root: Path) -> list[MachineCheck]:
    """All findings for data below `root`."""
    return [
        _python(),
        *(_package(name, floor, why) for name, (floor, why) in FLOORS.items()),
        _conflicting_torchvision(),
        _java(),
        *_disk(root),
        _settings(root),
        *_environment(),
    ]


def _python() -> MachineCheck:
    good = sys.version_info >= (3, 11)
    return MachineCheck("python", "ok" if good else "bad", f"{platform.python_version()} at {sys.executable}")


def _package(name: str, floor: str, why: str) -> MachineCheck:
    found = _version(name)
    if found is None:
        return MachineCheck(name, "bad", f"not installed; pip install -c constraints.txt {name}")
    if _numbers(found) < _numbers(floor):
        return MachineCheck(name, "warn", f"{found} is older than {floor} ({why}); update it")
    return MachineCheck(name, "ok", found)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.split("+")[0].split(".")
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in parts[:3])


def _conflicting_torchvision() -> MachineCheck:
    """torchvision's registry build does not import beside a CPU torch, and then takes transformers with it."""
    found, torch = _version("torchvision"), _version("torch") or ""
    if found and "cpu" in torch and "cpu" not in found:
        return MachineCheck(
            "torchvision", "bad", f"{found} beside torch {torch} breaks transformers; pip uninstall torchvision"
        )
    return MachineCheck("torchvision", "ok", found or "not installed, and not needed")


def _java() -> MachineCheck:
    java = shutil.which("java")
    return MachineCheck("java", "ok", java or "absent: METEOR and SPICE are left out, all other scores do without it")


def _disk(root: Path) -> list[MachineCheck]:
    there = next((p for p in [root, *root.parents] if p.exists()), Path("/"))
    if not there.is_dir():
        return [MachineCheck("cache root", "bad", f"{there} is a file; name a folder in LAVIS_EXT_CACHE_ROOT")]
    writable = os.access(there, os.W_OK | os.X_OK)
    free, inodes = shutil.disk_usage(there).free, os.statvfs(there).f_favail
    kind = _file_system(there)
    space = f"{free / GIB:.0f} GiB and {inodes:,} files free on {kind or 'this file system'}"
    network = kind in NETWORK_FILE_SYSTEMS
    locks = f"{kind}: locks are unreliable there; owner files with a heartbeat are used instead"
    return [
        MachineCheck(
            "cache root", "ok" if writable else "bad", f"{root}" + ("" if writable else f": {there} is not writable")
        ),
        MachineCheck("disk", "ok" if free > 20 * GIB else "warn", space),
        MachineCheck("file system", "warn" if network else "ok", locks if network else kind or "unknown"),
    ]


def _file_system(path: Path) -> str:
    """The type of the mount that holds `path`, from /proc/mounts (Linux), else an empty string."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return ""
    holding = [(where, kind) for where, kind in mounts if path.resolve().is_relative_to(where)]
    return max(holding, key=lambda mount: len(mount[0]), default=("", ""))[1]


def _settings(root: Path) -> MachineCheck:
    origin = cache_root_origin()[1] if cache_root_origin()[0] == str(root) else "option"
    return MachineCheck(
        "settings", "ok", f"cache root from {origin}; configs from {', '.join(map(str, config_roots()))}"
    )


def _environment() -> list[MachineCheck]:
    """Proxies by host, switches by value, secrets only as set or unset."""
    proxies = {
        name: value
        for name in ("http_proxy", "https_proxy")
        if (value := os.environ.get(name) or os.environ.get(name.upper()))
    }
    hosts = ", ".join(f"{name} → {split_url(value).hostname}" for name, value in proxies.items()) or "none"
    secrets = [n for n in os.environ if n.startswith("LAVIS_EXT_AZURE_SAS_")] + ["HF_TOKEN"]
    names = ("LAVIS_EXT_OFFLINE", "LAVIS_EXT_ALLOW_PRIVATE", "HF_HUB_OFFLINE")
    switches = {name: os.environ[name] for name in names if name in os.environ}
    mirror = "set" if os.environ.get("LAVIS_EXT_MIRROR") else "unset"
    return [
        MachineCheck("proxy", "ok", hosts),
        MachineCheck("switches", "ok", ", ".join(f"{n}={v}" for n, v in switches.items()) or "none"),
        MachineCheck("mirror", "ok", f"LAVIS_EXT_MIRROR {mirror}"),
        *(MachineCheck(name, "ok", "set" if os.environ.get(name) else "unset") for name in sorted(set(secrets))),
    ]

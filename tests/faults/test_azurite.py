"""The Oscar and VinVL ways against Azurite, Microsoft's own emulator, with signatures that Microsoft's SDK makes.

Needs the npm package `azurite` (`azurite-blob` on the PATH) and azure-storage-blob; `.ci/run` brings both.
"""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import quote, unquote

import pytest

from lavis_ext.fetch.azure import TOKENS
from tests.support.azure import traces
from tests.support.azure_world import CONTAINERS, Trees, draw_trees
from tests.support.processes import free_port
from tests.support.server import wait_until
from tests.support.toyfamily import ROOT, tree

blob = pytest.importorskip("azure.storage.blob", reason="azure-storage-blob is not installed")
pytestmark = (
    pytest.mark.slow
)  # no fault ids: those must count where there is no node, and are injected by the stand-in too


@dataclass
class Azurite:
    """A running emulator: accounts with drawn keys, and the containers of both families."""

    port: int
    keys: dict[str, str]
    accounts: dict[str, str] = field(default_factory=dict)
    """Container → account."""

    @property
    def base(self) -> str:
        """The endpoint, as LAVIS_EXT_AZURE_ENDPOINT takes it."""
        return f"http://127.0.0.1:{self.port}"

    def upload(self, files: dict[str, bytes]) -> None:
        """Files by `/ACCOUNT/CONTAINER/BLOB`."""
        for path, data in files.items():
            account, container, name = unquote(path).lstrip("/").split("/", 2)
            url = f"{self.base}/{account}"
            with blob.BlobServiceClient(url, credential=self.keys[account]) as service:
                if container not in self.accounts:
                    service.create_container(container)
                    self.accounts[container] = account
                service.get_blob_client(container, name).upload_blob(data)

    def sas(self, container: str, rights: str = "r", hours: float = 1.0, of: str = "") -> str:
        """What Microsoft's SDK signs; `of` signs for another container."""
        now = datetime.now(timezone.utc)
        account = self.accounts[of or container]
        return str(
            blob.generate_container_sas(
                account,
                of or container,
                account_key=self.keys[account],
                permission=blob.ContainerSasPermissions(read="r" in rights, list="l" in rights),
                start=now - timedelta(days=1),
                expiry=now + timedelta(hours=hours),
            )
        )


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Trees:
    """What the containers hold."""
    return draw_trees(tmp_path_factory.mktemp("azurite"))


@pytest.fixture(scope="module")
def azurite(trees: Trees, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """Both accounts and all containers, filled."""
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("azurite-blob is not on the PATH (npm install azurite)")
    names = {path.lstrip("/").split("/")[0] for files in trees.blobs.values() for path in files}
    keys = {name: base64.b64encode(os.urandom(48)).decode() for name in sorted(names)}
    running = Azurite(free_port(), keys)
    command = [program, "--blobHost", "127.0.0.1", "--blobPort", str(running.port), "--silent", "--skipApiVersionCheck"]
    folder = tmp_path_factory.mktemp("blobs")
    around = {**os.environ, "AZURITE_ACCOUNTS": ";".join(f"{name}:{key}" for name, key in keys.items())}
    process = subprocess.Popen(
        [*command, "--disableTelemetry", "--location", str(folder)], env=around, stdout=subprocess.DEVNULL
    )
    try:
        assert wait_until(lambda: listens(running.port), 120)
        for files in trees.blobs.values():
            running.upload(files)
        yield running
    finally:
        process.terminate()
        process.wait(60)


def listens(port: int) -> bool:
    """Whether somebody takes a connection there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class User:
    """A user's machine: a folder for all that is written, and a token for each container."""

    azurite: Azurite
    folder: Path
    tokens: dict[str, str]

    def environment(self) -> dict[str, str]:
        """What the user sets."""
        plain = {key: value for key, value in os.environ.items() if not key.startswith("LAVIS_EXT")}
        own = {f"LAVIS_EXT_AZURE_SAS_{name.upper()}": sas for name, sas in self.tokens.items()}
        place = {
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),
            "LAVIS_EXT_CACHE_ROOT": str(self.folder / "data"),
        }
        return {**plain, **own, **place, "LAVIS_EXT_AZURE_ENDPOINT": self.azurite.base, "PYTHONPATH": str(ROOT)}

    def start(self, family: str, *names: str) -> subprocess.Popen[str]:
        """`python prepare_data/download_FAMILY.py NAMES`."""
        command = [sys.executable, str(ROOT / f"prepare_data/download_{family}.py"), *names, "--json", "--debug"]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=self.environment(), cwd=self.folder, stdout=pipe, stderr=pipe, text=True)

    def get(self, family: str, *names: str) -> tuple[int, str]:
        """The exit code and all that was said; no signature is in it, nor in any file."""
        process = self.start(family, *names)
        said = "".join(process.communicate(timeout=120))
        self.keeps_silent(said)
        return process.returncode, said

    def keeps_silent(self, said: str) -> None:
        """Fail where a signature was printed or written."""
        for sas in self.tokens.values():
            signature = sas.rpartition("sig=")[2].partition("&")[0]
            assert signature not in said and unquote(signature) not in said
            assert traces(signature, self.folder) == []

    def files(self, family: str) -> dict[str, bytes]:
        """What lies in the family's folder."""
        return {n: d for n, d in tree(self.folder / "data" / family).items() if ".lavis_ext" not in n}


@pytest.fixture
def user(azurite: Azurite, tmp_path: Path) -> Iterator[User]:
    """With a token that reads, for each container."""
    yield User(azurite, tmp_path, {name: azurite.sas(name) for names in CONTAINERS.values() for name in names})
    TOKENS.forget()


def test_oscar_with_a_token_that_only_reads(trees: Trees, user: User) -> None:
    code, said = user.get("oscar", "*")
    assert code == 0, said[-3000:]
    assert user.files("oscar") == trees.wanted("oscar")


def test_vinvl_with_a_token_that_lists_killed_on_the_way(trees: Trees, user: User, azurite: Azurite) -> None:
    user.tokens = {name: azurite.sas(name, "rl") for name in user.tokens}
    process = user.start("vinvl", "*")
    time.sleep(1.0)
    listed = Path(f"/proc/{process.pid}/cmdline").read_text()
    process.kill()
    user.keeps_silent(listed + "".join(process.communicate()))
    code, said = user.get("vinvl", "*")
    assert code == 0, said[-3000:]
    assert user.files("vinvl") == trees.wanted("vinvl")


def test_vinvl_with_a_token_that_only_reads(user: User) -> None:
    """Folders whose files the card names come; one that would have to be listed is refused."""
    code, said = user.get("vinvl", "features_nlvr2", "coco_ir")
    assert code == 7 and "vinvl/coco_ir" in said
    names = {Path(name).name for name in user.files("vinvl")}
    assert names == {"features.tsv", "features.lineidx", "predictions.tsv", "predictions.lineidx"}


@pytest.mark.parametrize("what", ["expired", "of another container", "of a key that was changed", "none"])
def test_a_token_that_does_not_read(user: User, azurite: Azurite, what: str) -> None:
    if what == "expired":
        user.tokens["oscar"] = azurite.sas("oscar", hours=-1)
    elif what == "of another container":
        user.tokens["oscar"] = azurite.sas("oscar", of="vinvl")
    elif what == "none":
        del user.tokens["oscar"]
    else:
        before, _, _ = user.tokens["oscar"].partition("sig=")
        user.tokens["oscar"] = before + "sig=" + quote(base64.b64encode(os.urandom(32)).decode(), safe="")
    code, said = user.get("oscar", "nlvr2")
    assert code == 7 and "LAVIS_EXT_AZURE_SAS_OSCAR" in said, said[-3000:]
    assert user.files("oscar") == {}


def test_shards_in_a_container_are_read_as_those_on_the_disk(
    azurite: Azurite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("obstore", reason="obstore is not installed")
    from tests.datasets.test_buckets import build, drawn
    from tests.support.shards import write_shard

    for number in range(3):
        write_shard(tmp_path / "local/shards", number, 5, manifest=True)
    account = sorted(azurite.keys)[0]
    files = {path.name: path.read_bytes() for path in (tmp_path / "local/shards").iterdir()}
    azurite.upload({f"/{account}/shards/laion/{name}": data for name, data in files.items()})
    around = {"ACCOUNT_NAME": account, "ACCOUNT_KEY": azurite.keys[account], "ENDPOINT": f"{azurite.base}/{account}"}
    for name, value in around.items():
        monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)
    monkeypatch.setenv("AZURE_ALLOW_HTTP", "true")
    there = build(tmp_path / "cache", "az://shards/laion/{00000..00002}.tar")
    assert drawn(there.iterate(0, 1)) == drawn(build(tmp_path / "local", "shards").iterate(0, 1))
    written = b"".join(path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert azurite.keys[account].encode() not in written

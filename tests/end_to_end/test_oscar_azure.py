"""Oscar's and VinVL's containers on loopback, filled from the demo world: fetched whole by the scripts that ship."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pytest

from lavis_ext.demo.mirror import url_of
from lavis_ext.features import open_store
from lavis_ext.features.imports import import_features
from lavis_ext.fetch.azure import TOKENS
from lavis_ext.fetch.mirrors import mirror_path
from lavis_ext.prepare import PrepareOptions, Report, prepare, verify
from tests.support.azure import ACCOUNT, CANARY, Azure, Refusal, token, traces
from tests.support.azure_world import CONTAINERS, HOST, WORLD, Trees, draw_trees
from tests.support.fetching import FAST
from tests.support.server import Fault, wait_until
from tests.support.toyfamily import tree

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SECRET = CANARY[:6]


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Trees:
    """What the containers hold."""
    return draw_trees(tmp_path_factory.mktemp("azure"))


@pytest.fixture
def azure(trees: Trees) -> Iterator[Azure]:
    """Both accounts, each container with a token of its own that reads and does not list."""
    with Azure() as running:
        for blobs in trees.blobs.values():
            for path, data in blobs.items():
                running.put(path, data)
        running.tokens = {name: token(name) for names in CONTAINERS.values() for name in names}
        yield running
    TOKENS.forget()


def environment(azure: Azure, family: str, folder: Path) -> dict[str, str]:
    """What a user sets: the cache root and a token for each container; everything that is written stays in `folder`."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("LAVIS_EXT")}
    secrets = {f"LAVIS_EXT_AZURE_SAS_{name.upper()}": azure.tokens[name] for name in CONTAINERS[family]}
    place = {"HOME": str(folder), "TMPDIR": str(folder), "XDG_CACHE_HOME": str(folder / ".cache")}
    return {
        **plain,
        **secrets,
        **place,
        "LAVIS_EXT_CACHE_ROOT": str(folder / "data"),
        "LAVIS_EXT_AZURE_ENDPOINT": azure.base,
    }


def start(azure: Azure, family: str, folder: Path, *words: str) -> subprocess.Popen[str]:
    """`python prepare_data/download_FAMILY.py '*'`, told to say as much as it can."""
    script = str(ROOT / f"prepare_data/download_{family}.py")
    command = [sys.executable, script, "*", "--jobs", "2", "--json", "--debug", *words]
    around = environment(azure, family, folder)
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=around, stdout=pipe, stderr=pipe, text=True)


def kill(process: subprocess.Popen[str], when: Callable[[], bool]) -> str:
    """SIGKILL at a moment; returns what could be seen of the process: its command line and all that it said."""
    assert wait_until(when, 60), process.communicate(timeout=5)
    seen = Path(f"/proc/{process.pid}/cmdline").read_text()
    process.kill()
    return "".join([seen, *process.communicate()])


SLOW = {"oscar": "oscar/datasets/GQA.zip", "vinvl": "vinvl/datasets/gqa/gqa_img_frcnn_feats.pt"}


@pytest.mark.fault("S04", "S05")
@pytest.mark.parametrize("family", ["oscar", "vinvl"])
def test_a_whole_family_is_fetched_killed_and_resumed(trees: Trees, azure: Azure, tmp_path: Path, family: str) -> None:
    azure.tokens = {name: token(name, "rl") for name in azure.tokens}
    azure.page = 40
    slow = f"/{ACCOUNT}/{SLOW[family]}"
    azure.script(slow, Fault(rate=600_000.0))
    told = kill(start(azure, family, tmp_path), lambda: azure.sent(slow) > 100_000)
    complete = {seen.path for seen in azure.log if seen.sent == len(trees.blobs[family].get(unquote(seen.path), b"-"))}
    assert traces(CANARY, tmp_path) == []
    total = sum(map(len, trees.blobs[family].values()))
    told += kill(start(azure, family, tmp_path), lambda: azure.sent(slow) > 350_000)
    azure.script(slow)
    last = start(azure, family, tmp_path)
    told += "".join(last.communicate(timeout=100))
    assert last.returncode == 0, told[-3000:]
    assert SECRET not in told and "sig=" not in told
    assert traces(CANARY, tmp_path) == []
    found = {name: data for name, data in tree(tmp_path / "data" / family).items() if ".lavis_ext" not in name}
    assert found == trees.wanted(family)
    for path in complete:
        assert sum(seen.sent for seen in azure.requests(path)) <= 2 * len(azure.objects[unquote(path)].data), path
    assert azure.sent() < 1.5 * total
    again = start(azure, family, tmp_path)
    said = [json.loads(line) for line in again.communicate(timeout=60)[0].splitlines()]
    assert again.returncode == 0 and [one["bytes"] for one in said if "plan" in one] == [0]


@dataclass
class Client:
    """`prepare` in this process, against the service."""

    root: Path
    patch: pytest.MonkeyPatch

    def give(self, container: str, sas: str | None) -> None:
        """Set or take away a container's token."""
        name = f"LAVIS_EXT_AZURE_SAS_{container.upper()}"
        self.patch.delenv(name, raising=False)
        if sas is not None:
            self.patch.setenv(name, sas)

    def get(self, *names: str) -> Report:
        """`prepare NAMES`."""
        return prepare(names, self.options())

    def options(self) -> PrepareOptions:
        """Into the root, without a mirror."""
        return PrepareOptions(cache_root=self.root, policy=FAST, reserve=0, mirror="")


@pytest.fixture
def client(azure: Azure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    """With the right token of each container."""
    monkeypatch.setenv("LAVIS_EXT_AZURE_ENDPOINT", azure.base)
    monkeypatch.delenv("LAVIS_EXT_MIRROR", raising=False)
    made = Client(tmp_path / "data", monkeypatch)
    for container, sas in azure.tokens.items():
        made.give(container, sas)
    return made


def test_without_a_token_and_with_one_of_another_container(azure: Azure, client: Client) -> None:
    client.give("oscar", None)
    report = client.get("oscar/nlvr2")
    assert report.exit_code == 7 and "PublicAccessNotPermitted" in str(report.failures[0])
    assert "LAVIS_EXT_AZURE_SAS_OSCAR" in str(report.failures[0])
    client.give("vinvl", azure.tokens["oscar"])
    report = client.get("vinvl/corpus_small")
    assert report.exit_code == 7 and "issued for another container" in str(report.failures[0])
    assert SECRET not in "".join(map(str, report.failures)) and traces(CANARY, client.root) == []


@pytest.mark.fault("S06")
def test_an_expired_token_is_not_even_sent(azure: Azure, client: Client) -> None:
    client.give("oscar", token("oscar", days=-1))
    assert client.get("oscar/nlvr2").exit_code == 7
    assert azure.log == []


def test_a_busy_account_delivers_in_the_end(trees: Trees, azure: Azure, client: Client) -> None:
    path = "/" + mirror_path(url_of("oscar/nlvr2")).replace(HOST, "/")
    azure.refusals[path] = Refusal("ServerBusy", 2)
    assert client.get("oscar/nlvr2").exit_code == 0
    assert [seen.status for seen in azure.requests(path)][:2] == [503, 503]
    wanted = {name: data for name, data in trees.wanted("oscar").items() if name.startswith("datasets/nlvr2/")}
    assert {n: d for n, d in tree(client.root / "oscar").items() if ".lavis_ext" not in n} == wanted


@pytest.mark.fault("S06")
def test_folders_without_the_right_to_list_give_what_the_card_names(azure: Azure, client: Client) -> None:
    report = client.get("vinvl/features_nlvr2", "vinvl/coco_ir")
    assert report.exit_code == 7 and not any("comp=list" in query for query in azure.queries)
    (refused,) = report.failures
    assert "vinvl/coco_ir" in str(refused) and "sp=rl" in str(refused)
    (folder,) = (client.root / "vinvl/image_features").iterdir()
    names = {path.name for path in folder.iterdir()}
    assert names == {"features.tsv", "features.lineidx", "predictions.tsv", "predictions.lineidx"}


def test_a_listing_comes_in_pages_and_is_kept(trees: Trees, azure: Azure, client: Client) -> None:
    azure.page = 7
    azure.tokens["vinvl"] = token("vinvl", "rl")
    client.give("vinvl", azure.tokens["vinvl"])
    assert client.get("vinvl/nocaps").exit_code == 0
    asked = [query for query in azure.queries if "comp=list" in query]
    count = sum("/datasets/nocaps/" in path for path in trees.blobs["vinvl"])
    assert len(asked) == -(-count // 7) and sum("marker=" in query for query in asked) == len(asked) - 1
    assert len(list((client.root / "vinvl/datasets/nocaps").iterdir())) == count
    azure.tokens["vinvl"] = token("vinvl")
    client.give("vinvl", azure.tokens["vinvl"])
    assert verify(["vinvl/nocaps"], options=client.options()).exit_code == 0
    assert client.get("vinvl/nocaps").bytes_moved == 0


def test_what_was_fetched_becomes_one_store_from_either_family(client: Client, azure: Azure, tmp_path: Path) -> None:
    """Rows of a `.pt` of Oscar and of a TSV of VinVL, each with as many boxes and columns as published."""
    assert client.get("oscar/coco_ir", "vinvl/features_coco2014test").exit_code == 0
    scenes = {str(scene.id): scene for scene in WORLD}
    sources = {
        "pt": (client.root / "oscar/datasets/coco_ir/test_img_frcnn_feats.pt", "test", 2),
        "tsv": (next((client.root / "vinvl/image_features").rglob("features.tsv")), "hidden", 3),
    }
    for name, (source, split, spare) in sources.items():
        assert import_features([source], tmp_path / name).faults == []
        store = open_store(tmp_path / name)
        assert list(store) == [str(scene.id) for scene in WORLD.scenes(split)]
        for image in store:
            record = store[image]
            assert record.features.shape == (len(scenes[image].things) + spare, 2054)

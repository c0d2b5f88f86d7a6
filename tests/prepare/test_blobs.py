"""Artifacts by name, and folders as their files: who says what a folder holds, what is left out, what is kept."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.common.config.cards import Artifact, Blob, Card, Cards, RemoteFolder, load_cards
from lavis_ext.common.errors import AccessError, NetworkError, UnsafeError, UsageError
from lavis_ext.fetch.azure import TOKENS
from lavis_ext.prepare import PrepareOptions, Report, plan, prepare, status, verify
from lavis_ext.prepare.blobs import contents_path, read_contents
from tests.support.azure import ACCOUNT, CANARY, Azure, token, traces
from tests.support.fetching import FAST
from tests.support.server import Fault, Server, payload, wait_until
from tests.support.toyfamily import tree, zip_bytes

ROOT = Path(__file__).parents[2]
ZIP = zip_bytes({"vqa/2k/train.json": b"[1]" * 900, "vqa/cache/labels.pkl": b"\x80\x04" * 700})
FILES = {"features.tsv": payload(90_000, 1), "features.lineidx": b"0\n17\n", "tags/é 1.json": b"{}"}
INNER = {"test2014/features.tsv": payload(5000, 2)}


def cards(**folder: Any) -> Cards:
    """`toy` without data sets: an archive, a file, a folder and one inside it, all in one container."""
    about = folder.pop("about", None)
    base = f"azure:{ACCOUNT}/box"
    nested = {"test2014": "inner"}
    found = [
        Artifact(name="vqa", url=f"{base}/data/vqa.zip", storage="toy/data", unpack="zip"),
        Artifact(name="corpus", url=f"{base}/c.tsv", storage="toy/c.tsv"),
        Artifact(
            name="feats", url=f"{base}/f", storage="toy/f", folder=RemoteFolder(nested=nested, **folder), about=about
        ),
        Artifact(name="inner", url=f"{base}/f/test2014", storage="toy/f/test2014", folder=RemoteFolder(), about=5000),
    ]
    return Cards({"toy": Card(family="toy", artifacts={a.name: replace(a, family="toy") for a in found})})


@dataclass
class Box:
    """A service that offers all that `cards` declares, and a cache root."""

    azure: Azure
    root: Path
    patch: pytest.MonkeyPatch

    def rights(self, rights: str) -> None:
        """Give the token of the container these rights."""
        blobs = {f"f/{name}": data for name, data in {**FILES, **INNER}.items()}
        self.azure.offer("box", {"data/vqa.zip": ZIP, "c.tsv": b"a\tb\n", **blobs}, rights)
        self.patch.setenv("LAVIS_EXT_AZURE_SAS_BOX", self.azure.tokens["box"])

    def options(self, **more: Any) -> PrepareOptions:
        """Into the root, without a mirror."""
        return PrepareOptions(**{"cache_root": self.root, "policy": FAST, "reserve": 0, "mirror": "", **more})

    def get(self, *names: str, known: Cards | None = None, **more: Any) -> Report:
        """`prepare NAME…`."""
        return prepare(names, self.options(**more), cards=known or cards(files=known_files()))

    def files(self) -> dict[str, bytes]:
        """What lies in the folder."""
        return tree(self.root / "toy" / "f") if (self.root / "toy" / "f").is_dir() else {}


def known_files(*names: str) -> dict[str, Blob]:
    """The files of the folder as a card may declare them."""
    return {name: Blob(size=len(data)) for name, data in FILES.items() if name in (names or FILES)}


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    """A container whose token reads and does not list."""
    with Azure() as azure:
        monkeypatch.setenv("LAVIS_EXT_AZURE_ENDPOINT", azure.base)
        monkeypatch.delenv("LAVIS_EXT_MIRROR", raising=False)
        made = Box(azure, tmp_path / "root", monkeypatch)
        made.rights("r")
        yield made
    TOKENS.forget()


def test_artifacts_by_name(box: Box) -> None:
    report = box.get("toy/VQA", "toy/corp*")
    assert report.exit_code == 0 and report.count("downloaded") == 2
    assert sorted(tree(box.root / "toy")) == ["c.tsv", "data/vqa/2k/train.json", "data/vqa/cache/labels.pkl"]
    assert [state.line() for state in report.splits] == [
        "toy/vqa: 1 of 1 files, 4.1 kB, verified",
        "toy/corpus: 1 of 1 files, 4 B, present",
    ]
    assert box.get("toy/vqa", "toy/corpus").bytes_moved == 0
    report = verify(["toy/vqa"], options=box.options(), cards=cards())
    assert report.exit_code == 0 and report.files == 2


def test_a_family_without_data_sets_is_all_of_its_artifacts(box: Box) -> None:
    made = plan(["toy"], box.options(), cards(files=known_files()))
    assert {item.title.split("/")[1] for item in made.items} == {"vqa", "corpus", "feats", "inner"}
    states = status([], box.options(), cards())
    assert [state.dataset for state in states] == ["toy/vqa", "toy/corpus", "toy/feats", "toy/inner"]
    assert {state.state for state in states} == {"missing"}


@pytest.mark.parametrize(("name", "text"), [("toy/vqaa", "'vqa'"), ("tyo/vqa", "'toy'"), ("tyo", "'toy'")])
def test_wrong_names_are_reported_with_the_nearest(box: Box, name: str, text: str) -> None:
    with pytest.raises(UsageError, match=f"did you mean {text}"):
        box.get(name)


def test_a_declared_folder_needs_no_listing(box: Box) -> None:
    report = box.get("toy/feats")
    assert report.exit_code == 0 and box.files() == FILES
    assert not any("comp=list" in query for query in box.azure.queries)
    assert any("test2014" in line and "toy/inner" in line for line in report.lines())
    assert box.get("toy/feats").bytes_moved == 0
    state = status(["toy/feats"], box.options(), cards(files=known_files()))[0]
    assert (state.state, state.present, state.as_dict()["expected"]) == ("verified", 3, 3)


def test_damage_is_found_and_mended(box: Box) -> None:
    box.rights("rl")
    known = cards()
    box.get("toy/feats", known=known)
    (box.root / "toy/f/features.tsv").write_bytes(b"x" * 90_000)
    found = verify(["toy/feats"], options=box.options(), cards=known)
    assert found.exit_code == 5 and [one.title for one in found.findings] == ["toy/feats/features.tsv"]
    mended = verify(["toy/feats"], repair=True, options=box.options(), cards=known)
    assert mended.exit_code == 0
    assert {name: data for name, data in box.files().items() if ".bad-" not in name} == FILES


def test_a_listing_is_taken_where_the_token_allows_and_kept(box: Box) -> None:
    box.rights("rl")
    report = box.get("toy/feats", known=cards(files={"gone.tsv": Blob()}))
    assert report.exit_code == 0 and box.files() == FILES
    artifact = cards().families["toy"].artifacts["feats"]
    kept = read_contents(box.root, artifact, "listing")
    assert kept is not None and kept.files["features.tsv"] == Blob(
        size=90_000, md5=hashlib.md5(FILES["features.tsv"]).hexdigest()
    )
    assert read_contents(box.root, artifact) == kept and read_contents(box.root, artifact, "disk") is None
    assert read_contents(box.root, replace(artifact, url=f"{artifact.url}2")) is None, "of another folder"
    box.rights("r")
    asked = len(box.azure.queries)
    assert box.get("toy/feats", known=cards()).bytes_moved == 0 and len(box.azure.queries) == asked


def test_a_listing_on_request_goes_before_what_is_declared(box: Box) -> None:
    known = cards(files=known_files("features.lineidx"), complete=True)
    box.rights("rl")
    assert len(box.get("toy/feats", known=known).outcomes) == 1
    assert verify(["toy/feats"], options=box.options(), cards=cards()).exit_code == 0
    assert not any("comp=list" in query for query in box.azure.queries)
    box.rights("r")
    with_list = box.get("toy/feats", known=known, listing=True)
    assert with_list.exit_code == 7 and "no right to list" in str(with_list.failures[0])
    box.rights("rl")
    assert box.get("toy/feats", known=known, listing=True).exit_code == 0 and box.files() == FILES


def test_a_plan_with_a_row_that_is_refused_does_not_exit_0(tmp_path: Path) -> None:
    names = ["vinvl/model_coco_ir", "vinvl/model_vqa"]
    options = PrepareOptions(cache_root=tmp_path, offline=True, dry_run=True, reserve=0)
    report = prepare(names, options)
    assert [item.action for item in report.plan.items].count("refuse") == 1
    assert report.exit_code == prepare(names[:1], replace(options, dry_run=False)).exit_code != 0
    assert "fit" not in report.line(), "nothing can come where no connection may be opened"
    alone = prepare(names[1:], options)
    assert alone.exit_code == prepare(names[1:], replace(options, dry_run=False)).exit_code == 4


@pytest.mark.parametrize("name", ["od_models", "OD_models", "image_captioning"])
def test_a_folder_of_models_needs_no_prefix_where_no_other_artifact_has_its_name(name: str) -> None:
    assert [one.name for one in load_cards().named_artifacts(f"vinvl/{name}")] == [f"model_{name.lower()}"]
    assert [one.name for one in load_cards().named_artifacts("vinvl/vqa")] == ["vqa"]


def test_a_dry_run_writes_nothing(box: Box) -> None:
    box.rights("rl")
    report = box.get("toy/feats", known=cards(), dry_run=True)
    assert report.plan.download == sum(map(len, FILES.values())) and not box.root.exists()


def test_a_folder_that_nobody_knows_is_refused_with_the_ways_in(box: Box) -> None:
    report = box.get("toy/feats", "toy/corpus", known=cards())
    assert report.exit_code == 7 and report.count("downloaded") == 1
    text = str(report.failures[0])
    assert isinstance(report.failures[0], AccessError) and "sp=rl" in text and "toy/f" in text
    states = {state.dataset: state for state in report.splits}
    assert states["toy/feats"].expected is None and "not known" in states["toy/feats"].line()
    assert report.plan.items[0].action == "refuse"
    offline = box.get("toy/feats", known=cards(), offline=True)
    assert isinstance(offline.failures[0], NetworkError) and offline.exit_code == 4
    assert verify(["toy/feats"], options=box.options(), cards=cards()).unknown == ("toy/feats",)


def test_a_folder_that_the_user_has_is_taken_in_place(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAVIS_EXT_AZURE_SAS_BOX")
    for name, data in FILES.items():
        (box.root / "toy/f" / name).parent.mkdir(parents=True, exist_ok=True)
        (box.root / "toy/f" / name).write_bytes(data)
    report = box.get("toy/feats", known=cards(files={"other.tsv": Blob()}))
    assert report.exit_code == 0 and report.count("reused") == 3 and box.azure.queries == []
    assert any("toy/feats: the 3 files" in line for line in report.lines())
    assert verify(["toy/feats"], options=box.options(), cards=cards()).files == 3


def test_what_a_run_of_ours_began_is_not_taken_for_the_users(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    known = cards(files={**known_files("features.lineidx"), "lost.tsv": Blob()})
    assert box.get("toy/feats", known=known).exit_code == 4
    monkeypatch.delenv("LAVIS_EXT_AZURE_SAS_BOX")
    report = box.get("toy/feats", known=known)
    assert report.exit_code == 7 and report.count("reused") == 1


def test_with_a_token_what_lacks_is_fetched_and_what_is_wrong_set_aside(box: Box) -> None:
    (box.root / "toy/f").mkdir(parents=True)
    (box.root / "toy/f/features.lineidx").write_bytes(FILES["features.lineidx"])
    (box.root / "toy/f/features.tsv").write_bytes(b"short")
    report = box.get("toy/feats")
    assert report.exit_code == 0 and report.count("reused") == 1
    files = box.files()
    assert {name: files[name] for name in FILES} == FILES
    assert [data for name, data in files.items() if ".bad-" in name] == [b"short"]


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ({"include": ["features.*"]}, {"features.tsv", "features.lineidx"}),
        ({"include": ["feats/tags/*"]}, {"tags/é 1.json"}),
        ({"exclude": ["*.tsv", "tags/*"]}, {"features.lineidx"}),
        ({"include": ["*.tsv", "*.json"], "exclude": ["feats/features*"]}, {"tags/é 1.json"}),
    ],
)
def test_patterns_choose_files(box: Box, patterns: dict[str, list[str]], names: set[str]) -> None:
    assert box.get("toy/feats", **patterns).exit_code == 0
    assert set(box.files()) == names


def test_patterns_that_leave_nothing_are_reported(box: Box) -> None:
    with pytest.raises(UsageError, match=r"leave nothing; known: .*features\.tsv"):
        box.get("toy/feats", include=["feature"])


def test_a_round_figure_stands_for_what_is_not_known(box: Box) -> None:
    known = cards(files={"a.tsv": Blob(), "b.tsv": Blob(size=100), "c.tsv": Blob()}, about=1000)
    made = plan(["toy/feats"], box.options(), known)
    assert [(item.download, item.estimated) for item in made.items] == [(900, True), (100, False), (None, True)]
    assert made.download == 1000 and "~900 B" in made.table()


def test_s06_an_expired_token_is_reported_before_a_byte(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAVIS_EXT_AZURE_SAS_BOX", token("box", days=-2))
    report = box.get("toy/corpus")
    assert report.exit_code == 7 and "expired on" in str(report.failures[0]) and box.azure.log == []
    assert "container 'box' of Azure: the SAS from LAVIS_EXT_AZURE_SAS_BOX expired" in report.plan.table()
    monkeypatch.delenv("LAVIS_EXT_AZURE_SAS_BOX")
    assert "no SAS is set; set LAVIS_EXT_AZURE_SAS_BOX" in box.get("toy/corpus", dry_run=True).plan.table()


def test_a_mirror_with_a_manifest_says_what_a_folder_holds(box: Box, server: Server) -> None:
    host = f"{ACCOUNT}.blob.core.windows.net/box/f"
    listed = {}
    for name, data in FILES.items():
        quoted = name.replace("é", "%C3%A9").replace(" ", "%20")
        server.put(f"/{host}/{quoted}", data)
        listed[f"{host}/{quoted}"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    text = json.dumps({"format": 1, "equivalence": "subset", "files": listed})
    server.put("/manifest.json", text.encode())
    report = box.get("toy", known=cards(), mirror=server.base)
    assert report.exit_code == 0 and report.subset and box.files() == FILES and box.azure.log == []
    assert {line.partition(":")[0] for line in report.plan.passed_over if "skipped" in line} == {
        "toy/vqa",
        "toy/corpus",
        "toy/inner",
    }
    assert status(["toy/feats"], box.options(), cards())[0].state == "verified (subset)"


def test_a_mirror_that_is_a_folder_is_looked_into(box: Box, tmp_path: Path) -> None:
    place = tmp_path / "mirror" / f"{ACCOUNT}.blob.core.windows.net/box/f"
    for name, data in {**FILES, **INNER}.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    report = box.get("toy/feats", "toy/inner", known=cards(), mirror=str(tmp_path / "mirror"))
    assert report.exit_code == 0 and box.files() == {**FILES, **INNER} and box.azure.log == []
    lacking = box.get("toy/corpus", mirror=str(tmp_path / "mirror"))
    assert lacking.exit_code == 4


def test_names_that_leave_the_folder_are_refused(box: Box) -> None:
    box.rights("rl")
    box.azure.put(f"/{ACCOUNT}/box/f/../../evil", b"x")
    with pytest.raises(UnsafeError, match="could leave the folder"):
        box.get("toy/feats", known=cards())
    assert not box.root.exists()


def test_a_kept_manifest_that_is_broken_is_ignored(box: Box) -> None:
    artifact = cards().families["toy"].artifacts["feats"]
    path = contents_path(box.root, artifact)
    path.parent.mkdir(parents=True)
    path.write_text('{"format": 1, "files": ')
    assert read_contents(box.root, artifact) is None and box.get("toy/feats").exit_code == 0


def test_cards_that_ship() -> None:
    known = load_cards()
    oscar, vinvl = (known.families[name].artifacts for name in ("oscar", "vinvl"))
    assert {"coco_caption", "coco_ir", "vqa", "GQA", "nlvr2", "base-vg-labels", "large-vg-labels"} <= set(oscar)
    assert all(a.url.startswith("azure:biglmdiag/oscar/") and a.unpack == "zip" for a in oscar.values())
    sizes = {name.removeprefix("features_"): a.about for name, a in vinvl.items() if name.startswith("features_")}
    billions = {"coco": 50, "coco2014test": 16, "coco2015test": 32, "gqa": 62, "nlvr2": 28, "flickr30k": 14}
    billions |= {"googlecc": 960, "sbu": 280, "oi": 530}
    assert sizes == {name: count * 10**9 for name, count in billions.items()}
    folders = [a for a in vinvl.values() if a.folder is not None]
    assert len(folders) == 6 + 6 + 9 and {a.url.split("/")[1] for a in folders} == {"vinvl"}
    nested = [name for a in folders if a.folder for name in a.folder.nested.values()]
    assert set(nested) <= set(vinvl) and len(nested) == 2


SCRIPTS = {
    "oscar": {"datasets/vqa.zip": ZIP, "datasets/GQA.zip": zip_bytes({"GQA/0.4true/q.json": payload(400_000, 3)})},
    "vinvl": {
        "datasets/coco_ir/train_captions.pt": payload(200_000, 4),
        "datasets/coco_ir/test_img_keys.tsv": b"1\n2\n",
        "pretrain_corpus/coco_flickr30k_gqa.tsv": payload(900_000, 5),
    },
}
TASKS = {"oscar": ["vqa", "gqa"], "vinvl": ["coco_ir", "corpus_small"]}


def start(family: str, azure: Azure, given: str, folder: Path, *more: str) -> subprocess.Popen[str]:
    """The family's script for its tasks and `more`, in a process of its own; the token is in its environment."""
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("LAVIS_EXT")},
        "LAVIS_EXT_CACHE_ROOT": str(folder / "data"),
        "LAVIS_EXT_AZURE_ENDPOINT": azure.base,
        f"LAVIS_EXT_AZURE_SAS_{family.upper()}": given,
        "TMPDIR": str(folder),
        "HOME": str(folder),
    }
    command = [
        sys.executable,
        str(ROOT / f"prepare_data/download_{family}.py"),
        *TASKS[family],
        *more,
        "--json",
        "--debug",
    ]
    return subprocess.Popen(
        [*command, "--json", "--debug"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("family", ["oscar", "vinvl"])
def test_scripts_fetch_a_tree_killed_and_resumed_and_the_token_shows_up_nowhere(tmp_path: Path, family: str) -> None:
    large = max(SCRIPTS[family], key=lambda name: len(SCRIPTS[family][name]))
    path = f"/{ACCOUNT}/{family}/{large}"
    with Azure() as azure:
        given = azure.offer(family, SCRIPTS[family], "rl")
        azure.script(path, Fault(rate=400_000.0))
        first = start(family, azure, given, tmp_path)
        assert wait_until(lambda: azure.sent(path) > 100_000, 60)
        seen = Path(f"/proc/{first.pid}/cmdline").read_text()
        first.send_signal(signal.SIGKILL)
        outputs = [seen, *first.communicate()]
        assert traces(CANARY, tmp_path) == []
        azure.script(path)
        second = start(family, azure, given, tmp_path)
        outputs += second.communicate(timeout=60)
        assert second.returncode == 0, outputs[-1]
        azure.tokens[family] = token(family, signature="another")  # the one given is refused from now on
        refused = start(family, azure, given, tmp_path, "corpus_large" if family == "vinvl" else "nlvr2")
        outputs += refused.communicate(timeout=60)
        assert refused.returncode == 7, outputs[-1]
    text = "".join(outputs)
    assert "AuthenticationFailed" in text and "c4n4ry" not in text and "sig=" not in text
    assert traces(CANARY, tmp_path) == []
    found = tree(tmp_path / "data" / family)
    if family == "vinvl":
        assert found == SCRIPTS[family]
    else:
        assert sorted(found) == [
            "datasets/GQA/0.4true/q.json",
            "datasets/vqa/2k/train.json",
            "datasets/vqa/cache/labels.pkl",
        ]


def test_tokens_through_standard_input(tmp_path: Path) -> None:
    with Azure() as azure:
        azure.offer("oscar", SCRIPTS["oscar"])
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LAVIS_EXT_AZURE_ENDPOINT": azure.base}
        command = [sys.executable, "-m", "lavis_ext", "prepare", "oscar/vqa", "--sas-file", "-", "--quiet"]
        done = subprocess.run(
            [*command, "--options", f"env.cache_root={tmp_path / 'data'}"],
            input=azure.tokens["oscar"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "c4n4ry" not in done.stdout + done.stderr and traces(CANARY, tmp_path) == []

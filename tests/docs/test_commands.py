"""Every fenced block of README and docs runs, on a drawn world, or says why it does not."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from lavis_ext.cli import main
from lavis_ext.common.config.check import check_file
from lavis_ext.common.registry import Facade
from lavis_ext.demo.world import World
from tests.docs.documents import LANGUAGES, PAGES, ROOT, SIZES, Block, Shell, blocks_of, lay_out, require_parsed
from tests.support.features import make_image, make_images, oscar_tsv
from tests.support.oscar_commands import written
from tests.support.pictures import encoded, pixels, write_json
from tests.world.export import export_world

WORLD = World(seed=5, train=8, val=4, test=4, hidden=2)
BLOCKS = {str(page.relative_to(ROOT)): blocks_of(page) for page in PAGES}
CODE = {page: found for page, found in BLOCKS.items() if any(block.language != "text" for block in found)}
BASE: Mapping[str, Any] = {
    "model": {"arch": "blip2_opt", "model_type": "tiny"},
    "datasets": {"coco_caption": {}},
    "run": {"task": "captioning", "max_epoch": 1, "train_splits": ["train"]},
}
"""What a YAML on a page leaves out."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mirror of the families that pages prepare, drawn, and a cache root with COCO prepared."""
    base = tmp_path_factory.mktemp("documents")
    export_world(WORLD, base / "mirror", ["coco", "oscar", "vinvl"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAVIS_EXT_CACHE_ROOT", str(base / "cache"))
        assert main(["prepare", "coco", "--quiet", "--mirror", str(base / "mirror")]) == 0
    return base


@pytest.fixture
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory like a checkout; the environment and the registries are put back."""
    folder = tmp_path / "checkout"
    lay_out(folder)
    monkeypatch.chdir(folder)
    before, items = dict(os.environ), {kind: dict(one._items) for kind, one in Facade._kinds.items()}
    for name in [name for name in os.environ if name.startswith("LAVIS_EXT_")]:
        del os.environ[name]
    mirror, cache = str(world / "mirror"), str(world / "cache")
    os.environ.update(LAVIS_EXT_CACHE_ROOT=cache, LAVIS_EXT_MIRROR=mirror, HF_HUB_OFFLINE="1", PWD=str(folder))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    yield folder
    os.environ.clear()
    os.environ.update(before)
    for kind, held in items.items():
        for name, item in list(Facade._kinds[kind]._items.items()):
            if name not in held and not str(getattr(item, "__module__", "")).startswith("lavis_ext"):
                Facade._kinds[kind]._items.pop(name)
                Facade._kinds[kind]._keys.pop(name, None)


def with_demo(here: Path) -> None:
    """What `lavis-ext demo` left."""
    (here / "demo").mkdir()
    (here / "demo" / "cache").symlink_to(os.environ["LAVIS_EXT_CACHE_ROOT"])


def with_run(here: Path) -> None:
    """A run of a tiny BLIP-2, and a photograph."""
    words = ["train", "--cfg-path", "configs/projects/demo/train/caption.yaml", "--options", *SIZES]
    assert main([*words, "run.output_dir=output/BLIP2", "run.job_id=RUN"]) == 0
    (here / "photo.jpg").write_bytes(encoded(pixels(1)))


def with_birds(here: Path) -> None:
    """Rows and photographs of one's own, where docs/extend/dataset.yaml has them too."""
    rows = []
    for number in range(8):
        for place in (here / "photos", here / "cache" / "birds" / "photos"):
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number}.png").write_bytes(encoded(pixels(number), "PNG"))
            (place / f"{number}.txt").write_text(f"a bird number {number}")
        rows.append({"image": f"{number}.png", "caption": f"a bird number {number}", "species": "red", "place": "lake"})
    for name in ("train", "val"):
        write_json(here / "cache" / "birds" / f"{name}.json", rows)
    os.environ["LAVIS_EXT_CACHE_ROOT"] = str(here / "cache")


def with_features(here: Path) -> None:
    """Published features, and pictures to extract some from."""
    oscar_tsv(here / "features.tsv", [make_image(f"COCO_val2014_{number:012d}", 5, 2054) for number in (9, 42)])
    for number, name in enumerate(("part0.tsv", "part1.tsv")):
        oscar_tsv(here / name, make_images(2, 2054, f"part{number}_{{}}"))
    (here / "photos").mkdir()
    for number in range(3):
        (here / "photos" / f"COCO_val2014_{42 + number:012d}.jpg").write_bytes(encoded(pixels(number)))


def with_commands(here: Path) -> None:
    """Command lines copied from upstream's pages."""
    for name, command in {"finetune": "vqa", "distil": "vqa_taught", "infer": "vqa_test"}.items():
        (here / f"{name}.sh").write_text(written(command))


SETUP: Mapping[str, Callable[[Path], None]] = {
    "docs/start.md": with_demo,
    "docs/blip2.md": with_run,
    "docs/own-data.md": with_birds,
    "docs/extend/README.md": with_birds,
    "docs/feature-store.md": with_features,
    "docs/region-extraction.md": with_features,
    "docs/from-oscar.md": with_commands,
}
"""Page → what lies in the folder where its commands are given."""


def require_sound(block: Block, here: Path) -> None:
    """Fail unless `check` finds nothing wrong with a YAML; one that begins with `# path` is written there."""
    text = re.sub(r",\s*…|…", "", block.text)
    named = re.match(r"# (\S+\.yaml)\n", text)
    tree = yaml.safe_load(text)
    path = here / (named[1] if named else f"block{block.line}.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not named and "artifacts" not in tree:
        sections = {name: {**BASE[name], **(tree.get(name) or {})} for name in BASE if name != "datasets"}
        tree = {**tree, **sections, "datasets": tree.get("datasets", BASE["datasets"])}
        text = yaml.safe_dump(tree)
    path.write_text(text)
    assert [str(problem) for problem in check_file(path)] == [], block.place


@pytest.mark.parametrize("page", CODE)
def test_page(page: str, here: Path) -> None:
    SETUP.get(page, lambda _: None)(here)
    shell, names = Shell(), {"__name__": "__main__"}
    for block in CODE[page]:
        if block.is_run and block.language == "bash":
            shell.run(block)
        elif block.is_run and block.language == "yaml":
            require_sound(block, here)
        elif block.is_run and block.language == "python":
            exec(compile("\n" * block.line + block.text, block.page, "exec"), names)
        elif block.language == "bash":
            require_parsed(block)


def test_what_does_not_run_says_why() -> None:
    code = [block for found in BLOCKS.values() for block in found if block.language != "text"]
    left = [block for block in code if not block.is_run]
    for block in left:
        assert len(block.reason.split()) >= (3 if block.mark == "not run" else 1), block.place
        for path in block.reason.split(", ") if block.mark == "run by" else ():
            assert (ROOT / path).is_file() and path.startswith("tests/"), f"{block.place}: no {path}"
    without = [block for block in left if block.mark == "not run"]
    assert len(code) >= 50
    assert len(without) <= len(code) / 4, [f"{block.place}: {block.reason}" for block in without]


def test_every_block_has_a_language() -> None:
    found = {block.place: block.language for blocks in BLOCKS.values() for block in blocks}
    assert {place: language for place, language in found.items() if language not in LANGUAGES} == {}


def test_an_extra_that_is_not_there_is_found(here: Path) -> None:
    wrong = Block(ROOT / "README.md", 1, "bash", "pip install 'lavis_ext[web]'\n")
    with pytest.raises(AssertionError, match="no extra web"):
        Shell().run(wrong)
    with pytest.raises(AssertionError, match="no extra web"):
        require_parsed(wrong)


def test_a_command_that_fails_is_found(here: Path) -> None:
    with pytest.raises(AssertionError, match="ended with 2"):
        Shell().run(Block(ROOT / "README.md", 1, "bash", "lavis-ext show nothing\n"))

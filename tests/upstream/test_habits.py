"""Scripts in LAVIS' manner run here once their imports say lavis_ext: every row of docs/from-lavis.md has a cell."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.cli import main
from lavis_ext.common.registry import Facade, registry
from tests.support.families import coco_captions, vqav2_lavis
from tests.support.killing import require_killed_is_left_alone
from tests.support.processes import start_command

SCRIPTS = Path(__file__).parent / "scripts"
DOC = (Path(__file__).parents[2] / "docs" / "from-lavis.md").read_text("utf-8")
ROWS = dict(re.findall(r"^\| `([a-z0-9-]+)` \| .* \| (works|differently|not)\b.*\|$", DOC, flags=re.MULTILINE))
"""Id → how it is, from the table of the document."""
RUN = """
model: {arch: blip2_opt, model_type: tiny}
datasets:
  coco_caption:
    vis_processor: {train: {name: blip_image_eval, image_size: 64}, eval: {name: blip_image_eval, image_size: 64}}
    text_processor: {train: {name: blip_caption}, eval: {name: blip_caption}}
run:
  task: captioning
  max_epoch: 1
  batch_size_train: 2
  batch_size_eval: 4
  num_workers: 0
  num_beams: 1
  max_len: 4
  init_lr: 1e-3
  seed: 1
  device: cpu
  report: false
  tensorboard: false
  train_splits: [train]
  valid_splits: [val]
"""


def ours(text: str) -> str:
    """A script with `lavis_ext` for `lavis` in its imports, and nowhere else."""
    return re.sub(r"(?m)^(\s*(?:from|import) )lavis\b", r"\1lavis_ext", text)


def cells() -> Iterator[tuple[str, str, str]]:
    """File, id and code of every cell."""
    for path in sorted(SCRIPTS.glob("*.py")):
        for part in path.read_text("utf-8").split("\n# %% ")[1:]:
            name, _, code = part.partition("\n")
            named = ours(code).replace('f"lavis.', 'f"lavis_ext.').replace('"from lavis.', '"from lavis_ext.')
            yield path.name, name.strip(), named


CELLS = list(cells())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO's captions and questions in little."""
    root = tmp_path_factory.mktemp("habits")
    vqav2_lavis(root)
    coco_captions(root)
    return root


@pytest.fixture
def world(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with `run.yaml`; what a script registers is taken out again."""
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(prepared))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(RUN)
    items = {kind: set(one._items) for kind, one in Facade._kinds.items()}
    state = dict(registry.state)
    yield tmp_path
    for kind, held in items.items():
        # what was imported meanwhile is ours and stays
        added = [n for n, item in Facade._kinds[kind]._items.items() if n not in held and not of_ours(item)]
        for name in added:
            Facade._kinds[kind]._items.pop(name)
            Facade._kinds[kind]._keys.pop(name, None)
    registry.state.clear()
    registry.state.update(state)
    registry.paths.clear()


def of_ours(item: object) -> bool:
    return str(getattr(item, "__module__", "")).startswith("lavis_ext.")


@pytest.mark.parametrize(("file", "name", "code"), CELLS, ids=[name for _, name, _ in CELLS])
def test_script(file: str, name: str, code: str, world: Path) -> None:
    exec(compile(code, f"{file} {name}", "exec"), {"__name__": "__main__"})


def test_the_document_has_every_cell() -> None:
    assert set(ROWS) == {name for _, name, _ in CELLS} | {"own-files-by-name"}
    assert len(ROWS) == len(CELLS) + 1 >= 60


def own_files(folder: Path) -> None:
    for path in SCRIPTS.glob("own_*"):
        (folder / path.name).write_text(ours(path.read_text("utf-8")))


def forget() -> None:
    for name in [name for name in sys.modules if name.startswith("lavis_ext_plugin_own_")]:
        del sys.modules[name]
        for kind in Facade._kinds.values():
            kind.forget(name)


def test_own_files_train_by_name(world: Path) -> None:
    """A data set, a model and a task in LAVIS' manner, by a run file and `--plugin`; a second start resumes."""
    own_files(world)
    plugins = [word for name in ("data", "model", "task") for word in ("--plugin", f"own_{name}.py")]
    try:
        words = ["train", "--cfg-path", "own_run.yaml", *plugins, "--options", "run.output_dir=out"]
        assert main(words) == 0
        job = world / "out" / "birds"
        log = [json.loads(line) for line in (job / "log.jsonl").read_text().splitlines()]
        metrics = [line["metrics"] for line in log if "metrics" in line]
        assert metrics[-1]["agg_metrics"] == 1.0 and metrics[-1]["seen"] == 3
        assert len(json.loads((job / "result" / "val_epoch0.json").read_text())) == 3
        assert (job / "evaluate.txt").is_file()
        losses = [line["loss"] for line in log if "loss" in line]
        assert losses and all("loss_length" in line and "hidden" not in line for line in log if "loss" in line)
        assert main(["check", "own_run.yaml", *plugins]) == 0
        wrong = (world / "own_run.yaml").read_text().replace("model_type: base", "model_type: large")
        (world / "wrong.yaml").write_text(wrong)
        assert main(["train", "--cfg-path", "wrong.yaml", *plugins]) == 3
        (world / "lacks.yaml").write_text((world / "own_run.yaml").read_text().replace("  most_words: 5\n", ""))
        assert main(["train", "--cfg-path", "lacks.yaml", *plugins, "--options", "run.output_dir=none"]) == 3
        shutil.rmtree(world / "out")
        assert main(words) == 0  # the same numbers again
        again = [json.loads(line) for line in (job / "log.jsonl").read_text().splitlines()]
        assert [line["loss"] for line in again if "loss" in line] == losses
    finally:
        forget()


@pytest.mark.slow
def test_own_files_that_are_killed_go_on_to_the_same_end(world: Path) -> None:
    """kill -9 soon after a checkpoint, twice, of a run whose data set, model and loop are in LAVIS' manner."""
    own_files(world)
    plugins = [word for name in ("data", "model", "task") for word in ("--plugin", str(world / f"own_{name}.py"))]
    options = [
        "run.task=lavis_lengths_looped",
        "run.max_epoch=150",
        "run.val_freq=50",
        f"run.output_dir={world / 'out'}",
        "run.report=False",
        "run.keep_checkpoints=2",
    ]

    def start(job: str) -> Any:
        words = ["train", "--cfg-path", str(world / "own_run.yaml"), *plugins]
        return start_command([*words, "--options", *options, f"run.job_id={job}"], os.environ)

    require_killed_is_left_alone(start, world / "out", 2)

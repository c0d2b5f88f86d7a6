"""Real photographs, the real script, the real verbs: a subset mirror of COCO in, a trained and scored captioner out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lavis_ext import load_dataset
from lavis_ext.demo.mirror import MirrorWriter
from tests.support.processes import start_command
from tests.world.export import export_photographs

ROOT = Path(__file__).parents[2]
PHOTOS = ROOT.parent / "shared" / "real_coco"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PHOTOS.is_dir(), reason="the folder of real COCO photographs is not here"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment in which the mirror of the photographs stands for the internet."""
    base = tmp_path_factory.mktemp("real")
    mirror = MirrorWriter(base / "mirror")
    export_photographs(PHOTOS, mirror)
    mirror.finish()
    own = {"LAVIS_EXT_MIRROR": str(base / "mirror"), "LAVIS_EXT_CACHE_ROOT": str(base / "data")}
    return {**os.environ, **own, "HF_HUB_OFFLINE": "1", "BASE": str(base)}


def run(words: list[str], world: dict[str, str], code: int = 0) -> str:
    """Standard output of a Python script started away from the checkout; its exit code is checked."""
    done = subprocess.run(
        [sys.executable, *words], env=world, cwd=world["BASE"], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout


def test_script_prepares_and_second_run_moves_nothing(world: dict[str, str]) -> None:
    script = str(ROOT / "prepare_data" / "download_coco.py")
    first = run([script, "--json", "--quiet"], world)
    assert '"exit_code": 0' in first.splitlines()[-1]
    data = Path(world["LAVIS_EXT_CACHE_ROOT"])
    images = list((data / "coco" / "images").rglob("*.jpg"))
    assert len(images) == len(list((PHOTOS / "images").glob("*.jpg")))
    assert {p.parent.name for p in images} <= {"train2014", "val2014"}
    assert not list(data.rglob("*.zip"))
    again = run([script, "--json", "--quiet"], world)
    assert sum(json.loads(line).get("bytes_moved", 0) for line in again.splitlines()) == 0
    assert "subset" in run(["-m", "lavis_ext", "status", "coco"], world)
    assert "subset" in run(["-m", "lavis_ext", "list"], world)
    run(["-m", "lavis_ext", "verify", "coco", "--deep", "--quiet"], world)


def test_samples_have_the_keys_of_lavis(world: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LAVIS_EXT_CACHE_ROOT", "LAVIS_EXT_MIRROR"):
        monkeypatch.setenv(name, world[name])
    caption = load_dataset("coco_caption")
    assert set(caption) == {"train", "val", "test"}
    truth = json.loads((PHOTOS / "captions.json").read_text())
    assert sum(len(caption[s]) for s in ("val", "test")) + len({r["image"] for r in caption["train"].rows}) == len(
        truth["images"]
    )
    train, val = caption["train"][0], caption["val"][0]
    assert {"image", "text_input", "image_id", "instance_id"} <= set(train)
    assert {"image", "image_id", "instance_id"} <= set(val)
    assert train["image"].mode == "RGB" and train["text_input"] == caption["train"].rows[0]["caption"]
    assert len(caption["val"].references()) == len(caption["val"])
    retrieval = load_dataset("coco_retrieval")
    assert len(retrieval["test"].img2txt) == len(caption["test"])


def test_training_and_evaluation_write_what_they_promise(world: dict[str, str]) -> None:
    cfg = "configs/projects/demo/train/caption.yaml"
    small = ["run.max_epoch=1", "run.batch_size_train=16", f"run.output_dir={world['BASE']}/out", "run.job_id=real"]
    said = [Path(world["BASE"]) / name for name in ("said", "logged")]
    words = [str(ROOT / "train.py"), "--cfg-path", str(ROOT / cfg), "--options", *small]
    process = start_command(words, world, said=said)
    process.join(280)
    assert process.exitcode == 0, said[1].read_text()[-3000:]
    job = Path(world["BASE"]) / "out" / "real"
    assert str(job) in said[0].read_text()
    [result] = [p for p in (job / "result").glob("test_epoch*.json") if "recipe" not in p.name]
    rows = json.loads(result.read_text())
    records = json.loads(
        (Path(world["LAVIS_EXT_CACHE_ROOT"]) / "coco" / "annotations" / "coco_karpathy_test.json").read_text()
    )
    assert len(rows) == len(records)
    assert all(set(row) == {"image_id", "caption"} for row in rows)
    logged = [json.loads(line) for line in (job / "log.jsonl").read_text().splitlines()]
    assert any("test" in str(line) and "CIDEr" in str(line) for line in logged)
    page = (job / "report.html").read_text()
    assert "subset" in page
    assert "data:image/jpeg" in page
    assert list(job.glob("checkpoint_*/*.safetensors"))

"""Every shipped run file of BLIP-2, InstructBLIP and VPGTrans, with its model's tiny twin, on a small drawn world."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.common.config.resolve import load_config
from lavis_ext.common.config.schema import Config
from lavis_ext.demo.mirror import all_cards, serve
from lavis_ext.demo.world import World
from lavis_ext.prepare import PrepareOptions, prepare
from lavis_ext.runners import evaluate, train
from tests.prepare.urls.conftest import passes_here
from tests.world.export import export_world, place_by_hand

PROJECTS = Path(__file__).parents[2] / "configs" / "projects"
GROUPS = ("blip2/*/*", "demo/train/instruct", "instructblip/*/*", "vpgtrans/*/*")
FILES = sorted(path for group in GROUPS for path in PROJECTS.glob(f"{group}.yaml"))
FAMILIES = [
    "coco",
    "vqav2",
    "okvqa",
    "aokvqa",
    "gqa",
    "vg",
    "nocaps",
    "sbu_caption",
    "laion",
    "minigpt4",
    "flickr30k",
    "snli_ve",
]
WORLD = World(seed=5, train=32, val=8, test=8, hidden=4)
SMALL = ["run.batch_size_train=4", "run.batch_size_eval=4", "run.num_workers=1", "run.amp=False"]
SHORT = ["run.accum_grad_iters=1", "run.num_beams=2", "run.max_len=4", "run.min_len=1", "run.report=False"]
WHOLE = "model.freeze_vit=False model.freeze_llm=False model.vit_precision=fp32 model.llm_precision=fp32"
FROM_NOTHING = (
    "model.load_pretrained=False model.opt_model=null model.t5_model=null model.llama_model=null model.llm_model=null"
)


def test_what_upstream_has_is_there() -> None:
    wanted = {"pretrain_stage1", "pretrain_stage2", "caption_coco_ft", "retrieval_coco_ft", "ret_coco_eval"}
    wanted |= {f"{data}_zeroshot_flant5xl_eval" for data in ("vqav2", "okvqa", "gqa")}
    wanted |= {"step0_projector", "step1_warmup", "step2_finetune", "step3_self_instruct", "nocaps_opt2.7b_eval"}
    assert wanted <= {path.stem for path in FILES}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache root with the families that the run files need."""
    base = tmp_path_factory.mktemp("world")
    root = base / "cache"
    with pytest.MonkeyPatch.context() as patch, passes_here(patch):
        patch.setenv("LAVIS_EXT_CACHE_ROOT", str(root))
        patch.setenv("HF_HUB_OFFLINE", "1")
        export_world(WORLD, base / "mirror", FAMILIES)
        place_by_hand(WORLD, root, FAMILIES)
        with serve(base / "mirror") as url:
            for family in FAMILIES:
                # of a list in many parts the mirror has the first
                limit = {"max_samples": WORLD.train} if family == "laion" else {}
                report = prepare(names_of(family), PrepareOptions(cache_root=root, mirror=url, processes=1, **limit))
                assert report.exit_code == 0, (family, report.lines())
        yield root


def names_of(family: str) -> list[str]:
    """What `prepare` is asked for: of laion the one name that is needed, of gqa the type."""
    return {"laion": ["laion_coco"], "gqa": ["gqa[balanced_testdev]"]}.get(family, [family])


def twin(path: Path, out: Path) -> list[str]:
    """The options that make two steps of a run file, or its evaluation of a few samples, small."""
    config = load_config(path)
    given = [*SMALL, *SHORT, *WHOLE.split(), *FROM_NOTHING.split(), "model.model_type=tiny", f"run.output_dir={out}"]
    given += ["model.image_size=64", "run.job_id=job", "run.k_test=3", "model.bert_model=null", "model.pretrained=null"]
    given += ["run.iters_per_inner_epoch=2", "run.max_iters=2"] if config.run.max_iters else ["run.max_epoch=1"]
    for name in config.datasets:
        own = f"datasets.{name}"
        sizes = ["train", "eval"] if config.run.train_splits else ["eval"]
        given += [f"{own}.vis_processor.{side}.image_size=64" for side in sizes]
        counts = {"train": 8, "val": 4, "test": 4}
        given += [f"{own}.max_samples.{split}={count}" for split, count in counts.items()]
    return [option for option in given if is_read(config, option)]


def is_read(config: Config, option: str) -> bool:
    """Whether what the run file names reads a key."""
    section, _, key = option.partition("=")[0].partition(".")
    return section not in ("run", "model") or hasattr(getattr(config, section), key.partition(".")[0])


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in FILES if "siglip" not in path.stem], ids=lambda path: path.stem)
def test_the_tiny_twin_runs(path: Path, cache: Path, tmp_path: Path) -> None:
    """Those behind SigLIP, whose data the drawn world lacks, run in `tests/models/test_recipe.py`."""
    config = load_config(path, twin(path, tmp_path))
    job = evaluate(config) if config.run.evaluate else train(config)
    facts = json.loads((job / "run.json").read_text())
    assert facts["status"] == ("evaluated" if config.run.evaluate else "finished")
    if config.run.evaluate:
        found: dict[str, Any] = json.loads((job / "evaluate.json").read_text())
        assert all("agg_metrics" in metrics for metrics in found.values())
        assert list((job / "result").glob("*.json"))
    else:
        assert facts["step"] >= 2


def test_every_card_that_is_named_is_known() -> None:
    known = set(all_cards().names())
    assert {name for path in FILES for name in load_config(path).datasets} <= known


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nocaps_opt2.7b_eval", "gqa_zeroshot_flant5xl_eval", "aokvqa_zeroshot_opt2.7b_eval"])
def test_a_split_without_answers_is_written_for_its_server(name: str, cache: Path, tmp_path: Path) -> None:
    path = PROJECTS / "blip2" / "eval" / f"{name}.yaml"
    job = evaluate(load_config(path, [*twin(path, tmp_path), "run.test_splits=[test]", "run.report=True"]))
    assert json.loads((job / "evaluate.json").read_text()) == {"test": {}}
    written = {file.name for file in (job / "result").glob("*.json")}
    assert written & {"test_epochtest.json", "test_submission.json", "test_leaderboard.json"}
    assert (job / "report.html").is_file()

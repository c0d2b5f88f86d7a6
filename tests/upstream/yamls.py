"""Run and model YAMLs as LAVIS and VPGTrans publish them, with tiny sizes put in by options only.

`LAVIS_EXT_UPSTREAM_CODE` names folders, separated by `:`, that hold checkouts of them; their YAMLs are not copied here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from omegaconf import OmegaConf

from lavis_ext.common.config.resolve import dataset_defaults, load_config
from lavis_ext.common.config.schema import Config

CODE = [Path(p) for p in os.environ.get("LAVIS_EXT_UPSTREAM_CODE", "").split(os.pathsep) if p]
REASON = "LAVIS_EXT_UPSTREAM_CODE names no checkout of LAVIS or VPGTrans"
OVERRIDDEN = {
    "nocaps_opt_eval": "model.model_type=pretrain_opt350m_vitL",
    "vqav2_llama_eval": "model.model_type=pretrain_llama7b",
    "pretrain_stage2_flant5_only_proj_scale_up": "model.model_type=pretrain_flant5xl",
    "pretrain_stage2_flant5_scale_up": "model.model_type=pretrain_flant5xl",
}
"""Files that name a type that upstream does not have either: its scripts give another."""


def run_files() -> list[Path]:
    """The run files of BLIP-2, InstructBLIP and VPGTrans."""
    projects = ("blip2", "instructblip")
    found = sorted(p for folder in CODE for name in projects for p in folder.glob(f"**/projects/{name}/**/*.yaml"))
    return [path for path in found if path.stat().st_size]  # LAVIS has one that is empty


def model_files() -> list[Path]:
    """The model YAMLs."""
    return sorted(path for folder in CODE for path in folder.glob("**/configs/models/**/*.yaml"))


def scripts() -> list[Path]:
    """The shell scripts of BLIP-2."""
    return sorted(path for folder in CODE for path in folder.glob("**/run_scripts/blip2/**/*.sh"))


def given_options(path: Path) -> list[str]:
    """What upstream's script gives beside the file."""
    return [OVERRIDDEN[path.stem]] if path.stem in OVERRIDDEN else []


SMALL = """
run.batch_size_train=4 run.batch_size_eval=4 run.num_workers=1 run.amp=False run.accum_grad_iters=1 run.num_beams=2
run.max_len=4 run.min_len=1 run.report=False run.k_test=3 run.job_id=job run.max_epoch=1 run.device=cpu
model.model_type=tiny model.image_size=64 model.freeze_vit=False model.freeze_llm=False model.vit_precision=fp32
model.llm_precision=fp32 model.use_grad_checkpoint=False model.opt_model=null model.t5_model=null model.llama_model=null
model.llm_model=null model.apply_lemmatizer=False
""".split()  # noqa: SIM905
COUNTS = {"train": 8, "val": 4, "test": 4}


def tiny_options(path: Path, out: Path) -> list[str]:
    """The options with which a run file starts on two cores; `pretrained` stays the published URL."""
    config = load_config(path, given_options(path))
    options = [option for option in SMALL if is_read(config, option)]
    options += [f"run.output_dir={out}", *data_options(config)]
    return options + (["run.iters_per_inner_epoch=2", "run.max_iters=2"] if config.run.max_iters else [])


def data_options(config: Config) -> Iterator[str]:
    """Small pictures, few samples; `run.evaluate` files read no train side."""
    for name, dataset in config.datasets.items():
        for side in ("train", "eval"):
            if getattr(dataset.vis_processor, side) is not None:
                yield f"datasets.{name}.vis_processor.{side}.image_size=64"
        yield from (f"datasets.{name}.max_samples.{split}={count}" for split, count in COUNTS.items())
        shipped = dataset_defaults()[name][dataset.type][0].get("build_info", {}).get("images", {}).get("storage")
        if shipped and dataset.build_info.images.storage != shipped:  # a folder of its authors
            yield f"datasets.{name}.build_info.images.storage={shipped}"


def is_read(config: Config, option: str) -> bool:
    """Whether what the run file names reads a key."""
    section, _, key = option.partition("=")[0].partition(".")
    return hasattr(getattr(config, section), key)


def urls(paths: list[Path]) -> set[str]:
    """The weights that run files name by a URL."""
    trees = [OmegaConf.to_container(OmegaConf.load(path)) for path in paths]
    found = {str((tree.get("model") or {}).get("pretrained") or "") for tree in trees if isinstance(tree, dict)}
    return {url for url in found if "://" in url}

"""A resume with another configuration is refused with every difference, unless the difference is harmless."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.common.config.schema import Config, DatasetConfig, ModelConfig
from lavis_ext.common.errors import ConfigError
from lavis_ext.runners.job import fingerprint, require_same
from tests.support.toys import toy_run


def config(**keys: Any) -> Config:
    model = ModelConfig(arch="toy", model_type="tiny")
    return Config(
        run=toy_run(Path("out"), **keys), model=model, datasets={"toy": DatasetConfig(name="toy")}, cache_root="cache"
    )


def test_the_same_configuration_passes() -> None:
    require_same(fingerprint(config()), fingerprint(config()), "checkpoint_1", config())


@pytest.mark.parametrize(
    "keys",
    [{"device": "cuda"}, {"num_workers": 9}, {"log_freq": 7}, {"job_id": "x"}, {"save_steps": 3}],
)
def test_where_and_how_often_is_harmless(keys: dict[str, Any]) -> None:
    require_same(fingerprint(config()), fingerprint(config(**keys)), "checkpoint_1", config())


@pytest.mark.fault("K11")
def test_every_difference_is_told_with_both_values() -> None:
    other = config(init_lr=0.5, seed=7)
    other = replace(other, datasets={"toy": DatasetConfig(name="toy", weight=2.0)})
    with pytest.raises(ConfigError) as caught:
        require_same(fingerprint(config()), fingerprint(other), "checkpoint_1", config())
    told = str(caught.value)
    assert "run.init_lr: was 0.01, now 0.5" in told
    assert "run.seed: was 42, now 7" in told
    assert "datasets.toy.weight: was None, now 2.0" in told
    assert "allow_config_drift" in told
    assert len(caught.value.problems) == 3


@pytest.mark.fault("K11")
def test_a_new_data_set_is_a_difference() -> None:
    other = replace(config(), datasets={})
    with pytest.raises(ConfigError, match=r"datasets\.toy\.name: was 'toy', now '\(not there\)'"):
        require_same(fingerprint(config()), fingerprint(other), "checkpoint_1", config())


def test_a_checkpoint_from_before_a_key_was_made_with_its_default() -> None:
    now = fingerprint(config())
    before = {key: value for key, value in now.items() if key not in ("run.accum_grad_iters", "datasets.toy.tolerance")}
    require_same(before, now, "checkpoint_1", config())
    with pytest.raises(ConfigError, match="accum_grad_iters: was 1, now 2"):
        require_same(before, fingerprint(config(accum_grad_iters=2)), "checkpoint_1", config())


def test_a_key_without_a_default_is_missed() -> None:
    now = fingerprint(config())
    with pytest.raises(ConfigError, match=r"run\.task: was '\(not there\)'"):
        require_same({key: value for key, value in now.items() if key != "run.task"}, now, "checkpoint_1", config())

"""The teacher's logits on disk: the same numbers, written once, in whatever pieces, and never for another input."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lavis_ext.common.errors import ConfigError, DiskError, IntegrityError
from lavis_ext.datasets.readers.faults import SampleError
from lavis_ext.distill import cache as stores
from lavis_ext.distill.cache import WAIT, factors, fingerprints
from lavis_ext.processors.image import Normalizer
from tests.support.distilling import Regions, distill_runner, distilled, moved, oscar
from tests.support.runs import log_lines


def prepared(folder: Path, data: Any = None, teacher: int = 2, **keys: Any) -> Any:
    """A task whose cache is filled."""
    task = distilled(oscar(2, 1), oscar(4, teacher), output_dir=str(folder), **{"cache": "float32", **keys})
    data = data or Regions(bare=(5,))
    task.before_train(SimpleNamespace(datasets={data.name: data}, normalizer=Normalizer()), 10)
    return task


def folders(root: Path) -> list[Path]:
    return sorted((root / ".lavis_ext" / "teacher_logits").iterdir())


def test_the_cache_says_what_the_teacher_says(tmp_path: Path) -> None:
    task, data = prepared(tmp_path), Regions(bare=(5,))
    batch = data.batch(7, 5, 2)  # other rows side by side, so other padding
    found = task.cache.outputs(batch, ("full", "text", "image"))
    for view, cached in found.items():
        with torch.no_grad():
            asked = task.teacher.outputs(batch, view)
        assert cached.valid.tolist() == asked.valid.tolist()
        assert torch.allclose(cached.logits[cached.valid], asked.logits[asked.valid], atol=1e-5)
    assert found["image"].valid.tolist() == [True, False, True]


def test_losses_are_those_without_a_cache(tmp_path: Path) -> None:
    data = Regions(bare=(5,))
    cached, plain = prepared(tmp_path), distilled(oscar(2, 1), oscar(4, 2))
    for indices in ((0, 1, 5), (11, 3, 6)):
        a, b = cached.step(data.batch(*indices)), plain.step(data.batch(*indices))
        assert float(a["loss"].detach()) == pytest.approx(float(b["loss"].detach()), rel=1e-5)


def test_half_precision_is_nearly_the_same(tmp_path: Path) -> None:
    task, data = prepared(tmp_path, cache="float16"), Regions(bare=(5,))
    with torch.no_grad():
        asked = task.teacher.outputs(data.batch(1, 2)).logits
    found = task.cache.outputs(data.batch(1, 2), ("full",))["full"].logits
    assert torch.allclose(found, asked, rtol=2e-3, atol=1e-3)
    size = (folders(tmp_path)[0] / "logits_full").stat().st_size
    assert size == len(data) * asked.shape[1] * 2


def test_it_is_filled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(tmp_path)
    written = {p: p.stat().st_mtime_ns for p in folders(tmp_path)[0].iterdir()}
    monkeypatch.setattr(stores.LogitStore, "write", None)
    prepared(tmp_path)
    assert {p: p.stat().st_mtime_ns for p in folders(tmp_path)[0].iterdir()} == written


def test_every_teacher_and_precision_has_files_of_its_own(tmp_path: Path) -> None:
    prepared(tmp_path)
    prepared(tmp_path, teacher=3)
    prepared(tmp_path, cache="float16")
    prepared(tmp_path, kd_weights={"full": 1.0})
    prepared(tmp_path, data=Regions(size=10))
    assert len(folders(tmp_path)) == 5


class Stop(Exception):
    """The process is killed here."""


@pytest.mark.parametrize("after", [1, 2])
def test_a_stopped_filling_goes_on(after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(tmp_path / "whole")
    kept, count = stores.LogitStore.write, 0

    def write(self: Any, *args: Any) -> None:
        nonlocal count
        count += 1
        if count > after:
            raise Stop
        kept(self, *args)
        self.keep()

    with monkeypatch.context() as patched:
        patched.setattr(stores.LogitStore, "write", write)
        with pytest.raises(Stop):
            prepared(tmp_path / "cut")
    calls: list[int] = []

    def counted(self: Any, rows: Any, values: Any) -> None:
        calls.append(len(rows))
        kept(self, rows, values)

    monkeypatch.setattr(stores.LogitStore, "write", counted)
    prepared(tmp_path / "cut")
    assert sum(calls) == 12 - 4 * after
    whole, cut = folders(tmp_path / "whole")[0], folders(tmp_path / "cut")[0]
    assert whole.name == cut.name
    for path in whole.iterdir():
        assert path.read_bytes() == (cut / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name", ["logits_full", "ids.json", "manifest.json"])
def test_damage_is_seen_and_mended(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prepared(tmp_path)
    folder = folders(tmp_path)[0]
    good = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / name).write_bytes(b"{}" if name.endswith("json") else good[name][:-4] + b"\x01\x02\x03\x04")
    with caplog.at_level(logging.WARNING):
        prepared(tmp_path)
    assert "does not match its manifest" in caplog.text
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == good


def test_another_input_under_the_same_id_is_refused(tmp_path: Path) -> None:
    task, data = prepared(tmp_path), Regions(bare=(5,))
    batch = data.batch(0, 1)
    batch["img_feats"][1, 0, 0] += 1e-6
    with pytest.raises(IntegrityError, match="toy/1 is not what the teacher saw"):
        task.step(batch)
    batch = data.batch(0, 1)
    batch["instance_id"] = ["0", "new"]
    with pytest.raises(IntegrityError, match="toy/new"):
        task.step(batch)


def test_samples_that_are_drawn_anew_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="differ at each load"):
        prepared(tmp_path, data=Regions(drawn=True))
    assert not (tmp_path / ".lavis_ext").exists()


def test_samples_without_ids_of_their_own_are_refused(tmp_path: Path) -> None:
    class Twins(Regions):
        def load(self, index: int, rng: torch.Generator) -> dict[str, Any]:
            return {**super().load(index, rng), "instance_id": "same"}

    with pytest.raises(ConfigError, match="no distinct ids"):
        prepared(tmp_path, data=Twins())


def test_several_inputs_a_sample_are_refused(tmp_path: Path) -> None:
    class Pairs(Regions):
        def collater(self, samples: Any) -> dict[str, Any]:
            batch = super().collater(samples)
            return {key: torch.cat([v, v]) if isinstance(v, torch.Tensor) else v for key, v in batch.items()}

    with pytest.raises(ConfigError, match="several inputs a sample"):
        prepared(tmp_path, data=Pairs())


def test_a_stream_is_refused(tmp_path: Path) -> None:
    stream = SimpleNamespace(name="shards", split="train")
    task = distilled(oscar(2, 1), oscar(4, 2), output_dir=str(tmp_path), cache="float32")
    with pytest.raises(ConfigError, match="stream"):
        task.before_train(SimpleNamespace(datasets={"shards": stream}, normalizer=Normalizer()), 10)


def test_samples_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    class Torn(Regions):
        def load(self, index: int, rng: torch.Generator) -> dict[str, Any]:
            if index in (3, 8):
                raise SampleError(str(index), "nowhere", "torn")
            return super().load(index, rng)

    task = prepared(tmp_path, data=Torn())
    ids = json.loads((folders(tmp_path)[0] / "ids.json").read_text())
    assert [i for i, own in enumerate(ids) if own is None] == [3, 8]
    assert len(task.cache.outputs(Regions().batch(2, 4), ("full",))["full"].logits) == 2


def test_the_size_is_said_and_must_be_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stores.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with caplog.at_level(logging.INFO), pytest.raises(DiskError, match="100 B are free"):
        prepared(tmp_path)
    assert "12 samples × 3 views × 4 classes" in caplog.text
    assert not any(path.name.startswith("logits") for path in folders(tmp_path)[0].iterdir())


def test_logits_that_half_precision_cannot_hold(tmp_path: Path) -> None:
    task = distilled(oscar(2, 1), oscar(4, 2), output_dir=str(tmp_path), cache="float16")
    with torch.no_grad():
        task.teacher.network.head.bias.fill_(1e6)
    with pytest.raises(ConfigError, match="float32"):
        data = Regions()
        task.before_train(SimpleNamespace(datasets={"toy": data}, normalizer=Normalizer()), 10)


@pytest.mark.parametrize(
    ("keys", "said"), [({"teacher_update": "reptile"}, "other logits"), ({"terms": ["pkd"]}, "more of")]
)
def test_what_cannot_be_cached_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        distilled(oscar(2, 1), oscar(4, 2), cache="float32", **keys)


def test_a_run_with_a_cache_is_a_run_without(tmp_path: Path) -> None:
    """Up to the rounding that other padding makes; and twice the same, whether the cache was there or not."""
    plain = distill_runner(tmp_path / "plain")
    plain.train()
    found = []
    for _ in range(2):
        runner = distill_runner(tmp_path / "cached", cache="float32")
        (tmp_path / "cached" / "job" / "log.jsonl").unlink(missing_ok=True)
        runner.train()
        found.append((moved(runner), log_lines(tmp_path / "cached")))
    assert found[0] == found[1]
    for line, other in zip(log_lines(tmp_path / "plain"), found[0][1], strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-4)


# --- fingerprints ---------------------------------------------------------------------------------------------------


def test_padding_does_not_change_a_fingerprint() -> None:
    data = Regions()
    alone = [int(fingerprints(data.batch(i), 1)) for i in range(12)]
    assert fingerprints(data.batch(*range(12)), 12).tolist() == alone
    assert len(set(alone)) == 12


def test_places_count() -> None:
    batch = {"input_ids": torch.tensor([[1, 2, 3], [3, 2, 1], [1, 2, 4]])}
    assert len(set(fingerprints(batch, 3).tolist())) == 3


def test_answers_and_masks_do_not_count_and_texts_do() -> None:
    batch = {"input_ids": torch.tensor([[1, 2]]), "labels": torch.tensor([1]), "text_input": ["a"]}
    same = {**batch, "labels": torch.tensor([2]), "attention_mask": torch.ones(1, 9)}
    assert fingerprints(batch, 1).tolist() == fingerprints(same, 1).tolist()
    assert fingerprints(batch, 1).tolist() != fingerprints({**batch, "text_input": ["b"]}, 1).tolist()
    texts = [f"text {number}" for number in range(64)]
    assert len(set(fingerprints({"text_input": texts}, 64).tolist())) == 64


def test_others_wait_a_day_for_the_one_that_fills() -> None:
    """A large teacher needs hours for a million samples; one that does not move for an hour is not waited for."""
    assert (WAIT.owner_wait, WAIT.owner_stall) == (86_400.0, 3_600.0)


def test_factors_are_odd_and_go_on() -> None:
    few, many = factors(5, "salt"), factors(500, "salt")
    assert few.tolist() == many[:5].tolist()
    assert (many % 2 != 0).all()
    assert len(set(many.tolist())) == 500
    assert np.abs(many.numpy().astype(float)).mean() > 2**60
    assert factors(5, "other").tolist() != few.tolist()

"""The shape `image_text_shards`: LAVIS' keys out of shards, through a mixture, a DataLoader and webdataset."""

import logging
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from lavis_ext.common.config.cards import load_cards
from lavis_ext.common.config.schema import BuildInfo, DatasetConfig, ProcessorConfig, ProcessorPair
from lavis_ext.common.errors import ConfigError, PartialError, UnsafeError
from lavis_ext.datasets.builders import BuildContext, NotPreparedError, build_datasets
from lavis_ext.datasets.builders.image_text_shards import ImageTextStream, best_caption, split_prefix
from lavis_ext.datasets.mixture import Mixture
from lavis_ext.datasets.readers.faults import SampleError
from lavis_ext.datasets.readers.shards import RawSample
from tests.support.shards import cut, ends, sample, write_shard, write_tar

SCORED = {"all_captions": ["no", "A dog (small) runs.", "nor this"], "all_similarities": [0.1, 0.9, 0.9]}
VIS = ProcessorPair(train=ProcessorConfig(name="blip2_image_train", args={"image_size": 8}))


def config(**keys: Any) -> DatasetConfig:
    base: dict[str, Any] = {
        "name": "pairs", "builder": "image_text_shards", "build_info": BuildInfo(storage=["shards"]),
        "vis_processor": VIS, "text_processor": ProcessorPair(train=ProcessorConfig(name="blip_caption")),
    }  # fmt: skip
    return DatasetConfig(**{**base, **keys})


def lay(root: Path, *counts: int, **record: Any) -> None:
    for number, count in enumerate(counts):
        write_shard(root / "shards", number, count, manifest=True, **record)


def build(root: Path, **keys: Any) -> ImageTextStream:
    stream = build_datasets(config(**keys), BuildContext(root))["train"]
    assert isinstance(stream, ImageTextStream)
    return stream


def first(stream: ImageTextStream, seed: int = 0) -> dict[str, Any]:
    item = next(stream.iterate(0, 1))
    assert isinstance(item, RawSample)
    return dict(stream.load(item, torch.Generator().manual_seed(seed)))


def test_laion_coco_of_the_card(tmp_path: Path) -> None:
    write_shard(tmp_path / "laion_coco", 0, 2, manifest=True, **SCORED)
    stream = build_datasets(load_cards().dataset("laion_coco"), BuildContext(tmp_path, ["train"]))["train"]
    assert isinstance(stream, ImageTextStream)
    sample_ = first(stream)
    assert sample_.keys() == {"image", "text_input", "text_output", "instance_id"}
    assert sample_["image"].shape == (3, 224, 224) and sample_["image"].dtype == torch.uint8
    whole = f"{sample_['text_input']} {sample_['text_output']}".strip()
    assert whole == "a dog small runs"
    cuts = {first(stream, seed)["text_input"] for seed in range(30)}
    assert cuts == {"", "a", "a dog"}
    assert next(iter(stream))["image"].dtype == torch.float32


@pytest.mark.parametrize("name", ["laion2B_multi", "laion400m", "laion400M"])
def test_the_other_cards(name: str, tmp_path: Path) -> None:
    declared = load_cards().dataset(name)
    with pytest.raises(NotPreparedError, match="img2dataset"):
        build_datasets(declared, BuildContext(tmp_path))
    write_shard(tmp_path / declared.build_info.storage[0], 0, 1, caption=["One.", "Two.", "Three."])
    stream = build_datasets(declared, BuildContext(tmp_path))["train"]
    assert isinstance(stream, ImageTextStream)
    assert {first(stream, seed)["text_input"] for seed in range(20)} == {"one", "two"}


def test_text_member_and_no_processors(tmp_path: Path) -> None:
    lay(tmp_path, 1)
    stream = build(
        tmp_path, args={"caption_key": ".txt"}, vis_processor=ProcessorPair(), text_processor=ProcessorPair()
    )
    sample_ = next(iter(stream))
    assert sample_["text_input"] == "text of it" and sample_["image"].size == (16, 12)


@pytest.mark.parametrize(
    ("record", "args", "why"),
    [
        ({"caption": None}, {}, "caption is empty"),
        ({"caption": " "}, {}, "caption is empty"),
        ({"caption": []}, {}, "caption is empty"),
        ({}, {"caption_key": "TEXT"}, "json has no TEXT"),
        ({"caption": None}, {"captions_key": "all_captions", "scores_key": "all_similarities"}, "caption is empty"),
        ({"a": ["x"]}, {"captions_key": "a", "scores_key": "b"}, "json has no b"),
        ({"a": ["x"], "b": []}, {"captions_key": "a", "scores_key": "b"}, "not two lists of one length"),
        ({"a": ["x"], "b": [float("nan")]}, {"captions_key": "a", "scores_key": "b"}, "a score is no number"),
    ],
)
def test_records_that_lack_something_are_counted(
    record: dict[str, Any], args: dict[str, Any], why: str, tmp_path: Path
) -> None:
    lay(tmp_path, 2, **record)
    stream = build(tmp_path, args=args)
    with pytest.raises(SampleError, match=rf"00000\.tar!0.*: .*{why}"):
        first(stream)
    with pytest.raises(PartialError, match=r"pairs/train: 2 of 2 samples failed"):
        list(Mixture({"pairs": stream}, batch_size=1, num_workers=0))


def test_best_caption_is_numpys_argmax() -> None:
    assert best_caption(["a", "b", "c"], [1, 3.0, 3]) == "b"
    with pytest.raises(ValueError):
        best_caption("ab", [1, 2])


def test_one_word_is_not_cut() -> None:
    assert split_prefix("word", torch.Generator().manual_seed(1)) == {"text_input": "", "text_output": "word"}


@pytest.mark.parametrize(
    ("keys", "kind", "message"),
    [
        ({"args": {"shufle_buffer": 1}}, ConfigError, "did you mean 'shuffle_buffer'"),
        ({"args": {"seed": -1}}, ConfigError, r"args\.seed: -1 is out"),
        ({"args": {"epoch_size": 0}}, ConfigError, r"args\.epoch_size: 0 is out"),
        ({"args": {"scores_key": "b"}}, ConfigError, "belong together"),
        ({"build_info": BuildInfo()}, ConfigError, "names no shards"),
        ({"build_info": BuildInfo(storage=["pipe:cat shards/00000.tar"])}, UnsafeError, "no local path"),
        ({"build_info": BuildInfo(storage=["shards/{00000..00003}.tar"])}, ConfigError, "absent: 00001–00003"),
        ({"build_info": BuildInfo(storage=["none/*.tar"])}, NotPreparedError, "run `lavis-ext prepare pairs`"),
    ],
)
def test_what_cannot_be_meant(keys: dict[str, Any], kind: type[Exception], message: str, tmp_path: Path) -> None:
    lay(tmp_path, 1)
    with pytest.raises(kind, match=message):
        build(tmp_path, **keys)


def test_only_the_train_split(tmp_path: Path) -> None:
    assert build_datasets(config(), BuildContext(tmp_path, ["val"])) == {}


def keys_of(batches: list[dict[str, Any]]) -> list[str]:
    return [key for batch in batches for key in batch["instance_id"]]


@pytest.mark.parametrize("workers", [0, 2])
def test_mixture_gives_each_sample_once_a_lap(workers: int, tmp_path: Path) -> None:
    lay(tmp_path, 7, 5, 8)
    mixture = Mixture({"pairs": build(tmp_path)}, batch_size=4, num_workers=workers)
    assert len(mixture) == 5
    first_lap, second_lap = keys_of(list(mixture)), keys_of(list(mixture))
    assert len(set(first_lap)) == 20 and sorted(first_lap) == sorted(second_lap) and first_lap != second_lap


@pytest.mark.parametrize("stop", [1, 4, 5, 7])
def test_resume_is_exact(stop: int, tmp_path: Path) -> None:
    """Keys and pixels go on where they were, without repeat or gap, in the middle of a lap and over its end."""
    lay(tmp_path, 7, 5, 8)

    def run(state: dict[str, Any] | None, count: int) -> tuple[list[Any], dict[str, Any]]:
        stream = build(tmp_path, args={"shuffle_buffer": 6, "seed": 3})
        mixture = Mixture({"pairs": stream}, batch_size=4, repeat=True, num_workers=2)
        if state is not None:
            mixture.load_state_dict(state)
        batches = [(b["instance_id"], b["image"].sum().item()) for _, b in zip(range(count), mixture, strict=False)]
        kept = mixture.state_dict()
        mixture.close()
        return batches, kept

    whole, _ = run(None, 10)
    before, state = run(None, stop)
    after, _ = run(pickle.loads(pickle.dumps(state)), 10 - stop)
    assert before + after == whole
    assert set(Counter(key for keys, _ in whole for key in keys).values()) == {2}


def test_ranks_share_a_lap_without_overlap(tmp_path: Path) -> None:
    """Three ranks and two shards: samples are split, so that none is without work."""
    lay(tmp_path, 9, 9)
    parts = []
    for rank in range(3):
        mixture = Mixture({"pairs": build(tmp_path)}, batch_size=3, rank=rank, world=3, num_workers=0)
        parts.append(keys_of(list(mixture)))
    assert [len(part) for part in parts] == [6, 6, 6] and len({key for part in parts for key in part}) == 18


def test_evaluation_order_gives_each_sample_exactly_once(tmp_path: Path) -> None:
    lay(tmp_path, 5, 6)
    found = []
    for rank in range(2):
        stream = build(tmp_path, args={"shuffle_buffer": 0})
        mixture = Mixture({"pairs": stream}, batch_size=2, rank=rank, world=2, shuffle=False, num_workers=0)
        found += keys_of(list(mixture))
    assert len(found) == 11 and len(set(found)) == 11


def test_declared_epoch_and_first_samples(tmp_path: Path) -> None:
    lay(tmp_path, 6, 6)
    assert len(Mixture({"pairs": build(tmp_path, args={"epoch_size": 32})}, batch_size=4)) == 8
    stream = build(tmp_path, max_samples={"train": 5})
    assert stream.epoch_size == 5
    assert {s["instance_id"] for s in stream} == {f"00000.tar!{i:09d}" for i in range(5)}


def test_lost_samples_are_counted_by_shard_and_stop_a_run(tmp_path: Path) -> None:
    lay(tmp_path, 10, 10)
    path = tmp_path / "shards" / "00001.tar"
    cut(path, ends(path)[11][2])
    mixture = Mixture({"pairs": build(tmp_path, tolerance=0.5)}, batch_size=5, num_workers=0)
    assert len(keys_of(list(mixture))) == 14
    told = mixture.faults.summary()["pairs/train"]
    assert (told["seen"], told["bad"], told["reasons"]) == (20, 6, {"shard lost samples": 6})
    assert told["first"][0]["path"] == str(path)
    with pytest.raises(PartialError, match="6 of 20 samples failed") as caught:
        list(Mixture({"pairs": build(tmp_path)}, batch_size=5, num_workers=0))
    assert caught.value.exit_code == 8


def test_dataloader_workers_share_a_lap(tmp_path: Path) -> None:
    lay(tmp_path, 7, 4)
    stream = build(tmp_path)
    loader = DataLoader(stream, batch_size=2, num_workers=3, collate_fn=stream.collater)
    batches = list(loader)
    assert sorted(keys_of(batches)) == [
        f"{s:05d}.tar!{s * 10000 + i:09d}" for s, n in ((0, 7), (1, 4)) for i in range(n)
    ]
    assert batches[0]["image"].dtype == torch.float32 and batches[0]["image"].shape[1:] == (3, 8, 8)


def test_webdataset_pipeline_goes_on_without_end(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    lay(tmp_path, 3, 2)
    pipeline = build(tmp_path).as_pipeline(wds.to_tuple("instance_id", "text_input"))
    assert isinstance(pipeline, wds.DataPipeline)
    twelve = [pair[0] for pair, _ in zip(iter(pipeline), range(12), strict=False)]
    assert Counter(Counter(twelve).values()) == {2: 3, 3: 2} and len(set(twelve[:5])) == len(set(twelve[5:10])) == 5


def test_plain_iteration_counts_what_it_leaves_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tar(tmp_path / "shards" / "0.tar", [m for i in range(4) for m in sample(i, image=i != 2)])
    stream = build(tmp_path, tolerance=0.3)
    with caplog.at_level(logging.WARNING):
        assert len(list(stream)) == 3
    assert stream.faults.summary()["pairs/train"]["reasons"] == {"sample has no image": 1}
    assert "0.tar!000000002" in caplog.text
    with pytest.raises(PartialError, match="1 of 4 samples failed"):
        list(build(tmp_path))


def test_more_workers_than_samples(tmp_path: Path) -> None:
    lay(tmp_path, 1)
    stream = build(tmp_path)
    loader = DataLoader(stream, batch_size=None, num_workers=3)
    assert len(list(loader)) == 1


def test_processes_load_raw_samples(tmp_path: Path) -> None:
    stream = build(tmp_path) if lay(tmp_path, 4) is None else None
    assert stream is not None
    item = next(stream.iterate(0, 1))
    again = pickle.loads(pickle.dumps(stream)).load(pickle.loads(pickle.dumps(item)), torch.Generator().manual_seed(1))
    assert isinstance(item, RawSample)
    assert torch.equal(again["image"], stream.load(item, torch.Generator().manual_seed(1))["image"])

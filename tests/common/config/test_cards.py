"""Cards resolve names to bytes; LAVIS' own YAML form means the same."""

from pathlib import Path

import pytest

from lavis_ext.common.config.cards import load_cards, load_dataset_config
from lavis_ext.common.errors import ConfigError, UsageError

LAVIS_COCO = """
datasets:
  coco_caption:
    dataset_card: dataset_card/coco_caption.md
    data_type: images
    build_info:
      annotations:
        train:
          url: https://storage.googleapis.com/sfr-vision-language-research/datasets/coco_karpathy_train.json
          md5: aa31ac474cf6250ebb81d18348a07ed8
          storage: coco/annotations/coco_karpathy_train.json
        val:
          url: https://storage.googleapis.com/sfr-vision-language-research/datasets/coco_karpathy_val.json
          md5: b273847456ef5580e33713b1f7de52a0
          storage: coco/annotations/coco_karpathy_val.json
      images:
          storage: coco/images/
"""


def test_coco_declares_what_each_split_needs() -> None:
    cards = load_cards()
    caption = cards.dataset("coco_caption")
    train = [a.file for a in cards.artifacts_of(caption, ["train"])]
    assert train == [
        "coco/annotations/coco_karpathy_train.json",
        "coco/images/train2014.zip",
        "coco/images/val2014.zip",
    ]
    val = [a.file for a in cards.artifacts_of(caption, ["val"])]
    assert val == ["coco/annotations/coco_karpathy_val.json", "coco/images/val2014.zip"]
    assert cards.families["coco"].artifacts["test2015"].md5 == "65562e58af7d695cc47356951578c041"


def test_a_name_is_a_family_or_a_data_set() -> None:
    cards = load_cards()
    assert {d.name for d in cards.resolve("coco")[1]} >= {"coco_caption", "coco_retrieval"}
    assert [d.name for d in cards.resolve("coco_caption")[1]] == ["coco_caption"]
    with pytest.raises(UsageError, match="did you mean 'coco_caption'"):
        cards.resolve("coco_captoin")
    with pytest.raises(UsageError, match="has no type 'full'; known: default"):
        cards.dataset("coco_caption", "full")


def test_lavis_dataset_yaml_loads_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "defaults_cap.yaml"
    path.write_text(LAVIS_COCO)
    dataset = load_dataset_config(path)
    cards = load_cards()
    assert dataset.builder == "image_caption"
    assert cards.annotation_paths(dataset, "val") == ["coco/annotations/coco_karpathy_val.json"]
    [annotation, *images] = cards.artifacts_of(dataset, ["val"])
    assert annotation.md5 == "b273847456ef5580e33713b1f7de52a0"
    assert [a.name for a in images] == ["val2014"]


def test_new_data_set_is_one_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "datasets" / "mine"
    folder.mkdir(parents=True)
    (folder / "defaults.yaml").write_text(
        "datasets:\n  mine:\n    builder: image_caption\n    build_info:\n"
        "      annotations: {train: {url: [https://h/a.json, https://h/b.json], storage: [m/a.json, m/b.json]}}\n"
        "      images: {storage: m/images}\n"
    )
    monkeypatch.setenv("LAVIS_EXT_CONFIGS", str(tmp_path))
    cards = load_cards()
    assert "mine" in cards.names()
    assert [a.url for a in cards.artifacts_of(cards.dataset("mine"))] == ["https://h/a.json", "https://h/b.json"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("{builder: image_caption, build_info: {annotations: {train: {artifact: nope}}}}", "no artifact 'nope'"),
        (
            "{builder: x, build_info: {annotations: {train: {url: [https://a], storage: [b, c]}}}}",
            "1 url but 2 storage",
        ),
    ],
)
def test_references_that_lead_nowhere(tmp_path: Path, body: str, message: str) -> None:
    path = tmp_path / "d.yaml"
    path.write_text(f"datasets: {{mine: {body}}}")
    dataset = load_dataset_config(path)
    with pytest.raises(ConfigError, match=message):
        load_cards().artifacts_of(dataset)


def test_mistakes_of_all_cards_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {
        "a": "artifacts: {x: {ulr: u, storage: s}}",
        "b": "artifacts: {y: {url: u, storage: s, unpack: rar}}",
    }.items():
        (tmp_path / "datasets" / name).mkdir(parents=True)
        (tmp_path / "datasets" / name / "artifacts.yaml").write_text(text)
    monkeypatch.setenv("LAVIS_EXT_CONFIGS", str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        load_cards()
    assert "artifacts.x.ulr: unknown key; did you mean 'url'?" in str(caught.value)
    assert "'rar' is not a choice" in str(caught.value)

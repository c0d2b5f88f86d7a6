"""Names and splits → data sets and files; mistakes are reported with the nearest name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lavis_ext.common.config.cards import Artifact, Cards, load_cards
from lavis_ext.common.errors import ConfigError, UsageError
from lavis_ext.prepare.records import family_folder
from lavis_ext.prepare.selection import select
from tests.support.server import Server
from tests.support.toyfamily import Family


@pytest.fixture
def cards(server: Server, tmp_path: Path) -> Cards:
    """The card of the toy family."""
    return Family(server, tmp_path).cards()


def test_each_file_once_annotations_first(cards: Cards) -> None:
    found = select(cards, ["toy", "toy_caption"], None)
    assert [request.title for request in found.requests] == ["toy/train_rows", "toy/val_rows", "toy/train", "toy/val"]
    assert [request.images for request in found.requests] == [False, False, True, True]
    assert found.families == ["toy"] and len(found.chosen) == 1


def test_the_shipped_coco_card_by_splits() -> None:
    cards = load_cards()
    val = select(cards, ["coco_caption"], ["val"])
    assert [request.artifact.name for request in val.requests] == ["karpathy_val", "val2014"]
    train = select(cards, ["coco_caption"], ["train"])
    assert [request.artifact.name for request in train.requests] == ["karpathy_train", "train2014", "val2014"]
    assert "coco_retrieval" in {one.dataset.name for one in select(cards, ["coco"], None).chosen}


@pytest.mark.fault("U07")
@pytest.mark.parametrize(
    ("names", "splits", "word"),
    [(["tyo"], None, "toy"), (["toy_captoin"], None, "toy_caption"), (["toy"], ["vla"], "val"), ([], None, "toy")],
)
def test_u07_typos_are_reported_with_the_nearest(
    cards: Cards, names: list[str], splits: list[str] | None, word: str
) -> None:
    with pytest.raises(UsageError) as caught:
        select(cards, names, splits)
    assert caught.value.exit_code == 2 and word in str(caught.value)


@pytest.mark.parametrize("storage", ["/etc/x", "../x", "a/../../x", "a\\b"])
def test_storage_outside_the_root_is_refused(cards: Cards, storage: str) -> None:
    with pytest.raises(ConfigError):
        family_folder(Artifact(url="https://x.org/a", storage=storage))
    card = cards.families["toy"]
    artifacts = {**card.artifacts, "val_rows": replace(card.artifacts["val_rows"], storage=storage)}
    with pytest.raises(ConfigError):
        select(Cards({"toy": replace(card, artifacts=artifacts)}), ["toy"], None)


def test_the_first_folder_keeps_the_records() -> None:
    assert family_folder(Artifact(url="https://x.org/a.zip", storage="coco/images", unpack="zip")) == "coco"
    assert family_folder(Artifact(url="https://x.org/a.json", storage="a.json")) == ""


def test_a_default_type_on_request_is_asked_for_by_its_name() -> None:
    cards = load_cards()
    assert "oscar_nocaps" not in {one.title for one in select(cards, ["oscar"], None).chosen}
    assert [one.title for one in select(cards, ["oscar_nocaps"], None).chosen] == ["oscar_nocaps"]
    assert [one.title for one in select(cards, ["oscar_pretrain"], None).chosen] == ["oscar_pretrain"]
    assert [one.title for one in select(cards, ["oscar_vqa[vinvl]"], None).chosen] == ["oscar_vqa[vinvl]"]

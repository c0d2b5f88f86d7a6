"""How a data set names its files: artifacts, members of archives, artifacts of other cards, paths, a second form."""

import json
from pathlib import Path

import pytest

from lavis_ext.cli import main
from lavis_ext.common.config.cards import Cards, is_path, load_cards, split_names
from lavis_ext.common.errors import ConfigError, UsageError

CARDS = """
family: birds
artifacts:
  rows: {url: https://h/rows.json, storage: birds/rows.json}
  packed: {url: https://h/packed.zip, storage: birds/annotations, unpack: zip}
  photos: {url: https://h/photos.zip, storage: birds/images, unpack: zip}
"""
DATA = """
datasets:
  birds:
    builder: image_caption
    build_info:
      annotations:
        train: {artifact: packed!lists/train.json, instead: rows}
        val: {artifact: mine/val.tsv}
      images: {storage: birds/images, artifacts: {train: [photos, coco/val2014]}}
"""
OTHER = "datasets: {finches: {builder: image_caption, family: coco}}"


@pytest.fixture
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cards:
    """The shipped cards and one more."""
    folder = tmp_path / "datasets/birds"
    folder.mkdir(parents=True)
    for name, text in (("artifacts", CARDS), ("defaults", DATA), ("finches", OTHER)):
        (folder / f"{name}.yaml").write_text(text)
    monkeypatch.setenv("LAVIS_EXT_CONFIGS", str(tmp_path))
    return load_cards()


def test_members_paths_and_other_cards(cards: Cards) -> None:
    birds = cards.dataset("birds")
    assert cards.annotation_paths(birds, "train") == ["birds/annotations/lists/train.json"]
    assert cards.annotation_paths(birds, "val") == ["mine/val.tsv"]
    assert [(a.family, a.name) for a in cards.artifacts_of(birds)] == [
        ("birds", "packed"),
        ("birds", "photos"),
        ("coco", "val2014"),
    ]
    assert [a.name for a in cards.image_artifacts(birds, "train")] == ["photos", "val2014"]


def test_the_other_form(cards: Cards) -> None:
    birds = cards.dataset("birds")
    other = cards.in_other_form(birds, "train")
    assert other is not None
    assert [a.name for a in cards.annotation_artifacts(other, "train")] == ["rows"]
    assert cards.annotation_paths(birds, "train", instead=True) == cards.annotation_paths(other, "train")
    assert cards.in_other_form(birds, "val") is None
    assert split_names(other) == split_names(birds)


def test_a_data_set_stands_in_its_folder_and_in_the_family_that_it_names(cards: Cards) -> None:
    assert "finches" in cards.families["coco"].datasets
    assert set(cards.families["birds"].datasets) == {"birds", "finches"}
    assert cards.card_of("finches").family == cards.dataset("finches").family == "coco"
    assert cards.names().count("finches") == 1


def test_one_type_by_name(cards: Cards) -> None:
    card, found = cards.resolve("gqa[all]")
    assert (card.family, [d.type for d in found]) == ("gqa", ["all"])
    with pytest.raises(UsageError, match="has no type 'al'; did you mean 'all'"):
        cards.resolve("gqa[al]")
    with pytest.raises(UsageError, match="not known"):
        cards.resolve("gaq[all]")


@pytest.mark.parametrize(
    ("reference", "what"), [("coco/val2104", "'coco' has no artifact 'val2104'"), ("zoo/x", "'zoo'")]
)
def test_references_that_lead_nowhere(reference: str, what: str, cards: Cards) -> None:
    with pytest.raises(ConfigError, match=what):
        cards.artifact(reference, cards.dataset("birds"))


@pytest.mark.parametrize(
    ("text", "path"),
    [("a.tsv", True), ("a/b.json", True), ("rows", False), ("coco/val2014", False), ("a!b.json", False)],
)
def test_what_is_a_path(text: str, path: bool) -> None:
    assert is_path(text) is path


@pytest.mark.parametrize("name", load_cards().names())
def test_every_shipped_data_set_is_documented(name: str) -> None:
    cards = load_cards()
    types = cards.card_of(name).datasets[name].values()
    for dataset in types:
        file, _, heading = dataset.dataset_card.partition("#")
        page = (Path(__file__).parents[3] / file).read_text()
        assert f"\n## {heading}\n" in page, heading
    assert cards.card_of(name).licence and cards.card_of(name).citation.startswith("@")


def test_a_source_that_is_dead_says_what_to_use_instead(capsys: pytest.CaptureFixture[str]) -> None:
    told = {(name, one.url): one for name, card in load_cards().families.items() for one in card.sources}
    dead = {key: one for key, one in told.items() if one.now == "dead"}
    assert len(dead) >= 7 and all(one.instead for one in dead.values())
    assert main(["show", "conceptual_caption_3m"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "gcc-data" in line)
    assert [word for word in ("dead", "2026-03", "403", "cc3m_wds") if word not in line] == []
    assert main(["show", "refcoco", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[0])["card"]["sources"][0]
    assert (shown["now"], shown["since"]) == ("dead", "2022-09")


@pytest.mark.parametrize("since", ["'last year'", "2023-13", "'1'"])
def test_a_date_that_is_none_is_noted(since: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = tmp_path / "datasets/x/artifacts.yaml"
    card.parent.mkdir(parents=True)
    card.write_text(f"family: x\nsources: [{{url: 'https://h/x', now: dead, since: {since}}}]\nartifacts: {{}}\n")
    monkeypatch.setenv("LAVIS_EXT_CONFIGS", str(tmp_path))
    with pytest.raises(ConfigError) as error:
        load_cards()
    assert any("since" in problem.where for problem in error.value.problems)

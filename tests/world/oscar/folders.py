"""The containers of the family `vinvl`: annotations of six tasks, models, region features, and Oscar+'s corpora."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from urllib.parse import quote

from lavis_ext.demo.addresses import all_cards, url_of
from lavis_ext.demo.mirror import MirrorWriter
from lavis_ext.demo.scenes import coco_folders
from lavis_ext.demo.things import BACKGROUNDS, COLOURS, SHAPES
from lavis_ext.demo.world import World
from tests.world.gqa import question_name
from tests.world.oscar.answering import (
    VqaParts,
    gqa_features,
    gqa_label_files,
    gqa_labels,
    gqa_questions,
    gqa_texts,
    vqa_features,
    vqa_labels,
    vqa_texts,
)
from tests.world.oscar.captioning import captioning_members
from tests.world.oscar.checkpoints import Head, checkpoint
from tests.world.oscar.corpus import CHUNKS, CORPORA, Source, corpus, corpus_yaml, label_folder
from tests.world.oscar.forms import Members, archive, as_json, as_tensor, as_torch, as_yaml, below, by_id
from tests.world.oscar.novel import novel_members
from tests.world.oscar.pairing import pair_features, pair_images, pair_texts
from tests.world.oscar.retrieval import retrieval_texts
from tests.world.oscar.tables import chunked_folder, feature_folder, offset_table
from tests.world.regions import X152C4, uniform

PRETRAINED = Head(contrast=3, image_norm=True)
CAPTIONING = (
    *("pretrained_base", "pretrained_large"),
    *(f"coco_captioning_{size}_{loss}" for size in ("base", "large") for loss in ("xe", "scst")),
    *("nocaps_base_xe", "nocaps_base_scst"),
)
STARTS = ("base/checkpoint-1340000", "large/checkpoint-0660000")
"""Where fine-tuning for retrieval begins."""
TESTS = {"coco2014test": "test2014", "coco2015test": "test2015"}
THIN = 6
"""Every so manieth training scene is one of the web."""
Files = Iterable[tuple[str, bytes]]


def export_vinvl(world: World, mirror: MirrorWriter) -> None:
    """Every address of the card, folders with all that the documents name in them."""
    sources = feature_sources(world)
    for name, members in (*tasks(world), *models(world), *feature_files(world, sources)):
        put(mirror, name, members)
    for name, file, head in zipped_models(world):
        folder = file.removesuffix(".zip").rpartition("/")[2]
        mirror.add_zip(child(name, file), archive(folder, checkpoint(f"{name}/{file}", head)))
    for size, names in CORPORA.items():
        file = url_of(f"vinvl/corpus_{size}").rpartition("/")[2]
        mirror.add(url_of(f"vinvl/corpus_{size}"), corpus(sources, names))
        mirror.add(url_of(f"vinvl/corpus_{size}_list"), corpus_yaml(file, sources, names))
    mirror.add(url_of("vinvl/detector"), detector_weights())
    mirror.add_json(url_of("vinvl/detector_labels"), detector_labels())


def put(mirror: MirrorWriter, artifact: str, members: Files) -> None:
    """Files into the folder of an artifact."""
    for name, content in members:
        mirror.add(child(artifact, name), content)


def child(artifact: str, name: str) -> str:
    """The address of a file in the folder of an artifact."""
    return f"{url_of(f'vinvl/{artifact}')}/{quote(name)}"


def tasks(world: World) -> Iterator[tuple[str, Members]]:
    """The folders of `datasets/`; those of retrieval leave the features to `image_features/`."""
    yield "coco_caption", captioning_members(world, X152C4)
    yield "nocaps", novel_members(world)
    yield "coco_ir", retrieval_texts(world)
    yield "vqa", vqa_members(world)
    yield "gqa", gqa_members(world)
    yield "nlvr2", nlvr2_members(world)


def vqa_members(world: World) -> Members:
    """Rows, labels, and features; those of val also in rows that an offset map finds."""
    parts = VqaParts.of(world)
    yield from vqa_texts(parts)
    yield from vqa_features(parts, X152C4)
    yield from below("cache", vqa_labels(parts))
    yield from offset_table("val_img_frcnn_feats", by_id(parts.scenes("val")))


def gqa_members(world: World) -> Members:
    """Rows, features and labels in one folder."""
    yield from gqa_texts(world, X152C4)
    yield from gqa_features(world, X152C4)
    yield from gqa_label_files(world)


def nlvr2_members(world: World) -> Members:
    """Rows and features in one folder."""
    yield from pair_texts(world, X152C4)
    yield from pair_features(world, X152C4)


def models(world: World) -> Iterator[tuple[str, Members]]:
    """The checkpoints that lie open, what servers said of the answers, and the detector's own files."""
    for folder in STARTS:
        yield "model_coco_ir", below(folder, checkpoint(f"coco_ir/{folder}", PRETRAINED))
    for size in ("base", "large"):
        best, start = f"{size}/checkpoint-0132780", f"{size}/checkpoint-2000000"
        yield "model_coco_ir", below(best, checkpoint(f"coco_ir/{best}", Head("retrieval", image_norm=True)))
        yield "model_vqa", below(start, checkpoint(f"vqa/{start}", PRETRAINED))
        yield "model_vqa", below(f"{size}/test", results("question_id", [a.id for a in VqaParts.of(world).test]))
    asked = gqa_questions(world, "test", balanced=False)
    yield "model_gqa", below("base", results("questionId", [question_name(scene, i) for scene, i, _ in asked]))
    yield "model_od_models", below("FourSets", detector_files())


def results(key: str, questions: Sequence[int | str]) -> Members:
    """What was sent to a server: the same word for every question."""
    answer = "answer" if key == "question_id" else "prediction"
    yield "results.txt", as_json([{key: question, answer: "yes"} for question in questions])


def zipped_models(world: World) -> Iterator[tuple[str, str, Head]]:
    """(artifact, archive in its folder, head) of the checkpoints in archives."""
    vqa = Head("vqa_text", len(VqaParts.of(world).labels().ids), "bce", image_norm=True)
    gqa = Head("gqa", len(gqa_labels(world).ids), image_norm=True)
    yield from (("model_image_captioning", f"{name}.zip", PRETRAINED) for name in CAPTIONING)
    for size in ("base", "large"):
        yield "model_vqa", f"{size}/best.zip", vqa
        hidden = 3 if size == "base" else 2
        yield "model_nlvr2", f"{size}/best.zip", Head("nlvr", 2, hidden=hidden, pair=True, image_norm=True)
    yield "model_gqa", "base/best.zip", gqa


def feature_sources(world: World) -> dict[str, Source]:
    """The sets of images that pre-training knows by name; those of the web are a few training scenes each."""
    folders, train = coco_folders(world), list(world.scenes("train"))
    seen = [scene for scene in world if scene.split != "hidden"]
    flat = {"coco": [*folders["train2014"], *folders["val2014"]], "flickr30k": seen, "gqa": list(world)}
    chunked = {name: train[at::THIN] for at, name in enumerate(("googlecc", "sbu", "oi"))}
    return {
        name: Source(folder_of(f"features_{name}"), by_id(scenes), name in chunked)
        for name, scenes in {**flat, **chunked}.items()
    }


def folder_of(artifact: str) -> str:
    """Where an artifact lies below `vinvl/`."""
    return all_cards().families["vinvl"].artifacts[artifact].storage.removeprefix("vinvl/")


def feature_files(world: World, sources: Mapping[str, Source]) -> Iterator[tuple[str, Members]]:
    """The folders of `image_features/`, and what pre-training reads beside them."""
    for name, source in sources.items():
        images = source.images
        yield f"features_{name}", chunked_folder(images, CHUNKS) if source.chunked else feature_folder(images)
        yield f"features_{name}", label_folder(name, source)
    for name, folder in TESTS.items():
        yield f"features_{name}", feature_folder(by_id(coco_folders(world)[folder]), numbered=False)
    yield "features_nlvr2", feature_folder(dict(pair_images(world)), numbered=False)


def detector_files() -> Members:
    """Config, weights and classes of the detector: enough to be fetched, not to detect."""
    yield "config.yaml", as_yaml({"MODEL": {"META_ARCHITECTURE": "AttrRCNN", "DEVICE": "cpu"}})
    yield "model_final.pth", detector_weights()
    yield "FourSets_class2ind.json", as_json(detector_labels()["label_to_idx"])


def detector_weights() -> bytes:
    """One matrix, of the classes' scores."""
    return as_torch({"model": {"roi_heads.box.predictor.cls_score.bias": as_tensor(uniform("detector", 10, -1, 1))}})


def detector_labels() -> dict[str, dict[str, int | str]]:
    """Classes and attributes by name and by number, from 1."""
    classes = {name: number for number, name in enumerate((*SHAPES, *BACKGROUNDS), 1)}
    attributes = {name: number for number, name in enumerate(COLOURS, 1)}
    return {
        "label_to_idx": dict(classes),
        "idx_to_label": {str(number): name for name, number in classes.items()},
        "attribute_to_idx": dict(attributes),
        "idx_to_attribute": {str(number): name for name, number in attributes.items()},
    }

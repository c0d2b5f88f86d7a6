"""The archives of the family `oscar` and the containers of `vinvl`: tasks with their features, models, corpora."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from urllib.parse import quote

from lavis_ext.demo.coco import coco_folders
from lavis_ext.demo.mirror import MirrorWriter, all_cards, url_of
from lavis_ext.demo.things import BACKGROUNDS, COLOURS, SHAPES
from lavis_ext.demo.world import World
from tests.world.oscar.captions import (
    CHUNKS,
    CORPORA,
    Source,
    captioning_members,
    corpus,
    corpus_yaml,
    label_folder,
    novel_members,
    retrieval_features,
    retrieval_texts,
)
from tests.world.oscar.checkpoints import Head, checkpoint
from tests.world.oscar.forms import (
    Members,
    archive,
    as_json,
    as_tensor,
    as_torch,
    as_yaml,
    below,
    by_id,
    chunked_folder,
    feature_folder,
    offset_table,
)
from tests.world.oscar.tasks import (
    VqaParts,
    gqa_features,
    gqa_label_files,
    gqa_labels,
    gqa_questions,
    gqa_texts,
    pair_features,
    pair_images,
    pair_texts,
    vqa_features,
    vqa_labels,
    vqa_texts,
)
from tests.world.regions import BUTD, X152C4, uniform
from tests.world.vqa import question_name

PRETRAINED = {
    "base-vg-labels": ("ep_67_588997", "ep_107_1192087"),
    "large-vg-labels": ("ep_20_590000", "ep_55_1617000", "ep_7_816000"),
    "base-oid-labels": ("ep_107_1192087",),
    "base-no-labels": ("ep_107_1192087",),
}
"""Archive → its checkpoints; what the last two archives hold was never published."""


def export_oscar(world: World, mirror: MirrorWriter) -> None:
    """Every archive of the card; the models are drawn, not trained, all of one tiny size."""
    for name, members in TASKS.items():
        mirror.add_zip(url_of(f"oscar/{name}"), archive(name, members(world)))
    for name, folders in PRETRAINED.items():
        mirror.add_zip(url_of(f"oscar/{name}"), archive(name, pretrained(name, folders)))
    for name, (folder, head) in finetuned(world).items():
        mirror.add_zip(url_of(f"oscar/{name}"), archive(folder, checkpoint(name, head)))


def vqa_members(world: World) -> Members:
    """`2k/` with rows and features, `cache/` with the labels."""
    parts = VqaParts.of(world)
    yield from below("2k", vqa_texts(parts))
    yield from below("2k", vqa_features(parts, BUTD))
    yield from below("cache", vqa_labels(parts))


def gqa_members(world: World) -> Members:
    """`0.4true/` with rows and features, `questions1.2/` with the labels."""
    yield from below("0.4true", gqa_texts(world, BUTD))
    yield from below("0.4true", gqa_features(world, BUTD))
    yield from below("questions1.2", gqa_label_files(world))


def nlvr2_members(world: World) -> Members:
    """`ft_corpus/` with all."""
    yield from below("ft_corpus", pair_texts(world, BUTD))
    yield from below("ft_corpus", pair_features(world, BUTD))


def coco_ir_members(world: World) -> Members:
    """All in one folder."""
    yield from retrieval_texts(world)
    yield from retrieval_features(world, BUTD)


def coco_caption_members(world: World) -> Members:
    """All in one folder."""
    return captioning_members(world, BUTD)


def pretrained(name: str, folders: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """One folder a checkpoint."""
    for folder in folders:
        yield from below(folder, checkpoint(f"{name}/{folder}"))


def finetuned(world: World) -> dict[str, tuple[str, Head]]:
    """Artifact → the folder in its archive, and the head of the model."""
    vqa = Head("vqa_text", len(VqaParts.of(world).labels().ids), "bce")
    gqa = Head("gqa", len(gqa_labels(world).ids))
    retrieval = Head("retrieval")
    return {
        "exp_vqa_base": ("vqa_base_best", vqa),
        "exp_vqa_large": ("vqa_large_best", vqa),
        "exp_gqa_base": ("gqa_base_best", gqa),
        "exp_retrieval_base": ("checkpoint", retrieval),
        "exp_retrieval_large": ("checkpoint", retrieval),
        "exp_coco_caption_base": ("checkpoint", Head()),
    }


TASKS: dict[str, Callable[[World], Members]] = {
    "coco_caption": coco_caption_members,
    "coco_ir": coco_ir_members,
    "vqa": vqa_members,
    "GQA": gqa_members,
    "nlvr2": nlvr2_members,
}


VINVL_START = Head(contrast=3, image_norm=True)
CAPTIONING = (
    *("pretrained_base", "pretrained_large"),
    *(f"coco_captioning_{size}_{loss}" for size in ("base", "large") for loss in ("xe", "scst")),
    *("nocaps_base_xe", "nocaps_base_scst"),
)
STARTS = ("base/checkpoint-1340000", "large/checkpoint-0660000")
"""Where fine-tuning for retrieval begins."""
TESTS = {"coco2014test": "test2014", "coco2015test": "test2015"}
THIN = 6
"""Every n-th training scene is one of the web."""
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
    yield "vqa", vinvl_vqa(world)
    yield "gqa", vinvl_gqa(world)
    yield "nlvr2", vinvl_nlvr2(world)


def vinvl_vqa(world: World) -> Members:
    """Rows, labels, and features; those of val also in rows that an offset map finds."""
    parts = VqaParts.of(world)
    yield from vqa_texts(parts)
    yield from vqa_features(parts, X152C4)
    yield from below("cache", vqa_labels(parts))
    yield from offset_table("val_img_frcnn_feats", by_id(parts.scenes("val")))


def vinvl_gqa(world: World) -> Members:
    """Rows, features and labels in one folder."""
    yield from gqa_texts(world, X152C4)
    yield from gqa_features(world, X152C4)
    yield from gqa_label_files(world)


def vinvl_nlvr2(world: World) -> Members:
    """Rows and features in one folder."""
    yield from pair_texts(world, X152C4)
    yield from pair_features(world, X152C4)


def models(world: World) -> Iterator[tuple[str, Members]]:
    """The checkpoints that lie open, what servers said of the answers, and the detector's own files."""
    for folder in STARTS:
        yield "model_coco_ir", below(folder, checkpoint(f"coco_ir/{folder}", VINVL_START))
    for size in ("base", "large"):
        best, start = f"{size}/checkpoint-0132780", f"{size}/checkpoint-2000000"
        yield "model_coco_ir", below(best, checkpoint(f"coco_ir/{best}", Head("retrieval", image_norm=True)))
        yield "model_vqa", below(start, checkpoint(f"vqa/{start}", VINVL_START))
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
    yield from (("model_image_captioning", f"{name}.zip", VINVL_START) for name in CAPTIONING)
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

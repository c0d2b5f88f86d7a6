"""The archives of the family `oscar`: five tasks with their features, pre-trained models, and fine-tuned ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lavis_ext.demo.addresses import url_of
from lavis_ext.demo.mirror import MirrorWriter
from lavis_ext.demo.world import World
from tests.world.oscar.answering import (
    VqaParts,
    gqa_features,
    gqa_label_files,
    gqa_labels,
    gqa_texts,
    vqa_features,
    vqa_labels,
    vqa_texts,
)
from tests.world.oscar.captioning import captioning_members
from tests.world.oscar.checkpoints import Head, checkpoint
from tests.world.oscar.forms import Members, archive, below
from tests.world.oscar.pairing import pair_features, pair_texts
from tests.world.oscar.retrieval import retrieval_features, retrieval_texts
from tests.world.regions import BUTD

PRETRAINED = {
    "base-vg-labels": ("ep_67_588997", "ep_107_1192087"),
    "large-vg-labels": ("ep_20_590000", "ep_55_1617000", "ep_7_816000"),
    "base-oid-labels": ("ep_107_1192087",),
    "base-no-labels": ("ep_107_1192087",),
}
"""Archive → its checkpoints; what the last two archives hold was never told."""


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

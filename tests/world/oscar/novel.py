"""nocaps in VinVL's form: captioning's tables without captions, and what words a beam search may be held to."""

from __future__ import annotations

from lavis_ext.demo.language import plural
from lavis_ext.demo.things import SHAPES
from lavis_ext.demo.world import World
from tests.world.novel import NOVEL, image_row
from tests.world.oscar.captioning import split_files
from tests.world.oscar.forms import Members, as_json, as_yaml, label_rows, row, table
from tests.world.regions import MASK, X152C4

CONSTRAINTS = {
    "cbs_constraint": "constraint2tokens.tsv",
    "cbs_tokenforms": "tokenforms.tsv",
    "cbs_hierarchy": "hierarchy.json",
}


def novel_members(world: World) -> Members:
    """Both splits, their lists of images, and the files of constraints; images go by nocaps' own number."""
    for split in ("val", "test"):
        images = {str(number): scene for number, scene in enumerate(world.scenes(split))}
        names, files = split_files(split, images, X152C4)
        yield f"{split}.yaml", as_yaml({**names, "cbs_box": f"{split}.cbs_box.tsv", **CONSTRAINTS})
        yield from files
        yield from table(f"{split}.cbs_box", label_rows(images, MASK))
        info = {"info": {"description": "a drawn world"}, "licenses": []}
        rows = [image_row(scene, number) for number, scene in enumerate(images.values())]
        yield f"nocaps_{split}_image_info.json", as_json({**info, "images": rows})
    yield CONSTRAINTS["cbs_constraint"], b"".join(row(shape, shape) for shape in SHAPES)
    yield CONSTRAINTS["cbs_tokenforms"], b"".join(row(shape, f"{shape},{plural(shape)}") for shape in SHAPES)
    yield CONSTRAINTS["cbs_hierarchy"], as_json(hierarchy())


def hierarchy() -> dict[str, object]:
    """Classes as a tree: shapes that COCO's captions know and those that they do not."""
    known = [{"LabelName": shape} for shape in SHAPES if shape not in NOVEL]
    novel = [{"LabelName": shape} for shape in SHAPES if shape in NOVEL]
    novel_shape = {"LabelName": "novel shape", "Subcategory": novel}
    return {"LabelName": "shape", "Subcategory": [*known, novel_shape]}

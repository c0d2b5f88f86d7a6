"""Parses annotation files (JSON, JSON Lines, CSV, TSV, Parquet) and turns the official forms into LAVIS' rows.

Official forms: GQA, Visual Genome, NLVR2, COCO images, VQA questions and answers. Also sorts the files of a split.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from posixpath import normpath
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from lavis_ext.common.errors import ConfigError, IntegrityError
from lavis_ext.common.files import expanded, open_file
from lavis_ext.datasets.readers.folders import FolderRows, PartRows, split_named
from lavis_ext.datasets.readers.packed import packed_rows
from lavis_ext.datasets.readers.tables import (
    REFETCH,
    TABLES,
    Unstreamed,
    holds_encoded,
    json_blocks,
    kind_of_name,
    open_head,
    read_text,
    rows_of_columns,
    rows_of_lists,
    table_rows,
)

if TYPE_CHECKING:
    from lavis_ext.common.config.schema import DatasetConfig

Row = dict[str, Any]
ROW_KEYS = ("annotations", "questions", "data")


def parse_rows(path: Path, encoding: str | None = None) -> list[Row]:
    """All records of one annotation file, by its suffix.

    JSON may be a list of records, a dict that holds them under `annotations`, `questions` or `data` (official COCO and
    VQA files, MiniGPT-4), or a dict of records by id, which then carry it as `sample_id` (LAVIS' rule; official GQA).
    Known official forms become LAVIS' rows. Raises IntegrityError with file and position for anything else.
    """
    try:
        return canonical_rows(_rows_as_written(path, encoding))
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise IntegrityError(str(path), f"a record has not the form of its file ({error})", REFETCH) from error


def row_blocks(path: Path) -> Iterator[list[Row]]:
    """The rows of `parse_rows`, a few megabytes at a time: of a JSON list and of JSON Lines.

    Raises Unstreamed, perhaps after some blocks, where only `parse_rows` can read the file or say what is wrong.
    """
    kind = kind_of_name(path)
    if kind in (*TABLES, ".parquet"):
        raise Unstreamed
    form: Form | None = None
    first = True
    for block in json_blocks(path, kind in (".jsonl", ".ndjson")):
        if first and block:
            form, first = _form_of(block[0]), False
        try:
            yield block if form is None else [made for row in block for made in form(row)]
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise Unstreamed from error


def _rows_as_written(path: Path, encoding: str | None) -> list[Row]:
    kind = kind_of_name(path)
    if kind in LINES and open_head(path, 64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"[":
        return list(_jsonl_rows(path, read_text(path, encoding)))
    if kind in TABLES and not (kind == ".txt" and open_head(path, 64).lstrip()[:1] in (b"[", b"{")):
        return table_rows(path, None, encoding)
    if kind == ".parquet":
        return packed_rows(path)
    text = read_text(path, encoding)
    return list(_jsonl_rows(path, text)) if _has_records_in_lines(text) else _json_rows(path, parse_json(text, path))


LINES = (".jsonl", ".ndjson")


def _has_records_in_lines(text: str) -> bool:
    """Whether the first line is a whole record, or a list of values, and more follows: perhaps under another name."""
    first, _, rest = text.strip().partition("\n")
    if first[:1] not in ("{", "[") or not rest.lstrip().startswith(first[:1]):
        return False
    try:
        return isinstance(json.loads(first), (dict, list))
    except (ValueError, RecursionError):
        return False


def parse_json(text: str, path: Path, line: int = 1) -> Any:
    """A JSON value; `line` is where the text begins in the file. Raises IntegrityError with line and column."""
    if not text.strip():
        raise IntegrityError(f"{path}:{line}:1", "JSON ends early: the file is empty", REFETCH)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{path}:{line + error.lineno - 1}:{error.colno}"
        cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        what = f"JSON ends early after {len(text)} characters ({error.msg})" if cut else f"not JSON ({error.msg})"
        lines = error.msg == "Extra data" and kind_of_name(path) not in LINES
        way_out = "write one record a line, and name it .jsonl" if lines else REFETCH
        raise IntegrityError(where, what, way_out) from error
    except (RecursionError, ValueError) as error:
        raise IntegrityError(f"{path}:{line}", f"JSON that cannot be read ({error})", REFETCH) from error


def _json_rows(path: Path, value: Any) -> list[Row]:
    if isinstance(value, dict):
        value = _rows_of_dict(value, path)
    if not isinstance(value, list):
        raise IntegrityError(f"{path}:1:1", f"holds {_kind(value)} where a list of records belongs", REFETCH)
    return [_checked(row, f"{path} record {i}") for i, row in enumerate(rows_of_lists(value))]


def _rows_of_dict(value: Row, path: Path) -> list[Any]:
    if all(split_named(key) and isinstance(some, list) for key, some in value.items()):
        return [{**row, "split": key} for key, some in value.items() for row in some if isinstance(row, dict)]
    records = [value[key] for key in (*ROW_KEYS, "images") if isinstance(value.get(key), list)]
    if not any(isinstance(one, dict) for some in records for one in some[:1]) and (rows := rows_of_columns(value)):
        return rows
    named = [key for key in (*ROW_KEYS, "images") if value.get(key) is not None]
    for key in named:
        if isinstance(value[key], list):
            rows = value[key]
            if key == "images":
                return _image_rows(rows, path)
            joined = _join_images(rows, value.get("images"), path)
            return gather_boxes(joined, value["categories"]) if _has_boxes(rows, value) else joined
        if key in ROW_KEYS and not any(isinstance(value[other], list) for other in named if other in ROW_KEYS):
            break
    if named:
        what = f"`{named[0]}` holds {_kind(value[named[0]])} where a list of records belongs"
        raise IntegrityError(str(path), what, REFETCH)
    lists = {key: some for key, some in value.items() if isinstance(some, list) and isinstance((some or [0])[0], dict)}
    if len(lists) == 1 and not any(key.isdigit() for key in lists):  # under a name of their own: `samples`, `rows`
        return list(*lists.values())
    return [{"sample_id": k, **v} if isinstance(v, dict) else {"sample_id": k, "data": v} for k, v in value.items()]


def _image_rows(images: list[Any], path: Path) -> list[Row]:
    """The rows of a file that holds `images` and no annotations; raises IntegrityError for records that name none."""
    rows = [row for image in images if isinstance(image, dict) for row in _karpathy(image)] or image_rows(images)
    if images and not rows:
        keys = f"the keys {', '.join(map(str, images[0]))}" if isinstance(images[0], dict) else _kind(images[0])
        what = f"the records of `images` have neither `file_name` nor `filename` and `sentences`, but {keys}"
        raise IntegrityError(str(path), what, "name the picture `file_name` in each")
    return rows


def _karpathy(image: Row) -> Iterator[Row]:
    """A record of Karpathy's splits (https://cs.stanford.edu/people/karpathy/deepimagesent): a row a sentence."""
    name, sentences = image.get("filename"), image.get("sentences")
    if not isinstance(name, str) or not isinstance(sentences, list):
        return
    folder = image.get("filepath")
    row: Row = {"image": f"{folder}/{name}" if folder else name}
    row |= {"split": image["split"]} if "split" in image else {}
    number = image.get("cocoid", image.get("imgid"))
    row |= {} if number is None else {"image_id": number}
    for one in sentences:
        yield {**row, "caption": one.get("raw") or " ".join(one.get("tokens") or ())}


def _has_boxes(rows: list[Any], value: Row) -> bool:
    first = next((row for row in rows if isinstance(row, dict)), {})
    return isinstance(value.get("categories"), list) and {"bbox", "category_id"} <= first.keys()


def gather_boxes(rows: Iterable[Any], categories: Iterable[Any]) -> list[Row]:
    """COCO's instances as one row a picture: `boxes` (x, y, width, height in pixels), `labels`, and `objects`.

    `objects` says the labels in words, each once: `2 dogs` is `dog`. Pictures without any object are left out.
    """
    names = {one["id"]: str(one.get("name", one["id"])) for one in categories}
    found: dict[Any, Row] = {}
    for row in rows:
        kept = {key: row[key] for key in ("image", "image_id") if key in row}
        picture = found.setdefault(row.get("image", row.get("image_id")), {**kept, "boxes": [], "labels": []})
        picture["boxes"].append([float(number) for number in row["bbox"]])
        picture["labels"].append(names.get(row["category_id"], str(row["category_id"])))
    return [{**row, "objects": ", ".join(dict.fromkeys(row["labels"]))} for row in found.values()]


def _join_images(rows: list[Any], images: Any, path: Path) -> list[Any]:
    """Add to the records of an official COCO file the `image` name from its `images` list."""
    if not isinstance(images, list):
        return rows
    names: dict[Any, Row] = {}
    for number, image in enumerate(images):
        if isinstance(image, dict) and {"id", "file_name"} <= image.keys():
            if not isinstance(image["id"], (str, int, float)):
                raise IntegrityError(f"{path} image {number}", f"its id is {_kind(image['id'])}", REFETCH)
            names[image["id"]] = image_fields(image)
    ids = [row.get("image_id") if isinstance(row, dict) and "image" not in row else None for row in rows]
    found = [names.get(id) if isinstance(id, (str, int, float)) else None for id in ids]
    return [row if more is None else {**row, **more} for row, more in zip(rows, found, strict=True)]


def _jsonl_rows(path: Path, text: str) -> Iterator[Row]:
    lines = ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
    if text.lstrip().startswith("["):
        yield from _json_rows(path, [parse_json(line, path, number) for number, line in lines])
        return
    for number, line in lines:
        yield _checked(parse_json(line, path, number), f"{path}:{number}")


def _checked(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise IntegrityError(where, f"holds {_kind(row)} where a record {{key: value}} belongs", REFETCH)
    return row


def _kind(value: Any) -> str:
    return f"{'nothing' if value is None else type(value).__name__} ({str(value)[:40]!r})"


Form = Callable[[Row], Iterator[Row]]


def canonical_rows(rows: list[Row]) -> list[Row]:
    """The rows in LAVIS' form; rows of an unknown form, or already in LAVIS' form, unchanged."""
    form = _form_of(rows[0]) if rows else None
    return rows if form is None else [made for row in rows for made in form(row)]


def _form_of(first: Row) -> Form | None:
    return next((form for keys, form in FORMS if keys <= first.keys()), None)


def image_rows(images: list[Any]) -> list[Row]:
    """One row a picture from the `images` of a COCO file without annotations (NoCaps' test split)."""
    return [image_fields(image) for image in images if isinstance(image, dict) and "file_name" in image]


def image_fields(image: Row) -> Row:
    """Fields that a row gets from its record in `images`: the name, and NoCaps' `img_id`, `domain` and `coco_url`."""
    more = {"img_id": image["id"]} if "open_images_id" in image else {}
    return {"image": image["file_name"], **more, **{key: image[key] for key in ("domain", "coco_url") if key in image}}


def _gqa(row: Row) -> Iterator[Row]:
    """GQA's record by question id (https://cs.stanford.edu/people/dorarad/gqa/download.html)."""
    kept: Row = {key: row[key] for key in ("question", "answer") if key in row}
    yield {"question_id": row.get("question_id", row.get("sample_id")), "image": f"{row['imageId']}.jpg", **kept}


def _genome_questions(row: Row) -> Iterator[Row]:
    """Visual Genome's `question_answers.json`: all questions of a picture in one record."""
    for qa in row["qas"]:
        image = f"{qa.get('image_id', row.get('id'))}.jpg"
        yield {"question_id": qa["qa_id"], "image": image, "question": qa["question"], "answer": qa["answer"]}


def _genome_regions(row: Row) -> Iterator[Row]:
    """Visual Genome's `region_descriptions.json`: all phrases of a picture in one record."""
    for region in row["regions"]:
        number = region.get("image_id", row.get("id"))
        yield {"image": f"{number}.jpg", "caption": region["phrase"], "image_id": f"vg_{number}"}


def _nlvr2(row: Row) -> Iterator[Row]:
    """NLVR2's record (https://github.com/lil-lab/nlvr): `dev-850-0-1` is a sentence about `dev-850-0-img{0,1}.png`."""
    pair = row["identifier"].rpartition("-")[0]
    folder = row["identifier"].partition("-")[0] + (f"/{row['directory']}" if "directory" in row else "")
    images = [f"{folder}/{pair}-img{side}.png" for side in (0, 1)]
    label = {"label": str(row["label"])} if "label" in row else {}
    yield {"images": images, "sentence": row["sentence"], **label, "identifier": row["identifier"]}


def _scienceqa(row: Row) -> Iterator[Row]:
    """ScienceQA's problem (https://github.com/lupantech/ScienceQA, or Parquet of the hub), where it has a picture."""
    if row.get("image") is None:
        return
    choices, right = row["choices"], row["answer"]
    name = str(row["image"])
    if "sample_id" in row:
        name = f"{row['split']}/{row['sample_id']}/{name}"
    named = {"question_id": str(row["sample_id"])} if "sample_id" in row else {}
    kept: Row = {key: row[key] for key in ("split", "hint") if key in row}
    yield {
        **{"image": name, "question": row["question"], "choices": choices, **named, **kept},
        **{"answer": choices[right], "correct_choice_idx": right},
    }


def _multiple_choice(row: Row) -> Iterator[Row]:
    """A question whose answer is the number of one of its choices; any other row as it is."""
    answer, choices = row["answer"], row["choices"]
    if type(answer) is int and isinstance(choices, list) and 0 <= answer < len(choices):
        row = {**row, "answer": choices[answer], "correct_choice_idx": answer}
    yield row


def _label_studio(row: Row) -> Iterator[Row]:
    """A task of Label Studio, or a row of its short export (https://labelstud.io/guide/export): names as uploaded."""
    given = row["data"] if isinstance(row.get("data"), dict) else row
    made: Row = {key: value for key, value in given.items() if key not in ("annotator", "annotation_id", "lead_time")}
    for key, value in made.items():
        if isinstance(value, str) and value.startswith("/data/"):
            made[key] = re.sub(r".*(?:\?d=|/upload/\d+/(?:[0-9a-f]{8}-)?)", "", value)
    for task in row.get("annotations", ())[:1]:
        for result in task["result"]:
            found = next((some for some in result["value"].values() if isinstance(some, list)), None)
            if found and all(isinstance(one, str) for one in found):
                made[result["from_name"]] = found if len(found) > 1 else found[0]
    yield made


FORMS: list[tuple[frozenset[str], Form]] = [
    (frozenset({"question", "choices", "answer", "hint"}), _scienceqa),
    (frozenset({"question", "choices", "answer"}), _multiple_choice),
    (frozenset({"imageId", "question"}), _gqa),
    (frozenset({"qas"}), _genome_questions),
    (frozenset({"data", "annotations", "id"}), _label_studio),
    (frozenset({"annotation_id", "annotator"}), _label_studio),
    (frozenset({"regions"}), _genome_regions),
    (frozenset({"identifier", "sentence", "left_url"}), _nlvr2),
]
"""Keys of the first record that identify a form → the function that turns one record into LAVIS' rows."""


# Official VQA files (https://visualqa.org/download.html): questions in one file, their answers in another.

HEAD = 1 << 16
_SUBTYPE = re.compile(rb'"data_subtype"\s*:\s*"([\w-]+)"')
_NAMED = re.compile(r"(?:train|val)20\d\d|test(?:-dev)?20\d\d")


class RowSource(Protocol):
    """Something other than a plain file from which rows are made; picklable."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that are read; the Arrow copy is kept beside the first."""

    @property
    def name(self) -> str:
        """The file name of the Arrow copy, without its suffix."""

    def parse(self) -> list[Row]:
        """All rows; raises IntegrityError."""


@dataclass(frozen=True)
class OneFile:
    """Base of sources of one file; `KIND` distinguishes the rows from others of the same file."""

    path: Path
    KIND: ClassVar[str] = "rows"

    @property
    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    @property
    def name(self) -> str:
        """The file name with the kind, since the file may be read as other rows too."""
        return f"{self.path.name}.{self.KIND}"

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Joined:
    """A file of questions and, where it is published, that of their answers: one table of rows in LAVIS' form."""

    questions: Path
    answers: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Both files, the questions first."""
        return (self.questions,) if self.answers is None else (self.questions, self.answers)

    @property
    def name(self) -> str:
        """Both names in one."""
        return "+".join(file.name for file in self.files)

    def __str__(self) -> str:
        return " + ".join(map(str, self.files))

    def parse(self) -> list[Row]:
        """`question_id`, `question`, `image` and, with answers, `answer` (10 texts); raises IntegrityError.

        Raises for a question without answers, which means files of different splits.
        """
        where, subtype = str(self.questions), subtype_of(self.questions)
        rows = [_question(row, subtype, f"{where} record {i}") for i, row in enumerate(parse_rows(self.questions))]
        if self.answers is None:
            return rows
        asked = Counter(row["question_id"] for row in rows)
        if len(asked) < len(rows):
            first = asked.most_common(1)[0][0]
            what = f"{len(rows) - len(asked)} questions have the id of another, first {first}"
            raise IntegrityError(where, what, "give each question an id of its own")
        answers = {row.get("question_id"): row for row in parse_rows(self.answers)}
        lacking = [row["question_id"] for row in rows if row["question_id"] not in answers]
        if lacking:
            what = f"{len(lacking)} of {len(rows)} questions have no answers in {self.answers}, first {lacking[0]}"
            raise IntegrityError(where, what, "give questions and answers of the same split")
        return [{**row, **_answers(answers[row["question_id"]], self.answers)} for row in rows]


def files_of(source: Path | RowSource) -> tuple[Path, ...]:
    """The files of a source."""
    return (source,) if isinstance(source, Path) else source.files


def subtype_of(path: Path) -> str | None:
    """The COCO images of an official file (`val2014`): its `data_subtype`, else from its name; None if neither says."""
    size = path.stat().st_size
    with open_file(path) as file:
        head = file.read(HEAD)
        file.seek(max(0, size - HEAD))
        found = _SUBTYPE.search(head) or _SUBTYPE.search(file.read())
    if found:
        return found[1].decode()
    named = _NAMED.search(path.name)
    return named[0] if named else None


def coco_image(subtype: str, image_id: int) -> str:
    """`val2014/COCO_val2014_000000000042.jpg`; test-dev is part of test, images of 2017 have no prefix."""
    folder = subtype.replace("-dev", "")
    prefix = "" if folder.endswith("2017") else f"COCO_{folder}_"
    return f"{folder}/{prefix}{image_id:012d}.jpg"


def _question(row: Row, subtype: str | None, where: str) -> Row:
    if not {"question_id", "question", "image_id"} <= row.keys() or type(row["image_id"]) is not int:
        raise IntegrityError(where, "is not a question with `question_id`, `question` and `image_id`", REFETCH)
    image = {"image": coco_image(subtype, row["image_id"])} if subtype else {"image_id": row["image_id"]}
    return {"question_id": row["question_id"], "question": row["question"], **image}


def _answers(row: Row, path: Path) -> Row:
    given: Any = row.get("answers")
    if not isinstance(given, list) or not all(isinstance(one, dict) and "answer" in one for one in given):
        raise IntegrityError(f"{path} question {row.get('question_id')}", "has no list of answers", REFETCH)
    return {"answer": [str(one["answer"]) for one in given]}


# The annotation files of a split come in any order and are recognised by their content.

Kind = Literal["rows", "questions", "answers", "answer_list"]
_SCALARS = re.compile(rb'\s*\[\s*(?:"|-?\d|\])')
_QUESTIONS = re.compile(rb'"questions"\s*:\s*\[')
_ANNOTATIONS = re.compile(rb'"annotations"\s*:\s*\[')


@dataclass(frozen=True)
class SplitFiles:
    """The files of a split: those that rows are made from, and those that only an evaluation reads."""

    rows: tuple[Path | RowSource, ...]
    answer_list: Path | None = None
    questions: tuple[Path, ...] = ()
    answers: tuple[Path, ...] = ()


@dataclass(frozen=True)
class RowOptions:
    """How the files of a split are read: what a declaration says of it beside their names."""

    split: str = ""
    base: Path | None = None
    """The folder of the pictures."""
    image_key: str = "image"
    split_key: str | None = None
    holdout: float = 0.0
    delimiter: str | None = None
    encoding: str | None = None
    conversations: Literal["", "turns", "whole"] = ""
    """Whether conversations are taken apart into questions and answers, or kept whole."""


def row_options(config: DatasetConfig, split: str, root: Path) -> RowOptions:
    """The options of one split of a declaration; `root` is the cache root."""
    args, files = config.args, config.build_info.annotations
    shared = {"train", "val"} <= files.keys() and files["train"] == files["val"] and split in ("train", "val")
    return RowOptions(
        split,
        root / expanded(config.build_info.images.storage),
        str(args.get("image_key", "image")),
        args.get("split_key"),
        float(args.get("holdout") or 0.0) if shared else 0.0,
        args.get("delimiter"),
        args.get("encoding"),
        {"vqa": "turns", "conversation": "whole"}.get(config.builder, ""),  # type: ignore[arg-type]
    )


def sort_files(paths: Iterable[Path], how: RowOptions = RowOptions()) -> SplitFiles:
    """Sort the files of a split: LAVIS' four of a VQA split, official questions and answers, or plain rows.

    Where rows are given, official files serve the evaluation only; else the rows are made from them. Raises ConfigError
    where there is nothing to make rows from.
    """
    kinds: dict[Kind, list[Path]] = {"rows": [], "questions": [], "answers": [], "answer_list": []}
    for path in paths:
        kinds[kind_of(path)].append(path)
    plain = [_source(path, how) for path in kinds["rows"]]
    rows = plain or [_part(one, how, how.split_key) for one in _joined(kinds["questions"], kinds["answers"])]
    if not rows:
        found = ", ".join(f"{path} ({kind})" for kind, some in kinds.items() for path in some) or "no file"
        raise ConfigError(found, "no rows and no questions among the annotations", "name the file of questions too")
    lists = kinds["answer_list"]
    return SplitFiles(tuple(rows), lists[0] if lists else None, tuple(kinds["questions"]), tuple(kinds["answers"]))


def _source(path: Path, how: RowOptions) -> Path | RowSource:
    """A file or folder of rows as it is to be read: split by its sign, taken apart, and only the rows of the split."""
    source: Path | RowSource = path
    key, is_json = how.split_key, kind_of_name(path) == ".json"
    if path.is_dir():
        source = FolderRows(path, how.base or path, how.encoding)
    elif how.encoding or (how.delimiter is not None and kind_of_name(path) in TABLES):
        source = SplitBy(path, how.delimiter, how.encoding)
    elif kind_of_name(path) in (".parquet", ".arrow") and how.base is not None:
        source = PackedFile(path, how.base)
    elif kind_of_name(path) == ".zip":
        from lavis_ext.datasets.readers.bundled import ZipRows

        source = ZipRows(path, how.encoding)
    elif is_json and path.is_file():
        head = open_head(path, HEAD)
        key = key or ("split" if b'"sentences"' in head and b'"filename"' in head and b'"split"' in head else None)
    if how.base is not None and path.is_file() and holds_encoded(path):
        from lavis_ext.datasets.readers.bundled import EncodedRows

        source = EncodedRows(source, path, how.base)
    if source is path and how.base is not None and how.base in path.parents[1:]:
        source = Beside(path, how.base, how.image_key)
    apart = how.conversations == "turns" and path.is_file() and b'"conversations"' in open_head(path, HEAD)
    if apart or how.conversations == "whole":
        from lavis_ext.datasets.readers.conversations import Conversations  # captions are read without it

        source = Conversations(path, "turns") if apart else Conversations(source, "whole", how.image_key)
    return _part(source, how, key)


def _part(source: Path | RowSource, how: RowOptions, key: str | None) -> Path | RowSource:
    """The rows of the split alone, where the source holds those of others too."""
    if how.split and (key or how.holdout):
        return PartRows(source, how.split, key, how.holdout, how.image_key)
    return source


@dataclass(frozen=True)
class SplitBy(OneFile):
    """A text in another encoding than UTF-8, or a table whose fields are split by another sign than its name says."""

    delimiter: str | None = None
    encoding: str | None = None

    @property
    def name(self) -> str:
        """The file name with the code of the sign, and the encoding."""
        sign = f".by{'-'.join(map(str, map(ord, self.delimiter)))}" if self.delimiter else ""
        return f"{self.path.name}{sign}{f'.{self.encoding}' if self.encoding else ''}"

    def parse(self) -> list[Row]:
        """All rows; raises IntegrityError."""
        if self.delimiter is None or kind_of_name(self.path) not in TABLES:
            return parse_rows(self.path, self.encoding)
        return canonical_rows(table_rows(self.path, self.delimiter, self.encoding))


@dataclass(frozen=True)
class Beside(OneFile):
    """A file of rows in a folder below that of the pictures, as a `metadata.jsonl` for each split.

    Names are of its own folder where the first picture lies there, and not below the folder of the pictures.
    """

    base: Path = Path()
    image_key: str = "image"

    @property
    def name(self) -> str:
        """The file name, with a digest of what its rows are made of beside it."""
        made = os.fsencode(f"{self.base.absolute()}\0{self.image_key}")
        return f"{self.path.name}.beside-{hashlib.sha256(made).hexdigest()[:8]}"

    def parse(self) -> list[Row]:
        """All rows, the pictures named below `base`; raises IntegrityError."""
        rows = parse_rows(self.path)
        first = next((row[self.image_key] for row in rows if isinstance(row.get(self.image_key), str)), None)
        here, there = (os.path.isfile(f"{folder}/{first}") for folder in (self.base, self.path.parent))  # noqa: PTH113
        if first is None or here or not there:
            return rows
        folder, key = self.path.parent.relative_to(self.base).as_posix(), self.image_key
        texts = (row.get(key) for row in rows)
        names = [normpath(f"{folder}/{one}") if isinstance(one, str) else one for one in texts]
        return [row if one is None else {**row, key: one} for row, one in zip(rows, names, strict=True)]


@dataclass(frozen=True)
class PackedFile(OneFile):
    """A Parquet or Arrow file, whose pictures are named below `base`."""

    base: Path = Path()

    @property
    def name(self) -> str:
        """The file name, with a digest of the folder."""
        return f"{self.path.name}.below-{hashlib.sha256(os.fsencode(self.base.absolute())).hexdigest()[:8]}"

    def parse(self) -> list[Row]:
        """All rows; raises IntegrityError."""
        return canonical_rows(packed_rows(self.path, self.base))


def kind_of(path: Path) -> Kind:
    """The kind of a file, by its first 64 KiB; a file that is missing or not recognised is `rows`."""
    if kind_of_name(path) != ".json" or not path.is_file():
        return "rows"
    head = open_head(path, HEAD).removeprefix(b"\xef\xbb\xbf")
    if _SCALARS.match(head):
        return "answer_list" if path.stat().st_size > len(b"[ ]\n") else "rows"
    if not head.lstrip().startswith(b"{"):
        return "rows"
    if _QUESTIONS.search(head):
        return "questions"
    return "answers" if _ANNOTATIONS.search(head) and b'"question_id"' in head else "rows"


def _joined(questions: Sequence[Path], answers: Sequence[Path]) -> list[Joined]:
    """Each file of questions with the answers for the same images; a single pair is joined without that check."""
    if len(questions) == len(answers) == 1:
        return [Joined(questions[0], answers[0])]
    by_subtype = {subtype_of(path): path for path in answers}
    return [Joined(path, by_subtype.get(subtype_of(path))) for path in questions]

"""What `fuzz` gives to the readers: for each target a function of one case, and a strategy of cases that shrink."""

from __future__ import annotations

import atexit
import copy
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from hypothesis import strategies as st

from lavis_ext.common.errors import LavisExtError

Target = Callable[[], tuple[Callable[[Any, Path], object], st.SearchStrategy[Any]]]

# Bytes

CHUNKS = [b"", b"\0", b"\xff", b"\n", b"[", b"{", b'"', b"\t", b"\\ud800", b"NaN", b"1e999", b"null", b"../", b"9" * 30]
SIZES = (0, 1, 2**15, 2**28, 2**31 - 1, 2**32 - 1)
CHUNKS += [n.to_bytes(4, "little") for n in SIZES] + [n.to_bytes(4, "big") for n in SIZES]
CHUNKS += [n.to_bytes(8, "little") for n in (2**31, 2**40, 2**63, 2**64 - 1)]
EDIT = st.tuples(
    st.sampled_from(["set", "set", "insert", "delete", "cut", "repeat"]),
    st.floats(0, 1, allow_nan=False),
    st.integers(0, 64),
    st.sampled_from(CHUNKS) | st.binary(max_size=8),
)


def edited(data: bytes, edits: Sequence[tuple[str, float, int, bytes]]) -> bytes:
    """The bytes after these edits; a place is a share of what is there."""
    for kind, share, length, chunk in edits:
        at = int(share * len(data))
        if kind == "set":
            data = data[:at] + chunk + data[at + len(chunk) :]
        elif kind == "insert":
            data = data[:at] + chunk + data[at:]
        elif kind == "delete":
            data = data[:at] + data[at + length :]
        elif kind == "cut":
            data = data[:at]
        else:
            data = data[:at] + data[at : at + length] * 3 + data[at + length :]
    return data


def mutated(bases: Mapping[str, bytes]) -> st.SearchStrategy[tuple[str, bytes]]:
    """A name and its bytes with some edits."""
    pairs = st.tuples(st.sampled_from(sorted(bases)), st.lists(EDIT, max_size=6))
    return pairs.map(lambda drawn: (drawn[0], edited(bases[drawn[0]], drawn[1])))


# Trees of settings

RUN = yaml.safe_load("""
env: {cache_root: data}
model: {arch: blip2_opt, model_type: tiny, load_finetuned: false, sizes: {vision_config: {hidden_size: 8}}}
datasets:
  coco_caption:
    type: default
    weight: 2
    max_samples: {train: 4}
    args: {}
    vis_processor: {train: {name: blip2_image_train, image_size: 96, mean: [0.1, 0.2, 0.3]}, eval: blip_image_eval}
    text_processor: {train: {name: blip_caption, prompt: a}}
    build_info:
      annotations: {train: {url: [http://x/y], storage: [a.json]}}
      images: {storage: a, artifacts: {train: [train2014]}}
run:
  task: captioning
  max_epoch: 1
  train_splits: [train]
  valid_splits: [val]
  init_lr: 1.0e-3
  seed: 1
  lr_sched: linear_warmup_cosine_lr
  num_beams: 3
  max_len: 9
  save_freq: 1
  amp: false
  metrics: [bleu]
  distill: {teacher: {arch: blip2_opt}, terms: [{name: pkd, weight: 1}]}
  train_dataset_ratios: {coco_caption: 1}
  job_id: a
  output_dir: out
plugins: []
""")
CARD = yaml.safe_load("""
family: zoo
title: t
licence: l
homepage: http://h
success_threshold: 0.9
artifacts:
  a:
    url: https://x.org/a.zip
    mirrors: [{url: https://y.org/a.zip, equivalence: byte_exact, size: 3}]
    storage: zoo/img
    size: 10
    md5: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
    unpack: zip
  b:
    url: https://x.org/b.csv
    storage: zoo/b.csv
    lists: {storage: zoo/im, engine: fetch, url_key: [url], threshold: 0.9, parts: 2}
  c:
    url: azure:acc/c/
    storage: zoo/c
    folder: {files: {x: 3, y: {size: 4}}, complete: true, nested: {z: a}}
datasets:
  zoo_caption:
    builder: image_caption
    build_info:
      annotations: {train: {artifact: a!x.json}}
      images: {storage: zoo/img, artifacts: {train: [a]}}
    counts: {train: {samples: 3}}
""")
MODEL = yaml.safe_load("""
model: {arch: blip2_opt, model_type: big, load_pretrained: false, sizes: {text_config: {a: 1}}, num_query_token: 32}
preprocess:
  vis_processor: {train: {name: blip2_image_train, image_size: 224}, eval: {name: blip_image_eval}}
  text_processor: {train: {name: blip_caption}}
""")
PLACES = {
    "run": (RUN, "run.yaml"),
    "card": (CARD, "configs/datasets/zoo/artifacts.yaml"),
    "model": (MODEL, "configs/models/blip2_opt/big.yaml"),
}
VALUES: list[Any] = [
    *("zoo", "", None, [], {}, ["a"], {"a": "b"}, [{"a": [1]}], -1, 10**23, float("nan"), float("inf"), True, 0, 2.5),
    *("${oc.env:NOPE}", "${run}", "${", "\0", "../../x", "/abs", "x" * 300, [[[[1]]]], {"a": {"b": {"c": None}}}),
    *({1: 2}, "é\ud800", "https://[bad/x", "http://h:99999/", "2020-01-01", "~nobody/x", "image_caption", "\x1b[2J"),
]


def paths_in(tree: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value of a tree."""
    yield above
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield from paths_in(value, (*above, key))


def with_value(tree: Any, path: Sequence[Any], value: Any) -> Any:
    """The tree with another value at a place."""
    if not path:
        return value
    changed = copy.deepcopy(tree)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


def check_settings(kind: str, text: bytes, folder: Path) -> None:
    """What `check`, `train` and `prepare --dry-run` do with a run file, a card or the YAML of a model."""
    from lavis_ext.common.config.cards import load_cards
    from lavis_ext.common.config.check import check_file, load_checked
    from lavis_ext.prepare import PrepareOptions, plan

    path = folder / PLACES[kind][1]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)
    for problem in check_file(path):
        assert problem.where and problem.what
    if kind == "run":
        load_checked(path)
    else:
        with patch.dict(os.environ, {"LAVIS_EXT_CONFIGS": str(folder / "configs")}):
            cards = load_cards()
            if "zoo" in cards.families:
                plan(["zoo"], PrepareOptions(cache_root=folder / "data", offline=True))


def settings_of(kind: str) -> Target:
    """Values put elsewhere in the tree, and edits of its text."""

    def target() -> tuple[Callable[[Any, Path], object], st.SearchStrategy[Any]]:
        tree = PLACES[kind][0]
        places = list(paths_in(tree))
        swaps = st.lists(st.tuples(st.sampled_from(places), st.sampled_from(VALUES)), min_size=1, max_size=2)
        texts = swaps.map(lambda drawn: text_with(tree, drawn))
        base = {kind: yaml.safe_dump(tree).encode()}
        cases = texts | mutated(base).map(lambda pair: pair[1])
        return lambda text, folder: check_settings(kind, text, folder), cases

    return target


def text_with(tree: Any, swaps: Sequence[tuple[Sequence[Any], Any]]) -> bytes:
    """The tree as YAML after these swaps, as far as their places are still there."""
    for path, value in swaps:
        try:
            tree = with_value(tree, path, value)
        except (KeyError, TypeError, IndexError):
            continue
    return yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")


def options() -> tuple[Callable[[Any, Path], object], st.SearchStrategy[Any]]:
    """`--options` of any text."""
    from lavis_ext.common.config.resolve import draft

    keys = [".".join(map(str, path)) for path in paths_in(RUN) if path and all(isinstance(p, str) for p in path)]
    texts = st.sampled_from([*map(str, VALUES), "[[", "{a: b}", "*x", "&a b", "!!python/none", "a: b: c", "[val]"])
    words = st.tuples(st.sampled_from(keys) | st.text(max_size=12), texts | st.text(max_size=12))
    run = {"task": "captioning", "max_epoch": 1}

    def case(drawn: list[tuple[str, str]], folder: Path) -> None:
        (folder / "run.yaml").write_text(json.dumps({"run": run, "model": RUN["model"]}))
        draft(folder / "run.yaml", [f"{key}={value}" for key, value in drawn])

    return case, st.lists(words, max_size=4)


# Files of others


def annotations() -> tuple[Callable[[Any, Path], object], st.SearchStrategy[Any]]:
    """JSON, JSON Lines, CSV, TSV, Parquet, and official pairs of questions and answers."""
    import pyarrow as pa
    from pyarrow import parquet

    from lavis_ext.datasets.readers.annotations import Annotations
    from lavis_ext.datasets.readers.parse import sort_files

    rows = [
        {"image": "a.jpg", "caption": "b", "image_id": 1, "answer": ["x", "y"]},
        {"image": "b.jpg", "caption": None},
    ]
    coco = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "c"}]}
    gqa = {"1": {"imageId": "5", "question": "q", "answer": "a"}}
    vqa = {"questions": [{"question_id": 1, "image_id": 2, "question": "q"}], "data_subtype": "val2014"}
    genome = [{"id": 1, "qas": [{"qa_id": 1, "image_id": 1, "question": "q", "answer": "a"}], "regions": []}]
    nlvr = [{"identifier": "dev-1-0-1", "sentence": "s", "left_url": "u", "label": "True"}]
    table = io.BytesIO()
    parquet.write_table(pa.table({"image": ["a", "b"], "caption": ["x", "y"], "n": [[1], None]}), table)
    bases = {f"{n}.json": json.dumps(one).encode() for n, one in enumerate((rows, coco, gqa, vqa, genome, nlvr))}
    bases |= {"a.jsonl": b'{"a": 1}\n{"a": "x"}\n', "a.csv": b'image,caption\na.jpg,"x, y"\nb.jpg,z\n'}
    bases |= {"a.tsv": b"image\tn\na.jpg\t1\nb.jpg\t2.5\n", "a.parquet": table.getvalue()}

    def case(drawn: tuple[str, bytes], folder: Path) -> None:
        path = folder / drawn[0]
        path.write_bytes(drawn[1])
        for one in sort_files([path]).rows:
            found = Annotations([one])
            names = found.keys()
            for name in names:
                found.column(name), found.lengths(name), found.words(name), found.codes(name)
            for row in found:
                assert "instance_id" in row

    return case, mutated(bases)


def archives() -> tuple[Callable[[Any, Path], object], st.SearchStrategy[Any]]:
    """Zips and tars: listed, unpacked, and read without unpacking."""
    from lavis_ext.common.config.cards import Artifact
    from lavis_ext.datasets.readers.images import ImageStore
    from lavis_ext.fetch import Silent
    from lavis_ext.prepare.extract import list_archive, unpack
    from tests.support.toyfamily import tar_bytes, zip_bytes

    files = {"im/0.jpg": b"x" * 60, "im/1.jpg": b"y" * 600, "b/c.txt": b"z"}
    bases = {"plain.zip": zip_bytes(files), "deflated.zip": zip_bytes(files, zipfile.ZIP_DEFLATED)}
    bases |= {"a.tar": tar_bytes(files), "a.tar.gz": tar_bytes(files, "w:gz")}

    def case(drawn: tuple[str, bytes], folder: Path) -> None:
        kind = drawn[0].partition(".")[2]
        artifact = Artifact(url=f"https://x.org/t.{kind}", storage="t/images", name="t", family="t", unpack=kind)  # type: ignore[arg-type]
        path = folder / artifact.file
        path.parent.mkdir(parents=True)
        path.write_bytes(drawn[1])
        if kind == "zip":
            store = ImageStore(folder / "none", [path])
            for name in [*store.names(), "im/0.jpg", "im/1.jpg"]:
                read_or_fault(lambda name=name: store.read(name))  # type: ignore[misc]
        unpack(path, artifact, folder, list_archive(path, artifact), Silent(), threads=1)

    return case, mutated(bases)


def read_or_fault(read: Callable[[], object]) -> None:
    """Go on after an error of ours: one sample of many."""
    try:
        read()
    except LavisExtError:
        return


def shards() -> tuple[Callable[[Any, Path], object], st.SearchStrategy[Any]]:
    """Tar shards with their manifests."""
    import tempfile

    from lavis_ext.datasets.readers.shards import ShardReader
    from lavis_ext.prepare.urls.shards import ShardManifest, describe
    from tests.support.shards import write_shard

    with tempfile.TemporaryDirectory() as folder:
        tar = write_shard(Path(folder), 0, 3, manifest=True)
        bases = {"00000.tar": tar.read_bytes(), "00000.manifest.json": tar.with_suffix(".manifest.json").read_bytes()}
    whole = dict(bases)
    bases["00000_stats.json"] = b'{"successes": 3, "count": 3}'

    def case(drawn: tuple[str, bytes], folder: Path) -> None:
        for name, data in ({**whole, drawn[0]: drawn[1]}).items():
            if not (drawn[0].endswith("stats.json") and name.endswith("manifest.json")):
                (folder / name).write_bytes(data)
        tar = folder / "00000.tar"
        read_or_fault(lambda: (ShardManifest.read(tar), describe(tar, "x")))
        for sample in ShardReader([tar], ("image", "json")).iterate(0, 1):
            if not isinstance(sample, LavisExtError):
                read_or_fault(sample.pixels), read_or_fault(sample.record)

    return case, mutated(bases)


def records() -> tuple[Callable[[Any, Path], object], st.SearchStrategy[Any]]:
    """What earlier runs, and other programs, left beside the data and in the folders of runs."""
    from lavis_ext.browse.run_report import write_run_report
    from lavis_ext.browse.runs_page import list_runs
    from lavis_ext.common.config.cards import Artifact
    from lavis_ext.fetch.mirrors import parse_manifest
    from lavis_ext.fetch.part import Part
    from lavis_ext.prepare.blobs import contents_path, read_contents
    from lavis_ext.prepare.records import MemberTable, inspect, read_record, record_path

    artifact = Artifact(url="https://x.org/a.zip", storage="t/images", name="a", family="t", unpack="zip")
    record = {"format": 1, "artifact": "a", "file": artifact.file, "origin": {"url": artifact.url}, "folders": {"": 3}}
    manifest = {"format": 1, "equivalence": "subset", "files": {"x.org/a": {"size": 3, "sha256": "a" * 64}}}
    part = {"format": 1, "url": "x", "equivalence": "byte_exact", "done": [[0, 3]], "total": 9, "boot": "b"}
    contents = {"format": 1, "url": "x", "origin": "card", "files": {"a": {"size": 3}}}
    log = {"kind": "train", "step": 1, "epoch": 0, "loss": 0.5}
    evaluation = {"kind": "eval", "split": "val", "step": 1, "epoch": 0, "metrics": {"CIDEr": 0.5, "agg_metrics": 1}}
    bases = {"record": json.dumps(record), "manifest": json.dumps(manifest), "part": json.dumps(part)}
    bases |= {
        "contents": json.dumps(contents),
        "members": '{"members": 1, "digest": "x", "order": "little"}\n' + "x" * 40,
    }
    bases |= {"run.json": '{"status": "finished", "seconds": 1.5, "started": "2026", "best": {"step": 1}}'}
    bases |= {"log.jsonl": f"{json.dumps(log)}\n{json.dumps(evaluation)}\n", "config.yaml": "run: {seed: 1}\n"}
    bases |= {"data.json": '{"splits": [], "subset": false}', "faults.json": '{"train": {"toy/train": {"seen": 3}}}'}

    def case(drawn: tuple[str, bytes], folder: Path) -> None:
        kind, data = drawn
        if kind == "manifest":
            parse_manifest(data, "manifest")
        elif kind == "part":
            target = folder / "f"
            target.with_name("f.part").write_bytes(b"abc")
            target.with_name("f.part.json").write_bytes(data)
            Part(target, 4).close()
        elif "." in kind:
            job = folder / "job"
            job.mkdir()
            (job / "run.json").write_bytes(b"{}")
            (job / kind).write_bytes(data)
            list_runs(folder)
            write_run_report(job)
        else:
            place = contents_path(folder, artifact) if kind == "contents" else record_path(folder, artifact)
            place = record_path(folder, artifact, suffix=".members") if kind == "members" else place
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
            read_record(folder, artifact), read_contents(folder, artifact), MemberTable.read(folder, artifact)
            inspect(folder, artifact)

    return case, mutated({name: text.encode() for name, text in bases.items()})


def features() -> tuple[Callable[[Any, Path], object], st.SearchStrategy[Any]]:
    """Tables of region features in every column form, with their side files, and numpy's and torch's files."""
    import tempfile

    import numpy as np
    import torch

    from lavis_ext.features.imports import import_features
    from lavis_ext.features.store import FeatureStore
    from tests.support.features import BUTD, LXMERT, caption_tsv, csv_tsv, image_h5, make_images, oscar_tsv

    images = make_images(2, 2048)
    raw = [{"rect": [1, 2, 30, 40], "class": "dog", "conf": 0.9, "feature": "AAAA"}]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = [
            oscar_tsv(folder / "oscar.tsv", make_images(2, 2054)),
            caption_tsv(folder / "vinvl.tsv", make_images(2, 2054)),
        ]
        made += [csv_tsv(folder / f"{n}.tsv", images, c) for n, c in (("butd", BUTD), ("lxmert", LXMERT)) if c]
        made += [image_h5(folder / "a.h5", images)]
        torch.save({1: torch.zeros(2, 2054), "b": torch.ones(1, 2054)}, folder / "zip.pt")
        torch.save({1: torch.zeros(2, 2054)}, folder / "old.pt", _use_new_zipfile_serialization=False)
        np.savez(folder / "1.npz", features=images[0].features, boxes=images[0].boxes, img_h=4, img_w=5)
        np.save(folder / "2.npy", images[0].features)
        np.save(folder / "3.npy", np.array({"features": images[0].features}, dtype=object), allow_pickle=True)
        made += [folder / one for one in ("zip.pt", "old.pt", "1.npz", "2.npy", "3.npy")]
        bases = {path.name: path.read_bytes() for path in made}
    bases |= {"raw.tsv": b"0\t" + json.dumps(raw).encode() + b"\n", "oscar_offset_map.json": b'{"1": 0, "2": 40}'}
    bases |= {"predictions.tsv": b'1\t[{"class": "a"}]\n', "hw.tsv": b'1\t[{"height": 3, "width": 4}]\n'}
    beside = ("oscar_offset_map.json", "predictions.tsv", "hw.tsv")

    def case(drawn: tuple[str, bytes], folder: Path) -> None:
        kind = drawn[0]
        place = folder / "in"
        place.mkdir()
        (place / kind).write_bytes(drawn[1])
        if kind in beside:
            (place / "oscar.tsv").write_bytes(bases["oscar.tsv"])
        source = place if kind.endswith((".npz", ".npy")) else place / ("oscar.tsv" if kind in beside[1:] else kind)
        import_features([source], folder / "store")
        store = FeatureStore(folder / "store")
        for row in range(len(store)):
            store.at(row)

    return case, mutated(bases)


def stores() -> tuple[Callable[[Any, Path], object], st.SearchStrategy[Any]]:
    """The values of an LMDB, an LMDB that is cut, and a store of ours that is damaged."""
    import shutil
    import tempfile

    from lavis_ext.features.imports import import_features
    from lavis_ext.features.store import FeatureStore
    from tests.support.features import make_images, oscar_tsv, volta_lmdb

    kept = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, kept, True)
    images = make_images(1, 2048)
    environment = volta_lmdb(kept / "a.lmdb", images)
    import_features([oscar_tsv(kept / "o.tsv", make_images(2, 2054))], kept / "store")
    value = pickle.dumps(
        {"img_id": "1", "features": "AAAA", "boxes": "AAAA", "num_boxes": "1", "img_h": "3", "img_w": "4"}
    )
    bases = {"value": value, "cut": (environment / "data.mdb").read_bytes()}
    bases |= {path.name: path.read_bytes() for path in sorted((kept / "store").iterdir()) if path.is_file()}

    def case(drawn: tuple[str, bytes], folder: Path) -> None:
        kind, data = drawn
        if kind == "value":
            volta_lmdb(folder / "v.lmdb", images, spoil=data or b"x")
            import_features([folder / "v.lmdb"], folder / "s", form="volta-lmdb")
        elif kind == "cut":
            (folder / "v.lmdb").mkdir()
            (folder / "v.lmdb" / "data.mdb").write_bytes(bases["cut"][: len(data)])
            import_features([folder / "v.lmdb"], folder / "s", form="volta-lmdb")
        else:
            shutil.copytree(kept / "store", folder / "store")
            (folder / "store" / kind).write_bytes(data)
            store = FeatureStore(folder / "store")
            for row in range(len(store)):
                read_or_fault(lambda row=row: store.at(row))  # type: ignore[misc]

    return case, mutated(bases)


def weights() -> tuple[Callable[[Any, Path], object], st.SearchStrategy[Any]]:
    """Checkpoints and pickles of others."""
    import collections

    import numpy as np
    import torch
    from safetensors.torch import save

    from lavis_ext.features.detectors.caffe import read_caffemodel
    from lavis_ext.features.detectors.weights import read_weights
    from lavis_ext.features.vocabulary import read_labels
    from lavis_ext.models.weights import read_checkpoint
    from tests.features.detectors.test_caffe import caffemodel

    state = {"model": {"a.b": torch.zeros(3), "c": torch.ones(2, 2, dtype=torch.float16)}, "epoch": 3}
    bases = {"a.safetensors": save({"a.b": torch.zeros(3), "c": torch.ones(2, 2)})}
    for name, new in (("zip.pth", True), ("old.pth", False)):
        stream = io.BytesIO()
        torch.save(state, stream, _use_new_zipfile_serialization=new)
        bases[name] = stream.getvalue()
    arrays = collections.OrderedDict(a=np.zeros((2, 2), "<f4"), b=[1, "x", None])
    bases |= {f"{protocol}.pkl": pickle.dumps(arrays, protocol) for protocol in range(5)}
    blob = np.arange(6, dtype="<f4")
    bases["a.caffemodel"] = caffemodel({"conv1": [blob.reshape(2, 3)], "old": [blob]}) + caffemodel(
        {"x": [blob]}, old=True
    )
    bases["labels.pkl"] = pickle.dumps({"yes": 0, "no": 1}, 2)
    bases["labels.json"] = b'[{"id": 0, "answer": "yes"}]'

    def case(drawn: tuple[str, bytes], folder: Path) -> None:
        path = folder / drawn[0]
        path.write_bytes(drawn[1])
        if drawn[0].startswith("labels"):
            read_labels(path)
        elif path.suffix == ".caffemodel":
            read_caffemodel(path)
        elif path.suffix == ".pkl":
            read_weights(path)
        else:
            read_or_fault(lambda: read_weights(path))
            read_checkpoint(str(path), "model.finetuned")

    return case, mutated(bases)


# Texts


def commands() -> tuple[Callable[[Any, Path], object], st.SearchStrategy[Any]]:
    """Command lines of Oscar's scripts."""
    from lavis_ext.oscar.import_args import import_command

    base = (
        "python -m torch.distributed.launch --nproc_per_node=2 oscar/run_vqa.py -j 4 --img_feature_dim 2054 --do_train "
        "--model_name_or_path a/b --task_name vqa_text --per_gpu_train_batch_size 32 --learning_rate 5e-05 --seed 3"
    )
    more = " \\\n --save_steps $X 'a b' --max_seq_length=\"128\""
    texts = mutated({"a": base.encode(), "b": (base + more).encode(), "c": b"python oscar/run_captioning.py --do_test"})
    return lambda drawn, _: import_command([drawn[1].decode("utf-8", "surrogateescape")]), texts


URLS = [
    *("https://u:pw@h.org:80/a/b.zip?x=1#f", "azure:acc/container/a/b", "hf:datasets/o/n/file@rev", "gdrive:1a2b3c"),
    *("file:///a/b", "https://acc.blob.core.windows.net/c/b?sv=1&sig=x%3D", "http://[::1]:8080/x", "../x/%2e%2e/y"),
    *("https://drive.google.com/uc?id=1&export=download", "https://huggingface.co/datasets/o/n/resolve/main/f"),
]


def urls() -> tuple[Callable[[Any, Path], object], st.SearchStrategy[Any]]:
    """Addresses in cards and rows: shown, mapped to a mirror, judged, and asked for without a connection."""
    from lavis_ext.common.secrets import identity, printable, redact, redact_url
    from lavis_ext.fetch import Policy, Source, Transfer, fetch, refuse_unless_remote
    from lavis_ext.fetch.azure import blob_place
    from lavis_ext.fetch.mirrors import MirrorMap, mirror_path
    from lavis_ext.fetch.safety import DENIED_HOSTS, deny_reason, is_loopback, redirect_reason, safe_relative
    from lavis_ext.fetch.transfer import Failure

    steps = [mirror_path, safe_relative, blob_place, refuse_unless_remote, MirrorMap.from_environment]

    def case(text: str, folder: Path) -> None:
        for show in (redact, redact_url, identity, printable):
            assert isinstance(show(text), str)
        deny_reason(text, DENIED_HOSTS), redirect_reason("https://a/b", text), redirect_reason(text, text)
        is_loopback(text)
        for step in steps:
            try:
                step(text)  # type: ignore[operator]
            except (LavisExtError, Failure):
                continue
        fetch(Transfer(folder / "f", (Source(text),)), Policy(offline=True, retries=0))

    return case, st.text(max_size=20) | mutated({url: url.encode() for url in URLS}).map(
        lambda p: p[1].decode("latin1")
    )


def tokens() -> tuple[Callable[[Any, Path], object], st.SearchStrategy[Any]]:
    """Shared access signatures, alone and in files of tokens."""
    from lavis_ext.fetch.azure import Sas, SasTokens, clean_token

    base = b"oscar sv=2023-01-03&sr=c&sp=rl&se=2030-01-31T10:00:00Z&st=2020-01-01&sig=abc%2Bd%3D\n"

    def case(drawn: tuple[str, bytes], folder: Path) -> None:
        path = folder / "tokens"
        path.write_bytes(drawn[1])
        path.chmod(0o600)
        text = drawn[1].decode("utf-8", "replace")
        for right in "rl":
            Sas(text).obstacle(right)
        for step in (lambda: clean_token(text, "x"), lambda: SasTokens().load(str(path))):
            try:
                step()
            except LavisExtError as error:
                assert "abc%2Bd" not in str(error)

    return case, mutated({"file": base})


SECRET = "c4n4rySECRETpart"
SHAPES = [
    *(
        "http://u:{}@h.org:80/a/b.zip?x=1#f",
        "https://a.org/c/b?sv=1&sr=c&sig={}%2B&se=2&sp=r",
        "Authorization: Bearer {}",
    ),
    *("x sig={} y", "{{'url': 'https://u:{}@h/x', 'b': 1}}", "/c/b?sv=1&sig={} (Caused by X)", '"sig": "{}"'),
]


def redaction() -> tuple[Callable[[Any, Path], object], st.SearchStrategy[Any]]:
    """Texts around a secret, in which something is put: no more than one edit, since without marks it is any word."""
    from lavis_ext.common.secrets import identity, printable, redact, redact_url

    around = st.tuples(st.text(max_size=12), st.sampled_from(SHAPES), st.text(max_size=12), st.booleans())

    def case(drawn: tuple[str, str, str, bool], folder: Path) -> None:
        before, shape, after, quoted = drawn
        secret = f'"{SECRET}"' if quoted and "sig=" in shape else SECRET
        for text in (f"{before} {shape.format(secret)} {after}", f"{before}\n{shape.format(secret)}\n{after}"):
            assert redact(redact(text)) == redact(text)
            for show in (redact, printable):
                assert SECRET not in show(text), show(text)
        for show in (redact_url, identity):
            show(before + shape + after)

    return case, around


TARGETS: dict[str, Target] = {
    "run": settings_of("run"),
    "card": settings_of("card"),
    "model": settings_of("model"),
    "options": options,
    "annotations": annotations,
    "archives": archives,
    "shards": shards,
    "records": records,
    "features": features,
    "stores": stores,
    "weights": weights,
    "import-args": commands,
    "urls": urls,
    "sas": tokens,
    "redaction": redaction,
}

"""What docs/own-data.md shows works: rows of one's own by one YAML, and a package of one's own by an entry point."""

import csv
import importlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lavis_ext import load_dataset, load_processor
from lavis_ext.cli import main
from lavis_ext.common.registry import load_plugins, processors

YAML = """
datasets:
  birds:
    builder: image_caption
    build_info:
      annotations:
        train: {{storage: {base}/train{suffix}}}
        val: {{storage: {base}/val.json}}
      images: {{storage: {base}/photos}}
    vis_processor:
      train: {{name: blip2_image_train, image_size: 32}}
      eval: {{name: blip_image_eval, image_size: 32}}
    text_processor:
      train: {{name: blip_caption}}
      eval: {{name: blip_caption}}
"""
ROWS = [{"image": f"{i}.jpg", "caption": f"A bird number {i}."} for i in range(3)]


def write(path: Path) -> None:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ROWS[0], delimiter="," if path.suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        path.write_text(json.dumps(ROWS))


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".tsv", ".parquet"])
def test_rows_become_a_data_set_by_one_yaml(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    for row in ROWS:
        Image.new("RGB", (40, 30), "red").save(tmp_path / "photos" / row["image"])
    write(tmp_path / f"train{suffix}")
    write(tmp_path / "val.json")
    folder = tmp_path / "mine" / "datasets" / "birds"
    folder.mkdir(parents=True)
    (folder / "defaults.yaml").write_text(YAML.format(base=tmp_path, suffix=suffix))
    monkeypatch.setenv("LAVIS_EXT_CONFIGS", str(tmp_path / "mine"))
    birds = load_dataset("birds")
    assert {split: len(d) for split, d in birds.items()} == {"train": 3, "val": 3}
    assert birds["train"][1]["text_input"] == "a bird number 1"
    assert tuple(birds["train"][1]["image"].shape) == (3, 32, 32)


def test_configs_flag_goes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAVIS_EXT_CONFIGS", raising=False)
    folder = tmp_path / "datasets" / "birds"
    folder.mkdir(parents=True)
    (folder / "defaults.yaml").write_text(YAML.format(base=tmp_path, suffix=".json"))
    assert main(["check", str(tmp_path), "--configs", str(tmp_path)]) == 3  # none of its files is there
    (tmp_path / "photos").mkdir()
    for row in ROWS:
        Image.new("RGB", (40, 30), "red").save(tmp_path / "photos" / row["image"])
    write(tmp_path / "train.json")
    write(tmp_path / "val.json")
    assert main(["check", str(tmp_path), "--configs", str(tmp_path)]) == 0
    assert main(["show", "birds", "--configs", str(tmp_path)]) == 0
    assert main(["list", "--configs", str(tmp_path / "absent")]) == 2


def test_package_joins_by_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "birds_plugin.py").write_text(
        "from lavis_ext import registry\n\n\n@registry.register_processor('upper_caption')\nclass UpperCaption:\n"
        "    def __call__(self, text):\n        return text.upper()\n"
    )
    info = tmp_path / "birds_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: birds-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lavis_ext.plugins]\nbirds = birds_plugin\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    load_plugins.cache_clear()
    try:
        assert "birds" in load_plugins()
        assert load_processor("upper_caption")("a bird") == "A BIRD"
    finally:
        load_plugins.cache_clear()
        processors._items.pop("upper_caption", None)

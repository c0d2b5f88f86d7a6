"""The table of names says what the modules register, and looking a name up imports what it needs and no more."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import lavis_ext
from lavis_ext.common.names import NAMES
from lavis_ext.common.registry import Facade, models
from tests.support.pictures import write_captions, write_json

REGION_KEYS = {"lavis_ext.oscar", "lavis_ext.oscar.datasets", "lavis_ext.oscar.datasets.settings"}
KINDS = {"builder", "processor", "model", "objective", "task", "metric", "runner", "lr_scheduler", "detector"}


def test_the_table_is_complete() -> None:
    """With every module imported, what is registered is what the table says."""
    for module in pkgutil.walk_packages(lavis_ext.__path__, "lavis_ext."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    assert set(NAMES) == set(Facade._kinds) == KINDS
    for kind, registry in Facade._kinds.items():
        ours = {
            n for n, item in registry._items.items() if registry.find(n).startswith("lavis_ext.") and item is not None
        }
        assert ours == set(NAMES[kind]), kind
        for name, home in NAMES[kind].items():
            assert registry.find(name).startswith(f"{home.module}."), name
            if home.keys:
                assert registry._keys[name] is registry.config(name), name


def test_a_models_keys_say_its_views() -> None:
    for name in NAMES["model"]:
        assert models.get(name).views == models.config(name).views, name


def imported(code: str) -> list[str]:
    """The modules that a fresh interpreter has after some code."""
    shown = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return shown.stdout.split()


def test_keys_are_found_without_torch() -> None:
    kinds = ["builder", "metric", "model", "objective", "processor", "task"]
    code = f"from lavis_ext.common.registry import Facade\nfor kind in {kinds}:\n"
    code += "    names = Facade._kinds[kind].names()\n    assert names, kind\n"
    found = imported(f"{code}    for name in names: assert Facade._kinds[kind].config(name) is not None")
    assert not {"torch", "transformers", "pycocoevalcap"} & set(found)


def test_check_of_a_run_imports_no_torch() -> None:
    for name in ("demo/train/caption", "oscar/distill/vqa"):
        path = Path(lavis_ext.__file__).parents[1] / "configs" / "projects" / f"{name}.yaml"
        found = imported(
            f"from lavis_ext.common.config.check import check_file\nassert check_file({str(path)!r}) == []"
        )
        assert not {"torch", "transformers"} & set(found)
        assert name.startswith("oscar") or not [
            m for m in found if m.startswith("lavis_ext.oscar") and m not in REGION_KEYS
        ]


def test_a_caption_user_loads_no_region_code(tmp_path: Path) -> None:
    write_captions(tmp_path)
    rows = next(tmp_path.rglob("*train*.json"))
    yaml = {"datasets": {"coco_caption": {"build_info": {
        "annotations": {"train": {"storage": [str(rows)]}},
        "images": {"storage": str(tmp_path / "coco" / "images")},
    }}}}  # fmt: skip
    path = write_json(tmp_path / "coco.yaml", yaml)
    found = imported(f"from lavis_ext import load_dataset\nassert load_dataset('coco_caption', {str(path)!r})")
    ours = [name for name in found if name.split(".")[0] == "lavis_ext"]
    assert len(ours) <= 46, sorted(ours)
    # the keys of shapes on regions are read with the cards, their code is not
    assert {name for name in ours if name.startswith("lavis_ext.oscar")} == REGION_KEYS
    assert not [name for name in ours if ".features" in name or ".tasks" in name or ".models" in name]

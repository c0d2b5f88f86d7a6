"""A plug-in is one file: named in a run file, in a folder of settings or on the command line, and imported once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lavis_ext.cli import main
from lavis_ext.common.config.check import check_file
from lavis_ext.common.errors import ConfigError
from lavis_ext.common.registry import load_plugin_file, processors

SHOUT = """
from dataclasses import dataclass

from lavis_ext.common.registry import registry


@registry.register_processor("{name}")
@dataclass(frozen=True)
class Shout:
    loudness: int = 1

    def __call__(self, text: str) -> str:
        return text.upper() + "!" * self.loudness
"""
RUN = """
plugins: {plugins}
model: {{arch: blip2_opt, model_type: tiny}}
datasets:
  coco_caption:
    text_processor: {{train: {{name: {name}, {key}: 2}}}}
run: {{task: captioning, max_epoch: 1, train_splits: [train], valid_splits: [val]}}
"""


@pytest.fixture(autouse=True)
def forgotten() -> None:
    """What a test registers is taken out again."""
    yield
    for name in [name for name in sys.modules if name.startswith("lavis_ext_plugin_shout")]:
        del sys.modules[name]
        processors.forget(name)


def plugin(folder: Path, name: str, file: str = "shout.py") -> Path:
    path = folder / file
    path.write_text(SHOUT.format(name=name))
    return path


def run_file(folder: Path, name: str, plugins: str = "[shout.py]", key: str = "loudness") -> Path:
    path = folder / "run.yaml"
    path.write_text(RUN.format(plugins=plugins, name=name, key=key))
    return path


def test_a_run_file_names_a_file_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    plugin(tmp_path, "shout_a")
    assert check_file(run_file(tmp_path, "shout_a")) == []
    (told,) = check_file(run_file(tmp_path, "shout_a", key="loudnes"))
    assert told.where == f"{tmp_path / 'run.yaml'}:6 datasets.coco_caption.text_processor.train.loudnes"
    assert told.way_out == "did you mean 'loudness'?"


def test_a_file_is_imported_once_however_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = plugin(tmp_path, "shout_b")
    (tmp_path / "link.py").symlink_to(path)
    load_plugin_file(path, "here")
    held = processors.get("shout_b")
    monkeypatch.chdir(tmp_path)
    load_plugin_file(Path("shout.py"), "here")
    load_plugin_file(tmp_path / "link.py", "here")
    assert processors.get("shout_b") is held


def test_a_folder_of_settings_names_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine" / "datasets" / "birds"
    folder.mkdir(parents=True)
    plugin(folder, "shout_c")
    body = "plugins: shout.py\ndatasets:\n  birds:\n    builder: image_caption\n"
    body += "    text_processor: {eval: {name: shout_c, LOUD: 3}}\n"
    (folder / "defaults.yaml").write_text(body.replace("LOUD", "loudness"))
    monkeypatch.setenv("LAVIS_EXT_CONFIGS", str(tmp_path / "mine"))
    assert main(["show", "birds"]) == 0
    (folder / "defaults.yaml").write_text(body.replace("LOUD", "loudnes"))
    assert main(["show", "birds"]) == 3


@pytest.mark.parametrize("verb", ["check", "list"])
def test_every_verb_takes_one(tmp_path: Path, verb: str) -> None:
    file = plugin(tmp_path, f"shout_{verb}")
    rest = [str(run_file(tmp_path, f"shout_{verb}", plugins="[]"))] if verb == "check" else []
    assert main([verb, *rest, "--plugin", str(file)]) == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(0)", "SystemExit"),
        (SHOUT.format(name="blip_caption"), "already registered by lavis_ext.processors.text.BlipCaption"),
        (SHOUT.format(name="shout_d") + "\n1 / 0\n", "ZeroDivisionError"),
        (None, "no plug-in"),
    ],
)
def test_one_that_does_not_load_says_where(tmp_path: Path, text: str | None, told: str) -> None:
    file = tmp_path / "shout.py"
    if text is not None:
        file.write_text(text)
    path = run_file(tmp_path, "blip_caption", key="max_words")
    for _ in range(2):  # said again, not that a name is taken by what half of the file registered
        (problem,) = check_file(path)
        assert problem.where == f"{path}:2 plugins"
        assert told in problem.what
        assert main(["train", "--cfg-path", str(path)]) == 3
    assert "shout_d" not in processors
    with pytest.raises(ConfigError, match=r"^--plugin "):
        load_plugin_file(file, f"--plugin {file}")


def test_what_is_no_list_of_files(tmp_path: Path) -> None:
    (problem,) = check_file(run_file(tmp_path, "blip_caption", plugins="{a: b}", key="max_words"))
    assert problem.where == f"{tmp_path / 'run.yaml'}:2 plugins"

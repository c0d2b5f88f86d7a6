"""A name means one object, or an error that says which names there are."""

import logging
import sys
from pathlib import Path

import pytest

from lavis_ext.common.errors import UsageError
from lavis_ext.common.registry import Registry, RegistryError, load_plugins, registry


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "some_kinds"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "one.py").write_text(
        "import tests_registry_holder as h\n@h.things.register('one')\ndef one(): return 1\n"
    )
    (tmp_path / "tests_registry_holder.py").write_text(
        "from lavis_ext.common.names import Home\nfrom lavis_ext.common.registry import Registry\n"
        "things = Registry('thing', {'one': Home('some_kinds.one')})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "some_kinds"
    for name in ("some_kinds", "some_kinds.one", "tests_registry_holder"):
        sys.modules.pop(name, None)


def test_modules_load_on_first_need(package: str) -> None:
    from tests_registry_holder import things

    assert f"{package}.one" not in sys.modules
    assert things.names() == ["one"]
    assert things.get("one")() == 1
    assert things.find("one") == "some_kinds.one.one"
    assert "two" not in things


@pytest.mark.fault("D04")
def test_unknown_name_says_the_nearest(package: str) -> None:
    from tests_registry_holder import things

    with pytest.raises(RegistryError, match="thing 'on': not registered; did you mean 'one'"):
        things.get("on")


@pytest.mark.fault("D06")
def test_duplicate_name_is_an_error_that_names_the_holder() -> None:
    things: Registry[object] = Registry("thing", {})
    things.register("x")(test_unknown_name_says_the_nearest)
    things.register("x")(test_unknown_name_says_the_nearest)  # the same object again is harmless
    with pytest.raises(RegistryError, match=r"already registered by .*test_unknown_name_says_the_nearest"):
        things.register("x")(test_modules_load_on_first_need)


def test_module_and_facade_answer_alike() -> None:
    from lavis_ext import registry as module

    assert module.get_processor_class("blip_caption") is registry.get_processor_class("blip_caption")
    assert module.get_builder_class("coco_caption")().config.name == "coco_caption"
    assert module.list_datasets() == registry.list_datasets()
    with pytest.raises(AttributeError):
        _ = module.nonsense


def test_facade_has_the_names_of_lavis() -> None:
    for name in ("register_builder", "register_task", "register_processor", "register_model", "register_lr_scheduler"):
        assert callable(getattr(registry, name))
    assert "coco_caption" in registry.list_datasets()
    assert "blip_caption" in registry.list_processors()
    assert "runner_iter" in registry.list_runners()
    with pytest.raises(UsageError, match="did you mean 'coco_caption'"):
        registry.get_builder_class("coco_captoin")
    with pytest.raises(AttributeError, match="no attribute 'get_nonsense_class'"):
        _ = registry.get_nonsense_class


def test_plugin_that_fails_is_a_warning_that_names_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Point:
        name, value = "broken", "nowhere:thing"

        def load(self) -> None:
            raise ImportError("no module nowhere")

    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [Point()])
    load_plugins.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert load_plugins() == ()
    assert "plugin broken (nowhere:thing) does not load: no module nowhere" in caplog.text
    load_plugins.cache_clear()

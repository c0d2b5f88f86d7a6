"""Names of ours in LAVIS: against the package itself where it is installed, and against a stand-in everywhere."""

import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from lavis_ext.adapters.lavis import BROKEN, Registered, open_lavis, register
from lavis_ext.common.errors import ConfigError, PartialError, UsageError
from lavis_ext.datasets.builders import NotPreparedError
from lavis_ext.datasets.readers.faults import SampleError
from lavis_ext.processors import load_processor
from tests.support.families import coco_captions, gqa
from tests.support.pictures import encoded, pixels, write_json
from tests.support.shards import write_shard
from tests.support.stand_in_lavis import write_stand_in

SCORED = {"all_captions": ["no", "A dog runs."], "all_similarities": [0.1, 0.9]}
OWN = ["cc_sbu_align", "laion400M", "laion400m", "laion_coco", "minigpt4_self_instruct_caption"]


def forget_lavis() -> None:
    for name in [name for name in sys.modules if name == "lavis" or name.startswith("lavis.")]:
        del sys.modules[name]


def prepare_real() -> None:
    """A torchvision built for CUDA declares operators that a CPU torch does not have; LAVIS uses none of them."""
    if find_spec("lavis") is None:
        pytest.skip("salesforce-lavis is not installed (docs/adapters.md says how)")
    sys.modules.setdefault("torchvision._meta_registrations", ModuleType("torchvision._meta_registrations"))
    try:
        open_lavis()
    except UsageError as error:
        pytest.skip(f"salesforce-lavis does not import here: {error}")


@pytest.fixture(scope="module", params=["stand-in", "real"])
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registered]:
    forget_lavis()
    root = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "stand-in":
            write_stand_in(root)
            patch.syspath_prepend(str(root))
        else:
            prepare_real()
        patch.setenv("LAVIS_EXT_CACHE_ROOT", str(root / "cache"))
        yield register(override=["gqa"])
        forget_lavis()


@pytest.fixture()
def cache(done: Registered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh place for data, for builders that are registered already."""
    for name in [*done.builders, *done.replaced]:
        monkeypatch.setattr(builders().registry.get_builder_class(name), "cache_root", tmp_path)
    return tmp_path


def builders() -> Any:
    return import_module("lavis.datasets.builders")


def lay_align(root: Path, count: int = 4) -> None:
    rows = [{"image_id": str(i), "caption": f"The image {i} shows a dog."} for i in range(count)]
    write_json(root / "cc_sbu_align/filter_cap.json", {"annotations": rows})
    folder = root / "cc_sbu_align/image"
    folder.mkdir()
    for i in range(count):
        (folder / f"{i}.jpg").write_bytes(encoded(pixels(i, 20, 30)))


def test_what_lavis_lacks_is_there(done: Registered) -> None:
    assert set(OWN) <= set(done.builders) and done.replaced == ["gqa"]
    assert "coco_caption" not in done.builders
    assert set(OWN) <= set(builders().dataset_zoo.get_names())
    assert builders().dataset_zoo.dataset_zoo["gqa"] == ["all", "balanced_testdev", "balanced_val", "default"]


def test_again_changes_nothing(done: Registered) -> None:
    assert register() == Registered(whole=done.whole)
    assert register(override="gqa").replaced == ["gqa"]


def test_default_yamls_are_absolute_and_declare_one_data_set(done: Registered) -> None:
    for name in OWN:
        cls = builders().registry.get_builder_class(name)
        path = cls.default_config_path()
        assert Path(path).is_absolute() and list(OmegaConf.load(path).datasets) == [name]


def test_shards_come_as_lavis_takes_them(cache: Path) -> None:
    wds = pytest.importorskip("webdataset")
    write_shard(cache / "laion_coco", 0, 5, manifest=True, **SCORED)
    train = builders().load_dataset("laion_coco")["train"]
    assert isinstance(train, wds.DataPipeline)
    batches = [batch for batch, _ in zip(DataLoader(train, batch_size=4), range(3), strict=False)]
    assert batches[0]["image"].shape == (4, 3, 224, 224) and batches[0]["image"].dtype == torch.float32
    texts = zip(batches[0]["text_input"], batches[0]["text_output"], strict=True)
    assert {f"{one} {other}".strip() for one, other in texts} == {"a dog runs"}


def test_pictures_come_as_lavis_takes_them(cache: Path) -> None:
    lay_align(cache)
    train = builders().load_dataset("minigpt4_self_instruct_caption")["train"]
    assert isinstance(train, torch.utils.data.Dataset) and len(train) == 4 and train.name.startswith("minigpt4")
    batch = next(iter(DataLoader(train, batch_size=2, collate_fn=train.collater)))
    assert batch["image"].shape == (2, 3, 224, 224) and batch["text_input"][0] == "The image 0 shows a dog."
    assert batch["image_id"].tolist() == [0, 1]


def test_loss_in_training_is_counted_and_replaced(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    lay_align(cache)
    (cache / "cc_sbu_align/image/1.jpg").write_bytes(b"<html>")
    train = builders().load_dataset("cc_sbu_align")["train"]
    assert train[1]["text_input"] == "The image 2 shows a dog."
    assert train.faults.summary()["cc_sbu_align/train"]["bad"] == 1 and "an HTML page" in caplog.text
    for path in (cache / "cc_sbu_align/image").iterdir():
        path.unlink()
    with pytest.raises((SampleError, PartialError)):
        train[0]
    train.training = False
    with pytest.raises(SampleError):
        train[0]


def test_configuration_of_a_run(cache: Path) -> None:
    """What LAVIS merges of default YAML and run YAML is honoured: processors, storage, the shape's arguments."""
    write_shard(cache / "mine", 3, 3, caption="Long words, here.")
    cls = builders().registry.get_builder_class("laion_coco")
    user = {
        "vis_processor": {"train": {"name": "blip2_image_train", "image_size": 32}},
        "text_processor": {"train": {"name": "blip_caption", "prompt": "a photo of ", "max_words": 2}},
        "build_info": {"storage": "mine/{00003..00003}.tar"},
        "args": {"captions_key": None, "scores_key": None, "prefix_split": False},
    }
    default = OmegaConf.load(cls.default_config_path())
    merged = OmegaConf.merge(default, {"datasets": {"laion_coco": user}}).datasets.laion_coco
    sample = next(iter(cls(merged).build_datasets()["train"]))
    assert sample["image"].shape == (3, 32, 32) and sample["text_input"] == "a photo of long words,"
    merged.build_info.storrage = "x"
    with pytest.raises(ConfigError, match="did you mean 'storage'"):
        cls(merged).build_datasets()


def test_type_and_folder_of_pictures(cache: Path) -> None:
    gqa(cache)
    cls = builders().registry.get_builder_class("gqa")
    config = next(iter(OmegaConf.load(cls.default_config_path("balanced_testdev")).datasets.values()))
    built = cls(config).build_datasets()
    assert set(built) == {"train", "val", "test"} and built["val"][0]["question_id"]
    (cache / "gqa/images").rename(cache / "elsewhere")
    moved = builders().load_dataset("gqa", vis_path=str(cache / "elsewhere"))
    assert len(moved["train"]) == len(built["train"])


def test_what_is_not_prepared_says_how(cache: Path) -> None:
    with pytest.raises(NotPreparedError, match="lavis-ext prepare minigpt4_self_instruct_caption"):
        builders().load_dataset("minigpt4_self_instruct_caption")


def test_processors_take_lavis_configs(done: Registered) -> None:
    registry = builders().registry
    cfg = OmegaConf.create({"name": "blip_image_eval", "image_size": 16, "mean": [0.5, 0.5, 0.5]})
    image = pixels(0, 20, 30)
    for name in done.processors:
        cls = registry.get_processor_class(name)
        assert issubclass(cls, import_module("lavis.processors.base_processor").BaseProcessor)
    if "blip_image_eval" in done.processors:
        made = registry.get_processor_class("blip_image_eval").from_config(cfg)
        ours = load_processor("blip_image_eval", {"image_size": 16, "mean": [0.5, 0.5, 0.5]})
        assert torch.equal(made(image), ours(image))


def test_tasks_of_lavis_build_them(cache: Path) -> None:
    """LAVIS' own path from a configuration to training data: task, then concatenation."""
    setup = getattr(sys.modules.get("lavis.tasks"), "setup_task", None)
    if setup is None:
        pytest.skip("the stand-in has no tasks")
    lay_align(cache)
    write_shard(cache / "laion_coco", 0, 3, **SCORED)
    config_module = import_module("lavis.common.config")
    names = ("laion_coco", "minigpt4_self_instruct_caption")
    wanted = OmegaConf.create(
        {"datasets": {name: {"vis_processor": {"train": {"name": "blip_image_eval"}}} for name in names}}
    )
    merged = config_module.Config.build_dataset_config(wanted)
    assert set(merged.datasets) == set(names)
    task = setup(OmegaConf.create({"run_cfg": {"task": "image_text_pretrain"}}))
    built = task.build_datasets(SimpleNamespace(datasets_cfg=merged.datasets))
    utils = import_module("lavis.datasets.data_utils")
    train = utils.concat_datasets(utils.reorg_datasets_by_split(built))["train"]
    assert [type(part).__name__ for part in train] == ["ConcatDataset", "ChainDataset"]
    assert train[0].collater([train[0][0], train[0][1]])["image"].shape[0] == 2
    assert next(iter(train[1]))["image"].shape == (3, 224, 224)


def test_unknown_name_to_override(done: Registered) -> None:
    with pytest.raises(UsageError, match=r"did you mean 'gqa'"):
        register(override=["gqaa"])


def test_broken_names_are_ours() -> None:
    from lavis_ext.common.config.cards import load_cards

    assert set(BROKEN) <= set(load_cards().names())


def test_lavis_is_not_imported_before_it_is_asked_for() -> None:
    import subprocess

    code = "import sys, lavis_ext, lavis_ext.adapters.lavis; sys.exit('lavis' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_lavis(monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("lavis") is not None:
        pytest.skip("LAVIS is installed")
    with pytest.raises(UsageError, match="pip install --no-deps salesforce-lavis"):
        register()


def test_existing_lavis_data_sets_stay(cache: Path) -> None:
    coco_captions(cache)
    theirs = builders().registry.get_builder_class("coco_caption")
    assert not hasattr(theirs, "dataset_name")

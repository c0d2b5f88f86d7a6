"""LAVIS' loading functions: models by name, with the processors of their YAML."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from lavis_ext.common.config.decode import ConfigDecoder, read_sections
from lavis_ext.common.config.resolve import cache_root, model_defaults, model_files
from lavis_ext.common.config.schema import ModelConfig, OpenModelConfig
from lavis_ext.common.config.script import reading
from lavis_ext.common.errors import ConfigError
from lavis_ext.common.names import NAMES
from lavis_ext.common.registry import models
from lavis_ext.models.settings import is_checkpoint, names_url, starts_random

if TYPE_CHECKING:
    from lavis_ext.models.base_model import BaseModel

log = logging.getLogger(__name__)
Processors = dict[str, Callable[..., Any]]


def default_config(name: str, model_type: str) -> ModelConfig:
    """The ModelConfig of `configs/models/<name>/<model_type>.yaml`; raises ConfigError with the nearest names."""
    tree, _ = model_defaults(name, model_type)
    decoder = ConfigDecoder()
    # a class in LAVIS' manner may name the YAML of another
    section = {"model_type": model_type, **tree, "arch": name}
    config = decoder.build(ModelConfig, section, f"models/{name}/{model_type}.yaml")
    decoder.close()
    assert config is not None
    return config


def section_of_run(folder: Path, key: str) -> ModelConfig:
    """The model section of a run's `config.yaml`; raises ConfigError at the `key` that names the run."""
    path = folder / "config.yaml"
    if not path.is_file():
        what = f"{folder} has no config.yaml that says what model the checkpoint is of"
        raise ConfigError(key, what, "give a model section with load_finetuned and finetuned")
    tree, places = read_sections(path)
    decoder = ConfigDecoder(places, lenient=True)  # it was checked when it was written
    section = decoder.build(ModelConfig, tree.get("model") or {}, "model")
    decoder.close()
    assert section is not None
    return section


def build_model(config: ModelConfig, root: Path | None = None) -> BaseModel:
    """The model of a run, by `model.arch`; raises RegistryError for an unknown one.

    Weights that are named by a URL are fetched below the cache root `root`, the default one if None.
    """
    kind = models.get(config.arch)
    if names_url(config) or is_checkpoint(config.pretrained or ""):
        from lavis_ext.models.weights import with_local_weights

        config = with_local_weights(config, root or Path(cache_root()))
    # a class in LAVIS' manner gets its section as it is given
    if isinstance(config, OpenModelConfig):
        with reading("model"):
            own: BaseModel = kind.from_config(OmegaConf.create(config.given))
        return own
    model: BaseModel = kind.from_config(config)
    return model


def warn_if_random(config: ModelConfig, way_out: str = "name model.finetuned=RUN") -> bool:
    """Whether all that learns in a model is random, which is then logged: what it says means nothing untrained."""
    if not starts_random(config):
        return False
    if config.finetuned and not config.load_finetuned:
        way_out = "model.finetuned is read with model.load_finetuned: true only"
    log.warning("%s/%s: the weights are random, none were loaded: %s", config.arch, config.model_type, way_out)
    return True


def load_model(
    name: str, model_type: str, is_eval: bool = False, device: str = "cpu", checkpoint: str | None = None
) -> BaseModel:
    """A model by architecture and type, with `checkpoint` (our file or folder) loaded over it; LAVIS' arguments."""
    config = default_config(name, model_type)
    own = isinstance(config, OpenModelConfig)
    if checkpoint is not None and not own:
        config = replace(config, load_finetuned=True, finetuned=checkpoint)
    warn_if_random(config, "give load_model(…, checkpoint=RUN)")
    model = build_model(config)
    if checkpoint is not None and own:
        model.load_checkpoint(checkpoint)
    return model.eval().to(device) if is_eval else model.to(device)


def load_preprocess(config: Mapping[str, Any]) -> tuple[Processors, Processors]:
    """Image and text processors {"train", "eval"} of a `preprocess:` section; one that is not named changes nothing."""
    return _pair(config.get("vis_processor")), _pair(config.get("text_processor"))


def load_model_and_preprocess(
    name: str, model_type: str, is_eval: bool = False, device: str = "cpu"
) -> tuple[BaseModel, Processors, Processors]:
    """The model and its image and text processors, each {"train", "eval"}."""
    vis, text = load_preprocess(model_defaults(name, model_type)[1])
    return load_model(name, model_type, is_eval, device), vis, text


def _pair(section: Mapping[str, Any] | None) -> Processors:
    return {split: _processor((section or {}).get(split)) for split in ("train", "eval")}


def _processor(spec: Mapping[str, Any] | None) -> Callable[..., Any]:
    from lavis_ext.processors import load_processor

    if not spec:
        return identity
    arguments = {key: value for key, value in spec.items() if key != "name"}
    loaded: Callable[..., Any] = load_processor(spec["name"], arguments)
    return loaded


def identity(item: Any) -> Any:
    """The item itself."""
    return item


class ModelZoo:
    """The architectures and types that the configs folders, and classes in LAVIS' manner, declare.

    Iterable of (arch, types), printed as a table.
    """

    @property
    def model_zoo(self) -> dict[str, list[str]]:
        """Architecture → types."""
        named = {arch: sorted(types) for arch, types in model_files().items()}
        own = {name: held for name, held in models._items.items() if name not in NAMES["model"]}
        types = {name: getattr(held, "PRETRAINED_MODEL_CONFIG_DICT", None) for name, held in own.items()}
        return dict(sorted({**{name: sorted(some) for name, some in types.items() if some}, **named}.items()))

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        return iter(self.model_zoo.items())

    def __len__(self) -> int:
        return sum(len(types) for _, types in self)

    def __str__(self) -> str:
        rows = [("Architectures", "Types"), *((arch, ", ".join(types)) for arch, types in self)]
        width = max(len(arch) for arch, _ in rows)
        lines = [f"{arch:<{width}}  {types}" for arch, types in rows]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


model_zoo = ModelZoo()

"""A package `lavis` of a few lines with LAVIS' contracts of registry, builders, processors: for where it is absent."""

from __future__ import annotations

from pathlib import Path

FILES = {
    "__init__.py": """
        from lavis.common.registry import registry
        from lavis.datasets.builders import *
        from lavis.models import *
        from lavis.processors import *
    """,
    "models/__init__.py": "from nowhere_to_be_found import apply_chunking_to_forward",
    "tasks/__init__.py": "",
    "configs/default.yaml": "env: {cache_root: /export/home/.cache/lavis}",
    "common/__init__.py": "",
    "common/registry.py": """
        class Registry:
            mapping = {"builder_name_mapping": {}, "processor_name_mapping": {}, "state": {}, "paths": {}}

            @classmethod
            def register_builder(cls, name):
                def wrap(builder):
                    from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder

                    assert issubclass(builder, BaseDatasetBuilder)
                    if name in cls.mapping["builder_name_mapping"]:
                        raise KeyError(name)
                    cls.mapping["builder_name_mapping"][name] = builder
                    return builder
                return wrap

            @classmethod
            def register_processor(cls, name):
                def wrap(processor):
                    from lavis.processors.base_processor import BaseProcessor

                    assert issubclass(processor, BaseProcessor)
                    if name in cls.mapping["processor_name_mapping"]:
                        raise KeyError(name)
                    cls.mapping["processor_name_mapping"][name] = processor
                    return processor
                return wrap

            @classmethod
            def register_path(cls, name, path):
                assert isinstance(path, str)
                if name in cls.mapping["paths"]:
                    raise KeyError(name)
                cls.mapping["paths"][name] = path

            @classmethod
            def register(cls, name, value):
                cls.mapping["state"][name] = value

            @classmethod
            def get_path(cls, name):
                return cls.mapping["paths"].get(name)

            @classmethod
            def get_builder_class(cls, name):
                return cls.mapping["builder_name_mapping"].get(name)

            @classmethod
            def get_processor_class(cls, name):
                return cls.mapping["processor_name_mapping"].get(name)

        registry = Registry()
    """,
    "processors/__init__.py": "from lavis.processors.base_processor import BaseProcessor",
    "processors/base_processor.py": """
        class BaseProcessor:
            def __init__(self):
                self.transform = lambda x: x

            def __call__(self, item):
                return self.transform(item)

            @classmethod
            def from_config(cls, cfg=None):
                return cls()
    """,
    "datasets/__init__.py": "",
    "datasets/builders/__init__.py": """
        from lavis.common.registry import registry
        from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder, load_dataset_config

        @registry.register_builder("gqa")
        class GQABuilder(BaseDatasetBuilder):
            DATASET_CONFIG_DICT = {"default": "configs/datasets/gqa/defaults.yaml"}

        @registry.register_builder("coco_caption")
        class COCOCapBuilder(BaseDatasetBuilder):
            DATASET_CONFIG_DICT = {"default": "configs/datasets/coco/defaults_cap.yaml"}

        def load_dataset(name, cfg_path=None, vis_path=None, data_type=None):
            builder = registry.get_builder_class(name)(None if cfg_path is None else load_dataset_config(cfg_path))
            if vis_path is not None:
                builder.config.build_info.get(data_type or builder.config.data_type).storage = vis_path
            return builder.build_datasets()

        class DatasetZoo:
            def __init__(self):
                known = registry.mapping["builder_name_mapping"]
                self.dataset_zoo = {k: list(v.DATASET_CONFIG_DICT) for k, v in sorted(known.items())}

            def get_names(self):
                return list(self.dataset_zoo)

        dataset_zoo = DatasetZoo()
    """,
    "datasets/builders/base_dataset_builder.py": """
        import os

        from omegaconf import OmegaConf

        from lavis.common.registry import registry
        from lavis.processors.base_processor import BaseProcessor

        def load_dataset_config(path):
            return next(iter(OmegaConf.load(path).datasets.values()))

        class BaseDatasetBuilder:
            def __init__(self, cfg=None):
                self.config = load_dataset_config(self.default_config_path()) if cfg is None else cfg
                self.vis_processors = {"train": BaseProcessor(), "eval": BaseProcessor()}
                self.text_processors = {"train": BaseProcessor(), "eval": BaseProcessor()}

            @classmethod
            def default_config_path(cls, type="default"):
                return os.path.join(registry.get_path("library_root"), cls.DATASET_CONFIG_DICT[type])

            def build_processors(self):
                for key, made in (("vis_processor", self.vis_processors), ("text_processor", self.text_processors)):
                    for side, cfg in (self.config.get(key) or {}).items():
                        made[side] = registry.get_processor_class(cfg.name).from_config(cfg)
    """,
}


def write_stand_in(folder: Path) -> None:
    """Lay the package out below `folder`."""
    from textwrap import dedent

    for name, text in FILES.items():
        path = folder / "lavis" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))

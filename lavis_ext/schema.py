"""The first place of the sections of a YAML, for scripts that import them from here: `common/config/schema.py`."""

from lavis_ext.common.config.schema import BuildInfo, Config, DatasetConfig, ModelConfig, ProcessorConfig, RunConfig

__all__ = ["BuildInfo", "Config", "DatasetConfig", "ModelConfig", "ProcessorConfig", "RunConfig"]

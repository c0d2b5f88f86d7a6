"""Models and tokenizers in transformers' form, from a folder or the hub; what cannot be had is one clear error."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import transformers
from safetensors import SafetensorError

from lavis_ext.config import config_roots
from lavis_ext.errors import ConfigError, IntegrityError, LavisExtError, NetworkError
from lavis_ext.models.base import listed
from lavis_ext.models.network import DTYPES

T = TypeVar("T")
OFFLINE_SWITCHES = ("LAVIS_EXT_OFFLINE", "LAVIS_EXT_MIRROR", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def is_offline() -> bool:
    """Whether the hub must not be asked: offline, or working from a mirror that stands in for the internet."""
    return any(os.environ.get(name, "") not in ("", "0") for name in OFFLINE_SWITCHES)


def load_config(name: str, key: str) -> Any:
    """The configuration of a model in transformers' form."""
    return _guarded(transformers.AutoConfig.from_pretrained, name, key)


def load_network(name: str, key: str, config: Any, settings: Any = None) -> Any:
    """Blip2ForConditionalGeneration from a folder or hub name; `key` is the config key that asked for it.

    Frozen towers are read in their own precision, so that a large one never takes up fp32 memory. With `settings` only
    the weights that fit them are read.
    """
    towers = {"vision_config": config.vit_precision, "text_config": config.llm_precision, "": "fp32"}
    dtypes = {name: DTYPES[precision] for name, precision in towers.items()}
    partly = {"config": settings, "ignore_mismatched_sizes": True} if settings is not None else {}
    return _weights(transformers.Blip2ForConditionalGeneration, name, key, settings is None, dtype=dtypes, **partly)


def load_retriever(name: str, key: str) -> Any:
    """Blip2ForImageTextRetrieval (the first stage) from a folder or hub name, in fp32."""
    return _weights(transformers.Blip2ForImageTextRetrieval, name, key, dtype=DTYPES["fp32"])


def load_masked_language_model(name: str, key: str) -> Any:
    """A BERT with its word head from a folder or hub name, in fp32."""
    return _weights(transformers.BertForMaskedLM, name, key, dtype=DTYPES["fp32"])


def load_embedding(name: str, key: str) -> Any:
    """The word embedding of a decoder from a folder or hub name, in fp16."""
    model = _weights(transformers.AutoModelForCausalLM, name, key, dtype=DTYPES["fp16"])
    return model.get_input_embeddings()


def load_language_model(name: str, key: str, config: Any, language: str) -> Any:
    """A language model from a folder or hub name, in `llm_precision`; `language` is transformers' name of its kind."""
    auto = transformers.AutoModelForSeq2SeqLM if language == "t5" else transformers.AutoModelForCausalLM
    model = _weights(auto, name, key, dtype=DTYPES[config.llm_precision])
    if model.config.model_type != language:
        what = f"is a '{model.config.model_type}', {config.arch} needs '{language}'"
        raise ConfigError(f"{key} {name}", what, "name another, or another model.arch")
    return model


def load_tokenizer(name: str, key: str) -> Any:
    """A fast tokenizer from a folder, a folder below `configs/`, or a hub name."""
    shipped = [root / name for root in config_roots() if (root / name / "tokenizer.json").is_file()]
    if shipped and not Path(name).expanduser().exists():
        name = str(shipped[0])
    return _guarded(transformers.AutoTokenizer.from_pretrained, name, key)


def _weights(kind: Any, name: str, key: str, whole: bool = True, **kwargs: Any) -> Any:
    """A model of transformers' class `kind`; raises IntegrityError where it is to be `whole` and weights are not there.

    transformers itself would start the missing ones anew with a warning.
    """
    model, found = _guarded(partial(kind.from_pretrained, output_loading_info=True), name, key, **kwargs)
    missing = sorted(found["missing_keys"])
    if whole and missing:
        what = f"lacks {len(missing)} weights of a {type(model).__name__}: {listed(missing)}"
        raise IntegrityError(f"{key} {name}", what, "name a model of this kind, or fetch it again")
    return model


def _guarded(load: Callable[..., T], name: str, key: str, **kwargs: Any) -> T:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _from_folder(load, folder, key, **kwargs)
    if name.count("/") != 1 or name.startswith(("/", ".", "~")):
        raise ConfigError(
            key, f"no folder {folder}", "name a folder in transformers' form (config.json, *.safetensors)"
        )
    return _from_hub(load, name, key, **kwargs)


def _from_folder(load: Callable[..., T], folder: Path, key: str, **kwargs: Any) -> T:
    try:
        return load(str(folder), local_files_only=True, **kwargs)
    except LavisExtError:
        raise
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise IntegrityError(f"{key} {folder}", first_line(error), "fetch or save the weights again") from error
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{key} {folder}", first_line(error), "put a model in transformers' form there") from error
    except Exception as error:
        # the loader refuses pickled weights that want to run code with an exception class of its own
        raise IntegrityError(f"{key} {folder}", first_line(error), "use weights in safetensors") from error


def _from_hub(load: Callable[..., T], name: str, key: str, **kwargs: Any) -> T:
    offline = is_offline()
    way_out = f"on a machine that has it, `hf download {name} --local-dir DIR`; then set {key}=DIR"
    try:
        return load(name, local_files_only=offline, **kwargs)
    except Exception as error:
        reason = "not in the local hub cache, and offline" if offline else first_line(error)
        raise NetworkError(f"{key} '{name}'", reason, way_out) from error


def first_line(error: BaseException) -> str:
    """What an exception says, without its tail."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__

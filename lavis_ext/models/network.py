"""Transformers' BLIP-2 networks: from sizes, a folder or the hub, or combined; fitted to tokenizer and image size."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn

from lavis_ext.common.config.resolve import config_roots
from lavis_ext.common.errors import ConfigError, IntegrityError, LavisExtError, NetworkError, nearest
from lavis_ext.common.files import expanded
from lavis_ext.fetch.transfer import offline_from_environment
from lavis_ext.models import clip_tower, towers
from lavis_ext.models.base_model import listed
from lavis_ext.models.settings import is_checkpoint

IMAGE_TOKEN = "<image>"  # noqa: S105
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
RETRIEVER = "Blip2ForImageTextRetrieval"
BERT = "google-bert/bert-base-uncased"
DECODE = "[DEC]"
"""The token that starts a text which the first stage writes; it has a row in every Q-Former that reads."""
READER_FOLDER = "qformer_tokenizer"
"""Where transformers' form of InstructBLIP has the Q-Former's tokenizer."""


def assemble(config: Any, language: str, language_key: str) -> tuple[Any, Any]:
    """Network and tokenizer of a second stage, from `pretrained`, by transfer, or from `sizes`.

    `language` is the kind of language model, `language_key` the config key of its weights. Where `pretrained` is a
    checkpoint, it is not read here: the network has the arch's own parts. Raises ConfigError if the section names no
    weights and no sizes.
    """
    loads, name = config.load_pretrained and config.pretrained, getattr(config, language_key)
    if loads and not is_checkpoint(config.pretrained):
        found = load_config(config.pretrained, "model.pretrained")
        require_reader(config, found)
        if kind_of(found) == language:
            tokenizer = load_tokenizer(config.tokenizer or config.pretrained, "model.pretrained")
            network = load_network(config.pretrained, "model.pretrained", config)
            return fit_image_size(network, config.image_size), tokenizer
        if not name:
            what = f"its language model is '{kind_of(found) or 'none'}', {config.arch} needs '{language}'"
            raise ConfigError("model.pretrained", what, f"name the new one in model.{language_key}")
    elif loads and not config.sizes:
        if not name:
            what = f"is missing: {config.pretrained} is a checkpoint without a language model"
            raise ConfigError(f"model.{language_key}", what, "name its folder or hub name")
    elif config.sizes and config.tokenizer:
        tokenizer = load_tokenizer(config.tokenizer, "model.tokenizer")
        return build_network(config, tokenizer, language), tokenizer
    else:
        way_out = "name a folder or hub model, or give model.sizes and model.tokenizer"
        raise ConfigError("model.pretrained", "no weights to start from", way_out)
    key = f"model.{language_key}"
    tokenizer = load_tokenizer(config.tokenizer or name, key)
    return around(load_language_model(name, key, config, language), config), tokenizer


def around(model: Any, config: Any) -> Any:
    """A network of visual parts and a language model, behind a random projection.

    The parts are those of `pretrained` in transformers' form, whose language model is neither built nor kept; else
    random ones as LAVIS builds them, by `sizes` and `vision`.
    """
    width = model.get_input_embeddings().embedding_dim
    if config.load_pretrained and config.pretrained and not is_checkpoint(config.pretrained):
        found = load_config(config.pretrained, "model.pretrained")
        require_reader(config, found)
        if not hasattr(found, "qformer_config"):
            raise ConfigError(f"model.pretrained {config.pretrained}", "is no BLIP-2", "name one in transformers' form")
        network = load_network(config.pretrained, "model.pretrained", config, stub_config(found, width))
        return with_language_model(fit_image_size(network, config.image_size), model)
    stub = stub_config(blip2_config(config), width)
    return with_language_model(initialised(network_class(stub), stub, config), model)


def reads_text(config: Any) -> bool:
    """Whether the Q-Former of a model section reads instructions (InstructBLIP)."""
    return bool(getattr(config, "qformer_text_input", False))


def require_reader(config: Any, found: Any) -> None:
    """Raise ConfigError where one of `pretrained`, in transformers' form, and the section is an InstructBLIP alone."""
    if reads_text(config) == isinstance(found, transformers.InstructBlipConfig):
        return
    what, key = ("is no InstructBLIP", "True") if reads_text(config) else ("is an InstructBLIP", "False")
    own = "qformer_text_input" in vars(config)
    named = f"{what}, and model.qformer_text_input is {key}" if own else f"{what}, {config.arch} is a BLIP-2"
    way_out = "name another, or a checkpoint of LAVIS, which is put over a model of its own parts"
    raise ConfigError(f"model.pretrained {config.pretrained}", named, way_out)


def network_class(settings: Any) -> Any:
    """transformers' class of the network of a configuration."""
    instruct = isinstance(settings, transformers.InstructBlipConfig)
    return transformers.InstructBlipForConditionalGeneration if instruct else transformers.Blip2ForConditionalGeneration


def load_reader(config: Any) -> Any:
    """The Q-Former's tokenizer, with LAVIS' opening token; long instructions lose their beginning."""
    named, form = config.qformer_tokenizer, config.pretrained
    if named or not (config.load_pretrained and form) or is_checkpoint(form):
        return load_bert_tokenizer(named or BERT, truncation_side="left")
    return load_bert_tokenizer(form, "model.pretrained", READER_FOLDER, truncation_side="left")


def load_bert_tokenizer(
    name: str = BERT, key: str = "model.qformer_tokenizer", part: str = "", truncation_side: str = "right"
) -> Any:
    """A Q-Former's tokenizer, with LAVIS' opening token; see `load_tokenizer`."""
    tokenizer = load_tokenizer(name, key, part)
    tokenizer.add_special_tokens({"bos_token": DECODE})
    tokenizer.truncation_side, tokenizer.padding_side = truncation_side, "right"
    return tokenizer


def kind_of(settings: Any) -> str:
    """transformers' name of the language model of a BLIP-2 configuration; "" if it has none, as in the first stage."""
    if RETRIEVER in (getattr(settings, "architectures", None) or ()):
        return ""
    return str(getattr(getattr(settings, "text_config", None), "model_type", ""))


def with_language_model(network: Any, model: Any) -> Any:
    """The network with another language model, in place."""
    settings = network.config
    network.language_model = model
    network.config = type(settings)(
        vision_config=settings.vision_config.to_dict(),
        qformer_config=settings.qformer_config.to_dict(),
        text_config=model.config.to_dict(),
        num_query_tokens=settings.num_query_tokens,
    )
    return network


def stub_config(found: Any, width: int) -> Any:
    """The configuration `found` with a language model of this width without layers, which is fast to build."""
    layers = {"num_hidden_layers": 0, "ffn_dim": 8, "num_attention_heads": 1, "vocab_size": 8, "pad_token_id": 1}
    blip2 = isinstance(found, transformers.Blip2Config)
    return type(found)(
        vision_config=found.vision_config.to_dict(),
        qformer_config=found.qformer_config.to_dict() | ({"use_qformer_text_input": False} if blip2 else {}),
        text_config={"model_type": "opt", "hidden_size": width, "word_embed_proj_dim": width, **layers},
        num_query_tokens=found.num_query_tokens,
    )


def build_network(config: Any, tokenizer: Any, language: str) -> Any:
    """A network with random weights by `sizes`, without what follows from the tokenizer and `image_size`.

    `language` is transformers' name of the kind of language model.
    """
    ends = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    first = {"decoder_start_token_id": ends["pad_token_id"]} if language == "t5" else {}
    own = config.sizes.get("text_config", {})
    settings = blip2_config(config, {"model_type": language, "vocab_size": len(tokenizer), **ends, **first, **own})
    network = initialised(network_class(settings), settings, config)
    if language == "t5" and own.get("tie_word_embeddings") is False:
        untie_head(network.language_model)
    return network


def untie_head(model: Any) -> None:
    """Give a T5 a word head of its own, as Flan-T5 has; transformers 5 ties what it builds from a configuration."""
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    model.all_tied_weights_keys.pop("lm_head.weight", None)


def build_retriever(settings: Any, words: int, pad: int | None, config: Any) -> Any:
    """A first-stage network with random weights: its Q-Former has a vocabulary of `words` too."""
    queries = settings.qformer_config
    queries.use_qformer_text_input, queries.vocab_size, queries.pad_token_id = True, words, pad
    queries.cross_attention_frequency = config.cross_attention_freq
    return initialised(transformers.Blip2ForImageTextRetrieval, settings, config)


def blip2_config(config: Any, text: dict[str, Any] | None = None) -> Any:
    """transformers' configuration by `sizes`; raises ConfigError for sizes that it refuses."""
    sizes = clip_tower.SIZES if config.vit_model == "clip_L" else {}
    given = config.sizes.get("vision_config", {})
    vision = {"image_size": config.image_size, "initializer_range": 0.02, **sizes, **given}
    qformer = dict(config.sizes.get("qformer_config", {}))
    tower = getattr(config, "tower", "")
    if tower:
        settings = load_vision_config(tower, config.image_size)
        with size_errors("model.vision"):
            vision = towers.stub_of(settings, config.image_size)
    parts = {
        "vision_config": vision,
        "num_query_tokens": config.num_query_token,
        **({"text_config": text} if text else {}),
    }
    with size_errors():
        if reads_text(config):
            reader = load_reader(config)
            words = {"vocab_size": len(reader), "pad_token_id": reader.pad_token_id}
            return transformers.InstructBlipConfig(qformer_config={**words, **qformer}, **parts)
        width = getattr(config, "embed_dim", 256)  # only the first stage has the key
        return transformers.Blip2Config(qformer_config=qformer, image_text_hidden_size=width, **parts)


def initialised(kind: Any, settings: Any, config: Any) -> Any:
    """A network with random weights and the tower of `vit_model`; raises ConfigError for sizes that it refuses."""
    with size_errors():
        network = kind(settings)
    # transformers leaves the queries at zero, where all would get the same gradient and stay equal
    nn.init.normal_(network.query_tokens, std=settings.qformer_config.initializer_range)
    if tower := getattr(config, "tower", ""):
        network.vision_model = load_tower(tower, config)
    return clip_tower.add_pre_norm(network) if config.vit_model == "clip_L" else network


@contextmanager
def size_errors(key: str = "model.sizes") -> Iterator[None]:
    """Turn an error of transformers about sizes into a ConfigError."""
    way_out = f"see transformers' {'Blip2Config' if key == 'model.sizes' else 'configuration of that model'}"
    try:
        yield
    except (LavisExtError, MemoryError):
        raise
    except Exception as error:  # every model meets sizes that do not fit with an exception of its own
        raise ConfigError(key, " ".join(str(error).split()) or type(error).__name__, way_out) from error


def add_image_token(network: Any, tokenizer: Any) -> None:
    """Add the token `<image>` and its embedding where they are missing, and set its id in the configuration."""
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    if network.get_input_embeddings().num_embeddings < len(tokenizer):
        network.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    network.config.image_token_index = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)


def resize_token_embeddings(part: Any, count: int, settings: Any) -> None:
    """Grow the word embedding of a Q-Former to `count` rows; new rows are random, with the initializer's std.

    `part` is what has the embeddings, `settings` the Q-Former's configuration.
    """
    old = part.embeddings.word_embeddings
    if old.num_embeddings >= count:
        return
    new = nn.Embedding(count, old.embedding_dim, padding_idx=old.padding_idx)
    nn.init.normal_(new.weight, std=settings.initializer_range)
    with torch.no_grad():
        new.weight[: old.num_embeddings] = old.weight
    part.embeddings.word_embeddings = new
    settings.vocab_size = count


def fit_image_size(network: Any, size: int) -> Any:
    """Fit a network to images of `size`: positions of another size are interpolated (bicubic).

    Raises ConfigError for a size that is not a multiple of the patch size.
    """
    settings = network.config.vision_config
    if settings.image_size == size:
        return network
    if size % settings.patch_size:
        raise ConfigError(
            "model.image_size", f"{size} is no multiple of the patch size {settings.patch_size}", "round it"
        )
    embeddings = network.vision_model.embeddings
    grid = size // settings.patch_size
    embeddings.position_embedding = nn.Parameter(resize_positions(embeddings.position_embedding.data, grid))
    embeddings.image_size = settings.image_size = size
    embeddings.num_patches, embeddings.num_positions = grid**2, grid**2 + 1
    return network


def resize_positions(positions: Tensor, grid: int) -> Tensor:
    """[1, 1+n², D] → [1, 1+grid², D]: the class position stays, the others are interpolated as an image."""
    first, rest = positions[:, :1], positions[:, 1:]
    side = round(rest.shape[1] ** 0.5)
    image = rest.float().transpose(1, 2).reshape(1, -1, side, side)
    resized = F.interpolate(image, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([first, resized.flatten(2).transpose(1, 2).to(first.dtype)], dim=1)


def recompute(network: Any) -> None:
    """Turn on gradient checkpointing: layers recompute their activations in the backward pass."""
    # transformers 5.20 renamed the method
    enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
    enable({"use_reentrant": False})


# Loading from a folder or the hub, with our errors.

T = TypeVar("T")
OFFLINE_SWITCHES = ("LAVIS_EXT_MIRROR", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def is_offline() -> bool:
    """Whether the hub must not be used: offline, or a mirror replaces the internet."""
    return offline_from_environment() or any(os.environ.get(name, "") not in ("", "0") for name in OFFLINE_SWITCHES)


def load_config(name: str, key: str) -> Any:
    """The configuration of a model in transformers' form."""
    return _guarded(transformers.AutoConfig.from_pretrained, name, key)


def load_network(name: str, key: str, config: Any, settings: Any = None) -> Any:
    """A BLIP-2 or InstructBLIP from a folder or hub name; `key` is the config key that names it.

    Frozen towers are loaded in their own precision, so that a large one never takes fp32 memory. With `settings` only
    the weights that fit them are loaded.
    """
    towers = {"vision_config": config.vit_precision, "text_config": config.llm_precision, "": "fp32"}
    dtypes = {name: DTYPES[precision] for name, precision in towers.items()}
    partly = {"config": settings, "ignore_mismatched_sizes": True} if settings is not None else {}
    kind = network_class(settings or load_config(name, key))
    return load_weights(kind, name, key, settings is None, dtype=dtypes, **partly)


def load_retriever(name: str, key: str) -> Any:
    """Blip2ForImageTextRetrieval (the first stage) from a folder or hub name, in fp32."""
    return load_weights(transformers.Blip2ForImageTextRetrieval, name, key, dtype=DTYPES["fp32"])


def load_masked_language_model(name: str, key: str) -> Any:
    """A BERT with its word head from a folder or hub name, in fp32."""
    return load_weights(transformers.BertForMaskedLM, name, key, dtype=DTYPES["fp32"])


def load_vision_config(named: str | dict[str, Any], size: int) -> Any:
    """transformers' configuration of the tower `model.vision`, for pictures of `size` where it is made here."""
    if isinstance(named, str):
        found = load_config(named, "model.vision")
    else:
        found = config_of(named, "model.vision", image_size=size)
    return getattr(found, "vision_config", found)


def load_tower(named: str | dict[str, Any], config: Any) -> Any:
    """The tower `model.vision` with BLIP-2's norm behind it; see `towers.VisionTower`."""
    settings = load_vision_config(named, config.image_size)
    if isinstance(named, str):
        dtype = DTYPES[config.vit_precision]
        unused = towers.unused_parts(settings)
        tower = load_weights(transformers.AutoModel, named, "model.vision", unused=unused, config=settings, dtype=dtype)
    else:
        with size_errors("model.vision"):
            tower = transformers.AutoModel.from_config(settings)
    found = towers.VisionTower(tower, config.image_size, config.vision_layer, config.vision_interpolate)
    if not isinstance(named, str) or settings.model_type not in towers.TRIED:
        with size_errors("model.vision"):
            towers.require_pictures(found, config.image_size)
    return found


def config_of(given: dict[str, Any], key: str, **defaults: Any) -> Any:
    """transformers' configuration of `{model_type: …, …}`; `defaults` where it has such a key and none is given."""
    kind, sizes = str(given["model_type"]), {name: value for name, value in given.items() if name != "model_type"}
    if kind not in transformers.CONFIG_MAPPING:
        way_out = nearest(kind, transformers.CONFIG_MAPPING)
        raise ConfigError(f"{key}.model_type", f"transformers has no '{kind}'", way_out)
    with size_errors(key):
        blank = transformers.AutoConfig.for_model(kind)
        known = {name: value for name, value in defaults.items() if hasattr(blank, name)}
        return transformers.AutoConfig.for_model(kind, **{**known, **sizes})


def set_execution(network: Any, config: Any) -> None:
    """Apply `attention` and `compile`; raises ConfigError for an attention that a part, or this machine, has not."""
    tower = network.vision_model
    parts = {"tower": getattr(tower, "tower", tower), "language model": getattr(network, "language_model", None)}
    for name, part in parts.items():
        if config.attention and part is not None:
            where, way_out = "model.attention", "write sdpa or eager, or leave the key out"
            try:
                part.set_attn_implementation(config.attention)
            except (ValueError, ImportError, NotImplementedError) as error:
                raise ConfigError(where, f"{config.attention} of the {name}: {first_line(error)}", way_out) from error
            if part.config._attn_implementation != config.attention:
                raise ConfigError(where, f"a {type(part).__name__} has no {config.attention}", way_out)
    if config.compile:
        # in place, so that no name in a checkpoint changes
        for part in (tower, network.qformer, parts["language model"]):
            if part is not None:
                part.compile()


def load_embedding(name: str, key: str) -> Any:
    """The word embedding of a decoder from a folder or hub name, in fp16."""
    model = load_weights(transformers.AutoModelForCausalLM, name, key, dtype=DTYPES["fp16"])
    return model.get_input_embeddings()


def load_language_model(name: str, key: str, config: Any, language: str) -> Any:
    """A language model from a folder or hub name, in `llm_precision`; `language` is transformers' name of its kind."""
    auto = transformers.AutoModelForSeq2SeqLM if language == "t5" else transformers.AutoModelForCausalLM
    settings = load_config(name, key)
    if settings.model_type == "t5":
        settings.dense_act_fn = "gelu"  # LAVIS sets it, though Flan-T5 was trained with gelu_new
    model = load_weights(auto, name, key, dtype=DTYPES[config.llm_precision], config=settings)
    if model.config.model_type != language:
        what = f"is a '{model.config.model_type}', {config.arch} needs '{language}'"
        raise ConfigError(f"{key} {name}", what, "name another, or another model.arch")
    return model


def load_tokenizer(name: str, key: str, part: str = "") -> Any:
    """A fast tokenizer from a folder, a folder below `configs/`, or a hub name, or from a folder `part` below."""
    shipped = [root / name for root in config_roots() if (root / name / "tokenizer.json").is_file()]
    if shipped and not os.path.exists(expanded(name)):  # noqa: PTH110 - of any text, without an error
        name = str(shipped[0])
    return _guarded(transformers.AutoTokenizer.from_pretrained, name, key, **({"subfolder": part} if part else {}))


def load_weights(
    kind: Any, name: str, key: str, whole: bool = True, unused: tuple[str, ...] = (), **kwargs: Any
) -> Any:
    """A model of transformers' class `kind`; with `whole` raises IntegrityError if weights but of `unused` are missing.

    transformers itself initialises missing weights at random, with a warning.
    """
    model, found = _guarded(partial(kind.from_pretrained, output_loading_info=True), name, key, **kwargs)
    missing = sorted(one for one in found["missing_keys"] if not set(unused) & set(one.split(".")))
    if whole and missing:
        what = f"lacks {len(missing)} weights of a {type(model).__name__}: {listed(missing)}"
        raise IntegrityError(f"{key} {name}", what, "name a model of this kind, or fetch it again")
    return model


def _guarded(load: Callable[..., T], name: str, key: str, **kwargs: Any) -> T:
    folder = expanded(name)
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
        # torch's loader refuses pickled weights that would run code with an exception class of its own
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
    """The class and the first line of an exception."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__

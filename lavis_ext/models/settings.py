"""The keys of BLIP-2's `model:` sections, under LAVIS' names, and of VPGTrans' projector."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from lavis_ext.common.config.decode import LARGEST, Bound, ConfigDecoder, Count, Natural, join
from lavis_ext.common.config.schema import ModelConfig, TermConfig
from lavis_ext.common.errors import Problem, nearest
from lavis_ext.common.files import decode_json, expanded
from lavis_ext.common.names import NAMES
from lavis_ext.common.registry import objectives

log = logging.getLogger(__name__)

# Keys of losses and of distillation terms, beside `name` and `weight`.


@dataclass(frozen=True, kw_only=True)
class LossKeys:
    """A loss of BLIP-2's first stage."""


@dataclass(frozen=True, kw_only=True)
class TermKeys:
    """A term of distillation."""

    hidden: ClassVar[bool] = False
    """Whether it reads hidden states."""
    attentions: ClassVar[bool] = False
    """Whether it reads attention scores."""

    @classmethod
    def reads_layers(cls) -> bool:
        """Whether it reads more than logits."""
        return cls.hidden or cls.attentions


@dataclass(frozen=True, kw_only=True)
class HiddenKeys(TermKeys):
    """Reads hidden states."""

    hidden: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class LayerKeys(TermKeys):
    """Reads hidden states and attention scores."""

    hidden: ClassVar[bool] = True
    attentions: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class AkdKeys(TermKeys):
    """Annealing."""

    max_temperature: Count = 7
    phase: Annotated[float, Bound(0, 1, open=True)] = 0.6
    """Share of the run that it takes."""


@dataclass(frozen=True, kw_only=True)
class MgskdKeys(HiddenKeys):
    """Structure of tokens and samples."""

    heads: Count = 64
    central: Count = 20
    near: Count = 20
    token_layers: Natural = 2


@dataclass(frozen=True, kw_only=True)
class EmdKeys(LayerKeys):
    """Earth mover's distance between layers."""

    learn_weights: bool = True


Precision = Literal["fp16", "bf16", "fp32"]


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (Hu et al., arXiv:2106.09685) on a frozen language model, under peft's names."""

    r: Count = 8
    alpha: Count = 16
    dropout: Annotated[float, Bound(0, 0.99)] = 0.05
    target_modules: list[str] = field(default_factory=list)
    """Names that the adapted layers end with; empty: the projections of queries and values."""


@dataclass(frozen=True, kw_only=True)
class VisionConfig(ModelConfig):
    """Keys of both stages: vision tower, Q-Former, length of texts."""

    image_size: Count = 224
    vit_model: Literal["eva_clip_g", "clip_L"] = "eva_clip_g"
    vision: str | dict[str, Any] | None = None
    """Another vision tower: a folder or hub name, or transformers' configuration for a random one; None, or
    `eva_clip_g`: that of `vit_model`."""
    vision_layer: Annotated[int, Bound(-LARGEST, -1)] = -1
    """Which of the hidden states of `vision` the Q-Former sees; -1: the tower's output."""
    vision_interpolate: bool = False
    """Whether `vision` may see pictures of another size than its own: its positions are interpolated."""
    attention: Literal["eager", "sdpa", "flash_attention_2"] | None = None
    """How tower and language model attend; None: as transformers chooses."""
    compile: bool = False
    """Whether tower, Q-Former and language model go through torch.compile."""
    vit_precision: Precision = "fp32"
    vit_weights: str | None = None
    """The tower's where `pretrained` is a checkpoint without them: a path or URL; None: what LAVIS fetches."""
    drop_path_rate: Annotated[float, Bound(0, 0)] = 0.0
    """LAVIS' key; transformers' tower has no drop path."""
    use_grad_checkpoint: bool = False
    freeze_vit: bool = True
    num_query_token: Count = 32
    max_txt_len: Count = 32

    def problems(self, where: str = "model") -> Iterator[Problem]:
        """Problems of a trained tower in half precision, of CLIP's tower with `pretrained`, and of two towers."""
        yield from precision_problems(self.vit_precision, self.freeze_vit, "vit", where)
        loads = bool(self.load_pretrained and self.pretrained)
        if isinstance(self.vision, dict) and not self.vision.get("model_type"):
            yield Problem(f"{where}.vision.model_type", "is missing", "name transformers' kind of tower, as dinov2")
        if self.tower and (self.vit_model == "clip_L" or self.vit_weights):
            key = "vit_weights" if self.vit_weights else "vit_model"
            yield Problem(f"{where}.{key}", "names a tower, and so does model.vision", "remove one")
        if self.tower and loads and not is_checkpoint(str(self.pretrained)):
            what = f"is put before a Q-Former of {self.pretrained}, which comes with its own tower"
            way_out = "remove model.vision, or start from a checkpoint (qformer_weight_path, finetuned)"
            yield Problem(f"{where}.vision", what, way_out)
        if self.vit_model == "clip_L" and loads and not is_checkpoint(str(self.pretrained)):
            what = "clip_L is not published in transformers' form"
            way_out = "name a checkpoint of LAVIS, as blip2_pretrained_vitL.pth"
            yield Problem(f"{where}.vit_model", what, way_out)

    @property
    def tower(self) -> str | dict[str, Any]:
        """The tower that `vision` names in the place of BLIP-2's own; "" for that."""
        return "" if self.vision in (None, "eva_clip_g") else self.vision or ""

    def tower_pictures(self, fetch: bool = False) -> PictureForm | None:
        """How the tower that `vision` names was given its pictures; None where nothing says it.

        Of a hub name only what the local cache has is read, unless `fetch`.
        """
        return picture_form(self.tower, fetch) if self.tower and isinstance(self.tower, str) else None


@dataclass(frozen=True, kw_only=True)
class Blip2Config(VisionConfig):
    """BLIP-2's first stage: no language model."""

    cross_attention_freq: Count = 2
    embed_dim: Count = 256
    bert_model: str | None = None
    """The BERT that the Q-Former starts from, a folder or hub name; None: all of it is `pretrained`'s."""
    itc_gradient: Literal["local", "both"] = "local"
    """Which features the contrast trains: those of this rank's rows, the candidates are constants (LAVIS); or both."""
    losses: list[TermConfig] = field(default_factory=lambda: [TermConfig(name=name) for name in ("itc", "itm", "lm")])
    """Contrast, matching, language modelling and losses of plug-ins, each with a weight."""

    def examine(self, decoder: ConfigDecoder, key: str) -> None:
        """Note an error for no losses, a loss given twice, and a loss of something else."""
        super().examine(decoder, key)
        known = [name for name in objectives.names() if is_loss(name)]
        names = [loss.name for loss in self.losses]
        if not names:
            decoder.note(join(key, "losses"), "names none", f"known: {', '.join(known)}")
        for name in dict.fromkeys(names):
            if names.count(name) > 1:
                decoder.note(join(key, "losses"), f"'{name}' is given twice", "give it one weight")
            if name in objectives and name not in known:
                decoder.note(join(key, "losses"), f"'{name}' is not a loss of the first stage", nearest(name, known))


@dataclass(frozen=True, kw_only=True)
class Blip2LanguageConfig(VisionConfig):
    """BLIP-2's second stage, whatever its language model."""

    freeze_llm: bool = True
    llm_precision: Precision = "fp32"
    """Of a frozen language model; one that is trained stays in fp32."""
    prompt: str = ""
    end_sym: str = "\n"
    loss_mean: Literal["rank", "all"] = "rank"
    """Whose tokens a step's loss is the mean of: each rank's, and then the ranks' (upstream), or all at once."""
    apply_lemmatizer: bool = False
    only_proj: bool = False
    lora: LoraConfig | None = None
    """Adapters on the language model, which stays frozen; needs peft."""
    qformer_weight_path: str | None = None
    proj_weight_path: str | None = None

    language_key: ClassVar[str] = ""
    """The key that names the weights of the language model."""

    def problems(self, where: str = "model") -> Iterator[Problem]:
        """Those of the tower, and a trained language model in half precision or with adapters."""
        yield from super().problems(where)
        yield from precision_problems(self.llm_precision, self.freeze_llm, "llm", where)
        if self.lora and not self.freeze_llm:
            what = "adapters go on a frozen language model, and freeze_llm is False"
            yield Problem(f"{where}.lora", what, "set model.freeze_llm=True, or remove lora")


@dataclass(frozen=True, kw_only=True)
class Blip2OptConfig(Blip2LanguageConfig):
    """With OPT."""

    opt_model: str | None = None
    language_key: ClassVar[str] = "opt_model"


@dataclass(frozen=True, kw_only=True)
class Blip2T5Config(Blip2LanguageConfig):
    """With Flan-T5."""

    t5_model: str | None = None
    language_key: ClassVar[str] = "t5_model"


@dataclass(frozen=True, kw_only=True)
class Blip2LlamaConfig(Blip2LanguageConfig):
    """With LLaMA or Vicuna."""

    llama_model: str | None = None
    language_key: ClassVar[str] = "llama_model"


@dataclass(frozen=True, kw_only=True)
class Blip2InstructConfig(Blip2LanguageConfig):
    """InstructBLIP, whatever its language model."""

    max_txt_len: Count = 128
    """Of an instruction: its last tokens, for the Q-Former and for the language model each."""
    max_output_txt_len: Count = 256
    qformer_text_input: bool = True
    """Whether the Q-Former reads the instruction; False: BLIP-2's own."""
    qformer_tokenizer: str | None = None
    """Of the Q-Former, a folder or hub name; None: `qformer_tokenizer/` of `pretrained`, for a checkpoint BERT's."""

    def problems(self, where: str = "model") -> Iterator[Problem]:
        """Those of BLIP-2, and an output that has no place beside the tokens around it."""
        yield from super().problems(where)
        if self.max_output_txt_len < 2:
            what = f"{self.max_output_txt_len} leaves no token to learn: the start token counts as one"
            yield Problem(f"{where}.max_output_txt_len", what, "at least 2")


@dataclass(frozen=True, kw_only=True)
class Blip2VicunaInstructConfig(Blip2InstructConfig):
    """With Vicuna."""

    llm_model: str | None = None
    language_key: ClassVar[str] = "llm_model"


@dataclass(frozen=True, kw_only=True)
class Blip2T5InstructConfig(Blip2InstructConfig):
    """With Flan-T5."""

    t5_model: str | None = None
    num_few_shot_examples: Natural = 0
    """Of `few_shot_samples`, at most so many stand before a sample."""
    few_shot_prob: Annotated[float, Bound(0, 1)] = 0.0
    """How often any stand there."""
    language_key: ClassVar[str] = "t5_model"

    def problems(self, where: str = "model") -> Iterator[Problem]:
        """Those of InstructBLIP, and examples to draw where there are none."""
        yield from super().problems(where)
        if self.few_shot_prob and not self.num_few_shot_examples:
            what = f"{self.few_shot_prob} with num_few_shot_examples 0"
            yield Problem(f"{where}.few_shot_prob", what, "set both, or none")


@dataclass(frozen=True, kw_only=True)
class Blip2AnyConfig(Blip2LanguageConfig):
    """With any language model of transformers'."""

    llm: str | dict[str, Any] | None = None
    """A folder or hub name, or transformers' configuration for a random one: `{model_type: qwen3, hidden_size: 64}`."""
    end_sym: str = ""
    """Not read: a text ends with the tokenizer's own end token, a turn as its chat template ends it."""
    chat: bool = False
    """Whether captions and questions are turns of the tokenizer's chat template too, not bare texts."""
    max_chat_len: Count = 2048
    """Of a conversation, or a prompt and its text, with the image places, in tokens."""
    language_key: ClassVar[str] = "llm"

    def problems(self, where: str = "model") -> Iterator[Problem]:
        """Those of BLIP-2, no language model, and a random one without a tokenizer."""
        yield from super().problems(where)
        if not self.llm:
            yield Problem(f"{where}.llm", "is missing", "name a folder, a hub name, or {model_type: …} and its sizes")
        elif isinstance(self.llm, dict):
            if not self.llm.get("model_type"):
                yield Problem(f"{where}.llm.model_type", "is missing", "name transformers' kind of model, as qwen3")
            if not self.tokenizer:
                way_out = "name a folder or hub name"
                yield Problem(f"{where}.tokenizer", "is missing: a random language model has none", way_out)
        if self.end_sym:
            way_out = "remove it: the tokenizer's own end token ends a text"
            yield Problem(f"{where}.end_sym", f"is not read by {self.arch}", way_out)


@dataclass(frozen=True, kw_only=True)
class ProjectorConfig(ModelConfig):
    """VPGTrans' map from the words of one language model to those of another."""

    image_size: Count = 64
    """Size of the pictures that come with the captions; they are not used."""
    opt_model: str | None = None
    llama_model: str | None = None
    source_llm: str | dict[str, Any] | None = None
    """Any language model whose projection is to move: a folder, a hub name, or a configuration as `llm` takes it."""
    target_llm: str | dict[str, Any] | None = None
    """The one that it is to speak to."""
    source_tokenizer: str | None = None
    target_tokenizer: str | None = None
    """Where it is not `source_llm`'s or `target_llm`'s own."""
    source_weights: str | None = None
    target_weights: str | None = None
    """A checkpoint of ours whose words are taken: of a run in which that language model learnt."""
    word_map: Literal["captions", "shared"] = "captions"
    """Which words are pairs: those of captions that both tokenizers split into equally many tokens (upstream); or each
    token of a caption that both vocabularies spell alike."""
    proj_weight_path: str | None = None
    vit_precision: Precision = "fp32"
    llm_precision: Precision = "fp32"

    def problems(self, where: str = "model") -> Iterator[Problem]:
        """One of two language models without the other, and two names for one."""
        for one, other in (("source_llm", "target_llm"), ("target_llm", "source_llm")):
            if getattr(self, one) and not getattr(self, other):
                yield Problem(f"{where}.{other}", f"is missing beside {one}", "name both")
        if self.source_llm and (self.opt_model or self.llama_model):
            key = "opt_model" if self.opt_model else "llama_model"
            yield Problem(f"{where}.{key}", "is named beside source_llm and target_llm", "remove it")
        for side in ("source", "target"):
            if isinstance(getattr(self, f"{side}_llm"), dict) and not getattr(self, f"{side}_tokenizer"):
                way_out = "name a folder or hub name"
                yield Problem(f"{where}.{side}_tokenizer", "is missing: a random model has none", way_out)
        if self.source_llm and not self.proj_weight_path:
            what = "is missing: it holds the projection of source_llm"
            yield Problem(f"{where}.proj_weight_path", what, "name a checkpoint of the run that trained it")


@dataclass(frozen=True)
class PictureForm:
    """Pixels a side, mean and std of a tower's own processor; None: it does not say."""

    image_size: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None


def picture_form(name: str, fetch: bool = False) -> PictureForm | None:
    """What the processor of a folder or hub name says of its pictures; None where there is none."""
    given = next((found for file in PROCESSORS if (found := processor_keys(name, file, fetch)) is not None), None)
    if given is None:
        return None
    crop = given.get("crop_size") if given.get("do_center_crop", "crop_size" in given) else None
    size = crop or given.get("size")
    sides = [size.get(key) for key in ("height", "width", "shortest_edge")] if isinstance(size, dict) else [size]
    normal = given.get("do_normalize", True)
    side = next((one for one in sides if isinstance(one, int)), None)
    return PictureForm(side, *(numbers(given.get(f"image_{key}")) if normal else None for key in ("mean", "std")))


PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""Where transformers has a processor's keys: by themselves, or since its fifth version beside a tokenizer's."""


def processor_keys(name: str, file: str, fetch: bool) -> dict[str, Any] | None:
    """The keys of an image processor in one file of a folder or hub name; None where it has none."""
    held = expanded(name)
    if held.is_dir():
        path: Any = held / file
    else:
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        if name.count("/") != 1:
            return None
        path = try_to_load_from_cache(name, file)
        if not isinstance(path, str) and fetch and file == PROCESSORS[0]:
            try:
                path = hf_hub_download(name, file)
            except Exception as error:  # no such file, no network: the weights' own error says it better
                log.warning("model.vision %s: its processor cannot be read, nothing is compared: %s", name, error)
        if not isinstance(path, str):
            return None
    try:
        given = decode_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found = given.get("image_processor", given) if isinstance(given, dict) else None
    return (
        found if isinstance(found, dict) and any(key in found for key in ("size", "crop_size", "image_mean")) else None
    )


def numbers(value: Any) -> tuple[float, ...] | None:
    """Three numbers, or None."""
    three = isinstance(value, list) and len(value) == 3 and all(isinstance(one, int | float) for one in value)
    return tuple(float(one) for one in value) if three else None


def is_loss(name: str) -> bool:
    """Whether a registered objective is a loss of the first stage."""
    keys = objectives.config(name)
    return isinstance(keys, type) and issubclass(keys, LossKeys)


def precision_problems(precision: str, frozen: bool, part: str, where: str) -> Iterator[Problem]:
    """The problem of a trained part in half precision, if it is one."""
    if precision != "fp32" and not frozen:
        what = f"weights in {precision} cannot be trained: small updates are lost and gradients overflow"
        way_out = f"set {part}_precision: fp32 (run.amp may stay on) or freeze_{part}: True"
        yield Problem(f"{where}.{part}_precision", what, way_out)


WEIGHT_KEYS = ("pretrained", "vit_weights", "finetuned", "qformer_weight_path", "proj_weight_path")
"""Keys of model sections that may name a file of weights by its URL."""


def names_url(config: ModelConfig) -> bool:
    """Whether a model section names weights by a URL."""
    return any("://" in str(getattr(config, key, "")) for key in WEIGHT_KEYS)


def starts_random(config: ModelConfig) -> bool:
    """Whether all that learns in a model of ours is random: its section names no weights, but of frozen parts."""
    if config.arch not in NAMES["model"]:  # others' may have keys of their own for weights
        return False
    loaded = [config.load_pretrained and config.pretrained, config.load_finetuned and config.finetuned]
    loaded += [config.get(key) for key in ("qformer_weight_path", "proj_weight_path", "bert_model")]
    if isinstance(config, VisionConfig) and not config.freeze_vit:
        loaded.append(isinstance(config.tower, str) and config.tower)
    if isinstance(config, Blip2LanguageConfig) and not config.freeze_llm:
        named = config.get(config.language_key)
        loaded.append(isinstance(named, str) and named)
    return not any(loaded)


CHECKPOINTS = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")


def is_checkpoint(name: str) -> bool:
    """Whether a name means tensors to be put over a model, not a model in transformers' form: a URL, a file, a run.

    A file that does not exist is known by its suffix.
    """
    place = expanded(name)
    files = ("best.json", "latest.json", "model.safetensors")
    ours = not (place / "config.json").is_file() and any((place / file).is_file() for file in files)
    return "://" in name or place.is_file() or place.suffix.lower() in CHECKPOINTS or ours

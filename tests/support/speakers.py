"""Small random language models of many families, each with a small tokenizer in the form that its family publishes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE, Unigram

from tests.support.blip2 import SIZES

WORDS = [
    "a red circle", "two green triangles above a yellow star", "how many things are there? three", "USER: ASSISTANT:",
    "Question: what is it? Answer: a blue square, left of it nothing. user assistant system You are helpful",
    "Describe it in detail.\nI see a red circle; the star is below. yes no 1 2 3 4 [INST] [/INST]",
]  # fmt: skip
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# as Qwen 3 publishes it, without tools: thoughts stand before the last answer only, empty ones too
QWEN3 = (
    "{%- set ns = namespace(last=messages|length - 1) %}"
    "{%- for m in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}"
    "{%- if m.role == 'user' and not ns.found %}{%- set ns.found = true %}{%- set ns.last = index %}{%- endif %}"
    "{%- endfor %}"
    "{%- for m in messages %}"
    "{%- if m.role == 'assistant' and loop.index0 > ns.last %}"
    "{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + m.content.lstrip('\\n') + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


class Family(NamedTuple):
    """How a family publishes its tokenizer and sizes: special tokens, what it puts around a text, its template."""

    kind: str
    form: str
    special: tuple[str, ...] = ()
    bos: str | None = None
    eos: str = "</s>"
    pad: str | None = None
    around: tuple[str | None, str | None] = (None, None)
    template: str | None = None
    sizes: Mapping[str, Any] = MappingProxyType({})


def decoder_sizes(**own: Any) -> dict[str, Any]:
    """The usual sizes of a decoder."""
    usual = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return {**usual, "max_position_embeddings": 256, "initializer_range": 0.2, **own}


GROUPED = {"num_key_value_heads": 2}
IM = ("<|im_start|>", "<|im_end|>")
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
FAMILIES = {
    "qwen2": Family("qwen2", "bytes", ("<|endoftext|>", *IM), None, "<|im_end|>", "<|endoftext|>",
                    template=CHATML, sizes=decoder_sizes(**GROUPED, tie_word_embeddings=True)),
    "qwen3": Family("qwen3", "bytes", ("<|endoftext|>", *IM), None, "<|im_end|>", "<|endoftext|>",
                    template=QWEN3, sizes=decoder_sizes(**GROUPED, head_dim=8)),
    "llama3": Family("llama", "bytes", ("<|begin_of_text|>", "<|end_of_text|>", *HEADERS), "<|begin_of_text|>",
                     "<|eot_id|>", None, ("<|begin_of_text|>", None), LLAMA3, decoder_sizes(**GROUPED)),
    "mistral": Family("mistral", "pieces", ("<unk>", "<s>", "</s>"), "<s>", "</s>", None, ("<s>", None), MISTRAL,
                      decoder_sizes(**GROUPED, sliding_window=None)),
    "gemma": Family("gemma", "joined", ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
                    "<bos>", "<eos>", "<pad>", ("<bos>", None), GEMMA, decoder_sizes(**GROUPED, head_dim=8)),
    "phi": Family("phi", "bytes", ("<|endoftext|>",), "<|endoftext|>", "<|endoftext|>", None, sizes=decoder_sizes()),
    "opt": Family("opt", "bytes", ("<s>", "<pad>", "</s>"), "</s>", "</s>", "<pad>", ("</s>", None),
                  sizes={"hidden_size": 32, "word_embed_proj_dim": 16, "ffn_dim": 48, "num_hidden_layers": 2,
                         "num_attention_heads": 4, "max_position_embeddings": 256, "init_std": 0.2, "dropout": 0.0}),
    "gpt_neox": Family("gpt_neox", "bytes", ("<|endoftext|>", "<|padding|>"), "<|endoftext|>", "<|endoftext|>", None,
                       sizes=decoder_sizes()),
    "gpt2": Family("gpt2", "bytes", ("<|endoftext|>",), "<|endoftext|>", "<|endoftext|>", None,
                   sizes={"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.2,
                          "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
    "t5": Family("t5", "unigram", ("<pad>", "</s>", "<unk>"), None, "</s>", "<pad>", (None, "</s>"),
                 sizes={"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0,
                        "initializer_factor": 2.0}),
    "bart": Family("bart", "bytes", ("<s>", "<pad>", "</s>", "<unk>", "<mask>"), "<s>", "</s>", "<pad>",
                   ("<s>", "</s>"),
                   sizes={"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48,
                          "decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
                          "max_position_embeddings": 256, "init_std": 0.2, "dropout": 0.0, "scale_embedding": True}),
}  # fmt: skip
DECODERS = [name for name in FAMILIES if name not in ("t5", "bart")]


def tokenizer_of(name: str) -> Any:
    """The family's tokenizer, trained on a few words.

    `bytes`: byte-level BPE. `pieces`: SentencePiece's BPE as Llama 2 and Mistral have it, a space before every text.
    `joined`: the same without that space, as Gemma. `unigram`: SentencePiece's unigrams, as T5.
    """
    family = FAMILIES[name]
    special = list(family.special)
    keys = {"special_tokens": special, "show_progress": False}
    if family.form == "unigram":
        inner = Tokenizer(Unigram())
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        inner.train_from_iterator(WORDS * 4, trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>", **keys))
    elif family.form == "bytes":
        inner = Tokenizer(BPE())
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        inner.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=360, initial_alphabet=alphabet, **keys))
    else:
        inner = Tokenizer(BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        spaced = [normalizers.Prepend("▁")] if family.form == "pieces" else []
        inner.normalizer = normalizers.Sequence([*spaced, normalizers.Replace(" ", "▁")])
        # trained word by word, so that no piece crosses a space, as SentencePiece trains
        bytes_too = [f"<0x{n:02X}>" for n in range(256)]
        words = [f"▁{word}" for text in WORDS for word in text.split()]
        trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=[*special, *bytes_too], show_progress=False)
        learner = Tokenizer(BPE(unk_token="<unk>"))
        learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        learner.train_from_iterator(words, trainer)
        state = json.loads(learner.to_str())["model"]
        merges = [tuple(pair) for pair in state["merges"]]
        inner.model = BPE(state["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
        inner.add_special_tokens([AddedToken(one, normalized=False) for one in special])
        strip = [decoders.Strip(" ", 1, 0)] if family.form == "pieces" else []
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        inner.decoder = decoders.Sequence(parts)
    before, after = family.around
    if before or after:
        single = " ".join(one for one in (before, "$A", after) if one)
        used = [(one, inner.token_to_id(one)) for one in (before, after) if one]
        inner.post_processor = processors.TemplateProcessing(single=single, special_tokens=used)
    named = {"bos_token": family.bos, "eos_token": family.eos, "pad_token": family.pad}
    unk = {"unk_token": "<unk>"} if "<unk>" in special else {}
    others = [one for one in special if one not in (*named.values(), "<unk>")]
    keys = {key: value for key, value in {**named, **unk}.items() if value}
    found = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, extra_special_tokens=others, **keys)
    if family.template:
        found.chat_template = family.template
    return found


def speaker_keys(name: str, folder: Path, **changes: Any) -> dict[str, Any]:
    """A model section over a random language model of the family; its tokenizer is saved below `folder`."""
    place = folder / f"tokenizer-{name}"
    if not place.is_dir():
        tokenizer_of(name).save_pretrained(place)
    sizes = {part: SIZES[part] for part in ("vision_config", "qformer_config")}
    family = FAMILIES[name]
    return {
        "arch": "blip2_causal" if name in DECODERS else "blip2_seq2seq",
        "model_type": "tiny",
        "image_size": 16,
        "num_query_token": 4,
        "max_txt_len": 32,
        "load_pretrained": False,
        "tokenizer": str(place),
        "llm": {"model_type": family.kind, **family.sizes},
        "sizes": sizes,
        "freeze_vit": False,
        "freeze_llm": False,
        **changes,
    }


def speaker(name: str, folder: Path, seed: int = 0, **changes: Any) -> Any:
    """The model of `speaker_keys`, in eval mode; the same seed gives the same weights."""
    from lavis_ext.common.registry import models
    from lavis_ext.models.settings import Blip2AnyConfig

    keys = speaker_keys(name, folder, **changes)
    torch.manual_seed(seed)
    return models.get(keys["arch"]).from_config(Blip2AnyConfig(**keys)).eval()

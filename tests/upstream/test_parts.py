"""A Q-Former and a tower that `Blip2Base` builds one by one equal those of our models with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lavis_ext.common.errors import ConfigError, IntegrityError
from lavis_ext.models import parts, zoo
from lavis_ext.models.blip2 import Blip2Base
from lavis_ext.models.settings import Blip2Config
from lavis_ext.models.weights import save_upstream, to_upstream, write_upstream
from tests.upstream import reference

SIZES: dict[str, Any] = {
    "vision_config": {**reference.VISION, "initializer_range": 0.2},
    "qformer_config": {**reference.QFORMER, "initializer_range": 0.2},
}
PROMPTS = ["a man on a bus", "two birds", "red"]


class Parts(Blip2Base):
    """What LAVIS' first stage holds, under its names."""

    vit_weights = None

    def __init__(self, words: int, pad: int, tower: str, sizes: dict[str, Any]) -> None:
        super().__init__()
        self.vit_config = sizes["vision_config"]
        self.visual_encoder, self.ln_vision = self.init_vision_encoder(tower, 32, 0, False, "fp32")
        settings = parts.transformers.BertConfig(vocab_size=words, pad_token_id=pad, **sizes["qformer_config"])
        self.Qformer = parts.Qformer(parts.qformer_config(settings, 6, self.visual_encoder.num_features, 2))
        self.query_tokens = nn.Parameter(torch.zeros(1, 6, settings.hidden_size))
        self.vision_proj, self.text_proj = nn.Linear(settings.hidden_size, 32), nn.Linear(settings.hidden_size, 32)
        self.itm_head, self.temp = nn.Linear(settings.hidden_size, 2), nn.Parameter(torch.ones([]))

    def seen(self, images: Tensor, ids: Tensor, mask: Tensor, start: int) -> dict[str, Tensor]:
        """Each way to read of LAVIS' first stage."""
        embeds = self.ln_vision(self.visual_encoder(images))
        queries = self.query_tokens.expand(len(images), -1, -1)
        both = torch.cat([mask.new_ones(len(mask), queries.shape[1]), mask], dim=1)
        picture = {"encoder_hidden_states": embeds, "encoder_attention_mask": embeds.new_ones(embeds.shape[:2])}
        asked = self.Qformer.bert(query_embeds=queries, **picture, use_cache=True)
        opened = torch.cat([torch.full_like(ids[:, :1], start), ids[:, 1:]], dim=1)
        past = self.Qformer(opened, attention_mask=both, past_key_values=asked.past_key_values)
        fused = self.Qformer.bert(ids, both, query_embeds=queries, **picture).last_hidden_state
        return {
            "embeds": embeds,
            "asked": asked.last_hidden_state,
            "read": self.Qformer.bert(ids, attention_mask=mask).last_hidden_state,
            "fused": fused[:, : queries.shape[1]],
            "written behind the past": past.logits,
            "written": self.Qformer(opened, both, query_embeds=queries, **picture).logits,
        }


@pytest.mark.parametrize("tower", ["eva_clip_g", "clip_L"])
def test_parts_equal_our_models(tower: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    keys: dict[str, Any] = {"arch": "blip2", "model_type": "tiny", "load_pretrained": False, "image_size": 32}
    keys |= {"num_query_token": 6, "embed_dim": 32, "cross_attention_freq": 2, "freeze_vit": False, "vit_model": tower}
    keys["tokenizer"] = "models/blip2_opt/tokenizer-tiny"
    ours = zoo.build_model(Blip2Config(**keys, sizes=SIZES)).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.ndim == 1:  # biases and norms say something too
                parameter.add_(torch.randn_like(parameter) / 10)
        if tower == "eva_clip_g":  # EVA has no bias of the keys
            for layer in ours.net.vision_model.encoder.layers:
                layer.self_attn.qkv.bias.view(3, -1)[1] = 0
    write_upstream(ours, tmp_path / "theirs.pth")
    mine = Parts(len(ours.tokenizer), ours.tokenizer.pad_token_id, tower, SIZES).eval()
    mine.load_checkpoint(str(tmp_path / "theirs.pth"))
    images, texts = torch.rand(3, 3, 32, 32), ours.encode(PROMPTS)
    with torch.no_grad():
        found = mine.seen(images, texts.ids, texts.mask, ours.tokenizer.bos_token_id)
        embeds = ours.encode_image({"image": images})
        asked, logits = ours.caption_logits(embeds, texts)
    wanted = {"embeds": embeds, "asked": asked, "read": ours.encode_text(texts), "fused": ours.fuse(embeds, texts)}
    wanted |= {"written": logits, "written behind the past": logits}
    shown = texts.mask.bool()
    for name, value in wanted.items():
        rows = (found[name][shown], value[shown]) if "writ" in name or name == "read" else (found[name], value)
        torch.testing.assert_close(*rows, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_of_tied_words_and_another_grid(tmp_path: Path) -> None:
    """LAVIS saves the head twice; positions of another image size are interpolated; a copy that differs is refused."""
    torch.manual_seed(3)
    first, other = (Parts(50, 0, "eva_clip_g", SIZES) for _ in range(2))
    state = dict(first.state_dict())
    index = {"Qformer.bert.embeddings.position_ids": torch.arange(64)[None]}
    assert "Qformer.cls.predictions.decoder.weight" in state and not set(index) & set(state)
    save_upstream(state | index, tmp_path / "ours.pth")
    other.load_checkpoint(str(tmp_path / "ours.pth"))
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in state.items())
    head = "Qformer.cls.predictions.decoder.weight"
    save_upstream({**state, head: state[head] + 1}, tmp_path / "torn.pth")
    with pytest.raises(IntegrityError):
        other.load_checkpoint(str(tmp_path / "torn.pth"))
    held = {name.replace("visual_encoder.", "net."): tensor for name, tensor in state.items()}
    theirs = to_upstream({n: t for n, t in held.items() if n.startswith("net.vision_model.")})
    theirs["visual_encoder.pos_embed"] = torch.randn(1, 1 + 3 * 3, 64)
    save_upstream(theirs, tmp_path / "tower.pth")
    left = other.load_from_pretrained(str(tmp_path / "tower.pth"))
    assert not left.unexpected_keys and all(not name.startswith("visual_encoder") for name in left.missing_keys)
    assert other.visual_encoder.vision_model.embeddings.position_embedding.shape[1] == 1 + 4 * 4
    found = other.load_state_dict(theirs | index | {"visual_encoder.pos_embed": torch.randn(1, 17, 64)}, strict=False)
    assert not found.unexpected_keys
    parts.load_tower(other.visual_encoder, "eva_clip_g", str(tmp_path / "tower.pth"))


def test_what_a_tower_cannot_be() -> None:
    model = Blip2Base()
    for name, path, precision in (("eva2_clip_L", 0, "fp32"), ("eva_clip_g", 0.4, "fp32"), ("clip_L", 0, "int8")):
        with pytest.raises(ConfigError):
            model.init_vision_encoder(name, 32, path, False, precision)


@pytest.mark.skipif(reference.MISSING, reason=reference.REASON)
def test_parts_equal_upstream() -> None:
    """The first stage that LAVIS saved: its losses of the texts and its matching scores."""
    ours = reference.model("stage1")
    mine = Parts(len(ours.tokenizer), ours.tokenizer.pad_token_id, "eva_clip_g", {**SIZES}).eval()
    mine.load_checkpoint(str(reference.FOLDER / "blip2" / "stage1.pth"))
    texts, images = ours.encode(PROMPTS), reference.images()[:3]
    with torch.no_grad():
        found = mine.seen(images, texts.ids, texts.mask, ours.tokenizer.bos_token_id)
        embeds = ours.encode_image({"image": images})
        logits = ours.caption_logits(embeds, texts)[1]
    shown = texts.mask.bool()
    torch.testing.assert_close(found["written"][shown], logits[shown], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["fused"], ours.fuse(embeds, texts), rtol=1e-4, atol=1e-5)

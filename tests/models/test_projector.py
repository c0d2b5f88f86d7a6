"""The map between two language models' words, and the projection that it makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from lavis_ext.common.errors import ConfigError, IntegrityError
from lavis_ext.models.projector import Projector
from lavis_ext.models.settings import ProjectorConfig
from tests.support.blip2 import TEXT_SIZES, small_batch, small_model, small_of
from tests.support.speakers import speaker

SIZES: dict[str, dict[str, Any]] = {"source": {"hidden_size": 32}, "target": {"hidden_size": 32}}
SIZES["queries"] = {"hidden_size": 32}
CONFIG = ProjectorConfig(
    arch="vpgtrans_projector", model_type="tiny", tokenizer="models/blip2_opt/tokenizer-tiny", sizes=SIZES
)


def projector(seed: int = 0, **changes: Any) -> Projector:
    torch.manual_seed(seed)
    return Projector.from_config(replace(CONFIG, **changes))


def test_the_loss_is_one_less_the_cosine_of_the_words() -> None:
    model = projector()
    texts = ["a red circle", "two green"]
    ids = torch.tensor([i for row in model.tokenizers[0](texts, add_special_tokens=False)["input_ids"] for i in row])
    source, target = model.source.weight.double()[ids], model.target.weight.double()[ids]
    mapped = source @ model.map.weight.double().T + model.map.bias.double()
    found = model({"text_input": texts})
    assert found["loss"].item() == pytest.approx(1 - cosine_similarity(mapped, target).mean().item(), abs=1e-6)
    assert found["matched"].item() == 1.0


def test_only_captions_that_are_cut_alike_count() -> None:
    model = projector()
    plain = model.tokenizers[0]

    def cut_further(texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        found = plain(texts, add_special_tokens=add_special_tokens)["input_ids"]
        return {"input_ids": [row if "red" in text else [*row, 5] for row, text in zip(found, texts, strict=True)]}

    model.tokenizers = (plain, cut_further)
    assert model({"text_input": ["a red circle", "two"]})["matched"].item() == 0.5
    lost = model({"text_input": ["two", "three"]})
    lost["loss"].backward()
    assert (lost["loss"].item(), lost["matched"].item()) == (0.0, 0.0)


def test_it_learns_and_only_the_map() -> None:
    model, batch = projector(), {"text_input": ["a red circle above two green stars", "a blue square"]}
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"map.weight", "map.bias"}
    optimizer = torch.optim.AdamW(model.optimizer_params(0.0), lr=1e-2)
    first = model(batch)["loss"].item()
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(batch)["loss"]
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3 * first


def test_its_checkpoint_is_the_projection_of_the_next_model(tmp_path: Path) -> None:
    source = small_model(5)
    torch.save({"model": source.trainable_state()}, tmp_path / "opt.pth")
    model = projector(proj_weight_path=str(tmp_path / "opt.pth"))
    torch.save({"model": model.trainable_state()}, tmp_path / "step0.pth")
    target = small_of("blip2_llama", 1, proj_weight_path=str(tmp_path / "step0.pth"))
    queries = torch.randn(3, 32)
    torch.testing.assert_close(
        target.net.language_projection(queries),
        model.map(source.net.language_projection(queries)),
        rtol=1e-4,
        atol=1e-4,
    )
    other = projector(3)
    other.load_trainable_state(model.trainable_state())
    assert torch.equal(other.map.weight, model.map.weight)
    with pytest.raises(IntegrityError, match=r"missing: projection\.bias, projection\.weight"):
        torch.save({"model": {"net.query_tokens": torch.zeros(1)}}, tmp_path / "none.pth")
        projector(proj_weight_path=str(tmp_path / "none.pth"))


def test_from_models_in_folders(tmp_path: Path) -> None:
    source = small_model(5)
    tokenizer = source.text.tokenizer
    source.net.save_pretrained(tmp_path / "blip2")
    tokenizer.save_pretrained(tmp_path / "blip2")
    kinds: list[tuple[str, Any]] = [
        ("opt", OPTForCausalLM(OPTConfig(**TEXT_SIZES["blip2_opt"], vocab_size=len(tokenizer)))),
        ("llama", LlamaForCausalLM(LlamaConfig(**TEXT_SIZES["blip2_llama"], vocab_size=len(tokenizer)))),
    ]
    for name, model in kinds:
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    places = {"opt_model": str(tmp_path / "opt"), "llama_model": str(tmp_path / "llama")}
    found = projector(pretrained=str(tmp_path / "blip2"), sizes={}, tokenizer=None, **places)
    assert torch.equal(found.projection.weight, source.net.language_projection.weight)
    torch.testing.assert_close(
        found.target.weight.float(), kinds[1][1].get_input_embeddings().weight, atol=1e-3, rtol=1e-3
    )
    assert torch.isfinite(found(small_batch(2))["loss"])
    with pytest.raises(ConfigError, match="between which models"):
        projector(sizes={})


def test_between_any_two_by_the_words_that_both_have(tmp_path: Path) -> None:
    source, target = speaker("qwen3", tmp_path, 3), speaker("t5", tmp_path, 4)
    for name, model in (("source", source), ("target", target)):
        torch.save({"model": model.trainable_state()}, tmp_path / f"{name}.pth")
    keys: dict[str, Any] = {"proj_weight_path": str(tmp_path / "source.pth"), "word_map": "shared", "sizes": {}}
    for name, model in (("source", source), ("target", target)):
        sides = {"llm": model.config.llm, "tokenizer": model.config.tokenizer, "weights": str(tmp_path / f"{name}.pth")}
        keys |= {f"{name}_{key}": value for key, value in sides.items()}
    model = projector(5, tokenizer=None, **keys)
    words = [one.net.language_model.get_input_embeddings().weight for one in (source, target)]
    assert torch.equal(model.source.weight, words[0])
    assert torch.equal(model.target.weight, words[1])
    # one vocabulary writes the space before a word as Ġ, the other as ▁
    bytes_of, pieces = (one.text.tokenizer for one in (source, target))
    assert model.shared[bytes_of.convert_tokens_to_ids("Ġa")] == pieces.convert_tokens_to_ids("▁a")
    assert not set(bytes_of.all_special_ids) & set(model.shared)
    loss = model(small_batch(2))["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    torch.save({"model": model.trainable_state()}, tmp_path / "step0.pth")
    moved = speaker("t5", tmp_path, 6, qformer_weight_path=str(tmp_path / "source.pth"), only_proj=True,
                    proj_weight_path=str(tmp_path / "step0.pth"), freeze_llm=True, freeze_vit=True)  # fmt: skip
    queries = torch.randn(3, 32)
    wanted = model.map(source.net.language_projection(queries))
    torch.testing.assert_close(moved.net.language_projection(queries), wanted, rtol=1e-4, atol=1e-4)
    assert {name for name, one in moved.named_parameters() if one.requires_grad} == {
        "net.language_projection.weight", "net.language_projection.bias"}  # fmt: skip


@pytest.mark.parametrize("change", [{"target_llm": None}, {"proj_weight_path": None}, {"source_tokenizer": None}])
def test_half_a_transfer_is_refused(change: dict[str, Any]) -> None:
    keys: dict[str, Any] = {"source_llm": {"model_type": "qwen3"}, "target_llm": {"model_type": "t5"}}
    keys |= {"proj_weight_path": "x", "source_tokenizer": "y", "target_tokenizer": "y", **change}
    with pytest.raises(ConfigError):
        projector(**keys)

"""Where weights come from: folders, the hub that is not there, checkpoints of ours and of LAVIS, and files that lie."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lavis_ext.common.errors import ConfigError, DiskError, IntegrityError, LavisExtError, NetworkError, UnsafeError
from lavis_ext.models.base_model import BaseModel
from lavis_ext.models.language import Blip2Opt
from lavis_ext.models.network import resize_positions
from lavis_ext.models.weights import load_over, read_checkpoint, to_upstream, translate, write_upstream
from tests.support.blip2 import CONFIG, SIZES, TEXT_SIZES, small_batch, small_model, small_of


def saved(folder: Path, seed: int = 5) -> Blip2Opt:
    """A model, and its copy in transformers' form."""
    model = small_model(seed)
    model.net.save_pretrained(folder)
    model.text.tokenizer.save_pretrained(folder)
    return model


def pretrained(folder: Path, **changes: Any) -> Blip2Opt:
    return small_model(9, pretrained=str(folder), sizes={}, tokenizer=None, **changes)


def test_a_folder_in_transformers_form(tmp_path: Path) -> None:
    source, found = saved(tmp_path), pretrained(tmp_path)
    assert all(torch.equal(found.state_dict()[name], tensor) for name, tensor in source.state_dict().items())
    # a tensor of a file begins at any multiple of 8 bytes, one of torch at 64: kernels may sum in another order
    torch.testing.assert_close(found(small_batch())["loss"], source(small_batch())["loss"])


def test_frozen_towers_are_read_in_their_own_precision(tmp_path: Path) -> None:
    saved(tmp_path)
    model = pretrained(tmp_path, freeze_vit=True, freeze_llm=True, vit_precision="bf16", llm_precision="fp16")
    towers = (
        model.net.vision_model.encoder,
        model.net.language_model,
        model.net.qformer,
        model.net.language_projection,
    )
    assert [next(t.parameters()).dtype for t in towers] == [torch.bfloat16, torch.float16, torch.float32, torch.float32]
    assert model.net.query_tokens.dtype == torch.float32


def test_a_tokenizer_without_an_image_token_gets_one_and_the_embedding_a_row(tmp_path: Path) -> None:
    model = saved(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace("<image>", "<i>"))
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace("<image>", "<i>"))
    found = pretrained(tmp_path)
    assert found.net.config.image_token_index == found.net.get_input_embeddings().num_embeddings - 1
    assert found(small_batch())["loss"].item() == pytest.approx(model(small_batch())["loss"].item(), abs=1e-2)


def test_another_image_size_interpolates_the_positions(tmp_path: Path) -> None:
    saved(tmp_path)
    model = pretrained(tmp_path, image_size=32)
    batch = {**small_batch(2), "image": torch.randn(2, 3, 32, 32)}
    assert torch.isfinite(model(batch)["loss"])
    with pytest.raises(ConfigError, match="patch size 8"):
        pretrained(tmp_path, image_size=30)


def test_positions_of_a_flat_image_stay_flat() -> None:
    positions = torch.cat([torch.full((1, 1, 3), 7.0), torch.full((1, 4, 3), 2.0)], dim=1)
    fitted = resize_positions(positions, 5)
    assert fitted.shape == (1, 26, 3)
    torch.testing.assert_close(fitted, torch.cat([positions[:, :1], torch.full((1, 25, 3), 2.0)], dim=1))


def test_what_is_not_there_is_named_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"model.pretrained.*no folder"):
        pretrained(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LavisExtError, match=r"model\.pretrained .*empty"):
        pretrained(tmp_path / "empty")
    monkeypatch.setenv("LAVIS_EXT_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(NetworkError, match=r"offline; .*--local-dir DIR") as caught:
        small_model(pretrained="nobody/no-such-model")
    assert caught.value.exit_code == 4


def test_damaged_weights_are_an_integrity_error(tmp_path: Path) -> None:
    saved(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match="again"):
        pretrained(tmp_path)


class Mine:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_folder_without_some_weights_is_an_integrity_error(tmp_path: Path) -> None:
    saved(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    gone = [name for name in tensors if name.startswith("qformer.") and name.endswith("output.dense.weight")]
    save_file({name: tensor for name, tensor in tensors.items() if name not in gone}, file, {"format": "pt"})
    with pytest.raises(IntegrityError, match=f"lacks {len(gone)} weights of a Blip2ForConditionalGeneration: qformer"):
        pretrained(tmp_path)


@pytest.mark.fault("D08")
def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    trace, file = tmp_path / "trace", tmp_path / "model.pth"
    torch.save({"model": {"a": torch.zeros(1)}, "extra": Mine(trace)}, file)
    with pytest.raises(UnsafeError, match="more than tensors"):
        read_checkpoint(str(file), "model.finetuned")
    saved(tmp_path / "folder")
    (tmp_path / "folder" / "model.safetensors").unlink()
    (tmp_path / "folder" / "pytorch_model.bin").write_bytes(pickle.dumps(Mine(trace)))
    with pytest.raises(LavisExtError):
        pretrained(tmp_path / "folder")
    assert not trace.exists()


def test_finetuned_weights_of_ours_and_of_transformers(tmp_path: Path) -> None:
    source = saved(tmp_path / "theirs")
    (tmp_path / "checkpoint_7").mkdir()
    save_file(source.trainable_state(), tmp_path / "checkpoint_7" / "model.safetensors")
    for path in ("theirs", "checkpoint_7", "checkpoint_7/model.safetensors"):
        model = small_model(1, load_finetuned=True, finetuned=str(tmp_path / path))
        assert torch.equal(model.net.query_tokens, source.net.query_tokens)
    with pytest.raises(ConfigError, match=r"model\.finetuned .*no such"):
        small_model(load_finetuned=True, finetuned=str(tmp_path / "gone"))
    (tmp_path / "bare").mkdir()
    with pytest.raises(ConfigError, match="safetensors in the folder"):
        small_model(load_finetuned=True, finetuned=str(tmp_path / "bare"))


def upstream(model: BaseModel) -> dict[str, torch.Tensor]:
    """The weights of a model as LAVIS' checkpoints have them, and a text layer that they carry along."""
    shared = {"Qformer.cls.predictions.decoder.weight": torch.zeros(1), "Qformer.cls.predictions.bias": torch.zeros(3)}
    return {**to_upstream({n: t.clone() for n, t in model.trainable_state().items()}), **shared}


def test_parts_of_a_lavis_checkpoint(tmp_path: Path) -> None:
    source = small_model(2)
    torch.save({"model": upstream(source)}, tmp_path / "blip2.pth")
    path = str(tmp_path / "blip2.pth")
    model = small_model(3, qformer_weight_path=path)
    fresh = small_model(3)
    same = {n for n, t in model.state_dict().items() if torch.equal(t, source.state_dict()[n])}
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, fresh.state_dict()[n])}
    assert {n for n in model.state_dict() if n.startswith("net.qformer.encoder")} <= same
    assert {"net.query_tokens"} <= changed
    assert not [n for n in changed if n.startswith("net.language")]
    # the tower that the queries were trained with comes along
    assert {n for n in model.state_dict() if n.startswith("net.vision_model.encoder")} <= same
    model = small_model(3, proj_weight_path=path)
    assert torch.equal(model.net.language_projection.weight, source.net.language_projection.weight)
    assert torch.equal(model.net.query_tokens, fresh.net.query_tokens)


def test_a_part_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    state = upstream(small_model(2))
    del state["query_tokens"]
    torch.save(state, tmp_path / "half.pth")
    with pytest.raises(IntegrityError, match=r"qformer_weight_path .*missing: net.query_tokens"):
        small_model(qformer_weight_path=str(tmp_path / "half.pth"))
    torch.save({"model": {}}, tmp_path / "none.pth")
    with pytest.raises(IntegrityError, match="no tensors"):
        read_checkpoint(str(tmp_path / "none.pth"), "key")
    (tmp_path / "bad.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(IntegrityError, match="again"):
        read_checkpoint(str(tmp_path / "bad.safetensors"), "key")
    (tmp_path / "bad.pth").write_bytes(b"<html>404</html>")
    with pytest.raises(LavisExtError):
        read_checkpoint(str(tmp_path / "bad.pth"), "key")


def test_names_of_ours_are_left_alone() -> None:
    state = {"net.a": torch.zeros(1), "temp": torch.zeros(())}
    assert set(translate(state)) == set(state)
    assert CONFIG.arch == "blip2_opt"


THEIRS, OURS = "Qformer.bert.encoder.layer", "net.qformer.encoder.layer"
NAMES = {
    "visual_encoder.cls_token": "net.vision_model.embeddings.class_embedding",
    "visual_encoder.pos_embed": "net.vision_model.embeddings.position_embedding",
    "visual_encoder.patch_embed.proj.bias": "net.vision_model.embeddings.patch_embedding.bias",
    "visual_encoder.blocks.38.norm1.weight": "net.vision_model.encoder.layers.38.layer_norm1.weight",
    "visual_encoder.blocks.0.attn.qkv.weight": "net.vision_model.encoder.layers.0.self_attn.qkv.weight",
    "visual_encoder.blocks.0.attn.proj.bias": "net.vision_model.encoder.layers.0.self_attn.projection.bias",
    "visual_encoder.blocks.0.mlp.fc2.weight": "net.vision_model.encoder.layers.0.mlp.fc2.weight",
    "ln_vision.bias": "net.vision_model.post_layernorm.bias",
    "query_tokens": "net.query_tokens",
    "Qformer.bert.embeddings.LayerNorm.weight": "net.qformer.layernorm.weight",
    "Qformer.bert.embeddings.word_embeddings.weight": "net.embeddings.word_embeddings.weight",
    f"{THEIRS}.0.attention.self.query.weight": f"{OURS}.0.attention.attention.query.weight",
    f"{THEIRS}.0.crossattention.output.dense.bias": f"{OURS}.0.crossattention.output.dense.bias",
    f"{THEIRS}.11.output_query.LayerNorm.bias": f"{OURS}.11.output_query.LayerNorm.bias",
    f"{THEIRS}.11.intermediate.dense.bias": f"{OURS}.11.intermediate.dense.bias",
    "llama_proj.weight": "net.language_projection.weight",
    "llama_model.lm_head.weight": "net.language_model.lm_head.weight",
    "vision_proj.weight": "net.vision_projection.weight",
    "text_proj.bias": "net.text_projection.bias",
    "itm_head.bias": "net.itm_head.bias",
    "Qformer.cls.predictions.transform.LayerNorm.weight": "lm_head.norm.weight",
    "Qformer.cls.predictions.bias": "lm_head.bias",
    "temp": "temp",
}  # fmt: skip


def test_the_names_of_lavis_there_and_back() -> None:
    state = {name: torch.randn(2) for name in NAMES}
    found = translate(state)
    assert {name: found[ours] is state[name] for name, ours in NAMES.items()} == dict.fromkeys(NAMES, True)
    assert set(to_upstream(found, "llama")) == set(NAMES)
    with pytest.raises(IntegrityError, match=r"net\.strange: has no name"):
        to_upstream({"net.strange": torch.zeros(1)})


def test_biases_of_queries_and_values_are_joined_and_parted() -> None:
    prefix = "visual_encoder.blocks.3.attn."
    state = {f"{prefix}q_bias": torch.ones(2), f"{prefix}v_bias": torch.full((2,), 2.0)}
    found = translate(state)
    assert found["net.vision_model.encoder.layers.3.self_attn.qkv.bias"].tolist() == [1, 1, 0, 0, 2, 2]
    assert {n: t.tolist() for n, t in to_upstream(found).items()} == {n: t.tolist() for n, t in state.items()}
    with pytest.raises(IntegrityError, match="only one of"):
        translate({f"{prefix}q_bias": torch.ones(2)})


def test_a_name_that_nobody_explains_is_an_error() -> None:
    with pytest.raises(IntegrityError, match=r"1 names .*: visual_encoder\.head\.weight"):
        translate({"query_tokens": torch.zeros(1), "visual_encoder.head.weight": torch.zeros(1)})


def test_a_whole_lavis_checkpoint_as_finetuned(tmp_path: Path) -> None:
    source = small_model(2, freeze_llm=True)
    torch.save({"model": upstream(source), "epoch": 4}, tmp_path / "blip2.pth")
    model = small_model(3, freeze_llm=True, load_finetuned=True, finetuned=str(tmp_path / "blip2.pth"))
    trained = source.trainable_state()
    assert all(
        torch.equal(model.state_dict()[name], tensor) for name, tensor in trained.items() if "qkv.bias" not in name
    )
    half = {name: tensor for name, tensor in upstream(source).items() if name != "opt_proj.bias"}
    torch.save({"model": half}, tmp_path / "half.pth")
    with pytest.raises(IntegrityError, match=r"missing: net\.language_projection\.bias"):
        small_model(3, freeze_llm=True, load_finetuned=True, finetuned=str(tmp_path / "half.pth"))


def test_what_is_written_for_lavis_is_read_again(tmp_path: Path) -> None:
    source = small_model(2, freeze_llm=True)
    write_upstream(source, tmp_path / "blip2.pth")
    tree = torch.load(tmp_path / "blip2.pth", weights_only=True)
    assert {"query_tokens", "opt_proj.weight", "visual_encoder.pos_embed"} <= set(tree["model"])
    model = small_model(3, freeze_llm=True, load_finetuned=True, finetuned=str(tmp_path / "blip2.pth"))
    assert torch.equal(model.net.query_tokens, source.net.query_tokens)
    with pytest.raises(DiskError):
        write_upstream(source, tmp_path / "nowhere" / "blip2.pth")


def test_a_checkpoint_that_is_not_finite_is_refused_whole(tmp_path: Path) -> None:
    source, model = small_model(2), small_model(3)
    state = {name: tensor.detach().clone() for name, tensor in source.trainable_state().items()}
    state["net.query_tokens"][0, 0, 0] = float("nan")
    before = model.net.language_projection.weight.clone()
    with pytest.raises(IntegrityError, match=r"1 tensors are not finite: net\.query_tokens"):
        model.load_trainable_state(state)
    assert torch.equal(model.net.language_projection.weight, before)


def lavis_checkpoint(model: Any, folder: Path, **more: torch.Tensor) -> str:
    """A checkpoint of LAVIS' runner: trained parts, and every other name of a frozen parameter, and buffers."""
    state = to_upstream(model.trainable_state())
    torch.save({"model": {**state, **more}, "epoch": 3, "config": {"run": {"seed": 42}}}, folder / "theirs.pth")
    return str(folder / "theirs.pth")


def test_second_names_and_buffers_of_lavis_are_dropped_where_they_are_equal(tmp_path: Path) -> None:
    model, head = small_model(freeze_llm=True), "opt_model.lm_head.weight"
    words = model.net.get_input_embeddings().weight.detach()
    words.copy_(words.half())
    for tied in (words, words.half(), words[:-1]):  # in LAVIS' precision, and from before `<image>` was added
        load_over(model, lavis_checkpoint(model, tmp_path, **{head: tied}), "model.finetuned")
    with pytest.raises(IntegrityError, match=r"1 pairs .*lm_head.weight and net.language_model.*embed_tokens"):
        load_over(model, lavis_checkpoint(model, tmp_path, **{head: words + 1}), "model.finetuned")


def test_a_second_name_stands_in_for_a_first_one_that_learnt(tmp_path: Path) -> None:
    model = small_model(freeze_llm=False)
    state = to_upstream(model.trainable_state())
    new = state.pop("opt_model.model.decoder.embed_tokens.weight") + 1
    torch.save({"model": {**state, "opt_model.lm_head.weight": new}}, tmp_path / "a.pth")
    load_over(model, str(tmp_path / "a.pth"), "model.finetuned")
    assert torch.equal(model.net.get_input_embeddings().weight, new)


def test_frequencies_of_llama_are_compared(tmp_path: Path) -> None:
    model = small_of("blip2_llama", freeze_llm=True)
    name = "llama_model.model.layers.1.self_attn.rotary_emb.inv_freq"
    frequencies = model.net.language_model.model.rotary_emb.inv_freq
    load_over(model, lavis_checkpoint(model, tmp_path, **{name: frequencies.half()}), "model.finetuned")
    with pytest.raises(IntegrityError, match="inv_freq and the model's own"):
        load_over(model, lavis_checkpoint(model, tmp_path, **{name: frequencies * 2}), "model.finetuned")


def test_second_names_of_the_word_head_are_compared() -> None:
    words, bias = torch.randn(5, 4), torch.randn(5)
    first = {"Qformer.bert.embeddings.word_embeddings.weight": words, "Qformer.cls.predictions.bias": bias}
    second = {"Qformer.cls.predictions.decoder.weight": words, "Qformer.cls.predictions.decoder.bias": bias}
    index = {"Qformer.bert.embeddings.position_ids": torch.arange(6)[None]}
    assert set(translate({**first, **second, **index})) == set(translate(first)) == set(translate(second))
    for wrong in ({**second, "Qformer.cls.predictions.decoder.bias": bias + 1}, {**second, next(iter(index)): bias}):
        with pytest.raises(IntegrityError, match="must be equal differ"):
            translate({**first, **wrong})


def test_a_flan_t5_has_a_head_of_its_own(tmp_path: Path) -> None:
    untied = {**SIZES, "text_config": {**TEXT_SIZES["blip2_t5"], "tie_word_embeddings": False}}
    keys = {"freeze_llm": False}
    tied, own = small_of("blip2_t5", **keys), small_of("blip2_t5", sizes=untied, **keys)
    with torch.no_grad():
        own.net.language_model.lm_head.weight += 1
    theirs = to_upstream(own.state_dict(), "t5")
    assert {"t5_model.lm_head.weight", "t5_model.decoder.embed_tokens.weight"} <= set(theirs)
    torch.save({"model": theirs}, tmp_path / "a.pth")
    other = small_of("blip2_t5", 1, sizes=untied, **keys)
    load_over(other, str(tmp_path / "a.pth"), "model.finetuned")
    assert torch.equal(other.net.language_model.lm_head.weight, own.net.language_model.lm_head.weight)
    with pytest.raises(IntegrityError, match=r"lm_head.weight and net.language_model.shared.weight"):
        load_over(tied, str(tmp_path / "a.pth"), "model.finetuned")

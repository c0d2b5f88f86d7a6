"""Oscar's checkpoints: there and back under upstream's names, nothing unexplained, students, folders that lie."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lavis_ext.common.errors import ConfigError, DiskError, IntegrityError, LavisExtError, UnsafeError
from lavis_ext.models import default_config
from lavis_ext.oscar.config import OscarConfig
from lavis_ext.oscar.convert import export_oscar, from_oscar, to_oscar, write_oscar
from lavis_ext.oscar.model import Oscar
from tests.support.oscar import SMALL, TINY_VOCAB, oscar_batch, oscar_state, write_checkpoint

CONFIG = {**SMALL, "num_hidden_layers": 3, "cls_hidden_scale": 3}


def built(folder: Path, **changes: Any) -> Oscar:
    settings = {"pretrained": str(folder), "drop_out": 0.0, **changes}
    return Oscar.from_config(OscarConfig(arch="oscar", model_type="base", **settings)).eval()


@pytest.mark.parametrize("head", ["linear", "mlp", "pair", "words", "pretrain"])
@pytest.mark.parametrize("vinvl", [False, True])
def test_there_and_back(head: str, vinvl: bool) -> None:
    state = oscar_state(CONFIG, head, vinvl)
    found, config = to_oscar(from_oscar(state, CONFIG))
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    again = from_oscar(found, config)
    assert again.settings == from_oscar(state, CONFIG).settings
    assert all(config[name] == value for name, value in CONFIG.items() if name != "num_labels")


def test_the_head_is_told_from_the_weights() -> None:
    def settings(head: str, vinvl: bool = False) -> Any:
        return from_oscar(oscar_state(CONFIG, head, vinvl), {**CONFIG, "classifier": "linear"}).settings

    assert (settings("linear").head, settings("linear").classifier) == ("sequence", "linear")
    assert (settings("mlp").head, settings("mlp").classifier, settings("mlp").cls_hidden_scale) == (
        "sequence",
        "mlp",
        3,
    )
    assert (settings("pair").head, settings("pair").num_choice) == ("pair", 2)
    assert settings("pair", True).use_img_layernorm and not settings("pair").use_img_layernorm
    assert (settings("words").head, settings("pretrain").head) == ("caption", "pretrain")


def test_old_names_prefixes_and_leftovers_are_read() -> None:
    state = oscar_state(CONFIG, "linear")
    old: dict[str, Tensor] = {}
    for name, tensor in state.items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        old[f"module.{name}"] = tensor
    old["module.bert.embeddings.position_ids"] = torch.arange(40)[None]
    old["module.bert.code_embeddings.weight"] = torch.zeros(5, 3)
    old["bert.input_embeddings.bias"] = torch.zeros(3)
    batch = oscar_batch(CONFIG)
    expected = from_oscar(state, CONFIG).eval()(**batch).logits
    torch.testing.assert_close(from_oscar(old, CONFIG).eval()(**batch).logits, expected)


def test_a_decoder_of_its_own_is_kept() -> None:
    state = oscar_state(CONFIG, "words")
    assert from_oscar(state, CONFIG).decoder is None
    state["cls.predictions.decoder.weight"] = state["cls.predictions.decoder.weight"] + 1
    network = from_oscar(state, {**CONFIG, "tie_weights": True})
    assert network.decoder is not None and not network.settings.tie_weights
    found, config = to_oscar(network)
    assert torch.equal(found["cls.predictions.decoder.weight"], state["cls.predictions.decoder.weight"])
    assert config["tie_weights"] is False


@pytest.mark.parametrize("rows", [2, 3])
def test_matching_has_as_many_classes_as_its_weights(rows: int) -> None:
    state = oscar_state({**CONFIG, "num_contrast_classes": rows}, "pretrain")
    assert from_oscar(state, CONFIG)(**oscar_batch(CONFIG)).matching.shape == (4, rows)  # type: ignore[union-attr]


def broken(change: str) -> dict[str, Tensor]:
    state = oscar_state(CONFIG, "linear")
    pooler = "bert.pooler.dense.weight"
    if change == "missing":
        del state[pooler]
    elif change == "unknown":
        state["bert.visual.weight"] = torch.zeros(2)
    elif change == "shape":
        state[pooler] = torch.zeros(3, 24)
    elif change == "nan":
        state[pooler] = torch.full((24, 24), float("nan"))
    elif change == "plain BERT":
        del state["bert.img_embedding.weight"], state["bert.img_embedding.bias"]
    elif change == "nothing":
        state = {"cls.predictions.bias": torch.zeros(53)}
    elif change == "no head":
        del state["classifier.weight"], state["classifier.bias"]
    elif change == "twice":
        state[f"module.{pooler}"] = state[pooler] + 1
    elif change == "layer":
        state["bert.encoder.layer.1.output.dense.scale"] = torch.ones(1)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "1 missing: bert.pooler.dense.weight"),
        ("unknown", "1 weights that no Oscar has: bert.visual.weight"),
        ("shape", r"pooler.dense.weight \[3, 24\] for \[24, 24\]"),
        ("nan", "1 tensors are not finite: bert.pooler.dense.weight"),
        ("plain BERT", "2 missing: img_embedding.bias, img_embedding.weight"),
        ("nothing", "has no bert.embeddings.word_embeddings.weight"),
        ("no head", "2 missing: head.bias, head.weight"),
        ("twice", "bert.pooler.dense.weight is there twice"),
        ("layer", "no Oscar has: bert.encoder.layer.1.output.dense.scale"),
    ],
)
def test_nothing_passes_unexplained(change: str, message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        from_oscar(broken(change), CONFIG, "here")


def test_a_student_takes_the_first_layers_or_those_that_are_named(tmp_path: Path, caplog: Any) -> None:
    state = oscar_state({**CONFIG, "num_hidden_layers": 6}, "linear")
    folder = write_checkpoint(tmp_path / "teacher", state, {**CONFIG, "num_hidden_layers": 6})
    with caplog.at_level(logging.INFO):
        first = built(folder, num_hidden_layers=2)
    assert "64 weights not used: bert.encoder.layer.2." in caplog.text
    name = "attention.self.query.weight"
    for model, layers in ((first, [0, 1]), (built(folder, layers=[1, 5, 3]), [1, 5, 3])):
        assert len(model.encoder_layers()) == len(layers) == model.network.settings.layers
        for index, layer in enumerate(layers):
            own = dict(model.encoder_layers()[index].named_parameters())[name]
            assert torch.equal(own, state[f"bert.encoder.layer.{layer}.{name}"])
    torch.testing.assert_close(model.network.head.weight, state["classifier.weight"])


@pytest.mark.parametrize(
    "wrong", [{"num_hidden_layers": 4}, {"layers": [0, 3]}, {"layers": [0, 1], "num_hidden_layers": 3}]
)
def test_layers_that_are_not_there(tmp_path: Path, wrong: dict[str, Any]) -> None:
    folder = write_checkpoint(tmp_path, oscar_state(CONFIG), CONFIG)
    with pytest.raises(ConfigError, match="layers"):
        built(folder, **wrong)


def test_fine_tuning_tells_what_is_left_and_what_is_new(tmp_path: Path, caplog: Any) -> None:
    folder = write_checkpoint(tmp_path, oscar_state(CONFIG, "pretrain"), CONFIG)
    with caplog.at_level(logging.INFO):
        model = built(folder, num_labels=9)
    assert model.report.new == ("head.weight", "head.bias")
    line = next(record.message for record in caplog.records)
    assert (
        "7 weights not used: cls.predictions.bias, " in line
        and "2 weights new: classifier.bias, classifier.weight" in line
    )
    assert model.network.head.weight.shape == (9, 24)
    captioner = built(folder, head="caption", tokenizer=str(TINY_VOCAB))
    assert sorted(captioner.report.unused) == ["match.bias", "match.weight"] and not captioner.report.new
    untied = built(folder, head="caption", tokenizer=str(TINY_VOCAB), tie_weights=False)
    assert torch.equal(untied.network.decoder, untied.network.bert.embeddings.word_embeddings.weight)  # type: ignore[arg-type]
    three = built(folder, head="pretrain", num_contrast_classes=3, tokenizer=str(TINY_VOCAB))
    assert set(three.report.new) == {"match.weight", "match.bias"}


def test_a_plain_bert_is_a_start_whose_regions_are_new(tmp_path: Path, caplog: Any) -> None:
    state = {name: t for name, t in oscar_state(CONFIG, "pretrain").items() if "img_embedding" not in name}
    folder = write_checkpoint(tmp_path, state, {name: CONFIG[name] for name in CONFIG if name != "img_feature_dim"})
    model = built(folder, head="caption", tokenizer=str(TINY_VOCAB), img_feature_dim=30, use_img_layernorm=True)
    assert "as a plain BERT" in caplog.text and model.network.img_embedding.in_features == 30
    parts = ("img_embedding.weight", "img_embedding.bias", "img_layer_norm.weight", "img_layer_norm.bias")
    assert sorted(model.report.new) == sorted(parts)


def test_vinvls_norm_comes_with_its_weights_or_starts_anew(tmp_path: Path) -> None:
    vinvl = write_checkpoint(tmp_path / "vinvl", oscar_state(CONFIG, "linear", vinvl=True), CONFIG)
    assert built(vinvl).network.settings.use_img_layernorm
    plain = write_checkpoint(tmp_path / "plain", oscar_state(CONFIG, "pretrain"), CONFIG)
    pair = built(plain, use_img_layernorm=True, use_pair=True, classifier="mlp")
    assert {"img_layer_norm.weight", "head.norm.weight"} <= set(pair.report.new)


def test_a_fine_tuned_classifier_is_used_as_it_is_or_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, oscar_state(CONFIG, "mlp"), CONFIG)
    model = built(folder, classifier="linear", num_labels=7)
    assert model.network.settings.classifier == "mlp" and not str(model.report)
    with pytest.raises(ConfigError, match="its classifier has 7 classes, 12 are asked for"):
        built(folder, num_labels=12)
    pair = write_checkpoint(tmp_path / "pair", oscar_state({**CONFIG, "num_labels": 2}, "pair"), CONFIG)
    assert built(pair).head == "pair"


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = oscar_state(CONFIG)
    write_checkpoint(tmp_path / "root/models/a", state, CONFIG)
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(tmp_path / "root"))
    monkeypatch.chdir(tmp_path)
    batch = oscar_batch(CONFIG)
    expected = built(Path("models/a")).network(**batch).logits
    for name in ("root/models/a", "root/models/a/pytorch_model.bin", str(tmp_path / "root/models/a")):
        torch.testing.assert_close(built(Path(name)).network(**batch).logits, expected)
    save_file(state, tmp_path / "root/models/a/model.safetensors")
    (tmp_path / "root/models/a/pytorch_model.bin").unlink()
    torch.testing.assert_close(built(Path("models/a")).network(**batch).logits, expected)


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        ("absent", ConfigError, "no folder, neither at"),
        ("no config", ConfigError, "holds no config.json"),
        ("no weights", ConfigError, "holds no model.safetensors or pytorch_model.bin"),
        ("config cut", IntegrityError, "config.json cannot be read"),
        ("config a list", IntegrityError, "no table of names and values"),
        ("config empty", IntegrityError, "gives no vocab_size, hidden_size"),
        ("weights cut", IntegrityError, "cannot be read"),
        ("code", UnsafeError, "more than tensors"),
    ],
)
def test_folders_that_lie(tmp_path: Path, fault: str, kind: type[LavisExtError], message: str) -> None:
    folder = write_checkpoint(tmp_path / "model", oscar_state(CONFIG), CONFIG)
    weights, config = folder / "pytorch_model.bin", folder / "config.json"
    if fault in ("no config", "no weights"):
        (config if fault == "no config" else weights).unlink()
    elif fault.startswith("config"):
        config.write_text({"config cut": '{"a": ', "config a list": "[1]", "config empty": "{}"}[fault])
    elif fault == "weights cut":
        weights.write_bytes(weights.read_bytes()[:2000])
    elif fault == "code":
        torch.save({"model": print}, weights)
    with pytest.raises(kind, match=message) as caught:
        built(tmp_path / "nowhere" if fault == "absent" else folder)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("model.pretrained")


@pytest.mark.fault("D08")
def test_the_pickled_arguments_of_a_training_are_left_alone(tmp_path: Path) -> None:
    """Upstream loads training_args.bin of every checkpoint, and so runs whatever code it holds."""
    trap = tmp_path / "trapped"
    folder = write_checkpoint(tmp_path / "model", oscar_state(CONFIG), CONFIG)

    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
            return Path.touch, (trap,)

    (folder / "training_args.bin").write_bytes(pickle.dumps(Trap()))
    pickle.loads(pickle.dumps(Trap()))
    assert trap.is_file()
    trap.unlink()
    built(folder)
    assert not trap.exists()


def test_write_as_upstream_does(tmp_path: Path) -> None:
    network = from_oscar(oscar_state(CONFIG, "mlp", vinvl=True), CONFIG)
    write_oscar(network, tmp_path / "out", TINY_VOCAB)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "pytorch_model.bin",
        "vocab.txt",
    ]
    assert json.loads((tmp_path / "out/config.json").read_text())["use_img_layernorm"] == 1
    batch = oscar_batch(CONFIG)
    torch.testing.assert_close(built(tmp_path / "out").network(**batch).logits, network.eval()(**batch).logits)
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError):
        write_oscar(network, tmp_path / "file")


def test_finetuned_goes_over_pretrained(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", oscar_state(CONFIG, "linear", seed=1), CONFIG)
    tuned = write_checkpoint(tmp_path / "tuned", oscar_state(CONFIG, "linear", seed=2), CONFIG)
    batch = oscar_batch(CONFIG)
    expected = built(tuned).network(**batch).logits
    theirs = built(base, load_finetuned=True, finetuned=str(tuned))
    torch.testing.assert_close(theirs.network(**batch).logits, expected)
    by_file = built(base, load_finetuned=True, finetuned=str(tuned / "pytorch_model.bin"))
    torch.testing.assert_close(by_file.network(**batch).logits, expected)
    with pytest.raises(IntegrityError, match=r"32 weights not used: bert\.encoder\.layer\.1"):
        built(base, load_finetuned=True, finetuned=str(tuned), num_hidden_layers=1)
    (tmp_path / "ours").mkdir()
    save_file(
        {name: t.contiguous() for name, t in theirs.trainable_state().items()}, tmp_path / "ours/model.safetensors"
    )
    ours = built(base, load_finetuned=True, finetuned=str(tmp_path / "ours"))
    torch.testing.assert_close(ours.network(**batch).logits, expected)


def test_export_for_upstreams_scripts(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", oscar_state(CONFIG, "pretrain"), CONFIG, vocab=True)
    section = OscarConfig(arch="oscar", model_type="base", pretrained=str(base), num_labels=5, drop_out=0.0)
    torch.manual_seed(2)
    done = export_oscar(section, tmp_path / "out")
    assert done.shapes["classifier.weight"] == [5, 24] and done.left == []
    assert (tmp_path / "out/vocab.txt").read_bytes() == TINY_VOCAB.read_bytes()
    torch.manual_seed(2)
    batch = oscar_batch(CONFIG)
    expected = Oscar.from_config(section).eval().network(**batch).logits
    torch.testing.assert_close(built(tmp_path / "out").network(**batch).logits, expected)
    with pytest.raises(ConfigError, match="blip2_opt is no Oscar"):
        export_oscar(default_config("blip2_opt", "tiny"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_run_is_read_where_a_folder_of_upstream_s_is(tmp_path: Path) -> None:
    """As `pretrained` and `finetuned`, also torn in part, also one that goes on from another run."""
    write_checkpoint(tmp_path / "start", oscar_state(CONFIG, "pretrain"), CONFIG)
    first = built(tmp_path / "start", num_labels=5)
    run = write_run(tmp_path / "first", first, tmp_path / "start", num_labels=5)
    found = built(run)
    assert (found.network.settings.num_labels, found.head) == (5, "sequence")
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), first.parameters(), strict=True))
    second = write_run(tmp_path / "second", found, run)
    (second / "best.json").write_text("{")  # torn: the newest is read
    for folder in (second, second / "checkpoint_1", second / "checkpoint_1" / "model.safetensors"):
        again = built(tmp_path / "start", load_finetuned=True, finetuned=str(folder))
        assert torch.equal(again.network.head.weight, first.network.head.weight)
        assert torch.equal(built(folder, num_hidden_layers=2).network.head.weight, first.network.head.weight)
    with pytest.raises(ConfigError, match="5 classes, 7 are asked for"):
        built(second, num_labels=7)
    write_run(tmp_path / "second", found, second)
    with pytest.raises(ConfigError, match="put the config"):
        built(second)


def write_run(folder: Path, model: Oscar, start: Path, **more: Any) -> Path:
    """What of a run its weights are read by."""
    checkpoint = folder / "checkpoint_1"
    checkpoint.mkdir(parents=True, exist_ok=True)
    save_file(model.trainable_state(), checkpoint / "model.safetensors")
    (checkpoint / "manifest.json").write_text("{}")
    for pointer in ("best", "latest"):
        (folder / f"{pointer}.json").write_text(json.dumps({"checkpoint": checkpoint.name}))
    section = {"arch": "oscar", "model_type": "base", "load_pretrained": True, "pretrained": str(start), **more}
    (folder / "config.yaml").write_text(json.dumps({"model": section}))
    return folder


def test_an_archive_that_was_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "best.zip").write_bytes(b"PK")
    with pytest.raises(ConfigError) as caught:
        built(tmp_path / "best")
    assert caught.value.problems[0].way_out == f"unzip {tmp_path / 'best.zip'} -d {tmp_path}"

"""`check` tells every mistake of a file at once, whatever kind of YAML it is."""

from pathlib import Path

import pytest

from lavis_ext.common.config.check import check_file, load_checked
from lavis_ext.common.config.resolve import load_config
from lavis_ext.common.errors import ConfigError

RUN = """
model: {arch: blip2_opt, model_type: tiny}
datasets:
  coco_caption:
    vis_processor: {train: {name: blip2_image_train, image_size: 96}}
run: {task: captioning, max_epoch: 1, train_splits: [train], valid_splits: [val]}
"""


def texts(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    return [str(problem) for problem in check_file(path)]


def test_good_run_has_no_problem(tmp_path: Path) -> None:
    assert texts(tmp_path, RUN) == []


def test_all_semantic_mistakes_at_once(tmp_path: Path) -> None:
    bad = (
        RUN.replace("captioning", "captoining")
        .replace("image_size: 96", "imagesize: 96")
        .replace("valid_splits: [val]", "valid_splits: [vla], runner: runner_bsae, lr_sched: cosine, log_freq: 0")
        .replace("max_epoch: 1,", "")
        .replace("    vis_processor", "    weight: -1\n    vis_processor")
    )
    found = "\n".join(texts(tmp_path, bad))
    for part in (
        "run.task: no task named 'captoining'; did you mean 'captioning'?",
        "run.runner: no runner named 'runner_bsae'",
        "run.lr_sched: no lr_scheduler named 'cosine'",
        "run.log_freq: 0 is out of its range",
        "run.valid_splits: no data set of this run has a split 'vla'; did you mean 'val'?",
        "neither max_epoch nor max_iters is given",
        "vis_processor.train.imagesize: unknown key; did you mean 'image_size'?",
        "weight: -1.0 is out of its range",
    ):
        assert part in found
    assert f"{tmp_path / 'x.yaml'}:7 run.task" in found


def test_a_run_is_refused_with_what_check_lists(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(RUN.replace("captioning", "nothing"))
    with pytest.raises(ConfigError, match="no task named 'nothing'"):
        load_checked(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("datasets: {mine: {builder: image_captoin}}", "did you mean 'image_caption'"),
        (
            "datasets: {mine: {builder: image_caption, vis_processor: {eval: {name: nope}}}}",
            "no processor named 'nope'",
        ),
        ("datasets: {mine: {}}", "names no shape"),
        ("datasets: {mine: {builder: image_caption, max_samples: {val: 0}}}", "max_samples.val: 0 is out of its range"),
        ("model: {arch: blip3, model_type: tiny}", "no model named 'blip3'"),
        (
            "model: {arch: a, model_type: t}\npreprocess: {vis_processor: {eval: {name: clip_image_eval, x: 1}}}",
            "preprocess.vis_processor.eval.x: unknown key",
        ),
        ("runn: {}", "unknown section; did you mean 'run'?"),
        ("datasets: {coco_caption: {}}\nrun: {task: captioning, evaluate: true}", "model: is missing"),
    ],
)
def test_each_kind_of_yaml(tmp_path: Path, text: str, message: str) -> None:
    assert message in "\n".join(texts(tmp_path, text))


def run_with(model: str = "", run: str = "", data: str = "") -> str:
    """The good run with further keys."""
    text = RUN.replace("model_type: tiny}", f"model_type: tiny{model}}}").replace("[val]}", f"[val]{run}}}")
    return text.replace("image_size: 96}}", f"image_size: 96}}}}\n    {data}") if data else text


@pytest.mark.parametrize(
    ("section", "key", "value", "reader"),
    [
        ("model", "head", "caption", "oscar"),
        ("model", "drop_worst_ratio", "0.3", "oscar"),
        ("model", "bert_model", "bert-base-uncased", "blip2"),
        ("model", "t5_model", "google/flan-t5-xl", "blip2_t5"),
        ("run", "scst", "true", "oscar_caption"),
        ("run", "k_test", "128", "retrieval"),
        ("run", "distill", "{task: captioning, teacher: x}", "distill"),
    ],
)
def test_a_key_of_another_is_refused_with_its_line(
    tmp_path: Path, section: str, key: str, value: str, reader: str
) -> None:
    (told,) = texts(tmp_path, run_with(**{section: f", {key}: {value}"}))
    line = {"model": 2, "run": 6}[section]
    assert told.startswith(f"{tmp_path / 'x.yaml'}:{line} {section}.{key}: ")
    assert reader in told


@pytest.mark.parametrize(
    "keys",
    [
        {"run": ", num_beams: 0"},
        {"run": ", max_len: -1"},
        {"run": ", max_len: 3, min_len: 5"},
        {"run": ", init_lr: -1"},
        {"run": ", init_lr: .nan"},
        {"run": ", num_workers: -1"},
        {"run": ", weight_decay: .inf"},
        {"run": ", batch_size_train: 0"},
        {"run": ", batch_size_eval: -4"},
        {"run": ", accum_grad_iters: 0"},
        {"run": ", max_iters: 0"},
        {"run": ", seed: -1"},
        {"run": ", warmup_steps: -1"},
        {"run": ", beta2: 2"},
        {"run": ", clip_grad_norm: 0"},
        {"run": ", repetition_penalty: 0"},
        {"model": ", image_size: 0"},
        {"model": ", num_query_token: -1"},
        {"model": ", max_txt_len: 0"},
        {"model": ", freeze_llm: true, lora: {r: 0}"},
        {"model": ", vit_precision: fp16, freeze_vit: false"},
        {"data": "args: {image_id: other}"},
        {"data": "args: {captoin_key: x}"},
        {"data": "tolerance: 2"},
        {"data": "weight: .inf"},
    ],
    ids=lambda keys: next(iter(keys.values())),
)
def test_a_value_that_cannot_work_is_refused(tmp_path: Path, keys: dict[str, str]) -> None:
    told = texts(tmp_path, run_with(**keys))
    assert len(told) == 1
    (section,) = keys
    line, at = {"run": (6, "run."), "model": (2, "model."), "data": (6, "datasets.coco_caption.")}[section]
    assert told[0].startswith(f"{tmp_path / 'x.yaml'}:{line} {at}")


def test_null_takes_a_key_away_whoever_reads_it(tmp_path: Path) -> None:
    assert texts(tmp_path, run_with(model=", bert_model: null", run=", k_test: null")) == []


def test_keys_of_the_task_that_validates_are_read(tmp_path: Path) -> None:
    text = RUN.replace("task: captioning", "task: image_text_pretrain, eval_task: captioning, repetition_penalty: 1.5")
    assert texts(tmp_path, text) == []
    assert "repetition_penalty" in texts(tmp_path, text.replace("eval_task: captioning, ", ""))[0]
    # LAVIS' captioning carries it; so does the task that validates by it
    assert texts(tmp_path, text.replace("repetition_penalty: 1.5", "top_p: 0.9")) == []


def test_the_record_of_an_old_run_loads_whatever_was_accepted_then(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(run_with(model=", drop_worst_ratio: 0.3", run=", scst: true, k_test: 128"))
    with pytest.raises(ConfigError, match="drop_worst_ratio"):
        load_config(path)
    (tmp_path / "run.json").write_text("{}")
    assert load_config(path).model is not None


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("run: {", "env: 3\nrun: {", "env"),
        ("{arch: blip2_opt, model_type: tiny}", "tiny", "model"),
        ("{arch: blip2_opt, model_type: tiny}", "[tiny]", "model"),
        ("  coco_caption:", "  vg_caption: 3\n  coco_caption:", "datasets.vg_caption"),
        ("task: captioning", "task: [captioning, vqa]", "run.task"),
        ("task: captioning", "task: captioning, train_dataset_ratios: 3", ""),
    ],
)
def test_what_is_no_mapping_is_told(tmp_path: Path, old: str, new: str, key: str) -> None:
    told = texts(tmp_path, RUN.replace(old, new))
    assert any(f" {key}: " in one for one in told) == bool(key)


def test_a_run_is_refused_with_all_mistakes_at_once(tmp_path: Path) -> None:
    """Keys that do not fit and names that are not there: `train` says what `check` says, in one round."""
    path = tmp_path / "x.yaml"
    path.write_text(RUN.replace("captioning", "nothing"))
    with pytest.raises(ConfigError) as raised:
        load_checked(path, ["run.nonsense=1"])
    assert [p.where.rpartition(" ")[2] for p in raised.value.problems] == ["run.nonsense", "run.task"]

"""Every flag of the table leads to a key that there is, or says why it does not."""

from __future__ import annotations

from dataclasses import fields

import pytest

from lavis_ext.common.config.cards import load_cards
from lavis_ext.common.registry import builders, objectives, tasks
from lavis_ext.distill.settings import DistillConfig
from lavis_ext.oscar.config import OscarConfig
from lavis_ext.oscar.import_rules import RULES
from lavis_ext.oscar.import_table import Script, load_table


def names(text: str) -> list[str]:
    return text.split()


SHAPES = {
    "run_vqa": "region_vqa", "run_gqa": "region_vqa", "run_nlvr": "region_pair", "run_retrieval": "region_retrieval",
    "run_captioning": "region_caption", "run_oscarplus_pretrain": "region_pretrain",
}  # fmt: skip
FLAGS = names("""
task_name data_dir output_dir model_type model_name_or_path img_feature_dim img_feature_type max_img_seq_length
max_seq_length data_label_type label_file label2ans_file use_vg use_vg_dev do_train do_train_val do_eval do_test
do_test_dev per_gpu_train_batch_size per_gpu_eval_batch_size learning_rate num_train_epochs max_steps warmup_steps
weight_decay adam_epsilon max_grad_norm drop_out loss_type classifier cls_hidden_scale save_epoch save_steps
logging_steps save_after_epoch seed workers txt_data_dir img_feat_format img_feat_dir load_fast hard_label
""")
PAIRS = names("num_choice use_pair use_label_seq eval_data_type test_data_type train_data_type use_img_layernorm")
RETRIEVAL = names("""
evaluate_during_training num_captions_per_img_train num_captions_per_img_val eval_caption_index_file eval_img_keys_file
cross_image_eval add_od_labels od_label_type att_mask_type test_split eval_model_dir num_labels img_feat_file
use_img_layernorm img_layer_norm_eps
""")
TAUGHT = names("""
teacher_model student_model alpha temperature num_hidden_layers teacher_learning_rate student_learning_rate strategy
""")


@pytest.mark.parametrize("name", load_table())
def test_every_flag_leads_somewhere(name: str) -> None:
    script = load_table()[name]
    sections = {"run": tasks.config(script.task), "model": OscarConfig, "distill": DistillConfig}
    known = {field.name for field in fields(builders.config(SHAPES[script.name]))}
    for flag, entry in script.flags.items():
        assert sum(map(bool, (entry.to, entry.via, entry.why, entry.refuse))) == 1, flag
        section, _, key = entry.to.partition(".")
        if section == "args":
            assert key in known, flag
        elif section:
            assert key in {field.name for field in fields(sections[section])}, flag
        assert not entry.via or entry.via in RULES, flag
        assert all(entry.kind == "text" for _ in entry.also), flag
    assert script.task in tasks
    for dataset, _, form in (name.rstrip("]").partition("[") for name in script.folders.values()):
        assert load_cards().dataset(dataset, form or "default")
    assert not script.term or script.term in objectives


def test_every_rule_is_used() -> None:
    used = {flag.via for script in load_table().values() for flag in script.flags.values()}
    assert set(RULES) == used - {""}


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("run_vqa", FLAGS),
        ("run_nlvr", PAIRS),
        ("run_retrieval", RETRIEVAL),
        *[(f"run_{task}_with_mkd_and_reptile", TAUGHT) for task in ("vqa", "gqa", "nlvr", "retrieval")],
    ],
)
def test_the_flags_of_upstream_are_known(name: str, flags: list[str]) -> None:
    assert set(flags) - set(load_table()[name].flags) == set()


def test_scripts_with_a_teacher_have_the_flags_of_those_without() -> None:
    for name, script in load_table().items():
        plain: Script = load_table()[script.name]
        assert set(plain.flags) <= set(script.flags)
        assert bool(script.term) == (name != script.name)

"""Mistakes are told all at once with a way out; text that was copied badly is read all the same; nothing runs."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_ext.common.errors import LavisExtError, UsageError
from lavis_ext.oscar.import_args import import_command
from lavis_ext.oscar.import_words import find_command
from tests.support.oscar_commands import COMMANDS, written

START = "run_vqa.py --do_train --model_name_or_path m"


def problems(text: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        import_command([text])
    assert caught.value.exit_code == 2
    return [str(problem) for problem in caught.value.problems]


def test_every_mistake_is_told_at_once() -> None:
    found = problems(f"{START} --weigth_decay 0 --weight_decay much --do_lower_case yes --classifier tree --seed")
    assert found == [
        "run_vqa.py: unknown flag '--weigth_decay'; did you mean '--weight_decay'?",
        "run_vqa.py --weight_decay: 'much' is not a number; give it a number",
        "run_vqa.py: stray word 'yes'; put it in quotes with its flag, or remove it",
        "run_vqa.py --classifier: 'tree' is no choice; known: linear, mlp",
        "run_vqa.py --seed: has no value; give it a whole number",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("run_vqa.py --model_name_or_path m", "--do_train: is missing"),
        ("run_vqa.py --do_train", "--model_name_or_path: is missing; name the folder"),
        ("run_retrieval.py --do_test", "--eval_model_dir: is missing"),
        (f"{START} --use_vg", "--use_vg: cannot be carried over"),
        (f"{START} --data_dir somewhere", "ends with datasets/vqa/2k"),
        (f"{START} --seed 1.5", "'1.5' is not a whole number"),
        (f"{START} --learning_rate inf", "'inf' is not a number"),
        (f"{START} --data_dir $DATA_DIR", "is a variable of the shell; write its value"),
        (f"{START} --data_dir `pwd`", "is a variable of the shell"),
        (f"{START} --model_type xlnet", "'xlnet' is no choice; known: bert"),
        (f"{START} --do_train=1", "takes no value"),
        ("run_nlvr.py --do_train --model_name_or_path m", "--use_pair: is missing"),
        ("run_vqa_with_mkd_and_reptile.py --do_train --student_model m", "--teacher_model: is missing"),
        ("run_retrieval.py --do_eval --eval_model_dir m --test_split tset", "no split 'tset'"),
        ("run_captioning.py --do_train --model_name_or_path m --num_return_sequences 5", "one caption an image"),
        ("run_vpa.py --do_train", "is no script that is known; did you mean 'run_vqa'"),
        ("python train.py --do_train", "names no script"),
        ("", "names no script"),
        ("--do_train\n  run_vqa", "names no script"),
        (f'{START} --output_dir "model', "no closing quotation; close the quotes"),
        (f"python oscar/{START}\npython oscar/{START}", "holds 2 commands"),
    ],
)
def test_a_mistake_has_its_words(text: str, told: str) -> None:
    assert told in "\n".join(problems(text))


@pytest.mark.parametrize(
    "start",
    [
        "x\u00c2 python", "x\u00c2\u00a0python", "\ufeffpython", "$ python", "!python", ">>> python", "",
        "CUDA_VISIBLE_DEVICES=0 python3 -u", "python -m torch.distributed.launch --nproc_per_node=4",
    ],
)  # fmt: skip
def test_a_line_that_starts_badly_is_read(start: str) -> None:
    plain = import_command([written("gqa_taught")])
    text = written("gqa_taught").replace("python", start, 1)
    found = import_command([text])
    assert found.tree == plain.tree
    assert found.script == "run_gqa_with_mkd_and_reptile"


@pytest.mark.parametrize(
    "change",
    [
        (" \\\n", " \\  \n"), (" \\\n", "\n"), (" \\\n", " \\\r\n"), (" \\\n", "\u00a0\\\n"), (" \\\n", " "),
        (" \\\n", "\n\n"),
        ("datasets/vqa/2k", "'datasets/vqa/2k'"), ("--seed 88", "--seed=88"), ("--seed 88", '--seed "88"'),
        ("python oscar/", "# VQA\n\npython oscar/"), ("oscar/run", "oscar\\run"), ("--seed 88", "--seed 1 --seed 88"),
    ],
)  # fmt: skip
def test_a_copied_command_is_read_however_its_lines_end(change: tuple[str, str]) -> None:
    text = written("vqa")
    assert change[0] in text
    assert import_command([text.replace(*change)]).tree == import_command([text]).tree


def test_quotes_keep_spaces_together() -> None:
    found = import_command([f"{START} --output_dir 'my runs/vqa 1'"])
    assert (found.tree["run"]["output_dir"], found.tree["run"]["job_id"]) == ("my runs", "vqa 1")
    as_words = import_command([*START.split(), "--output_dir", "my runs/vqa 1"])
    assert as_words.tree == found.tree


def test_what_stands_around_is_left_out_and_said() -> None:
    command = find_command([f"nohup python -u {START} --seed 2 2>&1 | tee log.txt &"])
    assert command.words[-2:] == ("--seed", "2")
    assert "tee" in command.after
    text = import_command([f"nohup python {START} --seed 3 > log 2>&1"]).text
    assert "The words around the command are left out: nohup > log" in text
    assert import_command([f"{START} --seed 3"]).text.count("left out") == 0


def test_nothing_of_it_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in (
        f"{START} --output_dir $(touch made)",
        f"{START} --output_dir `touch made`",
        f"touch made; python {START}",
        f"python {START} && touch made",
        f"{START} --output_dir '!!python/object/apply:os.system [touch made]'",
    ):
        with contextlib.suppress(UsageError):
            import_command([text])
    assert list(tmp_path.iterdir()) == []


def test_the_beginning_of_a_flag_is_enough_where_no_other_begins_so() -> None:
    assert import_command([f"{START} --learn 1e-4"]).tree["run"]["init_lr"] == 1e-4
    assert "unknown flag '--max_'" in problems(f"{START} --max_ 3")[0]


def test_a_comment_cannot_be_broken_out_of() -> None:
    text = import_command([f"'evil\nrun: 1' {START}".replace("\n", "\\n")]).text
    assert all(line.startswith("#") for line in text.split("model:")[0].splitlines())
    found = import_command(["evil\nrun: {task: x}", *START.split()])
    assert all(line.startswith("#") for line in found.text.split("model:")[0].splitlines())


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(sorted(COMMANDS)))
def test_the_order_of_flags_and_the_way_of_writing_them_do_not_matter(chance: random.Random, name: str) -> None:
    script, *flags = COMMANDS[name].split(" --")
    chance.shuffle(flags)
    words = [script]
    for flag in flags:
        key, _, value = flag.partition(" ")
        words += [f"--{key}={value}"] if value and chance.random() < 0.5 else [f"--{key}", *value.split()]
    assert import_command(words).tree == import_command([written(name)]).tree


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(max_size=12), max_size=8))
def test_any_words_give_a_run_file_or_an_error_of_ours(words: list[str]) -> None:
    for given_words in (words, [" ".join(words)], [*START.split(), *words], [f"{START} {' '.join(words)}"]):
        with contextlib.suppress(LavisExtError):
            import_command(given_words)

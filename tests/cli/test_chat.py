"""`lavis-ext chat`: what is asked, what is said, in which form, and what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from lavis_ext.cli import main
from lavis_ext.cli.chat import Setup, find_weights, read_setup, searches
from lavis_ext.common.config.schema import run_config
from lavis_ext.models import build_model, default_config
from lavis_ext.models.causal import Blip2Causal

TINY = "models/blip2_opt/tiny.yaml"


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "a picture.png"
    Image.new("RGB", (80, 60), (200, 30, 30)).save(path)
    return str(path)


@pytest.fixture(autouse=True)
def same_weights() -> None:
    torch.manual_seed(0)


def chat(*words: str) -> int:
    return main(["chat", "--cfg-path", TINY, *words])


def objects(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_one_question(picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat("--image", picture, "--question", " What is red? ", "--json") == 0
    turn, end = objects(capsys)
    assert (turn["question"], turn["image"], end) == ("What is red?", picture, {"exit_code": 0})
    assert isinstance(turn["answer"], str)


def test_caption_then_a_line_for_each_question(
    picture: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("what colour?\n\n   \nhow many"))
    assert chat("--image", picture, "--json") == 0
    turns = objects(capsys)
    assert [turn.get("question") for turn in turns] == ["", "what colour?", "how many", None]


def test_lines_for_a_person(picture: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("what colour?\n"))
    assert chat("--image", picture) == 0
    assert len(capsys.readouterr().out.split("\n")) >= 3


TALKER = "models/blip2_causal/tiny.yaml"


def talk(*words: str, talker: str = TALKER) -> int:
    return main(["chat", "--cfg-path", talker, *words])


def test_a_conversation_goes_on_and_begins_anew(
    picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    answer = Blip2Causal.generate

    def watched(self: Any, samples: dict[str, Any], **more: Any) -> list[str]:
        seen.append(samples)
        return answer(self, samples, **more)

    monkeypatch.setattr(Blip2Causal, "generate", watched)
    other = tmp_path / "other.png"
    Image.new("RGB", (30, 40), (0, 0, 250)).save(other)
    lines = f"red?\nwhy?\n\n/image {other}\nand <image> here?\n/reset\nagain\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert talk("--image", picture, "--json") == 0
    turns = objects(capsys)
    assert [turn.get("question") for turn in turns] == ["red?", "why?", "and <image> here?", "again", None]
    assert [turn.get("image") for turn in turns[:4]] == [picture, picture, f"{picture}, {other}", picture]
    asked = [[turn["content"] for turn in one["conversations"][0] if turn["role"] == "user"] for one in seen]
    first = "<image>\nred?"
    assert asked == [[first], [first, "why?"], [first, "why?", "and <image> here?"], ["<image>\nagain"]]
    assert [one["image_counts"] for one in seen] == [[1], [1], [2], [1]]
    assert torch.equal(seen[2]["image"][0], seen[0]["image"][0]) and not torch.equal(*seen[2]["image"])
    said = [turn["content"] for turn in seen[2]["conversations"][0] if turn["role"] == "assistant"]
    assert said == [str(turn["answer"]).replace("<image>", " ") for turn in turns[:2]]


@pytest.mark.parametrize("talker", [TALKER, "models/blip2_seq2seq/tiny.yaml"])
def test_a_conversation_needs_no_picture(talker: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert talk("--question", "what?", "--json", talker=talker) == 0
    assert objects(capsys)[0]["image"] == ""
    assert chat("--question", "what?") == 2  # this model talks about a picture


@pytest.mark.parametrize(
    ("line", "code"),
    [("/image", 2), ("/image nowhere.png", 2), ("/image {text}", 5), ("/rest", 2), ("which <image>?", 2)],
)
def test_a_line_that_cannot_be_done(
    line: str,
    code: int,
    picture: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "a.txt").write_text("no picture")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{line.format(text=tmp_path / 'a.txt')}\nwhat?\n"))
    assert talk("--json") == code
    assert all("answer" not in one for one in objects(capsys)), "what stands behind a mistake is not asked"


def test_another_picture_for_a_model_of_single_questions(
    picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.png"
    Image.new("RGB", (30, 40), (0, 0, 250)).save(other)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"what?\n/image '{other}'\n/etc is what?\n"))
    assert chat("--image", picture, "--json") == 0
    turns = objects(capsys)[:-1]
    told = [(turn["image"], turn["question"]) for turn in turns]
    assert told == [(picture, ""), (picture, "what?"), (str(other), ""), (str(other), "/etc is what?")]


def test_a_checkpoint_goes_over_the_weights(picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(5)
    model = build_model(default_config("blip2_opt", "tiny")).eval()
    state = {name: tensor.detach().clone().contiguous() for name, tensor in model.trainable_state().items()}
    folder = tmp_path / "run" / "checkpoint_3"
    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors")
    (tmp_path / "run" / "latest.json").write_text(json.dumps({"checkpoint": "checkpoint_3", "step": 3}))
    said = []
    for seed, where in ((1, "run"), (2, "run/checkpoint_3")):
        torch.manual_seed(seed)
        assert chat("--image", picture, "--question", "what?", "--json", "--checkpoint", str(tmp_path / where)) == 0
        said.append(objects(capsys)[0])
    assert said[0] == said[1]
    assert find_weights(str(tmp_path / "run")) == folder


def test_a_run_file_names_processors_and_search(tmp_path: Path) -> None:
    run = {"task": "vqa", "num_beams": 2, "max_len": 4, "min_len": 1, "prompt": "Q: {} A:", "device": "cpu"}
    vis = {"eval": {"name": "blip_image_eval", "image_size": 64}}
    text = {"eval": {"name": "blip_question"}}
    datasets = {"coco_vqa": {"vis_processor": vis, "text_processor": text}}
    file = tmp_path / "run.yaml"
    file.write_text(
        yaml.safe_dump({"model": {"arch": "blip2_opt", "model_type": "tiny"}, "datasets": datasets, "run": run})
    )
    setup = read_setup(str(file), ["run.num_beams=3"])
    assert setup.answers == {"num_beams": 3, "max_len": 4, "min_len": 1, "prompt": "Q: {} A:"}
    assert (setup.vis["name"], setup.vis["image_size"], setup.text["name"]) == ("blip_image_eval", 64, "blip_question")
    assert isinstance(setup, Setup)


def test_each_task_searches_for_its_own() -> None:
    captions, answers = searches(run_config(task="captioning", num_beams=4, max_len=9, length_penalty=0.5))
    assert (captions["num_beams"], captions["max_length"], captions["length_penalty"], answers) == (4, 9, 0.5, {})
    assert searches(run_config(task="retrieval")) == ({}, {})


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (None, 2, "no such file or directory"),
        (b"", 5, "image file is empty"),
        (b"<html>no</html>", 5, "an HTML page instead of an image"),
        (b"just text", 5, "name a JPEG, PNG"),
    ],
)
def test_what_is_no_picture(
    content: bytes | None, code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.jpg"
    if content is not None:
        path.write_bytes(content)
    assert chat("--image", str(path)) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert str(path) in line


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--cfg-path", "models/blip2/tiny.yaml"], 3, "model.arch"),
        (["--cfg-path", "absent.yaml"], 2, "absent.yaml"),
        (["--cfg-path", TINY, "--checkpoint", "absent"], 2, "--checkpoint absent: no such file or folder"),
        (["--cfg-path", TINY, "--question", " "], 2, "--question: is empty"),
        (["--cfg-path", TINY, "--options", "model.prompts=x"], 3, "did you mean 'prompt'?"),
    ],
)
def test_mistakes_in_one_line(
    words: list[str], code: int, message: str, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", "--image", picture, *words]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line

"""Completion offers verbs first, then the flags and names of the verb."""

import subprocess

import pytest

from lavis_ext.cli.verb import completion_script
from lavis_ext.common.errors import UsageError

FLAGS = {"list": ["--json"], "prepare": ["--split", "--dry-run"]}


def complete(*words: str) -> list[str]:
    script = completion_script("bash", FLAGS, ["coco", "coco_caption"], ["prepare"])
    typed = " ".join(f'"{word}"' for word in words)
    probe = (
        f'{script}\nCOMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _lavis_ext; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    return subprocess.run(["bash", "-c", probe], capture_output=True, text=True, check=True).stdout.split()


def test_bash_offers_what_fits() -> None:
    assert complete("lavis-ext", "p") == ["prepare"]
    assert complete("lavis-ext", "prepare", "coco") == ["coco", "coco_caption"]
    assert complete("lavis-ext", "prepare", "coco", "--d") == ["--dry-run"]
    assert complete("lavis-ext", "list", "coco") == []


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_name_every_verb(shell: str) -> None:
    script = completion_script(shell, FLAGS, ["coco"], ["prepare"])
    assert "prepare" in script
    assert "--dry-run" in script


def test_unknown_shell() -> None:
    with pytest.raises(UsageError, match="did you mean"):
        completion_script("bahs", FLAGS, [], [])

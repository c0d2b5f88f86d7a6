"""BERT's tokenizer from a vocab.txt: ids there and back, where the file is looked for, and files that are none."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from lavis_ext.common.errors import ConfigError, IntegrityError
from lavis_ext.oscar.wordpiece import SPECIALS, find_vocab, load_wordpiece

WORDS = [*SPECIALS, "a", "dog", "##s", "Dog", "run", "##ning", "'", "s", ".", "caf", "##e", "##é", "cafe"]


def vocab(folder: Path, words: list[str] | None = None, end: str = "\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_bytes((end.join(words or WORDS) + end).encode())
    return folder / "vocab.txt"


def test_words_become_the_longest_pieces_that_are_known(tmp_path: Path) -> None:
    words = load_wordpiece(vocab(tmp_path))
    pieces = words.encode("A dogs running. Xyz")
    assert [words.tokens[number] for number in pieces] == ["a", "dog", "##s", "run", "##ning", ".", "[UNK]"]
    assert (words.pad, words.unk, words.cls, words.sep, words.mask) == (0, 1, 2, 3, 4) and len(words) == len(WORDS)
    assert words.encode_all(["a dog", "dogs", ""]) == [[5, 6], [6, 7], []]


def test_back_to_text(tmp_path: Path) -> None:
    words = load_wordpiece(vocab(tmp_path))
    assert words.decode([2, *words.encode("a dog's running."), 3, 0, 0]) == "a dog's running."


def test_lower_case_takes_accents_too_and_can_be_left_out(tmp_path: Path) -> None:
    file = vocab(tmp_path)
    lower, plain = load_wordpiece(file), load_wordpiece(file, lower_case=False)
    assert lower.encode("Dog CAFÉ") == [6, WORDS.index("cafe")]
    assert plain.encode("Dog café") == [8, WORDS.index("caf"), WORDS.index("##é")]


def test_one_for_each_file_and_it_can_be_sent_to_a_worker(tmp_path: Path) -> None:
    file = vocab(tmp_path)
    words = load_wordpiece(file)
    assert load_wordpiece(tmp_path) is words and load_wordpiece(str(file)) is words
    assert pickle.loads(pickle.dumps(words)) is words
    assert load_wordpiece(file, lower_case=False) is not words


def test_the_digest_is_of_the_tokens_in_their_order(tmp_path: Path) -> None:
    one = load_wordpiece(vocab(tmp_path / "a"))
    assert load_wordpiece(vocab(tmp_path / "b", end="\r\n")).digest == one.digest
    assert load_wordpiece(vocab(tmp_path / "c", [*WORDS[:5], *reversed(WORDS[5:])])).digest != one.digest


def test_only_line_feeds_end_a_token(tmp_path: Path) -> None:
    odd = [*SPECIALS, "a\u2028b", "\x1c", "c"]
    assert load_wordpiece(vocab(tmp_path, odd)).tokens == tuple(odd)


def test_where_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below, here = vocab(tmp_path / "root/v"), vocab(tmp_path / "here/v", SPECIALS)  # type: ignore[arg-type]
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(tmp_path / "elsewhere"))
    assert find_vocab("v", tmp_path / "root") == below
    assert find_vocab("v/vocab.txt", tmp_path / "root") == below
    assert find_vocab("v").absolute() == here
    assert find_vocab(str(below)) == below
    assert find_vocab("models/oscar/tokenizer-tiny").name == "vocab.txt"
    with pytest.raises(ConfigError, match=f"no vocabulary, neither at {tmp_path}/elsewhere/w nor as given"):
        find_vocab("w")


def test_files_that_are_no_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_wordpiece(tmp_path)
    with pytest.raises(IntegrityError, match=r"has no \[MASK\]"):
        load_wordpiece(vocab(tmp_path / "a", list(SPECIALS[:4])))
    with pytest.raises(IntegrityError, match="holds 'dog' twice"):
        load_wordpiece(vocab(tmp_path / "b", [*WORDS, "dog"]))
    (tmp_path / "c").write_bytes(b"\xff\xfe")
    with pytest.raises(IntegrityError, match="no text in UTF-8"):
        load_wordpiece(tmp_path / "c")

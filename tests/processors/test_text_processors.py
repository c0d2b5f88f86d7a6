"""LAVIS' text processors on vectors that were taken from LAVIS."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_ext.common.errors import ConfigError
from lavis_ext.processors import load_processor

SAMPLE = "A man (left) rides: a 'Horse'!  Wow; nice#1.5~ok\n"


@pytest.mark.parametrize(
    ("name", "args", "text", "expected"),
    [
        ("blip_caption", {}, SAMPLE, "a man left rides a 'horse' wow nice 1 5 ok"),
        ("blip_caption", {"prompt": "a photo of "}, "A cat.", "a photo of a cat"),
        ("blip_caption", {"max_words": 3}, "One two  three four", "one two three"),
        ("blip_caption", {}, "Left-hand, really?", "left-hand, really?"),
        ("blip_caption", {}, "  spaced \n", "spaced"),
        ("blip_caption", {}, "tab\t\tbed\nline", "tab bed\nline"),
        ("blip_caption", {}, "", ""),
        ("blip_question", {}, SAMPLE, "a man left rides a 'horse'  wow nice15ok\n"),
        ("blip_question", {}, "What is 1.5?  ", "what is 15?"),
        ("blip_question", {"max_words": 2}, "Is it red?", "is it"),
    ],
)
def test_vectors(name: str, args: dict[str, object], text: str, expected: str) -> None:
    assert load_processor(name, args)(text) == expected


@settings(deadline=None)
@given(st.text(max_size=300), st.integers(1, 60))
def test_captions_are_clean_whatever_comes(text: str, limit: int) -> None:
    processor = load_processor("blip_caption", {"max_words": limit})
    clean = processor(text)
    assert not set('.!"()*#:;~') & set(clean)
    assert len(clean.split(" ")) <= limit
    assert processor.pre_caption(text) == clean
    assert pickle.loads(pickle.dumps(processor))(text) == clean


def test_unknown_arguments() -> None:
    with pytest.raises(ConfigError, match="did you mean 'max_words'"):
        load_processor("blip_question", {"max_word": 3})
    with pytest.raises(ConfigError, match="prompt"):
        load_processor("blip_question", {"prompt": "x"})

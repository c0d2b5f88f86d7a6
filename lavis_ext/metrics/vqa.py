"""VQA answers as the official evaluation compares them (Antol et al., arXiv:1505.00468): normalised, then counted."""

from __future__ import annotations

import re
from collections.abc import Sequence

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32
"""The official code removes no more than these, by giving a flag where a count belongs."""
_ARTICLES = frozenset(("a", "an", "the"))
_WORDS = "none zero one two three four five six seven eight nine ten".split()  # noqa: SIM905
_NUMBERS = dict(zip(_WORDS, (str(max(0, i - 1)) for i in range(len(_WORDS))), strict=True))
_APOSTROPHISED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've 'ow's'at
""".split()  # noqa: SIM905


def _spellings() -> dict[str, str]:
    """Each contraction under the spellings that lack one apostrophe; capitalised keys, which never match, left out."""
    found = {"somebody'd": "somebodyd"}  # the official table has this one the wrong way round
    for word in _APOSTROPHISED:
        places = [i for i, letter in enumerate(word) if letter == "'"]
        found |= {word[:i] + word[i + 1 :]: word for i in places}
    return found


_CONTRACTIONS = _spellings()


def normalize_vqa_answer(text: str) -> str:
    """A predicted answer in the form that is compared: `"1,000" → "1000"`, `"ten o'clock" → "10 o'clock"`."""
    flat = text.replace("\n", " ").replace("\t", " ").strip()
    words = [_NUMBERS.get(word, word) for word in strip_punctuation(flat).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def strip_punctuation(text: str) -> str:
    """Each mark is removed if it is beside a space anywhere, or if a number has a comma; else it becomes a space."""
    has_number = _COMMA_IN_NUMBER.search(text) is not None
    stripped = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if beside_space or has_number else " ")
    return _PERIOD.sub("", stripped, count=_MOST_PERIODS)


def vqa_score(prediction: str, answers: Sequence[str]) -> float:
    """Accuracy in [0, 1]: for each annotator, min(1, matches among the others / 3); the mean over annotators.

    The annotators' answers lose their punctuation only where they differ, as in the official evaluation.
    """
    if not answers:
        return 0.0
    given = [strip_punctuation(answer) for answer in answers] if len(set(answers)) > 1 else list(answers)
    predicted = normalize_vqa_answer(prediction)
    matches = sum(answer == predicted for answer in given)
    return sum(min(1.0, (matches - (answer == predicted)) / 3) for answer in given) / len(given)

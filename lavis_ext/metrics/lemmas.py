"""Answers with nouns and verbs in their base form, as published OK-VQA and A-OKVQA scores have them: LAVIS' rule."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

from lavis_ext.errors import ConfigError

SPACY_MODEL = "en_core_web_sm"
INFLECTED = ("NOUN", "VERB")
WAY_OUT = f"pip install spacy && python -m spacy download {SPACY_MODEL}, or set model.apply_lemmatizer: False"


@cache
def load_lemmatizer() -> Any:
    """spaCy's small English pipeline; raises ConfigError where spaCy or the pipeline is not installed."""
    try:
        spacy = import_module("spacy")
    except ImportError as error:
        raise ConfigError("model.apply_lemmatizer", "needs spaCy, which is not installed", WAY_OUT) from error
    try:
        return spacy.load(SPACY_MODEL)
    except OSError as error:
        what = f"needs spaCy's {SPACY_MODEL}, which is not installed"
        raise ConfigError("model.apply_lemmatizer", what, WAY_OUT) from error


def lemmatize(answers: Sequence[str]) -> list[str]:
    """Each answer with its nouns and verbs replaced by their lemmas; other words stay, one space between words."""
    pipeline = load_lemmatizer()
    return [" ".join(_base(token) for token in pipeline(answer)) for answer in answers]


def _base(token: Any) -> str:
    return str(token.lemma_ if token.pos_ in INFLECTED else token.text)

"""BERT's tokenizer from a `vocab.txt`: text → ids without special tokens, and back; one per file and process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lavis_ext.common.config import resolve as config
from lavis_ext.common.errors import ConfigError, IntegrityError
from lavis_ext.common.files import expanded, not_there, read_file

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
FILE = "vocab.txt"
TOGETHER = (
    *((f" {sign}", sign) for sign in ".?!,"),
    (" ' ", "'"),
    *((f" {end}", end) for end in ("n't", "'m")),
    (" do not", " don't"),
    *((f" {end}", end) for end in ("'s", "'ve", "'re")),
)
"""What transformers' BertTokenizer, and so every published caption, writes together, in this order."""
WAY_OUT = "name a BERT vocabulary: a vocab.txt, or the folder that holds it"


class WordPiece:
    """A WordPiece tokenizer (Wu et al., arXiv:1609.08144) as BERT has it; picklable, made by `load_wordpiece`.

    `digest` is the SHA-256 of the tokens in their order, joined by line feeds.
    """

    def __init__(self, path: Path, tokens: Sequence[str], digest: str, lower_case: bool) -> None:
        from tokenizers import BertWordPieceTokenizer

        self.path, self.tokens, self.digest, self.lower_case = path, tuple(tokens), digest, lower_case
        self.ids = {token: number for number, token in enumerate(tokens)}
        self.pad, self.unk, self.cls, self.sep, self.mask = (self.ids[token] for token in SPECIALS)
        self._tokenizer: Any = BertWordPieceTokenizer(dict(self.ids), lowercase=lower_case)

    def __len__(self) -> int:
        return len(self.tokens)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return load_wordpiece, (self.path, self.lower_case)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without [CLS] and [SEP]."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many texts, faster than one by one."""
        return [found.ids for found in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids: special tokens left out, pieces joined, signs set as people write them."""
        pieces = (self.tokens[int(number)] for number in ids)
        text = " ".join(piece for piece in pieces if piece not in SPECIALS).replace(" ##", "")
        for apart, together in TOGETHER:
            text = text.replace(apart, together)
        return text


def load_wordpiece(path: str | Path, lower_case: bool = True, key: str = "vocab") -> WordPiece:
    """The tokenizer of a `vocab.txt` (or of the folder that holds it), made once per file and process.

    Raises ConfigError where there is none, IntegrityError where the file is no vocabulary of BERT's.
    """
    place = expanded(path)
    place = place / FILE if place.is_dir() else place
    if not place.is_file():
        raise ConfigError(f"{key} {place}", *not_there(place, "file", otherwise=WAY_OUT))
    return _load(place.absolute(), place.stat().st_mtime_ns, lower_case)


def find_vocab(name: str, root: str | Path | None = None, key: str = "vocab") -> Path:
    """The path of a vocabulary: below cache_root, else as given, else below a configs folder; a file or its folder.

    Raises ConfigError where none of these is there.
    """
    given = expanded(name)
    below = (Path(root) if root else config.cache_root()) / given
    for place in (below, given, *(folder / given for folder in config.config_roots())):
        place = place / FILE if place.is_dir() else place
        if place.is_file():
            return place
    raise ConfigError(f"{key} {name}", f"no vocabulary, neither at {below} nor as given", WAY_OUT)


@cache
def _load(path: Path, _mtime_ns: int, lower_case: bool) -> WordPiece:
    try:
        text = read_file(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise IntegrityError(str(path), f"is no text in UTF-8: {error}", "fetch it again") from error
    # not splitlines(): a vocabulary may hold other characters that Python takes for the end of a line
    tokens = text.replace("\r\n", "\n").rstrip("\n").split("\n")
    lacking = [token for token in SPECIALS if token not in tokens]
    if lacking:
        raise IntegrityError(str(path), f"has no {', '.join(lacking)}", WAY_OUT)
    if len(set(tokens)) < len(tokens):
        twice = next(token for number, token in enumerate(tokens) if token in tokens[:number])
        raise IntegrityError(str(path), f"holds '{twice}' twice", "fetch it again")
    digest = hashlib.sha256("\n".join(tokens).encode()).hexdigest()
    return WordPiece(path, tokens, digest, lower_case)

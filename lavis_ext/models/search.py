"""How a text is searched for: beams, lengths and penalties, under LAVIS' meaning of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lavis_ext.errors import ConfigError


@dataclass(frozen=True)
class Search:
    """Beam or greedy search; lengths count new tokens, not the prompt's."""

    num_beams: int
    max_length: int
    min_length: int
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0
    num_captions: int = 1
    sampling: bool = False
    top_p: float = 0.9
    temperature: float = 1.0

    def arguments(self) -> dict[str, Any]:
        """transformers' names for it; raises ConfigError for what contradicts itself."""
        self.check()
        beams = {"length_penalty": self.length_penalty} if self.num_beams > 1 else {}
        sampling = {"do_sample": True, "top_p": self.top_p, "temperature": self.temperature} if self.sampling else {}
        return {
            "num_beams": self.num_beams,
            "max_new_tokens": self.max_length,
            "min_new_tokens": self.min_length,
            "repetition_penalty": self.repetition_penalty,
            "num_return_sequences": self.num_captions,
            "do_sample": False,
            **beams,
            **sampling,
        }

    def check(self) -> None:
        """Raises ConfigError for what contradicts itself."""
        if self.max_length < 1 or not 0 <= self.min_length <= self.max_length:
            what = f"lengths from {self.min_length} to {self.max_length} tokens"
            raise ConfigError("run.min_len", what, "0 ≤ min_len ≤ max_len and 1 ≤ max_len")
        if self.num_beams < 1:
            raise ConfigError("run.num_beams", f"{self.num_beams} beams", "at least 1")
        if not self.sampling and self.num_captions > self.num_beams:
            what = f"{self.num_captions} captions from {self.num_beams} beams"
            raise ConfigError("num_captions", what, "no more captions than beams, or use_nucleus_sampling=True")

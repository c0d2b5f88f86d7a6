"""Texts and conversations for any tokenizer: bare texts behind pictures, and turns by the tokenizer's chat template."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import AddedToken

from lavis_ext.common.errors import ConfigError
from lavis_ext.models.text import IGNORED, Ids, Prompter, Side, TextTokens

IMAGE = "<image>"
PLACE = -1
"""The id of an image place: no token, so neither the tokenizer nor the embeddings of the language model grow."""
Turn = Mapping[str, str]
Row = tuple[Ids, Ids]
"""Token ids with image places, and labels of the same length; IGNORED where nothing is learnt."""
ROLES = ("system", "user", "assistant")
MARK = re.compile("\ue000([0-9]+)\ue001")
"""Stands for a turn's text while the template is rendered, so that its place is known and no template can change it."""


class TooLong(ConfigError):
    """A conversation that leaves no room for an answer."""


class TurnPrompter(Prompter):
    """A tokenizer with image places anywhere in a text.

    A bare text is `opening`, places, prompt, text, end token, where `opening` is what the tokenizer itself puts first
    (`<s>`, `<|begin_of_text|>`; nothing with Qwen or GPT-NeoX) and the end token is its `eos_token`. Special tokens
    that a text spells are read as plain characters.
    """

    def __init__(self, tokenizer: Any, num_query: int, max_txt_len: int, max_chat_len: int, end_id: int) -> None:
        super().__init__(tokenizer, PLACE, num_query, max_txt_len)
        self.max_chat_len, self.closer = max_chat_len, end_id
        self.reader = copy.deepcopy(tokenizer)
        self.reader.add_tokens([AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True)
        self.image_id = int(self.reader.convert_tokens_to_ids(IMAGE))
        self.added = sorted({one.content for one in tokenizer.added_tokens_decoder.values()} - {IMAGE}, key=len)[::-1]
        special = {one.content for one in tokenizer.added_tokens_decoder.values() if one.special}
        self.special = sorted((special | set(tokenizer.all_special_tokens)) - {IMAGE}, key=len)[::-1]
        whole, bare = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
        start = next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), 0)
        self.opening: Ids = whole[:start]
        self.closing: Ids = whole[start + len(bare) :]
        """What the tokenizer itself puts last, which encoders were trained with."""

    @property
    def pad_id(self) -> int:
        """The pad token, else the end token; the mask distinguishes pads from text."""
        pad = self.tokenizer.pad_token_id
        return self.closer if pad is None else int(pad)

    # Bare texts.

    def plain(self, texts: Sequence[str]) -> list[Ids]:
        """The tokens of texts by themselves."""
        found: list[Ids] = self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return found

    def following(self, head: str, texts: Sequence[str]) -> list[Ids]:
        """The tokens of texts as they follow `head` behind a space; a text after a line break follows it directly.

        Tokenizers mark the space in the word (`Ġred`, `▁red`), and some put one before every text.
        """
        if not head.strip(" "):
            return self.plain(texts)
        context, space = ("a\n", "") if head.endswith("\n") else ("a", " ")
        start = self.plain([context])[0]
        rows = self.plain([f"{context}{space}{text}" if text else context for text in texts])
        together = all(row[: len(start)] == start for row in rows)
        return [row[len(start) :] for row in rows] if together else self.plain([f"{space}{text}" for text in texts])

    def ended(self, ids: Ids, longest: int) -> Ids:
        """A text to learn with its end token; one that is cut has none, as it does not end there."""
        return [*ids, self.closer][:longest]

    def asked(self, prompt: str) -> Ids:
        """A picture and the last `max_txt_len` tokens of a prompt, after which the language model writes."""
        ids = self.plain([prompt.rstrip(" ")])[0]
        return [*self.opening, *self.places, *ids[max(len(ids) - self.max_txt_len, 0) :]]

    def pair(self, prompt: str, text: str) -> Row:
        """What is asked, and the first `max_txt_len` tokens of a text, which is learnt."""
        head = self.asked(prompt)
        tail = self.ended(self.following(prompt, [text])[0], self.max_txt_len)
        longest = self.max_chat_len  # never more than the language model has positions
        return (head + tail)[:longest], ([IGNORED] * len(head) + tail)[:longest]

    def padded(self, rows: Sequence[Row], side: Side) -> tuple[TextTokens, Tensor]:
        """Rows padded to the longest, with their labels [B, L]."""
        tokens = self.pad([[]] * len(rows), [ids for ids, _ in rows], side)
        labels = torch.full_like(tokens.input_ids, IGNORED)
        labels[tokens.attention_mask.bool()] = torch.tensor([one for _, row in rows for one in row])
        return tokens, labels

    # Conversations.

    def conversation(self, turns: Sequence[Turn], pictures: int, where: str) -> Row:
        """A whole conversation, of which the assistant's texts and their end-of-turn tokens are learnt.

        Cut to `max_chat_len` tokens. Raises ConfigError at `where` for roles that are none or that the template
        refuses, and for another number of `<image>` than of pictures.
        """
        text, spans = self._rendered(turns, pictures, where)
        ids, labels = self._tokens(text, spans)
        self._require_pictures(ids, where)
        return ids[: self.max_chat_len], labels[: self.max_chat_len]

    def exchanges(self, turns: Sequence[Turn], pictures: int, where: str) -> list[tuple[Ids, str]]:
        """What stands before each of the assistant's texts, with as many pictures as there are, and the text.

        Those that `max_chat_len` tokens do not reach are left out. Raises ConfigError as `conversation` does, and for a
        picture in a turn of the assistant's.
        """
        self._texts(turns, pictures, where)
        said = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
        if any(IMAGE in turns[number]["content"] for number in said):
            what = "has a picture in a turn of the assistant's, where a decoder reads words alone"
            raise ConfigError(where, what, "leave the sample out, or write blip2_causal")
        marked = any(IMAGE in turn["content"] for turn in turns)
        found = []
        for number in said:
            before = turns[:number]
            # where no place is marked, all stand before the first text of a user's
            shown = marked or not any(turn["role"] == "user" for turn in before)
            count = sum(turn["content"].count(IMAGE) for turn in before) if shown else pictures
            head = self._before(before, count, where)
            self._require_pictures(head, where)
            if len(head) >= self.max_chat_len:
                break
            found.append((head, turns[number]["content"].strip()))
        return found

    def opened(self, turns: Sequence[Turn], pictures: int, where: str) -> Ids:
        """A conversation up to where the assistant answers the user's last turn; what stands behind that is left out.

        These are the very tokens that stand before that text in training. Raises TooLong where none would be learnt.
        """
        last = max((n for n, turn in enumerate(turns) if turn.get("role") == "user"), default=-1)
        if last < 0:
            raise ConfigError(where, "has no turn of the user to answer", "write one")
        found = self._before(turns[: last + 1], pictures, where)
        if len(found) >= self.max_chat_len:
            what = f"{len(found)} tokens before the answer, of {self.max_chat_len} in all"
            raise TooLong(where, what, "leave turns out, or raise model.max_chat_len as far as the model has positions")
        return found

    def _before(self, turns: Sequence[Turn], pictures: int, where: str) -> Ids:
        text, spans = self._rendered([*turns, {"role": "assistant", "content": "a"}], pictures, where)
        ids, labels = self._tokens(text, spans[-1:])
        return ids[: next(n for n, label in enumerate(labels) if label != IGNORED)]

    def _require_pictures(self, ids: Ids, where: str) -> None:
        if PLACE in ids[self.max_chat_len :]:
            what = f"its pictures end behind max_chat_len {self.max_chat_len}"
            raise ConfigError(where, what, "raise model.max_chat_len, or leave the sample out")

    def answer(self, text: str) -> Ids:
        """The tokens of an assistant's text, with its end of turn."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": text}]
        return [one for one in self._tokens(*self._rendered(turns, 0, "answer"))[1] if one != IGNORED]

    @cached_property
    def turn_end(self) -> int:
        """The token that ends an assistant's turn."""
        return self.answer("a")[-1]

    def _rendered(self, turns: Sequence[Turn], pictures: int, where: str) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation, and from where to where each of the assistant's turns is learnt."""
        texts = self._texts(turns, pictures, where)
        roles = [turn["role"] for turn in turns]
        parts = MARK.split(self._template(roles, where, len(texts)))
        if [int(mark) for mark in parts[1::2]] != list(range(len(texts))):
            roles, texts, parts = self._without_system(roles, texts, parts, where)
        text, spans = parts[0], []
        for role, said, after in zip(roles, texts, parts[2::2], strict=True):
            begin = len(text)
            text += said
            if role == "assistant":
                gap = after[: len(after) - len(after.lstrip())]
                token = next((one for one in self.added if after[len(gap) :].startswith(one)), None)
                closing = gap + token if token else self.end_text
                spans.append((begin, begin + len(said) + len(closing)))
                text += "" if token else closing
            text += after
        return text, spans

    def _texts(self, turns: Sequence[Turn], pictures: int, where: str) -> list[str]:
        """The turns' texts, their special tokens broken up, with as many `<image>` as there are pictures."""
        for number, turn in enumerate(turns):
            if turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
                what = f"turn {number} has the role {turn.get('role')!r} and a {type(turn.get('content')).__name__}"
                raise ConfigError(where, what, f"write a role of {', '.join(ROLES)}, and a text as content")
        texts = [self._broken(turn["content"].strip()) for turn in turns]
        count = sum(text.count(IMAGE) for text in texts)
        first = next((n for n, turn in enumerate(turns) if turn["role"] == "user"), None)
        if not count and pictures and first is not None:
            texts[first] = f"{IMAGE}\n" * pictures + texts[first]
        elif count != pictures:
            raise ConfigError(where, f"{count} {IMAGE} for {pictures} pictures", "write one for each picture, or none")
        return texts

    def _broken(self, text: str) -> str:
        """A text in which no special token is spelt: a space stands behind its first character."""
        for token in self.special:
            if len(token) > 1 and token in text:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def _template(self, roles: Sequence[str], where: str, count: int) -> str:
        """The template's text around marks; "" where it refuses the roles."""
        marks = [f"\ue000{number}\ue001" for number in range(count)]
        if not self.reader.chat_template:
            return self._default(roles, marks)
        refused: Exception | None = None
        for wrap in (str, lambda mark: [{"type": "text", "text": mark}]):
            messages = [{"role": role, "content": wrap(mark)} for role, mark in zip(roles, marks, strict=True)]
            try:
                # Qwen 3's template then has its empty thoughts before the answer, as it has them in training
                text: str = self.reader.apply_chat_template(messages, tokenize=False, enable_thinking=False)
            except Exception as error:  # a template's own raise_exception, or whatever Jinja meets in it
                refused = error
                continue
            if MARK.findall(text) == [str(number) for number in range(count)]:
                return text
        if "system" in roles:
            return ""
        what = "the chat template does not take its turns" + (f": {refused}" if refused else "")
        raise ConfigError(where, what, "let user and assistant take turns, the user first")

    def _without_system(self, roles: list[str], texts: list[str], parts: list[str], where: str) -> Any:
        """The same for templates without a system's turn, as Gemma's: its text goes before the first user's."""
        kept = [number for number, role in enumerate(roles) if role != "system"]
        told = "\n\n".join(text for role, text in zip(roles, texts, strict=True) if role == "system")
        first = next((number for number in kept if roles[number] == "user"), None)
        if first is None:
            raise ConfigError(where, "has no turn of the user", "write one")
        texts = [*texts[:first], f"{told}\n\n{texts[first]}", *texts[first + 1 :]]
        roles, texts = [roles[n] for n in kept], [texts[n] for n in kept]
        return roles, texts, MARK.split(self._template(roles, where, len(texts)))

    @property
    def end_text(self) -> str:
        """The text of the end token."""
        return str(self.tokenizer.convert_ids_to_tokens(self.closer))

    def _default(self, roles: Sequence[str], marks: Sequence[str]) -> str:
        """`SYSTEM USER: … ASSISTANT: …</s>USER: …`, as Vicuna and LLaVA have it."""
        forms = {"system": "{} ", "user": "USER: {} ", "assistant": "ASSISTANT: {}"}  # the end token follows the mark
        return "".join(forms[role].format(mark) for role, mark in zip(roles, marks, strict=True))

    def _tokens(self, text: str, spans: Sequence[tuple[int, int]]) -> Row:
        """Ids with image places and labels; a token is learnt where it overlaps a span."""
        found = self.reader(text, add_special_tokens=False, return_offsets_mapping=True)
        opening = [] if self.reader.chat_template else self.opening
        ids, labels = list(opening), [IGNORED] * len(opening)
        for one, (start, stop) in zip(found["input_ids"], found["offset_mapping"], strict=True):
            if one == self.image_id:
                ids += self.places
                labels += [IGNORED] * len(self.places)
            else:
                ids.append(one)
                labels.append(one if any(start < end and stop > begin for begin, end in spans) else IGNORED)
        return ids, labels

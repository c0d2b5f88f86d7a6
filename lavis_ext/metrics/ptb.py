"""English text → Penn Treebank tokens, lower case, punctuation removed, as in COCO's caption evaluation.

Replaces the Java tokenizer of that evaluation (options -preserveLines -lowerCase); the rules were found by comparing
outputs. Two quirks of the original are kept, since published scores have them: brackets stay as `-lrb-` and the like,
because they are lowercased before the list of punctuation in capitals is applied; runs such as `!!` stay too.

Known to differ: telephone numbers with brackets or spaces (there one token, with a no-break space in it); abbreviations
glued by a hyphen to what follows (`etc.-b`); the full stop of a letter before a capitalised abbreviation (`C. Mr.`);
typographic quotes glued to a word on both sides or inside addresses; emoticons of more than three signs; rare scripts.
COCO's own captions give equal tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

# These keep their full stop whatever follows; found by running the Java tokenizer on every word of up to four letters,
# and on the longer ones that dictionaries list.
ABBREVIATIONS: tuple[str, ...] = tuple(
    """
    al cf co ct dr ft ga jr ky lt md mo mr ms mt ph rd rt sq sr st va vs vt wm adj adm adv ala apr aug ave bhd
    cie col cos cpl dak dec det drs ens esq est etc ext feb fla fri gen gov hon inc ind jan jos jul jun kan ltd
    maj mar mfg mme mon mrs mtg neb nev nov oct pfc plc pte pty pvt rep rev sen sep seq sfc sgt spc ste sys tel
    thu tue wed wis wyo alex ariz assn asst atty bldg blvd brig bros capt cmdr colo conn corp dept elec govs
    insp intl invt kans mich minn mlle mont msgr natl okla penn ppte ppty pres prof ptes ptys reps sens sept
    supt tenn tues univ wisc assoc attys calif comdr lieut messrs profs supts thurs treas
    """.split()  # noqa: SIM905
)
BEFORE_NUMBERS = ("ca", "no", "op", "pp", "art", "fig", "nos", "figs", "prop")
"""Abbreviations only where a number follows: `no. 5`."""
SPLIT_WORDS = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
    "lemme": ("lem", "me"),
    "gimme": ("gim", "me"),
    "'tis": ("'t", "is"),
    "'twas": ("'t", "was"),
}
SPELT = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    '"': "''",
    "£": "#",
    "€": "$",
    "\u00a4": "$",
    "¢": "cents",
    "½": "1/2",
    "¼": "1/4",
    "¾": "3/4",
    "\u2153": "1/3",
    "\u2154": "2/3",
    "&amp;": "&",
    "&lt;": "<",
    "&gt;": ">",
    "&quot;": "''",
    "&apos;": "'",
    "&mdash;": "--",
    "&ndash;": "--",
    "&md;": "--",
    "&nbsp;": "",
    "“": "``",
    "\u0093": "``",
    "«": "``",
    "”": "''",
    "\u0094": "''",
    "»": "''",
    "–": "--",
    "—": "--",
    "\u2015": "--",
    "\u0096": "--",
    "\u0097": "--",
    "…": "...",
    "\u0085": "...",
}
"""Symbols that are respelt."""
APOSTROPHES = str.maketrans({"’": "'", "\u0092": "'", "‘": "`", "\u0091": "`", "\u201b": "`", "\u00ad": ""})
"""Single quotes become ASCII; soft hyphens are removed."""
OWN_SYMBOLS = (
    r"!-~\u0085\u0093\u0094\u0096\u0097¡-©«¬®-´¶-¹»-¿×÷\u2013-\u2017\u201c\u201d\u2020-\u2023\u2026\u2032-\u203d"
    r"\u2070-\u209f\u20a0-\u20bf\u2103-\u214f\u2153-\u215e\u2190-\u2bff\uff01-\uffe6"
)
"""Characters that are tokens by themselves, as a range of a regular expression; other symbols are dropped."""


PUNCTUATION = frozenset("'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;".split())  # noqa: SIM905
CACHED_TEXTS = 2**16

_ODD = "²³¹¼-¾\u2070-\u209f\u2150-\u218f\u2460-\u249b"
_ACCENTED = "&[aeiou](?:acute|grave|uml);"
_L = rf"(?:[^\W\d_{_ODD}][\u0300-\u036f]*|{_ACCENTED})"
_A = rf"(?:[^\W_{_ODD}][\u0300-\u036f]*|{_ACCENTED})"
_THING = rf"(?:[dnol]'{_L})?{_A}+"
_END = rf"(?!{_A})"
_NUMBER = r"(?:\d*(?:[.:,]\d+)+|\d+)"
_PLACE = r"[a-z0-9]+(?:-[a-z]+){0,2}"
_TAIL = r"[^\s\"<>|()]*[^\s\"<>|.!?(){},'-]"

_RULES = (
    # a stem is matched together with its n't, which then becomes the next token
    rf"(?P<stem>{_L}{_A}*)n't",
    rf"{_L}{_A}*(?:[.!?]{_L}{_A}*)*(?:\.(?=[,;:]))?",
    rf"{_THING}(?:[_-]{_THING})*(?:\.(?=[,;:]))?",
    rf"{_A}[a-z0-9.,]*(?:-(?:(?:[a-z]\.)+(?!{_A})|[a-z0-9]+))+(?:\.(?=[,;:]))?",
    rf"{_L}+[aeiouy]'[aeiou]{_L}*",
    r"[cs]'(?:est|mon|mores)|qu'est|e'er|o'o|ov're|li'l|ol'|somethin'|n't|[djl]'|y'(?=[a-z])",
    rf"(?:{'|'.join(ABBREVIATIONS)})\.|(?:{'|'.join(BEFORE_NUMBERS)})\.(?=\s*\d)",
    r"(?:[a-z]\.)+",
    r"(?:ph|ed)\.d\.",
    rf"(?:{'|'.join(SPLIT_WORDS)})(?!'?{_A})",
    rf"'(?:[smd]|re|ve|ll){_END}|'n'|'n{_END}|'em|'till?|'cause|'[2-9]0s|'\d\d(?!\S)",
    rf"[-+]?{_NUMBER}",
    r"(?:\d{1,4}[- \u00a0])?\d{1,4}/\d{1,4}",
    r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}",
    rf"{_PLACE}(?:/{_PLACE}){{1,2}}",
    r"(?-i:[A-Z]+(?:&[A-Z]+)+)",
    r"(?-i:[A-Z]*\$)",
    r"[?!]+|#+|\*+|_+|@+|-{2,}|\.{3,}|\. \. \.|''|``|<<|>>|&(?:amp|quot|apos|lt|gt|nbsp|mdash|ndash|md|#\d+);",
    r"</?[a-z][a-z0-9:_.-]*\s?/?>|<[a-z][a-z0-9]* [^<>]*>|<\?[a-z][^<>]*>",
    rf"https?://{_TAIL}|www\.{_TAIL}|(?:[a-z0-9][a-z0-9-]*\.)+(?:com|net|org|edu)(?:/{_TAIL})?",
    r"[a-z0-9][^\s\"<>|(){}]*@[^\s\"<>|(){}.]+(?:\.[^\s\"<>|(){}.]+)*",
    r"@[a-z_]\w*|#[^\W\d_][^\W\d]*",
    rf"[<>]?[:;=][o*'-]?[()pd\\\]|@\[{{]{_END}|(?-i:[:;=]-?O)|[\^x=~<>'-]_[\^x=~<>'-]|[\^x=~<>]\.[\^x~<>]|\\\*",
)
_COMPILED = tuple(re.compile(rule, re.IGNORECASE) for rule in (*_RULES, f"[{OWN_SYMBOLS}]"))
_PLAIN = re.compile(r"[A-Za-z]{2,}(?=,? |\.? ?$)|[A-Za-z](?= )")
"""Fast path for nearly every word of a caption: no other rule matches more, unless it is in _HELD."""
_HELD = frozenset((*SPLIT_WORDS, *ABBREVIATIONS, *BEFORE_NUMBERS))
_RESPELT = (
    (re.compile(r"^\.[. ]+$"), "..."),
    (re.compile(r"^--+$"), "--"),
    # emoticons such as :-)
    (re.compile(r"(?<=.)\($"), "-lrb-"),
    (re.compile(r"(?<=.)\)$"), "-rrb-"),
)


@lru_cache(maxsize=CACHED_TEXTS)
def clean_tokens(text: str) -> str:
    """The tokens of a caption, joined by single spaces."""
    return " ".join(token for token in tokenize(text) if token not in PUNCTUATION)


def tokenize(text: str) -> Iterator[str]:
    """Tokens in lower case: the longest match of all rules, the first of equal ones; other characters are dropped."""
    line = text.translate(APOSTROPHES)
    at = 0
    while at < len(line):
        token = "" if line[at] == " " else _longest(line, at)
        at += max(1, len(token))
        yield from _spelt(token)


def _longest(line: str, at: int) -> str:
    plain = _PLAIN.match(line, at)
    if plain and plain.group().lower() not in _HELD:
        return plain.group()
    matches = [match for rule in _COMPILED if (match := rule.match(line, at))]
    if not matches:
        return ""
    longest = max(matches, key=re.Match.end)
    return longest.groupdict().get("stem") or longest.group()


def _spelt(token: str) -> tuple[str, ...]:
    """The tokens of a match; none for a space."""
    lower = token.lower()
    if lower in SPLIT_WORDS:
        return SPLIT_WORDS[lower]
    if lower.isalpha():
        return (lower,)
    for pattern, spelling in _RESPELT:
        lower = pattern.sub(spelling, lower)
    lower = SPELT.get(lower, lower).replace(" ", "\u00a0")
    return (lower,) if lower else ()

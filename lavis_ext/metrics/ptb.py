"""English text → Penn Treebank tokens, lower case, punctuation removed, as in COCO's caption evaluation.

Replaces the Java tokenizer of that evaluation (options -preserveLines -lowerCase); the rules were found by comparing
outputs. Two quirks of the original are kept, since published scores have them: brackets stay as `-lrb-` and the like,
because they are lowercased before the list of punctuation in capitals is applied; runs such as `!!` stay too.

At each place the longest match wins, where the text that a rule looks at behind its token counts too; of equal ones the
first rule, as in the original. Known to differ: soft hyphens beside signs; letters that Unicode has had since 2013;
spaces other than ASCII in e-mail addresses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

# These keep their full stop whatever follows; found by running the Java tokenizer on every word of up to four letters,
# and on the longer ones that dictionaries list.
TITLES: tuple[str, ...] = tuple(
    """
    cf dr ft lt mr ms mt ph st vs wm adj adm adv ave cie col cpl det drs ens gen gov hon jos maj mfg mme mrs mtg
    pfc pvt rep rev sen sfc sgt spc ste alex asst atty brig capt cmdr dept elec govs insp invt mlle msgr natl
    pres prof reps sens supt assoc attys comdr lieut messrs profs supts treas
    """.split()  # noqa: SIM905
)
ENDINGS: tuple[str, ...] = tuple(
    """
    al co ct ga jr ky md mo rd rt sq sr va vt ala apr aug bhd cos dak dec esq est etc ext feb fla fri inc ind
    jan jul jun kan ltd mar mon neb nev nov oct plc pte pty sep seq sys tel thu tue wed wis wyo ariz assn bldg
    blvd bros colo conn corp intl kans mich minn mont okla penn ppte ppty ptes ptys sept tenn tues univ wisc
    calif thurs
    """.split()  # noqa: SIM905
)
"""Those with which a sentence may end: the scanner looks two signs further."""
STARTS: tuple[str, ...] = tuple(
    """
    a about according additionally after an as at but earlier he her here however if in it last many more now
    once one other our she since so some such that the their then there these they this we what when while yet
    you
    """.split()  # noqa: SIM905
)
"""Behind an initial, these words in capitals begin a sentence; `mr.` and `ms.` do, too."""
BEFORE_NUMBERS = ("ca", "no", "op", "pp", "art", "fig", "nos", "figs", "prop")
"""Abbreviations only where a number follows: `no. 5`."""
SPLIT_WORDS = frozenset(("cannot", "gonna", "gotta", "wanna", "lemme", "gimme"))
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
    "\u0080": "$",
    "\u20a0": "$",
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
    "\u2039": "`",
    "\u203a": "'",
    "‘": "`",
    "\u0091": "`",
    "\u201b": "`",
    "’": "'",
    "\u0092": "'",
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
APOSTROPHES = str.maketrans({"’": "'", "\u0092": "'", "‘": "`", "\u0091": "`", "\u201b": "`"})
"""Single quotes become ASCII in tokens."""
OWN_SYMBOLS = (
    r"!-~\u0080\u0085\u0093-\u0094\u0096-\u0097\u00a1\u00a2-\u00a4\u00a5-\u00a9\u00ab\u00ac\u00ae-\u00b4"
    r"\u00b6-\u00b9\u00bb-\u00be\u00bf\u00d7\u00f7\u037e\u0387\u0589\u05be\u05c0\u05c3\u05c6\u05f3-\u05f4"
    r"\u0600-\u0603\u0606-\u060c\u0614\u061b\u061e-\u061f\u066a\u066d\u06d4\u0700-\u070d\u07f6-\u07f8"
    r"\u0964-\u0965\u0e3f\u0e4f\u1fbd\u2013-\u2015\u2016-\u2017\u201a\u201c-\u201d\u201e-\u2023\u2026"
    r"\u2030-\u2038\u203b\u203e-\u2042\u2044\u2070\u2074-\u207e\u2080-\u208e\u20a0\u20a4\u20ac"
    r"\u2100-\u2101\u2103-\u2106\u2108-\u2109\u2114\u2116-\u2118\u211e-\u2123\u2125\u2127\u2129\u212e"
    r"\u213a-\u213b\u2140-\u2144\u214a-\u214d\u214f\u2153-\u2154\u2155-\u215e\u2190-\u2bff\u3001-\u3002"
    r"\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0-\uffe1\uffe5-\uffe6"
)
"""Characters that are tokens by themselves, as ranges of a regular expression; other symbols are dropped."""
MARKS = (
    r"\u02c2-\u0379\u0384-\u0385\u03f6\u0483-\u0487\u055a-\u055f\u0591-\u05bd\u05bf\u05c1-\u05c2"
    r"\u05c4-\u05c5\u05c7\u0615-\u061a\u064b-\u065e\u0670\u06d6-\u06ed\u06fd-\u06fe\u070f-\u07b0"
    r"\u07eb-\u07f3\u0900-\u0903\u093c-\u094e\u0951-\u0955\u0962-\u0963\u0981-\u0983\u09bc-\u09c4"
    r"\u09c7-\u09c8\u09cb-\u09cd\u09d7\u09e2-\u09e3\u0a01-\u0a03\u0a3c\u0a3e-\u0a4f\u0a81-\u0a83"
    r"\u0abc-\u0acf\u0b82\u0bbe-\u0bc2\u0bc6-\u0bc8\u0bca-\u0bcd\u0c01-\u0c03\u0c3e-\u0c56\u0d3e-\u0d44"
    r"\u0d46-\u0d48\u0e31-\u0e3a\u0e47-\u0e4e\u0eb1-\u0ebc\u0ec8-\u0ecd"
)
"""Accents and vowel signs that are letters here, also where they stand alone. Found, as the symbols, by asking Java for
every character; letters that Unicode has had since 2013 only are dropped there."""


PUNCTUATION = frozenset("'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;".split())  # noqa: SIM905
CACHED_TEXTS = 2**16

_ODD = "²³¹¼-¾\u2070-\u209f\u2150-\u218f\u2460-\u249b"
_ACCENTED = "&[aeiou](?:acute|grave|uml);"
_PLAIN_LETTER, _PLAIN_SIGN = rf"[^\W\d_{_ODD}]", rf"[^\W_{_ODD}]"
_L = rf"(?:{_PLAIN_LETTER}|[{MARKS}]|{_ACCENTED})"
_A = rf"(?:{_PLAIN_SIGN}|[{MARKS}]|{_ACCENTED})"
_WORD = rf"{_L}{_A}*(?:[.!?]{_L}{_A}*)*"
_QUOTES = re.compile(r"[`\u0091-\u0094«»\u2018-\u201f\u2039\u203a]{1,2}")
_QUOTE, _TURNED = "['\u2019\u0092]", "['\u2019\u0092\u2018\u0091\u201b]"
_THING = rf"(?:[dol]{_TURNED}{_PLAIN_LETTER})?{_PLAIN_SIGN}+"
_SHORT = rf"{_QUOTE}(?:[smd]|re|ve|ll)"
_NUMBER = r"(?:\d*(?:[.:,]\d+)+|\d+)"
_PLACE = r"[a-z0-9]+(?:-[a-z]+){0,2}"
_BREAKS = r"\s\"<>|"
_TAIL = rf"[^{_BREAKS}(){{}}]+[^{_BREAKS}.!?(){{}},-]"
_HOST = (
    rf"(?:www\.(?:[^{_BREAKS}.!?(){{}},]+\.)+[a-z]{{2,4}}|(?:(?-i:[^{_BREAKS}`'!?(){{}}$,-_])+\.)+(?:com|net|org|edu))"
)
_TAG = r"</?[a-z][a-z0-9:_.-]*\s?/?>|<[a-z][a-z0-9]* [^<>]*>|<\?[a-z][^<>]*>"
_HYPHENED = r"[a-z0-9][a-z0-9.,]*(?:-(?:(?:[a-z]\.){2,}|[a-z0-9]+))+"
_INSIDE = "[,;:\u3001]"

# token, and what must stand behind it; {} there is the line's end or any sign
_RULES: tuple[tuple[str, str], ...] = (
    ("can", "not"),
    ("gon|wan", "na"),
    ("got", "ta"),
    ("lem|gim", "me"),
    ("'t", "is|was"),
    (_TAG, ""),
    (r"&(?:amp|quot|apos|lt|gt|nbsp|mdash|ndash|md|#\d+);", ""),
    (_WORD, _SHORT),
    (r"[a-z]*[a-mo-z]", rf"n{_TURNED}t"),
    (_WORD, ""),
    (
        rf"{_QUOTE}n{_QUOTE}?|[ldj]{_QUOTE}|dunkin{_QUOTE}|somethin{_QUOTE}|ol{_QUOTE}|{_QUOTE}em|{_QUOTE}[2-9]0s|"
        rf"{_QUOTE}till?|{_QUOTE}cause|cont'd\.?|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l|ov're|qu'est|"
        rf"(?-i:[A-HJ-XZn]{_TURNED}){_PLAIN_LETTER}{{2,}}|o{_TURNED}o",
        "",
    ),
    (rf"{_PLAIN_LETTER}+[aeiouy]{_TURNED}(?-i:[aeiouA-Z]){_PLAIN_LETTER}*", ""),
    (rf"y{_QUOTE}", _PLAIN_LETTER),
    (rf"https?://{_TAIL}", ""),
    (rf"{_HOST}(?:/{_TAIL})?", ""),
    (r"(?:<|&lt;)?[a-z0-9][^\s\"<>|(){}]*@[^\s\"<>|(){}.]+(?:\.[^\s\"<>|(){}.]+)*(?:>|&gt;)?", ""),
    (rf"@[a-z_][a-z0-9_]*|#{_L}+", ""),
    (rf"{_SHORT}|n{_TURNED}t", "[^A-Za-z]"),
    (r"[\u2019\u0092](?:[smd]|re|ve|ll)", ""),
    (r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}", ""),
    (rf"[-+]?{_NUMBER}", ""),
    (r"(?:\d{1,4}[- \u00a0])?\d{1,4}(?:\\?/|\u2044)\d{1,4}", ""),
    (r"-[lr][rcs]b-|c\.d\.s|pro-|anti-|s&(?:amp;)?p-500|s&(?:amp;)?ls|cap'n|c'(?:est|mon)", ""),
    (rf"{_PLACE}(?:\\?/{_PLACE}){{1,2}}", ""),
    (r"(?-i:[A-Z]*\$)|#", ""),
    ("[a-z]", rf"\.\s+(?:(?=(?-i:[A-Z]))(?:{'|'.join(STARTS)}|m[rs]\.)\s|{_TAG})"),
    (rf"(?:{'|'.join(TITLES)})\.", ""),
    (rf"(?:{'|'.join(ENDINGS)}|ph\.d|ed\.d)\.", r"[\s\S]{2}"),
    (rf"(?:{'|'.join(BEFORE_NUMBERS)})\.", r"\s?\d"),
    (r"(?:[a-z]\.)+", ""),
    (rf"{_QUOTE}\d\d", r"\s"),
    (
        rf"{_A}+(?:\.{_A}+)*\.(?:bat|bmp|c|class|cgi|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|mp3|pdf|php|pl|"
        r"png|ppt|ps|py|sql|tar|txt|wav|x|xml|zip)",
        r"[\s.?!,]",
    ),
    (rf"{_WORD}\.", _INSIDE),
    (r"[<>]?[:;=][o*'-]?[()pd\\\]|@\[{]|(?-i:[:;=][o*'-]?O)", "[^A-Za-z0-9]"),
    (r"[\^x=~<>'-]_[\^x=~<>'-]|\\\*", ""),
    (r"[?!]+|#+|\*+|_+|@+|-{2,}|\.{3,}|\. \. \.|''|``|<<|>>", ""),
    (r"c\+\+|[cf]#", ""),
    (rf"{_HYPHENED}\.", _INSIDE),
    (_HYPHENED, ""),
    (rf"{_THING}(?:[_\u2010\u2011\u058a-]{_THING})*\.", _INSIDE),
    (rf"{_THING}(?:[_\u2010\u2011\u058a-]{_THING})*", ""),
    (r"(?-i:[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+)", ""),
    ("'", r"[A-Za-z]\S"),
    (
        r"\(\d{2,3}\)[ \u00a0]?\d{3,4}[- \u00a0]?\d{3,5}|"
        r"(?:\+\+?)?(?:\d{2,4}[- \u00a0])?\d{2,4}[- \u00a0]\d{3,4}[- \u00a0]?\d{3,5}|"
        r"(?:(?:\+\+?)?\d{2,4}\.)?\d{2,4}\.\d{3,4}\.\d{3,5}",
        "",
    ),
    (_QUOTES.pattern, ""),
    (f"[{OWN_SYMBOLS}]", ""),
)
_NORMALISED = re.compile(rf"{_SHORT}|n{_TURNED}t|{_TURNED}", re.IGNORECASE)
"""Tokens whose quotes become ASCII; those inside words and addresses stay."""
_COMPILED = tuple(
    re.compile(f"({token})" + (f"(?:{behind})" if behind else ""), re.IGNORECASE) for token, behind in _RULES
)
_PLAIN = re.compile(r"[A-Za-z]{2,}(?=,? |\.? ?$)|[A-Za-z](?= )")
"""Fast path for nearly every word of a caption: no other rule matches more, unless it is in _HELD."""
_HELD = frozenset((*SPLIT_WORDS, *TITLES, *ENDINGS, *BEFORE_NUMBERS))
_RESPELT = (
    (re.compile(r"^\.[. ]+$"), "..."),
    (re.compile(r"^-{2,4}$"), "--"),
    # telephone numbers
    (re.compile(r"^\((?=\d)"), "-lrb-"),
    (re.compile(r"(?<=\d)\)(?=.)"), "-rrb-"),
    # emoticons such as :-)
    (re.compile(r"(?<=.)\($"), "-lrb-"),
    (re.compile(r"(?<=.)\)$"), "-rrb-"),
)


@lru_cache(maxsize=CACHED_TEXTS)
def clean_tokens(text: str) -> str:
    """The tokens of a caption, joined by single spaces."""
    return " ".join(token for token in tokenize(text) if token not in PUNCTUATION)


def tokenize(text: str) -> Iterator[str]:
    """Tokens in lower case; characters that no rule takes are dropped."""
    line = text.replace("\u00ad", "") + "\n\n"  # the scanner may look two signs beyond a token
    at = 0
    while at < len(line) - 2:
        token = "" if line[at] == " " else _longest(line, at)
        at += max(1, len(token))
        yield from _spelt(token)


def _longest(line: str, at: int) -> str:
    plain = _PLAIN.match(line, at, len(line) - 2)
    if plain and plain.group().lower() not in _HELD:
        return plain.group()
    matches = [match for rule in _COMPILED if (match := rule.match(line, at))]
    return max(matches, key=re.Match.end).group(1).rstrip("\n") if matches else ""


def _spelt(token: str) -> tuple[str, ...]:
    """The tokens of a match; none for a space."""
    lower = token.lower()
    if _NORMALISED.fullmatch(lower):
        lower = lower.translate(APOSTROPHES)
    if lower.isalpha():
        return (lower,)
    for pattern, spelling in _RESPELT:
        lower = pattern.sub(spelling, lower)
    lower = "".join(SPELT.get(sign, sign) for sign in lower) if _QUOTES.fullmatch(lower) else SPELT.get(lower, lower)
    lower = lower.replace(" ", "\u00a0")
    return (lower,) if lower else ()

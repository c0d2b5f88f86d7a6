"""What the Penn Treebank tokenizer of COCO's evaluation knows by heart: abbreviations, and how symbols are spelt."""

from __future__ import annotations

# Those that keep their full stop whatever follows: found by asking it for every word of up to four letters, and for the
# longer ones that dictionaries list.
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
"""Symbols that come out in another spelling."""
APOSTROPHES = str.maketrans({"’": "'", "\u0092": "'", "‘": "`", "\u0091": "`", "\u201b": "`", "\u00ad": ""})
"""Single quotes are read as their ASCII spelling; soft hyphens are not read."""
OWN_SYMBOLS = (
    r"!-~\u0085\u0093\u0094\u0096\u0097¡-©«¬®-´¶-¹»-¿×÷\u2013-\u2017\u201c\u201d\u2020-\u2023\u2026\u2032-\u203d"
    r"\u2070-\u209f\u20a0-\u20bf\u2103-\u214f\u2153-\u215e\u2190-\u2bff\uff01-\uffe6"
)
"""Characters that are tokens by themselves, as a range of a regular expression; others that are no text are dropped."""

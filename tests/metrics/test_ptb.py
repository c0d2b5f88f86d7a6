"""The tokenizer against what the Java one answered once, and against the Java one itself where it can be run."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavis_ext.demo.world import World
from lavis_ext.metrics.ptb import PUNCTUATION, clean_tokens

CAPTIONS = os.environ.get("LAVIS_EXT_TEST_CAPTIONS", "")
"""A file of COCO's captions; where it is named, every caption in it is compared."""
ANSWERED = {
    "A man's hat; the dogs' bowls aren't here. I'd've gone.": "a man 's hat the dogs bowls are n't here i 'd 've gone",
    "can't cannot won't gonna gotta wanna gimme lemme": "ca n't can not wo n't gon na got ta wan na gim me lem me",
    "'tis 'twas wanna-be more'n cannots dunno": "'t is 't was wanna-be more 'n cannots dunno",
    "two o'clock O'Brien rock'n'roll y'all ma'am": "two o'clock o'brien rock 'n' roll y' all ma'am",
    "price $1,000.50 and $5 US$30 £5 €10 5¢": "price $ 1,000.50 and $ 5 us$ 30 # 5 $ 10 5 cents",
    "#1 #hashtag @user a@b.com": "# 1 #hashtag @user a@b.com",
    "3/4 cup, 1 1/2 cups, ½ and 5½": "3/4 cup 1\u00a01/2 cups 1/2 and 5 1/2",
    "10:30 10:30am 5pm 5-6 people 1990s '90s the 1990's": "10:30 10:30 am 5pm 5-6 people 1990s '90s the 1990 's",
    "2nd 21st 100% 1,000 1.5 .5 -5 +5": "2nd 21st 100 % 1,000 1.5 .5 -5 +5",
    "e.g., i.e. U.S. Mr. Smith, Dr. St. Ave. etc. vs. no. 5": "e.g. i.e. u.s. mr. smith dr. st. ave. etc. vs. no. 5",
    "there is no. 4 ft. by 5 in.": "there is no. 4 ft. by 5 in",
    "ends in U.S.": "ends in u.s.",
    "wait... what?! really?? yes!!! . . . hm…": "wait what ?! really ?? yes !!! hm",
    "(left) [right] {both} <b>bold</b> < 5": "-lrb- left -rrb- -lsb- right -rsb- -lcb- both -rcb- <b> bold </b> < 5",
    "a & b AT&T R&B &amp; &lt;": "a & b at&t r&b & <",
    "\"quoted\" 'single' “curly” it’s don’t ``back''": "quoted single curly it 's do n't back",
    "café naïve résumé 日本 🙂 ❤ 30°C": "café naïve résumé 日本 ❤ 30 ° c",
    "and/or he/she w/ b/w 24/7 11/22/2014 red/white/blue": "and/or he/she w / b/w 24/7 11/22/2014 red/white/blue",
    "http://www.x.com/a?b=c foo.org/bar john@x.co.uk": "http://www.x.com/a?b=c foo.org/bar john@x.co.uk",
    "a--b a - b a – b a — b a-b-c well-known pre- -ing": "a b a b a b a b a-b-c well-known pre ing",
    ":) :-) ;) :D =) ^_^": ":-rrb- :--rrb- ;-rrb- :d =-rrb- ^_^",
    "word.Word word,word word;word word!word": "word.word word word word word word!word",
    "A.M. p.m. J.K. Rowling D.C. Ph.D. T.V.": "a.m. p.m. j.k. rowling d.c. ph.d. t.v.",
    "5'10\" 6 ft. 5x7 3D X-ray T-shirt": "5 10 6 ft. 5x7 3d x-ray t-shirt",
    "dog., lb.; x": "dog. lb. x",
    "~ ` @ # $ % ^ * _ = + | \\ /": "~ @ # $ % ^ * _ = + | \\ /",
    "C++ c# F# J++ xC++ C#5": "c++ c# f# j + + xc + + c# 5",
    "-LRB- left -RRB- -lsb- x-LRB- -LRB--RCB-": "-lrb- left -rrb- -lsb- x-lrb -lrb- -rcb-",
    "₹50 ₩5 ₠5 €5 ‹x› «y» ‚ „z“ ‰ 100° 5°C ″ ‼ ※": "50 5 $ 5 $ 5 x y ‚ „ z ‰ 100 ° 5 ° c ″ ※",
    "e\u0301 \u0301 a \u0301b 5\u03017": "e\u0301 \u0301 a \u0301b 5 \u03017",
    "don’t ’em it’s o’clock ‘n’ isn‘t": "do n't ’em it 's o’clock n is n`t",
    "don'tx don't5 cafén't shan'tt 'tisx C'mon can't100": "do n'tx do n't 5 cafén t sha n'tt 't isx c'mon ca n't 100",
    "it'sx it's5 'mx ’mx more'n, more'n x": "it sx it 's 5 mx 'm x more n more 'n x",
    "etc.a b, Mr.a b, C. The end, C. St. B. <b> U.S. A": "etc. a b mr.a b c the end c. st. b <b> u.s. a",
    "Ph.D.x x-U.S. y p.m.-a. vs.-1,000 é,10-20": "ph.d. x x-u.s. y p.m.-a vs.-1 ,000 é ,10 -20",
    "555-1234 (555) 123-4567, 20 300, 12/25/2020": "555-1234 -lrb-555-rrb-\u00a0123-4567 20 300 12/25/2020",
    "5.jpg a.b.png, 5.jpgx 5_a.gif": "5.jpg a.b.png 5 jpgx 5_a gif",
    "©www.foo.org foo5.com <a@b.com> http://a.b/c'": "©www.foo.org foo5.com <a@b.com> http://a.b/c'",
    "^.^ ^_^ :[ ={ :)x :'( ------ a----b": "^ ^ ^_^ :[ ={ -rrb- x :'-lrb- ------ a b",
    "colour color theatre organise": "colour color theatre organise",
    "": "",
    " \t ": "",
}


@pytest.mark.parametrize("caption", ANSWERED)
def test_what_java_answered(caption: str) -> None:
    assert clean_tokens(caption) == ANSWERED[caption]


@given(st.text(max_size=60))
def test_any_text_becomes_lower_case_tokens_without_spaces(text: str) -> None:
    tokens = clean_tokens(text).split(" ")
    assert not PUNCTUATION & set(tokens)
    assert all(not any(c in " \t\n" for c in token) for token in tokens)
    assert tokens == [""] or all(tokens)


def java_tokens(captions: list[str], folder: Path) -> list[str]:
    """What the tokenizer of pycocoevalcap makes of one caption a line."""
    spec = find_spec("pycocoevalcap")
    assert spec and spec.submodule_search_locations
    jar = Path(spec.submodule_search_locations[0]) / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    file = folder / "captions.txt"
    file.write_text("\n".join(captions), encoding="utf-8")
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    run = subprocess.run([*command, "-preserveLines", "-lowerCase", str(file)], capture_output=True, check=True)
    lines = run.stdout.decode("utf-8").split("\n")[: len(captions)]
    return [" ".join(word for word in line.rstrip().split(" ") if word not in PUNCTUATION) for line in lines]


UPSTREAM = Path(os.environ.get("LAVIS_EXT_UPSTREAM") or "nowhere") / "ptb.json"
"""Strings and the tokens that Java gave, one list of pairs."""


@pytest.mark.skipif(not UPSTREAM.is_file(), reason="LAVIS_EXT_UPSTREAM names no folder with ptb.json")
def test_every_string_that_java_answered_elsewhere(record_property: Callable[[str, int], None]) -> None:
    pairs = json.loads(UPSTREAM.read_text(encoding="utf-8"))
    record_property("texts", len(pairs))
    assert [(text, clean_tokens(text)) for text, _ in pairs] == [tuple(pair) for pair in pairs]


needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")


@needs_java
def test_java_still_answers_so(tmp_path: Path) -> None:
    captions = [caption for caption in ANSWERED if caption.strip()]
    assert java_tokens(captions, tmp_path) == [ANSWERED[caption] for caption in captions]


@needs_java
def test_the_captions_of_the_small_world(tmp_path: Path) -> None:
    captions = [caption for scene in World().scenes("train") for caption in scene.captions()]
    assert [clean_tokens(caption) for caption in captions] == java_tokens(captions, tmp_path)


@needs_java
@pytest.mark.skipif(not CAPTIONS, reason="LAVIS_EXT_TEST_CAPTIONS names no file")
def test_real_captions(tmp_path: Path) -> None:
    rows = json.loads(Path(CAPTIONS).read_text(encoding="utf-8"))["annotations"]
    captions = [" ".join(row["caption"].split("\n")) for row in rows]
    assert [clean_tokens(caption) for caption in captions] == java_tokens(captions, tmp_path)


WORDS = """
a the man dog Dog's can't CANNOT gonna it's they're o'clock U.S. Mr. St. etc. e.g. no. p.m. A.M. 5 10 1990 3.5 1,000
2nd 3/4 10:30 $5 50% t-shirt well-known X-ray he/she and/or AT&T men's dogs' I'm isn't won't '80s 'em rock'n'roll
street ft. co. TV wi-fi café O'Neil D.C. Ph.D. 4x4 C++ C# -LRB- -rrb- ₹50 ‹x› ‚ „ ‰ ° 5°C \u0301 “ ” ’ ‘ « » don’t ’em
http://a.b/c?d=e foo.com a@b.com #tag @user &amp; <b> 日本 Привет © ™ ″ ½ ² 12/25/2020 555-1234 a.jpg Inc. B. x=y :) ^_^
""".split()  # noqa: SIM905
BETWEEN = [
    *[" "] * 20,
    ", ",
    ". ",
    " - ",
    "-",
    "/",
    "'",
    "' ",
    " '",
    '" ',
    ' "',
    "! ",
    ": ",
    "; ",
    " (",
    ") ",
    "...",
    " & ",
]


@needs_java
def test_random_captions_differ_in_less_than_one_of_five_hundred(tmp_path: Path) -> None:
    rng = random.Random(20)
    lengths = [rng.randint(1, 7) for _ in range(3000)]
    captions = ["".join(rng.choice(WORDS) + rng.choice(BETWEEN) for _ in range(length)) for length in lengths]
    answers = java_tokens(captions, tmp_path)
    different = [c for c, answer in zip(captions, answers, strict=True) if clean_tokens(c) != answer]
    assert len(different) < len(captions) / 500, different[:10]

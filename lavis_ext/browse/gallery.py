"""What a model said about pictures: the best, the worst and a cross-section, beside what people said."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from lavis_ext.browse.html import section

MAX_SHOTS = 48
EDGE = 4
MAX_TRUTHS = 3
MAX_BYTES = 200_000
DESCRIBED = ("Closest to what people wrote", "Furthest from it", "A cross-section")
ANSWERED = ("Right", "Wrong", "A cross-section")


def gallery_section(gallery: Mapping[str, Any]) -> str:
    """A section of figures from the index that `write_gallery` left; "" if it holds none."""
    shots = [shot for shot in gallery.get("shots") or [] if isinstance(shot, dict)][:MAX_SHOTS]
    folder = Path(str(gallery.get("folder", ".")))
    asked = any(shot.get("asked") for shot in shots)
    groups = list(zip(("best", "worst", "others"), ANSWERED if asked else DESCRIBED, strict=True))
    found = {name: [s for s in shots if s.get("group") == name] for name, _ in groups}
    content = "".join(_group(title, found[name], folder) for name, title in groups if found[name])
    figure = "what the answer is worth" if asked else "the share of words in common with the closest of theirs (F1)"
    note = f"Bold: the model. Indented: people. The figure is {figure}."
    return section(f"Examples from {gallery.get('split', '')}", content, note)


def _group(title: str, shots: Sequence[Mapping[str, Any]], folder: Path) -> str:
    return f'<h3>{escape(title)}</h3><div class="shots">{"".join(_shot(shot, folder) for shot in shots)}</div>'


def _shot(shot: Mapping[str, Any], folder: Path) -> str:
    said, name = str(shot.get("said", "")), str(shot.get("id", ""))
    asked = f'<span class="asked">{escape(str(shot["asked"]))}</span>' if shot.get("asked") else ""
    truths = list(dict.fromkeys(str(text) for text in shot.get("truths") or []))[:MAX_TRUTHS]
    items = "".join(f"<li>{escape(text)}</li>" for text in truths)
    score = shot.get("score")
    figure = f"{score:.2f}" if isinstance(score, (int, float)) else ""
    words = f'{asked}<span class="said">{escape(said) or "(nothing)"}</span><ul class="true">{items}</ul>'
    foot = f'<span class="foot"><span>{escape(name)}</span><span>{figure}</span></span>'
    return f'<figure class="shot">{_picture(shot, folder, said)}<figcaption>{words}{foot}</figcaption></figure>'


def _picture(shot: Mapping[str, Any], folder: Path, said: str) -> str:
    """The JPEG as a data URI; only a small one that lies in the gallery's own folder."""
    file = folder / Path(str(shot.get("image", ""))).name
    if file.suffix != ".jpg" or not file.is_file() or file.stat().st_size > MAX_BYTES:
        return ""
    encoded = base64.b64encode(file.read_bytes()).decode("ascii")
    return f'<img alt="{escape(said)}" loading="lazy" src="data:image/jpeg;base64,{encoded}">'


def choose(scores: Sequence[float], wanted: int = MAX_SHOTS, edge: int = EDGE) -> dict[int, str]:
    """Which samples to show, by index → group: the `edge` best and worst, and others evenly from the rest."""
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    edge = min(edge, len(ranked) // 3)
    best, worst = ranked[:edge], ranked[len(ranked) - edge :]
    rest = sorted(set(ranked) - set(best) - set(worst))
    every = max(-(-len(rest) // max(wanted - 2 * edge, 1)), 1)
    groups = [(best, "best"), (worst[::-1], "worst"), (rest[::every], "others")]
    return {index: name for members, name in groups for index in members}


def overlap(said: str, truths: Sequence[str]) -> float:
    """F1 of the words of `said` and of the closest of `truths`, in [0, 1]."""
    return max((_f1(said.lower().split(), truth.lower().rstrip(".").split()) for truth in truths), default=0.0)


def _f1(one: Sequence[str], other: Sequence[str]) -> float:
    common = len(set(one) & set(other))
    total = len(set(one)) + len(set(other))
    return 2 * common / total if total else 0.0

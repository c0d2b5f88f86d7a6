"""A page as its tags and words, and text that would break out of one that is not escaped."""

from __future__ import annotations

from html.parser import HTMLParser

HOSTILE = "</figcaption><script>alert('x')</script><img src=x onerror=alert(1)> \"quoted\" & ${name}"


class Page(HTMLParser):
    """Tags, attributes and text of a document."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "input", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words += data

    def count(self, tag: str, **wanted: str) -> int:
        return sum(
            name == tag and all(attrs.get(k.rstrip("_")) == v for k, v in wanted.items()) for name, attrs in self.tags
        )

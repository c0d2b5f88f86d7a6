"""What mkdocs adds to the pages of this folder: a reference made from the code, and pages that lie elsewhere.

mkdocs calls `on_files`, `on_page_markdown` and `on_post_build`; `reference()` needs no mkdocs, and the tests compare it
with the code.
"""

from __future__ import annotations

import ast
import inspect
import posixpath
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from lavis_ext.cli import VERBS
from lavis_ext.cli.verb import Verb
from lavis_ext.common import errors
from lavis_ext.common.config.cards import Artifact, Card, ImageList, RemoteFolder, load_cards, split_names
from lavis_ext.common.config.decode import Bound
from lavis_ext.common.config.schema import (
    AnnotationConfig,
    BuildInfo,
    DatasetConfig,
    ImagesConfig,
    ModelConfig,
    ProcessorPair,
    RunConfig,
)
from lavis_ext.common.names import NAMES
from lavis_ext.common.registry import Facade
from lavis_ext.common.wording import human

ROOT = Path(__file__).parents[1]
OUTSIDE = {
    "README.md": "index.md",
    "prepare_data/README.md": "prepare.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks/index.md",
} | {f"benchmarks/{path.name}": f"benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("[a-z]*.md")}
"""File of the repository → page of the site."""
SECTIONS = {
    "run": ("task", "Keys of `run:`", "What every run has. A task adds its own."),
    "model": ("model", "Keys of `model:`", "What every model has. An architecture adds its own."),
    "args": ("builder", "Keys of `args:` of a data set", "A shape reads these."),
    "processor": ("processor", "Keys of a processor", "They stand beside `name`."),
    "objective": ("objective", "Keys of a loss or a term of distillation", "They stand beside `name` and `weight`."),
    "metric": ("metric", "Keys of a metric", "They stand beside `name` under `run.metrics`."),
}
"""Anchor → kind of the registry, heading, and what to know."""
COMMON: Mapping[str, Any] = {"run": RunConfig, "model": ModelConfig}
DATASET = (DatasetConfig, BuildInfo, AnnotationConfig, ImagesConfig, ProcessorPair)
CARD = (Card, Artifact, RemoteFolder, ImageList)
API = {
    "Data sets": ["lavis_ext.datasets.builders.load_dataset", "lavis_ext.datasets.datasets.base_dataset.BaseDataset"],
    "Models": ["lavis_ext.models.zoo.load_model", "lavis_ext.models.zoo.load_model_and_preprocess"],
    "Processors": ["lavis_ext.processors.load_processor"],
    "Configuration and registry": ["lavis_ext.common.config.resolve.load_config", "lavis_ext.common.registry.Registry"],
    "Prepare": ["lavis_ext.prepare.run.prepare", "lavis_ext.prepare.selection.PrepareOptions"],
    "Region features": ["lavis_ext.features.store.open_store"],
    "Runs": ["lavis_ext.tasks.base_task.BaseTask", "lavis_ext.runners.runner_base.RunnerBase"],
    "Errors": ["lavis_ext.common.errors.LavisExtError", "lavis_ext.common.errors.Problem"],
}
WORDS: Mapping[Any, str] = {
    str: "text",
    bool: "true or false",
    int: "whole number",
    float: "number",
    Any: "anything",
    NoneType: "null",
}
MADE = "*Made from the code when the site is built.*"


def reference() -> dict[str, str]:
    """Page → its Markdown, made from verbs, errors, dataclasses of keys, and cards."""
    makers: dict[str, Callable[[], str]] = {
        "commands": commands,
        "exit-codes": exit_codes,
        "keys": keys,
        "cards": cards,
        "api": api,
    }
    return {f"reference/{name}.md": make() for name, make in makers.items()}


def commands() -> str:
    """Every verb with its flags."""
    parts = ["# Commands", MADE, "`lavis-ext VERB` is `python -m lavis_ext VERB`. Every verb has `--help` too."]
    parts.append("Every verb takes `--json` (objects on standard output, text on standard error), `--configs DIR`,")
    parts[-1] += " `--plugin FILE` and `--debug`. What a command ends with: [exit codes](exit-codes.md)."
    parts.append(table(["verb", "what it does"], ([f"[`{n}`](#{n})", verb.help] for n, verb in VERBS.items())))
    for name, verb in VERBS.items():
        parts += command(f"## {name} {{ #{name} }}", verb)
        for action, one in verb.actions().items():
            parts += command(f"### {name} {action} {{ #{name}-{action} }}", one)
    return "\n\n".join(parts) + "\n"


def command(head: str, verb: Verb) -> list[str]:
    """One verb, or one action of a verb: what it does, examples, and its flags."""
    parts = [f"{head}\n\n{sentence(verb.help)}"]
    if verb.actions():
        return parts
    if shown := verb.examples():
        parts.append("\n".join(["```bash", *(f"lavis-ext {one}" for one in shown), "```"]))
    rows = [
        [flag_names(names, settings), flag_values(settings), settings.get("help", "")]
        for names, settings in verb.arguments()
    ]
    return [*parts, table(["argument", "value; default", "meaning"], rows)] if rows else parts


def flag_names(names: Iterable[str], settings: Mapping[str, Any]) -> str:
    """`` `--split` `` or `` `NAME…` ``; a required one is said to be."""
    found = list(names)
    if found[0].startswith("-"):
        return ", ".join(f"`{name}`" for name in found) + (" (needed)" if settings.get("required") else "")
    shown = settings.get("metavar") or found[0]
    return f"`{shown}`" + {"+": " …", "*": " … (may be left out)", "?": " (may be left out)"}.get(
        settings.get("nargs", ""), ""
    )


def flag_values(settings: Mapping[str, Any]) -> str:
    """What a flag takes, and its default."""
    if settings.get("action") == "store_true":
        return ""
    kind = " or ".join(f"`{one}`" for one in settings.get("choices", ()))
    kind = kind or {int: "a whole number", float: "a number"}.get(settings.get("type", str), "text")
    kind += ", several" if settings.get("nargs") in ("+", "*") else ""
    default = settings.get("default")
    return f"{kind}; `{default}`" if default not in (None, "", (), []) else kind


def exit_codes() -> str:
    """Every exit code, and the class of the error that ends with it."""
    rows: dict[int, tuple[str, str]] = {0: ("", "What was asked for is there, and verified where that can be.")}
    for kind in (errors.LavisExtError, *error_kinds()):
        said = inspect.getdoc(kind) or ""
        rows.setdefault(kind.exit_code, (kind.__name__, said.partition("\n")[0]))
    rows[1] = ("", "An internal error. The file that the message names has the traceback: please report it.")
    rows[130], rows[143] = ("", "Ctrl-C. The same command goes on."), ("", "SIGTERM. The same command goes on.")
    head = ["# Exit codes", MADE, "An error is printed as `where: what; way out`, all mistakes at once."]
    shown = ([str(code), meaning, f"`{name}`" if name else ""] for code, (name, meaning) in sorted(rows.items()))
    return "\n\n".join([*head, table(["code", "meaning", "in Python"], shown)]) + "\n"


def error_kinds(kind: type[errors.LavisExtError] = errors.LavisExtError) -> Iterator[type[errors.LavisExtError]]:
    """The classes of `common/errors.py`."""
    for one in kind.__subclasses__():
        if one.__module__ == errors.__name__:
            yield one
        yield from error_kinds(one)


def keys() -> str:
    """Every key of a run file, by who reads it."""
    parts = ["# Keys of a YAML", MADE]
    parts.append("A run file has the sections `model:`, `datasets:` and `run:`. Defaults come from the cards and the")
    parts[-1] += " models' own files; `--options a.b=c` goes over all. `lavis-ext check FILE` finds every mistake."
    for anchor, (kind, heading, note) in SECTIONS.items():
        parts.append(f"## {heading} {{ #{anchor} }}\n\n{note}")
        common = COMMON.get(anchor)
        if common is not None:
            parts.append(key_table(common))
        for owner, names in owners(kind).items():
            rows = [one for one in own_fields(owner) if common is None or one.name not in common.__dataclass_fields__]
            parts.append(f"### {', '.join(f'`{name}`' for name in names)}")
            parts.append(key_table(owner, {one.name for one in rows}) if rows else "No keys of its own.")
    parts.append("## Keys of a data set { #datasets }\n\n`datasets: NAME:` and below.")
    for owner in DATASET:
        parts += [f"### {owner.__name__}", summary(owner), key_table(owner)]
    parts.append("## Keys of a card { #card }\n\n`configs/datasets/<family>/artifacts.yaml`.")
    for owner in CARD:
        parts += [f"### {owner.__name__}", summary(owner), key_table(owner)]
    return "\n\n".join(parts) + "\n"


def owners(kind: str) -> dict[Any, list[str]]:
    """Dataclass of keys → the registered names that read it."""
    found: dict[Any, list[str]] = {}
    for name in NAMES[kind]:
        owner = Facade._kinds[kind].config(name)
        if owner is not None:
            found.setdefault(owner, []).append(name)
    return found


def own_fields(owner: Any) -> list[Any]:
    """The fields that a YAML can set."""
    return [one for one in fields(owner) if one.init]


def key_table(owner: Any, only: Iterable[str] | None = None) -> str:
    """Key, type and default, and meaning, of a dataclass."""
    said, wanted = field_docs(owner), set(only) if only is not None else None
    hints = get_type_hints(owner, include_extras=True)
    rows = [
        [f"`{one.name}`", f"{kind_of(hints[one.name])}; {default_of(one)}".rstrip("; "), said.get(one.name, "")]
        for one in own_fields(owner)
        if wanted is None or one.name in wanted
    ]
    return table(["key", "value; default", "meaning"], rows)


def kind_of(hint: Any) -> str:
    """A type as a person writes it."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return " ".join([kind_of(parts[0]), *(str(one) for one in parts[1:] if isinstance(one, Bound))])
    if kind is Literal:
        return " or ".join(str(one) for one in parts)
    if kind in (Union, UnionType):
        return " or ".join(map(kind_of, parts))
    if kind is list:
        return f"list of {kind_of(parts[0])}"
    if kind is dict:
        return " → ".join(map(kind_of, parts))
    return WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def default_of(one: Any) -> str:
    """A field's default; empty for a key that has to be given."""
    if one.default is not MISSING:
        return f"`{one.default}`" if one.default != "" else ""
    return f"`{one.default_factory()}`" if one.default_factory is not MISSING else "needed"


@cache
def field_docs(owner: Any) -> dict[str, str]:
    """Field → the text below it in the source, of the class and of its bases."""
    found: dict[str, str] = {}
    for base in reversed(owner.__mro__):
        if not base.__module__.startswith("lavis_ext.") or not hasattr(base, "__dataclass_fields__"):
            continue
        try:
            [tree] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError):  # a class that was joined in memory
            continue
        body = tree.body if isinstance(tree, ast.ClassDef) else []
        for before, after in pairwise(body):
            text = after.value if isinstance(after, ast.Expr) else None
            named = before.target if isinstance(before, ast.AnnAssign) else None
            if isinstance(named, ast.Name) and isinstance(text, ast.Constant):
                found[named.id] = " ".join(str(text.value).split())
    return found


def summary(owner: Any) -> str:
    """The first paragraph of a class's docstring."""
    return " ".join((inspect.getdoc(owner) or "").partition("\n\n")[0].split())


def cards() -> str:
    """Every family: its data sets by name, type and split, its files with sizes and hashes, its licence."""
    found = load_cards().families
    parts = ["# Cards", MADE, "One card a family says where its files are and what they must hash to."]
    parts[-1] += " `lavis-ext show NAME` prints the same. What to know beside it: [data sets](../datasets.md)."
    rows = []
    for family, card in sorted(found.items()):
        names = ", ".join(f"`{name}`" for name in sorted(card.datasets)) or "files only"
        rows.append([f"[{family}](#{family})", card.title, names])
    parts.append(table(["family", "title", "data sets"], rows))
    for family, card in sorted(found.items()):
        parts.append(f"## {family} {{ #{family} }}\n\n{card.title}")
        facts = {
            "licence": card.licence,
            "terms": card.terms,
            "home page": f"<{card.homepage}>" if "://" in card.homepage else "",
        }
        parts.append("\n".join(f"- {name}: {value}" for name, value in facts.items() if value))
        if sets := [data_row(one) for types in card.datasets.values() for one in types.values()]:
            parts.append(table(["data set", "type", "shape", "splits (samples)", "by hand"], sets))
        if card.artifacts:
            parts.append(table(["file", "from", "size", "compared with"], map(file_row, card.artifacts.values())))
    return "\n\n".join(part for part in parts if part) + "\n"


def data_row(data: DatasetConfig) -> list[str]:
    """A row for one config type of a data set."""
    counts = {split: data.counts[split].samples if split in data.counts else None for split in split_names(data)}
    splits = ", ".join(f"{split} ({count:,})" if count else split for split, count in counts.items())
    return [f"`{data.name}`", f"`{data.type}`", f"`{data.builder}`", splits or "train", data.manual]


def file_row(one: Artifact) -> list[str]:
    """A row for one file."""
    size = human(one.size) if one.size is not None else f"about {human(one.about)}" if one.about else "?"
    digest = "sha256" if one.sha256 else "md5" if one.md5 else "size" if one.size is not None else "nothing"
    mirrors = f" and {len(one.mirrors)} more" if one.mirrors else ""
    return [f"`{one.name}`", f"`{one.url}`{mirrors}", size, digest]


def api() -> str:
    """The public names, for mkdocstrings."""
    parts = ["# Python", "`from lavis_ext import load_dataset, load_model, load_model_and_preprocess, load_processor,"]
    parts[-1] += " load_config, model_zoo, registry`. Modules have LAVIS' paths: [from LAVIS](../from-lavis.md)."
    for heading, names in API.items():
        parts += [f"## {heading}", *(f"::: {name}" for name in names)]
    return "\n\n".join(parts) + "\n"


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """A table of Markdown; `|` and line breaks are escaped."""
    cells = [head, ["---"] * len(head), *([cell(one) for one in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def cell(value: object) -> str:
    """One cell."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("{", "&#123;") or " "


def sentence(text: str) -> str:
    """A capital and a full stop."""
    return f"{text[:1].upper()}{text[1:]}."


def on_files(files: Any, config: Any) -> Any:
    """mkdocs: add what is generated, and what lies outside docs/."""
    from mkdocs.structure.files import File

    made = reference() | {page: (ROOT / source).read_text("utf-8") for source, page in OUTSIDE.items()}
    for page, content in made.items():
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """mkdocs: links between files become links between pages; one to a file that has no page becomes its text."""
    uri = page.file.src_uri
    if uri in reference_pages():
        return markdown
    home = {page: source for source, page in OUTSIDE.items()}.get(uri, f"docs/{uri}")

    def mended(match: re.Match[str]) -> str:
        text, target, anchor = match["text"], match["target"], match["anchor"] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(home), target))
        path = f"{path}/README.md" if (ROOT / path).is_dir() else path
        there = OUTSIDE.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else "")
        if not there:
            return text.removeprefix("!")[1:-1]
        return f"{text}({posixpath.relpath(there, posixpath.dirname(uri) or '.')}{anchor})"

    link = r"(?P<text>!?\[(?:[^\[\]]|\[[^\[\]]*\])*\])\((?P<target>[^()#\s:]+)(?P<anchor>#[^()\s]*)?\)"
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else re.sub(link, mended, part) for part in parts)


def reference_pages() -> set[str]:
    """The pages that are made here."""
    return {f"reference/{name}.md" for name in ("commands", "exit-codes", "keys", "cards", "api")}


def on_post_build(config: Any) -> None:
    """mkdocs: fail where a page would ask another host for anything."""
    from mkdocs.exceptions import PluginError

    asks = re.compile(r"<(?:script|img|iframe|link(?=[^>]*stylesheet))[^>]*(?:src|href)=\"(?:https?:)?//[^\"]*")
    for path in Path(config.site_dir).rglob("*.html"):
        if found := asks.findall(path.read_text("utf-8")):
            raise PluginError(f"{path}: asks another host: {found[0]}")

"""The command line answers in lines or in JSON, and ends with the documented exit code whatever happens."""

import argparse
import contextlib
import fcntl
import json
import os
import pty
import shlex
import signal
import struct
import subprocess
import sys
import termios
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.cli import VERBS, main
from lavis_ext.cli.verb import Answer, Options, build_parser
from lavis_ext.common.config.cards import load_cards
from lavis_ext.common.errors import IntegrityError


@pytest.mark.fault("U07")
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["lsit"], 2, "lavis-ext lsit: unknown verb; did you mean 'list'?"),
        (["prepare", "cocoo", "--dry-run"], 2, "cocoo: neither a family nor a data set; did you mean 'coco'"),
        (["prepare", "coco", "--dry-rum"], 2, "unknown flag '--dry-rum'; did you mean '--dry-run'?"),
        (["prepare", "coco", "--split", "vla", "--dry-run"], 2, "did you mean 'val'?"),
        (["prepare", "coco", "--max-samples", "0", "--dry-run"], 2, "--max-samples"),
        (["prepare", "coco", "--max-samples", "many"], 2, "invalid int value: 'many'"),
        (["check", "absent.yaml"], 2, "absent.yaml: no such file or folder"),
        (["train", "--cfg-path", "absent.yaml"], 2, "absent.yaml: no such file: "),
        (["train"], 2, "--cfg-path"),
        (["browse", "/no/such/place"], 2, "/no/such/place: no such file"),
        (["browse", ""], 2, "neither a data set nor a family"),
        (["list", "--options", "oops"], 2, "--options oops: has no value"),
    ],
)
def test_usage_mistakes(words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("words", "named", "near"),
    [
        ("browse {}", "captions.csv", "captions2.csv"),
        ("browse {}", "withcsv", ""),
        ("browse {}", "output", ""),
        ("browse {}", "output/run-1", ""),
        ("train --cfg-path {}", "mine/trian.yaml", "mine/train.yaml"),
        ("train {}", "other/thing.yaml", ""),
        ("evaluate {}", "other/thing.yaml", ""),
        ("config show {}", "other/thing.yaml", ""),
        ("check {}", "mine/trian.yaml", "mine/train.yaml"),
        ("runs {}", "output", ""),
        ("watch {}", "output", ""),
        ("new birds {}", "captions.csv", "captions2.csv"),
        ("chat --cfg-path mine/train.yaml --checkpoint {}", "output/run-1", ""),
        ("verify {}", "captions.csv", "captions2.csv"),
        ("show {}", "mine/captions", ""),
        ("prepare {}", "mine/x.csv", ""),
        ("status {}", "./vg_caption", ""),
        ("list --configs {}", "mien", "mine"),
    ],
)
def test_a_path_that_is_not_there_says_where_it_was_looked_for(
    words: str,
    named: str,
    near: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine/train.yaml").write_text("model: {arch: blip2_opt, model_type: tiny}\n")
    Path("captions2.csv").write_text("image,caption\n")
    assert main(words.format(named).split()) == 2
    error = capsys.readouterr().err
    assert f"{named}: no such " in error and str(tmp_path / named) in error
    assert "known:" not in error and len(error.splitlines()) == 1
    assert error.partition("did you mean ")[2] == (f"'{near}'?\n" if near else "")


@pytest.mark.parametrize(("verb", "named"), [("train", "train.yaml"), ("evaluate", "eval.yaml")])
def test_a_folder_in_place_of_its_run_file(
    verb: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train.yaml", "eval.yaml", "another.yaml"):
        (tmp_path / name).write_text("run: {}\n")
    assert main([verb, str(tmp_path)]) == 2
    assert str(tmp_path / named) in capsys.readouterr().err


def test_status_without_names_is_about_what_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(tmp_path))
    rows, picture = tmp_path / "nocaps/annotations/nocaps_val.json", tmp_path / "nocaps/images/val/one.jpg"
    assert main(["status"]) == 0 and len(capsys.readouterr().out.splitlines()) == 1
    for file in (rows, picture):
        file.parent.mkdir(parents=True)
    rows.write_text('[{"image": "val/one.jpg", "img_id": 1, "caption": ["a dog"]}]')
    picture.write_bytes(b"one")
    assert main(["status"]) == 0
    *lines, rest = capsys.readouterr().out.splitlines()
    assert lines and all(line.startswith("nocaps/") for line in lines) and "lavis-ext list" in rest
    assert main(["status", "coco_caption"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3, "what is asked for is told"
    assert main(["status", "--json"]) == 0
    assert "coco_caption" in capsys.readouterr().out


def described(action: argparse.Action) -> dict[str, Any]:
    """What a flag takes and what it is without being given."""
    default = list(action.default) if isinstance(action.default, tuple) else action.default
    found = {
        "nargs": action.nargs,
        "choices": list(action.choices) if action.choices else None,
        "type": getattr(action.type, "__name__", None),
        "required": True if action.required and action.option_strings else None,
        "default": default,
    }
    return {name: value for name, value in found.items() if value is not None}


def parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parser of every verb, `verb action` for one that has actions."""
    [below] = [a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    found: dict[str, argparse.ArgumentParser] = {}
    for name, one in below.items():
        actions = any(isinstance(a, argparse._SubParsersAction) for a in one._actions)
        found |= {f"{name} {action}": leaf for action, leaf in parsers(one).items()} if actions else {name: one}
    return found


def flags_of_all() -> dict[str, Any]:
    return {
        name: {
            " ".join(action.option_strings) or action.dest: described(action)
            for action in parser._actions
            if not isinstance(action, argparse._HelpAction)
        }
        for name, parser in parsers(build_parser(VERBS)).items()
    }


def test_every_verb_flag_and_default_is_what_it_was() -> None:
    """`flags.json` is what users' scripts rely on: a change of it is one of the interface."""
    assert flags_of_all() == json.loads(Path(__file__).with_name("flags.json").read_text())


@pytest.mark.parametrize("name", parsers(build_parser(VERBS)))
def test_help_has_examples_that_parse(name: str) -> None:
    epilog = parsers(build_parser(VERBS))[name].epilog or ""
    shown = [shlex.split(line) for line in epilog.splitlines()[1:]]
    assert shown
    for words in shown:
        given = words[1 : next((n for n, word in enumerate(words) if word in (">", "|")), None)]
        assert build_parser(VERBS).parse_args(given).verb == name.split()[0]


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["features", "imprt"], "did you mean 'import'"),
        (["features"], "ACTION"),
        (["features", "info", "store", "--geometry"], "--geometry: is not for `info`"),
        (["volta", "convert", "--gpu", "0"], "it is for extract"),
        (["volta", "--quiet", "convert", "--split", "vla"], "no split of `convert`"),
        (["list", "--instaled"], "'--installed'"),
        (["doctor", "coco"], "takes no 'coco'"),
        (["export", "a", "b", "--form", "lavi"], "did you mean 'lavis'"),
        (["train", "a.yaml", "--cfg-path", "b.yaml"], "two run files"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_words_in_the_wrong_place(words: list[str], place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    said = capsys.readouterr().err
    assert place in said
    assert said.count("lavis-ext: lavis-ext") == 0


@pytest.mark.parametrize("words", [["--help"], ["list", "--help"], ["--version"], []])
def test_help_and_version_end_well(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert "lavis-ext" in capsys.readouterr().out


def test_json_stays_json_on_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "nothing", "--json"]) == 2
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["exit_code"] == 2
    assert "nothing" in last["errors"][0]


def test_list_and_show(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["list", "--json", "--options", f"env.cache_root={tmp_path}"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    caption = next(row for row in rows if row.get("name") == "coco_caption")
    assert caption["splits"] == {"train": "missing", "val": "missing", "test": "missing"}
    assert rows[-1] == {"exit_code": 0}
    assert main(["show", "coco_caption"]) == 0
    text = capsys.readouterr().out
    assert "20.2 GB" not in text
    for part in ("13.5 GB", "CC BY 4.0", "lavis-ext prepare coco_caption", "lin2014coco", "566747 samples"):
        assert part in text


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache root in which `birds` of the user's own lies and everything else does not."""
    own = tmp_path / "own" / "datasets"
    own.mkdir(parents=True)
    (own / "birds.yaml").write_text(
        "datasets: {birds: {builder: image_caption, build_info: {annotations: {train: {storage: birds/train.json},"
        " val: {storage: birds/val.json}}, images: {storage: birds}}}}"
    )
    (tmp_path / "root" / "birds").mkdir(parents=True)
    (tmp_path / "root" / "birds" / "a.jpg").write_bytes(b"x")
    (tmp_path / "root" / "birds" / "train.json").write_text('[{"image": "a.jpg", "caption": "a bird"}]')
    monkeypatch.setenv("LAVIS_EXT_CONFIGS", str(own.parent))
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(tmp_path / "root"))
    return tmp_path


def rows_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    assert main([*words, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {row["name"]: row for row in rows if "name" in row}


def test_list_shows_what_is_here_first(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every = rows_of(["list"], capsys)
    assert (every["birds"]["state"], every["nocaps"]["state"]) == ("partial", "missing")
    assert list(rows_of(["list", "--installed"], capsys)) == ["birds"]
    assert list(rows_of(["list", "bird"], capsys)) == ["birds"]
    assert set(rows_of(["list", "*_vqa"], capsys)) == {"aok_vqa", "coco_vqa", "ok_vqa", "oscar_vqa", "vg_vqa"}
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert text.index("\nbirds") < text.index("not here") < text.index("\nnocaps")
    assert main(["list", "bidrs"]) == 2
    assert "'birds'" in capsys.readouterr().err


def test_list_finds_the_bytes_that_are_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "nocaps" / "annotations").mkdir(parents=True)
    (card,) = (a for a in load_cards().families["nocaps"].artifacts.values() if a.name == "val_captions")
    (tmp_path / card.file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / card.file).write_bytes(b"[]" * 50)
    assert rows_of(["list", "nocaps", "--options", f"env.cache_root={tmp_path}"], capsys)["nocaps"]["on_disk"] == 100


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int, world: Path) -> None:
    """A real terminal, which a pseudo-terminal is."""
    primary, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    process = subprocess.Popen([sys.executable, "-m", "lavis_ext", "list"], stdout=other, env=environment)
    os.close(other)
    shown = b""
    with contextlib.suppress(OSError):  # EIO is the end of a terminal
        while data := os.read(primary, 1 << 16):
            shown += data
    os.close(primary)
    assert process.wait(60) == 0
    table = shown.decode().partition("\r\n\r\nfiles without")[0].split("\r\n")
    assert max(map(len, table)) <= width
    assert "\x1b" not in shown.decode()


def test_check_lists_all_and_ends_with_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "good.yaml").write_text("datasets: {mine: {builder: image_caption}}")
    (tmp_path / "bad.yaml").write_text("datasets: {mine: {builder: image_captoin}}")
    assert main(["check", str(tmp_path)]) == 3
    out = capsys.readouterr().out
    assert "did you mean 'image_caption'" in out
    assert "2 files, 1 problem" in out


def install(monkeypatch: pytest.MonkeyPatch, call: object) -> None:
    monkeypatch.setattr(VERBS["list"].place.replace(":", "."), call)


def raising(error: BaseException) -> object:
    def call(_: Options) -> Answer:
        raise error

    return call


def test_errors_of_ours_end_with_their_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, raising(IntegrityError("a.zip", "sha256 is x, not y", "fetch it again")))
    assert main(["list"]) == 5
    assert capsys.readouterr().err == "lavis-ext: a.zip: sha256 is x, not y; fetch it again\n"


def test_internal_error_leaves_its_traceback_in_a_file_without_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    install(monkeypatch, raising(ValueError("https://h/c/b?sv=1&sig=CANARY")))
    assert main(["list", "--json"]) == 1
    said = capsys.readouterr()
    [log] = tmp_path.glob("lavis-ext-*.log")
    assert "ValueError" in log.read_text()
    assert "CANARY" not in log.read_text() + said.out + said.err
    assert json.loads(said.out.splitlines()[-1])["exit_code"] == 1


def test_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    install(monkeypatch, raising(KeyboardInterrupt()))
    assert main(["list"]) == 130
    assert "run the same command again" in capsys.readouterr().err


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("kind", [ImportError, IntegrityError])
def test_a_stop_of_which_others_made_an_error_is_a_stop(
    sent: signal.Signals, code: int, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The set-up of a C module in the middle of an import ends with an ImportError of its own, raised from the stop."""

    def importing(_: Options) -> Answer:
        try:
            signal.raise_signal(sent)
        except BaseException as error:
            made = kind("a module", "no", "again") if kind is IntegrityError else kind("initialization failed")
            raise made from error
        raise AssertionError("it went on")

    install(monkeypatch, importing)
    assert main(["list"]) == code


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_that_left_half_a_module_is_a_stop(
    sent: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A library kept the stop to itself in the middle of an import; the error comes from what it left."""
    swallowed = f"import signal\ntry:\n    signal.raise_signal({int(sent)})\nexcept BaseException:\n    pass\n"
    (tmp_path / "half_module.py").write_text(f"{swallowed}raise RecursionError('half')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def importing(_: Options) -> Answer:
        import_module("half_module")
        raise AssertionError("it went on")

    install(monkeypatch, importing)
    assert main(["list"]) == code
    before = signal.getsignal(sent)
    (tmp_path / "half_module.py").write_text("raise RecursionError('whole')\n")
    assert main(["list"]) == 1 and signal.getsignal(sent) == before


@pytest.mark.fault("U03", "P07")
def test_closed_pipe_and_narrow_ascii_terminal_are_no_trouble(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "LANG": "C", "PYTHONIOENCODING": "ascii", "COLUMNS": "20", "NO_COLOR": "1"}
    environment["LAVIS_EXT_CACHE_ROOT"] = str(tmp_path)
    shell = f"{sys.executable} -m lavis_ext list | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", shell], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stdout


@pytest.mark.fault("S08")
def test_doctor_tells_no_secret(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LAVIS_EXT_AZURE_SAS_OSCAR", "sv=1&sig=CANARY")
    monkeypatch.setenv("https_proxy", "http://user:CANARY@proxy.example:3128")
    monkeypatch.setenv("LAVIS_EXT_MIRROR", "http://user:CANARY@mirror.example")
    main(["doctor"])
    out = capsys.readouterr().out
    assert "CANARY" not in out
    assert "proxy.example" in out
    assert "LAVIS_EXT_AZURE_SAS_OSCAR" in out

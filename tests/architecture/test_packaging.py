"""What setup.cfg lists is what the tree holds, and every pin is exact."""

import configparser
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_every_package_is_listed() -> None:
    listed = set(setup()["options"]["packages"].split())
    there = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "lavis_ext").rglob("__init__.py")}
    assert listed == there | {"lavis_ext.configs"}


def test_every_folder_with_code_is_a_package() -> None:
    folders = {p.parent for p in (ROOT / "lavis_ext").rglob("*.py")}
    assert [f for f in folders if not (f / "__init__.py").is_file()] == []


def test_all_pins_are_exact_and_cover_what_is_required() -> None:
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.\-]+==[^=]+", pin) for pin in pins)
    names = {pin.split("==")[0].lower().replace("_", "-") for pin in pins}
    options = setup()
    wanted = options["options"]["install_requires"].split("\n")
    wanted += [line for extra in options["options.extras_require"].values() for line in extra.split("\n")]
    required = {re.split(r"[<>=\[; ]", line)[0].lower().replace("_", "-") for line in wanted if line}
    assert required - names == set()
    assert "torch==2.13.0" in pins

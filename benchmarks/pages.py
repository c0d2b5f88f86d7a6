"""`browse --serve` over a large table of captions: the first page, search, order and memory, in a process of its own.

    python benchmarks/pages.py [--rows 600000] [--pictures 120000] [--out FOLDER]

Rows are made of common words, five captions a picture, as COCO has them; the files of the pictures are links to a few.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

WORDS = """a the man woman dog cat child people group red blue green white black small large young old standing sitting
riding holding walking playing looking next to on in of with under over near front street table kitchen field beach
train bus car bicycle horse giraffe zebra pizza cake plate clock wave snow""".split()  # noqa: SIM905 (a list of 56 lines)
PAGES = 60
SEARCHES = ("zebra", "a man riding", '"red bus"', "surfboard", "000000077777", "on the table near a clock", "e")


def make(folder: Path, rows: int, pictures: int) -> Path:
    """The data, once: `train.jsonl` and `images/`."""
    if (folder / "done").is_file():
        return folder
    draw = random.Random(1)
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    drawn = np.random.default_rng(1)
    for number in range(100):
        coarse = Image.fromarray(drawn.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(images / f"base{number}.jpg", quality=85)
    for number in range(pictures):
        os.link(images / f"base{number % 100}.jpg", images / f"{number:012d}.jpg")
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        for number in range(rows):
            said = " ".join(draw.choices(WORDS, k=draw.randint(6, 16)))
            row = {"image": f"{number * pictures // rows:012d}.jpg", "caption": said.capitalize() + ".", "id": number}
            file.write(json.dumps(row) + "\n")
    (folder / "done").touch()
    return folder


def memory(pid: int) -> dict[str, float]:
    """MB: all that is resident, and what of it is no mapped file."""
    text = Path(f"/proc/{pid}/status").read_text()
    return {name: int(re.search(rf"{name}:\s+(\d+)", text)[1]) / 1000 for name in ("VmRSS", "RssAnon")}


class Server:
    """`lavis-ext browse FOLDER --serve`, and requests to it."""

    def __init__(self, folder: Path) -> None:
        began = time.perf_counter()
        command = [sys.executable, "-m", "lavis_ext", "browse", str(folder), "--serve"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        found = None
        while not found:
            found = re.search(r"http://127\.0\.0\.1:(\d+)/(\S+)", self.process.stderr.readline())
        self.connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=120)
        self.started = time.perf_counter() - began
        self.cookie = ""
        self.cookie = self.get(f"/{found[2]}")[1].headers["Set-Cookie"].partition(";")[0]

    def get(self, path: str) -> tuple[float, http.client.HTTPResponse, bytes]:
        """Seconds, the head and the body of an answer."""
        began = time.perf_counter()
        self.connection.request("GET", path, headers={"Cookie": self.cookie})
        answer = self.connection.getresponse()
        body = answer.read()
        return time.perf_counter() - began, answer, body


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=600_000)
    parser.add_argument("--pictures", type=int, default=120_000)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "lavis_ext-pages")
    flags = parser.parse_args()
    folder = make(flags.out, flags.rows, flags.pictures)
    print(f"{flags.rows:,} rows, {flags.pictures:,} pictures, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for attempt in ("first start, with the conversion of the rows", "later start"):
        server = Server(folder)
        print(
            f"{attempt}: {server.started:.2f} s to the address (with importing), first page {server.get('/')[0]:.2f} s"
        )
        if attempt.startswith("first"):
            server.process.terminate()
            server.process.wait()
    for words in SEARCHES:
        path = "/?" + "q=" + words.replace(" ", "+").replace('"', "%22")
        seconds, _, body = server.get(path)
        count = re.search(r'aria-current="true">\S+ <span class="count">([\d,]+)', body.decode())[1]
        print(f"search {words!r}: {seconds:.3f} s, {count} found; again {server.get(path)[0]:.3f} s")
    for path in (
        "/?page=9999",
        "/?sort=longest",
        "/?sort=longest&page=50",
        "/?sort=text",
        "/?least=15",
        "/?state=duplicate",
    ):
        print(f"{path}: {server.get(path)[0]:.3f} s")
    before = memory(server.process.pid)
    draw, spent = random.Random(2), []
    for number in range(PAGES):
        word, other, page = draw.choice(WORDS), draw.choice(WORDS), draw.randint(1, flags.rows // 48)
        spent.append(server.get(f"/?q={word}+{other}&page={number % 9 + 1}" if number % 2 else f"/?page={page}")[0])
    after = memory(server.process.pid)
    median, worst = statistics.median(spent), max(spent)
    print(f"{PAGES} pages, half of them new searches: median {median:.3f} s, worst {worst:.3f} s")
    for name in before:
        print(f"{name}: {before[name]:.0f} MB before them, {after[name]:.0f} MB after")
    print(
        re.search(r"[\d,]+ of [\d,]+ pictures were looked at so far", server.get("/")[2].decode())
        or "all pictures were looked at"
    )
    server.process.terminate()
    server.process.wait()
    alone(folder)


def alone(folder: Path) -> None:
    """What a page and a search cost of one core, whatever else the machine does."""
    from lavis_ext.browse.explorer import DatasetApp
    from lavis_ext.browse.subject import read_own

    began = time.process_time()
    app = DatasetApp(read_own(str(folder), folder), scan=False)
    app.answer("/", {})
    print(f"of one core: opening and the first page {time.process_time() - began:.2f} s")
    for words in SEARCHES:
        began = time.process_time()
        app.answer("/", {"q": words})
        print(f"of one core: search {words!r} {time.process_time() - began:.3f} s")


if __name__ == "__main__":
    main()

"""The report in a real browser: it fits a phone, sorts, decodes its pictures, and asks for nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from geoseg.evaluation.report import write_report
from geoseg.evaluation.result import Evaluation
from support.evaluations import made_evaluation

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
    *("--hide-scrollbars", "--enable-logging=stderr", "--v=0"),
]
DARK = "--blink-settings=preferredColorScheme=0"
DESKTOP = 1280, 900

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on PATH")


@dataclass(frozen=True)
class Opened:
    """What the browser made of a page: its document after all scripts, and what stood in the console."""

    document: str
    console: list[str]

    @property
    def answer(self) -> Any:
        """What the probe of `probed` found."""
        found = re.search(r'data-answer="([^"]*)"', self.document)
        assert found, self.console
        return json.loads(unescape(found[1]))


def browse(page: Path, profile: Path, size: tuple[int, int], *options: str) -> Opened:
    assert BROWSER is not None
    options = (*options, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}")
    ran = subprocess.run([BROWSER, *FLAGS, *options, page.as_uri()], capture_output=True, timeout=120, check=True)
    console = [line for line in ran.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line]
    return Opened(ran.stdout.decode(), console)


def probed(page: Path, expression: str, *, width: int | None = None) -> Path:
    """A copy of a page that answers with the value of an expression, once all is loaded and decoded.

    With ``width`` the page lies in a frame so wide, px: no window of the browser is narrower than 500.
    """
    text = page.read_text(encoding="utf-8")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text, count=1)  # it would refuse the probe
    probe = f"""<script>addEventListener("load", () => {{
        top.document.documentElement.dataset.answer = JSON.stringify(({expression})());
    }});</script></body>"""
    text = text.replace("</body>", probe)
    if width is not None:
        frame = f'<iframe srcdoc="{escape(text)}" style="border: 0; width: {width}px; height: 844px"></iframe>'
        text = (
            f'<!DOCTYPE html><html><meta charset="utf-8"><meta name="color-scheme" content="light dark">{frame}</html>'
        )
    copy = page.with_name("probed.html")
    copy.write_text(text, encoding="utf-8")
    return copy


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return made_evaluation(tmp_path_factory.mktemp("evaluation"), size=128)


@pytest.fixture
def report(evaluation: Evaluation, tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    write_report(evaluation, path)
    return path


LOOK = """() => {
    const color = (element, name) => getComputedStyle(element)[name].match(/[0-9.]+/g).map(Number);
    return {
        inner: innerWidth,
        scroll: document.documentElement.scrollWidth,
        outside: [...document.querySelectorAll("body *")]
            .filter((e) => !e.closest(".scroll > *") && e.getBoundingClientRect().right > innerWidth + 1)
            .map((e) => e.outerHTML.slice(0, 80)),
        pictures: [...document.images].map((i) => [i.complete, i.naturalWidth, i.naturalHeight]),
        ground: color(document.body, "backgroundColor").slice(0, 3),
        ink: color(document.body, "color").slice(0, 3),
        smallest: Math.min(...[...document.querySelectorAll("td, th, dd, p, svg text, figcaption")]
            .map((e) => parseFloat(getComputedStyle(e).fontSize))),
    };
}"""


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_page_fits_and_pictures_are_there(report: Path, tmp_path: Path, width: int, dark: bool) -> None:
    page = probed(report, LOOK, width=width)
    opened = browse(page, tmp_path / "profile", DESKTOP, "--dump-dom", *([DARK] if dark else []))
    found = opened.answer
    assert found["inner"] == width
    assert found["scroll"] <= found["inner"]
    assert found["outside"] == []
    assert found["pictures"] == [[True, 128, 128]] * 16
    assert (max(found["ground"]) < 64) == dark
    assert (min(found["ink"]) > 192) == dark
    assert found["smallest"] >= 11
    assert opened.console == []


SORT = """() => {
    const table = document.getElementById("scene-table");
    const heads = [...table.tHead.rows[0].cells];
    const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
    const found = [];
    for (const column of [1, 1, 0, heads.length - 1]) {
        heads[column].querySelector("button").click();
        found.push([names(), heads.map((head) => head.getAttribute("aria-sort"))]);
    }
    const classes = document.getElementById("class-table");
    const head = classes.tHead.rows[1].cells[6]; // precision of objects, which most classes lack
    head.querySelector("button").click();
    const up = [...classes.tBodies[0].rows].map((row) => row.cells[6].textContent);
    head.querySelector("button").click();
    const down = [...classes.tBodies[0].rows].map((row) => row.cells[6].textContent);
    return { found, up, down };
}"""


def test_tables_sort_by_any_column(report: Path, tmp_path: Path, evaluation: Evaluation) -> None:
    opened = browse(probed(report, SORT), tmp_path / "profile", DESKTOP, "--dump-dom")
    found = opened.answer["found"]
    by_miou = sorted(evaluation.scenes, key=lambda name: evaluation.scenes[name].scores.miou)
    by_pixels = sorted(evaluation.scenes, key=lambda name: evaluation.scenes[name].scores.matrix.sum())
    assert by_miou != sorted(evaluation.scenes)
    assert [names for names, _ in found] == [by_miou, by_miou[::-1], sorted(evaluation.scenes), by_pixels]
    assert found[1][1] == [None, "descending", *[None] * (len(found[1][1]) - 2)]
    assert found[2][1] == ["ascending", *[None] * (len(found[2][1]) - 1)]
    up, down = opened.answer["up"], opened.answer["down"]
    assert up[2:] == down[2:] == ["–"] * 5
    assert float(up[0]) < float(up[1])
    assert down[:2] == up[:2][::-1]
    assert opened.console == []


LARGER = """() => {
    const figure = document.querySelector(".window");
    const width = () => figure.querySelector("img").getBoundingClientRect().width;
    const button = figure.querySelector("button");
    const before = [width(), button.getAttribute("aria-pressed")];
    button.click();
    return [before, [width(), button.getAttribute("aria-pressed")]];
}"""


def test_pictures_grow_on_demand(report: Path, tmp_path: Path) -> None:
    before, after = browse(probed(report, LARGER), tmp_path / "profile", DESKTOP, "--dump-dom").answer
    assert [before[1], after[1]] == ["false", "true"]
    assert 1.9 * before[0] < after[0] < 2.2 * before[0]


def test_page_as_written_runs_its_own_script_and_no_other(report: Path, tmp_path: Path) -> None:
    opened = browse(report, tmp_path / "profile", DESKTOP, "--dump-dom")
    assert opened.console == []
    assert opened.document.count('<button type="button">') >= 10  # its own script ran
    foreign = (
        '<script>document.documentElement.dataset.answer = "1"</script><img src="http://127.0.0.1:9/x.png"></body>'
    )
    report.write_text(report.read_text(encoding="utf-8").replace("</body>", foreign), encoding="utf-8")
    opened = browse(report, tmp_path / "profile2", DESKTOP, "--dump-dom")
    assert "data-answer" not in opened.document
    refused = " ".join(opened.console)
    assert "script" in refused
    assert "http://127.0.0.1:9/x.png" in refused


@pytest.mark.parametrize("size", [(1280, 2400), (390, 2400)], ids=["desktop", "phone"])
def test_page_is_drawn(report: Path, tmp_path: Path, evaluation: Evaluation, size: tuple[int, int]) -> None:
    """A picture of the page holds every class's colour: swatches, bars and maps are painted."""
    shot = tmp_path / "page.png"
    browse(report, tmp_path / "profile", size, f"--screenshot={shot}")
    pixels = np.asarray(Image.open(shot).convert("RGB"))
    assert pixels.shape == (size[1], size[0], 3)
    seen = np.zeros(1 << 24, bool)
    seen[pixels.astype(int) @ [1 << 16, 1 << 8, 1]] = True
    assert all(seen[int.from_bytes(bytes(c.color))] for c in evaluation.classes)
    # Nothing touches the right edge of the paper.
    assert (pixels[:, -8:] == pixels[0, 0]).all()


def test_page_prints_on_a4(report: Path, tmp_path: Path) -> None:
    pdf = tmp_path / "page.pdf"
    browse(report, tmp_path / "profile", DESKTOP, f"--print-to-pdf={pdf}", "--no-pdf-header-footer")
    boxes = re.findall(rb"/MediaBox ?\[ ?0 0 ([\d.]+) ([\d.]+) ?\]", pdf.read_bytes())
    assert 2 <= len(boxes) <= 8
    assert {(round(float(w)), round(float(h))) for w, h in boxes} == {(595, 842)}

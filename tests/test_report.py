"""The HTML report says what the evaluation found: every number, escaped, in one file."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import os
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geoseg.classes import NODATA, ClassTable
from geoseg.errors import OutputError
from geoseg.evaluation.report import report_page, write_report
from geoseg.evaluation.result import AreaEstimate, Calibration, Evaluation, SceneResult, WindowCase
from geoseg.evaluation.tables import summary_lines, write_scores
from geoseg.network.metrics import Scores
from geoseg.windows import Window
from support.evaluations import made_evaluation

VOID = {"br", "col", "img", "link", "meta"}
EN_DASH = "–"


@dataclass
class Element:
    name: str
    attributes: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(c if isinstance(c, str) else c.text for c in self.children)

    def all(self, name: str, **wanted: str) -> list[Element]:
        """Elements below this one, in order, of a name and with the attributes."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                attributes = child.attributes
                if child.name == name and all(attributes.get(k.rstrip("_")) == v for k, v in wanted.items()):
                    found.append(child)
                found += child.all(name, **wanted)
        return found

    def one(self, name: str, **wanted: str) -> Element:
        (found,) = self.all(name, **wanted)
        return found


class Tree(HTMLParser):
    """A page as elements; tags that are left open, or closed out of turn, are an error."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self.open = [self.root]
        self.feed(page)
        self.close()
        assert [e.name for e in self.open] == [""]

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        assert len(dict(attributes)) == len(attributes), f"<{name}> has an attribute twice"
        element = Element(name, {k: v or "" for k, v in attributes})
        self.open[-1].children.append(element)
        if name not in VOID:
            self.open.append(element)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop().name == name

    def handle_data(self, text: str) -> None:
        self.open[-1].children.append(text)


def parsed(evaluation: Evaluation) -> Element:
    return Tree(report_page(evaluation)).root


def body_rows(page: Element, table: str) -> list[list[Element]]:
    """Cells of the rows of a table's body, each with the head of its row first."""
    rows = page.one("table", id=table).one("tbody").all("tr")
    return [[c for c in row.children if isinstance(c, Element)] for row in rows]


def foot_numbers(page: Element, table: str) -> list[float]:
    return [number(c) for c in page.one("table", id=table).one("tfoot").all("td")]


def number(cell: Element) -> float:
    """The number of a cell in full, NaN for an en dash; what is shown is that number rounded."""
    if cell.text == EN_DASH:
        return math.nan
    data = cell.one("data")
    value, shown = float(data.attributes["value"]), float(data.text.replace(",", "").replace("−", "-"))
    decimals = len(data.text.partition(".")[2])
    assert min(abs(shown - value), abs(shown - 100 * value)) <= 0.5 * 10**-decimals + 1e-9
    return value


def with_total(evaluation: Evaluation, **changes: object) -> Evaluation:
    return dataclasses.replace(evaluation, total=dataclasses.replace(evaluation.total, **changes))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return made_evaluation(tmp_path_factory.mktemp("evaluation"), size=96)


@pytest.fixture(scope="module")
def page(made: Evaluation) -> Element:
    return parsed(made)


def test_what_refers_to_an_id_finds_one(page: Element) -> None:
    everything = [e for name in NAMES for e in page.all(name)]
    ids = [e.attributes["id"] for e in everything if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    links = [e.attributes["href"].removeprefix("#") for e in page.all("a")]
    labels = [e.attributes["aria-labelledby"] for e in everything if "aria-labelledby" in e.attributes]
    assert links == ["summary", "classes", "scenes", "confusion", "calibration", "areas", "worst", "best"]
    assert set(links) | set(labels) <= set(ids)
    assert len(labels) >= 8


NAMES = ("section", "h2", "table", "caption", "div", "svg", "title")


def test_nothing_is_asked_of_elsewhere(made: Evaluation, page: Element) -> None:
    text = report_page(made)
    outside_data = re.sub(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]+", "", text)
    assert "//" not in outside_data.replace("// ", "")  # comments of the script; no scheme, no host
    assert "url(" not in text
    assert "@import" not in text
    sources = [e.attributes["src"] for e in page.all("img")]
    assert len(sources) == 16
    assert all(s.startswith(("data:image/png;base64,", "data:image/webp;base64,")) for s in sources)
    assert not page.all("link")
    assert all("src" not in s.attributes for s in page.all("script"))
    policy = page.one("meta", **{"http-equiv": "Content-Security-Policy"}).attributes["content"]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_facts_stand_in_their_order(made: Evaluation, page: Element) -> None:
    facts = page.one("dl", class_="facts")
    assert [e.text for e in facts.all("dt")] == list(made.facts)
    words = dict(zip(made.facts, (e.text for e in facts.all("dd")), strict=True))
    assert words["scenes"] == "landscape_01, landscape_02, landscape_03"
    assert words["versions"] == "geoseg 0.1.0, torch 2.14"
    assert (words["flip"], words["scales"], words["date"]) == ("no", "1", "2026-11-25")
    assert page.one("h1").text == "Evaluation of landscape-tiny"


def test_headline_numbers(made: Evaluation, page: Element) -> None:
    s, calibration = made.total.scores, made.total.calibration
    assert calibration is not None
    shown = {e.one("dt").text: e.one("data") for e in page.one("dl", class_="headline").all("div")}
    wanted = {
        "mIoU": s.miou,
        "accuracy": s.accuracy,
        "fwIoU": s.frequency_weighted_iou,
        "mean F1": s.mean_f1,
        "ECE": calibration.error,
    }
    assert {name: float(data.attributes["value"]) for name, data in shown.items()} == wanted
    assert {name: data.text for name, data in shown.items()} == {n: f"{100 * v:.2f}" for n, v in wanted.items()}


def test_table_of_classes(made: Evaluation, page: Element) -> None:
    t = made.total
    assert t.boundary is not None
    assert t.objects is not None
    s, o = t.scores, t.objects
    columns = [s.iou, t.boundary.iou, s.precision, s.recall, s.f1, o.precision, o.recall, o.f1, s.matrix.sum(1)]
    rows = body_rows(page, "class-table")
    assert [row[0].text for row in rows] == list(made.classes.names)
    assert [row[0].one("span", class_="swatch").attributes["style"] for row in rows][4] == "--c:#d7301f"
    found = np.array([[number(cell) for cell in row[1:]] for row in rows])
    np.testing.assert_array_equal(found, np.stack(columns, axis=1))
    assert np.isnan(found).any()  # classes that are no objects
    feet = [np.nanmean(c) for c in columns[:-1]] + [s.matrix.sum()]
    np.testing.assert_allclose(foot_numbers(page, "class-table"), feet, rtol=1e-12)


def test_table_of_scenes(made: Evaluation, page: Element) -> None:
    rows = body_rows(page, "scene-table")
    assert [row[0].text for row in rows] == list(made.scenes)
    for row, scores in zip(rows, (r.scores for r in made.scenes.values()), strict=True):
        wanted = [scores.miou, scores.accuracy, *scores.iou, scores.matrix.sum()]
        np.testing.assert_array_equal([number(c) for c in row[1:]], wanted)
    t = made.total.scores
    np.testing.assert_array_equal(foot_numbers(page, "scene-table"), [t.miou, t.accuracy, *t.iou, t.matrix.sum()])


def test_confusion_matrix(made: Evaluation, page: Element) -> None:
    matrix, names = made.total.scores.matrix, made.classes.names
    for true, row in enumerate(body_rows(page, "confusion-table")):
        assert row[0].text == names[true]
        assert number(row[-1]) == matrix[true].sum()
        for mapped, cell in enumerate(row[1:-1]):
            pixels = int(matrix[true, mapped])
            assert cell.attributes["title"] == f"{names[true]} mapped as {names[mapped]}: {pixels:,} px"
            if not matrix[true].any():
                assert cell.text == EN_DASH
                continue
            share = pixels / matrix[true].sum()
            assert cell.text == (f"{100 * share:.1f}" if pixels else "0")
            assert float(cell.attributes["style"].removeprefix("--s:")) == pytest.approx(share**0.5, abs=1e-3)
            assert cell.attributes["class"].split()[0] == ("hit" if true == mapped else "miss")


def test_areas(made: Evaluation, page: Element) -> None:
    areas = made.total.areas
    assert areas is not None
    found = np.array([[number(c) for c in row[1:4]] for row in body_rows(page, "area-table")])
    np.testing.assert_array_equal(found, np.stack([areas.mapped_ha, areas.estimated_ha, areas.margin_ha], axis=1))
    sums = page.one("table", id="area-table").one("tfoot").all("data")
    assert [float(e.attributes["value"]) for e in sums] == [areas.mapped_ha.sum(), areas.estimated_ha.sum()]
    plot = page.one("svg", id="area-plot")
    np.testing.assert_allclose(bars(plot), areas.mapped_ha, atol=1e-5)
    low = np.maximum(areas.estimated_ha - areas.margin_ha, 0)
    drawn = np.concatenate([areas.estimated_ha, low, areas.estimated_ha + areas.margin_ha])
    np.testing.assert_allclose(np.sort(marks(plot, "stroke")), np.sort(drawn), atol=1e-5)
    titles = [e.one("title").text for e in plot.all("g", class_="bar")]
    values = zip(made.classes.names, areas.mapped_ha, areas.estimated_ha, areas.margin_ha, strict=True)
    assert titles == [f"{name}: mapped {m:.4f} ha, estimated {e:.4f} ± {give:.4f} ha" for name, m, e, give in values]
    assert [e.one("text").text for e in plot.all("g", class_="number")] == [f"{v:.4f}" for v in areas.estimated_ha]


def place(element: Element) -> np.ndarray:
    """Left, top, right and bottom of the paths below an element."""
    points = re.findall(r"[ML] (\S+) (\S+)", " ".join(e.attributes["d"] for e in element.all("path")))
    xy = np.array(points, float)
    return np.concatenate([xy.min(axis=0), xy.max(axis=0)])


def of_axis(plot: Element, x: np.ndarray) -> np.ndarray:
    """Values of places along the lower axis of a plot, by its grid and the numbers below."""
    ticks = [
        g for g in plot.all("g") if "grid" in [c.attributes.get("class") for c in g.children if isinstance(c, Element)]
    ]
    (x0, v0), (x1, v1) = [
        (place(g.one("g", class_="grid"))[0], float(g.one("text").text)) for g in (ticks[0], ticks[-1])
    ]
    return v0 + (x - x0) / (x1 - x0) * (v1 - v0)


def bars(plot: Element) -> np.ndarray:
    ends = np.array([place(e) for e in plot.all("g", class_="bar")])
    assert len(set(ends[:, 0])) == 1  # all begin at 0
    np.testing.assert_array_equal(of_axis(plot, ends[:, 0]), 0)
    return of_axis(plot, ends[:, 2])


def marks(plot: Element, kind: str) -> np.ndarray:
    return of_axis(plot, np.array([float(u.attributes["x"]) for g in plot.all("g", class_=kind) for u in g.all("use")]))


def test_bars_of_iou_come_longest_first(made: Evaluation, page: Element) -> None:
    plot, s = page.one("svg", id="iou-plot"), made.total.scores
    order = np.argsort(-s.iou)
    np.testing.assert_allclose(bars(plot), 100 * s.iou[order], atol=1e-3)
    assert made.total.boundary is not None
    border = made.total.boundary.iou[order]
    np.testing.assert_allclose(marks(plot, "stroke"), 100 * border, atol=1e-3)
    (mean,) = of_axis(plot, place(plot.one("g", class_="mean"))[:1])
    assert mean == pytest.approx(100 * s.miou, abs=1e-3)
    titles = [e.one("title").text for e in plot.all("g", class_="bar")]
    values = zip(order, s.iou[order], border, strict=True)
    assert titles == [
        f"{made.classes[i].name}: IoU {100 * v:.1f} %, boundary IoU {100 * b:.1f} %" for i, v, b in values
    ]
    words = [e.text.strip() for e in plot.all("text")]
    assert words[-len(order) :] == [f"{100 * v:.1f}" for v in s.iou[order]]
    assert words[6 : -len(order)] == [made.classes[i].name for i in order]


def test_reliability_diagram(made: Evaluation, page: Element) -> None:
    c = made.total.calibration
    assert c is not None
    used = c.count > 0
    plot = page.one("svg", id="reliability-plot")
    points = np.array([[float(e.attributes[k]) for k in "xy"] for e in plot.one("g", class_="dot").all("use")])
    sure, right = c.confidence[used] / c.count[used], c.correct[used] / c.count[used]
    x1, y2, x2, y1 = place(plot.one("g", class_="diagonal"))
    np.testing.assert_allclose(points[:, 0], x1 + sure * (x2 - x1), atol=0.01)
    np.testing.assert_allclose(points[:, 1], y1 + right * (y2 - y1), atol=0.01)
    for kind, share in (("accuracy", right), ("share", c.count[used])):
        heights = np.array([place(e) for e in plot.all("g", class_=kind)]) @ [0, -1, 0, 1]
        np.testing.assert_allclose(heights / heights.max(), share / share.max(), atol=1e-4)
        titles = [e.one("title").text for e in plot.all("g", class_=kind)]
        assert [t.split(",")[1] for t in titles] == [f" right {100 * v:.1f} %" for v in right]
    rows = body_rows(page, "confidence-table")
    assert 0 < len(rows) < len(used)
    np.testing.assert_array_equal([number(row[1]) for row in rows], sure)
    np.testing.assert_array_equal([number(row[2]) for row in rows], right)
    assert [number(row[3]) for row in rows] == c.count[used].tolist()
    assert rows[0][0].text == "20 to 27"
    words = page.one("section", id="calibration").one("p").text
    assert f"expected calibration error is {100 * c.error:.1f} %" in words
    assert "temperature of 1.37" in words
    assert "too sure" in words


def test_windows_as_pictures(made: Evaluation, page: Element) -> None:
    for key, cases in (("worst", made.worst), ("best", made.best)):
        figures = page.one("section", id=key).all("figure")
        for figure, case in zip(figures, cases, strict=True):
            w = case.window
            words = figure.one("figcaption").text
            assert words.startswith(
                f"{100 * case.error:.1f} % wrong in {case.scene}, rows {w.row:,} to {w.row_stop:,}, "
            )
            photo, truth, mapped, errors = (opened(e.attributes["src"]) for e in figure.all("img"))
            assert all(len(e.attributes["alt"]) > 10 for e in figure.all("img"))
            table = np.array([c.color for c in made.classes])
            for picture, ids in ((truth, case.truth), (mapped, case.mapped)):
                known = ids != NODATA
                np.testing.assert_array_equal(picture[..., 3] > 0, known)
                np.testing.assert_array_equal(picture[known][:, :3], table[ids[known]])
            assert np.abs(photo[..., :3].astype(int) - case.picture).mean() < 8
            # WebP keeps brightness finely and colour coarsely: large errors are pink, what is right is grey.
            wrong = (case.truth != case.mapped) & (case.truth != NODATA)
            colorful = errors[..., 0].astype(int) - errors[..., 1]
            assert colorful[wrong].mean() > 100
            assert colorful[~wrong].mean() < 25


def opened(source: str) -> np.ndarray:
    data = base64.b64decode(source.partition("base64,")[2], validate=True)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))


def test_most_frequent_error_is_named(made: Evaluation) -> None:
    truth = np.zeros((8, 8), np.uint8)
    mapped = truth.copy()
    mapped[:2], mapped[2:5] = 4, 6
    case = WindowCase("s", Window(0, 0, 8, 8), 5 / 8, np.zeros((8, 8, 3), np.uint8), truth, mapped)
    figure = parsed(dataclasses.replace(made, worst=(case,), best=())).one("section", id="worst").one("figure")
    assert figure.one("figcaption").text.endswith("most often bare_soil mapped as water")


def test_larger_windows_come_reduced(made: Evaluation) -> None:
    ids = np.zeros((700, 1400), np.uint8)
    case = WindowCase("s", Window(0, 0, 700, 1400), 0.0, np.zeros((700, 1400, 3), np.uint8), ids, ids)
    page = parsed(dataclasses.replace(made, worst=(case,), best=()))
    assert {opened(e.attributes["src"]).shape for e in page.all("img")} == {(256, 512, 4)}
    assert not page.all("section", id="best")


def test_strips_are_no_higher_than_others_are_wide(made: Evaluation) -> None:
    ids = np.zeros((256, 8), np.uint8)
    case = WindowCase("s", Window(0, 0, 256, 8), 0.0, np.zeros((256, 8, 3), np.uint8), ids, ids)
    page = parsed(dataclasses.replace(made, worst=(case,)))
    assert {e.attributes["style"] for e in page.one("section", id="worst").all("img")} == {"width:3.12%"}
    assert all("style" not in e.attributes for e in page.one("section", id="best").all("img"))


HOSTILE = """<b class="x">'&amp;</b></script><script>alert(1)</script>"""


def test_names_are_escaped(made: Evaluation) -> None:
    names = [HOSTILE, *made.classes.names[1:]]
    classes = ClassTable.from_names(names, [c.color for c in made.classes])
    cases = tuple(dataclasses.replace(c, scene=HOSTILE) for c in made.worst)
    hostile = dataclasses.replace(
        made,
        classes=classes,
        scenes={HOSTILE: made.total},
        facts={"model": HOSTILE, HOSTILE: [HOSTILE]},
        worst=cases,
    )
    page = parsed(hostile)
    assert len(page.all("script")) == 1
    assert not page.all("b")
    assert page.one("h1").text == f"Evaluation of {HOSTILE}"
    assert body_rows(page, "class-table")[0][0].text == HOSTILE
    assert body_rows(page, "scene-table")[0][0].text == HOSTILE
    assert HOSTILE in body_rows(page, "confusion-table")[0][1].attributes["title"]
    assert HOSTILE in page.one("section", id="worst").all("figcaption")[0].text
    assert HOSTILE in page.one("section", id="worst").all("img")[0].attributes["alt"]
    titles = [e.text for e in page.one("svg", id="area-plot").all("title")]
    assert sum(t.startswith(f"{HOSTILE}: mapped") for t in titles) == 2
    assert [e.text for e in page.one("dl", class_="facts").all("dd")] == [HOSTILE, HOSTILE]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["建物", "a\x01\nb", "$x_1$ & <b>", "n" * 60])
def test_any_name_of_a_class_is_plotted(made: Evaluation, name: str) -> None:
    classes = ClassTable.from_names([name, *made.classes.names[1:]], [c.color for c in made.classes])
    page = parsed(dataclasses.replace(made, classes=classes, worst=(), best=()))
    shown = "".join(c if c.isprintable() else "�" for c in name)
    labels = [e.text for e in page.one("svg", id="area-plot").all("text")]
    assert (shown if len(shown) <= 22 else f"{shown[:21]}…") in labels
    assert page.one("svg", id="area-plot").all("g", class_="number")[0].text.strip().startswith(f"{shown}: mapped")
    assert body_rows(page, "class-table")[0][0].text == name


def test_what_was_not_measured_is_left_out_or_said(made: Evaluation) -> None:
    page = parsed(with_total(made, boundary=None, objects=None, calibration=None, areas=None))
    heads = [e.text for e in page.one("table", id="class-table").all("th", scope="col")]
    assert heads == ["class", "IoU", "precision", "recall", "F1", "true pixels"]
    assert "ECE" not in [e.text for e in page.one("dl", class_="headline").all("dt")]
    for key in ("calibration", "areas"):
        assert page.one("section", id=key).one("p").text == "Not measured by this protocol."


def test_one_class_alone_has_no_mean(tmp_path: Path) -> None:
    table = ClassTable.from_names(["other", "house"], ["#336699"] * 2)
    result = SceneResult(Scores(np.array([[0, 0], [0, 9]])))
    evaluation = Evaluation(table, result, {"s": result}, tmp_path)
    page = parsed(evaluation)
    assert page.one("dl", class_="headline").all("dd")[0].text == f"{EN_DASH} %"
    assert [number(c) for c in body_rows(page, "scene-table")[0][1:]] == pytest.approx(
        [math.nan, 1, math.nan, 1, 9], nan_ok=True
    )
    heads = ("IoU", "precision", "recall", "F1", "true pixels")
    means = dict(zip(heads, foot_numbers(page, "class-table"), strict=True))
    assert means == pytest.approx(
        {"IoU": math.nan, "precision": 1, "recall": 1, "F1": math.nan, "true pixels": 9}, nan_ok=True
    )
    assert any(line.startswith("mIoU –, ") for line in summary_lines(evaluation))
    write_scores(tmp_path / "scores.csv", evaluation)
    rows = [row.split(",")[:5] for row in (tmp_path / "scores.csv").read_text().splitlines()]
    assert rows[3] == ["s", "mean", "", "", "1.000000"]


@pytest.mark.parametrize("classes", [1, 2, 9, 30])
def test_nothing_counted_is_still_a_page(classes: int, tmp_path: Path) -> None:
    table = ClassTable.from_names([f"c{i}" for i in range(classes)], ["#336699"] * classes)
    nothing = np.zeros((classes, classes), np.int64)
    none = np.full(classes, np.nan)
    result = SceneResult(
        Scores(nothing),
        calibration=Calibration(np.zeros(10, np.int64), np.zeros(10), np.zeros(10), math.nan),
        areas=AreaEstimate(np.zeros(classes), none, none),
    )
    page = parsed(Evaluation(table, result, {"empty": result}, tmp_path))
    assert page.one("h1").text == "Evaluation"
    assert all(math.isnan(number(c)) for c in body_rows(page, "scene-table")[0][1:-1])
    assert all(c.text == EN_DASH for row in body_rows(page, "confusion-table") for c in row[1:-1])
    assert all(t not in page.one("main").text for t in ("nan", "inf", "NaN"))
    assert len(page.one("svg", id="area-plot").all("g", class_="number")) == classes


def test_long_lists_of_facts_are_cut(made: Evaluation) -> None:
    page = parsed(dataclasses.replace(made, facts={"scenes": [f"s{i}" for i in range(458)]}))
    assert page.one("dl", class_="facts").one("dd").text == "s0, s1, s2, s3, s4, s5 and 452 more"


def test_same_evaluation_same_bytes(made: Evaluation, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("an older one")
    write_report(made, path)
    first = path.read_bytes()
    write_report(made, path)
    assert path.read_bytes() == first
    assert first.decode("utf-8") == report_page(made)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_names_of_files_that_are_no_text(made: Evaluation, tmp_path: Path) -> None:
    write_report(dataclasses.replace(made, scenes={os.fsdecode(b"s\xff"): made.total}), tmp_path / "report.html")
    page = Tree((tmp_path / "report.html").read_text(encoding="utf-8")).root
    assert body_rows(page, "scene-table")[0][0].text == r"s\udcff"


def test_missing_folder_is_an_error_of_ours(made: Evaluation, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write_report(made, tmp_path / "none" / "report.html")
    assert not list(tmp_path.iterdir())


def test_sixteen_windows_stay_small(tmp_path: Path) -> None:
    few = made_evaluation(tmp_path, scenes=2, windows=2, size=512)
    full = dataclasses.replace(few, worst=few.worst * 4, best=few.best * 4)
    write_report(full, tmp_path / "report.html")
    size = (tmp_path / "report.html").stat().st_size
    assert 1e6 < size < 6e6

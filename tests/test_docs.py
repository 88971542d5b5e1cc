"""The documentation is true: examples run, options exist, links and named files resolve."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from geoseg.classes import format_color
from geoseg.cli import app
from geoseg.config import load_config
from geoseg.contract import find_model, load_contract, shipped_models
from geoseg.landscape import LANDSCAPE_CLASSES

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    p
    for p in (
        *(ROOT / file for file in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")),
        *sorted(ROOT.glob("docs/**/*.md")),
        ROOT / "tests/benchmarks/README.md",
    )
    if p.exists()
]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(geoseg [^`\n]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
FILE = re.compile(r"`((?:geoseg|tests|configs|tools|docs)/[\w./-]+)`")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def fenced(path: Path, *languages: str) -> list[str]:
    """The fenced blocks of a document in one of the languages."""
    return [code for language, code in FENCE.findall(path.read_text(encoding="utf-8")) if language in languages]


def shell_lines(path: Path) -> Iterator[str]:
    for block in fenced(path, "sh", "bash", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            yield line.strip().removeprefix("$ ")


def commands(path: Path) -> Iterator[list[str]]:
    """Words after ``geoseg`` of every command in a document's shell blocks and inline code."""
    for line in [*shell_lines(path), *INLINE.findall(path.read_text(encoding="utf-8"))]:
        for part in re.split(r"&&|\|\||[;|]", line):
            words = shlex.split(part.replace("'", ""), comments=True)
            if words[:1] == ["geoseg"]:
                yield words[1:]


def verbs() -> dict[str, set[str]]:
    """The options of every verb, and of the program itself under ""."""
    program = typer.main.get_command(app)
    options = {"": program, **program.commands}  # type: ignore[attr-defined]
    return {
        verb: {
            "-h",
            "--help",
            *(
                text
                for one in (command, *getattr(command, "commands", {}).values())
                for p in one.params
                for text in p.opts
            ),
        }
        for verb, command in options.items()
    }


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_verbs_and_options_exist(path: Path) -> None:
    known = verbs()
    for words in commands(path):
        verb = next((w for w in words if not w.startswith("-")), "")
        if not verb.islower():  # VERB stands for any of them
            continue
        assert verb in known, f"{name(path)}: geoseg {' '.join(words)}"
        options = {w.split("=")[0] for w in words if re.match(r"--?[a-z]", w)}
        assert options <= known[verb] | known[""], f"{name(path)}: geoseg {' '.join(words)}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_relative_links_resolve(path: Path) -> None:
    links = [link for link in LINK.findall(path.read_text(encoding="utf-8")) if "://" not in link]
    missing = [link for link in links if not (path.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_files_of_the_repository_are_there(path: Path) -> None:
    missing = [file for file in FILE.findall(path.read_text(encoding="utf-8")) if not (ROOT / file).exists()]
    assert not missing


def test_the_shipped_model_is_as_good_as_its_results_say() -> None:
    training = load_contract(find_model("buildings-tiny")).training
    results = (ROOT / "docs/explanation/results.md").read_text(encoding="utf-8")
    row = re.search(r"^\| `buildings-tiny`.*$", results, re.MULTILINE)
    assert row is not None
    *_, iterations, _, _, miou, _ = (cell.strip() for cell in row[0].split("|"))
    assert float(miou) == round(training["val_miou"], 3)
    reported = sum(int(part.replace(",", "")) for part in iterations.split(" + "))
    assert reported == training["iterations_before"] + training["best_iteration"]


def test_the_cards_of_shipped_models_are_the_ones_in_the_docs() -> None:
    for card in (ROOT / "docs/cards").glob("*.md"):
        assert card.read_text(encoding="utf-8") == (find_model(card.stem) / "README.md").read_text(encoding="utf-8")


def test_every_module_stands_in_the_design() -> None:
    design = (ROOT / "docs/DESIGN.md").read_text(encoding="utf-8")
    modules = {p.name for p in (ROOT / "geoseg").glob("*.py")} - {"__init__.py", "__main__.py"}
    packages = {f"{p.parent.name}/" for p in (ROOT / "geoseg").glob("*/__init__.py")}
    assert [m for m in sorted(modules | packages) if f"`{m}`" not in design] == []


def test_every_test_in_the_design_exists() -> None:
    named = re.findall(r"`((?:e2e/)?test_\w+)`", (ROOT / "docs/DESIGN.md").read_text(encoding="utf-8"))
    assert len(named) > 40
    assert [name for name in named if not (ROOT / f"tests/{name}.py").exists()] == []


def test_the_list_of_places_is_true() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.split("## Where is")[1].split("\n## ")[0]
    places = re.findall(r"`(geoseg/[\w./]+)`(?:: `(\w+)`)?", table)
    assert len(places) > 15
    for file, symbol in places:
        assert (ROOT / file).exists(), file
        assert not symbol or symbol in (ROOT / file).read_text(encoding="utf-8"), f"{symbol} is not in {file}"


def test_the_parser_of_commands_finds_them() -> None:
    assert ["vectorize", "houses.tif", "-o", "houses.gpkg", "--min-area", "10", "--separate", "building"] in list(
        commands(ROOT / "README.md")
    )


def test_the_configuration_of_the_training_guide_loads(tmp_path: Path) -> None:
    (text,) = [block for block in fenced(ROOT / "docs/howto/training.md", "yaml") if block.startswith("name:")]
    (tmp_path / "orthos").mkdir()
    for file in ("orthos/north.tif", "orthos/south.tif", "orthos/west.tif", "roofs.gpkg"):
        (tmp_path / file).touch()
    (tmp_path / "roofs.yaml").write_text(text, encoding="utf-8")
    config = load_config(tmp_path / "roofs.yaml", [])
    assert [entry.scene.parent for entry in config.data.entries("train")] == [tmp_path / "orthos"] * 2
    assert load_contract(find_model(config.model.start_from or "")).class_table.names == config.class_table.names


def test_the_configuration_of_the_tutorial_loads(tmp_path: Path) -> None:
    (text,) = fenced(ROOT / "docs/tutorial.md", "yaml")
    (tmp_path / "geoseg-demo").mkdir()
    for file in ("scene.tif", "truth.tif"):
        (tmp_path / "geoseg-demo" / file).touch()
    (tmp_path / "tiny.yaml").write_text(text, encoding="utf-8")
    config = load_config(tmp_path / "tiny.yaml", [])
    assert [format_color(c.color) for c in LANDSCAPE_CLASSES] == [c.color for c in config.classes]


def test_every_page_is_in_the_navigation() -> None:
    pages = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(pages) == sorted(str(p.relative_to(ROOT / "docs")) for p in ROOT.glob("docs/**/*.md"))


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if fenced(p, "python")], ids=name)
def test_python_examples_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = fenced(path, "python")
    wanted = set(re.findall(r'"((?:landscape|buildings)-tiny)"', "".join(blocks)))
    if not wanted <= set(shipped_models()):
        pytest.skip(f"needs the shipped models {', '.join(sorted(wanted))}")
    monkeypatch.chdir(tmp_path)
    session: dict[str, object] = {"__name__": "example"}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"{name(path)}, example {number}", "exec"), session)

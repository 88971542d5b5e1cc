"""Lists of scenes expanded: patterns of file names and catalogues become one entry per scene.

Under ``data.train``, ``data.val`` and ``data.scenes`` an entry is a scene, or one of these::

    {scene: "orthos/*.tif", labels: "labels/{stem}.tif"}
    {scene: "leftImg8bit/train/*/*_leftImg8bit.png", labels: "gtFine/train/{parent}/{name}_gtFine_labelTrainIds.png"}
    {catalogue: scenes.csv}
"""

import csv
import glob
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from geoseg.errors import ConfigError, in_one_line, quoted
from geoseg.paths import InputPath, exists, file_behind, input_path, suffix
from geoseg.words import count, first_lines, nearest

PATHS = ("scene", "labels", "labelled_area", "corrections")  # keys of an entry that name files

COLUMNS = (*PATHS, "attribute", "class_name", "buffer_m", "outside", "crs", "split")
"""Columns of a catalogue; ``scene`` and ``labels`` are required."""

_COLUMNS_HINT = f"its columns may be {', '.join(COLUMNS)}"
_WILDCARDS = re.compile(r"[*?\[]")
_PLACEHOLDER = re.compile(r"{(\w*)}")
_MOST_TOLD = 50

Entry = dict[str, Any]


def expand_scenes(data: dict[str, Any], base: Path) -> None:
    """Expand the lists of scenes of a configuration's ``data``, in place; all paths become absolute.

    Paths are relative to ``base``, those in a catalogue to the catalogue's folder. What is not a list of entries stays
    unchanged, for the configuration's own check to report. A `ConfigError` lists all missing files, or names a pattern
    without a match or an invalid catalogue.
    """
    missing: list[str] = []
    for split in ("train", "val", "scenes"):
        entries = data.get(split)
        if isinstance(entries, list):
            lists = [_expanded(entry, f"data.{split}.{i}", base, missing) for i, entry in enumerate(entries)]
            data[split] = [entry for entries in lists for entry in entries]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        lines = [f"{count(len(missing), 'file')} of the scenes {verb} missing:", *first_lines(missing, _MOST_TOLD)]
        raise ConfigError("\n  ".join(lines), hint="add them, or leave out their scenes")


def _expanded(entry: Any, where: str, base: Path, missing: list[str]) -> list[Any]:
    """The entries that one expands to."""
    if not isinstance(entry, dict):
        return [entry]
    if "catalogue" in entry:
        found = _from_catalogue(entry, where, base)
    elif isinstance(entry.get("scene"), str) and (pattern := _pattern(entry["scene"], base)):
        found = _from_pattern(entry, *pattern, where, base)
    else:
        return [_resolved(entry, base)]
    for written in found:
        for key in PATHS:
            path = written.get(key)
            if isinstance(path, str) and not exists(input_path(path)):
                what = "" if key == "scene" else f", {key.replace('_', ' ')} of {written['scene']}"
                missing.append(f"{path}{what}")
    return found


def _resolved(entry: Mapping[str, Any], base: Path) -> Entry:
    """An entry with absolute paths."""
    return {
        key: str(input_path(value, base)) if key in PATHS and isinstance(value, str) else value
        for key, value in entry.items()
    }


# --- patterns


def _pattern(scene: str, base: Path) -> tuple[Path, PurePath] | None:
    """The folder that a pattern begins with, and the pattern from there; None if a scene's name is not a pattern.

    Names that exist are not patterns: a file may be called ``field[1].tif``, and a folder ``flight [2]``.
    """
    path = input_path(scene, base)
    if not isinstance(path, Path):
        return None
    parts = path.parts
    for i, part in enumerate(parts):
        if _WILDCARDS.search(part) and not Path(*parts[: i + 1]).exists():
            return Path(*parts[:i]), PurePath(*parts[i:])
    return None


def _from_pattern(entry: Entry, fixed: Path, pattern: PurePath, where: str, base: Path) -> list[Entry]:
    scenes = _found(fixed, pattern)
    if not scenes:
        raise ConfigError(
            f"{where}: no file matches {fixed / pattern}",
            hint="check data.root and the pattern: ** matches any folders",
        )
    written = []
    for scene in scenes:
        words = {"stem": scene.stem, "parent": scene.parent.relative_to(fixed).as_posix()}
        if len(_WILDCARDS.findall(pattern.name)) == 1 and "*" in pattern.name:
            before, after = pattern.name.split("*")
            words["name"] = scene.name[len(before) : len(scene.name) - len(after)]
        filled = {
            key: _filled(value, words, where) if key in PATHS[1:] and isinstance(value, str) else value
            for key, value in entry.items()
        }
        written.append(_resolved(filled | {"scene": str(scene)}, base))
    return written


def _found(folder: Path, pattern: PurePath) -> list[Path]:
    """Files that match a pattern, sorted, also in linked folders, hidden ones excluded."""
    # ** of pathlib does not follow links.
    paths = [folder / name for name in glob.glob(str(pattern), root_dir=folder, recursive=True)]  # noqa: PTH207
    real = {parent: os.path.realpath(parent) for parent in {path.parent for path in paths}}
    # A link to a parent folder leads to the same files again; the shortest path counts.
    paths.sort(key=lambda path: (-len(path.parts), path))
    files = {(real[path.parent], path.name): path for path in paths if path.is_file()}
    return sorted(files.values())


def _filled(template: str, words: Mapping[str, str], where: str) -> str:
    for word in _PLACEHOLDER.findall(template):
        if word == "name" and word not in words:
            raise ConfigError(
                f"{where}: {{name}} in {template} stands for the one * of the scenes' file name, "
                "which has none or several",
                hint="use {stem}, the file name without its ending",
            )
        if word not in words:
            raise ConfigError(
                f"{where}: {template} has an unknown placeholder {{{word}}}",
                hint="{stem} is the scene's file name without its ending, {name} what * matches in it, "
                "{parent} the folders that the pattern matches",
            )
    return _PLACEHOLDER.sub(lambda found: words[found[1]], template)


# --- catalogues


def _from_catalogue(entry: Entry, where: str, base: Path) -> list[Entry]:
    defaults = _resolved({key: value for key, value in entry.items() if key != "catalogue"}, base)
    if not isinstance(entry["catalogue"], str):
        raise ConfigError(f"{where}.catalogue must name a file, found {entry['catalogue']!r:.80}")
    if "scene" in defaults:
        raise ConfigError(f"{where} names a scene and a catalogue", hint="make it two entries")
    path = input_path(entry["catalogue"], base)
    rows = _read_csv(path) if isinstance(path, Path) and suffix(path) == ".csv" else _read_vector(path)
    if not rows:
        raise ConfigError(f"catalogue {path} has no rows", hint=_COLUMNS_HINT)
    columns = {column for _, row in rows for column in row}
    required = [column for column in ("scene", "labels") if column not in columns and column not in defaults]
    unknown = sorted(columns - set(COLUMNS))
    if unknown or required:
        wrong = [f"has unknown columns: {', '.join(unknown)}"] if unknown else []
        wrong += [f"lacks columns: {', '.join(required)}"] if required else []
        meant = ", ".join(near for near in (nearest(column, COLUMNS) for column in unknown) if near)
        hint = f"did you mean {meant}?" if meant else _COLUMNS_HINT
        raise ConfigError(f"catalogue {path} {'; it '.join(wrong)}", hint=hint)
    split = where.split(".")[1]
    problems = list(_wrong_rows(rows, split, defaults))
    if problems:
        told = "\n  ".join([f"catalogue {path} is invalid:", *first_lines(problems, _MOST_TOLD)])
        raise ConfigError(told, hint="correct these rows")
    wanted = [row for _, row in rows if row.get("split", split) == split]
    if not wanted:
        raise ConfigError(f"catalogue {path} has no row of split {split}", hint=f"leave it out of data.{split}")
    given = [{key: value for key, value in row.items() if value and key != "split"} for row in wanted]
    folder = file_behind(path)
    return [{**defaults, **_resolved(row, folder.parent if folder is not None else base)} for row in given]


def _wrong_rows(rows: Sequence[tuple[int, Entry]], split: str, defaults: Entry) -> Iterator[str]:
    if split == "scenes" and any(row.get("split") for _, row in rows):
        yield "it has a column split, but data.split cuts its scenes into blocks: list it under data.train and data.val"
        return
    for number, row in rows:
        for column in ("scene", "labels"):
            if not row.get(column) and column not in defaults:
                yield f"row {number} has no {column}"
        if "split" in row and split != "scenes" and row["split"] not in ("train", "val"):
            yield f"row {number} has the split {row['split']!r}, expected train or val"


def _read_csv(path: Path) -> list[tuple[int, Entry]]:
    """Rows of a CSV with a header, and their line numbers; columns are separated by comma, semicolon or tab."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            delimiter = max(",;\t", key=first.count)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = [column.strip() for column in next(reader, [])]
            twice = sorted({column for column in header if column and header.count(column) > 1})
            if twice:
                raise ConfigError(f"catalogue {path} has duplicate columns: {', '.join(twice)}")
            rows = []
            for cells in ([cell.strip() for cell in line] for line in reader):
                if len(cells) > len(header):
                    raise ConfigError(
                        f"catalogue {path} has {len(cells)} cells in line {reader.line_num}, but {len(header)} columns",
                        hint=f'put values that contain "{delimiter}" into quotes',
                    )
                named = list(itertools.zip_longest(header, cells, fillvalue=""))
                # Spreadsheets leave empty columns behind.
                if any(cell for column, cell in named if not column):
                    message = f"catalogue {path} has a value in line {reader.line_num} in a column without a name"
                    raise ConfigError(message, hint=_COLUMNS_HINT)
                if any(cells):
                    rows.append((reader.line_num, {column: cell for column, cell in named if column}))
            return rows
    except FileNotFoundError as error:
        raise ConfigError(f"no such catalogue: {path}", hint="check data.root and the path") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(
            f"catalogue {path} is not a CSV file: {in_one_line(error)}", hint="save it as CSV in UTF-8"
        ) from error


def _read_vector(path: InputPath) -> list[tuple[int, Entry]]:
    """Attributes of the features of a GeoPackage, GeoJSON, GeoParquet, …, numbered from 1."""
    # Imported here, as it takes longer to load than the rest of the configuration.
    from geoseg.scene.vector_files import STYLES, layer_names, open_layer, reading

    if not exists(path):
        raise ConfigError(f"no such catalogue: {path}", hint="check data.root and the path")
    with reading("catalogue", path, ConfigError):
        layers = [name for name, _ in layer_names(path) if name != STYLES]
        if len(layers) != 1:
            raise ConfigError(
                f"catalogue {path} holds {len(layers)} layers, expected one: {', '.join(layers)}",
                hint=f"extract one: ogr2ogr catalogue.gpkg {quoted(path)} {quoted(layers[0])}" if layers else None,
            )
        table = open_layer(path, layers[0]).table()
    rows = table.astype(object).where(table.notna(), "").to_dict("records")
    return [
        (number, {str(key): str(value).strip() for key, value in row.items()})
        for number, row in enumerate(rows, start=1)
    ]

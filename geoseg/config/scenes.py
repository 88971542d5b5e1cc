"""Lists of scenes written out: patterns of file names and catalogues become one entry for each scene.

Under ``data.train``, ``data.val`` and ``data.scenes`` an entry is a scene, or one of these::

    {scene: "orthos/*.tif", labels: "labels/{stem}.tif"}
    {scene: "leftImg8bit/train/*/*_leftImg8bit.png", labels: "gtFine/train/{parent}/{name}_gtFine_labelTrainIds.png"}
    {catalogue: scenes.csv}
"""

from __future__ import annotations

import csv
import difflib
import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from geoseg.errors import ConfigError, in_one_line, quoted
from geoseg.paths import InputPath, exists, file_behind, input_path, suffix
from geoseg.words import count

SPLITS = ("train", "val", "scenes")

PATHS = ("scene", "labels", "labelled_area")
"""Keys of an entry that name files."""

COLUMNS = (*PATHS, "attribute", "class_name", "outside", "crs", "split")
"""Columns of a catalogue, of which ``scene`` and ``labels`` must be there."""

_WILDCARDS = re.compile(r"[*?\[]")
_PLACEHOLDER = re.compile(r"{(\w*)}")
_MOST_TOLD = 50

Entry = dict[str, Any]


def expand_scenes(data: dict[str, Any], base: Path) -> None:
    """Write out the lists of scenes of a configuration's ``data``, in place; all paths become absolute.

    What has not the form of a list of entries stays as it is, for the configuration's own check to find.

    Args:
        data: Values under the key ``data``.
        base: Folder that relative paths count from; those in a catalogue count from the catalogue's folder.

    Raises:
        ConfigError: A pattern that finds nothing, a catalogue that cannot be read or meant, or files that a pattern or
            a catalogue asks for and that are not there; all of these are listed.
    """
    missing: list[str] = []
    for split in SPLITS:
        entries = data.get(split)
        if isinstance(entries, list):
            data[split] = [
                written
                for i, entry in enumerate(entries)
                for written in _expanded(entry, f"data.{split}.{i}", base, missing)
            ]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise ConfigError(
            "\n  ".join([f"{count(len(missing), 'file')} of the scenes {verb} not there:", *_first(missing)]),
            hint="add them, or name the scenes without them in no list",
        )


def _expanded(entry: Any, where: str, base: Path, missing: list[str]) -> list[Any]:
    """The entries that one stands for."""
    if not isinstance(entry, dict):
        return [entry]
    if "catalogue" in entry:
        found = _from_catalogue(entry, where, base)
        needed = list(PATHS)
    elif isinstance(entry.get("scene"), str) and (pattern := _pattern(entry["scene"], base)):
        found = _from_pattern(entry, *pattern, where, base)
        needed = list(PATHS[1:])
    else:
        return [_resolved(entry, base)]
    for written in found:
        for key in needed:
            path = written.get(key)
            if isinstance(path, str) and not exists(input_path(path)):
                what = "" if key == "scene" else f", {key.replace('_', ' ')} of {written['scene']}"
                missing.append(f"{path}{what}")
    return found


def _resolved(entry: Mapping[str, Any], base: Path) -> Entry:
    """An entry whose paths count from nowhere."""
    return {
        key: str(input_path(value, base)) if key in PATHS and isinstance(value, str) else value
        for key, value in entry.items()
    }


def _first(lines: Sequence[str]) -> list[str]:
    """The first lines of a list of problems, and how many more there are."""
    more = len(lines) - _MOST_TOLD
    return [*lines[:_MOST_TOLD], *([f"and {more} more"] if more > 0 else [])]


# --- patterns


def _pattern(scene: str, base: Path) -> tuple[Path, PurePath] | None:
    """The folder that a pattern begins with, and the pattern from there; None where a scene's name is none.

    What is there is meant as it is: a file may well be called ``field[1].tif``, and a folder ``flight [2]``.
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
            f"{where}: no file has the form {fixed / pattern}",
            hint="check data.root and the pattern: ** stands for any folders",
        )
    written = []
    for scene in scenes:
        words = {"stem": scene.stem, "parent": scene.parent.relative_to(fixed).as_posix()}
        name = _name(pattern.name, scene.name)
        if name is not None:
            words["name"] = name
        filled = {
            key: _filled(value, words, where) if key in PATHS[1:] and isinstance(value, str) else value
            for key, value in entry.items()
        }
        written.append(_resolved(filled | {"scene": str(scene)}, base))
    return written


def _found(folder: Path, pattern: PurePath) -> list[Path]:
    """Files of a pattern, sorted, in linked folders too; none of those that programs hide."""
    # In pathlib ** passes no link.
    paths = [folder / name for name in glob.glob(str(pattern), root_dir=folder, recursive=True)]  # noqa: PTH207
    real = {parent: os.path.realpath(parent) for parent in {path.parent for path in paths}}
    # A link to a folder above it leads to the same files again and again; the shortest way counts.
    paths.sort(key=lambda path: (-len(path.parts), path))
    files = {(real[path.parent], path.name): path for path in paths if path.is_file()}
    return sorted(files.values())


def _name(pattern: str, name: str) -> str | None:
    """What the one ``*`` of a file name's pattern stands for; None where there is not one."""
    if len(_WILDCARDS.findall(pattern)) != 1 or "*" not in pattern:
        return None
    before, after = pattern.split("*")
    return name[len(before) : len(name) - len(after)]


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
                f"{where}: {template} has {{{word}}}, which stands for nothing",
                hint="{stem} is the scene's file name without its ending, {name} what the * in it stands for, "
                "{parent} the folders that the pattern stands for",
            )
    return _PLACEHOLDER.sub(lambda found: words[found[1]], template)


# --- catalogues


def _from_catalogue(entry: Entry, where: str, base: Path) -> list[Entry]:
    defaults = _resolved({key: value for key, value in entry.items() if key != "catalogue"}, base)
    if not isinstance(entry["catalogue"], str):
        raise ConfigError(f"{where}.catalogue must name a file, found {entry['catalogue']!r:.80}")
    if "scene" in defaults:
        raise ConfigError(f"{where} names a scene and a catalogue", hint="make two entries of it")
    path = input_path(entry["catalogue"], base)
    rows = _read_csv(path) if isinstance(path, Path) and suffix(path) == ".csv" else _read_vector(path)
    if not rows:
        raise ConfigError(f"catalogue {path} has no rows", hint=f"its columns may be {', '.join(COLUMNS)}")
    columns = {column for _, row in rows for column in row}
    required = [column for column in ("scene", "labels") if column not in columns and column not in defaults]
    unknown = sorted(columns - set(COLUMNS))
    if unknown or required:
        raise ConfigError(f"catalogue {path} {_wrong_columns(unknown, required)}", hint=_hint(unknown))
    split = where.split(".")[1]
    problems = list(_wrong_rows(rows, split, defaults))
    if problems:
        told = "\n  ".join([f"catalogue {path} cannot be meant:", *_first(problems)])
        raise ConfigError(told, hint="put these rows right")
    wanted = [row for _, row in rows if row.get("split", split) == split]
    if not wanted:
        raise ConfigError(f"catalogue {path} has no row of split {split}", hint=f"leave it out of data.{split}")
    given = [{key: value for key, value in row.items() if value and key != "split"} for row in wanted]
    folder = file_behind(path)
    return [{**defaults, **_resolved(row, folder.parent if folder is not None else base)} for row in given]


def _wrong_columns(unknown: Sequence[str], required: Sequence[str]) -> str:
    wrong = []
    if unknown:
        wrong.append(f"has unknown columns: {', '.join(unknown)}")
    if required:
        wrong.append(f"lacks columns: {', '.join(required)}")
    return "; it ".join(wrong)


def _hint(unknown: Sequence[str]) -> str:
    near = [difflib.get_close_matches(column, COLUMNS, n=1, cutoff=0.6) for column in unknown]
    meant = ", ".join(found[0] for found in near if found)
    return f"did you mean {meant}?" if meant else f"its columns may be {', '.join(COLUMNS)}"


def _wrong_rows(rows: Sequence[tuple[int, Entry]], split: str, defaults: Entry) -> Iterator[str]:
    if split == "scenes" and any(row.get("split") for _, row in rows):
        yield "it has a column split, but data.split cuts its scenes into blocks: name it under data.train and data.val"
        return
    for number, row in rows:
        for column in ("scene", "labels"):
            if not row.get(column) and column not in defaults:
                yield f"row {number} has no {column}"
        if "split" in row and split != "scenes" and row["split"] not in ("train", "val"):
            yield f"row {number} has the split {row['split']!r}, wanted train or val"


def _read_csv(path: Path) -> list[tuple[int, Entry]]:
    """Rows of a CSV with a header, and their line numbers; comma, semicolon or tab between the columns."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            delimiter = max(",;\t", key=first.count)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = [column.strip() for column in next(reader, [])]
            twice = sorted({column for column in header if column and header.count(column) > 1})
            if twice:
                raise ConfigError(f"catalogue {path} has columns twice: {', '.join(twice)}")
            rows = []
            for cells in reader:
                if len(cells) > len(header):
                    raise ConfigError(
                        f"catalogue {path} has {len(cells)} cells in line {reader.line_num}, but {len(header)} columns",
                        hint=f'put a value that holds "{delimiter}" into quotes',
                    )
                if any(cell.strip() for cell in cells):
                    padded = [*cells, *[""] * (len(header) - len(cells))]
                    row = {column: cell.strip() for column, cell in zip(header, padded, strict=True) if column}
                    # Spreadsheets leave empty columns behind.
                    if any(cell.strip() for column, cell in zip(header, padded, strict=True) if not column):
                        raise ConfigError(
                            f"catalogue {path} has a value in line {reader.line_num} in a column without a name",
                            hint=f"its columns may be {', '.join(COLUMNS)}",
                        )
                    rows.append((reader.line_num, row))
            return rows
    except FileNotFoundError as error:
        raise ConfigError(f"no such catalogue: {path}", hint="check data.root and the path") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(
            f"catalogue {path} is no CSV: {in_one_line(error)}", hint="save it as CSV in UTF-8"
        ) from error


def _read_vector(path: InputPath) -> list[tuple[int, Entry]]:
    """Attributes of the features of a GeoPackage, GeoJSON, GeoParquet, …, numbered from 1."""
    from geoseg.scene.vector_files import (  # take longer to load than all of the configuration
        STYLES,
        layer_names,
        open_layer,
        reading,
    )

    if not exists(path):
        raise ConfigError(f"no such catalogue: {path}", hint="check data.root and the path")
    with reading("catalogue", path, ConfigError):
        layers = [name for name, _ in layer_names(path) if name != STYLES]
        if len(layers) != 1:
            raise ConfigError(
                f"catalogue {path} holds {len(layers)} layers, wanted one: {', '.join(layers)}",
                hint=f"take one of them: ogr2ogr catalogue.gpkg {quoted(path)} {quoted(layers[0])}" if layers else None,
            )
        table = open_layer(path, layers[0]).table()
    rows = table.to_dict("records")
    return [
        (number, {str(key): _text(value) for key, value in row.items()}) for number, row in enumerate(rows, start=1)
    ]


def _text(value: Any) -> str:
    return "" if value is None or value != value else str(value).strip()  # NaN stands for nothing

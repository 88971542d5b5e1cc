"""Names of input files: paths, members of archives, URLs, for every kind of input.

What only GDAL understands, as ``/vsizip/FILE.zip/MEMBER`` or a URL, stays text: a `Path` turns two slashes into one.
"""

import re
import zipfile
from collections.abc import Collection, Iterable
from os import PathLike, fspath
from pathlib import Path, PurePosixPath

from geoseg.errors import GeosegError, quoted
from geoseg.options import AnyPath

InputPath = Path | str  # A path of the file system, or text that only GDAL can open

RASTER_SUFFIXES = frozenset({".tif", ".tiff", ".vrt", ".png", ".img", ".jp2", ".bmp", ".gif", ".jpg", ".jpeg"})
VECTOR_SUFFIXES = frozenset(
    {".geojson", ".geojsonl", ".ndjson", ".json", ".gpkg", ".shp", ".fgb", ".parquet", ".pmtiles", ".kml", ".gml"}
)
MAP_SUFFIXES = (".tif", ".tiff")  # of the rasters that are written

_FOLDERS_OF_GDAL = frozenset({".safe", ".zarr", ".gdb"})
_VIRTUAL = re.compile(r"/vsi\w+[/?]|[\w.+-]{2,}:|\s*<")
"""Beginnings of names that only GDAL understands: virtual files, URLs, subdatasets, XML."""

_ARCHIVE = re.compile(r"(/vsi(?:zip|tar|gzip|7z|rar)/)(?!/?vsi|\{)(.+)")
_MEMBER = re.compile(r"(?:zip://)?(.+\.zip)!/?(.+)", re.IGNORECASE)
_LOST_SLASH = re.compile(r"(\w[\w+.-]+):/(?!/)")


def is_map(output: Path) -> bool:
    """Whether an output is a raster rather than polygons."""
    return output.suffix.lower() in MAP_SUFFIXES


def input_path(name: AnyPath, base: Path | None = None) -> InputPath:
    """The input that a name stands for: a path, or text for what only GDAL can open.

    The name is a path, ``~`` allowed, a name for GDAL, ``zip://FILE.zip!MEMBER`` or ``FILE.zip!MEMBER``; relative paths
    count from ``base``.
    """
    text = fspath(name)
    if isinstance(name, Path):  # made of a URL, it has lost a slash
        text = _LOST_SLASH.sub(r"\1://", text, count=1)
    text = text.removeprefix("file://")
    if found := _MEMBER.fullmatch(text):
        text = f"/vsizip/{found[1]}/{found[2]}"
    elif text.startswith("zip://"):
        text = text.removeprefix("zip://")
    if found := _ARCHIVE.fullmatch(text):
        return found[1] + str(Path(found[2]) if base is None else base / found[2])
    path = Path(text).expanduser() if base is None else base / Path(text).expanduser()
    return text if _VIRTUAL.match(text) and not path.exists() else path


def opened_name(
    name: AnyPath,
    suffixes: Collection[str] = RASTER_SUFFIXES | VECTOR_SUFFIXES,
    kind: type[GeosegError] = GeosegError,
) -> str:
    """What GDAL opens for a name: the name itself, or of a zip file the only member with one of these suffixes.

    An error of the given ``kind`` if there are several.
    """
    path = input_path(name)
    archive = Path(str(path).removeprefix("/vsizip/")) if str(path).lower().endswith(".zip") else None
    if archive is None or not zipfile.is_zipfile(archive):
        return fspath(name) if isinstance(path, Path) else path
    members = [member for member in _members(archive) if PurePosixPath(member).suffix.lower() in suffixes]
    if len(members) > 1:
        raise kind(
            f"{archive} holds several files: {', '.join(members[:8])}{', …' if len(members) > 8 else ''}",
            hint=f"name one of them: {quoted(f'/vsizip/{archive}/{members[0]}')}",
        )
    return f"/vsizip/{archive}/{members[0]}" if members else f"/vsizip/{archive}"


def scene_names(names: AnyPath | Iterable[AnyPath]) -> list[str]:
    """Names of one scene or several, each once, a folder replaced by the rasters in it.

    A folder that GDAL opens as a whole, such as a Zarr or a Sentinel-2 product, stays; so does one without rasters.
    """
    found: dict[str, None] = {}
    for name in [names] if isinstance(names, str | PathLike) else names:
        path = input_path(name)
        rasters: list[str] = []
        if isinstance(path, Path) and path.is_dir() and path.suffix.lower() not in _FOLDERS_OF_GDAL:
            files = (file for file in path.iterdir() if file.suffix.lower() in RASTER_SUFFIXES and file.is_file())
            rasters = sorted(str(file) for file in files if not file.name.startswith("."))
        found.update(dict.fromkeys(rasters or [fspath(name)]))
    return list(found)


def suffix(path: InputPath) -> str:
    """Lower-case suffix of what is opened for a path, without a URL's query."""
    try:
        name = opened_name(path)
    except GeosegError:
        name = str(path)
    return PurePosixPath(name.partition("?")[0]).suffix.lower()


def exists(path: InputPath) -> bool:
    """Whether an input exists; True if only opening it can tell, as on a server."""
    if isinstance(path, Path):
        return path.exists()
    if not _ARCHIVE.fullmatch(path):
        return True
    file = file_behind(path)
    if file is None:
        return False
    member = path.partition(f"{file}")[2].strip("/")
    if not member or not zipfile.is_zipfile(file):
        return True
    return any(name == member or name.startswith(f"{member}/") for name in _members(file))


def file_behind(path: InputPath) -> Path | None:
    """The file on disk that holds an input: itself or its archive; None for others."""
    if isinstance(path, Path):
        return path
    found = _ARCHIVE.fullmatch(path)
    if found is None:
        return None
    inside = Path(found[2])
    return next((part for part in (inside, *inside.parents) if part.is_file()), None)


def _members(archive: Path) -> list[str]:
    with zipfile.ZipFile(archive) as file:
        return file.namelist()

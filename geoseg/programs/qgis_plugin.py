"""The plugin for QGIS as a zip file: ``geoseg qgis-plugin``."""

import zipfile
from pathlib import Path

import geoseg
from geoseg.errors import OutputError
from geoseg.files import atomic_output, check_output

_DATE = (1980, 1, 1, 0, 0, 0)  # the same for all files, so that the same plugin is the same bytes


def plugin_folder() -> Path:
    """The plugin's files: within the package where it is installed, beside it in a checkout."""
    package = Path(geoseg.__file__).parent
    return next(
        folder
        for folder in (package / "qgis_plugin", package.parent / "qgis_plugin" / "geoseg")
        if (folder / "metadata.txt").is_file()
    )


def write_plugin(output: Path, *, overwrite: bool = False) -> Path:
    """Write the plugin as the zip file that QGIS installs; an `OutputError` for another suffix than .zip."""
    if output.suffix.lower() != ".zip":
        raise OutputError(f"{output} does not end in .zip", hint=f"-o {output.with_suffix('.zip')}")
    check_output(output, overwrite=overwrite)
    folder = plugin_folder()
    with atomic_output(output) as scratch, zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            if file.suffix in (".py", ".txt"):
                archive.writestr(zipfile.ZipInfo(f"geoseg/{file.name}", _DATE), file.read_bytes())
    return output

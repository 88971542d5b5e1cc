"""What a verb refuses before anything heavy is loaded: paths, names, models, configurations.

torch and what comes with it take seconds to load, so the command line calls these functions first. The programs behind
the verbs call them too, for those who come from Python.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from geoseg.class_tables import read_class_table
from geoseg.contract import MODEL_FILES
from geoseg.outputs import check_output_folder
from geoseg.pretrained import check_source


def check_import(
    checkpoint: str | PathLike[str], output: Path, *, classes: str | PathLike[str] | None, overwrite: bool
) -> None:
    """What ``geoseg weights import`` can refuse without reading the checkpoint.

    Raises:
        ModelError: No such file, or one with another suffix.
        ConfigError: A file of classes that cannot be read.
        OutputError: The folder exists, holds other files, or cannot be written.
    """
    check_source(checkpoint)
    check_output_folder(output, overwrite=overwrite, ours=MODEL_FILES, writer="geoseg weights import")
    if classes is not None:
        read_class_table(classes)

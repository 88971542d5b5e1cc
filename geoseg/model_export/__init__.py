"""A trained model as a file for other hosts: ONNX with its metadata, and a STAC item that describes it."""

from pathlib import Path

from geoseg.errors import ConfigError, OutputError
from geoseg.options import ExportOptions

SUFFIX = ".onnx"
OPSETS = range(18, 24)  # what torch's exporter writes without converting versions


def check_suffix(path: Path) -> None:
    """Refuse a file that is not called ``.onnx``, with an `OutputError`."""
    if path.suffix.lower() != SUFFIX:
        raise OutputError(
            f"output {path} has the suffix {path.suffix or '(none)'}, expected {SUFFIX}", hint=f"-o {path.stem}{SUFFIX}"
        )


def check_opset(opset: int) -> None:
    """Refuse an opset that torch's exporter does not write, with a `ConfigError`."""
    if opset not in OPSETS:
        hint = f"--opset {ExportOptions().opset}"
        raise ConfigError(f"opset {opset} is not in {OPSETS[0]} … {OPSETS[-1]}", hint=hint)

"""The log as a table: ``metrics.csv``, one row per step."""

from __future__ import annotations

import csv
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class MetricsTable(Logger):
    """Rows of ``step`` and what was logged; a resumed run keeps those before its ``start``.

    Lightning's own logger deletes the table of a resumed run.
    """

    def __init__(self, path: Path, *, start: int = 0) -> None:
        super().__init__()
        self._path = path
        self._rows: list[dict[str, Any]] = []
        self._fields = ["step"]
        self._is_written = False
        if start and path.exists():
            # A killed run may have left a partial row at the end.
            text = path.read_text(encoding="utf-8").rpartition("\n")[0]
            reader = csv.DictReader(text.splitlines())
            self._rows = [row for row in reader if int(row["step"]) < start]
            self._fields = list(reader.fieldnames or self._fields)

    @property
    def name(self) -> str:
        """Required by Lightning."""
        return "table"

    @property
    def version(self) -> str:
        """Required by Lightning."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: they are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row; with a new column the whole table is written again."""
        row = {"step": step, **{key: value for key, value in metrics.items() if key != "epoch"}}
        self._rows.append(row)
        new = [key for key in row if key not in self._fields]
        self._fields += new
        if new or not self._is_written:
            self._write_all()
            return
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, fieldnames=self._fields).writerow(row)

    def _write_all(self) -> None:
        scratch = self._path.with_name(f".{self._path.name}.partial")
        with scratch.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=self._fields)
            writer.writeheader()
            writer.writerows(self._rows)
        scratch.replace(self._path)
        self._is_written = True

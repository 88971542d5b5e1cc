"""The log as a table: ``metrics.csv``, one row for what is logged at once."""

from __future__ import annotations

import csv
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class MetricsTable(Logger):
    """Rows of ``step`` and whatever was logged; a resumed run keeps those before its checkpoint.

    Lightning's own logger deletes the table of the run it goes on with.

    Args:
        path: The table.
        start: Iterations done before; rows of later ones are from what was lost.
    """

    def __init__(self, path: Path, *, start: int = 0) -> None:
        super().__init__()
        self._path = path
        self._rows: list[dict[str, Any]] = []
        self._fields = ["step"]
        self._is_written = False
        if start and path.exists():
            # A killed run may have left half a row at the end.
            text = path.read_text(encoding="utf-8").rpartition("\n")[0]
            reader = csv.DictReader(text.splitlines())
            self._rows = [row for row in reader if int(row["step"]) < start]
            self._fields = list(reader.fieldnames or self._fields)

    @property
    def name(self) -> str:
        """Nothing but a name."""
        return "table"

    @property
    def version(self) -> str:
        """One run, one table."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The run folder's config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a row, below the others where it has no new column."""
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

"""Labels as training reads them, on a grid that may be any."""

from geoseg.classes import ClassTable
from geoseg.config.settings import SceneConfig
from geoseg.data.labelled import corrected_labels, stored_labels
from geoseg.data.labels import Labels
from geoseg.grid import Grid


def open_labels(config: SceneConfig, grid: Grid, classes: ClassTable, *, first_label: int = 0) -> Labels:
    """The labels of a configured scene on its grid, corrected; those outside its labelled area are 255."""
    stored = stored_labels(config, grid, classes, first_label=first_label, own=grid)
    return corrected_labels(stored, config, grid, classes)

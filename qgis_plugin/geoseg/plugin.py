# SPDX-License-Identifier: Apache-2.0
"""The plugin: it adds the provider to Processing, and takes it away."""

from qgis.core import QgsApplication

from .provider import Provider


class Plugin:
    """What QGIS loads and unloads."""

    def __init__(self):
        self._provider = None

    def initProcessing(self):
        """Add the provider; called by qgis_process alone."""
        self._provider = Provider()
        QgsApplication.processingRegistry().addProvider(self._provider)

    def initGui(self):
        """Add the provider; called by QGIS with a window."""
        self.initProcessing()

    def unload(self):
        """Remove the provider."""
        if self._provider is not None:
            QgsApplication.processingRegistry().removeProvider(self._provider)

# SPDX-License-Identifier: Apache-2.0
# Apache-2.0 may be combined with QGIS, which is GPL-2.0-or-later, under GPL-3.0.
"""geoseg in QGIS's Processing toolbox."""


def classFactory(iface):
    """The plugin, as QGIS asks for it."""
    from .plugin import Plugin

    return Plugin()

# SPDX-License-Identifier: Apache-2.0
"""The provider: six algorithms, each of which runs one verb of the geoseg command."""

import shlex
from pathlib import Path

from qgis.core import (
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingOutputString,
    QgsProcessingParameterFile,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterFolderDestination,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
    QgsProcessingProvider,
    QgsSettings,
)

from .command import SETTING, find_command, run_command

VECTORS = "GeoPackage (*.gpkg);;FlatGeobuf (*.fgb);;GeoJSON (*.geojson);;GeoParquet (*.parquet);;Shapefile (*.shp)"
OUTPUTS = f"GeoTIFF (*.tif);;{VECTORS}"


class Provider(QgsProcessingProvider):
    """geoseg in the toolbox."""

    def id(self):
        return "geoseg"

    def name(self):
        return "geoseg"

    def loadAlgorithms(self):
        for algorithm in (Predict, Vectorize, Compare, Info, Train, Evaluate):
            self.addAlgorithm(algorithm())


class _Verb(QgsProcessingAlgorithm):
    """One verb of the command.

    Attributes:
        verb: Its name.
        title: What the toolbox calls it.
        help: What it does.
    """

    verb = title = help = ""

    def createInstance(self):
        return type(self)()

    def name(self):
        return self.title.lower()

    def displayName(self):
        return self.title

    def shortHelpString(self):
        return f"{self.help} Runs geoseg {self.verb} in geoseg's own environment."

    def initAlgorithm(self, config=None):
        self.add_parameters()
        extra = QgsProcessingParameterString("OPTIONS", f"More options of geoseg {self.verb}", "", optional=True)
        chosen = QgsSettings().value(SETTING, "", str)
        command = QgsProcessingParameterString(
            "COMMAND", "Path of the geoseg command, if it is not on PATH", chosen, optional=True
        )
        for parameter in (extra, command):
            parameter.setFlags(parameter.flags() | parameter.FlagAdvanced)
            self.addParameter(parameter)
        self.addOutput(QgsProcessingOutputString("REPORT", "What geoseg reported"))

    def add_parameters(self):
        raise NotImplementedError

    def arguments(self, parameters, context):
        """What follows the verb, and the file that it writes, if any."""
        raise NotImplementedError

    def processAlgorithm(self, parameters, context, feedback):
        chosen = self.parameterAsString(parameters, "COMMAND", context).strip()
        command = find_command(chosen)
        if command is None:
            where = f"{chosen} cannot be run" if chosen else "no geoseg command is on PATH"
            raise QgsProcessingException(
                f"{where}. Install geoseg in an environment of its own (python -m venv, then pip install geoseg) and "
                "name its command under Advanced parameters, for example /home/me/geoseg/bin/geoseg"
            )
        if chosen:
            QgsSettings().setValue(SETTING, chosen)
        arguments, output = self.arguments(parameters, context)
        more = shlex.split(self.parameterAsString(parameters, "OPTIONS", context))
        feedback.pushCommandInfo(shlex.join([command, self.verb, *arguments, *more]))
        try:
            lines = run_command(
                command,
                [self.verb, *arguments, *more],
                say=feedback.pushInfo,
                progress=feedback.setProgress,
                is_canceled=feedback.isCanceled,
            )
        except (RuntimeError, OSError) as error:
            raise QgsProcessingException(str(error)) from error
        if lines is None:
            return {}
        if output is not None:
            self.load(output, context)
        return {"REPORT": "\n".join(lines), **({} if output is None else {"OUTPUT": output})}

    def load(self, path, context):
        """Have QGIS open a file when the dialog ends; the style that lies beside it, or in it, comes along."""
        if Path(path).is_file():
            details = QgsProcessingContext.LayerDetails(Path(path).name, context.project(), "OUTPUT")
            context.addLayerToLoadOnCompletion(path, details)


class Predict(_Verb):
    """A scene to a map or to polygons."""

    verb, title = "predict", "Predict"
    help = "Maps a scene with a model, to a class map (.tif) or to polygons."

    def add_parameters(self):
        self.addParameter(QgsProcessingParameterRasterLayer("SCENE", "Scene"))
        self.addParameter(QgsProcessingParameterString("MODEL", "Model: a folder, or a shipped one", "landscape-tiny"))
        self.addParameter(QgsProcessingParameterFileDestination("OUTPUT", "Map or polygons", OUTPUTS))

    def arguments(self, parameters, context):
        output = self.parameterAsFileOutput(parameters, "OUTPUT", context)
        model = self.parameterAsString(parameters, "MODEL", context)
        return [_source(self, parameters, "SCENE", context), "-m", model, "-o", output, "--overwrite"], output


class Vectorize(_Verb):
    """A class map to polygons."""

    verb, title = "vectorize", "Vectorize"
    help = "Turns a class map into polygons that share their borders exactly."

    def add_parameters(self):
        self.addParameter(QgsProcessingParameterRasterLayer("MAP", "Class map"))
        self.addParameter(QgsProcessingParameterFileDestination("OUTPUT", "Polygons", VECTORS))

    def arguments(self, parameters, context):
        output = self.parameterAsFileOutput(parameters, "OUTPUT", context)
        return [_source(self, parameters, "MAP", context), "-o", output, "--overwrite"], output


class Compare(_Verb):
    """Two class maps to what changed."""

    verb, title = "compare", "Compare"
    help = "Finds what changed between two class maps of one place; the report has the areas of every change."

    def add_parameters(self):
        self.addParameter(QgsProcessingParameterRasterLayer("OLD", "Earlier class map"))
        self.addParameter(QgsProcessingParameterRasterLayer("NEW", "Later class map, on the same grid"))
        self.addParameter(QgsProcessingParameterFileDestination("OUTPUT", "Polygons or map of changes", OUTPUTS))

    def arguments(self, parameters, context):
        output = self.parameterAsFileOutput(parameters, "OUTPUT", context)
        maps = [_source(self, parameters, name, context) for name in ("OLD", "NEW")]
        return [*maps, "-o", output, "--overwrite"], output


class Info(_Verb):
    """What a file is."""

    verb, title = "info", "Info"
    help = "Says what a scene, a map, a vector file or a model is, and what to look out for."

    def add_parameters(self):
        self.addParameter(QgsProcessingParameterFile("FILE", "File"))

    def arguments(self, parameters, context):
        return [self.parameterAsFile(parameters, "FILE", context)], None


class Train(_Verb):
    """A configuration to a model."""

    verb, title = "train", "Train"
    help = "Trains a model on the scenes and labels of a configuration."

    def add_parameters(self):
        self.addParameter(QgsProcessingParameterFile("CONFIG", "Configuration", extension="yaml"))

    def arguments(self, parameters, context):
        return [self.parameterAsFile(parameters, "CONFIG", context)], None


class Evaluate(_Verb):
    """A model against labels."""

    verb, title = "evaluate", "Evaluate"
    help = "Compares the maps of a model with the labels of a configuration, and writes a report."

    def add_parameters(self):
        self.addParameter(QgsProcessingParameterString("MODEL", "Model folder"))
        self.addParameter(QgsProcessingParameterFile("CONFIG", "Configuration", extension="yaml"))
        self.addParameter(QgsProcessingParameterFolderDestination("OUTPUT", "Folder for the report"))

    def arguments(self, parameters, context):
        output = self.parameterAsString(parameters, "OUTPUT", context)
        model = self.parameterAsString(parameters, "MODEL", context)
        config = self.parameterAsFile(parameters, "CONFIG", context)
        return [model, config, "-o", output, "--overwrite"], output


def _source(algorithm, parameters, name, context):
    """The file behind a raster layer."""
    layer = algorithm.parameterAsRasterLayer(parameters, name, context)
    if layer is None:
        raise QgsProcessingException(f"no raster layer was given as {name}")
    return layer.source()

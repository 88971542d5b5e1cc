"""Run the plugin's algorithms in QGIS's own Python; which, and what became of them, is passed as JSON.

QT_QPA_PLATFORM=offscreen /usr/bin/python3 in_qgis.py FOLDER_OF_PLUGINS < jobs.json
"""

import json
import sys

from qgis.core import (
    QgsApplication,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProject,
    QgsRasterLayer,
    QgsVectorLayer,
)

sys.path.insert(0, sys.argv[1])


def style_of(path):
    """How QGIS draws a layer, and the names in its legend."""
    layer = QgsRasterLayer(path) if path.endswith(".tif") else QgsVectorLayer(path)  # which owns its renderer
    renderer = layer.renderer()
    if renderer.type() == "paletted":
        return renderer.type(), [c.label for c in renderer.classes()]
    return renderer.type(), [c.label() for c in renderer.categories()] if "categor" in renderer.type() else []


def run(name, parameters, *, cancels=False):
    """What one algorithm did."""
    algorithm = QgsApplication.processingRegistry().createAlgorithmById(f"geoseg:{name}")
    context, feedback, seen = QgsProcessingContext(), QgsProcessingFeedback(False), []
    context.setProject(QgsProject.instance())
    feedback.progressChanged.connect(seen.append)
    if cancels:
        feedback.progressChanged.connect(lambda _: feedback.cancel())
    try:
        results, is_done = algorithm.run(parameters, context, feedback, {}, False)
    except QgsProcessingException as error:
        return {"error": str(error)}
    loaded = {path: style_of(path) for path in context.layersToLoadOnCompletion()}
    return {"done": is_done, "results": results, "progress": seen, "loaded": loaded, "said": feedback.textLog()}


application = QgsApplication([], False)
application.initQgis()
from geoseg.provider import Provider  # noqa: E402  once QGIS runs

provider = Provider()
QgsApplication.processingRegistry().addProvider(provider)
sys.stdout.write("\n" + json.dumps([run(**job) for job in json.load(sys.stdin)]) + "\n")
sys.stdout.flush()

"""A trained model as a file for other hosts: ONNX with its metadata, and a STAC item that describes it.

`onnx_graph` turns any network into ONNX, `host` puts normalisation and softmax around it, `deepness` and `stac`
describe the file to a QGIS plugin and to catalogues, `check` runs it beside torch, and `export` is the program behind
``geoseg export``.
"""

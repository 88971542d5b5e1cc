"""The viewer in a notebook: the same page in a frame below the cell."""

from html import escape

from geoseg.options import AnyPath
from geoseg.view.program import open_session
from geoseg.view.server import Server


class Shown:
    """A viewer that runs until `close`, or until the notebook's kernel ends; Jupyter draws it as a frame."""

    def __init__(self, server: Server, height: int) -> None:
        self._server = server
        self._height = height
        self.address = server.address  # what to open in a browser

    def _repr_html_(self) -> str:
        return (
            f'<iframe src="{escape(self.address)}" width="100%" height="{self._height}" '
            'style="border: 0" allowfullscreen></iframe>'
        )

    def __repr__(self) -> str:
        return f"geoseg viewer at {self.address}"

    def close(self) -> None:
        """End the viewer."""
        self._server.stop()


def show(
    class_map: AnyPath | None = None,
    *,
    scene: AnyPath | None = None,
    polygons: AnyPath | None = None,
    port: int = 0,
    height: int = 600,
) -> Shown:
    """Show a class map, its scene and its polygons, in Jupyter as a frame of some height in px below the cell.

    The server listens on the machine that the kernel runs on, at a free port by default. In a browser elsewhere,
    forward the port: ``ssh -L PORT:127.0.0.1:PORT HOST``. A `GeosegError` if no file is named, or one cannot be shown.
    """
    server = Server(open_session([path for path in (scene, class_map, polygons) if path is not None]), port)
    server.start()
    return Shown(server, height)

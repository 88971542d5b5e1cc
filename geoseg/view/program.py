"""The program behind ``geoseg view``: open what was named, serve it, or save it as one page."""

from collections.abc import Callable, Sequence
from os import fspath
from pathlib import Path
from typing import Any

from geoseg.errors import ConfigError
from geoseg.options import AnyPath, ViewOptions
from geoseg.view.doubt import doubtful_windows
from geoseg.view.evaluations import named_files, worst_windows
from geoseg.view.layers import Opener
from geoseg.view.saving import save
from geoseg.view.server import Server
from geoseg.view.session import Session, title_of

_DEFAULT = ViewOptions()


def open_session(paths: Sequence[AnyPath], options: ViewOptions = _DEFAULT, *, progress: bool = False) -> Session:
    """All that a page shows of scenes, class maps, vector files, folders of rasters or of ``geoseg evaluate``.

    Raises:
        SceneError: A file that cannot be shown.
        ConfigError: No file is named, or no map recorded the doubt that was asked for.
    """
    names = [fspath(path) for path in paths]
    if not names:
        raise ConfigError("nothing to show was named", hint="name a scene, a class map or a vector file")
    opener = Opener(options.bands)
    files, scores = named_files(names)
    layers = opener.open(files)
    windows = doubtful_windows(layers, options.windows) if options.doubt else worst_windows(scores, layers)
    return Session(layers, opener, windows=windows, title=title_of(names), basemap=options.basemap, progress=progress)


def serve(
    paths: Sequence[AnyPath],
    options: ViewOptions = _DEFAULT,
    *,
    progress: bool = False,
    on_start: Callable[[str], Any] = print,
) -> None:
    """Show files (see `open_session`) in the browser until Ctrl-C; ``on_start`` gets the address of the page."""
    server = Server(open_session(paths, options, progress=progress), options.port)
    on_start(server.address)
    server.run(browser=options.browser)


def save_page(
    paths: Sequence[AnyPath],
    output: Path,
    options: ViewOptions = _DEFAULT,
    *,
    overwrite: bool = False,
    on_start: Callable[[str], Any] = print,
) -> list[str]:
    """Write one file that shows the same as the server does, without corrections; what was written, for people.

    ``on_start`` is called with how large the page will be, before it is made. See `open_session` and `save`.
    """
    size = save(open_session(paths, options), output, overwrite=overwrite, on_start=on_start)
    return [f"{output}: {size / 1e6:.1f} MB, opens in any browser without a server"]

"""The program behind ``geoseg view``: open what was named, serve it, or save it as one page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from geoseg.errors import ConfigError
from geoseg.view.doubt import doubtful_windows
from geoseg.view.evaluations import named_files, worst_windows
from geoseg.view.layers import Opener
from geoseg.view.saving import save
from geoseg.view.server import Server
from geoseg.view.session import Session, title_of


def open_session(
    paths: Sequence[str | PathLike[str]],
    *,
    bands: Sequence[int] | None = None,
    basemap: str | None = None,
    doubt: int | None = None,
    progress: bool = False,
) -> Session:
    """All that a page shows of files.

    Args:
        paths: Scenes, class maps, vector files, folders of rasters or of ``geoseg evaluate``.
        bands: 1-based bands of imagery shown as red, green and blue, or one; None takes the first three.
        basemap: Template of an online background map, with {z}, {x} and {y}.
        doubt: How many windows that the model was least sure of are listed; None lists none.
        progress: Draw progress bars on standard error.

    Raises:
        SceneError: A file that cannot be shown.
        ConfigError: Bands or a template that cannot be used, or no map in which doubt was recorded.
    """
    if bands is not None and len(bands) not in (1, 3):
        raise ConfigError(f"{len(bands)} bands cannot be shown", hint="name three, as --bands 4,3,2, or one")
    if basemap is not None and not (basemap.startswith(("https://", "http://")) and "{z}" in basemap):
        raise ConfigError(
            f"basemap {basemap!r} is no template of an address", hint="--basemap https://HOST/{z}/{x}/{y}.png"
        )
    names = [fspath(path) for path in paths]
    if not names:
        raise ConfigError("nothing to show was named", hint="name a scene, a class map or a vector file")
    opener = Opener(bands)
    files, scores = named_files(names)
    layers = opener.open(files)
    windows = worst_windows(scores, layers) if doubt is None else doubtful_windows(layers, doubt)
    return Session(layers, opener, windows=windows, title=title_of(names), basemap=basemap, progress=progress)


def serve(
    paths: Sequence[str],
    *,
    port: int = 0,
    browser: bool = True,
    bands: Sequence[int] | None = None,
    basemap: str | None = None,
    doubt: int | None = None,
    progress: bool = False,
    on_start: Callable[[str], Any] = print,
) -> None:
    """Show files in the browser until Ctrl-C.

    Args:
        paths: See `open_session`.
        port: To listen on; 0 takes a free one.
        browser: Open the browser.
        bands: See `open_session`.
        basemap: See `open_session`.
        doubt: See `open_session`.
        progress: Draw progress bars on standard error.
        on_start: Called with the address of the page.

    Raises:
        GeosegError: See `open_session`; or the port is taken.
    """
    session = open_session(paths, bands=bands, basemap=basemap, doubt=doubt, progress=progress)
    server = Server(session, port)
    on_start(server.address)
    server.run(browser=browser)


def save_page(
    paths: Sequence[str | PathLike[str]],
    output: Path,
    *,
    bands: Sequence[int] | None = None,
    doubt: int | None = None,
    overwrite: bool = False,
    on_start: Callable[[str], Any] = print,
) -> list[str]:
    """Write one file that shows the same as the server does, without corrections.

    Args:
        paths: See `open_session`.
        output: The file.
        bands: See `open_session`.
        doubt: See `open_session`.
        overwrite: Replace a file that exists.
        on_start: Called with how large the page will be, before it is made.

    Returns:
        What was written, in lines for people.

    Raises:
        GeosegError: See `open_session` and `geoseg.view.saving.save`.
    """
    session = open_session(paths, bands=bands, doubt=doubt)
    size = save(session, output, overwrite=overwrite, on_start=on_start)
    return [f"{output}: {size / 1e6:.1f} MB, opens in any browser without a server"]

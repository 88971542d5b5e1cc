"""Look at results and correct them: a server for this machine, and a page in the browser."""

from importlib.util import find_spec

from geoseg.errors import ConfigError

_missing = [name for name in ("maplibre", "pmtiles", "rio_tiler", "starlette", "uvicorn") if find_spec(name) is None]
if _missing:
    raise ConfigError(
        f"the viewer needs packages that are not installed: {', '.join(_missing)}", hint='pip install "geoseg[view]"'
    )

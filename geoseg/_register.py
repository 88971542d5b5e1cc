"""Register our models in timm and SMP as soon as one of them is imported, and not before.

Importing torch, timm and SMP takes seconds; ``geoseg --help`` and vectorization need none of them. A finder at the
front of ``sys.meta_path`` sees SMP or timm being imported, lets the ordinary finders do it, and registers afterwards.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

HOSTS = frozenset({"timm", "segmentation_models_pytorch"})


class _RegisterAfterImport(MetaPathFinder):
    """Finds nothing itself: it wraps the loader of a host package so that our models follow it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The host's own spec with a loader that registers our models after it; None for all other modules."""
        if fullname not in HOSTS:
            return None
        sys.meta_path.remove(self)  # once is enough, and find_spec below must not come back here
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _FollowedLoader(spec.loader)
        return spec


class _FollowedLoader(Loader):
    """Loads a module as its own loader does, then imports our models."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the module's own loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, then register our models."""
        # From here on the module has its own loader again: resources and sources are asked of it.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        import geoseg.models  # noqa: F401


def register_models() -> None:
    """Register now where timm or SMP is imported already, else when it will be."""
    if HOSTS & sys.modules.keys():
        import geoseg.models  # noqa: F401
    elif not any(isinstance(finder, _RegisterAfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RegisterAfterImport())

"""Finding and importing the Python package of a runtime, with an answer when it is not there.

The targets know what to do with a package; this file only knows whether there is one.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from kdpipe.targets.base import Missing
from kdpipe.targets.errors import StageError


def absent(module: str, install: str) -> Missing | None:
    """Why `module` cannot be imported at all, or None; looks for it without importing it."""
    if importlib.util.find_spec(module) is None:
        return Missing(f"the Python package {module!r} is not installed", install)
    return None


def load(module: str, install: str) -> Any:
    """The imported `module`; raises StageError with the import's own words when it fails."""
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise StageError(
            f"the Python package {module!r} cannot be imported", found=str(error), fix=install
        ) from error


def broken(module: str) -> Missing | None:
    """Why importing an installed `module` fails, or None; imports it."""
    fix = f"pip install --force-reinstall {module}"
    try:
        load(module, fix)
    except StageError as error:
        return Missing(f"{error.what}: {error.found}", fix)
    return None

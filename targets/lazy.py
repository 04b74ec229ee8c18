"""numpy, imported when it is first used: without it, `kdpipe plan` answers a third sooner.

    if TYPE_CHECKING:
        import numpy as np
    else:
        from kdpipe.targets.lazy import np

Files that a config needs import it like this. Larger packages are imported inside functions, as
they take seconds; numpy is in nearly every function of such a file.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Lazy:
    """Stands for a module until one of its attributes is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(import_module(self._name), attribute)
        setattr(self, attribute, value)
        return value


np = Lazy("numpy")

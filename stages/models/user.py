"""A network made by the user's own function, `path/to/module.py:function`; `timm.py` is a library.

The file must stand for itself: what it imports must be installed (or on PYTHONPATH), and its own
folder is not searched. Its content is what the cache knows it by, and a neighbour that it imported
could change without any result being recomputed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from kdpipe.stages.models.family import Arguments, did_you_mean
from kdpipe.targets.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

_CLASSES = ("classes", "num_classes")
_CHANNELS = ("in_channels", "in_chans")


def build(file: Path, name: str, arguments: Arguments, in_channels: int, classes: int) -> nn.Module:
    """Call `name` of `file` with `arguments`; it must return an nn.Module.

    `classes` (or `num_classes`) and `in_channels` (or `in_chans`) are passed where the function
    has such a parameter and `arguments` do not give it. Raises UsageError for whatever goes wrong.
    """
    from torch import nn

    function = _function(_load(file), name, file)
    model = _call(function, _complete(function, name, arguments, in_channels, classes), name, file)
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"'{name}' does not return a torch.nn.Module",
            found=type(model).__name__,
            fix="return the network itself, e.g. `return Net(classes)`",
        )
    return model


def _load(file: Path) -> ModuleType:
    """Execute the file as a module of its own name, once for each content.

    The source is compiled here and not by importlib's loader, which would write __pycache__
    beside the user's file and would trust a stale one after an edit within the same second.
    """
    source = file.read_bytes()
    digest = hashlib.sha256(str(file).encode() + b"\0" + source).hexdigest()[:16]
    unique = f"kdpipe_user_{file.stem}_{digest}"
    if unique in sys.modules:
        return sys.modules[unique]
    spec = importlib.util.spec_from_file_location(unique, file)
    assert spec is not None, "a path that ends in .py always has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module  # dataclasses and pickle look their module up while it runs
    try:
        exec(compile(source, file, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:  # scripts may call sys.exit()
        del sys.modules[unique]
        raise _import_error(file, error) from error
    return module


def _import_error(file: Path, error: BaseException) -> UsageError:
    fix = "run it with `python` and mend what it says"
    if isinstance(error, ImportError) and error.name:
        fix = f"install '{error.name}' (pip install -e for your own), or set PYTHONPATH"
    return UsageError(
        "the model's Python file cannot be imported",
        found=f"{file}: {type(error).__name__}: {error}",
        fix=fix,
    )


def _function(module: ModuleType, name: str, file: Path) -> Callable[..., Any]:
    function: Any = getattr(module, name, None)
    if callable(function):
        return cast(Callable[..., Any], function)
    own = [
        key
        for key, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__ and callable(value)
    ]
    raise UsageError(
        f"there is no function '{name}' in {file}{did_you_mean(name, own)}",
        found=", ".join(own) or "no function or class",
        fix=f"model: {file.name}:{own[0] if own else 'FUNCTION'}",
    )


def _complete(
    function: Callable[..., Any], name: str, given: Arguments, in_channels: int, classes: int
) -> dict[str, Any]:
    """`given`, plus the number of classes and channels where the function asks for them."""
    parameters = inspect.signature(function).parameters.values()
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    unknown = [key for key in given if key not in named]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise UsageError(
            f"'{name}' has no argument '{unknown[0]}'{did_you_mean(unknown[0], tuple(named))}",
            found=f"{name}{inspect.signature(function)}",
            fix=f"remove `{unknown[0]}` from arguments",
        )
    complete = dict(given)
    for synonyms, value in ((_CLASSES, classes), (_CHANNELS, in_channels)):
        asked = [key for key in synonyms if key in named]
        if asked and not any(key in given for key in synonyms):
            complete[asked[0]] = value
    return complete


def _call(function: Callable[..., Any], arguments: dict[str, Any], name: str, file: Path) -> Any:
    try:
        return function(**arguments)
    except Exception as error:  # the user's code may raise anything
        shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise UsageError(
            f"{name}({shown}) failed in {file}",
            found=f"{type(error).__name__}: {error}",
            fix="correct the function, or `arguments` in the config",
        ) from error

"""torch.export as kdpipe uses it: any batch size, no noise, and one error that says what to do.

`capture.py` makes a graph to train from the program, `onnx_export.py` makes a file from it.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

import torch
from torch import Tensor, nn

from kdpipe.targets.errors import StageError


class Untraceable(StageError):
    """torch.export cannot make a graph of a module; other ways to quantize and export it exist."""


def trace(module: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """Trace `module` for any batch size. The program shares its parameters with `module`.

    `example`: (N >= 2, ...), on the module's device; torch.export takes a batch of one for a
    constant. Raises StageError for a smaller one, Untraceable when the module cannot be traced.
    """
    if example.ndim < 2 or example.shape[0] < 2:
        raise StageError(
            "tracing a model takes an example batch of at least two samples",
            found=f"shape {tuple(example.shape)}",
            fix="pass a batch such as torch.zeros(2, 3, 32, 32)",
        )
    batch = ({0: torch.export.Dim("batch")},)
    try:
        with silence():
            return torch.export.export(module, (example,), dynamic_shapes=batch)
    except Exception as error:
        # torch.export raises whatever the model's own code raises, and a dozen types of its own.
        reason = str(error).strip().partition("\n")[0]
        raise Untraceable(
            f"torch.export cannot trace {type(module).__name__}",
            found=f"{type(error).__name__}: {reason}",
            fix="in forward(), use torch operators only, without Python branches on tensor values "
            "and without a fixed batch size (x.flatten(1), not x.reshape(2, -1))",
        ) from error


@contextmanager
def silence() -> Iterator[None]:
    """Keep the exporter's warnings and log lines away from the user; what fails is raised."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    # Before it raises, torch.export prints the graph to stderr, whatever the log level.
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)

"""What `kdpipe bench` feeds a model with: the user's samples, or noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kdpipe.targets import Target
from kdpipe.targets.errors import DataError, UsageError


def require_fitting(target: Target, artifact: Path, file: Path, most: int) -> None:
    """Raise DataError unless `file` is a .npy of samples (N, ...) that the artifact can take.

    `most`: samples of the largest call that is asked for, where the artifact's batch is free.
    """
    try:
        samples = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{file} is no .npy file of plain numbers", found=str(error)) from None
    if not isinstance(samples, np.ndarray):
        raise DataError(f"{file} is an archive", fix="give one array, as np.save writes it")
    with target.open(artifact) as session:
        spec, batch = session.inputs[0], session.batch or most
    sides = zip(spec.shape[1:], samples.shape[1:], strict=False)
    fits = samples.ndim == len(spec.shape) and all(asked in (None, own) for asked, own in sides)
    if not fits or samples.dtype != spec.dtype:
        shape = ", ".join(["N", *("any" if n is None else str(n) for n in spec.shape[1:])])
        raise DataError(
            f"{file} does not fit the input '{spec.name}' of {artifact.name}",
            found=f"{samples.dtype} {samples.shape}",
            fix=f"give {spec.dtype} ({shape})",
        )
    if len(samples) < batch:
        raise DataError(f"{file} has {len(samples)} samples, and a call takes {batch}")
    if samples.dtype.kind == "f" and not np.isfinite(samples).all():
        raise DataError(f"{file} has values that are not finite")


def noise(target: Target, artifact: Path, folder: Path, samples: int) -> Path:
    """Standard normal samples (samples, ...) in the shape of the artifact's input, as a file.

    Raises UsageError where that has a free size other than the batch.
    """
    with target.open(artifact) as session:
        spec = session.inputs[0]
    sizes = [length for length in spec.shape[1:] if length is not None]
    if len(sizes) + 1 != len(spec.shape):
        raise UsageError(
            f"{artifact.name} has an input of free size {spec.shape}",
            fix="give real samples with --inputs samples.npy",
        )
    noise = np.random.default_rng(0).standard_normal((samples, *sizes))
    path = folder.with_name(f"{folder.name}.noise.npy")
    np.save(path, noise.astype(spec.dtype))
    return path

"""Do the splits look as if they were read the same way? Levels, colours, sizes, empty pictures.

The settings guarantee one preprocessing; the user's files may still differ: red and blue swapped
by another library, negatives, one split saved in another range or enlarged from thumbnails.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdpipe.stages.base import Observer
from kdpipe.stages.draft import Draft
from kdpipe.stages.hygiene.sketch import Sketch
from kdpipe.stages.pixels import Form
from kdpipe.targets.errors import listing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np

EFFECT = 0.5
"""Cohen's d, of channel means, that is told: a medium effect (Cohen 1988), beyond its error."""
LEVELS = 5
"""Levels of 255 by which channel means must differ too: below, no network minds."""
FEWEST = 20
"""Images of each split without which a difference is chance."""
ENLARGED = 4
"""Times that pictures may be enlarged before it is told: nothing but blur is added."""
_SURVEYED = 1000


def levels(train: Sketch, others: Mapping[str, Sketch], observer: Observer) -> dict[str, Any]:
    """Cohen's d of each channel's mean level, of each split against train.

    The unit is the image: d is the difference of the means of image means, over their pooled
    standard deviation. Told when |d| exceeds EFFECT by two standard errors (Hedges & Olkin
    1985), and the means differ by LEVELS. None where a split has fewer than FEWEST images.
    """
    found: dict[str, Any] = {}
    for name, other in others.items():
        effects = _effects(train.means, other.means)
        found[name] = None if effects is None else [round(float(d), 3) for d in effects]
        if effects is None:
            continue
        sure = np.abs(effects) - 2 * _error(effects, len(train), len(other)) > EFFECT
        apart = np.abs(train.means.mean(0) - other.means.mean(0)) > LEVELS
        if (sure & apart).any():
            observer.warn(_told(name, effects, train, other))
    return found


def pictures(sketches: Mapping[str, Sketch], observer: Observer) -> dict[str, Any]:
    """Images of one level, and RGB images that are grey: their numbers by split."""
    constant = {name: int(sketch.constant.sum()) for name, sketch in sketches.items()}
    if any(constant.values()):
        told = [f"{n} of {len(sketches[name])} in {name}" for name, n in constant.items() if n]
        observer.warn(f"images with one value in every pixel: {listing(told)}")
    grey = {name: int(sketch.grey.sum()) for name, sketch in sketches.items()}
    shares = {name: n / max(len(sketches[name]), 1) for name, n in grey.items()}
    if max(shares.values()) - min(shares.values()) > 0.1:
        told = [f"{100 * share:.3g} % in {name}" for name, share in shares.items()]
        observer.warn(f"RGB images without colour are not spread evenly: {listing(told)}")
    return {"constant": constant, "grey_in_rgb": grey}


def sizes(drafts: tuple[Draft, Draft], form: Form, observer: Observer) -> dict[str, Any]:
    """How many times pictures are enlarged, at most, per split; of 1,000 evenly spaced ones."""
    found: dict[str, Any] = {}
    for draft in drafts:
        rows = draft.rows[:: -(-len(draft) // _SURVEYED)]
        seen = draft.part.frames.survey(rows).sizes
        times = [max(form.height / h, form.width / w) for h, w in seen]
        found[draft.name] = round(max(times), 3) if times else None
    large = {name: times for name, times in found.items() if times and times > ENLARGED}
    if large:
        told = [f"{times:.3g} times in {name}" for name, times in large.items()]
        observer.warn(
            f"images are enlarged to {form.height}x{form.width} by {listing(told)}:"
            " nothing but blur is added; lower data.image_size"
        )
    known = [times for times in found.values() if times]
    if len(known) == 2 and max(known) >= 2 * min(known) and max(known) > 1:
        told = [f"{times:.3g} times in {name}" for name, times in found.items()]
        observer.warn(f"the splits are enlarged differently: {listing(told)}; one is blurred more")
    return found


def _effects(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64] | None:
    """(C,) Cohen's d of image means (N, C) and (M, C)."""
    if min(len(a), len(b)) < FEWEST:
        return None
    n, m = len(a), len(b)
    pooled = ((n - 1) * a.var(0, ddof=1) + (m - 1) * b.var(0, ddof=1)) / (n + m - 2)
    effects: NDArray[np.float64] = (b.mean(0) - a.mean(0)) / np.sqrt(np.maximum(pooled, 1e-6))
    return effects


def _error(effects: NDArray[np.float64], n: int, m: int) -> NDArray[np.float64]:
    """(C,) standard error of Cohen's d."""
    error: NDArray[np.float64] = np.sqrt((n + m) / (n * m) + effects**2 / (2 * (n + m)))
    return error


def _told(name: str, effects: NDArray[np.float64], train: Sketch, other: Sketch) -> str:
    mine, theirs = train.means.mean(0), other.means.mean(0)
    seen = ", ".join(f"{a:.0f} and {b:.0f}" for a, b in zip(mine, theirs, strict=True))
    worst = float(np.abs(effects).max())
    guesses = {
        "as if red and blue were swapped": theirs[::-1],
        "as if it were a negative": 255 - theirs,
    }
    gaps = {guess: float(np.abs(mine - m).max()) for guess, m in guesses.items()}
    nearest = min(gaps, key=gaps.__getitem__)
    # a guess is made only where it explains nearly all of the difference
    explains = gaps[nearest] < float(np.abs(mine - theirs).max()) / 4
    return (
        f"train and {name} differ in brightness or colour: mean levels {seen} of 255 (Cohen's d"
        f" {worst:.2g}, n = {len(train)} and {len(other)})" + (f", {nearest}" if explains else "")
    )

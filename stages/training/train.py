"""Training a graph on a dataset: everything between a stage's settings and `fit`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdpipe.stages.base import Observer
from kdpipe.stages.dataset import Dataset, Split
from kdpipe.stages.distill.graph import Edge, Node
from kdpipe.stages.distill.scheme import Scheme
from kdpipe.stages.evaluate import evaluate, network_forward
from kdpipe.stages.recipe import Recipe
from kdpipe.stages.split import Purpose, stratified
from kdpipe.stages.training.batches import Loader, Source
from kdpipe.stages.training.device import Device
from kdpipe.stages.training.fit import Judge, fit


def train(
    nodes: Mapping[str, Node],
    edges: Sequence[Edge],
    recipe: Recipe,
    data: Dataset,
    checkpoint: Path,
    observer: Observer,
    source: Source | None = None,
) -> dict[str, Any]:
    """Train a graph on `data` by `recipe`, wherever it is fastest; its networks end on the CPU.

    The first node is the one that early stopping judges. `source` replaces the train split where
    batches come from elsewhere. Returns how it went: `losses` of the epochs, `device`, `bf16`.
    Raises what `fit` does.
    """
    device = Device.pick(recipe.amp)
    learn, judged = _parts(data, recipe)
    if source is None:
        if recipe.batch_size > len(learn):
            observer.warn(f"batch_size {recipe.batch_size} is cut to the {len(learn)} samples")
        source = _loader(learn, nodes, edges, recipe, data, device)
    size = {"samples": source.samples, "epochs": recipe.epochs, "steps": len(source)}
    scheme = Scheme(nodes, edges, source.sample(), **size)
    source.attach(scheme)
    judge = _Judge(scheme, next(iter(nodes)), judged, data) if judged else None
    if scheme.prepares:
        _prepare(scheme, source, recipe, checkpoint, observer)
    losses = fit(scheme, source, recipe, checkpoint, observer, judge)
    scheme.cpu()
    scheme.close()
    source.close()
    return {"losses": losses, "device": device.kind, "bf16": device.bf16}


def _loader(
    split: Split,
    nodes: Mapping[str, Node],
    edges: Sequence[Edge],
    recipe: Recipe,
    data: Dataset,
    device: Device,
) -> Loader:
    views = {name: view for edge in edges for name, view in edge.method.views.items()}
    return Loader(
        split,
        recipe.batch_size,
        recipe.seed,
        device,
        augment=data.augment,
        views=views,
        mixing=recipe.mixing,
        reads={node.reads for node in nodes.values()} - {"input"},
    )


def _parts(data: Dataset, recipe: Recipe) -> tuple[Split, Split | None]:
    """What to learn from, and what early stopping judges on."""
    if recipe.early_stopping is None:
        return data.train, None
    strata = data.train.strata
    count = max(1, round(recipe.early_stopping.holdout * len(strata)))
    held = stratified(strata, count, recipe.seed, Purpose.STOPPING, keep=1)
    rest = np.setdiff1d(np.arange(len(strata)), held)
    return data.train.pick("train", rest), data.train.pick("held out", held)


@dataclass(frozen=True)
class _Judge(Judge):
    """The score of one node of a scheme on a split."""

    scheme: Scheme
    node: str
    split: Split
    data: Dataset

    def __call__(self) -> float:
        """The mean score, 0 to 1, in fp32."""
        network = self.scheme.nodes[self.node].module
        return evaluate(network_forward(network), self.split, self.data.task).mean


def _prepare(
    scheme: Scheme, source: Source, recipe: Recipe, checkpoint: Path, observer: Observer
) -> None:
    """What methods learn before the student does: by the same recipe, without its extras."""
    plain: dict[str, Any] = {"early_stopping": None, "ema": None, "epochs": scheme.prepares}
    plain["warmup_epochs"] = min(recipe.warmup_epochs, scheme.prepares)
    with scheme.preparing():
        path = checkpoint.with_suffix(".prepared.pt")
        fit(scheme, source, recipe.model_copy(update=plain), path, observer)

"""All that quality says of one class per pixel, put together for `quality.json`."""

from __future__ import annotations

from typing import Any

from kdpipe.stages.quality.boundary import SHARE, distance
from kdpipe.stages.quality.compared import Compared
from kdpipe.stages.quality.maps import (
    Overlaps,
    class_values,
    image_means,
    mean_values,
    overlaps,
)
from kdpipe.stages.quality.paired import Paired
from kdpipe.stages.quality.worst import part, worst


def segmentation(compared: Compared, ignored: int | None) -> dict[str, Any]:
    """For JSON; `docs/quality.md` has its keys. Images are the replicates, or their groups."""
    count = len(compared.classes)
    predictions = compared.own.prediction, compared.teacher.prediction
    own, teacher = overlaps(predictions, compared.labels, count, ignored)
    confidence, groups = compared.confidence, compared.groups
    means = Paired(
        mean_values(own.both, own.either), mean_values(teacher.both, teacher.either), groups
    )
    edges = Paired(
        image_means(own.edge_both, own.edge_either),
        image_means(teacher.edge_both, teacher.edge_either),
        groups,
    )
    _, height, width = compared.labels.shape
    return {
        "dataset_miou": means.to_dict(confidence, "images"),
        "boundary_iou": edges.to_dict(confidence, "images")
        | {"distance_px": distance(height, width), "distance_of_diagonal": SHARE},
        "classes": [_class(compared, own, teacher, number) for number in range(count)],
        "worst_class": _worst(compared, own, teacher),
    }


def _class(compared: Compared, own: Overlaps, teacher: Overlaps, number: int) -> dict[str, Any]:
    """IoU and Boundary IoU of a class, over all pixels of the split; null where it never occurs."""
    groups = compared.groups
    iou = class_values(*_areas(own, teacher), number, groups)
    edges = (own.edge_both, own.edge_either), (teacher.edge_both, teacher.edge_either)
    edge = class_values(*edges, number, groups)
    return {
        "name": compared.classes[number],
        "iou": iou and iou.to_dict(compared.confidence, "images"),
        "boundary_iou": edge and edge.to_dict(compared.confidence, "images"),
    }


def _worst(compared: Compared, own: Overlaps, teacher: Overlaps) -> dict[str, Any]:
    """The class that loses most IoU; those that never occur are left out."""
    values = {
        name: class_values(*_areas(own, teacher), number, compared.groups)
        for number, name in enumerate(compared.classes)
    }
    there = {name: each for name, each in values.items() if each is not None}
    parts = [
        part(name, each.teacher, each.own, compared.confidence, len(there), each.groups)
        for name, each in there.items()
    ]
    absent = tuple(name for name in values if name not in there)
    counted = "images" if compared.groups is None else "groups"
    return worst(parts, absent).to_dict(counted)


def _areas(own: Overlaps, teacher: Overlaps) -> tuple[Any, Any]:
    return (own.both, own.either), (teacher.both, teacher.either)

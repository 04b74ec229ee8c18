"""What a mix of methods needs of nodes and batches, checked before any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdpipe.stages.distill.graph import Node
from kdpipe.stages.distill.method import Batch, Method
from kdpipe.stages.distill.resolve import Term
from kdpipe.stages.distill.taps import LOGITS
from kdpipe.targets.errors import UsageError

_KEYS = {"labels": "target", "index": "index"}
"""What a method may need of the batch -> the batch's key."""
_OF_SINGLE_SAMPLES = ("labels", "index", "views")


def require_batch(terms: Sequence[Term], nodes: Mapping[str, Node], sample: Batch) -> None:
    """Raise UsageError when batches do not have, or have blended, what is read from them."""
    for name, node in nodes.items():
        if node.reads not in sample:
            raise UsageError(
                f"'{name}' reads '{node.reads}', and the batches have none",
                found=_held(sample),
                fix="reads: input",
            )
        if "mix" in sample and node.reads != "input":
            raise UsageError(
                f"'{name}' reads '{node.reads}', but mixing blends the input alone",
                found="`mixing` in the recipe",
                fix="remove `mixing`, or let every network read the input",
            )
    for term in terms:
        _require(term.method, sample)


def require_outputs(term: Term, shapes: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise UsageError when the networks' logits do not fit the method, or each other."""
    own = shapes[term.to][LOGITS]
    _require_rank(term, own)
    classes = own[1] if term.classes is None else len(term.classes)
    for name, taps in zip(term.of, term.teachers, strict=True):
        theirs = shapes[name][LOGITS]
        if LOGITS not in term.student or LOGITS not in taps:
            continue
        if theirs[1] != classes:
            raise UsageError(
                f"method '{term.method.kind}' compares logits of as many classes",
                found=f"'{term.to}' has {classes}, '{name}' has {theirs[1]}",
                fix="say which classes a specialist knows by `classes`, or compare features",
            )
        if theirs[2:] != own[2:] and not term.method.resizes:
            raise UsageError(
                f"method '{term.method.kind}' compares logits at the same positions",
                found=f"'{term.to}' gives {own}, '{name}' gives {theirs}",
                fix="use a method that brings both to one size, such as `pixel_kd`",
            )


def _require_rank(term: Term, own: tuple[int, ...]) -> None:
    """Vectors or maps of logits: what the method is for, and a specialist can say."""
    if "dense" in term.method.needs and len(own) < 4:
        raise UsageError(
            f"method '{term.method.kind}' compares maps of logits, (B, C, H, W)",
            found=f"logits of shape {own}",
            fix="use it for segmentation; see `kdpipe methods` for others",
        )
    if "vectors" in term.method.needs and len(own) > 2:
        raise UsageError(
            f"method '{term.method.kind}' needs one vector of logits per image, (B, C)",
            found=f"logits of shape {own}",
            fix="use `pixel_kd`, or another method that takes an output for every pixel",
        )
    if term.classes is not None and len(own) > 2:
        raise UsageError(
            f"'{term.of[0]}' knows some classes only, which has no meaning for maps of logits",
            found=f"logits of shape {own}, `classes` of a teacher",
            fix="use a teacher of all classes",
        )


def _require(method: Method, sample: Batch) -> None:
    missing: list[str] = [
        need for need in method.needs if need in _KEYS and _KEYS[need] not in sample
    ]
    missing += [name for name in method.views if name not in sample]
    if missing:
        raise UsageError(
            f"method '{method.kind}' needs {missing[0]}, and the batches have none",
            found=_held(sample),
            fix="use a method without this need, see `kdpipe methods`",
        )
    unblended = [need for need in method.needs if need in _OF_SINGLE_SAMPLES]
    if "mix" in sample and unblended and not method.blends:
        raise UsageError(
            f"method '{method.kind}' needs {unblended[0]} of single samples, and mixing joins two",
            found="`mixing` in the recipe",
            fix="remove `mixing`, or use methods that need none of labels, index and views",
        )


def _held(sample: Batch) -> str:
    return f"a batch holds {', '.join(sample)}"

"""What a quantized network learns from, as nodes and edges: labels, and under qad methods.

A quantized student is a node like any other: `distill/` trains it, and knows nothing of int8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from kdpipe.stages.dataset import Dataset
from kdpipe.stages.distill.graph import Edge, Node
from kdpipe.stages.distill.schemes.base import STUDENT
from kdpipe.stages.distill.teachers import chain_teacher
from kdpipe.stages.network import Network
from kdpipe.stages.quantize.engine import QuantizedModel
from kdpipe.stages.supervision import supervised

if TYPE_CHECKING:
    from kdpipe.stages.quantize.stage import Quantize

_TEACHER = "teacher"


def lesson(
    settings: Quantize, model: QuantizedModel, source: Network, teacher: Network, data: Dataset
) -> tuple[dict[str, Node], list[Edge]]:
    """Nodes, the student first, and edges for `train`.

    `source` is the network in fp32 that `model` was made from: its roles are the model's, and it
    is the teacher under `teacher: twin`. `teacher` is that of the chain.
    """
    student = Node(model, told=_freezing(model, settings))
    if settings.mode == "qat":
        return {STUDENT: student}, [Edge(STUDENT, supervised(settings, data))]
    twin = chain_teacher(source).node
    nodes = {STUDENT: replace(student, taps=twin.taps)}
    if any(method.taught for method in settings.methods):
        nodes[_TEACHER] = twin if settings.teacher == "twin" else chain_teacher(teacher).node
    labels = supervised(settings, data, settings.supervised, settings.supervised_from)
    edges = [Edge(STUDENT, labels)] if settings.supervised else []
    for method in settings.methods:
        of = (_TEACHER,) if method.taught else ()
        edges.append(Edge(STUDENT, method.under(data.task), of=of))
    return nodes, edges


def _freezing(model: QuantizedModel, settings: Quantize) -> Callable[[float], None] | None:
    """Tells the model whether its ranges still follow the batches; a function of the epoch alone,
    so that a resumed training goes on alike."""
    if settings.freeze is None:
        return None
    until = settings.freeze * settings.epochs
    return lambda epoch: model.track(epoch < until)

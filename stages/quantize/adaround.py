"""AdaRound: learn for each weight whether it is rounded up or down.

Nagel et al. 2020, arXiv:2004.10568. Nearest rounding makes each weight's error small; what counts
is the error of the layer's output, in which errors of several weights can cancel.

It helps most of all tools without training when weights have 4 bits, and takes longest: seconds a
layer. At 8 bits hardly anything is lost by rounding weights, and accuracy does not change. It does
not help against activations that do not fit their range. Accuracy on 450 digits (standard error
about 1) and, in brackets, mean squared error of the logits over their variance, with 512
calibration samples (mobilenet 256):

    weights, activations   float   8, 8 bits       AdaRound        4, 8 bits       AdaRound
    resnet8                 98.9   98.7 (0.0011)   98.7 (0.0005)   97.1 (0.083)    98.2 (0.006)
    dscnn                   97.3   97.6 (0.0017)   97.6 (0.0013)   91.6 (0.170)    96.4 (0.021)
    mobilenet               95.3   95.3 (0.0060)   95.6 (0.0053)   91.8 (0.124)    95.8 (0.029)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import ceil, cos, inf, pi

import torch
from torch import Tensor, fx

from kdpipe.stages.quantize.aten import argument, attribute, clip_bounds
from kdpipe.stages.quantize.engine import QuantizedModel
from kdpipe.stages.quantize.fake import WeightQuantizer
from kdpipe.stages.quantize.layerwise import Layer, held, pair, rounding, upto

_LOW, _HIGH = -0.1, 1.1
"""The sigmoid is stretched to this interval, so that it reaches 0 and 1 (gamma and zeta)."""


@dataclass(frozen=True)
class Settings:
    """How roundings are learned: Adam on random batches of a layer's inputs and outputs.

    iterations: per layer; the paper has 10000.
    learning_rate: of Adam; the paper's is 0.001. 500 iterations at 0.03 took the error of a 4-bit
        digits network from 0.0151 to 0.0059, the paper's 10000 to 0.0042.
    batch_size: the paper's.
    regularization: lambda, the weight of the term that drives each rounding to 0 or 1. The paper
        adds 0.01 of a sum to a squared error in the layer's units; here the error is in units of
        nearest rounding's, and the term is a mean, so that one number suits layers of any scale.
    warmup: share of the iterations without that term.
    beta: its exponent, from first to last; large ones leave all but the ends free. This and
        `warmup` are those of the authors' own code, AIMET.
    memory: bytes of inputs and outputs of one layer kept at a time; more are thinned out evenly,
        to one of each batch at least.
    seed: of the random batches.
    """

    iterations: int = 500
    batch_size: int = 32
    learning_rate: float = 3e-2
    regularization: float = 3.0
    warmup: float = 0.2
    beta: tuple[float, float] = (20.0, 2.0)
    memory: int = 1 << 28
    seed: int = 0


@dataclass(frozen=True)
class Learned:
    """Mean squared error of a layer's output, by nearest rounding and by what is kept."""

    layer: str
    nearest: float
    learned: float


def adaround(
    model: QuantizedModel,
    float_graph: fx.GraphModule,
    batches: Iterable[Tensor],
    settings: Settings | None = None,
) -> tuple[Learned, ...]:
    """Choose the rounding of all weights, layer after layer, and put the weights on their grids.

    Each layer learns to give the float network's output from the quantized network's input
    (the paper's asymmetric reconstruction), a ReLU or clip that alone reads it included. A layer
    that learns nothing better than nearest rounding keeps that. Scales stay as they are, bit for
    bit. A weight that several layers share is learned in the first.

    `float_graph`: the graph that `model` was inserted from. `batches`: (N, ...) each, kept in
    memory and run once for each layer. The same seed gives the same weights on the same machine.
    Raises StageError when `model` is not calibrated or there is no batch, UsageError when the
    graphs do not fit.
    """
    settings = settings or Settings()
    batches = held(batches)
    outcomes, seen = [], set[int]()
    with rounding(model):
        for layer in pair(model, float_graph):
            quantizer = _quantizer(model.body, layer.node)
            weight = attribute(model.body, layer.weight)
            if quantizer is None or id(weight) in seen:
                continue
            seen.add(id(weight))
            problem = _Reconstruction(layer, model, float_graph, batches, settings.memory)
            roundings = _Roundings(weight, quantizer)
            _learn(problem, roundings, settings)
            outcomes.append(_keep_better(problem, roundings, weight))
    return tuple(outcomes)


def _quantizer(body: fx.GraphModule, node: fx.Node) -> WeightQuantizer | None:
    """What rounds the layer's weight; None where it stays in float."""
    source = argument(node, 1)
    module = body.get_submodule(source.target) if source.op == "call_module" else None
    return module if isinstance(module, WeightQuantizer) else None


class _Reconstruction:
    """One layer, what reaches it in the quantized network, and what the float one makes of it."""

    def __init__(
        self,
        layer: Layer,
        model: QuantizedModel,
        float_graph: fx.GraphModule,
        batches: tuple[Tensor, ...],
        memory: int,
    ) -> None:
        self.layer = layer
        bias = argument(layer.node, 2)
        self.bias = None if bias is None else attribute(model.body, bias.target).detach()
        self.clip = _clip(layer.node)
        reach, target = upto(model.body, layer.source), upto(float_graph, layer.original)
        inputs, targets = [], []
        samples, step = sum(len(batch) for batch in batches), 0
        with torch.no_grad():
            for batch in batches:
                x, y = reach(batch), target(batch)
                size = (x.nbytes + y.nbytes) * samples / len(batch)
                step = step or ceil(size / memory)
                # Copies: a view would keep the whole batch.
                inputs.append(x[::step].clone())
                targets.append(self.activation(y[::step].clone()))
        self.inputs, self.targets = torch.cat(inputs), torch.cat(targets)

    def activation(self, x: Tensor) -> Tensor:
        """The ReLU or clip behind the layer, if there is one."""
        return x.clamp(*self.clip) if self.clip else x

    def squared_error(self, weight: Tensor, rows: Tensor | slice) -> Tensor:
        """Of the layer's output with this weight, for some of the samples, elementwise."""
        node = self.layer.node
        output = node.target(  # type: ignore[operator]
            self.inputs[rows], weight, self.bias, *node.args[3:], **node.kwargs
        )
        return (self.activation(output) - self.targets[rows]).square()

    @torch.no_grad()
    def error(self, weight: Tensor, chunk: int = 64) -> float:
        """Mean squared error of the layer's output over all samples."""
        starts = range(0, len(self.inputs), chunk)
        total = sum(
            self.squared_error(weight, slice(i, i + chunk)).sum(dtype=torch.float64).item()
            for i in starts
        )
        return total / self.targets.numel()


def _clip(node: fx.Node) -> tuple[float, float] | None:
    """Bounds of the ReLU or clip that alone reads the layer."""
    users = list(node.users)
    return clip_bounds(users[0]) if len(users) == 1 else None


class _Roundings:
    """The choice between the two grid points next to each weight of a layer."""

    def __init__(self, weight: Tensor, quantizer: WeightQuantizer) -> None:
        self._weight = weight.detach()
        self._scale = quantizer.scale(weight).detach()
        self._end = quantizer.grid.high
        others = [i for i in range(weight.ndim) if i != quantizer.axis]
        peak = self._weight.abs().amax(others, keepdim=True)
        # end * (peak / end) can be one bit more than the peak, which would be another scale.
        self._limit = torch.where(peak > self._scale * (self._end - 0.5), peak, inf)
        steps = self._weight.float() / self._scale
        # A channel's largest magnitude defines the scale: it has no choice, and none outgrows it.
        self._fixed = steps.abs() >= self._end - 1e-3
        self._below = steps.floor()
        share = (steps - self._below - _LOW) / (_HIGH - _LOW)
        self.logits = torch.logit(share).requires_grad_()

    def up(self) -> Tensor:
        """How far each weight is rounded up, 0..1: the paper's rectified sigmoid."""
        return (torch.sigmoid(self.logits) * (_HIGH - _LOW) + _LOW).clamp(0, 1)

    def weight(self, up: Tensor) -> Tensor:
        """The weight between its two grid points."""
        steps = (self._below + up).clamp(-self._end, self._end)
        moved = (steps * self._scale).clamp(-self._limit, self._limit)
        return torch.where(self._fixed, self._weight, moved.to(self._weight.dtype))

    def nearest(self) -> Tensor:
        """The weight by nearest rounding."""
        return self.weight((self._weight / self._scale).round() - self._below)

    def learned(self) -> Tensor:
        """The weight by the roundings as they are now, each to its nearer end."""
        return self.weight((self.up().detach() >= 0.5).float())


def _learn(problem: _Reconstruction, roundings: _Roundings, settings: Settings) -> None:
    """Minimize the error of the layer's output while every rounding is driven to 0 or 1."""
    unit = problem.error(roundings.nearest())
    if unit == 0:
        return
    optimizer = torch.optim.Adam([roundings.logits], lr=settings.learning_rate)
    generator = torch.Generator().manual_seed(settings.seed)
    count = len(problem.inputs)
    for beta in _betas(settings):
        rows = torch.randint(count, (settings.batch_size,), generator=generator)
        with torch.enable_grad():
            up = roundings.up()
            loss = problem.squared_error(roundings.weight(up), rows).mean() / unit
            if beta:
                undecided = 1 - (2 * up - 1).abs().pow(beta)
                loss = loss + settings.regularization * undecided.mean()
            (roundings.logits.grad,) = torch.autograd.grad(loss, [roundings.logits])
        optimizer.step()


def _betas(settings: Settings) -> Iterator[float]:
    """The exponent of the regularizer in each iteration; 0 while there is none."""
    first, last = settings.beta
    free = round(settings.iterations * settings.warmup)
    annealed = settings.iterations - free
    yield from [0.0] * free
    for i in range(annealed):
        yield last + (first - last) * (1 + cos(pi * i / annealed)) / 2


def _keep_better(problem: _Reconstruction, roundings: _Roundings, weight: Tensor) -> Learned:
    """Write the learned weight, or the nearest one where that errs less."""
    nearest, learned = roundings.nearest(), roundings.learned()
    errors = problem.error(nearest), problem.error(learned)
    with torch.no_grad():
        weight.copy_(learned if errors[1] < errors[0] else nearest)
    return Learned(problem.layer.name, errors[0], min(errors))

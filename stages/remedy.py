"""Why an int8 artifact does not pay, and what to type next: an audit put into a sentence.

`targets/` reads what a runtime runs; here it is told what of it the chain can change.
"""

from __future__ import annotations

from kdpipe.stages.models.substitute import ADVICE
from kdpipe.targets import TARGETS, name_of
from kdpipe.targets.audit import Audit, Layer
from kdpipe.targets.base import Target
from kdpipe.targets.errors import listing


def culprits(audit: Audit) -> str:
    """What costs speed, the layers with the largest shares of MACs first.

    Example: "in float: stem.0 (61.2 % of the MACs, before silu), 3 conversions of layout or type"
    """
    shares = sorted(_floating(audit), key=lambda pair: -pair[1])
    layers = listing([_described(layer, share) for layer, share in shares], 3)
    said = [f"in float: {layers}" if shares else "no layer runs in float"]
    if audit.unfused:
        said.append(f"{_count(len(audit.unfused), 'rounding')} left that no int8 kernel took")
    if moves := sum(audit.conversions.values()):
        said.append(f"{_count(moves, 'conversion')} of layout or type")
    return ", ".join(said)


def remedy(target: Target, audit: Audit) -> str:
    """What to type next, by what keeps the most MACs in float.

    Example: "openvino does not fuse silu: use `student.substitute: {silu: relu}` and distil again"
    """
    floating = _floating(audit)
    if not floating:
        return f"int8 does not pay here: set `precision: fp32` for {target.name}"
    shares = dict.fromkeys((layer.activation for layer, _ in floating), 0.0)
    for layer, share in floating:
        shares[layer.activation] += share
    activation = max(shares, key=shares.__getitem__)
    if activation in ADVICE:
        return _other_activation(target, activation)
    kinds = listing(sorted({layer.kind for layer, _ in floating}), 3)
    others = [name for kind in TARGETS if (name := name_of(kind)) != target.name]
    return (
        f"{target.name} has no int8 kernel for them as they stand ({kinds}): try another target "
        f"({listing(others)}), or set `precision: fp32` for this one"
    )


def _other_activation(target: Target, activation: str) -> str:
    """Three ways out for an activation that is not fused, as far as each is one here."""
    ways = [f"`student.substitute: {{{activation}: {ADVICE[activation]}}}` and distil again"]
    if target.rounds_before_activations:
        ways.append("`quantize.before_activations: true`")
    fusing = [name_of(kind) for kind in TARGETS if kind.fuses_activations]
    if fusing and target.name not in fusing:
        ways.append(f"the target {' or '.join(fusing)}")
    return f"{target.name} does not fuse {activation}: use {', or '.join(ways)}"


def _floating(audit: Audit) -> list[tuple[Layer, float]]:
    return [(layer, share) for layer, share in audit.shares() if layer.precision != "int8"]


def _described(layer: Layer, share: float) -> str:
    before = f", before {layer.activation}" if layer.activation else ""
    return f"{layer.name} ({100 * share:.1f} % of the MACs{before})"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"

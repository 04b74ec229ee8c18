"""When a layer is at fault: bounds, falls against what feeds it, and the words that say so."""

from __future__ import annotations

import numpy as np
import pytest

from kdpipe.stages.layer_snr import LEAST, Comparison, LayerSnr, decibels


@pytest.mark.parametrize(
    ("signal", "error", "expected"),
    [(100.0, 1.0, 20.0), (1.0, 100.0, -20.0), (1.0, 0.0, None), (0.0, 0.0, None)],
)
def test_decibels(signal: float, error: float, expected: float | None) -> None:
    """A hundredth of the power is 20 dB; no error has none."""
    assert decibels(signal, error) == pytest.approx(expected)


@pytest.mark.parametrize(("signal", "error"), [(0.0, 1.0), (1.0, np.inf), (1e-300, 1e300)])
def test_decibels_have_a_floor(signal: float, error: float) -> None:
    """Neither silence nor infinite noise leaves the numbers that JSON knows."""
    assert decibels(signal, error) == LEAST


def row(layer: str, snr_db: float | None, *feeds: str) -> LayerSnr:
    return LayerSnr(layer, snr_db, snr_db, snr_db, 1.0, 64, feeds)


def of(*rows: LayerSnr, trained: bool = False, output: float = 40.0) -> Comparison:
    return Comparison(rows, row("output", output), {}, trained)


def test_below_the_bound_is_at_fault() -> None:
    """The first in graph order, though a later one is worse."""
    found = of(row("a", 42.0), row("b", 9.0, "a"), row("c", -3.0, "b"))

    assert found.first is not None
    assert found.first.layer == "b"
    assert found.where() == (
        "first at layer b (signal to noise 9.0 dB, 9.0 to 9.0 dB in 8 of 10 of 64 samples,"
        " after 42.0 dB in a)"
    )


def test_a_fall_is_at_fault_only_against_what_feeds_it() -> None:
    """The worst of what feeds a layer counts: no layer is blamed for what came in."""
    assert of(row("a", 42.0), row("b", 28.0, "a"), row("c", 14.0, "b")).first == row("c", 14.0, "b")
    assert of(row("a", 42.0), row("b", 22.0, "a"), row("c", 14.0, "a", "b")).first is None


def test_the_input_is_exact() -> None:
    """What reads nothing but the input has fallen from there; what reads a layer that could not be
    compared may have got it as it is."""
    assert of(row("a", 18.0)).first == row("a", 18.0)
    assert of(row("b", 18.0, "a")).first is None
    assert of(row("b", 9.0, "a")).first is not None


def test_a_fall_from_exact_to_good_is_none() -> None:
    """Float in two runtimes: no error at first, then rounding of the last bit."""
    assert of(row("a", None), row("b", 120.0, "a"), row("c", 28.0, "b")).first is None


def test_a_network_trained_in_int8_has_other_weights() -> None:
    """What is at fault after calibration may be what training changed."""
    rows = row("a", 14.0, "before"), row("b", 6.0, "a")

    assert of(*rows).first == rows[1]
    assert of(*rows, trained=True).first is None
    assert of(*rows, row("c", -1.0, "b"), trained=True).first is not None


def test_a_fault_behind_the_last_layer() -> None:
    """Layers are sound and the output is not: not a layer is named, but the place."""
    found = of(row("a", 42.0), row("b", 40.0, "a"), output=1.0)

    assert found.first is None
    assert found.where().startswith("behind its last layer or by fusing layers (at the output ")


def test_without_rows_the_reason_is_told() -> None:
    """Nothing is claimed of layers that nobody compared."""
    assert of().where() == "its layers could not be compared: the files have none in common"
    refused = Comparison((), None, {}, trouble="the runtime refuses it\n  found: this")
    assert refused.where() == "its layers could not be compared: the runtime refuses it"

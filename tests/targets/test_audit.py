"""What an audit concludes from its layers, whatever runtime they were read from."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kdpipe.targets.audit import Audit, Layer, convolution_macs, product_macs


def layer(name: str, precision: str, macs: int | None) -> Layer:
    return Layer(name, "Conv", precision, macs)  # type: ignore[arg-type]


def test_the_share_is_one_of_macs_and_not_of_layers() -> None:
    """One int8 layer with 900 of 1,000 MACs outweighs three in float."""
    small = [layer(name, "fp32", macs) for name, macs in (("a", 50), ("b", 30), ("c", 20))]

    audit = Audit((layer("large", "int8", 900), *small))

    assert audit.int8_fraction == 0.9
    assert audit.float_kernels == ("a", "b", "c")
    assert [share for _, share in audit.shares()] == [0.9, 0.05, 0.03, 0.02]


@pytest.mark.parametrize("macs", [None, 0])
def test_layers_count_the_same_where_macs_are_unknown(macs: int | None) -> None:
    """A single unknown leaves no total to take shares of; nor do layers that multiply nothing."""
    audit = Audit((layer("a", "int8", 900 if macs is None else 0), layer("b", "bf16", macs)))

    assert audit.int8_fraction == 0.5


def test_nothing_to_multiply_is_no_int8() -> None:
    """A graph without a single layer has a share of 0."""
    assert Audit().int8_fraction == 0
    assert Audit().shares() == []


def test_it_is_json() -> None:
    """What is stored reads back the same, the derived numbers beside the layers."""
    stored = Audit((layer("a", "int8", 3),), {"Conv": 1}, ("q",), {"Reorder": 2}).to_dict()

    assert json.loads(json.dumps(stored)) == stored
    assert stored["int8_fraction"] == 1
    assert stored["layers"][0]["name"] == "a"


def test_macs_are_the_multiplications_of_a_loop() -> None:
    """Counted one by one: a grouped 3x3 convolution, a transposed one, a matrix product."""
    positions, kernel = np.ndindex(5, 5), np.ones((6, 2, 3, 3))
    grouped = sum(kernel[out].size for _ in positions for out in range(6))
    transposed = sum(kernel[i].size for _ in np.ndindex(5, 5) for i in range(6))
    product = sum(1 for _ in np.ndindex(4, 7, 3))

    assert convolution_macs((1, 6, 5, 5), (6, 2, 3, 3), 6) == grouped
    assert convolution_macs((1, 6, 5, 5), (6, 2, 3, 3), 6) == transposed
    assert product_macs((4, 7), 3) == product

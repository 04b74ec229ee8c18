"""The waterfall: which way an artifact came, what each hop loses, and who is blamed."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from kdpipe.stages.statistics import Drop, paired_drop
from kdpipe.stages.waterfall import Loss, blame, guilty, losses, previous, way

Scores = NDArray[np.float32]
HOPS = ["teacher", "student", "quantized", "onnx fp32", "onnx int8", "ort-fp32", "ort-int8"]
INT8 = ["teacher", "student", "quantized", "onnx int8", "ort-int8"]


def right(count: int, n: int = 400) -> Scores:
    """`n` samples of which the first `count` are right."""
    return (np.arange(n) < count).astype(np.float32)


def chain(*counts: int, n: int = 400) -> dict[str, Scores]:
    """Scores of the int8 way by hop."""
    return {hop: right(count, n) for hop, count in zip(INT8, counts, strict=True)}


def found(scores: dict[str, Scores], groups: NDArray[np.int64] | None = None) -> tuple[Loss, ...]:
    return losses(scores, "ort-int8", "int8", 0.95, groups)


def test_there_are_two_ways() -> None:
    """An fp32 file does not come by quantization, nor an int8 one by the fp32 file."""
    assert way(HOPS, "ort-fp32", "fp32") == ["teacher", "student", "onnx fp32", "ort-fp32"]
    assert way(HOPS, "ort-int8", "int8") == INT8


def test_hops_that_are_not_there_are_left_out() -> None:
    """Without a student the teacher itself is quantized; without quantization it is exported."""
    assert way(["teacher", "quantized", "x-int8"], "x-int8", "int8") == [
        "teacher", "quantized", "x-int8",
    ]  # fmt: skip
    assert way(["teacher", "x-fp32"], "x-fp32", "fp32") == ["teacher", "x-fp32"]


def test_what_stands_before_each_hop() -> None:
    """The branch is that of the hop; for an artifact, that of the file it was compiled from."""
    before = {hop: previous(HOPS, hop, "int8" if "int8" in hop else "fp32") for hop in HOPS}

    assert before == {
        "teacher": None,
        "student": "teacher",
        "quantized": "student",
        "onnx fp32": "student",
        "onnx int8": "quantized",
        "ort-fp32": "onnx fp32",
        "ort-int8": "onnx int8",
    }
    assert previous(["teacher", "onnx fp32", "x"], "onnx fp32", "int8") == "teacher"


def test_drops_are_against_the_hop_before_and_add_up() -> None:
    """Paired, each with bounds; together they are the artifact's drop against the teacher."""
    scores = chain(390, 380, 300, 300, 298)

    every = found(scores)

    assert [(loss.previous, loss.hop) for loss in every] == list(pairwise(INT8))
    assert [loss.stage for loss in every] == ["distill", "quantize", "export", "compile"]
    for loss in every:
        expected = paired_drop(scores[loss.previous], scores[loss.hop], 0.95)
        assert loss.drop == expected
        assert (loss.before, loss.after) == pytest.approx(
            (scores[loss.previous].mean(), scores[loss.hop].mean())
        )
    assert sum(loss.drop.drop for loss in every) == pytest.approx(92 / 400)


@pytest.mark.parametrize(
    ("counts", "stage", "most"),
    [
        ((390, 300, 298, 298, 298), "distill", "as the student knows less than its teacher"),
        ((390, 388, 200, 200, 199), "quantize", "by rounding to int8"),
        ((390, 388, 386, 200, 199), "export", "by what was written as ONNX"),
        ((390, 388, 386, 386, 99), "compile", "by what the runtime makes of the file"),
    ],
)
def test_the_guilty_hop_is_named(counts: tuple[int, ...], stage: str, most: str) -> None:
    """By the key of its stage, with what happens there and the numbers of both ends."""
    every = found(chain(*counts))

    worst = guilty(every)
    assert worst is not None
    assert worst.stage == stage
    sentence = blame(every)
    assert sentence.startswith(f"most of it is lost at `{stage}`, {most} (")
    assert (
        f"({worst.previous} {worst.before:.4f} -> {worst.hop} {worst.after:.4f}, drop" in sentence
    )
    assert ", 400 samples)" in sentence


def test_the_sentence_in_full() -> None:
    """Bounds are rounded outwards, and where in the hop it happened goes on from there."""
    every = found(chain(390, 389, 300, 300, 300))

    drop = every[1].drop
    low, high = math.floor(drop.low * 1e4) / 1e4, math.ceil(drop.high * 1e4) / 1e4
    assert blame(every, "first at layer stem") == (
        "most of it is lost at `quantize`, by rounding to int8 (student 0.9725 -> quantized 0.7500,"
        f" drop 0.2225, 95 % bounds {low:.4f} to {high:.4f}, 400 samples), first at layer stem"
    )
    assert low <= drop.low < drop.high <= high


def test_nobody_is_blamed_for_chance() -> None:
    """One sample lost at each hop is what any other 400 samples might show the other way round."""
    every = found(chain(390, 389, 388, 387, 386))

    assert guilty(every) is None
    assert blame(every) == "no hop alone loses more than the samples can show"
    assert blame(()) == ""


def test_a_gain_is_no_loss() -> None:
    """A student better than its teacher does not make a later hop less guilty, or more."""
    every = found(chain(200, 390, 300, 300, 300))

    assert not every[0].significant
    assert every[0].drop.drop < 0
    worst = guilty(every)
    assert worst is not None
    assert worst.stage == "quantize"


def test_the_largest_of_several_is_guilty_and_the_others_are_told() -> None:
    """Where two hops certainly lose, the larger one leads, and neither is kept quiet."""
    every = found(chain(390, 340, 240, 240, 240))

    sentence = blame(every)
    assert sentence.startswith("most of it is lost at `quantize`")
    assert "; some at `distill` (teacher 0.9750 -> student 0.8500, drop 0.1250, " in sentence


def test_less_than_half_is_not_most() -> None:
    """Three hops that lose about the same: the largest part, and not most of it."""
    assert blame(found(chain(390, 330, 269, 209, 209))).startswith(
        "the largest part is lost at `quantize`"
    )


def test_holm_asks_for_more_than_a_single_test() -> None:
    """A drop whose own bound is above 0 by a little is no proof, when four hops are looked at."""
    own = [n for n in range(390) if paired_drop(right(390), right(n), 0.95).low > 0]
    least = 390 - max(own)  # samples that a single test needs to be lost

    (alone,) = losses({"teacher": right(390), "x": right(390 - least)}, "x", "fp32", 0.95)
    among = found(chain(390, 390 - least, 390 - least, 390 - least, 390 - least))

    assert alone.significant
    assert among[0].drop.low > 0
    assert not among[0].significant


def test_false_blame_is_rare() -> None:
    """Hops that change samples at random, for better as for worse, are blamed in at most 5 %.

    200 chains of five hops, each of which flips 4 % of 200 samples of a fair coin.
    """
    rng = np.random.default_rng(0)
    blamed = 0
    for _ in range(200):
        scores = {"teacher": rng.random(200) < 0.5}
        for before, after in pairwise(INT8):
            scores[after] = scores[before] ^ (rng.random(200) < 0.04)
        every = found({hop: score.astype(np.float32) for hop, score in scores.items()})
        blamed += guilty(every) is not None

    assert blamed / 200 <= 0.05


def test_groups_count_and_not_samples() -> None:
    """Ten samples lost in one group of forty prove nothing, and the sentence has groups."""
    groups = np.arange(400) // 10
    lost = right(390)
    lost[:10] = 0
    every = found(dict(zip(INT8, [right(390), lost, lost, lost, lost], strict=True)), groups)
    spread = right(390)
    spread[::3] = 0
    wide = found(dict(zip(INT8, [right(390), *[spread] * 4], strict=True)), groups)

    assert not every[0].significant
    assert losses({"teacher": right(390), "x": lost}, "x", "fp32", 0.95)[0].significant
    assert ", 400 samples in 40 groups)" in blame(wide)


def test_one_group_proves_nothing_and_is_json() -> None:
    """No bounds are no proof; in JSON they are null."""
    every = found(chain(390, 100, 100, 100, 100), np.zeros(400, np.int64))

    assert guilty(every) is None
    told = every[0].to_dict()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["drop"] == {"mean": pytest.approx(0.725), "low": None, "high": None}


def test_scores_that_are_no_pairs_are_refused() -> None:
    """Of other samples nothing can be said."""
    with pytest.raises(ValueError, match="not pairs"):
        losses({"teacher": right(9, 10), "x": right(9, 11)}, "x", "fp32", 0.95)


def test_a_single_hop_has_no_losses() -> None:
    """An artifact alone has nothing before it."""
    assert losses({"x": right(3)}, "x", "fp32", 0.95) == ()


def test_a_large_loss_that_may_be_chance_is_not_guilty() -> None:
    """The hop that certainly loses is named, not the one that seems to lose more."""
    drop = Drop(0.0, 0.0, 0.0, 10, 0.0, 0.0)
    chance, certain = (
        Loss(hop, "teacher", "distill", 1.0, 1 - lost, replace(drop, drop=lost), 0.95, sure, 10)
        for hop, lost, sure in (("student", 0.3, False), ("quantized", 0.1, True))
    )

    assert guilty([chance, certain]) is certain

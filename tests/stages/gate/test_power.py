"""Power: how often good models pass, by formula, next to how often they do in simulations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kdpipe.stages.evidence import Evidence, Timing
from kdpipe.stages.gate.judge import Verdict, judge
from kdpipe.stages.gate.measure import more_than
from kdpipe.stages.gate.power import of_policy, passing, together
from kdpipe.stages.gate.rules import Rule

Make = Callable[..., Evidence]
Judge = Callable[..., Verdict]

DROP = {"metric": "accuracy", "max-degradation": 0.01}


def test_the_planned_number_of_samples_has_the_planned_power() -> None:
    """(z_0.95 + z_0.8)^2 d / m^2 samples, here 3,092 at d = 5 % and m = 1 point, give 80 %."""
    error = (0.05 / 3092) ** 0.5

    assert passing(0.01, 1.6449 * error, error) == pytest.approx(0.8, abs=0.001)


@pytest.mark.parametrize(("room", "power"), [(0.5, 1.0), (0.2, 1.0), (0.1, 0.0), (-1.0, 0.0)])
def test_without_spread_it_is_all_or_nothing(room: float, power: float) -> None:
    """Samples that never disagree prove the same in every run."""
    assert passing(room, 0.2, 0.0) == power


def test_rules_that_may_fail_apart_fail_more_often_together() -> None:
    """Six rules of power 0.8: at worst none of the runs passes them all."""
    assert together([0.8] * 6) == 0.0
    assert together([0.99, 0.97]) == pytest.approx(0.96)
    assert together([1.0] * 9) == 1.0


@pytest.mark.parametrize(("discordance", "n"), [(0.02, 2000), (0.05, 2000), (0.05, 3092)])
def test_power_of_a_drop_is_what_a_simulation_finds(
    discordance: float, n: int, evidence: Make, verdict: Judge
) -> None:
    """Models truly as good as the teacher: 400 runs pass about as often as the formula says."""
    half = round(discordance * n / 2)
    said = verdict(DROP, evidence(half, half, n)).power
    shares = [discordance / 2, discordance / 2, 1 - discordance]
    rng = np.random.default_rng(5)
    drawn, times = np.unique(
        rng.multinomial(n, shares, size=400)[:, :2], axis=0, return_counts=True
    )
    passed = sum(
        int(count)
        for (losses, gains), count in zip(drawn, times, strict=True)
        if verdict(DROP, evidence(int(losses), int(gains), n)).verdict == "PASS"
    )

    assert said == pytest.approx(passed / 400, abs=0.06)


@pytest.mark.parametrize("limit", [0.985, 0.98, 0.97])
def test_power_of_a_least_score_is_what_a_simulation_finds(
    limit: float, evidence: Make, verdict: Judge
) -> None:
    """The true value is the measured one, 0.99."""
    rule = {"metric": "agreement", "min": limit}
    rng = np.random.default_rng(6)

    def shown(right: int) -> Evidence:
        return evidence(agreement=(np.arange(2000) < right).astype(np.float32))

    counts = rng.binomial(2000, 0.99, size=300)
    passed = np.mean([verdict(rule, shown(int(right))).verdict == "PASS" for right in counts])

    assert verdict(rule, shown(1980)).power == pytest.approx(passed, abs=0.07)


@pytest.mark.parametrize("scale", [1.01, 1.02, 1.05])
def test_power_of_a_speedup_is_what_a_simulation_finds(
    scale: float, evidence: Make, timing: Callable[..., Timing], verdict: Judge
) -> None:
    """A twin that is so much slower: the mean of what single runs expect is how often they pass."""
    rule = {"metric": "speedup", "min": 1.0, "against": "fp32"}
    found = [
        verdict(
            rule,
            evidence(
                n=2,
                latency={
                    "artifact": timing(1.0, 2 * s, each=10),
                    "fp32": timing(scale, s, each=10),
                },
            ),
        )
        for s in range(1, 201)
    ]
    passed = np.mean([one.verdict == "PASS" for one in found])

    assert np.mean([one.power for one in found]) == pytest.approx(passed, abs=0.1)


@pytest.mark.parametrize("disagreement", [0.01, 0.02, 0.05])
def test_what_is_asked_for_decides_in_four_of_five_runs(
    disagreement: float, evidence: Make, verdict: Judge
) -> None:
    """Also where it holds few disagreements: 619, by their measured variance, do so in three."""
    losses = round(200 * disagreement)
    planned = verdict(DROP, evidence(losses, losses, 400)).needed
    assert planned is not None
    rng, shares = np.random.default_rng(8), [disagreement / 2, disagreement / 2, 1 - disagreement]
    drawn, times = np.unique(
        rng.multinomial(planned, shares, size=400)[:, :2], axis=0, return_counts=True
    )
    words = [verdict(DROP, evidence(int(b), int(c), planned)).verdict for b, c in drawn]
    passed = sum(int(n) for n, word in zip(times, words, strict=True) if word == "PASS") / 400

    assert 0.73 <= passed <= 0.86


def test_what_a_gain_needs_is_asked_for(evidence: Make, verdict: Judge) -> None:
    """Alike on 400 samples: 598 prove that less than half a point is gained. Two gains in 100 and
    no loss need fewer, to prove that more is."""
    rule = {"metric": "accuracy", "min-improvement": 0.005, "against": "teacher"}
    alike, better = verdict(rule, evidence(0, 0, 400)), verdict(rule, evidence(0, 2, 100))

    assert (alike.verdict, alike.needed) == ("UNDECIDED", 598)
    assert verdict(rule, evidence(0, 0, 597)).verdict == "UNDECIDED"
    assert verdict(rule, evidence(0, 0, 600)).verdict == "FAIL"
    assert better.verdict == "UNDECIDED"
    assert 100 < (better.needed or 0) < 598
    assert 0.65 < _decided(rule, better.needed or 0, evidence, verdict) < 0.82


def _decided(rule: dict[str, Any], n: int, evidence: Make, verdict: Judge) -> float:
    """How often n samples, of which 2 % are gained and none lost, decide for the artifact."""
    counts, times = np.unique(np.random.default_rng(9).binomial(n, 0.02, 400), return_counts=True)
    words = [verdict(rule, evidence(0, int(gains), n)).verdict for gains in counts]
    return sum(int(t) for t, word in zip(times, words, strict=True) if word == "PASS") / 400


def test_as_good_as_its_teacher_has_no_drop_in_macro_f1(evidence: Make, verdict: Judge) -> None:
    """The power is that of such a model, also when this one is worse."""
    rule = {"metric": "macro_f1", "max-degradation": 0.05}
    worse = verdict(rule, evidence(100, 0))

    assert worse.measured == pytest.approx(0.05, abs=0.005)
    assert (worse.power or 0) > 0.99


def test_power_of_a_policy_is_one_sentence(evidence: Make) -> None:
    """The joint power of all that is required, with its weakest rule; advice has no part in it."""
    rules: list[dict[str, Any]] = [
        {"metric": "accuracy", "max-degradation": 0.01},
        {"metric": "speedup", "min": 2.0},
        {"metric": "accuracy", "min": 0.999, "required": False},
    ]
    verdicts = judge([Rule.model_validate(rule) for rule in rules], [evidence(50, 50)])
    found = of_policy(verdicts)

    assert found is not None
    assert found["rules"] == 2
    assert found["joint"] == pytest.approx(verdicts[0].power)
    assert found["least"]["metric"] == "accuracy"
    shown = f"{int(1000 * found['joint']) / 10:g} %"
    assert found["sentence"] == (
        "a model as good as its reference, and as fast and small as measured, passes all 2 rules "
        f"in at least {shown} of runs (least certain: openvino-int8 accuracy, {shown})"
    )


def test_nothing_measured_has_no_power() -> None:
    """No number is invented where nothing was judged."""
    assert of_policy([]) is None
    assert of_policy(judge([Rule.model_validate(DROP)], [])) is None


def test_a_plan_asks_for_more_than_there_is() -> None:
    """What is there has just not decided, whatever a formula says of it."""
    assert more_than(100, 40) == 101
    assert more_than(100, 400) == 400
    assert more_than(100, None) is None

"""From what was counted to what a reader should know: limits, and a plain sentence for each.

The limits stand here alone. They are low: a ratio of two latencies is wanted to a few per cent,
and a mark costs nothing, since nothing is left out for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Facts = Mapping[str, float]

OTHER_CPU = 0.10
"""Share of the watched cores. Ticks of 10 ms cannot tell less from nothing in a short process; with
more, the caches and, on two cores, the scheduler are no longer the model's alone."""
STOLEN = 0.02
"""Share that the hypervisor gave away: every per cent of it is a per cent of latency."""
CLOCK = 0.05
"""Relative change of the fastest core's clock, which latency follows; below it, the clock that
Linux tells of jitters by itself."""
SWAPPED = 256
"""Pages, 1 MiB; a machine that swaps a little is not short of memory."""


def disturbances(facts: Facts) -> tuple[str, ...]:
    """What was out of the ordinary in `conditions.between`, a sentence each; empty if nothing was.

    Example: {"other_cpu": 0.34} -> ("other processes took 34 % of the CPU",)
    """
    return tuple(
        sentence
        for sentence in (_load(facts), _stolen(facts), *_limits(facts), _clock(facts))
        if sentence
    )


def _load(facts: Facts) -> str:
    share = facts.get("other_cpu", 0.0)
    return f"other processes took {100 * share:.0f} % of the CPU" if share > OTHER_CPU else ""


def _stolen(facts: Facts) -> str:
    share = facts.get("stolen", 0.0)
    return f"the hypervisor gave {100 * share:.0f} % of the CPU to others" if share > STOLEN else ""


def _limits(facts: Facts) -> list[str]:
    times, seconds = facts.get("throttled", 0), facts.get("throttled_s", 0.0)
    hot, swapped = facts.get("hot_cores", 0), facts.get("swapped_pages", 0)
    faults = facts.get("major_faults", 0)
    return [
        f"the CPU quota was used up {times:.0f} time(s), for {seconds:.2g} s" if times else "",
        f"heat slowed down {hot:.0f} core(s)" if hot else "",
        f"{swapped:.0f} pages were swapped" if swapped > SWAPPED else "",
        f"{faults:.0f} page(s) had to be read from disk" if faults else "",
        "the machine ran on battery" if facts.get("on_battery") else "",
    ]


def _clock(facts: Facts) -> str:
    before, after = facts.get("mhz_before"), facts.get("mhz_after")
    if not before or not after or abs(after / before - 1) <= CLOCK:
        return ""
    return f"the clock went from {before:.0f} to {after:.0f} MHz"


def clock_spread(each: Sequence[Facts]) -> str:
    """Whether processes ran at different clocks, by the facts of each; empty if not."""
    clocks = [facts["mhz_after"] for facts in each if facts.get("mhz_after")]
    if not clocks or max(clocks) / min(clocks) - 1 <= CLOCK:
        return ""
    return f"processes ran at {min(clocks):.0f} to {max(clocks):.0f} MHz"


def circumstances(fingerprint: Mapping[str, object]) -> tuple[str, ...]:
    """What about the machine itself makes latencies vary, a sentence each.

    Not a disturbance: it is always so here, and the bounds already hold what it does.
    """
    governor, quota = fingerprint.get("governor"), fingerprint.get("cpu_quota")
    container, name = fingerprint.get("container"), fingerprint.get("hypervisor")
    virtual, named = fingerprint.get("virtualised") or name, f" ({name})" if name else ""
    found = {
        f"the CPU governor is {governor}, not performance": governor not in (None, "performance"),
        "turbo is on: clocks depend on heat and power": fingerprint.get("turbo") is True,
        f"a virtual machine{named}: others may share its cores": bool(virtual),
        f"a container ({container}): others may share its machine": container is not None,
        f"a CPU quota of {quota} cores": quota is not None,
    }
    return tuple(sentence for sentence, so in found.items() if so)

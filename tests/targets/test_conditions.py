"""What happened while something was measured, read by the real code from recorded trees."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kdpipe.targets.conditions import (
    Snapshot,
    between,
    cpu_seconds,
    snapshot,
    swapped_pages,
    throttling,
)
from kdpipe.targets.disturbances import circumstances, clock_spread, disturbances
from kdpipe.targets.surroundings import control_groups, cpu_quota

TICKS = os.sysconf("SC_CLK_TCK")

STAT = """\
cpu  2956410 569050 268405 1145837 5152 0 1175 2799 0 0
cpu0 1350358 280298 121586 718744 1100 0 193 1381 0 0
cpu1 1606052 288751 146819 427092 4052 0 981 1418 0 0
intr 172834 0 0
ctxt 5273894
"""
VMSTAT = "nr_free_pages 81234\npgmajfault 6961\npswpin {read}\npswpout 40\n"
VERSION_2 = (
    "usage_usec 9000\nuser_usec 8000\nnr_periods 70\nnr_throttled {n}\nthrottled_usec {us}\n"
)
VERSION_1 = "nr_periods 70\nnr_throttled 3\nthrottled_time 1500000000\n"


class Tree:
    """A recorded machine with two cores under a folder, whose counters can be moved on."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/self/cgroup", "0::/user.slice/job.scope\n")
        self.at(others=0, stolen=0)

    def write(self, file: str, text: str) -> None:
        """One file of the tree."""
        path = self.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def at(
        self,
        *,
        seconds: float = 0.0,
        others: float = 0.0,
        stolen: float = 0.0,
        throttled: int = 0,
        heat: int = 0,
        khz: int = 3_400_000,
        swapped: int = 0,
    ) -> Snapshot:
        """The snapshot after so many seconds, in which others used the CPU for so many."""
        rows = []
        for core in (0, 1):
            busy, gone = int(others * TICKS / 2), int(stolen * TICKS / 2)
            idle = int(seconds * TICKS) - busy - gone
            rows.append(f"cpu{core} {100 + busy} 0 50 {1000 + idle} 7 0 3 {gone} 0 0")
            folder = f"sys/devices/system/cpu/cpu{core}"
            self.write(f"{folder}/thermal_throttle/core_throttle_count", f"{heat * core}\n")
            self.write(f"{folder}/thermal_throttle/package_throttle_count", "4\n")
            self.write(f"{folder}/cpufreq/scaling_cur_freq", f"{khz - 400_000 * core}\n")
        self.write("proc/stat", "\n".join(["cpu  1 2 3 4 5 6 7 8 9 0", *rows, "intr 5", ""]))
        self.write("proc/vmstat", VMSTAT.format(read=swapped))
        self.write(
            "sys/fs/cgroup/user.slice/cpu.stat", VERSION_2.format(n=throttled, us=throttled * 20000)
        )
        return snapshot((0, 1), self.root)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A quiet machine."""
    return Tree(tmp_path)


def without_own(before: Snapshot, after: Snapshot) -> dict[str, float]:
    """What lies between, as if this process had done nothing meanwhile."""
    return between(before, Snapshot(**{**vars(after), "own": before.own}))


def test_a_quiet_machine_disturbs_nothing(tree: Tree) -> None:
    """Two idle seconds on two cores: all is known, and nothing is worth a word."""
    facts = without_own(tree.at(), tree.at(seconds=2))

    assert facts["cpu_s"] == pytest.approx(4, abs=0.05)
    assert {facts[name] for name in ("other_cpu", "stolen", "throttled", "hot_cores")} == {0}
    assert (facts["mhz_before"], facts["mhz_after"]) == (3400, 3400)
    assert disturbances(facts) == ()
    assert json.loads(json.dumps(facts)) == facts


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"others": 1.36}, "other processes took 34 % of the CPU"),
        ({"stolen": 0.4}, "the hypervisor gave 10 % of the CPU to others"),
        ({"throttled": 3}, "the CPU quota was used up 3 time(s), for 0.06 s"),
        ({"heat": 5}, "heat slowed down 1 core(s)"),
        ({"khz": 2_100_000}, "the clock went from 3400 to 2100 MHz"),
        ({"swapped": 300}, "300 pages were swapped"),
    ],
)
def test_each_disturbance_is_said_alone(tree: Tree, change: dict[str, float], said: str) -> None:
    """One thing changed in the recorded tree, one sentence with its size."""
    facts = without_own(tree.at(), tree.at(seconds=2, **change))  # type: ignore[arg-type]

    assert disturbances(facts) == (said,)


@pytest.mark.parametrize(
    "change", [{"others": 0.3}, {"stolen": 0.04}, {"khz": 3_300_000}, {"swapped": 200}]
)
def test_what_is_under_the_limits_is_not_said(tree: Tree, change: dict[str, float]) -> None:
    """A little of everything is how machines are."""
    facts = without_own(tree.at(), tree.at(seconds=2, **change))  # type: ignore[arg-type]

    assert disturbances(facts) == ()


def test_own_work_is_nobody_elses(tree: Tree) -> None:
    """CPU time of this process and its children is taken off what the cores did."""
    before, after = tree.at(), tree.at(seconds=2, others=1.36)
    facts = between(before, Snapshot(**{**vars(after), "own": before.own + 1.36}))

    assert facts["other_cpu"] == pytest.approx(0, abs=0.01)


def test_ticks_are_not_judged_over_a_blink(tree: Tree) -> None:
    """In 60 ms of two cores a single tick would be 8 %: no share is given."""
    facts = without_own(tree.at(), tree.at(seconds=0.06, others=0.06))

    assert not {"other_cpu", "stolen"} & facts.keys()


def test_only_the_watched_cores_count() -> None:
    """/proc/stat of two cores: the second alone, with steal apart and guests not counted twice."""
    found = cpu_seconds(STAT, {1}, 100)

    assert found is not None
    assert found.total == pytest.approx(
        (1606052 + 288751 + 146819 + 427092 + 4052 + 981 + 1418) / 100
    )
    assert found.busy == pytest.approx((1606052 + 288751 + 146819 + 981) / 100)
    assert found.stolen == pytest.approx(14.18)
    assert cpu_seconds(STAT, {7}, 100) is None
    assert cpu_seconds("", (), 100) is None


def test_both_versions_of_control_groups_are_read() -> None:
    """Microseconds and nanoseconds; groups above count too; no counter is None and not 0."""
    assert throttling([VERSION_2.format(n=2, us=500_000), VERSION_1, ""]) == (5, 2.0)
    assert throttling(["usage_usec 5\n"]) is None
    assert swapped_pages(VMSTAT.format(read=2)) == 42
    assert swapped_pages("nr_free_pages 1\n") is None


@pytest.mark.parametrize(
    ("cgroup", "files", "quota"),
    [
        ("0::/a/b\n", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 1.5),
        ("0::/gone\n", {"cpu.max": "50000 100000"}, 0.5),
        (
            "4:memory:/x\n3:cpu,cpuacct:/x\n0::/\n",
            {
                "cpu,cpuacct/x/cpu.cfs_quota_us": "200000",
                "cpu,cpuacct/x/cpu.cfs_period_us": "100000",
            },
            2.0,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_the_tightest_quota_counts(
    tmp_path: Path, cgroup: str, files: dict[str, str], quota: float | None
) -> None:
    """Of this control group and all above it, in both versions; none is None."""
    for file, text in {
        "proc/self/cgroup": cgroup,
        **{f"sys/fs/cgroup/{f}": t for f, t in files.items()},
    }.items():
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    assert cpu_quota(tmp_path) == quota
    assert len(list(control_groups(tmp_path))) == len(set(control_groups(tmp_path)))


def test_an_empty_tree_tells_nothing(tmp_path: Path) -> None:
    """What cannot be read is absent, and neither 0 nor a disturbance."""
    facts = between(snapshot((0,), tmp_path), snapshot((0,), tmp_path))

    assert facts.keys() <= {"major_faults"}
    assert disturbances({}) == ()


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="reads /proc")
def test_work_of_others_is_seen_here() -> None:
    """This very process is the other one: its work shows once it is not taken for its own."""
    before = snapshot()
    value = 0.0
    while sum(os.times()[:4]) < before.own + 0.6:
        value += 1.0
    after = snapshot()
    other = without_own(before, after)

    assert other["other_cpu"] * other["cpu_s"] >= 0.4
    assert between(before, after)["other_cpu"] < other["other_cpu"]


def test_processes_at_different_clocks_are_said() -> None:
    """Over processes, the lowest and the highest clock; none known, nothing said."""
    assert clock_spread([{"mhz_after": 3400.0}, {"mhz_after": 2600.0}, {}]) == (
        "processes ran at 2600 to 3400 MHz"
    )
    assert clock_spread([{"mhz_after": 3400.0}, {"mhz_after": 3350.0}]) == ""
    assert clock_spread([{}]) == ""


def test_circumstances_are_what_the_fingerprint_says() -> None:
    """Each state that makes latencies vary has a sentence; a tuned bare machine has none."""
    tuned = {"governor": "performance", "turbo": False, "virtualised": False}
    shared = {"governor": "powersave", "turbo": True, "hypervisor": "KVM", "container": "docker"}

    assert circumstances(tuned) == circumstances({}) == ()
    assert circumstances({**shared, "cpu_quota": 1.5}) == (
        "the CPU governor is powersave, not performance",
        "turbo is on: clocks depend on heat and power",
        "a virtual machine (KVM): others may share its cores",
        "a container (docker): others may share its machine",
        "a CPU quota of 1.5 cores",
    )

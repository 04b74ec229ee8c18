"""What samples can and cannot prove: intervals, tests and sample sizes; unlike `gate/`, no rules.

Pure functions of arrays. Every bound is one-sided: each of `low` and `high` alone holds with
probability `confidence`, so both together hold with 2 x confidence - 1. Where a textbook interval
is too narrow (few or no events), the wider exact one is used: a gate that passes a bad model is
worse than one that asks for more samples.
"""

from __future__ import annotations

from kdpipe.stages.statistics.intervals import Drop as Drop
from kdpipe.stages.statistics.intervals import Groups as Groups
from kdpipe.stages.statistics.intervals import Interval as Interval
from kdpipe.stages.statistics.latency import latency_percentile as latency_percentile
from kdpipe.stages.statistics.latency import latency_ratio as latency_ratio
from kdpipe.stages.statistics.latency import mean_latency as mean_latency
from kdpipe.stages.statistics.latency import order_bounds as order_bounds
from kdpipe.stages.statistics.means import central as central
from kdpipe.stages.statistics.means import mean_bounds as mean_bounds
from kdpipe.stages.statistics.planning import needed_samples as needed_samples
from kdpipe.stages.statistics.planning import samples_to_decide as samples_to_decide
from kdpipe.stages.statistics.planning import samples_to_detect as samples_to_detect
from kdpipe.stages.statistics.planning import samples_to_separate as samples_to_separate
from kdpipe.stages.statistics.scores import mcnemar_midp as mcnemar_midp
from kdpipe.stages.statistics.scores import mean_score as mean_score
from kdpipe.stages.statistics.scores import paired_drop as paired_drop
from kdpipe.stages.statistics.scores import tango_bounds as tango_bounds

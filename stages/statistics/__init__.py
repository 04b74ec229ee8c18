"""What samples can and cannot prove: intervals, tests and sample sizes; unlike `gate/`, no rules.

Pure functions of arrays. Every bound is one-sided: each of `low` and `high` alone holds with
probability `confidence`, so both together hold with 2 x confidence - 1. Where a textbook interval
is too narrow (few or no events), the wider exact one is used: a gate that passes a bad model is
worse than one that asks for more samples.
"""

from __future__ import annotations

from kdpipe.stages.statistics.autocorrelation import effective_iterations as effective_iterations
from kdpipe.stages.statistics.bootstrap import Resampled as Resampled
from kdpipe.stages.statistics.bootstrap import bootstrap_interval as bootstrap_interval
from kdpipe.stages.statistics.bootstrap import resample as resample
from kdpipe.stages.statistics.holm import holm as holm
from kdpipe.stages.statistics.holm import holm_adjusted as holm_adjusted
from kdpipe.stages.statistics.holm import p_above as p_above
from kdpipe.stages.statistics.holm import p_below as p_below
from kdpipe.stages.statistics.intervals import Drop as Drop
from kdpipe.stages.statistics.intervals import Groups as Groups
from kdpipe.stages.statistics.intervals import Interval as Interval
from kdpipe.stages.statistics.latency import NoiseFloor as NoiseFloor
from kdpipe.stages.statistics.latency import latency_percentile as latency_percentile
from kdpipe.stages.statistics.latency import latency_ratio as latency_ratio
from kdpipe.stages.statistics.latency import mean_latency as mean_latency
from kdpipe.stages.statistics.latency import noise_floor as noise_floor
from kdpipe.stages.statistics.latency import order_bounds as order_bounds
from kdpipe.stages.statistics.means import central as central
from kdpipe.stages.statistics.means import mean_bounds as mean_bounds
from kdpipe.stages.statistics.outliers import latency_outliers as latency_outliers
from kdpipe.stages.statistics.planning import needed_samples as needed_samples
from kdpipe.stages.statistics.planning import samples_to_decide as samples_to_decide
from kdpipe.stages.statistics.planning import samples_to_detect as samples_to_detect
from kdpipe.stages.statistics.planning import samples_to_separate as samples_to_separate
from kdpipe.stages.statistics.scores import drop_bounds as drop_bounds
from kdpipe.stages.statistics.scores import drop_variance as drop_variance
from kdpipe.stages.statistics.scores import mcnemar_midp as mcnemar_midp
from kdpipe.stages.statistics.scores import mean_score as mean_score
from kdpipe.stages.statistics.scores import paired_drop as paired_drop
from kdpipe.stages.statistics.scores import tango_bounds as tango_bounds
from kdpipe.stages.statistics.summaries import LogSummary as LogSummary
from kdpipe.stages.statistics.summaries import ScoreSummary as ScoreSummary
from kdpipe.stages.statistics.summaries import log_mean as log_mean
from kdpipe.stages.statistics.summaries import ratio_of as ratio_of
from kdpipe.stages.statistics.summaries import score_summary as score_summary
from kdpipe.stages.statistics.summaries import unpaired_drop as unpaired_drop

"""The stages of the chain, one file each, listed in running order in STAGES.

The folder's rule: a stage names the stages that it reads in its `Inputs`, and no other.
Importing this imports no torch.
"""

from __future__ import annotations

from kdpipe.stages.base import Stage as Stage
from kdpipe.stages.benchmark import Benchmark
from kdpipe.stages.compile import Compile
from kdpipe.stages.data import Data
from kdpipe.stages.distill.stage import Distill
from kdpipe.stages.export import Export
from kdpipe.stages.gate.rules import DEFAULT_RULES as DEFAULT_RULES
from kdpipe.stages.gate.rules import Rule as Rule
from kdpipe.stages.quantize.stage import Quantize
from kdpipe.stages.student import Student
from kdpipe.stages.tasks import TASKS as TASKS
from kdpipe.stages.tasks import Task as Task
from kdpipe.stages.teacher import Teacher

STAGES: tuple[type[Stage], ...] = (
    Data,
    Teacher,
    Student,
    Distill,
    Quantize,
    Export,
    Compile,
    Benchmark,
)

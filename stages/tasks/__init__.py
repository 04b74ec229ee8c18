"""Tasks: one file each, listed in TASKS. Nothing outside a task knows what its labels mean."""

from kdpipe.stages.tasks.base import Outcome as Outcome
from kdpipe.stages.tasks.base import Task as Task
from kdpipe.stages.tasks.classification import Classification
from kdpipe.stages.tasks.segmentation import Segmentation

TASKS: tuple[type[Task], ...] = (Classification, Segmentation)

"""Distillation: one file per method, listed in METHODS; the engine is in graph.py.

The folder's rule: a method never lists another method, and the engine never lists a method.
"""

from __future__ import annotations

from kdpipe.stages.distill.kd import KD
from kdpipe.stages.distill.method import Method as Method

METHODS: tuple[type[Method], ...] = (KD,)

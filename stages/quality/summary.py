"""The few numbers of `quality.json` that stand in results; the file has the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BOTH = ("macro_f1", "dataset_miou", "boundary_iou")
"""Where artifact and teacher stand side by side."""


def artifact_summary(quality: Mapping[str, Any]) -> dict[str, Any]:
    """Of an artifact, against the teacher; what its task does not have is left out."""
    subgroups, robust = quality.get("subgroups"), quality.get("robustness")
    found = {
        **_of_role(quality, "artifact"),
        **{f"{name}_drop": quality[name]["drop"] for name in _BOTH if name in quality},
        "worst_class": quality.get("worst_class"),
        "worst_group": subgroups and subgroups["worst"],
        "decisions": quality.get("decisions"),
        "robustness": robust and {**robust["mean"], "lowest": robust["lowest"]},
    }
    if "calibration" in quality:
        found["ece_change"] = quality["calibration"]["ece"]["change"]
    return {name: value for name, value in found.items() if value is not None}


def teacher_summary(quality: Mapping[str, Any]) -> dict[str, Any]:
    """Of the teacher, by the names that its artifacts' summaries have."""
    return {k: value for k, value in _of_role(quality, "teacher").items() if value is not None}


def _of_role(quality: Mapping[str, Any], role: str) -> dict[str, Any]:
    found = {name: quality[name][role] for name in _BOTH if name in quality}
    if "calibration" in quality:
        found["ece"] = quality["calibration"]["ece"][role]
    curves = quality.get("curves", {}).get(role)
    found["mean_average_precision"] = curves and curves["mean_average_precision"]
    return found

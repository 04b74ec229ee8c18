"""Who is to blame for what an artifact lost: the hop (`waterfall.py`), and in it the first layer.

Asked of every artifact that is measured. Comparing layers takes a run of two files on a few
samples, which is done only where one hop certainly lost something and there are files to compare.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kdpipe.stages.compile import Compiled
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.distill.stage import Distilled
from kdpipe.stages.export import Exported
from kdpipe.stages.layer_snr import Comparison
from kdpipe.stages.network import Network
from kdpipe.stages.quantize.settings import TRAINING
from kdpipe.stages.quantize.stage import Quantized
from kdpipe.stages.waterfall import Loss, blame, guilty, losses
from kdpipe.targets.base import Target
from kdpipe.targets.errors import KdpipeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Scores = NDArray[np.float32]

CONFIDENCE = 0.95
"""One-sided, of the bounds of each drop; that any hop is called guilty by chance has 1 - this."""
LAYERS = "layers.json"


class Outputs(Protocol):
    """What the chain left on the way to one artifact; the benchmark stage reads it all."""

    @property
    def data(self) -> Dataset: ...
    @property
    def teacher(self) -> Network: ...
    @property
    def distill(self) -> Distilled | None: ...
    @property
    def quantize(self) -> Quantized | None: ...
    @property
    def export(self) -> Exported: ...
    @property
    def compile(self) -> Compiled: ...
    @property
    def target(self) -> Target: ...


@dataclass(frozen=True)
class Culprit:
    """The hop that lost most, None where none certainly lost anything, with its layers compared.

    `layers` is None where there are no two files of the same layers. `blame`: all of it in one
    sentence.
    """

    hop: Loss | None
    layers: Comparison | None
    blame: str

    def save(self, folder: Path) -> None:
        """Write `layers.json`, where there is a culprit."""
        if self.hop is not None:
            layers = self.layers.to_dict() if self.layers else None
            found = {**self.hop.to_dict(), "layers": layers}
            (folder / LAYERS).write_text(json.dumps(found, indent=1))


def load(folder: Path) -> dict[str, Any] | None:
    """What `save` wrote: `Loss.to_dict`, and under `layers` `Comparison.to_dict`; or None."""
    path = folder / LAYERS
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def culprit(outputs: Outputs, score: Scores) -> Culprit:
    """Who is to blame for the scores (N,) of a compiled artifact.

    Raises ValueError when the scores of two hops are not pairs.
    """
    target = outputs.target
    scores = {**_scores(outputs), target.id: score}
    groups = outputs.data.eval.groups
    every = losses(scores, target.id, target.source, CONFIDENCE, groups)
    worst = guilty(every)
    layers = _layers(outputs, worst) if worst else None
    return Culprit(worst, layers, blame(every, layers.where() if layers else ""))


def _scores(outputs: Outputs) -> dict[str, Scores]:
    """By hop, as far as the export."""
    judged = {
        "teacher": outputs.teacher,
        "student": outputs.distill,
        "quantized": outputs.quantize,
    }
    scores = {hop: network.outcome.score for hop, network in judged.items() if network}
    exported = {f"onnx {name}": o.score for name, o in outputs.export.outcomes.items()}
    return scores | exported


def _layers(outputs: Outputs, loss: Loss) -> Comparison | None:
    """The layers of the file behind the guilty hop beside those of the file before it.

    Whatever goes wrong is told in the comparison: it must not cost what was measured. Rounding is
    looked for between the fp32 file and the int8 one, where also the export's own errors show.
    """
    from kdpipe.stages.layer_compare import compare_compiled, compare_files

    data, export, target, quantize = outputs.data, outputs.export, outputs.target, outputs.quantize
    file = export.student(target.source, target.flavour)
    try:
        if loss.stage == "compile":
            return compare_compiled(file, target, outputs.compile.path("artifact"), data.eval)
        if quantize and target.source == "int8" and loss.stage in ("quantize", "export"):
            changed = quantize.facts.get("equalized", {})
            trained = quantize.facts["mode"] in TRAINING
            fp32 = export.student("fp32", target.flavour)
            return compare_files(fp32, file, data.eval, changed, trained=trained)
    except KdpipeError as error:
        return Comparison((), None, {}, trouble=error.what)
    except Exception as error:  # of a runtime, or of a third party's target
        return Comparison((), None, {}, trouble=f"{type(error).__name__}: {error}")
    return None

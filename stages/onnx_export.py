"""Any torch module -> one ONNX file, float or emitted int8; what compiles it is in `targets/`.

A module that torch.export cannot trace is written by `torchscript.py`.
"""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdpipe.stages.layer_names import name_layers
from kdpipe.stages.quantize.aten import origin
from kdpipe.stages.quantize.ops import translation_table
from kdpipe.stages.quantize.trace import Untraceable, silence, trace
from kdpipe.targets.errors import StageError, listing

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 20
LIMIT = 2_000_000_000
"""Bytes of weights that still fit a protobuf message, whose limit is 2 GiB."""


def export_onnx(module: nn.Module, example: Tensor, path: Path) -> None:
    """Write `module` in eval mode: `input` (batch, ...) -> `output`, opset 20, weights inside.

    `example`: a batch of at least two samples. The module is left as it is. The same module gives
    the same bytes, and no path of this machine is in them. Raises StageError when torch.export
    cannot trace the module, an operator has no ONNX form, or the weights exceed the 2 GB that one
    file can hold.
    """
    check_size(module)
    proto = _translate(_trace(module, example))
    _name_batch(proto)
    name_layers(proto, module)
    write(proto, path)


def adopt(given: Path, output: str, path: Path) -> None:
    """The user's ONNX file as one file, whose only output is the named one, the logits."""
    import onnx

    model = onnx.load(given)  # large tensors that lie beside it are read into it
    if output:
        (logits,) = [value for value in model.graph.output if value.name == output]
        del model.graph.output[:]
        model.graph.output.append(logits)
    onnx.save(model, path)


def check_size(module: nn.Module) -> None:
    """Raise StageError when the weights of `module` do not fit into one ONNX file."""
    size = sum(t.nbytes for t in (*module.parameters(), *module.buffers()))
    if size > LIMIT:
        raise StageError(
            "the model is too large for one ONNX file",
            found=f"{size / 1e9:.2f} GB of weights, at most {LIMIT / 1e9:.0f} GB fit",
            fix="export a smaller student",
        )


def write(proto: ModelProto, path: Path) -> None:
    """Check the model, then write it whole or not at all.

    What tells where and from which source lines it was made is removed from `proto` first.
    """
    import onnx

    _clear(proto)
    proto.producer_version = ""
    onnx.checker.check_model(proto, full_check=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(proto.SerializeToString(deterministic=True))
    os.replace(partial, path)


def _trace(module: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    try:
        return trace(copy.deepcopy(module).cpu().eval(), example.cpu())
    except Untraceable as error:
        raise Untraceable(
            error.what,
            found=error.found,
            fix=f"{error.fix}; or write `export: {{exporter: torchscript}}`, which keeps of every "
            "branch the one that the example takes",
        ) from error


def _translate(program: torch.export.ExportedProgram) -> ModelProto:
    try:
        with silence():
            translated = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=["input"],
                output_names=["output"],
                external_data=False,
                verbose=False,
                custom_translation_table=translation_table(),
            )
    except torch.onnx.OnnxExporterError as error:
        raise _unsupported(program, error) from error
    assert translated is not None
    return translated.model_proto


def _unsupported(program: torch.export.ExportedProgram, error: Exception) -> StageError:
    """Say which operator has no ONNX form, and where in the model it is."""
    chain: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        chain.append(str(cause))
        cause = cause.__cause__
    found = re.search(r"OpOverload\(op='([^']+)'", "\n".join(chain))
    name = found.group(1) if found else "an operator"
    # The exporter breaks operators into smaller ones before it fails on one of those.
    with silence():
        nodes = program.run_decompositions().graph.nodes
    places = [origin(node) for node in nodes if str(node.target).startswith(f"{name}.")]
    return StageError(
        f"{name} has no ONNX form",
        found=listing(places) or chain[-1].strip().partition("\n")[0],
        fix="write this part of the model with other operators",
    )


def _name_batch(proto: ModelProto) -> None:
    """Call the batch dimension `batch`, wherever the exporter's own symbol for it stands."""
    symbol = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(rf"\b{re.escape(symbol)}\b", "batch", dim.dim_param)


def _clear(message: Any) -> None:
    """Drop comments and metadata from a protobuf message and all those below it."""
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in value if field.is_repeated else [value]:
                _clear(part)

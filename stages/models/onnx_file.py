"""What an ONNX file consists of on disk, checked before use; `blackbox.py` runs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kdpipe.targets.errors import DataError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto


def external_data(path: Path) -> tuple[Path, ...]:
    """The files beside `path` that hold its large tensors, sorted; () when it holds all itself.

    Raises DataError when it is no ONNX file, or when such a file is missing, is a link, or lies
    outside the folder of `path` (a model must not read what its folder does not show).
    """
    model = _read(path)
    folder = path.absolute().parent
    locations = {
        entry.value
        for tensor in _tensors(model)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return tuple(_inside(folder, location, path) for location in sorted(locations))


def check(path: Path) -> None:
    """DataError unless onnx's own checker accepts the file (types, shapes, data containment)."""
    import onnx

    external_data(path)
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError) as error:
        raise DataError(
            "the ONNX file is not valid",
            found=f"{path}: {error}",
            fix="export it again and run `python -m onnx.checker` on it",
        ) from error


def _read(path: Path) -> ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise DataError(
            "the file is not ONNX", found=f"{path}: {error}", fix="export the model again"
        ) from error
    if not model.graph.node:
        raise DataError(
            "the ONNX file holds no graph", found=str(path), fix="export the model again"
        )
    return model


def _inside(folder: Path, location: str, path: Path) -> Path:
    file = folder / location
    outside = not file.resolve().is_relative_to(folder.resolve())
    if outside or file.is_symlink() or not file.is_file():
        why = "is outside its folder" if outside else "is missing, or is a link"
        raise DataError(
            f"the ONNX file keeps tensors in a file that {why}",
            found=f"{path} refers to {location!r}",
            fix="put it beside the model, or export in one file (external_data=False)",
        )
    return file


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor of the model that may live in another file."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _graph_tensors(inner)

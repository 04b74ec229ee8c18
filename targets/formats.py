"""Model files as people have them: what they say of themselves, and which runtime opens them as is.

`Target.compile` makes an artifact of an ONNX file; here a file already is one. Only text and graph
structure are read: no weights, nothing that a file could point to outside its folder, no pickle.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from kdpipe.targets.base import Target
from kdpipe.targets.errors import DataError, UsageError
from kdpipe.targets.onnxruntime import OnnxRuntime
from kdpipe.targets.openvino import OpenVino

Facts = dict[str, Any]


def adopt(path: Path, folder: Path, threads: int = 1) -> tuple[Target, Path]:
    """A model file as an artifact: the target that runs it, and what `Target.open` takes.

    An ONNX file is opened where it is. OpenVINO's `model.xml` and `model.bin` are copied into the
    empty `folder`, byte for byte, beside the settings that kdpipe compiles with.

    Raises UsageError for a file of another kind, DataError for one that is not what its name says,
    StageError when the runtime refuses it.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}", found="a folder" if path.is_dir() else "")
    if path.suffix not in _ADOPT:
        raise UsageError(
            f"{path.name} is no model file that kdpipe knows",
            found=path.suffix or "a name without ending",
            fix=f"give one of these: {', '.join(_ADOPT)}, or an artifact of a run",
        )
    return _ADOPT[path.suffix](path, folder, threads)


def merged(path: Path, folder: Path) -> Path:
    """An ONNX file whose tensors lie in files beside it, as one file in `folder`.

    Copies that runtimes make of a graph do not take such files along. The caller has checked that
    they lie in the folder of `path`. Raises DataError when the whole is too large for one file.
    """
    import onnx

    whole = folder / "merged.onnx"
    try:
        onnx.save_model(onnx.load_model(str(path), format="protobuf"), str(whole))
    except (onnx.checker.ValidationError, ValueError) as error:
        raise DataError(f"{path} cannot be read as one file", found=str(error)) from error
    return whole


def facts(path: Path) -> Facts:
    """What a model file, or the one in a folder, says of itself: format, version, operators.

    {} for artifacts whose format only their runtime can read. Raises DataError for a damaged file.
    """
    if path.is_dir():
        inside = [file for file in sorted(path.iterdir()) if file.suffix in _FACTS]
        return facts(inside[0]) if len(inside) == 1 else {}
    return _FACTS[path.suffix](path) if path.suffix in _FACTS else {}


def _onnx(path: Path, folder: Path, threads: int) -> tuple[Target, Path]:
    return OnnxRuntime(threads=threads), path


def _ir(path: Path, folder: Path, threads: int) -> tuple[Target, Path]:
    _ir_facts(path)
    weights = path.with_suffix(".bin")
    for file in (path, weights):
        if file.is_symlink():
            raise DataError(f"{file} is a symbolic link", fix="replace it by a copy: cp -L")
    shutil.copyfile(path, folder / "model.xml")
    if weights.exists():
        shutil.copyfile(weights, folder / "model.bin")
    target = OpenVino(threads=threads)
    return target, target.adopt(folder)


def _onnx_facts(path: Path) -> Facts:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise DataError(f"{path} is not ONNX", found=str(error)) from error
    producer = " ".join(part for part in (model.producer_name, model.producer_version) if part)
    return {
        "format": "ONNX",
        "ir_version": model.ir_version,
        "opsets": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "producer": producer or None,
        "nodes": len(model.graph.node),
    }


def _ir_facts(path: Path) -> Facts:
    """The head of OpenVINO's XML; the rest of a file may be long."""
    try:
        with path.open("rb") as file:
            _, root = next(ElementTree.iterparse(file, events=("start",)))
    except (ElementTree.ParseError, StopIteration) as error:
        raise DataError(f"{path} is no XML", found=str(error) or "an empty file") from error
    if root.tag != "net" or "version" not in root.attrib:
        raise DataError(f"{path} is no OpenVINO model", found=f"<{root.tag}>")
    return {"format": "OpenVINO IR", "ir_version": root.attrib["version"], "opsets": {}}


_ADOPT: Mapping[str, Callable[..., tuple[Target, Path]]] = {".onnx": _onnx, ".xml": _ir}
_FACTS: Mapping[str, Callable[[Path], Facts]] = {".onnx": _onnx_facts, ".xml": _ir_facts}
"""By the ending of the file's name."""

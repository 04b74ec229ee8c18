"""What a config's `model:` means: a name of the zoo or timm, a function in a file, an ONNX file.

It is only read here; `source.py` builds it. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, TypeAdapter, ValidationInfo, WithJsonSchema

from kdpipe.stages.models import family_of
from kdpipe.stages.paths import Typed, UserPath
from kdpipe.targets.errors import UsageError

Kind = Literal["zoo", "timm", "module", "onnx"]
_FUNCTION = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)")
_WEIGHTS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
_PATH: TypeAdapter[Path] = TypeAdapter(UserPath)


@dataclass(frozen=True)
class Reference:
    """Where a model comes from.

    `name`: of the zoo or timm, or of the function in `file`. `data`: the files beside an ONNX
    `file` that hold its large tensors, under "0", "1", ...
    """

    kind: Kind
    name: str = ""
    file: Path | None = None
    data: Mapping[str, Path] = field(default_factory=dict)

    def __str__(self) -> str:
        """The text that `parse` reads, with an absolute path."""
        if self.kind == "timm":
            return f"timm:{self.name}"
        return ":".join(str(part) for part in (self.file, self.name) if part)

    @property
    def trainable(self) -> bool:
        """Whether it has weights that kdpipe can train; an ONNX file is a black box."""
        return self.kind != "onnx"

    @property
    def packages(self) -> tuple[str, ...]:
        """Distributions beside torch that decide what the model computes."""
        return {"timm": ("timm",), "onnx": ("onnxruntime",)}.get(self.kind, ())

    @property
    def files(self) -> dict[str, Path]:
        """The user's files, named as in these fields: {"file": ..., "data.0": ...}."""
        own = {"file": self.file} if self.file else {}
        return own | {f"data.{key}": path for key, path in self.data.items()}


def parse(text: str, base: Path) -> Reference:
    """Read `text`; paths in it are relative to `base`.

    Raises UsageError when no model is called so, or its file does not exist or is no ONNX file.
    """
    if text.startswith("timm:"):
        return Reference("timm", name=_named(text.removeprefix("timm:"), text))
    if text.endswith(".onnx"):
        return _onnx(_existing(text, base))
    if match := _FUNCTION.fullmatch(text):
        return Reference("module", match["name"], _existing(match["file"], base))
    _refuse_lookalikes(text)
    family_of(text)
    return Reference("zoo", name=text)


def _named(name: str, text: str) -> str:
    if not name:
        raise UsageError("model 'timm:' has no name", found=text, fix="model: timm:resnet18")
    return name


def _existing(text: str, base: Path) -> Path:
    path: Path = _PATH.validate_python(Typed(text, base))
    if not path.is_file():
        raise UsageError("the model's file does not exist", found=str(path), fix="check the path")
    return path.absolute()  # links stay: a cache's blob behind one may have no suffix


def _onnx(path: Path) -> Reference:
    from kdpipe.stages.models import onnx_file

    data = onnx_file.external_data(path)
    return Reference("onnx", file=path, data={str(i): file for i, file in enumerate(data)})


def _refuse_lookalikes(text: str) -> None:
    """A Python file without its function, and weights without their model, get their own help."""
    if text.endswith(".py"):
        raise UsageError(
            "model names a Python file, not the function in it that makes the network",
            found=text,
            fix=f"model: {text}:FUNCTION",
        )
    if text.endswith(_WEIGHTS):
        raise UsageError(
            "model names a file of weights, not the network that they belong to",
            found=text,
            fix="name the network as `model` and give this file as `weights`",
        )


def _validate(value: Any, info: ValidationInfo) -> Any:
    """Text becomes a Reference; one that was dumped before passes as it is."""
    if not isinstance(value, str):
        return value
    context = info.context or {}
    base = value.base if isinstance(value, Typed) else context.get("base", Path.cwd())
    try:
        return parse(value, base)
    except UsageError as error:
        raise ValueError(str(error)) from error


ModelReference = Annotated[
    Reference,
    BeforeValidator(_validate),
    WithJsonSchema(
        {
            "type": "string",
            "description": "a model of kdpipe, timm:NAME, path/to/module.py:function, or "
            "path/to/teacher.onnx",
        }
    ),
]

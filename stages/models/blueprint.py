"""A network as data: all that it takes to build it again; `source.py` reads it from a config."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from kdpipe.stages.models import family_of
from kdpipe.stages.models.family import Argument, Arguments
from kdpipe.stages.models.graft import Graft
from kdpipe.stages.models.reference import Kind, Reference, parse
from kdpipe.targets.errors import DataError, UsageError

if TYPE_CHECKING:
    from torch import nn

_FILE = "blueprint.json"
_COPIES = "model_files"


@dataclass(frozen=True)
class Blueprint:
    """All that it takes to build a network again, weights apart.

    `model`: as in a config. `shape`: C, H, W of one input. `sha256`: of the user's file, "" for a
    name; for an ONNX file with external data, of the file and then its data in order of name.
    `graft`: the head of another network that it got, with the projector before it. `substitute`:
    activations of its own that were replaced, by what (`substitute.py`).
    """

    model: str
    arguments: Arguments
    shape: tuple[int, int, int]
    classes: int
    sha256: str = ""
    graft: Graft | None = None
    substitute: Mapping[str, str] = field(default_factory=dict)

    @property
    def in_channels(self) -> int:
        """Number of input channels, C."""
        return self.shape[0]

    @property
    def onnx(self) -> Path | None:
        """The ONNX file, where the network is one."""
        reference = self._reference()
        return reference.file if reference.kind == "onnx" else None

    @property
    def taps(self) -> Mapping[str, str]:
        """{role: module path} that the zoo declares; {} for other networks, see `taps_of`.

        With a graft the last stage includes the projector.
        """
        reference = self._reference()
        if reference.kind != "zoo":
            return {}
        family = family_of(reference.name)
        return family.taps_of(reference.name, family.arguments(reference.name, self.arguments))

    def taps_of(self, model: nn.Module) -> Mapping[str, str]:
        """{role: module path} of `model`, which `build` made: declared by its family, or found.

        {} for an ONNX file, inside which there is nothing to tap.
        """
        if declared := self.taps:
            return declared
        from kdpipe.stages.models.roles import roles

        return roles(model, self.shape)

    def build(self, *, pretrained: bool = True) -> nn.Module:
        """The network with fresh weights, drawn from torch's global generator.

        `pretrained=False` overrules timm's argument of that name, for a network whose stored
        weights are loaded next: nothing needs to be downloaded for it.
        Raises DataError when the user's file changed since the blueprint was drawn, UsageError
        when it does not give a network for this shape and number of classes, or has no activation
        that is to be replaced.
        """
        reference = self._reference()
        found = content_digest(reference)
        if found != self.sha256:
            raise DataError(
                "the model's file is not the one that this result was made with",
                found=f"{reference.file}: sha256 {found}, expected {self.sha256}",
                fix="run kdpipe again, or restore the file",
            )
        plan = self if pretrained else self._bare()
        model = _BUILDERS[reference.kind](reference, plan)
        if self.substitute:
            from kdpipe.stages.models.substitute import substitute

            substitute(model, self.substitute)
        if self.graft:
            self.graft.onto(model)
        if reference.kind != "zoo":
            _check_output(model, self)
        return model

    def builds_same(self, other: Blueprint) -> bool:
        """Whether both build one architecture, wherever the user's file lies by now."""
        names = (self._reference().name, other._reference().name)
        mine = (self.arguments, self.sha256, self.graft, self.substitute)
        same = mine == (other.arguments, other.sha256, other.graft, other.substitute)
        return same and names[0] == names[1]

    def shrink(self, depth: float, width: float) -> Blueprint:
        """A smaller sibling of a zoo network, without its graft; UsageError for other models."""
        reference = self._reference()
        if reference.kind != "zoo":
            raise UsageError(
                "only models of kdpipe's own zoo can be shrunk",
                found=self.model,
                fix="name the student instead, e.g. `student: {model: resnet8}`",
            )
        family = family_of(reference.name)
        name, arguments = family.shrink(reference.name, self.arguments, depth, width)
        return Blueprint(name, arguments, self.shape, self.classes)

    def to_json(self) -> str:
        """One JSON object; `from_json` reads it."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`."""
        values: dict[str, Any] = json.loads(text)
        channels, height, width = values["shape"]
        graft = Graft(**values["graft"]) if values.get("graft") else None
        return cls(**{**values, "shape": (channels, height, width), "graft": graft})

    def save(self, folder: Path) -> None:
        """Write `blueprint.json` into `folder`, and copies of the user's files beside it.

        Stored results must not break when the user's folder moves.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _FILE).write_text(self._stored(folder).to_json(), "utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote; the user's files are taken from `folder`."""
        stored = cls.from_json((folder / _FILE).read_text("utf-8"))
        if not stored.sha256:
            return stored
        return replace(stored, model=str(folder.absolute() / stored.model))

    def _stored(self, folder: Path) -> Blueprint:
        """This blueprint with its user files copied under `folder`, named relative to it."""
        reference = self._reference()
        if reference.file is None:
            return self
        home = reference.file.parent
        for path in reference.files.values():
            copy = folder / _COPIES / path.relative_to(home)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        copied = replace(reference, file=Path(_COPIES, reference.file.name))
        return replace(self, model=str(copied))

    def _bare(self) -> Blueprint:
        if self._reference().kind != "timm":
            return self
        return replace(self, arguments={**self.arguments, "pretrained": False})

    def _reference(self) -> Reference:
        return parse(self.model, Path.cwd())


def check_arguments(reference: Reference, given: Arguments) -> dict[str, Argument]:
    """Complete and check the arguments as far as that needs no torch and no user code."""
    if reference.kind == "zoo":
        return family_of(reference.name).arguments(reference.name, given)
    unknown = [key for key in given if key != "output"]
    if reference.kind == "onnx" and unknown:
        raise UsageError(
            f"an ONNX file has no argument '{unknown[0]}'",
            fix="only `output` may be given, the name of the output that holds the logits",
        )
    return dict(given)


def content_digest(reference: Reference) -> str:
    """sha256 over the bytes of the user's files in order; "" when there are none."""
    if reference.file is None:
        return ""
    digest = hashlib.sha256()
    for path in reference.files.values():
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _zoo(reference: Reference, plan: Blueprint) -> nn.Module:
    family = family_of(reference.name)
    arguments = family.arguments(reference.name, plan.arguments)
    family.check_size(reference.name, arguments, *plan.shape[1:])
    return family.build(reference.name, arguments, plan.in_channels, plan.classes)


def _timm(reference: Reference, plan: Blueprint) -> nn.Module:
    from kdpipe.stages.models import timm

    return timm.build(reference.name, plan.arguments, plan.in_channels, plan.classes)


def _module(reference: Reference, plan: Blueprint) -> nn.Module:
    from kdpipe.stages.models import user

    assert reference.file is not None
    return user.build(
        reference.file, reference.name, plan.arguments, plan.in_channels, plan.classes
    )


def _onnx(reference: Reference, plan: Blueprint) -> nn.Module:
    from kdpipe.stages.models.blackbox import BlackBox

    assert reference.file is not None
    return BlackBox(reference.file, str(plan.arguments.get("output", "")))


_BUILDERS: Mapping[Kind, Callable[[Reference, Blueprint], nn.Module]] = {
    "zoo": _zoo,
    "timm": _timm,
    "module": _module,
    "onnx": _onnx,
}


def _check_output(model: nn.Module, plan: Blueprint) -> None:
    """UsageError unless the model maps (2, C, H, W) to logits (2, classes) or a map of them.

    The map may be smaller than the input, as those of most segmentation networks are.
    """
    from torch import Tensor

    from kdpipe.stages.models.dry_run import dry_run

    fed, wanted = (2, *plan.shape), (2, plan.classes)
    try:
        output = dry_run(model, plan.shape)
    except Exception as error:  # someone else's network may raise anything
        raise UsageError(
            f"model '{plan.model}' cannot take an input of shape {fed}",
            found=f"{type(error).__name__}: {error}",
            fix="correct `arguments`, or the image size and channels of `data`",
        ) from error
    shape = tuple(output.shape) if isinstance(output, Tensor) else None
    if shape is None or shape[:2] != wanted or len(shape) not in (2, 4):
        raise UsageError(
            f"model '{plan.model}' must return a tensor of shape {wanted} for {fed},"
            f" or (2, {plan.classes}, h, w) where every pixel has a class",
            found=f"shape {shape}" if shape else type(output).__name__,
            fix="give it the number of classes through `arguments`, and return logits alone",
        )

"""An ONNX file as a teacher: right logits for every batch, and files that are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdpipe.stages.models import onnx_file
from kdpipe.stages.models.blackbox import BlackBox
from kdpipe.stages.models.source import ModelSettings
from kdpipe.targets.errors import DataError, UsageError

Writer = Callable[..., Path]
WEIGHT = torch.arange(15.0).reshape(5, 3) / 7


@pytest.mark.parametrize("batch", ["batch", 1, 4])
@pytest.mark.parametrize("count", [1, 4, 6])
def test_logits_for_any_number_of_samples(teacher: Writer, batch: int | str, count: int) -> None:
    """A free batch, and batches of 1 and 4 compiled in, give the same logits in order."""
    x = torch.randn(count, 3, 8, 8).to(memory_format=torch.channels_last)
    with torch.no_grad():
        logits = BlackBox(teacher(batch))(x)

    torch.testing.assert_close(logits, x.mean((2, 3)) @ WEIGHT.T)


def test_it_is_frozen_and_opaque(teacher: Writer) -> None:
    """No parameters, no gradients even where the input has them, nothing inside to tap."""
    model = BlackBox(teacher())
    logits = model.train()(torch.randn(2, 3, 8, 8, requires_grad=True))

    assert list(model.parameters()) == []
    assert model.state_dict() == {}
    assert not logits.requires_grad
    assert [path for path, _ in model.named_modules()] == [""]


def test_settings_and_blueprint_lead_to_it(teacher: Writer) -> None:
    """`model: teacher.onnx` builds, has no taps and cannot be trained or shrunk."""
    settings = ModelSettings(model=str(teacher()))
    blueprint = settings.blueprint((3, 8, 8), 5)
    model = blueprint.build()

    assert isinstance(model, BlackBox)
    assert blueprint.taps_of(model) == {}
    assert blueprint.onnx == settings.model.file
    assert not settings.model.trainable
    with pytest.raises(UsageError, match="can be shrunk"):
        blueprint.shrink(0.5, 0.5)


@pytest.mark.parametrize(("shape", "classes"), [((1, 8, 8), 5), ((3, 16, 16), 5), ((3, 8, 8), 4)])
def test_a_teacher_for_other_data_is_refused(
    teacher: Writer, shape: tuple[int, int, int], classes: int
) -> None:
    """Channels, image size and classes must be those of the data."""
    with pytest.raises(UsageError, match=r"cannot take an input|must return a tensor"):
        ModelSettings(model=str(teacher())).blueprint(shape, classes).build()


def test_probabilities_are_refused(teacher: Writer) -> None:
    """An output behind a Softmax is not logits."""
    with pytest.raises(UsageError, match="probabilities"):
        BlackBox(teacher(softmax=True))


def test_one_of_several_outputs_must_be_named(teacher: Writer) -> None:
    """kdpipe does not guess which output the logits are."""
    path = teacher(extra_output=True)
    with pytest.raises(UsageError, match="which output"):
        BlackBox(path)
    with pytest.raises(UsageError, match="no output 'logit'"):
        BlackBox(path, "logit")

    assert tuple(BlackBox(path, "logits")(torch.zeros(2, 3, 8, 8)).shape) == (2, 5)


def test_external_data_in_its_folder_is_part_of_the_model(teacher: Writer) -> None:
    """The data file is found, read, and named to the cache."""
    path = teacher(location="sub/weights.bin")
    settings = ModelSettings(model=str(path))
    data = path.parent / "sub/weights.bin"
    x = torch.randn(2, 3, 8, 8)

    assert {"model.file": path, "model.data.0": data} == dict(settings.files())
    torch.testing.assert_close(BlackBox(path)(x), x.mean((2, 3)) @ WEIGHT.T)


def test_stored_blueprints_bring_external_data_along(teacher: Writer, tmp_path: Path) -> None:
    """A stored teacher works when the user's folder is gone."""
    path = teacher(location="sub/weights.bin")
    blueprint = ModelSettings(model=str(path)).blueprint((3, 8, 8), 5)
    blueprint.save(tmp_path / "stored")
    path.parent.rename(tmp_path / "moved")
    x = torch.randn(2, 3, 8, 8)
    model = type(blueprint).load(tmp_path / "stored").build()

    torch.testing.assert_close(model(x), x.mean((2, 3)) @ WEIGHT.T)


def test_external_data_outside_its_folder_is_refused(teacher: Writer) -> None:
    """Neither a relative nor an absolute path may lead out of the model's folder."""
    path = teacher(location="../secret.bin")
    for check in (onnx_file.external_data, onnx_file.check, BlackBox):
        with pytest.raises(DataError, match="outside its folder"):
            check(path)


def test_absolute_external_data_is_refused(teacher: Writer, tmp_path: Path) -> None:
    """An absolute location is outside, wherever it points."""
    with pytest.raises(DataError, match="outside its folder"):
        BlackBox(teacher(location=str(tmp_path / "secret.bin")))


@pytest.mark.parametrize("parent", [False, True])
def test_linked_external_data_is_refused(teacher: Writer, tmp_path: Path, parent: bool) -> None:
    """A link inside the folder may lead out of it, as a file or as a folder."""
    path = teacher(location="sub/weights.bin")
    link = path.parent / "sub" if parent else path.parent / "sub/weights.bin"
    link.rename(tmp_path / "elsewhere")
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"outside its folder|is a link"):
        BlackBox(path)


def test_missing_external_data_is_refused(teacher: Writer) -> None:
    """The file that went missing is named."""
    path = teacher(location="weights.bin")
    (path.parent / "weights.bin").unlink()
    with pytest.raises(DataError, match=r"weights\.bin"):
        BlackBox(path)


@pytest.mark.parametrize("content", [b"", b"no protobuf"])
def test_other_files_are_refused_when_the_config_is_read(tmp_path: Path, content: bytes) -> None:
    """A file that only is called .onnx."""
    path = tmp_path / "teacher.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="ONNX"):
        ModelSettings(model=str(path))


def test_unknown_arguments_are_refused(teacher: Writer) -> None:
    """Only `output` means something for an ONNX file."""
    with pytest.raises(ValueError, match="has no argument 'width'"):
        ModelSettings(model=str(teacher()), arguments={"width": 2})

"""What every target promises, asked of each of them; a new target needs no new test here."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from kdpipe.targets import TARGETS
from kdpipe.targets.base import Target
from kdpipe.targets.digest import digest
from kdpipe.targets.errors import StageError
from kdpipe.targets.onnxruntime import OnnxRuntime
from kdpipe.targets.openvino import OpenVino

VARIANTS = [
    *(target.model_validate({}) for target in TARGETS),
    OnnxRuntime(ahead_of_time=True),
    OpenVino(batch=None),
    OpenVino(batch=3),
]
INT8_STEPS = 3 * 0.0035  # steps of the output's int8 grid: runtimes round differently on the way

Int8 = Callable[[str], Path]


def title(target: Target) -> str:
    """Example: `openvino batch=3`."""
    settings = (f"{name}={getattr(target, name)}" for name in sorted(target.model_fields_set))
    return " ".join([target.name, *settings])


@pytest.fixture(params=VARIANTS, ids=title)
def target(request: pytest.FixtureRequest) -> Target:
    """Each target that can run on this machine."""
    target: Target = request.param
    missing = target.missing()
    if missing:
        pytest.skip(f"{target.name}: {missing.reason}; {missing.fix}")
    return target


@pytest.fixture
def batch(target: Target, fp32: Path, tmp_path: Path) -> int:
    """A batch size that the target takes."""
    (tmp_path / "probe").mkdir()
    with target.open(target.compile(fp32, tmp_path / "probe")) as session:
        return session.batch or 2


def compiled(target: Target, onnx: Path, folder: Path) -> Path:
    folder.mkdir()
    return target.compile(onnx, folder)


def expected(onnx: Path, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    (output,) = ReferenceEvaluator(str(onnx)).run(None, {"input": batch})
    return output


@pytest.mark.parametrize("target_class", TARGETS)
def test_missing_says_why_and_what_to_do(target_class: type[Target]) -> None:
    """A target that cannot run here gives a reason and a fix; one that can gives neither."""
    target = target_class.model_validate({})
    missing = target.missing()

    if missing is None:
        assert target.broken() is None
    else:
        assert missing.reason
        assert missing.fix


@pytest.mark.parametrize("target_class", TARGETS)
def test_name_is_the_yaml_name(target_class: type[Target]) -> None:
    """A target is made by its name alone, and by no other name."""
    name = target_class.model_fields["name"].default

    assert target_class.model_validate({"name": name}) == target_class.model_validate({})
    with pytest.raises(ValueError, match="name"):
        target_class.model_validate({"name": "another"})


def test_fp32_equals_the_reference(
    target: Target, fp32: Path, tmp_path: Path, samples: NDArray[np.float32], batch: int
) -> None:
    """The fp32 artifact computes what ONNX's own reference implementation computes."""
    artifact = compiled(target, fp32, tmp_path / "out")

    with target.open(artifact) as session:
        results = session.run({"input": samples[:batch]})

    assert list(results) == ["output"]
    np.testing.assert_allclose(results["output"], expected(fp32, samples[:batch]), atol=1e-4)


def test_int8_is_close_to_the_reference(
    target: Target, int8: Int8, tmp_path: Path, samples: NDArray[np.float32], batch: int
) -> None:
    """The int8 artifact is within a few quantization steps of the reference implementation."""
    onnx = int8(target.flavour)
    artifact = compiled(target, onnx, tmp_path / "out")

    with target.open(artifact) as session:
        output = session.run({"input": samples[:batch]})["output"]

    np.testing.assert_allclose(output, expected(onnx, samples[:batch]), atol=INT8_STEPS)


def test_specs_describe_the_model(target: Target, fp32: Path, tmp_path: Path) -> None:
    """Inputs and outputs carry the ONNX names, numpy types and shapes, the batch first."""
    with target.open(compiled(target, fp32, tmp_path / "out")) as session:
        (taken,), (given,) = session.inputs, session.outputs

        assert (taken.name, taken.dtype, taken.shape[1:]) == ("input", "float32", (3, 16, 16))
        assert (given.name, given.dtype, given.shape[1:]) == ("output", "float32", (5,))
        assert taken.shape[0] == given.shape[0] == session.batch


def test_batch_is_what_the_session_says(
    target: Target, fp32: Path, tmp_path: Path, samples: NDArray[np.float32]
) -> None:
    """A free batch takes any size; a fixed one takes its own and refuses others."""
    with target.open(compiled(target, fp32, tmp_path / "out")) as session:
        for size in (1, 2, 3, 5):
            if session.batch in (None, size):
                output = session.run({"input": samples[:size]})["output"]
                np.testing.assert_allclose(output, expected(fp32, samples[:size]), atol=1e-4)
            else:
                with pytest.raises(StageError, match="input 'input' takes float32"):
                    session.run({"input": samples[:size]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {"input": x.astype(np.float64)}, "found: float64"),
        (lambda x: {"input": x[:, :, :8]}, "found: float32"),
        (lambda x: {"image": x}, "found: nothing"),
        (lambda x: {"input": x, "more": x}, "no input 'more'"),
    ],
    ids=["type", "shape", "name", "extra"],
)
def test_feeds_that_do_not_fit_are_refused(
    target: Target,
    fp32: Path,
    tmp_path: Path,
    samples: NDArray[np.float32],
    batch: int,
    change: Callable[[NDArray[np.float32]], dict[str, NDArray[np.generic]]],
    message: str,
) -> None:
    """Wrong types, shapes and names are errors; nothing is cast or reshaped in silence."""
    with (
        target.open(compiled(target, fp32, tmp_path / "out")) as session,
        pytest.raises(StageError, match=message),
    ):
        session.run(change(samples[:batch]))


def test_layout_in_memory_does_not_matter(
    target: Target, fp32: Path, tmp_path: Path, samples: NDArray[np.float32], batch: int
) -> None:
    """A strided, read-only view gives the same result as its contiguous copy."""
    view = samples[:batch, :, ::-1]
    view.flags.writeable = False

    with target.open(compiled(target, fp32, tmp_path / "out")) as session:
        of_view = session.run({"input": view})["output"]
        of_copy = session.run({"input": np.ascontiguousarray(view)})["output"]

    np.testing.assert_array_equal(of_view, of_copy)


def test_results_are_the_callers(
    target: Target, fp32: Path, tmp_path: Path, samples: NDArray[np.float32], batch: int
) -> None:
    """A second run repeats bit for bit, and a run on other data leaves earlier results alone."""
    with target.open(compiled(target, fp32, tmp_path / "out")) as session:
        first = session.run({"input": samples[:batch]})["output"]
        kept = first.copy()
        again = session.run({"input": samples[:batch]})["output"]
        session.run({"input": samples[batch : 2 * batch]})

    np.testing.assert_array_equal(again, kept)
    np.testing.assert_array_equal(first, kept)


def test_threads_may_share_a_session(
    target: Target, fp32: Path, tmp_path: Path, samples: NDArray[np.float32], batch: int
) -> None:
    """Four callers at once, each on data of its own, get their own results."""
    feeds = [{"input": samples[start : start + batch]} for start in range(4)]

    with target.open(compiled(target, fp32, tmp_path / "out")) as session:
        alone = [session.run(feed)["output"] for feed in feeds]
        with ThreadPoolExecutor(4) as callers:
            together = list(callers.map(session.run, feeds * 50))

    for number, found in enumerate(together):
        np.testing.assert_array_equal(found["output"], alone[number % 4])


def test_inputs_are_left_alone(
    target: Target, int8: Int8, tmp_path: Path, samples: NDArray[np.float32], batch: int
) -> None:
    """Running does not write into the arrays that it was given."""
    given = samples[:batch].copy()

    with target.open(compiled(target, int8(target.flavour), tmp_path / "out")) as session:
        session.run({"input": given})

    np.testing.assert_array_equal(given, samples[:batch])


def test_closed_session_does_not_run(
    target: Target, fp32: Path, tmp_path: Path, samples: NDArray[np.float32], batch: int
) -> None:
    """After close, which may be called twice, running is an error."""
    session = target.open(compiled(target, fp32, tmp_path / "out"))
    session.close()
    session.close()

    with pytest.raises(StageError, match="closed"):
        session.run({"input": samples[:batch]})


def test_compiling_twice_gives_the_same_bytes(target: Target, int8: Int8, tmp_path: Path) -> None:
    """The digest of an artifact depends on the ONNX file and on nothing else."""
    if not target.reproducible:
        pytest.skip(f"{target.name} says that it is not reproducible")
    onnx = int8(target.flavour)
    elsewhere = tmp_path / "another name.onnx"
    shutil.copyfile(onnx, elsewhere)

    first = compiled(target, onnx, tmp_path / "first")
    second = compiled(target, elsewhere, tmp_path / "second")

    assert digest(first) == digest(second)


def test_artifact_can_be_moved(
    target: Target, int8: Int8, tmp_path: Path, samples: NDArray[np.float32], batch: int
) -> None:
    """An artifact works from another folder, with the first one gone, and is not changed by it."""
    artifact = compiled(target, int8(target.flavour), tmp_path / "made")
    before = digest(artifact)
    with target.open(artifact) as session:
        here = session.run({"input": samples[:batch]})["output"]
    moved = tmp_path / "moved" / artifact.name
    moved.parent.mkdir()
    shutil.move(artifact, moved)
    shutil.rmtree(tmp_path / "made", ignore_errors=True)

    with target.open(moved) as session:
        there = session.run({"input": samples[:batch]})["output"]

    np.testing.assert_array_equal(here, there)
    assert digest(moved) == before


def test_artifact_stays_in_its_folder(target: Target, fp32: Path, tmp_path: Path) -> None:
    """The artifact is the folder given to compile, or the one file in it."""
    artifact = compiled(target, fp32, tmp_path / "out")

    assert artifact == tmp_path / "out" or [artifact] == list((tmp_path / "out").iterdir())
    assert [tmp_path / "out"] == list(tmp_path.iterdir())


def test_audit_of_fp32_finds_no_int8(target: Target, fp32: Path, tmp_path: Path) -> None:
    """Both convolutions and the linear layer of the fp32 file are named as float kernels."""
    audit = target.audit(compiled(target, fp32, tmp_path / "out"))

    assert audit.int8_fraction == 0.0
    assert len(audit.float_kernels) == 3
    assert sum(audit.kernels.values()) >= 3


def test_audit_of_int8_finds_only_int8(target: Target, int8: Int8, tmp_path: Path) -> None:
    """Every compute kernel of the int8 file really runs in int8."""
    audit = target.audit(compiled(target, int8(target.flavour), tmp_path / "out"))

    assert audit.float_kernels == ()
    assert audit.int8_fraction == 1.0


def test_garbage_is_refused(target: Target, tmp_path: Path) -> None:
    """A file that is no ONNX model is an error that names the file."""
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"\x08\x07not a model" * 50)

    with pytest.raises(StageError, match=r"garbage\.onnx|model\.onnx"):
        compiled(target, garbage, tmp_path / "out")


def test_garbage_artifact_is_refused(target: Target, tmp_path: Path) -> None:
    """A file that is no artifact is an error that names it."""
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"not an artifact")

    with pytest.raises(StageError, match="garbage"):
        target.open(garbage)

"""Every method in a segmentation scheme: it trains there, or it is refused before training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdpipe.stages.distill import METHODS
from kdpipe.stages.distill.dense._maps import labels_at
from kdpipe.stages.distill.graph import Edge, Node
from kdpipe.stages.distill.method import Method, Setup
from kdpipe.stages.distill.response.kd import KD
from kdpipe.stages.distill.scheme import Scheme
from kdpipe.stages.distill.value import value_of
from kdpipe.stages.models.blueprint import Blueprint
from kdpipe.stages.tasks.classification import Classification
from kdpipe.stages.tasks.segmentation import Segmentation
from kdpipe.targets.errors import UsageError

torch.set_num_threads(1)

CLASSES, SIDE = 3, 16
every_method = pytest.mark.parametrize(
    "kind", METHODS, ids=lambda kind: kind.model_fields["kind"].default
)


def unet(width: float, seed: int) -> tuple[Blueprint, nn.Module]:
    blueprint = Blueprint("unet", {"width": width, "depth": 2}, (3, SIDE, SIDE), CLASSES)
    torch.manual_seed(seed)
    return blueprint, blueprint.build()


def batch_of(method: Method, size: int = 4) -> dict[str, Tensor]:
    """Random images and label maps, a quarter of which does not count, and the method's views."""
    rng = torch.Generator().manual_seed(0)
    target = torch.randint(0, CLASSES, (size, SIDE, SIDE), generator=rng)
    target[:, :4] = 255
    batch = {
        "input": torch.randn(size, 3, SIDE, SIDE, generator=rng),
        "target": target.to(torch.uint8),
        "index": torch.arange(size),
    }
    for name in method.views:
        many = 3 * size if name == "rotated" else size
        batch[name] = torch.randn(many, 3, SIDE, SIDE, generator=rng)
    return batch


def scheme_of(method: Method) -> Scheme:
    """A U-Net taught by a wider one, as the offline scheme casts it."""
    (ours, student), (theirs, teacher) = unet(0.125, 1), unet(0.25, 2)
    fitted = method.under(Segmentation())
    fitted.reshape(ours, theirs)
    if method.taught:
        fitted.begin(student, teacher)
    nodes = {
        "student": Node(student, ours.taps_of(student)),
        "teacher": Node(teacher, theirs.taps_of(teacher), "frozen"),
    }
    edge = Edge("student", fitted, of=("teacher",) if method.taught else ())
    return Scheme(nodes, [edge], batch_of(method, 2), samples=4, epochs=10)


@every_method
def test_it_trains_or_is_refused(kind: type[Method]):
    """A finite scalar with a gradient, opponents and memories included, or a UsageError at once."""
    method = kind.model_validate({"kind": kind.model_fields["kind"].default})
    try:
        scheme = scheme_of(method)
    except UsageError:
        assert "dense" not in kind.needs
        return
    batch = batch_of(method)

    loss, _, seen = scheme(batch, 5.0)
    loss.backward()
    scheme.update(batch, seen)

    assert loss.ndim == 0
    assert loss.isfinite()
    grads = [p.grad for p in scheme.nodes["student"].module.parameters() if p.grad is not None]
    assert any(grad.abs().sum() > 0 for grad in grads)
    assert all(grad.isfinite().all() for grad in grads)
    assert scheme.opponents_loss(batch, seen, 5.0).isfinite()
    assert "vectors" not in kind.needs


@every_method
def test_a_config_hears_of_a_contradiction_before_anything_runs(kind: type[Method]):
    """What needs vectors is refused under segmentation, what needs maps under classification."""
    method = kind.model_validate({"kind": kind.model_fields["kind"].default})
    for task, wrong in ((Segmentation(), "vectors"), (Classification(), "dense")):
        if wrong not in kind.needs:
            assert method.under(task).kind == method.kind
            continue
        with pytest.raises(UsageError, match=f"method '{method.kind}' is for logits") as error:
            method.under(task)
        assert error.match(task.kind)


@pytest.mark.parametrize(
    "kind", ["kd", "l2", "hard", "dist", "lskd", "ctkd", "ttm", "wttm", "bkd", "entropy"]
)
def test_on_maps_every_pixel_is_a_sample(kind: str):
    """The term on (B, C, H, W) is that on the same B H W vectors of logits, (B H W, C)."""
    method: Any = METHODS.named(kind)()
    rng = torch.Generator().manual_seed(0)
    shape = (4, CLASSES, 5, 6)
    maps = [torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(3)]
    found = []
    for views in (maps, [z.movedim(1, 3).flatten(0, 2) for z in maps]):
        student, *teachers = views if method.joint else views[:2]
        shapes = tuple((tuple(teacher.shape),) for teacher in teachers)
        torch.manual_seed(0)
        built = method.build(
            Setup((tuple(student.shape),), shapes, CLASSES, 120, 10, nn.Identity())
        )
        state = built.double().eval() if built else None
        found.append(value_of(method, (student,), [(t,) for t in teachers], {}, state).item())

    assert found[0] == pytest.approx(found[1], rel=1e-9)


def masked(**settings: Any) -> list[Method]:
    """The methods that leave out pixels without a label."""
    return [
        kind.model_validate({"kind": kind.model_fields["kind"].default, **settings})
        for kind in METHODS
        if "ignore_index" in kind.model_fields
    ]


def test_methods_take_over_what_the_task_ignores():
    """`task: {ignore_index: 0}` is said once; a method that says otherwise is refused."""
    assert [method.kind for method in masked()] == ["pixel_kd", "ifvd", "cirkd"]
    for ignored in (0, None):
        task = Segmentation(ignore_index=ignored)
        assert all(m.under(task).ignore_index == ignored for m in masked())  # type: ignore[attr-defined]
    for method in masked(ignore_index=7):
        assert method.under(Segmentation(ignore_index=7)) == method
        with pytest.raises(UsageError, match="other pixels than the task"):
            method.under(Segmentation())


@pytest.mark.parametrize("kind", ["pixel_kd", "ifvd"])
@pytest.mark.parametrize("ignored", [0, 255, None])
def test_what_the_task_ignores_has_no_influence(kind: str, ignored: int | None):
    """Labels that say 255 count where nothing is ignored, as they belong to no class, or not."""
    method = METHODS.named(kind)(taps=("logits",)).under(Segmentation(ignore_index=ignored))
    scheme, batch = scheme_of_fitted(method), batch_of(method)
    quiet = batch["target"] == ignored if ignored is not None else torch.zeros(1, dtype=torch.bool)

    def gradient() -> Tensor:
        z = torch.nn.Parameter(scheme.nodes["student"].module(batch["input"]).detach())
        with torch.no_grad():
            z_t = scheme.nodes["teacher"].module(batch["input"])
        state = scheme.states[0]
        value_of(method, (z,), [(z_t,)], batch, state).backward()
        assert z.grad is not None
        return z.grad.abs().sum(dim=1)

    found = gradient()
    assert not found[quiet.expand_as(found)].any()
    assert found[:, 4:].any()


def scheme_of_fitted(method: Method) -> Scheme:
    (_, student), (_, teacher) = unet(0.125, 1), unet(0.25, 2)
    nodes = {"student": Node(student), "teacher": Node(teacher, mode="frozen")}
    return Scheme(nodes, [Edge("student", method, of=("teacher",))], batch_of(method, 2))


class Coarse(nn.Module):
    """Logits at half the resolution, as of a network that ends at a stride of 2."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, CLASSES, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, CLASSES, H/2, W/2)."""
        return self.head(x)


ON_MAPS_OF_LOGITS = [
    kind
    for kind in METHODS
    if kind.taught
    and kind.model_fields["taps"].default == ("logits",)
    and "vectors" not in kind.needs
]


@pytest.mark.parametrize("kind", ON_MAPS_OF_LOGITS)
def test_logits_of_two_resolutions_are_resized_or_refused(kind: type[Method]):
    """A student at half its teacher's resolution: the dense methods resize, none breaks later."""
    method = kind.model_validate({"kind": kind.model_fields["kind"].default})
    nodes = {"student": Node(Coarse()), "teacher": Node(unet(0.125, 2)[1], mode="frozen")}
    edges = [Edge("student", method, of=("teacher",))]
    if not method.resizes:
        with pytest.raises(UsageError, match=r"same positions|shape of the student's"):
            Scheme(nodes, edges, batch_of(method, 2))
        return

    loss = Scheme(nodes, edges, batch_of(method, 2))(batch_of(method), 0.0)[0]

    assert loss.isfinite()


def test_a_specialist_has_no_place_in_segmentation():
    """Which samples it knows is a question about whole images."""
    nodes = {
        "student": Node(unet(0.125, 1)[1]),
        "teacher": Node(unet(0.125, 2)[1], mode="frozen", classes=(0, 1, 2)),
    }
    with pytest.raises(UsageError, match="knows some classes only"):
        Scheme(nodes, [Edge("student", KD(), of=("teacher",))], batch_of(KD(), 2))


def test_a_coarse_map_has_the_labels_of_its_middles():
    """A feature at a stride of 3 stands for 3x3 pixels, and has the label of the one in between."""
    labels = torch.arange(36).view(1, 6, 6)

    assert labels_at(labels, torch.Size((2, 2))).tolist() == [[[7, 10], [25, 28]]]
    assert torch.equal(labels_at(labels, labels.shape[1:]), labels)


def test_whoever_reads_labels_says_of_what():
    """A label is a number for an image or for a pixel; a method for both would mix them up."""
    unclear = [
        kind.model_fields["kind"].default
        for kind in METHODS
        if {"labels", "index", "views"} & set(kind.needs)
        and not {"vectors", "dense"} & set(kind.needs)
    ]
    assert unclear == []

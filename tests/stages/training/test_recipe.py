"""What each setting of a recipe does to a real training, and which settings are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from kdpipe.stages.base import Silent, Work
from kdpipe.stages.data import Data, DataInputs
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.distill.graph import Edge, Node
from kdpipe.stages.distill.response.kd import KD
from kdpipe.stages.distill.scheme import Scheme
from kdpipe.stages.recipe import EarlyStopping, Mixing, Recipe
from kdpipe.stages.supervision import supervised
from kdpipe.stages.tasks.classification import Classification
from kdpipe.stages.training import fit, train
from kdpipe.stages.training.batches import Loader
from kdpipe.stages.training.device import Device
from kdpipe.stages.training.optimizer import optimizer_of, schedule_of
from kdpipe.targets.errors import UsageError

torch.set_num_threads(1)

CPU = Device("cpu", bf16=False)
RECIPE = Recipe(epochs=3, batch_size=32, learning_rate=0.05, amp="fp32", warmup_epochs=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """128 training digits of 8x8 pixels."""
    out = tmp_path_factory.mktemp("data")
    settings = {"source": "digits", "max_train": 128, "max_eval": 20}
    Data.model_validate(settings).run(DataInputs(Classification()), Work(out, out, Silent()))
    return Dataset(out)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    stem = (nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(*stem, nn.Flatten(), nn.Linear(72, 10))


def trained(data: Dataset, path: Path, **changes: Any) -> tuple[nn.Module, list[float]]:
    """A network trained on labels with the changed recipe, and its losses."""
    recipe, net = Recipe(**{**RECIPE.model_dump(exclude_unset=True), **changes}), network()
    nodes, edges = {"net": Node(net)}, [Edge("net", supervised(recipe, data))]
    facts = train(nodes, edges, recipe, data, path / "checkpoint.pt", Silent())
    return net, facts["losses"]


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def rates(recipe: Recipe, steps: int) -> list[float]:
    factor = schedule_of(recipe, steps)
    return [factor(step) for step in range(recipe.epochs * steps)]


def recipe_of(**settings: Any) -> Recipe:
    return Recipe(**{"epochs": 10, "warmup_epochs": 0, **settings})


def test_linear_poly_and_constant_schedules():
    """Half way: 1/2, (1/2)^0.9 and 1; the first step is always at the peak."""
    found = {name: rates(recipe_of(schedule=name), 4) for name in ("linear", "poly", "constant")}

    assert {name: factors[0] for name, factors in found.items()} == dict.fromkeys(found, 1.0)
    assert found["linear"][20] == pytest.approx(0.5)
    assert found["poly"][20] == pytest.approx(0.5**0.9)
    assert set(found["constant"]) == {1.0}


def test_steps_decay_at_their_milestones():
    """0.2 after epoch 3, and once more after epoch 6; milestones count from the first epoch."""
    factors = rates(recipe_of(schedule="steps", milestones=[3, 6], decay=0.2), 2)

    assert factors[:6] == [1.0] * 6
    assert factors[6:12] == pytest.approx([0.2] * 6)
    assert factors[12:] == pytest.approx([0.04] * 8)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"milestones": [3]}, "`milestones` does nothing under schedule cosine"),
        ({"schedule": "steps"}, "needs `milestones`"),
        ({"optimizer": "adamw", "momentum": 0.8}, "does nothing under optimizer adamw"),
        ({"warmup_epochs": 11}, "must not exceed the 10"),
        ({"class_weights": [1.0, 0.0]}, "greater than 0"),
    ],
)
def test_settings_without_effect_are_refused(settings: Mapping[str, Any], words: str):
    """Nothing that the user gave is ignored."""
    with pytest.raises(ValidationError, match=words):
        recipe_of(**settings)


def test_rmsprop_and_momentum_reach_the_optimizer():
    """The optimizer has the recipe's numbers; SGD without momentum is not Nesterov."""
    parameters = list(network().parameters())

    rms = optimizer_of(parameters, Recipe(optimizer="rmsprop", momentum=0.8))
    plain = optimizer_of(parameters, Recipe(momentum=0.0))

    assert isinstance(rms, torch.optim.RMSprop)
    assert {group["momentum"] for group in rms.param_groups} == {0.8}
    assert {group["nesterov"] for group in plain.param_groups} == {False}


def test_clipping_bounds_a_step(data: Dataset, tmp_path: Path):
    """One step of plain SGD moves all weights together by at most rate x clip_norm."""
    one = {"epochs": 1, "batch_size": 128, "momentum": 0.0, "weight_decay": 0.0}
    one["schedule"] = "constant"
    (tmp_path / "free").mkdir()
    start = weights(network())

    bound = weights(trained(data, tmp_path, **one, clip_norm=0.01)[0])
    free = weights(trained(data, tmp_path / "free", **one)[0])

    assert (bound - start).norm().item() == pytest.approx(0.05 * 0.01, rel=1e-3)
    assert (free - start).norm().item() > 10 * 0.05 * 0.01


def test_class_weights_weigh(data: Dataset):
    """`balanced` is N / (C n_c); the loss is the weighted mean of each sample's own."""
    term = supervised(RECIPE.model_copy(update={"class_weights": "balanced"}), data)
    counts = np.bincount(data.train.labels, minlength=10)
    logits, labels = torch.randn(6, 10), torch.tensor([0, 1, 1, 4, 9, 9])

    found = term.loss((logits,), (), {"target": labels}, None)

    assert term.class_weights == pytest.approx(128 / (10 * counts))
    w = torch.tensor(term.class_weights)[labels]
    each = F.cross_entropy(logits, labels, reduction="none")
    assert found.item() == pytest.approx(((w * each).sum() / w.sum()).item(), rel=1e-5)


def test_a_wrong_number_of_class_weights_is_refused(data: Dataset):
    """The message says how many there are, and how many are needed."""
    with pytest.raises(UsageError, match="each of the 10 classes") as error:
        supervised(RECIPE.model_copy(update={"class_weights": (1.0, 2.0)}), data)

    assert error.value.found == "2 weights"


def test_the_average_of_weights_is_the_result(data: Dataset, tmp_path: Path):
    """With a decay that forgets at once the result is the last weights; else it lags behind."""
    for name in ("plain", "quick", "slow"):
        (tmp_path / name).mkdir()

    plain, quick, slow = (
        weights(trained(data, tmp_path / name, **settings)[0])
        for name, settings in {
            "plain": {}, "quick": {"ema": 1e-9}, "slow": {"ema": 0.9},
        }.items()
    )  # fmt: skip

    assert torch.allclose(quick, plain, atol=1e-6)
    assert not torch.allclose(slow, plain, atol=1e-4)


def test_the_average_is_that_of_its_formula(data: Dataset, tmp_path: Path):
    """a <- d a + (1 - d) w with d = min(decay, (1 + n) / (10 + n)), replayed step by step."""
    seen: list[Tensor] = []

    class Watching(Loader):
        def epoch(self, number: int, start: int = 0) -> Any:
            for batch in super().epoch(number, start):
                seen.append(weights(net))
                yield batch
            seen.append(weights(net))

    net, recipe = network(), RECIPE.model_copy(update={"ema": 0.3, "epochs": 1})
    loader = Watching(data.train, 32, 0, CPU)
    scheme = Scheme({"net": Node(net)}, [Edge("net", supervised(recipe, data))], loader.sample())

    fit(scheme, loader, recipe, tmp_path / "checkpoint.pt", Silent())

    mean = seen[0]
    for n, w in enumerate(seen[1:], start=1):
        d = min(0.3, (1 + n) / (10 + n))
        mean = d * mean + (1 - d) * w
    assert torch.allclose(weights(net), mean, atol=1e-6)


def test_mixup_blends_images_and_losses(data: Dataset):
    """The input is lam x + (1 - lam) x', and the loss blends the losses of both labels alike."""
    plain = next(Loader(data.train, 32, 0, CPU).epoch(0))
    mixed = next(Loader(data.train, 32, 0, CPU, mixing=Mixing(mixup=1.0)).epoch(0))
    lam = mixed["mix"].item()
    logits = torch.randn(32, 10)

    partner = (mixed["input"] - lam * plain["input"]) / (1 - lam)
    loss = supervised(RECIPE, data).loss((logits,), (), mixed, None)

    rows = torch.cdist(partner.flatten(1), plain["input"].flatten(1)).argmin(dim=1)
    assert torch.allclose(partner, plain["input"][rows], atol=1e-3)
    assert torch.equal(mixed["mixed_target"], plain["target"][rows])
    both = [F.cross_entropy(logits, mixed[key]) for key in ("target", "mixed_target")]
    assert loss.item() == pytest.approx((lam * both[0] + (1 - lam) * both[1]).item(), rel=1e-5)


def test_cutmix_pastes_a_box_and_tells_its_share(data: Dataset):
    """Every pixel is the image's own or its partner's; `mix` is the share of its own."""
    loader = Loader(data.train, 32, 0, CPU, mixing=Mixing(cutmix=1.0))
    plain = [batch["input"] for batch in Loader(data.train, 32, 0, CPU).epoch(0)]
    shares = []

    for own, mixed in zip(plain, loader.epoch(0), strict=True):
        changed = (mixed["input"] != own).any(dim=(0, 1))
        shares.append(mixed["mix"].item())
        rows, columns = changed.any(dim=1).nonzero(), changed.any(dim=0).nonzero()
        if len(rows):
            box = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
            assert box.item() <= round((1 - shares[-1]) * own[0, 0].numel())

    assert any(share < 1 for share in shares)
    assert all(0 <= share <= 1 for share in shares)


def test_methods_that_need_single_labels_refuse_blends(data: Dataset):
    """KD goes with mixup; a method that needs labels names the recipe's `mixing`."""

    class Labelled(KD):
        needs = ("logits", "labels")

    sample = Loader(data.train, 32, 0, CPU, mixing=Mixing(mixup=0.2)).sample()
    nodes = {"s": Node(network(1)), "t": Node(network(2), mode="frozen")}

    Scheme(nodes, [Edge("s", KD(), of=("t",))], sample)
    with pytest.raises(UsageError, match="and mixing joins two") as error:
        Scheme(nodes, [Edge("s", Labelled(), of=("t",))], sample)

    assert "mixing" in error.value.found


def test_early_stopping_keeps_the_best(data: Dataset, tmp_path: Path):
    """It ends `patience` epochs after the best score and gives the weights of that epoch."""
    notes: list[str] = []

    class Noting(Silent):
        def progress(self, done: int, total: int, note: str = "") -> None:
            notes.append(note)

    stopping = EarlyStopping(patience=2, holdout=0.25)
    recipe = RECIPE.model_copy(update={"early_stopping": stopping, "epochs": 30})
    net = network()
    nodes, edges = {"net": Node(net)}, [Edge("net", supervised(recipe, data))]

    facts = train(nodes, edges, recipe, data, tmp_path / "checkpoint.pt", Noting())

    scores = [float(note.rpartition(" ")[2]) for note in notes]
    best = int(np.argmax(scores))
    assert len(facts["losses"]) == len(scores) == best + 3 < 30
    again = network()
    short = recipe.model_copy(update={"early_stopping": stopping})
    nodes, edges = {"net": Node(again)}, [Edge("net", supervised(recipe, data))]
    train(nodes, edges, short, data, tmp_path / "checkpoint.pt", Silent())
    assert torch.equal(weights(net), weights(again))  # resumed at the end: the same best weights


def test_early_stopping_never_sees_the_eval_split(data: Dataset, tmp_path: Path):
    """What it judges on is a part of train, which the training then does not learn from."""
    from kdpipe.stages.training.train import _parts

    recipe = RECIPE.model_copy(update={"early_stopping": EarlyStopping(holdout=0.25)})

    learn, held = _parts(data, recipe)

    assert held is not None
    assert len(held) == 32
    assert not set(learn.ids) & set(held.ids)
    assert set(learn.ids) | set(held.ids) == set(data.train.ids)
    assert not set(held.ids) & set(data.eval.ids)


def test_judging_between_epochs_leaves_the_network_training(data: Dataset, tmp_path: Path):
    """After early stopping has judged it in eval mode, every later step trains again."""
    modes: list[bool] = []
    net = network()
    net[2].register_forward_hook(lambda module, *_: modes.append(module.training))
    recipe = RECIPE.model_copy(update={"early_stopping": EarlyStopping(patience=5)})
    nodes, edges = {"net": Node(net)}, [Edge("net", supervised(recipe, data))]

    train(nodes, edges, recipe, data, tmp_path / "checkpoint.pt", Silent())

    steps = 115 // 32
    dry, judging = 1, 1
    assert modes == [False] * dry + ([True] * steps + [False] * judging) * 3

"""An unfinished training on disk: all that its next epoch needs, verified before it is used."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kdpipe.stages.base import Observer

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LambdaLR

    from kdpipe.stages.distill.graph import Scheme

_DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Checkpoint:
    """One file: the sha256 of the rest, then the states of networks, optimizer and generators."""

    path: Path
    scheme: Scheme
    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR
    observer: Observer

    def save(self, history: list[float]) -> None:
        """Write beside the old file, make that durable, then replace the old one in one step."""
        content = io.BytesIO()
        torch.save(
            {
                "scheme": self.scheme.learned(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "random": torch.get_rng_state(),
                "random_cuda": torch.cuda.get_rng_state_all(),
                "history": history,
            },
            content,
        )
        draft = self.path.with_suffix(".new")
        with draft.open("wb") as file:
            file.write(hashlib.sha256(content.getbuffer()).digest())
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path)

    def load(self) -> list[float]:
        """Restore everything and return the loss history; [] where there is nothing to restore.

        A damaged file is told and counts as absent: the training starts anew.
        """
        if not self.path.exists():
            return []
        saved = read(self.path)
        if saved is None:
            self.observer.warn(f"the checkpoint {self.path} is damaged: training starts anew")
            return []
        self.scheme.restore(saved["scheme"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scheduler.load_state_dict(saved["scheduler"])
        torch.set_rng_state(saved["random"])
        torch.cuda.set_rng_state_all(saved["random_cuda"])
        history: list[float] = saved["history"]
        return history


def read(path: Path) -> dict[str, Any] | None:
    """What a checkpoint holds, on the CPU, or None when its bytes are not those written."""
    stored = path.read_bytes()
    digest, content = stored[:_DIGEST], stored[_DIGEST:]
    if hashlib.sha256(content).digest() != digest:
        return None
    saved: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    return saved

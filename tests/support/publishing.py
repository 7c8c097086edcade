"""A learner's side of a sync, for a process of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ray
import torch

from actors.weights.publish import Publisher
from hatch_ray.config_sections import WeightsCarrier
from hatch_ray.model.base import load_model


def disturb(model: torch.nn.Module, seed: int) -> None:
    """Move every parameter a little, the same way for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))


class Learning:
    """A model that changes again as soon as it is published, as the learner's does."""

    def __init__(self, folder: Path, board: Any, carrier: WeightsCarrier) -> None:
        self.model = load_model(folder)
        self.publisher = Publisher(board, carrier)

    def publish(self, version: int) -> None:
        """The model moved by the seed `version`. Ends when it has arrived."""
        disturb(self.model, version)
        published = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.publisher.publish(self.model.state_dict().items(), version)
        disturb(self.model, 0)
        self.publisher.wait()
        self.model.load_state_dict(published)

    def process(self) -> int:
        """This process's number."""
        return os.getpid()

    def held(self) -> int:
        """Versions that Ray Direct Transport keeps in this process."""
        return int(ray._private.worker.global_worker.rdt_manager.rdt_store.get_num_objects())

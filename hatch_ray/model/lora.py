"""LoRA adapters on the language model's linear layers, injected in place: all other names stay as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

TARGETS = r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def add_lora(model: nn.Module, rank: int) -> nn.Module:
    """Add float32 adapters of this rank (alpha = 2 rank); only they learn. They start as zero: nothing changes."""
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS), model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def lora_layers(model: nn.Module) -> list[LoraLayer]:
    """The wrapped linear layers."""
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


@contextmanager
def without_lora(model: nn.Module) -> Iterator[None]:
    """Inside the block the model is the one that the adapters were added to."""
    layers = lora_layers(model)
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merged_weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The state dict's pairs, the adapters' products added to their layers in float32, under the model's own names.

    Each is made when it is asked for: nothing holds all of them but who keeps them.
    """
    for name, tensor in model.state_dict().items():
        layer, base, rest = name.partition(".base_layer.")
        if base and rest == "weight":
            yield f"{layer}.weight", tensor.float() + model.get_submodule(layer).get_delta_weight("default")
        elif ".lora_" not in name:
            yield name.replace(".base_layer.", "."), tensor

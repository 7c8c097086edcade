"""The parts of `bench.gpu`, one after the other in one process; each writes FOLDER/<part>.json.

    machine   the device, its best matrix product and copy, and the load
    step      3B: float32 masters, bfloat16 products, recomputation, AdamW; prompt and images once for the group
    naive     the same model with prompt and images again for each reply; the losses of both ways
    kernels   what one forward and backward pass of `step` runs, by kernel, and which attention PyTorch chose
    moved     share of the weights that one AdamW step changes: float32 masters against bfloat16 ones
    lora_7b   7B: bfloat16 weights, float32 adapters
    passes_7b_*   7B: forward and backward pass without an optimizer, whose moments would not fit on one GPU

Load: one group of 8 replies of 256 to 1,024 tokens to a question of 4 images of 1,936 patches each. Tokens a second and
MFU count unique tokens: nothing twice, no recomputation; a pass is 3 forward passes' worth of operations.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.gpu_learner import REAL, SHAPES, TINY, Learner, Load
from bench.learner import GPU_PEAK, forward_products, peak
from bench.measure import in_turn, machine, synchronise
from hatch_ray.run_folder import write_atomic

GB = 1e9
LORA_RANK = 16
RATES = (1e-5, 1e-6)
PEAK_NAME = "HATCH_PEAK_TFLOPS"


class Bench:
    """The device, the load, and the learner that parts share."""

    def __init__(self, tiny: bool) -> None:
        self.tiny, self.load = tiny, TINY if tiny else REAL
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.gpu = self.device.type == "cuda"
        self._small: Learner | None = None

    def shape(self, name: str) -> str:
        return "tiny" if self.tiny else name

    def make(self, name: str, dtype: torch.dtype, lora: int = 0) -> Learner:
        return Learner(self.shape(name), self.load, self.device, dtype, lora)

    def learner(self) -> Learner:
        """The 3B of `step`, `naive` and `kernels`, made once."""
        self._small = self._small or self.make("3B", torch.float32)
        return self._small

    def drop(self) -> None:
        """Free what no later part needs."""
        self._small = None
        self.clean()

    def clean(self) -> None:
        gc.collect()
        if self.gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    @cached_property
    def peak(self) -> float | None:
        """bfloat16 operations a second by the maker, or of HATCH_PEAK_TFLOPS; None: not known. CPU: measured."""
        if PEAK_NAME in os.environ:
            return float(os.environ[PEAK_NAME]) * 1e12
        known = not self.gpu or any(key in torch.cuda.get_device_name() for key in GPU_PEAK)
        return peak(self.device.type) if known else None

    def machine(self) -> dict[str, Any]:
        if not self.gpu and not self.tiny:
            raise ValueError("PyTorch sees no GPU; --tiny runs the same code at a tiny shape on the CPU")
        size = 256 if self.tiny else 8192
        a, b = (torch.randn(size, size, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        source = torch.empty(2**16 if self.tiny else 2**31, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        seconds = in_turn({"product": lambda: a @ b, "copy": lambda: target.copy_(source)}, rounds=5)
        product = 2 * size**3 / seconds["product"]["median"] / 1e12
        copy = 2 * len(source) / seconds["copy"]["median"] / GB
        known = f"{self.peak / 1e12:.3g}" if self.peak else f"not known, so no MFU (set {PEAK_NAME})"
        memory = torch.cuda.get_device_properties(0).total_memory / GB if self.gpu else None
        return {
            "machine": machine(), "memory_gb": memory, "peak": self.peak, "product_tflops": product, "copy_gb_s": copy,
            "speeds": f"bfloat16 TFLOP/s: {known} (MFU's), {product:.3g} in products of {size}; copy {copy:,.0f} GB/s",
            "load": vars(self.load) | {"words": self.load.words},
        }  # fmt: skip

    def speed(
        self, learner: Learner, ways: dict[str, Callable[[], None]], forwards: float | None, rounds: int = 5
    ) -> dict[str, Any]:
        """Median seconds of the ways in turn, and what follows from the first one. forwards: its operations, in
        forward passes."""
        self.clean()
        timed = in_turn(ways, 2 if self.tiny else rounds, enough=20)
        least = next(iter(timed.values()))["median"]
        tokens = len(learner.prompt.token_ids) + learner.scored
        figures: dict[str, Any] = {f"{name}_s": one["median"] for name, one in timed.items()}
        figures |= {"spread": timed, "parameters": learner.parameters, "tokens": tokens, "tokens_per_s": tokens / least}
        if forwards and self.peak:
            work = forwards * forward_products(learner.model, [learner.prompt], [list(map(len, learner.replies))])
            figures["mfu_unique"] = work / least / self.peak
        if self.gpu:
            figures["peak_gb"] = torch.cuda.max_memory_allocated() / GB
        return figures

    def step(self) -> dict[str, Any]:
        learner = self.learner()
        learner.optimize(RATES[0])
        ways = {"step": learner.step, "passes": learner.passes_alone, "encoder": learner.encode}
        return self.speed(learner, ways, 3) | {"counted": self.counted("3B", 4)}

    def naive(self) -> dict[str, Any]:
        learner = self.learner()
        learner.optimizer = None
        old = torch.tensor(-math.log(len(learner.scorer.bias)), device=self.device)
        shared, learner.batches = learner.batches, learner.packed(shared=False)
        learner.scorer.compute = "float32"  # in float32 the ways are equal to rounding
        with torch.no_grad():
            one, each = (sum(float(learner.loss(b, old)) for b in some) for some in (shared, learner.batches))
        learner.scorer.compute = "bfloat16"
        learner.optimize(RATES[0])
        figures = self.speed(learner, {"step": learner.step, "encoder": learner.encode}, 3, rounds=2)
        learner.batches = shared
        trl = "installed; its loss is compared on the CPU by bench.learner" if find_spec("trl") else "not installed"
        return figures | {"loss_packed": one, "loss_naive": each, "trl": trl}

    def kernels(self) -> dict[str, Any]:
        learner = self.learner()
        learner.optimizer = None
        self.clean()
        seconds = in_turn({"passes": learner.passes_alone}, rounds=2)["passes"]["median"]
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.gpu else [])]
        with profile(activities=activities) as profiler:
            learner.passes_alone()
            synchronise()
        return kernel_figures(profiler.key_averages(), self.gpu, seconds)

    def moved(self) -> dict[str, Any]:
        self.drop()
        shares: dict[str, list[float]] = {}
        every = 1 if self.tiny else 16
        for name in ("float32", "bfloat16"):
            learner = self.make("3B", getattr(torch, name))
            learner.passes()
            shares[name] = list(moved_shares(learner, every))
            del learner
            self.clean()
        rows = [{"lr": rate} | {name: shares[name][i] for name in shares} for i, rate in enumerate(RATES)]
        return {"one_in": every, "rows": rows}

    def lora_7b(self) -> dict[str, Any]:
        self.drop()
        learner = self.make("7B", torch.bfloat16, LORA_RANK)
        learner.optimize(RATES[0])
        ways = {"step": learner.step, "passes": learner.passes_alone, "encoder": learner.encode}
        return self.speed(learner, ways, None) | {"rank": LORA_RANK, "counted": self.counted("7B", 2, lora=LORA_RANK)}

    def passes_7b_bfloat16(self) -> dict[str, Any]:
        return self._passes_7b(torch.bfloat16)

    def passes_7b_float32(self) -> dict[str, Any]:
        return self._passes_7b(torch.float32)

    def _passes_7b(self, dtype: torch.dtype) -> dict[str, Any]:
        self.drop()
        learner = self.make("7B", dtype)
        figures = self.speed(learner, {"passes": learner.passes_alone}, 3)
        return figures | {"counted": self.counted("7B", dtype.itemsize, moments=0)}

    def counted(self, name: str, weight: int, lora: int = 0, moments: int = 2) -> dict[str, Any]:
        """What `hatch_ray.model.memory` counts, GB: replies as long as on average, and all as long as the longest."""
        try:
            return dict(counted_gb(SHAPES[self.shape(name)], self.load, weight, lora, moments, self.gpu))
        except ImportError as error:
            return {"failed": f"not counted: {error}"}


def counted_gb(
    config: dict[str, Any], load: Load, weight: int, lora: int, moments: int, gpu: bool
) -> Iterator[tuple[str, float]]:
    """weight: bytes of a weight; moments: AdamW's, for each weight that learns."""
    from hatch_ray.model.activations import Numbers, Row, whole_pass
    from hatch_ray.model.memory import Footprint, Share, pass_moments
    from hatch_ray.model.size import read_shapes

    shapes = read_shapes(config | {"model_type": "qwen2_5_vl"})
    learning, each = (shapes.adapters(lora), 4) if lora else (shapes.parameters, weight)
    held = weight * shapes.parameters + (each * learning if lora else 0) + (1 + moments) * each * learning
    for name, reply in (("least_gb", sum(load.replies) // len(load.replies)), ("most_gb", max(load.replies))):
        row = Row(1, load.prompt, len(load.replies), reply, load.images, (load.side, load.side))
        numbers = Numbers(2, weight, gpu, lora)
        held_by_pass = whole_pass(shapes, row, numbers, True)
        by_moment = pass_moments(shapes, held_by_pass, numbers, True, 1, False, "")
        yield name, Footprint((Share("weights, gradients, moments", held),), by_moment).gb


def moved_shares(learner: Learner, every: int) -> Iterator[float]:
    """For each rate, the share of weights with a gradient (one in `every`) that a first AdamW step changes."""
    for rate in RATES:
        learner.optimize(rate)
        assert learner.optimizer is not None
        sampled = [(p, p.detach().flatten()[::every].clone()) for p in learner.model.parameters()]
        learner.optimizer.step()
        moved = found = 0
        for parameter, before in sampled:
            assert parameter.grad is not None
            learns = parameter.grad.flatten()[::every] != 0
            found += int(learns.sum())
            moved += int(((parameter.detach().flatten()[::every] != before) & learns).sum())
        yield moved / found


GROUPS = {
    "attention": re.compile(r"flash|fmha|attention|sdpa", re.I),
    "products": re.compile(r"gemm|nvjet|cutlass|cublas|wgmma|^aten::(add)?mm$|^aten::bmm$|mkldnn|onednn", re.I),
    "optimizer": re.compile(r"adam|multi_tensor", re.I),
}


def kernel_figures(events: Any, gpu: bool, seconds: float) -> dict[str, Any]:
    """Kernels (on a CPU: operators) by time, their groups, and how often each attention of PyTorch ran."""
    place = DeviceType.CUDA if gpu else DeviceType.CPU
    rows, calls = [], {}
    for event in events:
        if event.device_type == DeviceType.CPU and re.search(r"^aten::_scaled_dot_product", event.key):
            calls[event.key.removeprefix("aten::_scaled_dot_product_")] = event.count
        spent = (event.self_device_time_total if gpu else event.self_cpu_time_total) / 1000
        if event.device_type == place and spent > 0:
            rows.append({"kernel": event.key, "calls": event.count, "ms": spent})
    rows.sort(key=lambda row: -row["ms"])
    groups = dict.fromkeys([*GROUPS, "other"], 0.0)
    for row in rows:
        groups[next((name for name, form in GROUPS.items() if form.search(row["kernel"])), "other")] += row["ms"]
    return {
        "passes_s": seconds, "calls": sum(row["calls"] for row in rows), "attention_calls": calls,
        "busy": sum(groups.values()) / 1000 / seconds, "groups_ms": {k: v for k, v in groups.items() if v},
        "rows": [row for index, row in enumerate(rows) if index < 40 or GROUPS["attention"].search(row["kernel"])],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parts", nargs="+")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    bench = Bench(options.tiny)
    for name in options.parts:
        began = time.perf_counter()
        try:
            figures = getattr(bench, name)()
        except Exception as error:  # noqa: BLE001 - it stands in the results, in the figures' place
            figures = {"failed": f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"}
        figures["seconds"] = round(time.perf_counter() - began, 2)
        write_atomic(options.folder / f"{name}.json", json.dumps(figures))
        if "failed" in figures:  # what memory and device are like now, nobody knows: another process goes on
            raise SystemExit(1)
        bench.clean()


if __name__ == "__main__":
    main()

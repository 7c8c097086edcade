"""`bash bench/gpu.sh` on a CPU at a tiny shape: every figure, and what becomes of parts that fail or take too long."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import pytest
import torch

from bench import gpu, page
from bench.gpu_learner import REAL, SHAPES, Load, make_group, make_model
from bench.gpu_parts import counted_gb, kernel_figures
from bench.shapes import parameters

pytestmark = pytest.mark.rest
PUBLISHED = {"3B": 3_754_622_976, "7B": 8_292_166_656}
"""Parameters of Qwen2.5-VL, from the sizes of its bfloat16 files."""


@pytest.fixture(scope="module")
def found(tmp_path_factory, repository):
    """What the script wrote, and what it printed."""
    out = tmp_path_factory.mktemp("gpu") / "gpu.json"
    done = subprocess.run(
        ["bash", str(repository / "bench" / "gpu.sh"), "--tiny", "--out", str(out)],
        env=os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True,
        timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text(encoding="utf-8")), done.stdout


def numbers(value):
    """Every number in nested dicts and lists."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for part in value for number in numbers(part)]
    return [value] if isinstance(value, int | float) else []


def test_every_part_has_its_figures_and_they_are_finite(found):
    figures, printed = found
    parts = figures["parts"]
    assert list(parts) == list(gpu.BUDGETS)[1:]
    assert not [part for part in parts.values() if "failed" in part]
    assert all(math.isfinite(number) for number in numbers(figures)) and len(numbers(figures)) > 100
    assert figures["machine"]["versions"]["torch"] == torch.__version__ and figures["date"].startswith("20")
    for name, keys in {
        "step": ["step_s", "passes_s", "encoder_s", "mfu_unique"], "naive": ["step_s", "encoder_s", "mfu_unique"],
        "lora_7b": ["step_s", "passes_s"], "passes_7b_bfloat16": ["passes_s", "mfu_unique"],
        "passes_7b_float32": ["passes_s", "mfu_unique"],
    }.items():  # fmt: skip
        assert all(parts[name][key] > 0 for key in [*keys, "tokens_per_s"]), name
        assert parts[name]["tokens"] == 12 + 2 * (1 + 25) + 4 + 7 + 9 + 12
        assert gpu.NAMES[name] in printed
    assert [row["lr"] for row in parts["moved"]["rows"]] == [1e-5, 1e-6]


def test_both_ways_have_the_same_loss(found):
    naive = found[0]["parts"]["naive"]
    assert naive["loss_naive"] == pytest.approx(naive["loss_packed"], rel=1e-4) and abs(naive["loss_packed"]) > 1e-3


def test_small_steps_move_every_float32_master_and_few_of_bfloat16(found):
    coarse, fine = found[0]["parts"]["moved"]["rows"]
    assert min(coarse["float32"], fine["float32"]) > 0.999
    assert 0 < fine["bfloat16"] < 0.05 and fine["bfloat16"] < coarse["bfloat16"] < 0.5


def test_attention_is_told_by_its_kernels(found):
    kernels = found[0]["parts"]["kernels"]
    # One call for the prompt and one for the replies in each layer, forward, again, and backward.
    assert kernels["attention_calls"]["flash_attention_for_cpu_backward"] >= 2 * 2
    assert kernels["groups_ms"]["attention"] > 0 and kernels["groups_ms"]["products"] > 0
    assert "flash_attention_for_cpu" in found[1] and "aten::mm" in found[1]


def test_kernels_of_a_gpu_are_told_from_the_operators_that_start_them():
    class Event:
        def __init__(self, key, device, ms, count=1):
            self.key, self.device_type, self.count = key, device, count
            self.self_device_time_total = self.self_cpu_time_total = ms * 1000

    on, host = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
    events = [
        Event("aten::_scaled_dot_product_flash_attention", host, 7.0, 36), Event("aten::mm", host, 9.0),
        Event("pytorch_flash::flash_fwd_kernel", on, 5.0, 36), Event("nvjet_tst_256x128_64x4", on, 20.0, 200),
        Event("elementwise_kernel", on, 1.0, 400),
    ]  # fmt: skip
    figures = kernel_figures(events, gpu=True, seconds=0.04)
    assert figures["groups_ms"] == {"attention": 5.0, "products": 20.0, "other": 1.0}
    assert figures["attention_calls"] == {"flash_attention": 36} and figures["busy"] == pytest.approx(0.65)
    assert [row["kernel"][:5] for row in figures["rows"]] == ["nvjet", "pytor", "eleme"]


WORKER = """
import pathlib, sys, time
folder, *names = sys.argv[1:]
for name in names:
    if name == "dies":
        time.sleep(0.5)
        raise SystemExit(3)
    if name == "hangs":
        time.sleep(60)
    words = '{"failed": "OutOfMemoryError"}' if name == "fails" else '{"figure": 1}'
    (pathlib.Path(folder) / (name + ".new")).write_text(words)
    (pathlib.Path(folder) / (name + ".new")).rename(pathlib.Path(folder) / (name + ".json"))
    if name == "fails":
        time.sleep(0.2)
        raise SystemExit(1)
"""


def test_a_part_that_fails_hangs_or_dies_costs_the_others_nothing(tmp_path):
    starts = []

    def command(names):
        starts.append(names[0])
        return [sys.executable, "-c", WORKER, str(tmp_path), *names]

    budgets = {"first": 30.0, "fails": 30.0, "second": 30.0, "dies": 30.0, "hangs": 0.5, "third": 30.0}
    found = dict(gpu.follow(budgets, command, tmp_path, limit=60, start_seconds=1))
    assert [found[name] for name in ("first", "second", "third")] == [{"figure": 1}] * 3
    assert found["fails"] == {"failed": "OutOfMemoryError"}
    assert found["dies"] == {"failed": "its process ended with code 3"}
    assert found["hangs"]["failed"].startswith("stopped after ")
    assert starts == ["first", "second", "hangs", "third"]


def test_no_part_begins_when_the_time_is_over(tmp_path):
    found = dict(gpu.follow({"hangs": 30.0, "late": 30.0}, lambda names: [sys.executable, "-c", WORKER, str(tmp_path),
                                                                          *names], tmp_path, limit=1))  # fmt: skip
    assert found["hangs"]["failed"].startswith("stopped after 1 s")
    assert found["late"] == {"failed": "not measured: the 1 s of all parts were over"}


def test_shapes_and_load_are_the_published_ones():
    for shape, count in PUBLISHED.items():
        assert parameters(make_model(shape, torch.device("meta"), torch.float32)) == count
    prompt, replies = make_group("3B", Load(1, 4, 9, (5, 6)))
    assert len(prompt.token_ids) == 9 + 1 + 4 and [len(reply) for reply in replies] == [5, 6]
    assert SHAPES["3B"]["tie_word_embeddings"] and (REAL.replies[0], REAL.replies[-1]) == (256, 1024)
    assert REAL.prompt == 60 + 4 * (1 + 484)


def test_the_count_of_memory_stands_beside_the_peak(found):
    pytest.importorskip("hatch_ray.model.memory")
    for name in ("step", "lora_7b", "passes_7b_bfloat16", "passes_7b_float32"):
        counted = found[0]["parts"][name]["counted"]
        assert 0 < counted["least_gb"] < counted["most_gb"] < 0.1, name
    least, most = dict(counted_gb(SHAPES["3B"], REAL, weight=4, lora=0, moments=2, gpu=True)).values()
    assert 16 * PUBLISHED["3B"] / 1e9 < least < most < 80


def test_the_page_shows_the_figures_and_why_there_are_none(found):
    figures, _ = found
    text = page.one_gpu(figures)
    assert "| 3B, a group in one row |" in text and "4 replies of 4 to 12 tokens" in text
    broken = figures | {"parts": figures["parts"] | {"lora_7b": {"failed": "OutOfMemoryError: too much"}}}
    assert "- lora_7b: OutOfMemoryError: too much" in page.one_gpu(broken) and "7B, LoRA" not in page.one_gpu(broken)

"""The learner at the shapes of Qwen2.5-VL 3B and 7B on one GPU: speed, memory, kernels, rounding. At most 8 minutes.

    bash bench/gpu.sh                     # one GPU of 80 GB or more; torch >= 2.11, transformers >= 5.17; no downloads
    bash bench/gpu.sh --tiny              # the same code at a tiny shape, also without a GPU
    bash bench/gpu.sh --parts step kernels --out FILE

Random weights and one group of replies (`bench.gpu_parts` says what each part measures). All parts run in one process
beside this one, which starts another when a part takes longer than its budget or takes the process with it: what was
measured before stays, and in the part's place stands why it has no figures. This file imports no torch.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hatch_ray.run_folder import write_atomic

RESULT = Path(__file__).parent / "results" / "gpu.json"
BUDGETS = {
    "machine": 40.0, "step": 80.0, "naive": 70.0, "kernels": 80.0, "moved": 60.0, "lora_7b": 60.0,
    "passes_7b_bfloat16": 40.0, "passes_7b_float32": 40.0,
}  # fmt: skip
"""Parts in their order, and the seconds each may take."""
START_SECONDS = 60.0
"""On top for the first part of a process: imports."""
LIMIT = 450.0
"""Seconds of all parts."""


def follow(
    budgets: Mapping[str, float],
    command: Callable[[Sequence[str]], Sequence[str]],
    folder: Path,
    limit: float = LIMIT,
    start_seconds: float = START_SECONDS,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each part with what it wrote to folder/<part>.json, or {"failed": why}.

    command: of a process that works on the parts that are left, one after the other, and ends after one that failed.
    """
    end = time.monotonic() + limit
    process: subprocess.Popen[bytes] | None = None
    names = list(budgets)
    try:
        for index, name in enumerate(names):
            began = time.monotonic()
            if began >= end:
                yield name, {"failed": f"not measured: the {limit:g} s of all parts were over"}
                continue
            until = began + budgets[name]
            if process is None or process.poll() is not None:
                process = subprocess.Popen(command(names[index:]))
                until += start_seconds
            until = min(until, end)
            path = folder / f"{name}.json"
            while not path.exists() and process.poll() is None and time.monotonic() < until:
                time.sleep(0.05)
            if path.exists():
                figures = json.loads(path.read_text(encoding="utf-8"))
            elif process.poll() is not None:
                figures = {"failed": f"its process ended with code {process.returncode}"}
            else:
                figures = {"failed": f"stopped after {time.monotonic() - began:.0f} s: its time was over"}
            if "failed" in figures:
                end_process(process)
            yield name, figures
    finally:
        end_process(process)


def end_process(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None:
        process.kill()
        process.wait()


NAMES = {
    "step": "3B, a group in one row",
    "naive": "3B, a row for each reply",
    "lora_7b": "7B, LoRA",
    "passes_7b_bfloat16": "7B, bfloat16 weights, no optimizer",
    "passes_7b_float32": "7B, float32 weights, no optimizer",
}
SPEED = ("what", "s", "forward + backward, s", "encoder, s", "tokens/s", "MFU", "peak, GB", "counted, GB")


def cell(figures: Mapping[str, Any], key: str, form: str) -> str:
    """A figure, or a dash for one that there is not here."""
    value = figures.get(key)
    return "-" if value is None else format(value, form)


def speed_rows(parts: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Rows under SPEED of the parts that have figures."""
    rows = []
    for part, name in NAMES.items():
        figures = parts.get(part, {"failed": ""})
        if "failed" in figures:
            continue
        counted = figures.get("counted", {})
        between = f"{counted['least_gb']:.1f} to {counted['most_gb']:.1f}" if "least_gb" in counted else "-"
        rows.append([
            name, cell(figures, "step_s", ".3f"), cell(figures, "passes_s", ".3f"), cell(figures, "encoder_s", ".3f"),
            f"{figures['tokens_per_s']:,.0f}", cell(figures, "mfu_unique", ".1%"), cell(figures, "peak_gb", ".1f"),
            between,
        ])  # fmt: skip
    return rows


def remarks(parts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What stands beside the table: ratios, kernels, rounding, and why something has no figures."""
    good = {name: figures for name, figures in parts.items() if "failed" not in figures}
    lines = []
    if "step" in good and "naive" in good:
        ratio = good["naive"]["step_s"] / good["step"]["step_s"]
        lines.append(
            f"One row is {ratio:.2f} times as fast as a row for each reply; losses in float32 "
            f"{good['naive']['loss_packed']:.6f} and {good['naive']['loss_naive']:.6f}. TRL: {good['naive']['trl']}."
        )
    if "kernels" in good:
        kernels = good["kernels"]
        shares = ", ".join(f"{name} {ms:.1f} ms" for name, ms in kernels["groups_ms"].items())
        calls = ", ".join(f"{name} {count}" for name, count in kernels["attention_calls"].items())
        lines.append(
            f"Kernels of a forward and backward pass of {1000 * kernels['passes_s']:.1f} ms, {kernels['calls']} calls, "
            f"{kernels['busy']:.0%} of the time: {shares}. Attention by PyTorch: {calls}."
        )
    if "moved" in good:
        shares = "; ".join(
            f"lr {row['lr']:g}: {row['float32']:.1%} of float32 masters, {row['bfloat16']:.1%} of bfloat16"
            for row in good["moved"]["rows"]
        )
        lines.append(f"Weights with a gradient that one AdamW step moves: {shares}.")
    lines += [f"{name}: {figures['failed']}" for name, figures in parts.items() if "failed" in figures]
    counts = (figures["counted"] for figures in good.values() if "counted" in figures)
    lines += sorted({f"memory: {counted['failed']}" for counted in counts if "failed" in counted})
    return lines


def kernel_lines(parts: Mapping[str, Mapping[str, Any]], most: int = 24) -> list[str]:
    """Kernel, calls, milliseconds, the longest first."""
    rows = parts.get("kernels", {}).get("rows", [])[:most]
    return [f"{row['ms']:10.2f} ms {row['calls']:7d} x  {row['kernel'][:90]}" for row in rows]


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns, figures to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(text.rjust(n) for text, n in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="a tiny shape, on a CPU where there is no GPU")
    parser.add_argument("--parts", nargs="+", choices=list(BUDGETS)[1:], default=list(BUDGETS)[1:])
    parser.add_argument("--out", type=Path, help=f"default: {RESULT} (--tiny: a temporary file)")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds of all parts")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-gpu-"))
    out: Path = options.out or (folder / "tiny.json" if options.tiny else RESULT)
    out.parent.mkdir(parents=True, exist_ok=True)

    def command(names: Sequence[str]) -> list[str]:
        tiny = ["--tiny"] if options.tiny else []
        return [sys.executable, "-W", "ignore", "-m", "bench.gpu_parts", "--folder", str(folder), *tiny, *names]

    found: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": {"tiny": options.tiny, "parts": options.parts},
        "parts": {},
    }
    began = time.monotonic()
    budgets = {name: BUDGETS[name] for name in ["machine", *options.parts]}
    for name, figures in follow(budgets, command, folder, options.limit):
        failed = figures.get("failed")
        print(f"[{time.monotonic() - began:5.0f} s] {name}: {failed or 'measured'}", flush=True)
        if name == "machine":
            if failed:
                raise SystemExit(f"bench/gpu.sh: {failed}")
            found |= figures
        else:
            found["parts"][name] = figures
        write_atomic(out, json.dumps(found, indent=2))
    place = found["machine"]
    versions = ", ".join(f"{package} {version}" for package, version in place["versions"].items())
    print(f"\n{place['gpu'] or place['processor']}; {versions}; {found['speeds']}")
    print(f"{found['load']['words']}{'; a tiny shape in place of 3B and 7B' if options.tiny else ''}\n")
    print(aligned([SPEED, *speed_rows(found["parts"])]))
    print("\n".join(["", *remarks(found["parts"]), "", *kernel_lines(found["parts"]), f"written: {out}"]))


if __name__ == "__main__":
    main()

"""docs/performance.md from bench/results/*.json. Sections without results stand at its end.

python -m bench.page
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import gpu, phases
from bench.measure import RESULTS
from hatch_ray.run_folder import write_atomic

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
HEAD = """\
# Performance

Made by `make bench`, `make bench-serve`, `make bench-start` and `make bench-cluster` from `bench/results/*.json`. Each
section names the command that measures it alone; what is compared is measured in one run of it. A section without a
machine is of the machine above.
"""


LEARNER_TEXT = """\
Completions a second of one update (reference, policy, loss, backward, AdamW) with the largest images measured.
**shared**: prompt and images once for a group; **naive**: once for every completion, by the same code; **trl**: the
loss of TRL's GRPOTrainer. MFU counts unique tokens, against the best large matrix product (GPU: the maker's figure).

"""
PHASES_TEXT = """
Phases of our step (while the learner learns, the driver prepares the next step's images, then waits):

![Phases of a step](images/phases.svg)
"""


def table(headings: list[str], rows: list[list[str]]) -> str:
    """Markdown, figures to the right."""
    lines = ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows), ""])


def machine(found: dict[str, Any]) -> str:
    """One line on what the figures were read on."""
    place = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in place["versions"].items())
    device = place["gpu"] or f"{place['cores']} cores of {place['processor']}"
    return f"On {device}; {versions}.\n"


def learner(found: dict[str, Any]) -> str:
    """Samples a second of an update, by way; the JSON file has the smaller images too."""
    against = [way for way in found["rows"][0]["ways"] if way != "shared"]
    headings = ["model, images", "shared, /s", *(f"shared / {way}" for way in against), "MFU shared"]
    rows, largest = [], max(row["pixels"] for row in found["rows"])
    for row in found["rows"]:
        if row["pixels"] < largest:
            continue
        speed = {way: row["ways"][way]["samples_per_s"] for way in ("shared", *against)}
        rows.append([
            f"{row['parameters'] / 1e6:.0f}M, {row['images']}x{row['pixels']} px", f"{speed['shared']:.1f}",
            *(f"{speed['shared'] / speed[way]:.2f}" for way in against),
            f"{row['ways']['shared']['mfu_unique']:.1%}",
        ])  # fmt: skip
    return LEARNER_TEXT + table(headings, rows)


GPU_TEXT = """\
{load}; random weights. float32 masters (LoRA: bfloat16 weights, float32 adapters), bfloat16 products, activations
computed again, AdamW. *Counted*: by `hatch_ray/model/memory.py`, for replies of the mean and of the greatest length.

"""


def one_gpu(found: dict[str, Any]) -> str:
    """The learner at published shapes; the JSON file has every kernel."""
    lines = "\n".join(f"- {line}" for line in gpu.remarks(found["parts"]))
    return GPU_TEXT.format(load=found["load"]["words"]) + table(
        list(gpu.SPEED), gpu.speed_rows(found["parts"])) + f"\n{found['speeds']}.\n\n{lines}\n"  # fmt: skip


def step(found: dict[str, Any]) -> str:
    """Whole steps against TRL, and their phases."""
    rows = []
    for row in found["rows"]:
        name = f"{row['shape'].upper()}, {row['images']}x{row['pixels']} px"
        ours, other = row["ours"], row.get("trl")
        rows.append([name, f"{ours['seconds']:.2f}", f"{other['seconds']:.2f}" if other else "-",
                     f"{other['seconds'] / ours['seconds']:.2f}" if other else "-"])  # fmt: skip
    headings = ["model, images", "ours, s", "TRL, s", "TRL / ours"]
    return table(headings, rows) + PHASES_TEXT


def growth(found: dict[str, Any]) -> str:
    """Seconds of the base, and exponents of the whole step; the JSON file has those of each phase."""
    load, base = found["command"], found["seconds"]["base"]
    grown = ", ".join(f"{name} {exponents['step']:.2f}" for name, exponents in found["exponents"].items())
    return (
        f"A step of {load['images']} images of {load['pixels']} px, {load['prompts']} prompts, G = {load['group']}, "
        f"R = {load['reply']}, 7 M takes {base['step']:.1f} s without waits:\n"
        f"{', '.join(f'{phase} {seconds:.2f}' for phase, seconds in base.items() if phase != 'step')}. "
        f"Exponents of its growth when one thing doubles\n(1: in proportion): {grown}.\n"
    )


def rollouts(found: dict[str, Any]) -> str:
    """Rollouts against bare vLLM, and a sync by each carrier."""
    measured, sync = found["rollouts"], found["sync"]
    bare, actor = (measured["tokens"][way] / measured["seconds"][way]["median"] for way in ("vllm", "actor"))
    fastest = measured["seconds"]["vllm"]["least"] / measured["seconds"]["actor"]["least"]
    parts = {"copy": "learner waits (copy)", "send": "thread (checksum, carrier)",
             "engine": "engine (fetch, checksum, reload)"}  # fmt: skip
    carriers = list(sync["parts"])
    return (
        f"Tokens a second: {bare:.0f} with vLLM alone (median), {actor:.0f} through the rollout actor, "
        f"{actor / bare:.1%} (fastest rounds: {fastest:.1%}).\n\n"
        + table(
            [f"sync of {sync['bytes'] / 2**20:.1f} MiB, ms", *(f"`{carrier}`" for carrier in carriers)],
            [[words, *(f"{1000 * sync['parts'][carrier][name]:.1f}" for carrier in carriers)]
             for name, words in parts.items()],
        )
    )  # fmt: skip


def verifiers(found: dict[str, Any]) -> str:
    """Overlap and reward."""
    overlap, reward = (found[name]["ms"] for name in ("overlap", "reward"))
    return (
        f"On one core: overlap matrices of two 640 x 480 views, both directions, stride 4: {overlap:.2f} ms;\n"
        f"reward of a completion, 3 views, all terms: {reward:.2f} ms.\n"
    )


def pools(found: dict[str, Any]) -> str:
    """A view pair of wide-baseline matching."""
    return (
        f"On one core: a pair of 640 x 480 RGB-D frames, decoded, matched both ways and thinned: "
        f"{found['seconds_a_pair']:.2f} s, mean of\n{found['pairs']} pairs; {found['bytes_a_pair']} bytes on disk.\n"
    )


def pairs(found: dict[str, Any]) -> str:
    """Viewpoint's rendered pairs."""
    objects, rooms = found["views"], found["data"]
    speeds = [f"{one['pairs_a_second']:.0f}" for one in (objects, rooms)]
    shown = f"{objects['photos']} photos\nfor {objects['pairs']} pairs"
    return (
        f"Pairs of photos, 112 x 112, a second of one core's time: {speeds[0]} around rendered objects ({shown}), "
        f"{speeds[1]} in rooms, where pairs must also overlap.\n"
    )


def serve(found: dict[str, Any]) -> str:
    """The service against its bare engine."""
    command, rows = found["command"], []
    measured = [(f"{shape}, {way}", one) for shape, ways in found["models"].items() for way, one in ways.items()]
    for name, figures in measured:
        times, speeds = figures["milliseconds"], figures["requests_per_s"]
        milliseconds = [f"{times[part]:.1f}" for part in ("bare", "outside")]
        rows.append([name, *milliseconds, f"{speeds['served']:.1f}", f"{figures['share']:.1%}"])
    headings = ["model, ingress", "in a bare engine, ms", "outside engine, ms"]
    headings += ["requests/s", "of bare"]
    return (
        f"Two images a request, {command['tokens']} new tokens. Medians of {command['rounds']} requests one at a time; "
        f"requests a second of {command['clients']} clients.\n\n{table(headings, rows)}"
    )


def serve_load(found: dict[str, Any]) -> str:
    """A long mixed load: statuses, times, memory."""
    statuses = ", ".join(f"{count} x {status}" for status, count in found["statuses"].items())
    times, memory = found["milliseconds"], found["memory_mb"]
    first, last = memory[0], memory[-1]
    grown = ", ".join(f"{name} {first[name]:.0f} to {last[name]:.0f}" for name in first)
    return (
        f"{found['minutes']:g} minutes of {found['clients']} clients, good and bad requests mixed: {statuses} (clients "
        f"that went away).\nMilliseconds of good ones: {times['p50']:.0f} (p50), {times['p95']:.0f} (p95), "
        f"{times['p99']:.0f} (p99).\n"
        f"Memory (PSS) from start to end, MB: {grown}.\n"
    )


SCALING_TEXT = """\
Rewards take ten times as long (actors **sleep**) while one pool works on. **scaled**: the number of actors follows the
queue; **fixed**: it stays. A wait is from the end of sampling to the score.

"""


def scaling(found: dict[str, Any]) -> str:
    """Waits of a pool that may grow and of one that may not, and throughput by actors."""
    rows = []
    names = {"cheap": "fast", "first dear batches": "first slow", "dear": "slow", "cheap again": "fast again"}
    for phase, name in names.items():
        scaled, fixed = found["scaled"][phase], found["fixed"][phase]
        rows.append([name, str(scaled["actors"]), *(f"{row['p95_s']:.2f}" for row in (scaled, fixed))])
    checks = [found[name]["checks"] for name in ("scaled", "fixed")] + [found["throughput_checks"]]
    words = ", ".join(f"{name.replace('_', ' ')} {sum(check[name] for check in checks)}" for name in checks[0])
    few, many = (
        f"{row['scores_per_s']:.1f} with {row['actors']} ({row['of_ideal']:.0%})"
        for row in (found["throughput"][0], found["throughput"][-1])
    )
    return (
        SCALING_TEXT
        + table(["rewards", "actors, scaled", "p95 scaled, s", "p95 fixed, s"], rows)
        + f"\nScores: {words}. Scores a second (share of what the sleeps allow): {few} to {many} actors.\n"
    )


def planning(found: dict[str, Any]) -> str:
    """Predicted against measured, and the driver's own time."""
    rows = []
    for row in found["rows"]:
        size = row["sizes"]
        rows.append([
            f"{size['groups']}x{size['group_size']}" + (", overlapped" if size["max_staleness"] else ""),
            f"{size['engines']} + {size['workers']}", f"{row['measured']:.2f}", f"{row['off']:+.0%}",
        ])  # fmt: skip
    own = found["driver"]
    return (
        "Seconds of a step as `hatch plan` predicts them from runs of one engine and one worker and two runs of two of "
        "either,\nagainst other runs ([scaling.md](scaling.md)).\n\n"
        + table(["prompts x replies", "engines + workers", "measured, s", "predicted"], rows)
        + f"\nThe driver takes {1000 * own['control_per_step']:.0f} ms a step, and "
        f"{1000 * own['prepare_per_group']:.0f} ms to prepare a group of two images of 112 px.\n"
    )


START_TEXT = """\
`hatch demo` with {steps} steps a stage and {questions} held-out questions, watched from outside: this version
(**after**) and commit {before} (**before**) in turn, medians of {rounds} rounds each. Wall seconds, and CPU seconds of
all processes.

"""


def start(found: dict[str, Any]) -> str:
    """What a run pays beside its steps, before and after."""
    ways = list(found["spans"])
    headings = ["from - to", *(f"{way}, {part}" for part in ("wall s", "CPU s") for way in ways)]
    names = dict.fromkeys(name for way in ways for name in found["spans"][way])
    rows = [
        [name, *(f"{found['spans'][way][name][part]:.1f}" for part in ("wall_s", "cpu_s") for way in ways)]
        for name in names
    ]
    return START_TEXT.format(**found["command"]) + table(headings, rows)


def imports(found: dict[str, Any]) -> str:
    """What a process costs before it does anything."""
    rows = [[row["role"], f"{row['cpu_seconds']:.1f}", str(row["modules"])] for row in found["rows"]]
    return (
        "CPU seconds from the start of a process until it has imported what its role needs, the least of three.\n"
        "`test_imports.py` tests what a role must do without.\n\n" + table(["process", "CPU s", "modules"], rows)
    )


def sft(found: dict[str, Any]) -> str:
    """Supervised steps against TRL's."""
    rows = [
        [row["mode"], f"{row['ours']:.1f}", f"{row['trl']:.1f}", f"{row['ours'] / row['trl']:.2f}",
         f"{row['padding']:.0%}", f"{row['shared']:.1%}"]
        for row in found["rows"]
    ]  # fmt: skip
    headings = [
        "replies",
        "ours, samples/s",
        "TRL, samples/s",
        "ours / TRL",
        "padding of TRL",
        "tokens to share",
    ]
    return (
        "One process of one thread, hatch-tiny, batches of 8 of the demo's samples: forward, backward and AdamW, ours\n"
        "and TRL's SFTTrainer, median of rounds in turn. *Tokens to share*: what one row for all questions of a batch\n"
        "behind the same images would save.\n\n" + table(headings, rows)
    )


SECTIONS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "learner": ("Learner: each prompt once", learner),
    "learner_gpu": ("Learner on a GPU", learner),
    "gpu": ("The learner at 3B and 7B on one GPU", one_gpu),
    "step": ("A whole GRPO step", step),
    "growth": ("How a step grows", growth),
    "sft": ("A supervised step", sft),
    "start": ("Until the first step, and between stages", start),
    "imports": ("What a process imports", imports),
    "rollouts": ("Rollouts and weight sync", rollouts),
    "serve": ("The service", serve),
    "serve_load": ("The service under a long load", serve_load),
    "verifiers": ("Rewards and overlap", verifiers),
    "pools": ("Pools of matches", pools),
    "pairs": ("Viewpoint's pairs", pairs),
    "scaling": ("Reward actors that scale", scaling),
    "planning": ("`hatch plan` against runs", planning),
}

COMMANDS = {
    "learner_gpu": "python -m bench.learner --device cuda --shape qwen2.5-vl-3b --images 8 --pixels 448 --reply 256 "
    "--checkpointing",
    "gpu": "bash bench/gpu.sh",
    "pools": "python -m bench.pools ROOT",
}
"""Of sections that are not measured by `python -m bench.<name>`."""
WHY_NOT = {"learner_gpu": "no GPU was at hand", "gpu": "no GPU was at hand; at most 8 minutes on one of 80 GB or more"}


def page() -> str:
    """The page's text from what is in bench/results."""
    parts, missing, place = [HEAD], list[str](), ""
    for name, (title, write) in SECTIONS.items():
        path = RESULTS / f"{name}.json"
        command = COMMANDS.get(name, f"python -m bench.{name}")
        if not path.exists():
            missing.append(f"- `{command}`" + (f"\n  ({WHY_NOT[name]})" if name in WHY_NOT else ""))
            continue
        found = json.loads(path.read_text(encoding="utf-8"))
        parts.append(f"## {title}\n\n    {command}\n")
        if (here := machine(found)) != place:
            parts.append(here)
            place = here
        parts.append(write(found))
    if missing:
        parts.append("## Not measured yet\n\n" + "\n".join(missing) + "\n")
    return "\n".join(parts)


def main() -> None:
    write_atomic(PAGE, page())
    if (steps := RESULTS / "step.json").exists():
        phases.draw(json.loads(steps.read_text(encoding="utf-8")))
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()

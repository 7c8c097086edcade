"""`hatch plan` in words and tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hatch_ray.config import Config
from hatch_ray.planning.costs import Costs, Measured, costs_of
from hatch_ray.planning.model import HEAD_STORE_BYTES, TURNS, Plan, Work, gpus_of, group_bytes, grown, on_nodes
from hatch_ray.planning.nodes import DEFAULTS, PRICES, Kind, Nodes, parse_nodes, read_prices
from hatch_ray.run_folder import RunFolder

OWNERS = {
    "sync": "weights", "generate": "rollout", "reward": "reward", "control": "driver", "learn": "learner",
    "prepare": "driver",
}  # fmt: skip
"""Phase -> who is at work in it."""
NEVER_MEASURED = "never measured: how well a plan fits several machines, GPUs or a network (docs/scaling.md)"


def run_costs(runs: list[Path], config: Config, parameters: int) -> Costs:
    """The costs of runs of one model, as they were measured; config: the first one's."""
    names = ", ".join(str(run) for run in runs)
    measured = [Measured.of_run(RunFolder(run)) for run in runs]
    return costs_of(measured, parameters, group_bytes(config), f"the machine of {names}")


def print_plan(
    config: Config, parameters: int, costs: Costs, asked: str, most_gpus: int, speed: float, prices: Path | None,
    console: Console,
) -> None:  # fmt: skip
    """The plan of a config on nodes, and how it grows to `most_gpus` (0: not)."""
    kinds, source = read_prices(prices or PRICES)
    nodes = parse_nodes(asked, config, kinds)
    head = kinds[DEFAULTS["head"]] if DEFAULTS["head"] in kinds else next(iter(kinds.values()))
    scaled = costs.on(parameters, speed, group_bytes(config))
    work = Work.of(config, parameters)
    plan = on_nodes(scaled, work, nodes, head)
    say = lambda line: console.print(line, markup=False)  # noqa: E731
    say(
        f"costs: measured in {costs.runs} runs of {costs.parameters / 1e6:,.0f} M parameters on {costs.machine}, "
        f"{costs.reply_tokens:.0f} tokens a reply"
    )
    if parameters != costs.parameters or speed != 1:
        say(
            f"  times {parameters / costs.parameters:,.1f} for the planned {parameters / 1e6:,.0f} M, divided by "
            f"--speed {speed:g}: a guess until a run on such a machine is measured (--run)"
        )
    say(f"step: {plan.seconds:.3g} s, {plan.tokens_per_second:,.0f} reply tokens/s; most of it is {plan.slowest}")
    if plan.sizes.groups != config.grpo.prompts_per_step:
        say(
            f"  with {plan.sizes.groups} prompts a step, not {config.grpo.prompts_per_step}: a multiple of the "
            f"{plan.sizes.workers} learner workers"
        )
    if config.grpo.redraw:
        say(
            f"  of one draw of prompts: with grpo.redraw={config.grpo.redraw} a step prepares, samples and rewards "
            f"at most {1 + config.grpo.redraw} times as many; how many depends on the rewards"
        )
    say(NEVER_MEASURED)
    console.print(_phases(plan, nodes, head))
    moved = ", ".join(f"{name} {_size(count)}" for name, count in plan.moved.items())
    say(f"moved between nodes a step: {moved}")
    store = f"the head's object store holds {_size(plan.store_bytes)} of images"
    say(store + ("" if plan.store_bytes <= HEAD_STORE_BYTES else f": more than the {_size(HEAD_STORE_BYTES)} it has"))
    hours = plan.seconds / 3600
    say(f"cost: {plan.usd_hour:,.2f} USD an hour, {1000 * hours * plan.usd_hour:,.2f} a thousand steps ({source})")
    if most_gpus:
        console.print(_growth(scaled, work, nodes, head, most_gpus))


def _phases(plan: Plan, nodes: Mapping[str, Nodes], head: Kind) -> Table:
    table = Table(title="Phases of a step", title_justify="left")
    for name in ("phase", "nodes", "processes", "seconds", "of it network", "works", "waits"):
        table.add_column(name, justify="left" if name in ("phase", "nodes") else "right")
    for phase, owner in OWNERS.items():
        place, processes = f"1 x {head.name}" if owner == "driver" else "", ""
        if one := nodes.get(owner):
            place = "the learner's" if one.shared else f"{one.count} x {one.kind.name}"
            processes = str(one.processes)
        seconds = plan.phases[phase]
        works = min(1.0, seconds / plan.seconds)
        table.add_row(
            f"{owner}: {phase}", place, processes, f"{seconds:.3g}", f"{plan.network.get(phase, 0.0):.3g}",
            f"{works:.0%}", f"{1 - works:.0%}" if one else "",
        )  # fmt: skip
    return table


def _growth(costs: Costs, work: Work, nodes: Mapping[str, Nodes], head: Kind, most_gpus: int) -> Table:
    table = Table(title="Growing: nodes and prompts a step together", title_justify="left")
    for name in ("GPUs", "prompts", "step, s", *TURNS, "tokens/s", "of ideal", "USD/h"):
        table.add_column(name, justify="right")
    first = None
    for number, larger in enumerate(grown(nodes, most_gpus)):
        plan = on_nodes(costs, work, larger, head, 2**number)
        first = first or plan
        ideal = first.tokens_per_second * 2**number
        table.add_row(
            str(gpus_of(larger)), str(plan.sizes.groups), f"{plan.seconds:.3g}",
            *(f"{plan.phases[name]:.3g}" for name in TURNS), f"{plan.tokens_per_second:,.0f}",
            f"{plan.tokens_per_second / ideal:.0%}", f"{plan.usd_hour:,.0f}",
        )  # fmt: skip
    return table


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"

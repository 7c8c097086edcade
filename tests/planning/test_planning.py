"""`hatch plan`: its model is monotone where it must be, its costs come back from runs, its command says them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from hatch_ray.cli import app
from hatch_ray.config import ConfigError, load_config, make_config, save_config
from hatch_ray.planning.costs import Costs, Line, Measured, Sizes, costs_of, fit, read_costs
from hatch_ray.planning.model import TURNS, Plan, Work, gpus_of, grown, on_nodes, predict
from hatch_ray.planning.nodes import PRICES, Nodes, parse_nodes, read_prices
from hatch_ray.run_folder import RunFolder, read_jsonl, write_jsonl

KINDS, _ = read_prices()
HEAD = KINDS["m7i.2xlarge"]

seconds = st.floats(0, 100)
lines = st.builds(Line, seconds, seconds, seconds)
costs = st.builds(
    Costs, generate=lines, reward=lines, learn=lines, control=lines, prepare=seconds, sync=seconds,
    reply_tokens=st.floats(1, 1000), parameters=st.integers(10**6, 10**10),
    image_bytes=st.integers(1, 10**9), machine=st.just("m"), runs=st.just(1),
)  # fmt: skip
few = st.integers(1, 64)
sizes = st.builds(Sizes, few, few, few, few, few, st.integers(0, 3))
works = st.builds(Work, sizes, st.integers(0, 10**11), st.integers(0, 10**9))
kinds = st.sampled_from([kind for kind in KINDS.values() if kind.gpus])
nodes = st.fixed_dictionaries({role: st.builds(Nodes, kinds, few, few) for role in ("learner", "rollout", "reward")})


@given(costs, works, st.none() | nodes)
def test_nothing_is_ever_negative_or_busier_than_always(cost, work, where):
    plan = predict(cost, work, where, HEAD)
    numbers = [*plan.phases.values(), *plan.network.values(), *plan.moved.values(), plan.seconds, plan.usd_hour,
               plan.tokens_per_second, plan.store_bytes]  # fmt: skip
    assert all(number >= 0 and math.isfinite(number) for number in numbers)
    assert max(plan.phases.values()) <= plan.seconds * (1 + 1e-9)
    assert plan.slowest in TURNS and set(plan.phases) == set(TURNS)
    assert all(plan.phases[name] >= plan.network[name] * (1 - 1e-9) for name in plan.network)


@given(costs, works, st.none() | nodes, st.sampled_from(["engines", "reward_actors"]), few)
def test_more_processes_are_never_slower(cost, work, where, role, more):
    larger = replace(work, sizes=replace(work.sizes, **{role: getattr(work.sizes, role) + more}))
    assert predict(cost, larger, where, HEAD).seconds <= predict(cost, work, where, HEAD).seconds * (1 + 1e-9)


@given(costs, works, few)
def test_more_learner_workers_are_never_slower_but_for_the_network(cost, work, more):
    larger = replace(work, sizes=replace(work.sizes, workers=work.sizes.workers + more))
    assert predict(cost, larger).seconds <= predict(cost, work).seconds * (1 + 1e-9)


@given(costs, works, nodes, st.sampled_from(["groups", "group_size"]), few)
def test_more_work_is_never_faster(cost, work, where, what, more):
    larger = replace(work, sizes=replace(work.sizes, **{what: getattr(work.sizes, what) + more}))
    less, plan = predict(cost, work, where, HEAD), predict(cost, larger, where, HEAD)
    assert plan.seconds >= less.seconds * (1 - 1e-9)
    assert sum(plan.moved.values()) >= sum(less.moved.values())


@given(costs, works, nodes, st.sampled_from(["generate", "reward", "learn", "control"]), st.floats(1, 10))
def test_a_dearer_phase_is_never_faster(cost, work, where, phase, factor):
    dearer = replace(cost, **{phase: getattr(cost, phase).times(factor)})
    assert predict(dearer, work, where, HEAD).seconds >= predict(cost, work, where, HEAD).seconds * (1 - 1e-9)


@given(costs, works, nodes)
def test_more_nodes_cost_and_send_more(cost, work, where):
    plan = predict(cost, work, where, HEAD)
    for role in where:
        more = where | {role: replace(where[role], count=where[role].count + 1)}
        larger = predict(cost, work, more, HEAD)
        assert larger.usd_hour >= plan.usd_hour
        assert larger.moved["weights"] >= plan.moved["weights"]
        assert larger.moved["gradients"] >= plan.moved["gradients"] * (1 - 1e-9)


@given(costs, st.floats(1, 100))
def test_a_faster_machine_is_faster_only_where_it_computes(cost, speed):
    faster = cost.on(cost.parameters, speed, cost.image_bytes)
    assert faster.generate.reply <= cost.generate.reply and faster.learn.group <= cost.learn.group
    assert (faster.control, faster.reward) == (cost.control, cost.reward)
    assert faster.prepare == pytest.approx(cost.prepare)
    assert cost.on(cost.parameters, 1, 3 * cost.image_bytes).prepare == pytest.approx(3 * cost.prepare)


def test_the_two_modes_by_hand():
    cost = Costs(Line(reply=0.1), Line(reply=0.01), Line(reply=0.2), Line(group=0.05), 0.5, 0.3, 10, 10**6, 1, "m", 1)
    work = Work(Sizes(groups=4, group_size=8, engines=2, reward_actors=4, workers=2), 10**6, 10**6)
    plan = predict(cost, work)
    # sync 0.3, generate 16 x 0.1, reward 8 x 0.01, control 4 x 0.05, learn 16 x 0.2; prepare 4 x 0.5 lies beside it.
    assert plan.seconds == pytest.approx(0.3 + 1.6 + 0.08 + 0.2 + 3.2)
    assert plan.slowest == "learn"
    assert plan.tokens_per_second == pytest.approx(4 * 8 * 10 / plan.seconds)
    beside = replace(work, sizes=replace(work.sizes, max_staleness=1))
    assert predict(cost, beside).seconds == pytest.approx(max(0.3 + 1.6 + 0.08 + 0.2 + 2.0, 3.2))
    assert predict(cost, beside).slowest == "prepare"


def test_the_network_between_nodes_by_hand():
    cost = Costs(Line(), Line(), Line(), Line(), 0.0, 0.0, 10, 10**6, 1, "m", 1)
    kind = KINDS["p5.4xlarge"]  # 100 Gbit/s: 12.5 GB/s
    where = {"learner": Nodes(kind, 4, 1), "rollout": Nodes(kind, 8, 1), "reward": Nodes(HEAD, 1, 8)}
    work = Work(Sizes(4, 8, 8, 8, 4), weight_bytes=12_500_000_000, image_bytes=10**9)
    plan = predict(cost, work, where, HEAD)
    assert plan.network["sync"] == pytest.approx(8)
    assert plan.network["learn"] == pytest.approx(1.5)
    assert plan.network["prepare"] == pytest.approx(4e9 / (12.5e9 / 8))
    assert plan.moved["gradients"] == pytest.approx(4 * 1.5 * 12.5e9)
    assert plan.usd_hour == pytest.approx(12 * 6.88 + 0.40 + 0.40)


# --- Costs from runs --------------------------------------------------------------------------------------------


@given(lines)
def test_a_fit_gives_back_the_line_it_was_drawn_from(line):
    shares = [(2, 8), (4, 16), (2, 16), (8, 32)]
    found = fit(shares, [line.seconds(*share) for share in shares])
    for share in [*shares, (6, 60)]:
        assert found.seconds(*share) == pytest.approx(line.seconds(*share), rel=1e-3, abs=1e-5)


@given(st.lists(st.tuples(few, few), min_size=1, max_size=6), st.data())
def test_a_fit_is_never_negative(shares, data):
    found = fit(shares, data.draw(st.lists(seconds, min_size=len(shares), max_size=len(shares))))
    assert min(found.step, found.group, found.reply) >= 0


def write_run(path: Path, changes: dict, learn: float, steps: int = 6) -> RunFolder:
    """A run folder with metrics as GRPO writes them: generate 0.1 a reply of an engine, learn as given."""
    run = RunFolder(path)
    tree = {"run_dir": str(path), "model": {"base": "hatch-tiny"}, "grpo": {"prompts_per_step": 4, "group_size": 4}}
    config = make_config({key: tree.get(key, {}) | changes.get(key, {}) if key != "run_dir" else str(path)
                          for key in {*tree, *changes}})  # fmt: skip
    save_config(config, run.config_path)
    size = Sizes.of(config)
    for step in range(1, steps + 1):
        generate = 0.1 * size.share(size.engines)[1] + (5 if step == 1 else 0)
        phases = {"seconds_sync": 0.2, "seconds_prepare": 2.0 if step == 1 else 0.0, "seconds_generate": generate,
                  "seconds_reward": 0.1, "seconds_learn": learn}  # fmt: skip
        run.log("grpo", step, phases | {"seconds": sum(phases.values()) + 0.4, "reply_tokens": 50.0})
    return run


def test_costs_of_a_run_are_medians_without_the_warm_up(tmp_path):
    one = Measured.of_run(write_run(tmp_path / "a", {}, learn=2.4))
    assert one.generate == pytest.approx(1.6) and one.control == pytest.approx(0.4) and one.prepare == 0.5
    found = costs_of([one], 10**6, 1, "here")
    assert found.generate.reply == pytest.approx(0.1) and found.learn.reply == pytest.approx(0.15)
    predicted = predict(found, Work(one.sizes, 0, 0))
    assert predicted.seconds == pytest.approx(one.seconds)


def test_costs_of_a_run_that_drew_again_are_of_one_draw(tmp_path):
    run = write_run(tmp_path / "a", {"grpo": {"redraw": 3}}, learn=2.4)
    rows = read_jsonl(run.metrics_path)
    for row in rows:  # six of ten groups lost their place
        row |= {"redrawn_groups": 6.0, "groups": 4.0} | {f"seconds_{n}": 2.5 * row[f"seconds_{n}"] for n in DRAWN}
    write_jsonl(run.metrics_path, rows)
    again, once = Measured.of_run(run), Measured.of_run(write_run(tmp_path / "b", {}, learn=2.4))
    assert (again.generate, again.reward, again.prepare) == pytest.approx((once.generate, once.reward, once.prepare))


DRAWN = ("prepare", "generate", "reward")


def test_several_on_one_machine_slow_each_other_down(tmp_path):
    """One engine and worker give the line, runs of two what being two costs; it is not laid on machines with GPUs."""
    two_engines = {"rollout": {"actors": 2}, "grpo": {"group_size": 8}}
    two_workers = {"learner": {"workers": 2}}
    runs = [
        write_run(tmp_path / "a", {}, learn=1.6), write_run(tmp_path / "b", {"grpo": {"group_size": 8}}, learn=3.2),
        write_run(tmp_path / "c", two_engines, learn=3.2), write_run(tmp_path / "d", two_workers, learn=1.2),
    ]  # fmt: skip
    measured = [Measured.of_run(run) for run in runs]
    measured[2] = replace(measured[2], generate=1.3 * measured[2].generate)
    found = costs_of(measured, 10**6, 1, "here")
    assert (found.generate_beside, found.learn_beside, found.runs) == (pytest.approx(1.3), pytest.approx(1.5), 4)
    assert found.generate.reply == pytest.approx(0.1) and found.learn.reply == pytest.approx(0.1)
    both = Work(Sizes(8, 4, 2, 1, 2), 0, 0)
    alone = replace(found, generate_beside=1.0, learn_beside=1.0)
    assert predict(found, both).phases["generate"] == pytest.approx(1.3 * predict(alone, both).phases["generate"])
    assert predict(found, both).phases["learn"] == pytest.approx(1.5 * predict(alone, both).phases["learn"])
    one_group = Work(Sizes(1, 4, 2, 1, 2), 0, 0)  # the second of each has nothing to do
    assert predict(found, one_group) == predict(alone, one_group)
    overlapping = Work(Sizes(8, 4, 1, 1, 1, max_staleness=1), 0, 0)
    assert predict(found, overlapping).phases["learn"] == pytest.approx(1.5 * 3.2)
    with_gpus = {"learner": Nodes(KINDS["p5.48xlarge"], 1, 8), "rollout": Nodes(KINDS["p5.48xlarge"], 1, 8)}
    where = with_gpus | {"reward": Nodes(HEAD, 1, 4)}
    assert predict(found, both, where, HEAD) == predict(alone, both, where, HEAD)


def test_runs_of_several_alone_are_taken_as_they_are(tmp_path):
    one = Measured.of_run(write_run(tmp_path / "a", {"rollout": {"actors": 2}}, learn=2.4))
    found = costs_of([one], 10**6, 1, "here")
    assert (found.generate_beside, found.learn_beside) == (1.0, 1.0)
    assert predict(found, Work(one.sizes, 0, 0)).seconds == pytest.approx(one.seconds)


def test_a_run_that_is_too_short_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="has 4 GRPO steps; costs need at least 5"):
        Measured.of_run(write_run(tmp_path / "a", {}, learn=1.0, steps=4))
    with pytest.raises(ConfigError, match="not a run folder"):
        Measured.of_run(RunFolder(tmp_path / "none"))


def test_costs_survive_the_file_and_a_wrong_file_is_named(tmp_path):
    cost = Costs(Line(1, 2, 3), Line(), Line(4), Line(), 0.1, 0.2, 10, 10**6, 1, "m", 2)
    path = tmp_path / "costs.json"
    path.write_text(json.dumps({"machine": {}, "costs": asdict(cost)}))
    assert read_costs(path) == cost
    path.write_text('{"costs": {"generate": 3}}')
    with pytest.raises(ConfigError, match=r"costs\.json has no measured costs"):
        read_costs(path)


# --- Nodes and the command --------------------------------------------------------------------------------------


def test_nodes_hold_what_has_room(repository):
    config = load_config(repository / "configs" / "hatch_3b.yaml")
    found = parse_nodes("learner=2:p5.48xlarge,rollout=6", config, KINDS)
    assert (found["learner"].processes, found["rollout"].processes) == (16, 6)
    assert found["reward"].count == 1 and found["reward"].processes == 4  # as the config asks: 4 of 1 CPU
    for text, message in (
        ("learner", "not ROLE=COUNT"), ("head=1", "not ROLE=COUNT"), ("reward=0", "not ROLE=COUNT"),
        ("reward=1:x9", "no price for nodes of kind 'x9'"), ("learner=1:laptop", "no room for a process of learner"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            parse_nodes(text, config, KINDS)


def test_colocated_engines_are_on_the_learners_nodes(repository):
    shares = ["colocated=true", "learner.workers=4", "rollout.actors=4", "learner.gpus=0.6", "rollout.gpus=0.4",
              "rollout.gpu_memory_utilization=0.4"]  # fmt: skip
    config = load_config(repository / "configs" / "hatch_3b.yaml", shares)
    found = parse_nodes("learner=2:p5.48xlarge", config, KINDS)
    assert (found["learner"].processes, found["rollout"].processes) == (16, 16)  # one of each a GPU
    assert gpus_of(found) == 16
    with pytest.raises(ConfigError, match="leave rollout out"):
        parse_nodes("learner=2,rollout=1", config, KINDS)
    cost = Costs(Line(reply=0.1), Line(), Line(reply=0.1), Line(), 0.0, 0.0, 10, 10**6, 1, "m", 1)
    work = Work(Sizes(16, 8, 16, 4, 16), 12_500_000_000, 10**9)
    apart = predict(cost, work, found | {"rollout": replace(found["rollout"], shared=False)}, HEAD)
    beside = predict(cost, work, found, HEAD)
    assert apart.usd_hour - beside.usd_hour == pytest.approx(2 * KINDS["p5.48xlarge"].usd_hour)
    assert beside.moved["weights"] == apart.moved["weights"] / 2
    assert beside.phases["generate"] == apart.phases["generate"]


def test_prices_that_cannot_be_are_refused(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text(PRICES.read_text().replace("usd_hour: 0.36", "usd_hour: -1"))
    with pytest.raises(ConfigError, match=r"c7i\.2xlarge needs"):
        read_prices(path)
    for text in ("kinds: 3", PRICES.read_text().replace("usd_hour: 0.36", "usd_hour: cheap")):
        path.write_text(text)
        with pytest.raises(ConfigError, match="not a table of prices"):
            read_prices(path)


def test_it_grows_to_1024_gpus_and_the_weights_go_to_every_node(repository):
    config = load_config(repository / "configs" / "hatch_3b.yaml")
    first = parse_nodes("learner=1,rollout=1", config, KINDS)
    all_ = list(grown(first, 1024))
    assert [gpus_of(one) for one in all_] == [2**n for n in range(1, 11)]
    cost = Costs(
        Line(reply=0.1), Line(reply=0.001), Line(reply=0.1), Line(group=0.01), 0.01, 0.1, 300, 10**9, 1, "m", 1
    )
    work = Work.of(config, 3_754_622_976)
    plans: list[Plan] = [on_nodes(cost, work, one, HEAD, 2**number) for number, one in enumerate(all_)]
    assert plans[-1].sizes.groups % plans[-1].sizes.workers == 0
    assert plans[-1].network["sync"] == pytest.approx(512 * 2 * 3_754_622_976 / 12.5e9)
    assert all(b.usd_hour > a.usd_hour for a, b in pairwise(plans))


def test_the_command_plans_from_a_run(repository, tmp_path):
    runs = [
        write_run(tmp_path / "a", {}, learn=1.6), write_run(tmp_path / "b", {"grpo": {"group_size": 8}}, learn=2.4)
    ]  # fmt: skip
    words = ["plan", str(repository / "configs" / "hatch_3b.yaml"), "--nodes", "learner=2,rollout=2,reward=1",
             "--gpus", "64", "--speed", "100"]  # fmt: skip
    for run in runs:
        words += ["--run", str(run.path)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "measured in 2 runs" in done.output and "USD an hour" in done.output and "learner" in done.output
    assert "a guess until a run on such a machine is measured" in " ".join(done.output.split())
    assert "never measured: how well a plan fits several machines" in done.output
    assert "64" in done.output and "example" in done.output and "redraw" not in done.output
    done = CliRunner().invoke(app, [*words, "grpo.redraw=2"])
    assert "prepares, samples and rewards at most 3 times as many" in " ".join(done.output.split())

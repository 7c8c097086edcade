"""One GRPO sample's way from disk to the weight update: python tools/walk.py.

Each hop is a call: the function it is made in, and the function that is called, which the code must have. It prints the
way and counts: files, and how often each is entered.
"""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST_FILES, MOST_ENTRIES = 20, 3

WAY = """
actors/stages/recipe.py:load_datasets -> hatch_ray/data/store.py:read_dataset
actors/stages/recipe.py:run_stage -> actors/stages/grpo.py:run_grpo
actors/stages/grpo.py:drive -> actors/experience/collect.py:collect
actors/experience/collect.py:collect -> actors/rollout/prompts.py:prepare
actors/rollout/prompts.py:prepare -> hatch_ray/data/store.py:samples
actors/rollout/prompts.py:prepare -> actors/rollout/prompts.py:_requests
actors/rollout/prompts.py:_requests -> actors/rollout/prompts.py:request
actors/rollout/prompts.py:text -> hatch_ray/systems/hatch/system.py:prompt
hatch_ray/systems/hatch/system.py:prompt -> hatch_ray/protocol/prompt.py:sample_prompt
actors/rollout/prompts.py:request -> hatch_ray/data/store.py:model_images
actors/experience/collect.py:collect -> actors/experience/collect.py:_ask
actors/experience/collect.py:_ask -> actors/experience/collect.py:_sample
actors/experience/collect.py:_sample -> actors/rollout/engines.py:try_generate
actors/rollout/engines.py:try_generate -> actors/runtime/actor_pool.py:map
actors/rollout/engines.py:try_generate -> actors/rollout/engine.py:generate
actors/experience/collect.py:_ask -> actors/reward/verifier.py:reward
actors/reward/verifier.py:score -> actors/runtime/actor_pool.py:map
actors/reward/verifier.py:score -> actors/reward/verifier.py:score_many
actors/reward/verifier.py:score_many -> hatch_ray/systems/hatch/system.py:score
hatch_ray/systems/hatch/system.py:score -> hatch_ray/rewards/terms.py:score_reply
hatch_ray/rewards/terms.py:score_reply -> hatch_ray/protocol/response.py:parse_response
hatch_ray/rewards/terms.py:score_reply -> hatch_ray/rewards/terms.py:score_answer
hatch_ray/rewards/terms.py:score_reply -> hatch_ray/rewards/terms.py:score_plans
actors/reward/verifier.py:make_groups -> hatch_ray/learning/grpo.py:group_advantages
actors/stages/grpo.py:drive -> actors/experience/queues.py:hand_over
actors/experience/queues.py:hand_over -> actors/experience/queues.py:put
actors/learner/worker.py:learner_loop -> actors/experience/queues.py:take
actors/learner/worker.py:learner_loop -> actors/learner/learner.py:update
actors/learner/learner.py:update -> actors/learner/learner.py:batches
actors/learner/learner.py:batches -> actors/learner/learner.py:split_rows
actors/learner/learner.py:packed -> hatch_ray/model/packing.py:pack
actors/learner/learner.py:_gradients -> hatch_ray/model/logprobs.py:each
actors/learner/learner.py:token_terms -> hatch_ray/learning/grpo.py:grpo_loss
actors/learner/worker.py:learner_loop -> actors/weights/publish.py:publish
actors/stages/grpo.py:_catch_up -> actors/rollout/engines.py:sync
"""
"""caller -> callee, in order."""


def function(place: str) -> ast.FunctionDef | ast.AsyncFunctionDef:
    """The function of a place "file:name". SystemExit where it is not there."""
    path, _, name = place.partition(":")
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            return node
    raise SystemExit(f"{path} has no function {name}: change WAY in tools/walk.py")


def check(caller: str, callee: str) -> None:
    """SystemExit where the caller does not name the callee."""
    function(callee)
    name = callee.partition(":")[2]
    named = {node.attr for node in ast.walk(function(caller)) if isinstance(node, ast.Attribute)}
    named |= {node.id for node in ast.walk(function(caller)) if isinstance(node, ast.Name)}
    if name not in named:
        raise SystemExit(f"{caller} does not call {callee}: change WAY in tools/walk.py")


def entries() -> Counter[str]:
    """How often the way enters each file, in the order of the first time."""
    found: Counter[str] = Counter()
    here = ""
    for line in WAY.split("\n"):
        if line:
            caller, callee = line.split(" -> ")
            check(caller, callee)
            for path in (caller.partition(":")[0], callee.partition(":")[0]):
                if path != here:
                    found[path] += 1
                here = path
    return found


def main() -> None:
    found = entries()
    for number, (path, count) in enumerate(found.items(), start=1):
        print(f"{number:>3} {path:<48} entered {count} {'time' if count == 1 else 'times'}")
    print(
        f"{len(found)} files (at most {MOST_FILES} wanted); entered most often: {max(found.values())} times, ", end=""
    )
    print(f"{max(found, key=found.__getitem__)} (at most {MOST_ENTRIES} wanted)")


if __name__ == "__main__":
    main()

"""A kept batch is computed again: the replay names the reply, the image, the layer or the weight that is to blame."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from actors.learner.bad_batches import FACTS, TENSORS, WEIGHTS
from tests.actors.test_numbers import CPU, LocalLearner, break_image, break_logprob, make_batch, make_settings, shard
from tools.kept_batches import read_bad_batch
from tools.replay import app, describe, load_learner, replay_batch

LAYER = "model.language_model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def groups(tiny_model):
    return make_batch(tiny_model)


def kept_after(tiny_model, groups, run, spoil=lambda learner: None, **grpo):
    """The folder of a batch that a learner kept; `spoil` is done to the learner before."""
    learner = LocalLearner(make_settings(tiny_model, run, **grpo), tiny_model, 10)
    spoil(learner)
    assert learner.update(shard(groups))["skipped"] == 1.0
    return run / "bad_batches" / "step-000001-rank0"


def run_replay(folder):
    batch, weights = read_bad_batch(folder)
    replay = replay_batch(load_learner(batch, weights, batch.model, CPU), batch)
    return replay, "\n".join(describe(batch, replay, CPU))


def test_replay_names_the_reply_that_is_to_blame(tiny_model, groups, tmp_path):
    folder = kept_after(tiny_model, break_logprob(groups, math.nan), tmp_path, beta=0.01)
    replay, text = run_replay(folder)
    blamed = [(reply.sample, reply.number) for reply in replay.replies if not reply.gradient]
    assert blamed == [("q1", 2)]
    assert [(r.sample, r.number) for r in replay.replies if not math.isfinite(r.loss)] == blamed
    assert replay.inputs == ("vLLM's log-probabilities of sample q1, reply 2",)
    assert replay.first_output == ""
    assert replay.first_gradient == "lm_head.weight"  # the way back begins at the head
    assert len(replay.bad_gradients) == replay.parameters
    assert [reply.tokens for reply in replay.replies] == [3, 7, 5, 6, 3, 7, 5, 2]  # a shard begins with the longest
    wanted = [float(a) for group in reversed(groups) for a in group.advantages]
    assert [reply.advantage for reply in replay.replies] == pytest.approx(wanted)
    assert all(reply.ratio == 1.0 for reply in replay.replies) and replay.gap < 1e-5
    assert text.count("NOT FINITE") == 1
    done = CliRunner().invoke(app, [str(folder / FACTS), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "first gradient that is not finite, on the way back: lm_head.weight" in done.output


def test_replay_names_the_layer_and_the_weight(tiny_model, groups, tmp_path):
    def spoil(learner):
        with torch.no_grad():
            dict(learner.model.named_parameters())[LAYER][0, 0] = math.inf

    replay, _ = run_replay(kept_after(tiny_model, groups, tmp_path, spoil))
    assert f"weight {LAYER}" in replay.inputs
    assert replay.first_output == LAYER.removesuffix(".weight")


def test_replay_names_the_image(tiny_model, groups, tmp_path):
    replay, text = run_replay(kept_after(tiny_model, break_image(groups), tmp_path, token_budget=9999))
    assert "image 1 of sample q0" in replay.inputs
    assert replay.first_output.startswith("model.visual.patch_embed")
    assert "image 1 of sample q0" in text
    alone = {reply.sample: reply.gradient for reply in replay.replies}
    assert alone == {"q0": False, "q1": True}


def test_replay_gives_the_runs_own_numbers(tiny_model, groups, tmp_path):
    """-inf leaves loss and gradient finite: the replay's losses add up to what the run found."""
    folder = kept_after(tiny_model, break_logprob(groups, -math.inf), tmp_path, beta=0.01)
    batch, _ = read_bad_batch(folder)
    assert batch.own_sums["sampler_gap"] == "inf"
    replay, text = run_replay(folder)
    loss = sum(reply.loss for reply in replay.replies) * batch.tokens
    assert loss == pytest.approx(float(batch.own_sums["loss"]), rel=1e-4, abs=1e-5)
    assert replay.bad_gradients == () and math.isfinite(replay.norm)
    assert "sampler_gap was not finite" in text


def test_what_is_missing_or_damaged_is_said(tiny_model, groups, tmp_path):
    folder = kept_after(tiny_model, break_logprob(groups, math.nan), tmp_path / "run")
    facts = json.loads((folder / FACTS).read_text())

    def broken(name, change):
        copied = Path(shutil.copytree(folder, tmp_path / name))
        change(copied)
        return copied

    cases = {
        "is not a kept batch": lambda f: (f / FACTS).unlink(),
        "is damaged": lambda f: (f / FACTS).write_text((f / FACTS).read_text()[:500]),
        "has format 99": lambda f: (f / FACTS).write_text(json.dumps(facts | {"format": 99})),
        "is not readable": lambda f: (f / TENSORS).write_bytes((f / TENSORS).read_bytes()[:-100]),
        "weights.safetensors is missing": lambda f: (f / WEIGHTS).unlink(),
    }
    for number, (said, change) in enumerate(cases.items()):
        with pytest.raises(ValueError, match=said):
            read_bad_batch(broken(str(number), change))
    batch, weights = read_bad_batch(folder)
    with pytest.raises(ValueError, match=r"not those of .*lm_head\.weight differ; name the right model"):
        load_learner(batch, {name: t for name, t in weights.items() if name != "lm_head.weight"}, batch.model, CPU)

"""A learner in shards: what one process computes, several compute together, each with its part of the model."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint import HuggingFaceStorageWriter

from actors.experience.queues import make_shards
from actors.runtime.deadlines import CollectiveError, collectives
from hatch_ray.config import Config, ConfigError, make_config
from hatch_ray.disk import is_full
from hatch_ray.environment import prepare_environment
from hatch_ray.learning.trainer_state import write_state
from hatch_ray.learning.workers import Workers, whole
from hatch_ray.model.base import checksum, eos_token_ids, load_model, load_processor, unfilled_model
from hatch_ray.model.prompt_tokens import tokenize_prompt
from tests.actors.test_numbers import LocalLearner, make_batch
from tests.support.runs import free_port

VISION = "<|vision_start|><|image_pad|><|vision_end|>"
WAIT = 120.0
PATIENCE, SHORT = timedelta(seconds=60), timedelta(seconds=8)


def config_of(folder: Path, run: Path, **sections: dict[str, Any]) -> Config:
    """Four made-up groups a step; rows of one group each, or of a part of one (`groups_of`)."""
    grpo = {"group_size": 4, "prompts_per_step": 4, "max_new_tokens": 16, "token_budget": 150, "lr": 1e-3, "beta": 0.02}
    model_settings = {"base": str(folder), "template": "compact-v1", "max_pixels": 112 * 112, "max_length": 512}
    return make_config({
        "run_dir": str(run),
        "model": model_settings | sections.get("model", {}),
        "grpo": grpo | sections.get("grpo", {}),
        "learner": {"sharding": "full"} | sections.get("learner", {}),
    })  # fmt: skip


def one_stays_away(rank: int, world: int, config: Config) -> str:
    """What rank 0 is told when the other worker, at the second step, does not come."""
    learner = learner_of(config, rank, world)
    shard = make_shards(0, groups_of(Path(config.model.base)), world)[rank]
    learner.update(shard)
    if rank:
        time.sleep(2 * SHORT.total_seconds())
        return ""
    with pytest.raises(CollectiveError) as told, collectives("grpo: step 1", rank):
        learner.update(shard)
    return str(told.value)


def without_images(model: Path) -> list[Any]:
    """Two groups whose prompt is text alone."""
    processor = load_processor(model)
    groups = []
    for group in make_batch(model):
        text = group.request.prompt
        while VISION in text:
            text = text.replace(VISION, "")
        request = replace(group.request, prompt=text, images=())
        length = len(tokenize_prompt(processor, text, []).token_ids)
        groups.append(replace(group, request=request, rollout=replace(group.rollout, prompt_tokens=length)))
    return groups


def groups_of(model: Path) -> list[Any]:
    """Four groups; the first worker of two gets those that fit a row, so that it has fewer micro-batches to compute and
    goes with the other one through its long groups' parts."""
    first, second = make_batch(model), make_batch(model, seed=1)
    long = [replace(g, rollout=replace(g.rollout, replies=tuple(
        replace(r, token_ids=r.token_ids * 9, logprobs=r.logprobs.repeat(9)) for r in g.rollout.replies
    ))) for g in second]  # fmt: skip
    return [first[0], long[0], first[1], long[1]]


class Processes:
    """Processes that wait for work; the first `world` of them meet by gloo for each piece of it."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("spawn")
        self.results = self.context.Queue()
        self.work: list[Any] = []
        self.all: list[Any] = []

    def add(self) -> None:
        self.work.append(self.context.Queue())
        self.all.append(self.context.Process(target=serve, args=(self.work[-1], self.results), daemon=True))
        self.all[-1].start()

    def __call__(
        self, world: int, work: Callable[..., Any], *arguments: Any, patience: timedelta = PATIENCE
    ) -> list[Any]:
        """`work(rank, world, *arguments)` in so many processes; what each returned, by rank."""
        while len(self.all) < world:
            self.add()
        meeting = f"tcp://127.0.0.1:{free_port()}"
        for rank in range(world):
            self.work[rank].put((rank, world, meeting, patience, work, arguments))
        found = dict(self.results.get(timeout=WAIT) for _ in range(world))
        for value in found.values():
            if isinstance(value, BaseException):
                raise value
        return [found[rank] for rank in range(world)]


def serve(work: Any, results: Any) -> None:
    """One process: piece after piece."""
    prepare_environment()
    torch.set_num_threads(1)
    while True:
        rank, world, meeting, patience, do, arguments = work.get()
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world, timeout=patience)
        try:
            results.put((rank, do(rank, world, *arguments)))
        except Exception as error:  # noqa: BLE001 - raised in the test
            results.put((rank, error))
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def together() -> Iterator[Processes]:
    processes = Processes()
    yield processes
    for process in processes.all:
        process.kill()


def learner_of(config: Config, rank: int = 0, world: int = 1, per_node: int = 0) -> LocalLearner:
    torch.manual_seed(0)
    return LocalLearner(
        config, config.model.base, 10, Workers(config.learner, rank=rank, world=world, per_node=per_node)
    )


def step(config: Config, rank: int, world: int, per_node: int = 0) -> tuple[dict[str, float], dict[str, Any], float]:
    """One step: metrics, every gradient, and the share of the learning elements that this worker holds."""
    learner = learner_of(config, rank, world, per_node)
    metrics = learner.update(make_shards(0, groups_of(Path(config.model.base)), world)[rank])
    gradients = {n: whole(p.grad).numpy() for n, p in learner.model.named_parameters() if p.grad is not None}
    held = sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in learner.learning)
    return metrics, gradients, held / sum(p.numel() for p in learner.learning)


def one_step(rank: int, world: int, config: Config, per_node: int) -> Any:
    return step(config, rank, world, per_node)


def text_beside_images(rank: int, world: int, config: Config) -> float:
    learner = learner_of(config, rank, world)
    images, text = make_batch(Path(config.model.base)), without_images(Path(config.model.base))
    groups = [images[0], text[0], images[1], text[1]]
    return learner.update(make_shards(0, groups, world)[rank])["grad_norm"]


@pytest.mark.rest
def test_a_worker_with_text_alone_goes_with_those_that_have_images(
    together: Processes, tiny_model: Path, tmp_path: Path
) -> None:
    config = config_of(tiny_model, tmp_path)
    expected = text_beside_images(0, 1, config)
    assert together(2, text_beside_images, config) == [pytest.approx(expected, rel=1e-5)] * 2


@pytest.mark.rest
def test_a_worker_that_does_not_come_is_named_within_the_deadline(
    together: Processes, tiny_model: Path, tmp_path: Path
) -> None:
    told, _ = together(2, one_stays_away, config_of(tiny_model, tmp_path), patience=SHORT)
    assert told.startswith("grpo: step 1, rank 0: a worker did not come; the collective failed after")


def in_one_pass(config: Config) -> Config:
    """The same with room for whole groups."""
    return config.model_copy(update={"grpo": config.grpo.model_copy(update={"token_budget": 9999})})


def test_a_long_groups_prompt_and_images_are_computed_once_for_all_its_parts(tiny_model: Path, tmp_path: Path) -> None:
    config = config_of(tiny_model, tmp_path)
    passes = []
    for one in (config, in_one_pass(config)):
        learner = learner_of(one)
        (shard,) = make_shards(0, groups_of(tiny_model), 1)
        batches = learner.batches([learner.prompt(g) for g in shard.groups], shard.groups)
        units = learner.units(batches)
        metrics = learner.update(shard)
        passes.append([unit.passes for unit in units])
        assert learner.scorer.encoder.encoded == 8 and learner.reference.encoder.encoded == 8  # two images a group
        assert metrics["grad_norm"] > 0
    assert passes == [[4, 3, 1, 1], [1]]


NODES_OF_TWO = {"sharding": "hybrid", "workers": 4, "workers_per_node": 2}
CASES = {
    "copies": (2, 0, {"learner": {"sharding": "none"}}),
    "two": (2, 0, {}),
    "four": (4, 0, {}),
    "two nodes of two": (4, 2, {"learner": NODES_OF_TWO}),
    "Qwen3-VL, activations computed again": (2, 0, {"learner": {"recompute": True}}),
    "a frozen encoder": (2, 0, {"grpo": {"trainable": "language"}}),
    "the encoder alone": (2, 0, {"grpo": {"trainable": "vision"}}),
    "adapters": (2, 0, {"model": {"lora_rank": 4}}),
    "a reference that waits on the CPU": (2, 0, {"learner": {"offload_reference": True}}),
    "one ratio a reply, replies alike": (2, 0, {"grpo": {"ratio": "sequence", "mean": "sequence"}}),
}


@pytest.mark.parametrize(
    "case", [case if case == "two" else pytest.param(case, marks=pytest.mark.rest) for case in CASES]
)
def test_shards_compute_what_one_process_computes(
    together: Processes, tiny_model: Path, tiny_qwen3: Path, tmp_path: Path, case: str
) -> None:
    """One process computes whole groups; shards, and copies, compute the long ones in parts."""
    world, per_node, sections = CASES[case]
    config = config_of(tiny_qwen3 if "Qwen3" in case else tiny_model, tmp_path, **sections)
    expected, gradients, _ = step(in_one_pass(config), 0, 1)
    for metrics, found, held in together(world, one_step, config, per_node):
        for name in ("loss", "kl", "entropy", "grad_norm", "sampler_gap"):
            # A norm's own float32 sum differs by as much: the gradients are compared below.
            relative = 3e-5 if name == "grad_norm" else 1e-5
            assert metrics[name] == pytest.approx(expected[name], rel=relative, abs=1e-6), name
        assert found.keys() == gradients.keys()
        largest = max(abs(found[name] - gradients[name]).max() for name in gradients)
        assert largest < 1e-6, largest
        assert held == pytest.approx(1 if case == "copies" else 1 / (per_node or world), abs=0.02)


@pytest.mark.rest
def test_bfloat16_products_of_shards_are_those_of_one_process(
    together: Processes, tiny_model: Path, tmp_path: Path
) -> None:
    config = config_of(tiny_model, tmp_path, learner={"compute": "bfloat16"})
    expected, gradients, _ = step(config, 0, 1)
    for metrics, found, _ in together(2, one_step, config, 0):
        assert metrics["loss"] == pytest.approx(expected["loss"], abs=2e-2)
        assert {gradient.dtype for gradient in found.values()} == {np.dtype("float32")}
        one, other = (np.concatenate([x[name].ravel() for name in gradients]) for x in (found, gradients))
        assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) > 0.99


def several_steps(
    rank: int, world: int, config: Config, folder: Path, resume: Path | None, steps: range
) -> tuple[str, str, list[float]]:
    """Train `steps`; save a state before the last one. Returns checksums of weights and moments, and the losses."""
    learner = learner_of(config, rank, world)
    if resume is not None:
        learner.load(resume)
    losses = []
    for number in steps:
        if number == steps[-1]:
            learner.workers.wait()
            if learner.workers.sharded:
                learner.write_together(folder, config.model.base)
            else:
                folder.mkdir(exist_ok=True)
                learner.snapshot(config.model.base)(folder)
        losses.append(learner.update(make_shards(number, groups_of(Path(config.model.base)), world)[rank])["loss"])
    moments = {
        f"{index}.{name}": whole(value)
        for index, state in learner.optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }
    weights = {name: whole(p).detach() for name, p in learner.model.named_parameters()}
    return checksum(weights), checksum(moments), losses


@pytest.mark.parametrize("rank", [0, pytest.param(4, marks=pytest.mark.rest)])
def test_a_sharded_learner_resumes_to_the_bit(together: Processes, tiny_model: Path, tmp_path: Path, rank: int) -> None:
    config = config_of(tiny_model, tmp_path, model={"lora_rank": rank})
    saved = tmp_path / "state"
    straight = together(2, several_steps, config, saved, None, range(3))
    resumed = together(2, several_steps, config, tmp_path / "again", saved, range(2, 3))
    assert resumed[0][:2] == straight[0][:2] == straight[1][:2]
    assert resumed[0][2] == straight[0][2][2:]
    assert {path.suffix for path in (saved / "shards").iterdir()} == {".safetensors"}
    load_model(saved / "model")


@pytest.mark.rest
@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 1), (1, 2)])
def test_another_number_of_workers_goes_on_from_a_state(
    together: Processes, tiny_model: Path, tmp_path: Path, before: int, after: int
) -> None:
    """From shards to more shards, to one process, and from one process to shards."""
    config = config_of(tiny_model, tmp_path)
    saved = tmp_path / "state"
    straight = run_steps(together, before, config, saved, None, range(3))
    resumed = run_steps(together, after, config, tmp_path / "again", saved, range(2, 3))
    assert resumed[0][2] == pytest.approx(straight[0][2][2:], rel=1e-4)


def run_steps(together: Processes, world: int, *arguments: Any) -> list[Any]:
    return [several_steps(0, 1, *arguments)] if world == 1 else together(world, several_steps, *arguments)


def test_a_state_of_other_weights_is_refused(together: Processes, tiny_model: Path, tmp_path: Path) -> None:
    adapters = learner_of(config_of(tiny_model, tmp_path, model={"lora_rank": 4}))
    (tmp_path / "state").mkdir()
    write_state(adapters.state(), tmp_path / "state")
    with pytest.raises(ValueError, match="do not have the same weights"):
        together(2, several_steps, config_of(tiny_model, tmp_path), tmp_path / "x", tmp_path / "state", range(1))


def cannot_write(rank: int, world: int, config: Config, folder: Path, number: int) -> str:
    """What each worker is told when the second one's disk says no."""

    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    learner = learner_of(config, rank, world)
    with pytest.MonkeyPatch.context() as patch:
        if rank:
            patch.setattr(HuggingFaceStorageWriter, "write_data", refuse)
        try:
            learner.write_together(folder, config.model.base)
        except (OSError, RuntimeError) as error:
            return f"{type(error).__name__} {is_full(error, folder)}: {error}"
    return ""


def test_a_full_disk_of_one_worker_is_told_to_all_as_a_full_disk(
    together: Processes, tiny_model: Path, tmp_path: Path
) -> None:
    """So that all wait, and write again together; another failure is one line."""
    config = config_of(tiny_model, tmp_path)
    first, second = together(2, cannot_write, config, tmp_path / "full", errno.ENOSPC)
    assert first == second and "OSError True" in first and "rank 1" in first
    first, second = together(2, cannot_write, config, tmp_path / "broken", errno.EIO)
    assert first == second and "RuntimeError False" in first
    assert "rank 1 failed: OSError: [Errno 5] Input/output error" in first


def slow_first(rank: int, world: int, config: Config, folder: Path) -> float:
    workers, began = Workers(config.learner, rank=rank, world=world), time.monotonic()
    workers.first_does(lambda: time.sleep(2 * SHORT.total_seconds()), folder)
    return time.monotonic() - began


@pytest.mark.rest
def test_workers_outwait_the_first_one_beyond_the_deadline_of_a_collective(
    together: Processes, tiny_model: Path, tmp_path: Path
) -> None:
    waited = together(2, slow_first, config_of(tiny_model, tmp_path), tmp_path, patience=SHORT)
    assert min(waited) > SHORT.total_seconds() and not list(tmp_path.glob(".done*"))


def test_a_model_that_others_fill_ends_its_replies_as_the_read_one(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [3, 4]}))
    processor = load_processor(folder)
    read, unfilled = load_model(folder), unfilled_model(folder, "float32")
    assert eos_token_ids(read, processor) == eos_token_ids(unfilled, processor) and 3 in eos_token_ids(read, processor)
    assert {n: p.shape for n, p in read.named_parameters()} == {n: p.shape for n, p in unfilled.named_parameters()}
    for (name, one), (_, other) in zip(read.named_buffers(), unfilled.named_buffers(), strict=True):
        assert torch.equal(one, other), name


def weights_sent(rank: int, world: int, config: Config) -> dict[str, Any]:
    return {name: tensor.detach().numpy() for name, tensor in learner_of(config, rank, world).each_learned_weight()}


@pytest.mark.parametrize("lora_rank", [0, pytest.param(4, marks=pytest.mark.rest)])
def test_engines_are_sent_whole_weights_by_the_first_worker(
    together: Processes, tiny_model: Path, tmp_path: Path, lora_rank: int
) -> None:
    config = config_of(tiny_model, tmp_path, model={"lora_rank": lora_rank})
    expected = weights_sent(0, 1, config)
    first, second = together(2, weights_sent, config)
    assert second == {} and first.keys() == expected.keys()
    assert all((first[name] == expected[name]).all() for name in expected)


def test_a_frozen_encoder_is_never_sent_and_does_not_change(tiny_model: Path, tmp_path: Path) -> None:
    learner = learner_of(config_of(tiny_model, tmp_path, grpo={"trainable": "language"}))
    before = learner.frozen_checksum()
    assert learner.update(make_shards(0, groups_of(tiny_model), 1)[0])["grad_norm"] > 0
    assert learner.frozen_checksum() == before
    learned = [name for name, _ in learner.each_learned_weight()]
    assert learned and not any("visual" in name for name in learned)


def test_what_cannot_be_trained_so_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"grpo\.trainable=language: LoRA trains its adapters alone"):
        config_of(tiny_model, tmp_path, model={"lora_rank": 4}, grpo={"trainable": "language"})
    with pytest.raises(ConfigError, match=r"pasta\.trainable=vision: this stage trains the image encoder alone"):
        make_config({"pasta": {"trainable": "vision"}})


@pytest.mark.rest
def test_nodes_with_unequal_numbers_of_workers_are_refused(
    together: Processes, tiny_model: Path, tmp_path: Path
) -> None:
    """Ranks of two nodes, one of which has a worker more; and a node with more workers than were counted with."""
    config = config_of(tiny_model, tmp_path, learner=NODES_OF_TWO)
    with pytest.raises(
        ValueError, match=r"workers_per_node=2: 2 of these 3 workers are needed on every node, .* 2, 2, 1;"
    ):
        together(3, uneven, config)
    with pytest.raises(ValueError, match=r"2 of these 4 workers .* 4, 4, 4, 4; set learner.sharding=full"):
        together(4, one_step, config, 4)


def uneven(rank: int, world: int, config: Config) -> None:
    Workers(config.learner, rank=rank, world=world, per_node=1 if rank == 2 else 2)

"""cluster.yaml passes Ray's own validation, offline, and has room for what configs/hatch_3b.yaml asks for."""

from __future__ import annotations

import copy

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from hatch_ray.config import load_config


@pytest.fixture(scope="module")
def cluster(repository) -> dict:
    return yaml.safe_load((repository / "cluster.yaml").read_text(encoding="utf-8"))


def test_rays_schema_and_checks_accept_it(cluster):
    prepared = prepare_config(copy.deepcopy(cluster))
    validate_config(prepared)
    # What we wrote is what Ray will run: its AWS defaults (another Ray, another start command) filled nothing over it.
    assert prepared["setup_commands"] == cluster["setup_commands"]
    assert prepared["head_start_ray_commands"] == cluster["head_start_ray_commands"]


def test_rays_validation_would_have_found_a_mistake(cluster):
    wrong = copy.deepcopy(cluster)
    wrong["available_node_types"]["rollout"]["gpus"] = 1
    with pytest.raises(ValidationError, match="gpus"):
        validate_config(prepare_config(wrong))


def test_every_role_has_its_nodes(cluster):
    nodes = cluster["available_node_types"]
    assert set(nodes) == {"head", "learner", "rollout", "reward"}
    assert nodes["head"]["resources"] == {"CPU": 0, "head": 1}
    assert all(node["resources"][role] >= 1 for role, node in nodes.items())
    assert [role for role, node in nodes.items() if node["resources"].get("GPU")] == ["learner", "rollout"]


def test_the_papers_run_fits(cluster, repository):
    config = load_config(repository / "configs" / "hatch_3b.yaml")
    nodes = cluster["available_node_types"]

    def most(role: str, resource: str) -> float:
        return nodes[role]["max_workers"] * nodes[role]["resources"][resource]

    assert most("learner", "GPU") >= config.learner.workers * config.learner.gpus
    assert most("learner", "CPU") >= config.learner.workers * config.learner.cpus
    assert most("rollout", "GPU") >= config.rollout.actors * config.rollout.gpus
    assert most("rollout", "CPU") >= config.rollout.actors * config.rollout.cpus
    assert most("reward", "CPU") >= config.reward_actors.actors * config.reward_actors.cpus


def test_a_job_finds_the_environments_commands_and_the_token(cluster):
    for command in [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]:
        assert "/.venv/bin:$PATH" in command
        assert "RAY_AUTH_MODE=token" in command
    assert "/home/ubuntu/.ray/auth_token" in cluster["file_mounts"]
    assert "BACKEND=gpu" in " ".join(cluster["setup_commands"])

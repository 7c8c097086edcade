"""cluster.yaml, cluster.local.yaml and kuberay/ pass Ray's own validation, offline, and have room for the paper's run.

KubeRay's custom resource definitions are in no package registry. kuberay/ is read by what Ray's autoscaler reads it
with in a cluster, and its keys are compared with those that KubeRay documents; `kubectl apply --dry-run=server` (in the
files' comments) asks a cluster's own definitions.
"""

from __future__ import annotations

import copy
import json
import shlex
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from hatch_ray.config import ConfigError, load_config, make_config, parse_override
from serve.application import application
from serve.deployment import proxy_variables

ROLES = ("learner", "rollout", "reward")
FILES = ("cluster.yaml", "cluster.local.yaml")

JOB = {"entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit", "rayClusterSpec",
       "submissionMode", "runtimeEnvYAML", "submitterPodTemplate", "activeDeadlineSeconds", "suspend", "jobId",
       "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "metadata", "clusterSelector"}  # fmt: skip
SERVICE = {"serveConfigV2", "rayClusterConfig", "serveService", "upgradeStrategy", "excludeHeadPodFromServeSvc"}
CLUSTER = {"rayVersion", "enableInTreeAutoscaling", "authOptions", "autoscalerOptions", "headGroupSpec",
           "workerGroupSpecs", "gcsFaultToleranceOptions", "suspend"}  # fmt: skip
GROUP = {"rayStartParams", "template"}
WORKERS = GROUP | {"groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "idleTimeoutSeconds"}


@pytest.fixture(scope="module")
def cluster(repository) -> dict:
    return yaml.safe_load((repository / "cluster.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def local(repository) -> dict:
    return yaml.safe_load((repository / "cluster.local.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def job(repository) -> dict:
    return yaml.safe_load((repository / "kuberay" / "rayjob.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def service(repository) -> dict:
    return yaml.safe_load((repository / "kuberay" / "rayservice.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", FILES)
def test_rays_schema_and_checks_accept_it(repository, name):
    config = yaml.safe_load((repository / name).read_text(encoding="utf-8"))
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    # What we wrote is what Ray will run: its defaults (another Ray, another start command) filled nothing over it.
    assert prepared["setup_commands"] == config["setup_commands"]
    assert prepared["head_start_ray_commands"] == config["head_start_ray_commands"]
    assert prepared["worker_start_ray_commands"] == config["worker_start_ray_commands"]


def test_rays_validation_would_have_found_a_mistake(cluster, local):
    wrong = copy.deepcopy(cluster)
    wrong["available_node_types"]["rollout"]["gpus"] = 1
    with pytest.raises(ValidationError, match="gpus"):
        validate_config(prepare_config(wrong))
    wrong = copy.deepcopy(local) | {"worker_start_commands": []}
    with pytest.raises(ValidationError, match="worker_start_commands"):
        validate_config(prepare_config(wrong))


def test_every_role_has_its_nodes(cluster):
    nodes = cluster["available_node_types"]
    assert set(nodes) == {"head", *ROLES}
    assert nodes["head"]["resources"]["CPU"] == 0
    for role in ROLES:
        assert nodes[role]["resources"][role] >= 1
        assert not set(ROLES) - {role} & set(nodes[role]["resources"]), "a role's nodes take no other role"
    assert [role for role, node in nodes.items() if node["resources"].get("GPU")] == ["learner", "rollout"]
    assert nodes["reward"]["min_workers"] == 0 and "InstanceMarketOptions" in nodes["reward"]["node_config"]
    assert all(node["resources"]["object_store_memory"] >= 2**30 for node in nodes.values())


def test_the_papers_run_fits(cluster, job, repository):
    config = load_config(repository / "configs" / "hatch_3b.yaml")
    autoscaled = _derive_autoscaling_config_from_ray_cr(ray_cluster(job))["available_node_types"]
    for nodes in (cluster["available_node_types"], autoscaled):

        def most(role: str, resource: str, nodes: dict[str, Any] = nodes) -> float:
            return nodes[role]["max_workers"] * nodes[role]["resources"][resource]

        assert most("learner", "GPU") >= config.learner.workers * config.learner.gpus
        assert most("learner", "CPU") >= config.learner.workers * config.learner.cpus
        assert most("learner", "learner") >= config.learner.workers
        assert most("rollout", "GPU") >= config.rollout.actors * config.rollout.gpus
        assert most("rollout", "CPU") >= config.rollout.actors * config.rollout.cpus
        assert most("rollout", "rollout") >= config.rollout.actors
        assert most("reward", "CPU") >= config.reward_actors.actors * config.reward_actors.cpus
        assert most("reward", "reward") >= config.reward_actors.actors


def test_a_job_finds_the_environments_commands_and_the_token(cluster, local):
    for config, home in ((cluster, "/home/ubuntu"), (local, "~")):
        for command in [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]:
            assert "/.venv/bin:$PATH" in command
            assert "RAY_AUTH_MODE=token" in command and "HF_HOME=/shared/" in command
        assert f"{home}/.ray/auth_token" in config["file_mounts"]
        assert "BACKEND=gpu" in " ".join(config["setup_commands"])
        assert int(config["head_start_ray_commands"][0].split("STOP_WAIT_TIME_S=")[1].split(";")[0]) >= 60


@pytest.mark.parametrize("name", [*FILES, "kuberay/rayjob.yaml"])
def test_the_command_in_the_file_is_one_that_hatch_understands(repository, name):
    """Its config exists and its overrides are settings (those of the roles' resources are looked at by name)."""
    text = (repository / name).read_text(encoding="utf-8")
    if name in FILES:
        lines = text[text.index("hatch train") :].splitlines()
        end = next(number for number, line in enumerate(lines) if not line.endswith("\\"))
        command = " ".join(line.strip("# \\") for line in lines[: end + 1])
    else:
        command = yaml.safe_load(text)["spec"]["entrypoint"].replace("/opt/hatch-ray/", "")
    words = shlex.split(command)[2:]
    config, overrides = words[0], dict(map(parse_override, words[1:]))
    placed = {"learner.resources.learner", "rollout.resources.rollout", "reward_actors.resources.reward"}
    assert placed <= set(overrides)
    later = placed | {"deadlines.nodes_seconds"}
    loaded = load_config(
        repository / config, [f"{key}={value}" for key, value in overrides.items() if key not in later]
    )
    assert str(loaded.run_dir).startswith("/shared/")


# --- Kubernetes -------------------------------------------------------------------------------------------------


def ray_cluster(resource: dict) -> dict:
    """The RayCluster that KubeRay makes of a RayJob or RayService."""
    spec = resource["spec"]
    return {"metadata": resource["metadata"], "spec": spec.get("rayClusterSpec") or spec["rayClusterConfig"]}


def test_kuberay_knows_every_key(job, service):
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob") and set(job["spec"]) <= JOB
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService") and set(service["spec"]) <= SERVICE
    for resource in (job, service):
        spec = ray_cluster(resource)["spec"]
        assert set(spec) <= CLUSTER and set(spec["headGroupSpec"]) <= GROUP
        for group in spec["workerGroupSpecs"]:
            assert set(group) <= WORKERS and {"groupName", "minReplicas", "maxReplicas"} <= set(group)
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
            assert all(isinstance(value, str) for value in group["rayStartParams"].values())
            pod = group["template"]["spec"]
            volumes = {volume["name"] for volume in pod["volumes"]}
            for container in pod["containers"]:
                assert {mount["name"] for mount in container["volumeMounts"]} == volumes
                assert container["resources"]["requests"] == container["resources"]["limits"]


def test_rays_autoscaler_reads_the_kubernetes_groups(job, service):
    nodes = _derive_autoscaling_config_from_ray_cr(ray_cluster(job))["available_node_types"]
    assert set(nodes) == {"headgroup", *ROLES}
    assert nodes["headgroup"]["resources"]["CPU"] == 0
    assert nodes["learner"]["resources"] | {"memory": 0} == {"CPU": 16, "GPU": 1, "learner": 1, "memory": 0}
    assert nodes["reward"]["resources"] | {"memory": 0} == {"CPU": 8, "reward": 8, "memory": 0}
    assert (nodes["reward"]["min_workers"], nodes["reward"]["max_workers"]) == (0, 4)
    served = _derive_autoscaling_config_from_ray_cr(ray_cluster(service))["available_node_types"]
    assert served["rollout"]["resources"]["GPU"] == served["rollout"]["resources"]["rollout"] == 1
    wrong = copy.deepcopy(job)
    wrong["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["rayStartParams"]["resources"] = "{learner: 1}"
    with pytest.raises(json.JSONDecodeError):
        _derive_autoscaling_config_from_ray_cr(ray_cluster(wrong))


def test_both_files_ask_for_the_ray_of_the_lock_file(job, service, repository):
    lock = (repository / "requirements" / "gpu.lock").read_text(encoding="utf-8")
    for resource in (job, service):
        assert f"\nray=={ray_cluster(resource)['spec']['rayVersion']}\n" in lock


def test_serve_accepts_the_services_config(service):
    schema = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (app,) = schema.applications
    assert app.import_path == f"{application.__module__}:{application.__name__}"
    assert not app.deployments, "options of a deployment there would take the place of all that the config gives it"
    tree = {key.removeprefix("serve."): value for key, value in map(parse_override, app.args["overrides"])}
    config = make_config({"serve": tree})
    assert (config.serve.replicas, config.serve.cpus, config.serve.gpus) == (2, 4, 1)
    assert schema.http_options.request_timeout_s > config.serve.deadline_seconds
    (container,) = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"]
    environment = {one["name"]: one["value"] for one in container["env"]}
    assert environment.items() >= proxy_variables(config).items()
    with pytest.raises(ConfigError, match=r"/shared/runs/hatch_3b.*has no finished model"):
        application(app.args)
    with pytest.raises(ConfigError, match="unknown args"):
        application({"folder": "x"})

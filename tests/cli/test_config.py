"""Every mistake in a config is one clear line."""

import socket
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import grpc
import pytest

from hatch_ray.cluster_address import cluster_address
from hatch_ray.config import ConfigError, load_config, make_config, save_config
from hatch_ray.config_reference import fields, reference
from hatch_ray.run_folder import RunFolder


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("grpo: {beta: 0.02}\n")
    return path


def test_overrides_and_the_saved_copy(path, tmp_path):
    config = load_config(path, ["grpo.lr=1e-4", "data.tasks=[view_change_infer]", "run_dir=x"])
    assert (config.grpo.beta, config.grpo.lr, config.data.tasks) == (0.02, 1e-4, ["view_change_infer"])
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("grpo.bata=1", "did you mean 'grpo.beta'"),
        ("beta=1", "did you mean"),
        ("modle.base=x", "did you mean 'model.base'"),
        ("grpo.micro_batch=8", "was replaced by grpo.token_budget"),
        ("grpo.lr=-1", "greater than 0"),
        ("grpo.clip=abc", "valid number"),
        ("grpo=3", "valid dictionary"),
        ("stages=[grpo,pasta]", "keep the order"),
        ("stages=[]", "name at least one"),
        ("grpo.prompts_per_step=3", "multiple of"),
        ("nonsense", "is not KEY=VALUE"),
        ("grpo.lr=[", "not readable as YAML"),
        ("run_dir.x=1", "run_dir"),
        ("rollout.resources={CPU: 1}", "rollout.resources: CPU is not a resource of your own"),
    ],
)
def test_each_mistake_is_one_line_that_says_what_to_do(path, override, words):
    with pytest.raises(ConfigError, match=words.replace("[", r"\[")) as caught:
        load_config(path, [override, "learner.workers=2"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["- 1", "a: [", "\x00"])
def test_unreadable_files(tmp_path, text):
    bad = tmp_path / "bad.yaml"
    bad.write_text(text)
    with pytest.raises(ConfigError):
        load_config(bad)
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "absent.yaml")


def test_a_key_of_a_section_leaves_the_sections_other_defaults(pytestconfig):
    assert make_config({"cold_start": {"lr": "1e-3"}}).cold_start.fraction == 0.1
    assert make_config({"cold_start": {"fraction": 1}}).cold_start.fraction == 1
    teach = load_config(pytestconfig.rootpath / "examples" / "brighter.yaml").teach
    assert (teach.batch_size, teach.lr, teach.max_steps) == (8, 1e-3, 60)


def test_every_shipped_config_is_valid(pytestconfig):
    for path in sorted((pytestconfig.rootpath / "configs").glob("*.yaml")):
        load_config(path)


def test_the_configuration_page_is_what_the_schema_says(pytestconfig):
    assert [key for key, _, meaning in fields() if not meaning] == []
    page = (pytestconfig.rootpath / "docs" / "configuration.md").read_text()
    assert page == reference(), "docs/configuration.md is old; run: hatch config > docs/configuration.md"


def test_a_bucket_is_a_runs_home_and_never_taken_for_a_folder_of_that_name(tmp_path):
    config = make_config({"run_dir": "s3://bucket/runs/a_1.b/"})
    assert config.run_dir == "s3://bucket/runs/a_1.b"
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    with pytest.raises(ValueError, match="is a bucket, where a folder is needed"):
        RunFolder(config.run_dir)


@pytest.mark.parametrize(
    "place",
    ["s3://bucket", "s3://bucket/", "s3://bucket/../x", "s3://bucket//x", "http://bucket/run", "s3:///run", "gs://b/.x",
     "s3://AKIAKEY:hunter2@bucket/run", "s3://bucket/run?secret_key=hunter2", "s3://bucket/run#hunter2"],
)  # fmt: skip
def test_an_address_that_is_none_or_holds_keys_is_refused_and_not_repeated(place):
    with pytest.raises(ConfigError, match=r"s3://BUCKET/FOLDER.*from the environment") as refusal:
        make_config({"run_dir": place})
    assert "hunter2" not in str(refusal.value)


def test_a_cluster_that_does_not_answer_is_told_at_once(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cluster_address() == "local"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert cluster_address() == "auto"
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=f"RAY_ADDRESS={address}: no Ray cluster answers there .* unset RAY_ADDRESS"):
        cluster_address()


def test_what_speaks_as_a_clusters_head_does_is_joined(monkeypatch):
    server = grpc.server(ThreadPoolExecutor(1))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert cluster_address() == address
    server.stop(None)


def test_another_service_at_that_port_is_told_within_seconds(monkeypatch):
    """As the dashboard's 8265."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ConfigError, match=f"RAY_ADDRESS={address}: something else .* usually 6379"):
            cluster_address()
        server.shutdown()


def test_addresses_and_folders_that_ray_cannot_use(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS=ray://head:10001: .*HOST:PORT .*ray job submit"):
        cluster_address()
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "a" * 90)
    with pytest.raises(ConfigError, match=r"RAY_TMPDIR=/tmp/a+ is too long: .* at most \d+"):
        cluster_address()


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("run_dir=2025-06-14", Path("2025-06-14")),
        ("run_dir=a: b", Path("a: b")),
        ("model.base=007", "007"),
        ("data.root=null", None),
        ("serve.api_key_env=null", "null"),
        ("seed=010", 10),
        ("data.samples=1_000", 1000),
        ("grpo.lr=1e-4", 1e-4),
        ("tensorboard=no", False),
        ("data.tasks=[2025-06-14, yes]", ["2025-06-14", "yes"]),
        ("rollout.resources={rollout: 1}", {"rollout": 1.0}),
        ("data.spar.leave_out=[a b]", [Path("a b")]),
    ],
)
def test_an_override_is_read_as_its_field_is(path, override, read):
    value = load_config(path, [override])
    for part in override.partition("=")[0].split("."):
        value = getattr(value, part)
    assert value == read


@pytest.mark.parametrize(
    "override", ["data.samples=1:30", "grpo.lr=.inf", "grpo.lr=inf", "reward.tau_t=nan", "seed=true"]
)
def test_what_is_no_number_or_not_finite_is_refused(path, override):
    with pytest.raises(ConfigError, match=override.partition("=")[0].replace(".", r"\.")) as refused:
        load_config(path, [override])
    assert "\n" not in str(refused.value) and override.partition("=")[2] in str(refused.value)

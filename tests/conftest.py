"""Fixtures shared by all tests: a tiny model folder, the real frames, one Ray cluster for the session."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.support.own_ray import prepare_ray

# Before any test module imports torch, vLLM or Ray. Two small cores run every test at its pace with one thread each;
# no test may ask the network for anything.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
SCRATCH = prepare_ray()

# No test may fail because the machine was busy: an example has no time limit. Under continuous integration ($CI) the
# examples are the same every time, so that a change is judged by what it changed; elsewhere they are drawn anew.
settings.register_profile("hatch", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("hatch")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root folder of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete Qwen2.5-VL folder of random weights (seed 0); do not write into it."""
    from tools.tiny import make_tiny

    return make_tiny(tmp_path_factory.mktemp("model") / "tiny", 0)


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete Qwen3-VL folder of random weights: grouped keys, a tied head, two levels of DeepStack."""
    from tools.tiny import make_tiny
    from tools.tiny_qwen3 import TinyQwen3

    shape = TinyQwen3(text_layers=3, vision_layers=3, tied=True)
    return make_tiny(tmp_path_factory.mktemp("model") / "tiny_qwen3", 0, shape)


@pytest.fixture(scope="session")
def taught_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That model after a short lesson: its replies differ in reward, so that GRPO has something to learn from."""
    from tests.support.taught import teach

    return teach(tiny_model, tmp_path_factory.mktemp("model") / "taught")


@pytest.fixture(scope="session")
def redkitchen() -> Path:
    """The folder of real posed RGB-D frames (7-Scenes form): $HATCH_REDKITCHEN, or ../shared/rgbd/redkitchen."""
    folder = Path(os.environ.get("HATCH_REDKITCHEN", REPOSITORY.parent / "shared" / "rgbd" / "redkitchen"))
    if not (folder / "camera-intrinsics.txt").is_file():
        pytest.skip(f"no real frames at {folder}: set HATCH_REDKITCHEN to a folder of 7-Scenes frames")
    return folder


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """Ray, started on this machine with four logical CPUs for all tests that need it; yields the `ray` module."""
    import ray

    ray.init(
        address="local", num_cpus=4, include_dashboard=False, object_store_memory=256 * 2**20,
        logging_level="warning", _temp_dir=str(SCRATCH / "ray"),
    )  # fmt: skip
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def engine_pool(ray_cluster: Any) -> Iterator[Callable[..., Any]]:
    """`engine_pool(model, config)`: one started EnginePool for each set of arguments, with the model's own weights
    whenever it is asked for. For tests that leave its processes alone.
    """
    from actors.rollout.engines import EnginePool
    from hatch_ray.config import Config

    started: dict[tuple[str, str], EnginePool] = {}

    def pool(model: Path, config: Config) -> EnginePool:
        key = (str(model), config.model_dump_json())
        if key not in started:
            started[key] = EnginePool(model, config)
            started[key].ready()
        else:
            started[key].load_folder(model)
        return started[key]

    yield pool
    for engines in started.values():
        engines.stop()


@pytest.fixture(scope="session")
def service(ray_cluster: Any, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of one service with the tiny model, for every test that only asks it."""
    from hatch_ray.config import make_config, save_config
    from hatch_ray.run_folder import RunFolder
    from serve.launch import start_service, stop_service

    run = RunFolder(tmp_path_factory.mktemp("serve"))
    (run.path / "grpo").mkdir()
    run.stage_model("grpo").symlink_to(tiny_model)
    run.link_model("grpo")
    config = make_config(
        {
            "run_dir": str(run.path),
            "model": {"template": "compact-v1", "max_images": 3, "max_length": 768, "max_pixels": 224 * 224},
            "serve": {"max_new_tokens": 400, "max_body_mb": 16, "body_seconds": 3, "cpus": 0.5},
        }
    )
    save_config(config, run.config_path)
    yield start_service(config, run, port=0)
    stop_service()

"""An engine of the service that is over holds up nothing: a garbage collection must not wait for its sockets."""

import subprocess
import sys

import pytest

from hatch_ray.run_folder import RunFolder
from tests.support.runs import REPOSITORY

SECONDS = 20
"""For one garbage collection; it takes milliseconds where nothing is waited for."""

ENDS = """
import asyncio, faulthandler, gc, sys
from pathlib import Path
from hatch_ray.environment import prepare_environment
prepare_environment()
import psutil
import vllm.v1.engine.async_llm  # it keeps an error of its own import, whose frames would keep what imports it
from hatch_ray.config import make_config
from hatch_ray.run_folder import RunFolder
from serve.engine import ReasonEngine
from serve.settings import Settings

folder, way, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
tree = {"model": {"template": "compact-v1", "max_length": 512}, "rollout": {"kv_cache_mb": 64}}
settings = Settings.of(make_config(tree), RunFolder(folder))

async def start():
    engine = ReasonEngine(settings)
    assert await engine.probe()
    return engine

loop = asyncio.new_event_loop()
engine = loop.run_until_complete(start())
if way == "closed in another loop":
    asyncio.run(engine.close())
if way == "its process is killed":
    for child in psutil.Process().children(recursive=True):
        child.kill()
faulthandler.dump_traceback_later(seconds, exit=True)
del engine, loop
gc.collect()
faulthandler.cancel_dump_traceback_later()
left = [child for child in psutil.Process().children() if "EngineCore" in child.name()]
assert not left, left
print("collected")
"""


@pytest.mark.rest
@pytest.mark.parametrize("way", ["closed in another loop", "dropped", "its process is killed"])
def test_a_garbage_collection_does_not_wait_for_an_engine_that_is_over(tiny_model, tmp_path, way):
    run = RunFolder(tmp_path)
    (run.path / "grpo").mkdir()
    run.stage_model("grpo").symlink_to(tiny_model)
    run.link_model("grpo")
    done = subprocess.run(
        [sys.executable, "-c", ENDS, str(tmp_path), way, str(SECONDS)], cwd=REPOSITORY, capture_output=True,
        text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.endswith("collected\n"), done.stdout + done.stderr

"""Environment variables for every process, set in one place before torch, vLLM or Ray are imported.

A variable the user has set is never changed. OMP_NUM_THREADS is left to Ray, which gives every actor as many threads as
it was promised CPUs: engines that share cores with more threads than that fall to a fifth of their speed.
Standard library only, so that `hatch --help` stays quick.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from importlib import metadata

EVERYWHERE = {
    # One vLLM engine lives inside its rollout actor: no engine process of its own, weights are handed over in memory.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Tokenizers' own threads warn about, and can hang after, a fork.
    "TOKENIZERS_PARALLELISM": "false",
    # Ray Train looks at its workers ten times a second: a short stage ends when it ends, not two seconds later.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    # On a busy machine the workers' start can take longer than Ray Train's own minute.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    # Keep CUDA_VISIBLE_DEVICES as it is in actors that asked for no GPU (what Ray will do by default).
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Errors only, so that progress bars and stage lines can be read; set them to INFO to see what the engines say.
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TRANSFORMERS_VERBOSITY": "error",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "NIXL_LOG_LEVEL": "WARN",
    # Ray gives an engine a minute to read weights over NIXL; large ones that several engines read may take longer.
    "RAY_rdt_fetch_fail_timeout_milliseconds": "300000",
}

WITH_CPU_ENGINE = {
    # vLLM on CPU compiles two small helpers only: seven seconds at the first call, nothing gained after.
    "TORCHDYNAMO_DISABLE": "1",
    # Threads that wait sleep; spinning ones take the core from the other actors.
    "OMP_WAIT_POLICY": "PASSIVE",
    # vLLM would bind every engine's threads to core 0 onwards, so all engines to the same cores.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # oneDNN keeps a kernel for each shape it has met, by default 1024: an engine grows by half a gigabyte before that
    # many are there, and is no faster with them (`python -m bench.serve_load`).
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256",
    # Watches for cloud pre-emption through the dashboard; without one it only logs an error.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


SECRET = re.compile("KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
"""Names of variables that no pattern fits: Ray shows what workers are given to everybody who sees its dashboard."""


def installed(package: str) -> str | None:
    """The installed version of a distribution, None where it is absent."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def has_cpu_engine() -> bool:
    """Whether vLLM's CPU build is the one installed."""
    return installed("vllm-cpu") is not None


def variables(also: Iterable[str] = ()) -> dict[str, str]:
    """Every variable named here with the value it has, or else the one it is given; and those of this process whose
    names are in `also` or fit it ("NCCL_*"; a secret's name fits none).

    Hand them to Ray (`runtime_env={"env_vars": variables()}`): workers of a cluster that was started elsewhere do not
    inherit this process's environment.
    """
    defaults = {**EVERYWHERE, **(WITH_CPU_ENGINE if has_cpu_engine() else {})}
    wanted = tuple(also)
    own = {
        name: value
        for name, value in os.environ.items()
        if name in wanted or (not SECRET.search(name) and any(fnmatchcase(name, one) for one in wanted))
    }
    return own | {name: os.environ.get(name, value) for name, value in defaults.items()}


def prepare_environment() -> None:
    """Set what is not set yet. Call it before torch, vLLM or Ray are imported."""
    os.environ.update(variables())
    # Ray says at every start that the cluster asks for a token, which the user need not act on.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)

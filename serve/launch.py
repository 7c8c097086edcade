"""Start and stop the service: on the cluster of this process, of RAY_ADDRESS, or one of its own."""

from __future__ import annotations

import logging
import signal
import socket
import threading
import time
from typing import Literal

import httpx
import ray
from ray import serve as ray_serve
from ray.serve.config import HTTPOptions

from hatch_ray.cluster_address import LOCAL, cluster_address
from hatch_ray.config import Config, ConfigError
from hatch_ray.model.folder_check import check_model_folder
from hatch_ray.run_folder import RunFolder
from serve.deployment import QUIET, bound, deployment_options, proxy_variables
from serve.settings import Settings

APP_NAME = "hatch"
START_DEADLINE_S = 600.0
EDGE_MARGIN_S = 5.0
"""Seconds that Ray Serve waits longer than a replica's own deadline."""
STOP_MARGIN_S = 30.0
"""Seconds beyond the requests' deadline in which a replica must have ended."""

logger = logging.getLogger("ray.serve")

_ray_of_ours: Literal["", "joined", "started"] = ""
"""What `start_service` did to have a cluster: nothing, joined the one of RAY_ADDRESS, started one on this machine."""

_grace_s: dict[str, float] = {}
"""How long a stop of an application waits for what runs, seconds."""


def start_service(
    config: Config, run: RunFolder, port: int | None = None, blocking: bool = False, name: str = APP_NAME
) -> str:
    """Serve the run's model; returns the base URL once `/healthz` answers.

    port: in place of serve.port; 0: one that is free. name: of the Ray Serve application. Another one than APP_NAME is
    served below /name of the port that Ray Serve listens on already.

    Uses the Ray cluster of this process, else the one that RAY_ADDRESS names, else starts one here. With `blocking` it
    returns after Ctrl-C, the service stopped. Raises ValueError when there is no model or its folder is not whole, the
    port is taken or CPUs or GPUs are too few, and when the service is not up within START_DEADLINE_S.
    """
    global _ray_of_ours
    serving = config.serve
    if not (run.model / "config.json").is_file():
        raise ConfigError(f"{run.path} has no finished model to serve; finish a stage with `hatch train` first")
    check_model_folder(run.model.resolve())
    prefix = "" if name == APP_NAME else f"/{name}"
    port = serving.port if port is None else port
    if not prefix:
        port = _checked_port(serving.host, port)
    deployment_options(config)  # what is wrong with them is said before a cluster starts
    settings = Settings.of(config, run)
    if not ray.is_initialized():
        address = cluster_address()
        options = {"include_dashboard": False} if address == LOCAL else {}
        ray.init(address=address, log_to_driver=False, logging_level="warning", **options)
        _ray_of_ours = "started" if address == LOCAL else "joined"
    try:
        _check_resources(config)
        _deploy(settings, port, name)
        url = f"http://{'127.0.0.1' if serving.host == '0.0.0.0' else serving.host}:{port}{prefix}"
        _wait_until_healthy(url, name)
    except BaseException:
        stop_service(name)
        raise
    if blocking:
        _serve_until_interrupt(url, settings.version)
    return url


def stop_service(name: str = APP_NAME) -> None:
    """Stop the service once the requests that run are answered; new ones are refused meanwhile.

    With another name than APP_NAME nothing else stops. Else Ray Serve does, and the cluster when `start_service`
    started it; one that it joined is left.
    """
    global _ray_of_ours
    if name in ray_serve.status().applications:
        ray_serve.delete(name, _blocking=False)  # which would wait for a minute at most
        deadline = time.monotonic() + _grace_s.pop(name, 0.0) + STOP_MARGIN_S
        while name in ray_serve.status().applications and time.monotonic() < deadline:
            time.sleep(0.1)
    if name != APP_NAME:
        return
    if _ray_of_ours != "started":
        ray_serve.shutdown()
    if _ray_of_ours:
        ray.shutdown()
    _ray_of_ours = ""


def _checked_port(host: str, port: int) -> int:
    """A port that can be listened on: this one, or any where it is 0."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}:{port} ({error.strerror}); choose another serve.port") from None
        return int(probe.getsockname()[1])


def _check_resources(config: Config) -> None:
    serving, have = config.serve, ray.cluster_resources()
    for name, each in (("CPU", serving.cpus), ("GPU", serving.gpus)):
        needed = serving.replicas * each
        if needed > have.get(name, 0):
            raise ConfigError(
                f"the service needs {needed:g} {name}s ({serving.replicas} replicas of {each:g}), the cluster has "
                f"{have.get(name, 0):g}; lower serve.replicas or serve.{name.lower()}s"
            )


def _deploy(settings: Settings, port: int, name: str) -> None:
    serving = settings.config.serve
    logger.setLevel(logging.WARNING)
    timeout = serving.deadline_seconds + EDGE_MARGIN_S
    ray_serve.start(
        http_options=HTTPOptions(host=serving.host, port=port, request_timeout_s=timeout),
        logging_config=QUIET,
        controller_options={"runtime_env": {"env_vars": proxy_variables(settings.config)}},
    )
    prefix = "/" if name == APP_NAME else f"/{name}"
    target = ray_serve.RunTarget(target=bound(settings), name=name, route_prefix=prefix)
    _grace_s[name] = serving.deadline_seconds
    ray_serve.run_many([target], wait_for_applications_running=False)


def _wait_until_healthy(url: str, name: str) -> None:
    """Until the replica runs and the proxy passes requests on to it."""
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline:
        state = ray_serve.status().applications.get(name)
        if state is not None and state.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            reasons = [d.message for d in state.deployments.values() if d.message] or [state.message]
            lines = [line.strip() for line in " ".join(reasons).splitlines() if line.strip()]
            raise ConfigError(f"the service could not start: {lines[-1] if lines else 'Ray Serve gave no reason'}")
        if state is not None and state.status == "RUNNING":
            try:
                if httpx.get(f"{url}/healthz", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                logger.debug("the proxy does not answer yet at %s", url)
        time.sleep(0.2)
    raise ConfigError(
        f"the service was not ready at {url} within {START_DEADLINE_S:g} s; look for waiting replicas with "
        "`serve status`, and for the reason in Ray's log folder"
    )


def _serve_until_interrupt(url: str, version: str) -> None:
    """Until Ctrl-C or a SIGTERM (which Ray would answer with an abort); then stop in order."""
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    print(f"serving {version} at {url}: POST /reason, GET /healthz, /readyz, /metrics; Ctrl-C stops it", flush=True)
    stopping.wait()
    print("stopping", flush=True)
    stop_service()

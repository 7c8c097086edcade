"""The service as an application that a Ray Serve config file names: `import_path: serve.application:application`.

`serve deploy` and Kubernetes (kuberay/rayservice.yaml) start it on a cluster that runs already; `hatch serve` is
`serve/launch.py`.
"""

from __future__ import annotations

from typing import Any

from ray.serve import Application

from hatch_ray.config import ConfigError, load_config
from hatch_ray.environment import prepare_environment, variables
from hatch_ray.run_folder import RunFolder


def application(args: dict[str, Any]) -> Application:
    """The run's model behind `POST /reason`; replicas, CPUs and GPUs as the file's `deployments` or the config say.

    args: {"run": a run folder on storage that every node sees, "overrides": [changes to its config, such as
    "serve.max_new_tokens=256"], which may be left out}. Raises ConfigError when they are others, and when the
    folder has no finished model.
    """
    if unknown := set(args) - {"run", "overrides"}:
        raise ConfigError(f"unknown args {sorted(unknown)}; give run and, where wanted, overrides")
    run = RunFolder(args.get("run", ""))
    if "run" not in args or not run.config_path.is_file() or not (run.model / "config.json").is_file():
        raise ConfigError(f"args.run={args.get('run')!r} has no finished model; name a folder that `hatch train` made")
    prepare_environment()
    from serve.app import ReasonService
    from serve.settings import Settings

    config = load_config(run.config_path, [f"run_dir={run.path}", *args.get("overrides", [])])
    options: dict[str, Any] = {
        "num_cpus": config.serve.cpus,
        "num_gpus": config.serve.gpus,
        "runtime_env": {"env_vars": variables()},
    }
    service: Any = ReasonService
    bound: Application = service.options(num_replicas=config.serve.replicas, ray_actor_options=options).bind(
        Settings.of(config, run)
    )
    return bound

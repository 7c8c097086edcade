"""The service as an application that a Ray Serve config file names: `import_path: serve.application:application`.

`serve deploy` and Kubernetes (kuberay/rayservice.yaml) start it on a cluster that runs already; `hatch serve` is
`serve/launch.py`.
"""

from __future__ import annotations

from typing import Any

from ray.serve import Application

from hatch_ray.config import ConfigError, load_config
from hatch_ray.environment import prepare_environment
from hatch_ray.run_folder import RunFolder


def application(args: dict[str, Any]) -> Application:
    """The run's model behind `POST /reason`, with all that its config says of the service but host and port.

    args: {"run": a run folder on storage that every node sees, "overrides": [changes to its config, such as
    "serve.replicas=2"], which may be left out}. Raises ConfigError when they are others, when the folder has no
    finished model, and when the environment has no key where serve.api_key_env names one.
    """
    if unknown := set(args) - {"run", "overrides"}:
        raise ConfigError(f"unknown args {sorted(unknown)}; give run and, where wanted, overrides")
    run = RunFolder(args.get("run", ""))
    if "run" not in args or not run.config_path.is_file() or not (run.model / "config.json").is_file():
        raise ConfigError(f"args.run={args.get('run')!r} has no finished model; name a folder that `hatch train` made")
    prepare_environment()
    from serve.deployment import bound
    from serve.settings import Settings

    config = load_config(run.config_path, [f"run_dir={run.path}", *args.get("overrides", [])])
    return bound(Settings.of(config, run))

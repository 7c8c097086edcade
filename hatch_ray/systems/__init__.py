"""Systems by name: those of this package, and a user's own as module:CLASS."""

from __future__ import annotations

import importlib
import os
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hatch_ray.config import Config
    from hatch_ray.systems.base import System

KNOWN = {
    "hatch": "hatch_ray.systems.hatch.system:Hatch",
    "matching": "hatch_ray.systems.matching.system:Matching",
    "viewpoint": "hatch_ray.systems.viewpoint.system:Viewpoint",
}


@lru_cache(maxsize=32)
def load_system(name: str) -> type[System]:
    """The class of a system. Its module is looked for in the working folder too.

    Raises ValueError that says what is missing.
    """
    place = KNOWN.get(name, name)
    module_name, colon, class_name = place.partition(":")
    if not colon:
        raise ValueError(f"system {name!r} is not known: use one of {', '.join(KNOWN)}, or module:CLASS for your own")
    if place == name:
        _look_here()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name.split(".")[0]:
            raise
        raise ValueError(
            f"system {name!r}: there is no module {module_name} in {os.getcwd()} or on PYTHONPATH; start hatch where "
            "the file lies, or install it"
        ) from None
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and all(hasattr(found, name) for name in ("Config", "stages", "score"))):
        raise ValueError(f"system {name!r}: {module_name} has no class {class_name} that is a hatch_ray System")
    system: type[System] = found
    for stage in system.stages:
        if (stage.kind == "grpo") != (stage.name == "grpo"):
            raise ValueError(f"system {name!r}: the stage of kind grpo is called grpo, and no other one is")
        for section in (stage.name, stage.data):
            if section not in system.Config.model_fields:
                raise ValueError(
                    f"system {name!r}: its Config has no section {section}, which stage {stage.name} needs"
                )
    return system


def system_of(config: Config) -> Any:
    """The system that a config names, with this config."""
    return load_system(config.system)(config)


def _look_here() -> None:
    """Let this process and those that it starts import modules that lie in the working folder."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    inherited = os.environ.get("PYTHONPATH", "")
    if here not in inherited.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(part for part in (here, inherited) if part)

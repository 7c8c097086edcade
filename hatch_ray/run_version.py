"""A run folder and the hatch-ray that opens it: made by which version, with which settings, and can it be resumed?"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import yaml

from hatch_ray import __version__
from hatch_ray.config import PRECISION, REPLACED, Config, ConfigError, make_config
from hatch_ray.run_folder import RunFolder, write_atomic

FORMAT = 1
"""Counts layouts of a run folder that an earlier hatch-ray could not go on with."""


def write_version(run: RunFolder) -> None:
    """Note that this version writes into the folder."""
    write_atomic(run.version_path, json.dumps({"hatch_ray": __version__, "format": FORMAT}))


def compare_with_run(config: Config, run: RunFolder, free: Collection[str]) -> str | None:
    """One line on what another version made, or None when this one wrote last.

    free: sections that may differ. Raises ConfigError where the run cannot be resumed: it has a newer format, a config
    that is not readable, or was made with other settings, each of which is named.
    """
    version, number = _maker(run)
    made = f"{run.path} was made by {version}, this is hatch-ray {__version__}"
    if number > FORMAT:
        raise ConfigError(
            f"{made}, which cannot go on with its format {number} (it knows {FORMAT}); use that version, or choose "
            "another run_dir"
        )
    try:
        tree = yaml.safe_load(run.config_path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{run.config_path} is not readable ({' '.join(str(error).split())}); fix it") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{run.config_path} does not hold a mapping of sections; fix it, or choose another run_dir")
    defaults = make_config({"system": config.system})
    then, default, now = (flat(each) for each in (tree, *(c.model_dump(mode="json") for c in (defaults, config))))
    if "model.dtype" in then:
        raise ConfigError(
            f"{made}, where model.dtype={then['model.dtype']} was replaced by {REPLACED['model.dtype']}: set these in "
            f"{run.config_path} in its place, and in your config, or choose another run_dir"
        )
    fixed = [k for k in now if k.split(".")[0] not in free or k in PRECISION]
    changed = [k for k in fixed if then.get(k, default[k]) != now[k]]
    if changed:
        differ = ", ".join(f"{key}: {then.get(key, default[key])!r} then, {now[key]!r} now" for key in changed)
        by = "" if version == f"hatch-ray {__version__}" else f" and by {version} (this is hatch-ray {__version__})"
        raise ConfigError(
            f"{run.path} was made with another config ({differ}){by}; choose another run_dir, or delete it"
        )
    gone = [key for key in then if key not in now]
    words = [f"{key} is now {REPLACED[key]}={now[REPLACED[key]]!r}" for key in gone if key in REPLACED]
    words += [f"{key}={then[key]!r} is no longer a setting" for key in gone if key not in REPLACED]
    words += [f"{key} is new and {now[key]!r}" for key in now if key not in then]
    if not words and version == f"hatch-ray {__version__}":
        return None
    return f"{made}; the run goes on with it" + (f" ({', '.join(words)})" if words else "")


def _maker(run: RunFolder) -> tuple[str, int]:
    """The version that wrote last, in words, and its format."""
    if not run.version_path.is_file():
        return "a hatch-ray that did not note its version", 0
    try:
        noted = json.loads(run.version_path.read_text(encoding="utf-8"))
        return f"hatch-ray {noted['hatch_ray']}", int(noted["format"])
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{run.version_path} is not readable; delete it to go on with this hatch-ray, or choose another run_dir"
        ) from None


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys; a role's resources are one value."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        section = isinstance(value, dict) and key != "resources"
        result |= flat(value, f"{prefix}{key}.") if section else {prefix + str(key): value}
    return result

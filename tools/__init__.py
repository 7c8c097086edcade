"""Tools that no run needs, for work on hatch-ray: `python -m tools.NAME --help` in a clone. No wheel has them."""

from hatch_ray.environment import prepare_environment

prepare_environment()  # before a tool imports torch

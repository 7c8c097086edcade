"""Measurements. Each module is a command: `python -m bench.learner`; `make bench` runs all that fit on a laptop."""

from hatch_ray.environment import prepare_environment

prepare_environment()  # before torch, vLLM or Ray are imported

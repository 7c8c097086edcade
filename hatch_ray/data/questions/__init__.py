"""Question types by geometry: one module a family, each task one function with the `task` decorator."""

from importlib import import_module

from hatch_ray.data.questions.choices import as_choice
from hatch_ray.data.questions.registry import TASKS, Question, Task, choose_tasks, task

FAMILIES = ("camera", "relation", "imagination", "matching", "metric", "nearest")
"""The modules of tasks. Questions are drawn in this order: another one gives a dataset other questions."""
for family in FAMILIES:
    import_module(f"{__name__}.{family}")

__all__ = ["TASKS", "Question", "Task", "as_choice", "choose_tasks", "task"]

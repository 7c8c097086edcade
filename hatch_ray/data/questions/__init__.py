"""Question types by geometry: one module a family, each task one function with the `task` decorator."""

from hatch_ray.data.questions import camera, imagination, matching, metric, nearest, relation
from hatch_ray.data.questions.choices import as_choice
from hatch_ray.data.questions.registry import TASKS, Question, Task, choose_tasks, task

__all__ = [
    "TASKS",
    "Question",
    "Task",
    "as_choice",
    "camera",
    "choose_tasks",
    "imagination",
    "matching",
    "metric",
    "nearest",
    "relation",
    "task",
]

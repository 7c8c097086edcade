"""Question types by geometry: one module a family, each task one function with the `task` decorator."""

from hatch_ray.data.questions import camera, matching, metric, relation
from hatch_ray.data.questions.registry import TASKS, Question, Task, choose_tasks, task

__all__ = ["TASKS", "Question", "Task", "camera", "choose_tasks", "matching", "metric", "relation", "task"]

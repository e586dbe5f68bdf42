"""Tasks: what a model is measured by besides its loss, and how sure a difference between two is."""

from .task import NORMALIZED, Outcome, TaskOptions, check_task, run_task

__all__ = ["NORMALIZED", "Outcome", "TaskOptions", "check_task", "run_task"]

"""What a run would take, counted before any of it: parameters, memory by kind, operations, time."""

from .subject import Subject, subject_of_path, subject_of_shape

__all__ = ["Subject", "subject_of_path", "subject_of_shape"]

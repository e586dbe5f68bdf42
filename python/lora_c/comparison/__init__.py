"""Comparisons: the same base, data and budget with one method after the other, each in a process of its own."""

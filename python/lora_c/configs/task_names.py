"""The tasks that a model is measured by (`tasks/` does them)."""

WRITTEN = ("exact-match", "f1", "rouge-l", "bleu")  # their answers are written
TASKS = ("perplexity", *WRITTEN, "multiple-choice")

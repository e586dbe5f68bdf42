"""The folder of a training run: its record, its checkpoints, its metrics, and whether a run may go on in it."""

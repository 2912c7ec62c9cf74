"""The run folder: its record, checkpoints, exports and metrics."""

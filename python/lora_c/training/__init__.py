"""The training loop and what surrounds it: schedules, callbacks, interruption, memory."""

"""What keeps a run: settings, experience, evaluation, checkpoints, logs, and the process around them."""

"""The loop that the gradient learners share, and its checkpoints."""

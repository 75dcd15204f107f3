"""The training loop, its optimisers, checkpoints, distributed wrappers and metrics."""

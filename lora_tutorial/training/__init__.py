"""The training loop, its checks, checkpoints, recipes and records. Knows a model, loaders and a metric."""

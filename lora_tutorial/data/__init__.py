"""The tasks: one table, where their rows come from, how they become batches, how they are scored."""

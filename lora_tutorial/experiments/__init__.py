"""Runs put together: one experiment, a grid of them, baselines, and adapters worth shipping."""

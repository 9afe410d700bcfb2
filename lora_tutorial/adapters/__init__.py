"""Adapters as files: saved, loaded, swapped, described, and carried to PEFT and back."""

"""The command ``lora-tutorial``."""

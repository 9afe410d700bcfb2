"""``python -m lora_tutorial`` is the command ``lora-tutorial``."""

from lora_tutorial.cli.main import main

if __name__ == "__main__":
    main()

"""``python -m lora_c`` is the ``lora-c`` command."""

from .cli import main

main()

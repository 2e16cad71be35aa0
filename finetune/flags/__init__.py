"""The flags of ``finetune.py``: declared, parsed, checked, explained."""

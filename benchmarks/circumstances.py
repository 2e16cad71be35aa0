"""When, where and with what a benchmark ran: the head of its result."""

import datetime
import platform
from typing import Any

import torch


def circumstances(device: str = "cpu") -> dict[str, Any]:
    """Date, machine, threads and torch, as results have them; ``device``: "cpu" or "cuda"."""
    return {
        "date": datetime.date.today().isoformat(),
        "machine": torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }

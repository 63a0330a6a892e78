"""On which device a task or actor works."""

from __future__ import annotations


def device_for(gpus: float) -> str:
    """The device that goes with the GPUs a task or actor reserved: ``cuda`` or ``cpu``.

    Ray shows a process the GPUs it reserved, but hides none from one that reserved none. So what
    torch sees says nothing: whoever reserves says the device, too.
    """
    return "cuda" if gpus else "cpu"

"""The device of a task or actor."""

from __future__ import annotations


def device_for(gpus: float) -> str:
    """The device for the GPUs that a task or actor reserved: ``cuda`` or ``cpu``.

    Ray does not hide GPUs from a process that reserved none, so torch sees them there, too: the
    caller that reserves resources also chooses the device.
    """
    return "cuda" if gpus else "cpu"

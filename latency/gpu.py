"""The NVIDIA GPUs of this machine, as the driver's own `nvidia-smi` names them."""

import os
import subprocess

_QUERY = ("nvidia-smi", "--query-gpu=uuid,name,driver_version,compute_cap", "--format=csv,noheader")
# It takes a second or two where no process holds the driver.
_ANSWER_S = 60.0


def gpu_kinds() -> tuple[str, ...]:
    """Each kind of GPU here: name, driver and compute capability; nothing where there is none, or no `nvidia-smi`.

    Of unlike GPUs the one that is used shows only where `CUDA_VISIBLE_DEVICES` names it by its UUID: CUDA numbers
    them otherwise than the driver does. Slices of a GPU (MIG) are not told apart.
    """
    try:
        answer = subprocess.run(_QUERY, capture_output=True, text=True, check=True, timeout=_ANSWER_S)
    except (OSError, subprocess.SubprocessError):  # no driver, or a driver without a GPU
        return ()
    rows = [
        [field.strip() for field in line.split(",")] for line in answer.stdout.splitlines() if "," in line
    ]
    used = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    kinds = {
        f"{name}, driver {driver}, compute capability {capability}"
        for uuid, name, driver, capability in rows
        if not used.startswith("GPU-") or uuid.startswith(used)
    }
    return tuple(sorted(kinds))

"""What a benchmark's figures belong to: machine, versions, commit."""

import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import onnxruntime

from latency.device import DeviceSettings, fingerprint

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# What benchmarks write themselves makes the tree no other one.
_WRITTEN = (":!benchmarks/results", ":!data/profiles")
_PACKAGES = ("trimms", "numpy", "onnx", "torch", "torchvision", "timm", "torch-pruning")


def environment(settings: DeviceSettings | None = None) -> dict[str, Any]:
    """Device, package versions, and the commit with whether the tree differs from it."""
    here = fingerprint(settings or DeviceSettings())
    return {"device": here.describe(), "fingerprint": here.to_json(), **made_by()}


def made_by() -> dict[str, Any]:
    """Package versions, and the commit with whether the tree differs from it."""
    # Several packages provide ONNX Runtime, one for each provider: the module itself knows.
    versions = {"python": platform.python_version(), "onnxruntime": onnxruntime.__version__}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no", "--", ".", *_WRITTEN)),
    }


def write_results(
    name: str,
    rows: list[dict[str, Any]],
    *,
    settings: DeviceSettings | None = None,
    folder: Path = RESULTS,
    **further: Any,
) -> Path:
    """Write `benchmarks/results/NAME.json` with the environment; returns its path."""
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"environment": environment(settings), **further, "rows": rows}, indent=1) + "\n"
    )
    return path


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()

"""Profile this device for a model and train its LPNet.

    python benchmarks/profile_device.py --model torchvision:resnet50 --input-size 1x3x224x224
    python benchmarks/profile_device.py --model torchvision:mobilenet_v2 --input-size 1x3x128x128 --threads 2

The profile set and the LPNet go to data/profiles/DEVICE/MODEL, to be used by `trimms prune` and `trimms predict`
after copying them into a run directory. Interrupted, the same command goes on where it was.
"""

import json
import re
import time
from pathlib import Path

import click
from environment import ROOT, environment

from latency.device import DeviceSettings, fingerprint
from latency.fitting import fit
from latency.profiling import ProfilePlan, profile
from latency.providers import PRECISIONS
from latency.space import SearchSpace
from pruning.cli_options import parse_input_shape
from pruning.export import dense_model, write_onnx
from pruning.models import load_model
from pruning.trace import trace


@click.command(help=__doc__)
@click.option("--model", required=True, help="torchvision:NAME, timm:NAME or path/to/file.py:factory.")
@click.option("--weights", type=click.Path(path_type=Path), help="Weights; latency does not depend on them.")
@click.option("--input-size", required=True, help="Batch x channels x height x width.")
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--provider", default="cpu", show_default=True)
@click.option("--dtype", type=click.Choice(PRECISIONS), default="fp32", show_default=True)
@click.option("--candidates", type=int, default=300, show_default=True, help="Networks to train LPNet on.")
@click.option("--held-out", type=int, default=100, show_default=True, help="Networks to judge it by.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder; data/profiles/DEVICE/MODEL if left out."
)
def main(
    model: str,
    weights: Path | None,
    input_size: str,
    threads: int,
    provider: str,
    dtype: str,
    candidates: int,
    held_out: int,
    seed: int,
    out: Path | None,
) -> None:
    """See the module's docstring."""
    shape = parse_input_shape(input_size)
    settings = DeviceSettings.parse(provider, threads=threads, batch_size=shape[0], precision=dtype)
    folder = out or default_folder(model, input_size, settings)
    base = folder / "base.onnx"
    if not base.is_file():
        network = load_model(model, weights)
        folder.mkdir(parents=True, exist_ok=True)
        write_onnx(dense_model(trace(network, shape), network), base)
    plan = ProfilePlan(n_candidates=candidates, n_held_out=held_out, seed=seed)
    start = time.perf_counter()
    measured = profile(base, folder / "profile.jsonl", settings, plan)
    profile_seconds = time.perf_counter() - start
    start = time.perf_counter()
    fitted = fit(measured, SearchSpace.load(base), seed=seed)
    fit_seconds = time.perf_counter() - start
    fitted.save(folder / "lpnet")
    row = {
        "model": model,
        "input_size": input_size,
        "dense_ms": measured.reference_ms,
        "n_train": fitted.manifest.n_train,
        "noise_floor_mape": measured.noise_floor_mape,
        "metrics": {name: metrics.to_json() for name, metrics in fitted.manifest.metrics.items()},
        "profile_seconds_this_time": profile_seconds,
        "fit_seconds": fit_seconds,
    }
    record = {"environment": environment(settings), **row}
    (folder / "summary.json").write_text(json.dumps(record, indent=1) + "\n")
    click.echo(json.dumps(row, indent=1))
    click.echo(f"{fitted.manifest.fingerprint.describe()}: {folder}")


def default_folder(model: str, input_size: str, settings: DeviceSettings) -> Path:
    """Folder named by device, model and conditions."""
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", f"{model.rpartition(':')[2]}-{input_size}-{settings.threads}t")
    return ROOT / "data" / "profiles" / fingerprint(settings).digest / name


if __name__ == "__main__":
    main()

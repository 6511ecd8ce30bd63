"""The command line `trimms`: a subcommand for each stage, and `run` for all of them.

Nothing here imports torch before a command needs it: `profile`, `predict` and `verify` run without it.
"""

import sys
from pathlib import Path
from typing import Any

import click

from pruning.cli_method import METHOD, method_options, prune_options
from pruning.cli_options import (
    FLEET,
    MISSED_BUDGET,
    PROFILING,
    announce,
    batch_option,
    budget_options,
    core_numbers,
    device_options,
    finetune_options,
    fleet_of,
    fleet_options,
    guarded,
    json_option,
    network_options,
    out_option,
    profile_options,
    profiling,
    recipe_option,
    run_settings,
    seed_option,
    show,
    tls_options,
)
from pruning.cli_service import serve, token
from pruning.run import RunDirectory


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="trimms")
def cli() -> None:
    """Prune a trained CNN to a latency budget in milliseconds, measured on this device.

    \b
    All stages at once:
      trimms run --model torchvision:resnet18 --data digits --input-size 1x3x32x32 \\
                 --train-epochs 12 --speedup 2 --out runs/demo
    One at a time, each repeatable: trace, profile, fit, prune, finetune, verify.
    """


cli.add_command(serve)
cli.add_command(token)


def main() -> None:
    """Entry point of the console script."""
    cli()


@cli.command()
@network_options
@batch_option
@seed_option
@out_option
@json_option
@guarded
def trace(out: Path, as_json: bool, **what: Any) -> None:
    """Trace the network and find its channel groups.

    \b
    Example:
      trimms trace --model torchvision:mobilenet_v2 --weights mobilenet.pth \\
                   --data folder:imagenette --input-size 1x3x128x128 --out runs/mobilenet
    """
    from pruning.stages import Workbench, trace_stage

    run = RunDirectory(out)
    result = trace_stage(Workbench(run, run_settings(**what)))
    show(result, as_json)
    if not as_json:
        for name, width in result["widths"].items():
            click.echo(f"  {width:5} channels  {name}")
        for kept in result["kept"]:
            click.echo(f"  {kept['n_channels']:5} kept      {kept['layer']}: {kept['reason']}")


@cli.command()
@click.option(
    "--max-width", type=int, default=256, show_default=True, help="Measure from 1 channel to so many."
)
@click.option("--batch-size", type=int, default=1, show_default=True, help="Images per inference.")
@device_options
@out_option
@json_option
@guarded
def probe(
    out: Path, as_json: bool, max_width: int, batch_size: int, threads: int, provider: str, dtype: str
) -> None:
    """Find this device's channel steps from single convolutions, and draw them. Needs no network, no torch.

    \b
    Example:
      trimms probe --out runs/device
    """
    from latency.device import DeviceSettings
    from pruning.device_stages import probe_stage

    settings = DeviceSettings.parse(provider, threads=threads, batch_size=batch_size, precision=dtype)
    result = probe_stage(RunDirectory(out), settings, max_width=max_width)
    show(result, as_json)
    if not as_json:
        for curve in result["staircases"]:
            cliff = f", fast path at multiples of {curve['cliff']}" if curve["cliff"] > 1 else ""
            click.echo(f"  steps of {curve['step']:2}  {curve['kind']}{cliff}")


@cli.command()
@profile_options
@device_options
@fleet_options
@click.option("--registry", help="URL of a service whose registry gets the rows too, as they come.")
@seed_option
@out_option
@json_option
@guarded
def profile(out: Path, as_json: bool, seed: int, **how: Any) -> None:
    """Measure candidate networks on this device, or on many. Needs only base.onnx in the run directory, no torch.

    \b
    Examples:
      trimms profile --out runs/mobilenet --candidates 300 --threads 1
      trimms profile --out runs/mobilenet --minutes 10
      trimms profile --out runs/mobilenet-int8 --dtype int8
      trimms profile --out runs/mobilenet --until-mape 1% --precision 0.5%
      trimms profile --out runs/mobilenet --scheduler tcp://10.0.0.5:8786 --device pi-3
      trimms profile --out runs/mobilenet --registry http://lab:8080
    """
    from pruning.device_stages import profile_stage

    fleet = fleet_of(**{name: how.pop(name) for name in FLEET})
    result = profile_stage(RunDirectory(out), profiling(**how, fleet=fleet), seed=seed, announce=announce)
    show(result, as_json)
    if not as_json:
        for device in result["devices"]:
            click.echo(
                f"  {device['n_rows']:5} rows  reference {device['reference_ms']:.4g} ms "
                f"({device['offset']:+.1%}, ± {device['spread']:.1%})  {device['device']}"
            )


@cli.command()
@click.option("--scheduler", required=True, help="Address of `dask scheduler`, such as tcp://10.0.0.5:8786.")
@click.option("--device", default="", help="The device's name, unique in the fleet; the host's if left out.")
@click.option(
    "--cores",
    type=core_numbers,
    help="Cores that are the device, such as 0 or 2,3; all if left out.",
)
@click.option("--port", type=int, default=0, help="Port of this worker; any free one if left out.")
@tls_options
@guarded
def worker(scheduler: str, device: str, cores: tuple[int, ...] | None, port: int, **tls: Path | None) -> None:
    """Offer this device to a fleet until Ctrl-C: measure candidates for `trimms profile --scheduler`. No torch.

    \b
    Example:
      trimms worker --scheduler tcp://10.0.0.5:8786 --device pi-3
    """
    from latency.fleet.address import FleetAddress
    from latency.fleet.device_worker import OfferedDevice, serve_device

    address = FleetAddress(scheduler, **tls)
    if address.danger is not None:
        announce(address.danger)
    serve_device(address, OfferedDevice(device, cores or (), port), announce)


@cli.command()
@seed_option
@out_option
@json_option
@guarded
def fit(out: Path, as_json: bool, seed: int) -> None:
    """Train LPNet, the latency predictor, on the profile.

    \b
    Example:
      trimms fit --out runs/mobilenet
    """
    from pruning.stages import fit_stage

    show(fit_stage(RunDirectory(out), seed), as_json)


@cli.command()
@click.option("--widths", help="Comma-separated widths of all groups, in the order of `trimms trace`.")
@click.option("--scale", type=float, help="The same share of every group's width, in (0, 1].")
@out_option
@json_option
@guarded
def predict(out: Path, as_json: bool, widths: str | None, scale: float | None) -> None:
    """Predict the latency of a pruned network, and where its time goes. Needs no torch.

    \b
    Examples:
      trimms predict --out runs/mobilenet --scale 0.5
      trimms predict --out runs/demo --widths 48,64,32,128
    """
    from pruning.device_stages import predict_stage

    result = predict_stage(RunDirectory(out), widths=widths, scale=scale)
    show(result, as_json)
    if not as_json:
        slowest = sorted(result["layer_ms"].items(), key=lambda item: -item[1])[:10]
        for name, layer_ms in slowest:
            click.echo(f"  {layer_ms:8.4f} ms  {layer_ms / result['predicted_ms']:5.1%}  {name}")


@cli.command()
@budget_options
@method_options
@finetune_options
@click.option(
    "--lpnet", help="Folder of the LPNet, or URL of a service that holds it; the run's own if left out."
)
@out_option
@json_option
@guarded
def prune(
    out: Path,
    as_json: bool,
    lpnet: str | None,
    budget_ms: float | None,
    speedup: float | None,
    search_epochs: int,
    search_lr: float,
    latency_term: str,
    epochs: int,
    lr: float,
    train_batch_size: int,
    **how: Any,
) -> None:
    """Choose the channels to keep within the budget, and measure the choice.

    \b
    Examples:
      trimms prune --out runs/mobilenet --budget-ms 1.5
      trimms prune --out runs/mobilenet --budget-ms 1.5 --method taylor-knapsack
      trimms prune --out runs/mobilenet --budget-ms 1.5 --also runs/mobilenet-2-threads:0.9
      trimms prune --out runs/mobilenet --speedup 2 --lpnet http://127.0.0.1:8080
    """
    from pruning.criteria.base import SearchOptions
    from pruning.prune_stage import Budget, prune_stage
    from pruning.stages import Workbench

    bench = Workbench(RunDirectory(out), lpnet_at=lpnet)
    options = SearchOptions(search_epochs, train_batch_size, search_lr, latency_term=latency_term)
    show(prune_stage(bench, Budget(budget_ms, speedup), options, prune_options(**how)), as_json)


@cli.command()
@finetune_options
@out_option
@json_option
@guarded
def finetune(out: Path, as_json: bool, epochs: int, lr: float, train_batch_size: int) -> None:
    """Slim the network by the plan, fine-tune it, and export it.

    \b
    Example:
      trimms finetune --out runs/mobilenet --epochs 20
    """
    from pruning.stages import FinetuneOptions, Workbench, finetune_stage

    bench = Workbench(RunDirectory(out))
    options = FinetuneOptions(epochs=epochs, batch_size=train_batch_size, learning_rate=lr)
    show(finetune_stage(bench, options), as_json)


@cli.command()
@click.option("--renew", is_flag=True, help="Write a new certificate for what the last fine-tuning made.")
@out_option
@json_option
@guarded
def verify(out: Path, as_json: bool, renew: bool) -> int:
    """Measure the pruned network against the dense one and check the certificate, or write it. Needs no torch.

    \b
    Exit code 0 only when the measured latency is within the budget and agrees with the certificate.

    Example:
      trimms verify --out runs/mobilenet
    """
    from pruning.device_stages import verify_stage

    result, code = verify_stage(RunDirectory(out), renew=renew)
    show(result, as_json)
    return code


@cli.command()
@recipe_option
@network_options
@batch_option
@budget_options
@device_options
@profile_options
@method_options
@finetune_options
@seed_option
@out_option
@json_option
@guarded
def run(
    out: Path,
    as_json: bool,
    budget_ms: float | None,
    speedup: float | None,
    search_epochs: int,
    search_lr: float,
    latency_term: str,
    epochs: int,
    lr: float,
    train_batch_size: int,
    **rest: Any,
) -> int:
    """All stages: trace, profile, fit, prune, fine-tune, export, measure, certify, report.

    Interrupted, the same command goes on where it was. Exit code 0 only when the measured latency is within
    the budget.

    \b
    Example:
      trimms run --model benchmarks/models/cifar_resnet.py:resnet56 --weights resnet56.th \\
                 --data cifar10:data/cifar10 --input-size 1x3x32x32 --speedup 1.5 --out runs/resnet56

    \b
    ImageNet on eight GPUs, which share every batch:
      torchrun --nproc-per-node 8 -m pruning.cli run --recipe recipes/imagenet-resnet50.toml \\
                 --weights resnet50.pth --data folder:imagenet --out runs/resnet50
    """
    from pruning.criteria.base import SearchOptions
    from pruning.distributed import is_first, process_group
    from pruning.pipeline import RunOptions, run_all
    from pruning.prune_stage import Budget
    from pruning.stages import FinetuneOptions

    how = profiling(**{name: rest.pop(name) for name in PROFILING})
    prune = prune_options(**{name: rest.pop(name) for name in METHOD})
    options = RunOptions(
        settings=run_settings(**rest),
        budget=Budget(budget_ms, speedup),
        profile=how,
        prune=prune,
        search=SearchOptions(search_epochs, train_batch_size, search_lr, latency_term=latency_term),
        finetune=FinetuneOptions(epochs=epochs, batch_size=train_batch_size, learning_rate=lr),
        command=" ".join(["trimms", *sys.argv[1:]]),
    )
    with process_group():
        result = run_all(RunDirectory(out), options, announce=announce if is_first() else lambda line: None)
        if is_first():
            show(result, as_json)
            if not as_json:
                click.echo(verdict(result))
    return 0 if result["within_budget"] else MISSED_BUDGET


def verdict(result: dict[str, Any]) -> str:
    """One sentence on a finished run."""
    met = "within" if result["within_budget"] else "NOT within"
    return (
        f"{met} budget: {result['measured_ms']:.3f} ms measured of {result['budget_ms']:.3f} ms allowed, "
        f"{result['dense_ms'] / result['measured_ms']:.2f} x as fast as before; "
        f"accuracy {result['accuracy']:.2%}, before {result['dense_accuracy']:.2%}"
    )


if __name__ == "__main__":
    main()

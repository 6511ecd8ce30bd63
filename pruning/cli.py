"""The command line `trimms`: a subcommand for each stage, and `run` for all of them.

Nothing here imports torch before a command needs it: `profile`, `predict` and `verify` run without it.
"""

import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from latency.errors import EnvironmentFailure as LatencyEnvironmentFailure
from latency.errors import LatencyError
from pruning.errors import EnvironmentFailure, PruningError, SettingError
from pruning.run import RunDirectory, RunSettings

MISSED_BUDGET, USER_ERROR, ENVIRONMENT_FAILURE, INTERRUPTED = 1, 2, 3, 130
"""Exit codes besides 0, which means: done, and where a latency was measured, within the budget."""

Command = Callable[..., Any]


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


def main() -> None:
    """Entry point of the console script."""
    cli()


def parse_input_shape(text: str) -> tuple[int, int, int, int]:
    """(batch, channels, height, width) from text such as `1x3x224x224`.

    Raises:
        SettingError: the text is not four positive numbers.
    """
    parts = text.lower().split("x")
    if len(parts) != 4 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise SettingError(
            f"--input-size '{text}' is not batch x channels x height x width, such as 1x3x224x224."
        )
    batch, channels, height, width = (int(part) for part in parts)
    return batch, channels, height, width


def _guarded(command: Command) -> Command:
    """Turns this project's errors into one line and an exit code."""

    @wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            code = command(*args, **kwargs)
        except (LatencyError, PruningError) as error:
            click.echo(f"trimms: {error}", err=True)
            environment = isinstance(error, LatencyEnvironmentFailure | EnvironmentFailure)
            code = ENVIRONMENT_FAILURE if environment else USER_ERROR
        except KeyboardInterrupt:
            click.echo("\ntrimms: stopped; give the same command again to go on.", err=True)
            code = INTERRUPTED
        except ModuleNotFoundError as error:
            click.echo(
                f"trimms: this command needs '{error.name}'; install it with: pip install 'trimms[prune]'",
                err=True,
            )
            code = ENVIRONMENT_FAILURE
        sys.exit(code or 0)

    return guarded


def _options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


_out = click.option("--out", type=click.Path(path_type=Path), required=True, help="Run directory.")
_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
_seed = click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything random.")
_device = _options(
    click.option("--threads", type=int, default=1, show_default=True, help="Threads of one inference."),
    click.option(
        "--provider", default="cpu", show_default=True, help="ONNX Runtime provider: cpu, openvino, cuda, …"
    ),
)
_batch = click.option(
    "--batch-size", type=int, default=None, help="Images per inference; instead of the one in --input-size."
)
_what = _options(
    click.option("--model", required=True, help="torchvision:NAME, timm:NAME or path/to/file.py:factory."),
    click.option("--weights", type=click.Path(path_type=Path), help="Weights: safetensors or a torch file."),
    click.option("--data", required=True, help="digits, cifar10:ROOT, folder:ROOT or npz:FILE."),
    click.option(
        "--input-size", required=True, help="Batch x channels x height x width, such as 1x3x224x224."
    ),
    click.option(
        "--normalisation", help="imagenet, cifar, half, none or mean/std; the data's usual one if left out."
    ),
    click.option(
        "--train-epochs",
        type=int,
        default=0,
        show_default=True,
        help="Train the network first, so many epochs.",
    ),
    click.option(
        "--keep-unknown",
        is_flag=True,
        help="Keep all channels that an operator which is not understood touches, instead of refusing.",
    ),
)
_candidates = _options(
    click.option("--candidates", type=int, default=300, show_default=True, help="Networks to measure."),
    click.option("--held-out", type=int, default=60, show_default=True, help="Networks to judge LPNet by."),
)
_budget = _options(
    click.option("--budget-ms", type=float, help="Latency budget in ms of the profiled device."),
    click.option("--speedup", type=float, help="Budget as a share of the dense latency: 2 means half of it."),
)
_search = click.option(
    "--search-epochs", type=int, default=4, show_default=True, help="Epochs of the gates' search."
)
_finetune = _options(
    click.option("--epochs", type=int, default=8, show_default=True, help="Epochs of fine-tuning."),
    click.option(
        "--train-batch-size", type=int, default=64, show_default=True, help="Images per training step."
    ),
)


def _settings(
    model: str,
    weights: Path | None,
    data: str,
    input_size: str,
    normalisation: str | None,
    train_epochs: int,
    keep_unknown: bool,
    seed: int,
    batch_size: int | None,
) -> RunSettings:
    from pruning.files import file_sha256

    batch, *image = parse_input_shape(input_size)
    if weights is not None and not weights.is_file():
        raise SettingError(
            f"--weights '{weights}' does not exist; give a safetensors file or a torch state dict."
        )
    return RunSettings(
        model=model,
        data=data,
        input_shape=(batch_size or batch, image[0], image[1], image[2]),
        weights=None if weights is None else str(weights),
        weights_sha256=None if weights is None else file_sha256(weights),
        train_epochs=train_epochs,
        normalisation=normalisation,
        seed=seed,
        keep_unknown=keep_unknown,
    )


def _show(result: dict[str, Any], as_json: bool) -> None:
    """Print a result: JSON for machines, aligned lines for people."""
    if as_json:
        click.echo(json.dumps(result, indent=1))
        return
    shown = {name: value for name, value in result.items() if not isinstance(value, dict | list)}
    width = max((len(name) for name in shown), default=0)
    for name, value in shown.items():
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        click.echo(f"{name.replace('_', ' '):{width}}  {text}")


@cli.command()
@_what
@_batch
@_seed
@_out
@_json
@_guarded
def trace(out: Path, as_json: bool, **what: Any) -> None:
    """Trace the network and find its channel groups.

    \b
    Example:
      trimms trace --model torchvision:mobilenet_v2 --weights mobilenet.pth \\
                   --data folder:imagenette --input-size 1x3x128x128 --out runs/mobilenet
    """
    from pruning.stages import Workbench, trace_stage

    run = RunDirectory(out)
    result = trace_stage(Workbench(run, _settings(**what)))
    _show(result, as_json)
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
@_device
@_out
@_json
@_guarded
def probe(out: Path, as_json: bool, max_width: int, batch_size: int, threads: int, provider: str) -> None:
    """Find this device's channel steps from single convolutions, and draw them. Needs no network, no torch.

    \b
    Example:
      trimms probe --out runs/device
    """
    from latency.device import DeviceSettings
    from pruning.device_stages import probe_stage

    settings = DeviceSettings.parse(provider, threads=threads, batch_size=batch_size)
    result = probe_stage(RunDirectory(out), settings, max_width=max_width)
    _show(result, as_json)
    if not as_json:
        for curve in result["staircases"]:
            cliff = f", fast path at multiples of {curve['cliff']}" if curve["cliff"] > 1 else ""
            click.echo(f"  steps of {curve['step']:2}  {curve['kind']}{cliff}")


@cli.command()
@_candidates
@_device
@_seed
@_out
@_json
@_guarded
def profile(
    out: Path, as_json: bool, candidates: int, held_out: int, threads: int, provider: str, seed: int
) -> None:
    """Measure candidate networks on this device. Needs only base.onnx in the run directory, no torch.

    \b
    Example:
      trimms profile --out runs/mobilenet --candidates 300 --threads 1
    """
    from pruning.device_stages import profile_stage

    result = profile_stage(
        RunDirectory(out),
        provider=provider,
        threads=threads,
        n_candidates=candidates,
        n_held_out=held_out,
        seed=seed,
    )
    _show(result, as_json)


@cli.command()
@_seed
@_out
@_json
@_guarded
def fit(out: Path, as_json: bool, seed: int) -> None:
    """Train LPNet, the latency predictor, on the profile.

    \b
    Example:
      trimms fit --out runs/mobilenet
    """
    from pruning.stages import fit_stage

    _show(fit_stage(RunDirectory(out), seed), as_json)


@cli.command()
@click.option("--widths", help="Comma-separated widths of all groups, in the order of `trimms trace`.")
@click.option("--scale", type=float, help="The same share of every group's width, in (0, 1].")
@_out
@_json
@_guarded
def predict(out: Path, as_json: bool, widths: str | None, scale: float | None) -> None:
    """Predict the latency of a pruned network. Needs no torch.

    \b
    Examples:
      trimms predict --out runs/mobilenet --scale 0.5
      trimms predict --out runs/demo --widths 48,64,32,128
    """
    from pruning.device_stages import predict_stage

    _show(predict_stage(RunDirectory(out), widths=widths, scale=scale), as_json)


@cli.command()
@_budget
@_search
@_finetune
@_out
@_json
@_guarded
def prune(
    out: Path,
    as_json: bool,
    budget_ms: float | None,
    speedup: float | None,
    search_epochs: int,
    epochs: int,
    train_batch_size: int,
) -> None:
    """Choose the channels to keep within the budget, and measure the choice.

    \b
    Example:
      trimms prune --out runs/mobilenet --budget-ms 1.5
    """
    from pruning.search import SearchOptions
    from pruning.stages import Budget, Workbench, prune_stage

    bench = Workbench(RunDirectory(out))
    options = SearchOptions(epochs=search_epochs, batch_size=train_batch_size)
    _show(prune_stage(bench, Budget(budget_ms, speedup), options), as_json)


@cli.command()
@_finetune
@_out
@_json
@_guarded
def finetune(out: Path, as_json: bool, epochs: int, train_batch_size: int) -> None:
    """Slim the network by the plan, fine-tune it, and export it.

    \b
    Example:
      trimms finetune --out runs/mobilenet --epochs 20
    """
    from pruning.stages import FinetuneOptions, Workbench, finetune_stage

    bench = Workbench(RunDirectory(out))
    _show(finetune_stage(bench, FinetuneOptions(epochs=epochs, batch_size=train_batch_size)), as_json)


@cli.command()
@click.option("--renew", is_flag=True, help="Write a new certificate for the files as they are.")
@_out
@_json
@_guarded
def verify(out: Path, as_json: bool, renew: bool) -> int:
    """Measure the pruned network against the dense one and check the certificate. Needs no torch.

    \b
    Exit code 0 only when the measured latency is within the budget and agrees with the certificate.

    Example:
      trimms verify --out runs/mobilenet
    """
    from pruning.device_stages import verify_stage

    result, code = verify_stage(RunDirectory(out), renew=renew)
    _show(result, as_json)
    return code


@cli.command()
@_what
@_batch
@_budget
@_device
@_candidates
@_search
@_finetune
@_seed
@_out
@_json
@_guarded
def run(
    out: Path,
    as_json: bool,
    budget_ms: float | None,
    speedup: float | None,
    threads: int,
    provider: str,
    candidates: int,
    held_out: int,
    search_epochs: int,
    epochs: int,
    train_batch_size: int,
    **what: Any,
) -> int:
    """All stages: trace, profile, fit, prune, fine-tune, export, measure, certify, report.

    Interrupted, the same command goes on where it was. Exit code 0 only when the measured latency is within
    the budget.

    \b
    Example:
      trimms run --model benchmarks/models/cifar_resnet.py:resnet56 --weights resnet56.th \\
                 --data cifar10:data/cifar10 --input-size 1x3x32x32 --speedup 1.5 --out runs/resnet56
    """
    from pruning.pipeline import RunOptions, run_all
    from pruning.search import SearchOptions
    from pruning.stages import Budget, FinetuneOptions

    options = RunOptions(
        settings=_settings(**what),
        budget=Budget(budget_ms, speedup),
        provider=provider,
        threads=threads,
        n_candidates=candidates,
        n_held_out=held_out,
        search=SearchOptions(epochs=search_epochs, batch_size=train_batch_size),
        finetune=FinetuneOptions(epochs=epochs, batch_size=train_batch_size),
        command=" ".join(["trimms", *sys.argv[1:]]),
    )
    result = run_all(RunDirectory(out), options, announce=lambda line: click.echo(line, err=True))
    _show(result, as_json)
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

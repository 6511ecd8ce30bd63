"""What the subcommands of `trimms` share: options, exit codes, how errors and results are shown."""

import json
import sys
import tomllib
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from latency.errors import EnvironmentFailure as LatencyEnvironmentFailure
from latency.errors import LatencyError
from latency.fleet.address import FleetAddress
from latency.providers import PRECISIONS
from pruning.device_stages import FleetOptions, ProfileOptions
from pruning.errors import EnvironmentFailure, PruningError, SettingError
from pruning.run import RunSettings

MISSED_BUDGET, USER_ERROR, ENVIRONMENT_FAILURE, INTERRUPTED = 1, 2, 3, 130
"""Exit codes besides 0, which means: done, and where a latency was measured, within the budget."""

MOST_CANDIDATES = 2000
"""Networks to measure at most where a time or an error is to end it."""

EXTRAS = {
    "fleet": ("dask", "distributed"),
    "serve": (
        *("alembic", "fastapi", "fsspec", "httpx", "msgspec", "prometheus_client", "psycopg", "pyarrow"),
        *("sqlalchemy", "uvicorn"),
    ),
}
"""Modules by the extra that brings them; others come with "prune"."""

Command = Callable[..., Any]


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


def guarded(command: Command) -> Command:
    """Turns this project's errors into one line and an exit code."""

    @wraps(command)
    def called(*args: Any, **kwargs: Any) -> None:
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
            extra = next((name for name, brings in EXTRAS.items() if error.name in brings), "prune")
            click.echo(
                f"trimms: this command needs '{error.name}'; install it with: pip install 'trimms[{extra}]'",
                err=True,
            )
            code = ENVIRONMENT_FAILURE
        sys.exit(code or 0)

    return called


def joined(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """One decorator that is all of them, in this order in `--help`."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def percent(text: str) -> float:
    """The share that a percentage stands for, written with or without the sign."""
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = 0.0
    if not 0 < value < 100:
        raise click.BadParameter(f"'{text}' is no percentage between 0 and 100, such as 0.5%.")
    return value / 100


def _read_recipe(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """Take a recipe's values for the options that the command line leaves out."""
    if path is None:
        return None
    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"'{path}' cannot be read ({error}).", context, parameter) from error
    known = {option.name: option for option in context.command.params if option is not parameter}
    given = {name.replace("-", "_"): value for name, value in recipe.items()}
    unknown = sorted(set(given) - set(known))
    if unknown:
        names = ", ".join(sorted(name.replace("_", "-") for name in known if name))
        message = f"'{path}' sets {', '.join(unknown)}, which is no option; known are: {names}."
        raise click.BadParameter(message, context, parameter)
    context.default_map = {**(context.default_map or {}), **given}
    return path


recipe_option = click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=_read_recipe,
    help="TOML file with values of these options, such as recipes/imagenet-resnet50.toml; the command line wins.",
)
out_option = click.option("--out", type=click.Path(path_type=Path), required=True, help="Run directory.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
seed_option = click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of everything random."
)
device_options = joined(
    click.option("--threads", type=int, default=1, show_default=True, help="Threads of one inference."),
    click.option(
        "--provider", default="cpu", show_default=True, help="ONNX Runtime provider: cpu, openvino, cuda, …"
    ),
    click.option(
        "--dtype",
        type=click.Choice(PRECISIONS),
        default="fp32",
        show_default=True,
        help="Number format that the network runs in: int8 with cpu and openvino, fp16 with cuda and tensorrt.",
    ),
)
batch_option = click.option(
    "--batch-size", type=int, default=None, help="Images per inference; instead of the one in --input-size."
)
network_options = joined(
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
profile_options = joined(
    click.option(
        "--candidates",
        type=int,
        help="Networks to measure: 300, or as many as the time or the error below allow.",
    ),
    click.option("--held-out", type=int, default=60, show_default=True, help="Networks to judge LPNet by."),
    click.option("--minutes", type=float, help="Measure for so long."),
    click.option(
        "--until-mape",
        type=percent,
        help="Measure until LPNet's mean error on the held-out networks is at most this, such as 1%. Needs torch.",
    ),
    click.option(
        "--precision",
        type=percent,
        help="Visit each network again and again until its latency is known within this, such as 0.5%.",
    ),
    click.option(
        "--active",
        type=percent,
        help="Choose this share of the networks, such as 30%, where LPNet is least sure. Hardly better than at random: "
        "error 0.86 against 0.87% on MobileNetV2, 150 networks (benchmarks/active_rounds.py). Needs torch.",
    ),
)
_PEM = click.Path(path_type=Path)
tls_options = joined(
    click.option(
        "--tls-ca", type=_PEM, help="For tls://: certificate of the authority that signed all others."
    ),
    click.option("--tls-cert", type=_PEM, help="For tls://: certificate of this machine."),
    click.option("--tls-key", type=_PEM, help="For tls://: its private key."),
)
fleet_options = joined(
    click.option(
        "--scheduler", help="Measure on the devices of this Dask scheduler, such as tcp://10.0.0.5:8786."
    ),
    click.option("--device", help="With --scheduler: name of one of the devices of the kind to measure on."),
    tls_options,
)
budget_options = joined(
    click.option("--budget-ms", type=float, help="Latency budget in ms of the profiled device."),
    click.option("--speedup", type=float, help="Budget as a share of the dense latency: 2 means half of it."),
)
finetune_options = joined(
    click.option("--epochs", type=int, default=8, show_default=True, help="Epochs of fine-tuning."),
    click.option(
        "--lr", type=float, default=0.02, show_default=True, help="Highest learning rate of the fine-tuning."
    ),
    click.option(
        "--train-batch-size",
        type=int,
        default=64,
        show_default=True,
        help="Images per training step; with torchrun, those of all processes together.",
    ),
)


FLEET = ("scheduler", "device", "tls_ca", "tls_cert", "tls_key")
"""Names of the options of `fleet_options`."""

PROFILING = (
    "candidates",
    "held_out",
    "minutes",
    "until_mape",
    "precision",
    "active",
    "threads",
    "provider",
    "dtype",
)
"""Names of the options of `device_options` and `profile_options`."""


def profiling(
    *,
    candidates: int | None,
    held_out: int,
    minutes: float | None,
    until_mape: float | None,
    precision: float | None,
    active: float | None,
    threads: int,
    provider: str,
    dtype: str,
    fleet: FleetOptions | None = None,
    registry: str | None = None,
) -> ProfileOptions:
    """What `device_options`, `profile_options` and, as `fleet`, `fleet_options` say together, and `--registry`.

    Raises:
        SettingError: two ways to end the profile are asked for.
    """
    if minutes is not None and until_mape is not None:
        raise SettingError("give either --minutes or --until-mape.")
    if active is not None and (minutes is not None or until_mape is not None):
        raise SettingError("--active is a share of --candidates: give it without --minutes and --until-mape.")
    if candidates is None:
        open_ended = minutes is not None or until_mape is not None
        candidates = MOST_CANDIDATES if open_ended else ProfileOptions().n_candidates
    return ProfileOptions(
        provider=provider,
        threads=threads,
        dtype=dtype,
        n_candidates=candidates,
        n_held_out=held_out,
        minutes=minutes,
        until_mape=until_mape,
        precision=precision,
        active=active,
        fleet=fleet,
        registry=registry,
    )


def fleet_of(scheduler: str | None, device: str | None, **tls: Path | None) -> FleetOptions | None:
    """What `fleet_options` say; None where this device is to be measured.

    Raises:
        SettingError: options of a fleet without its scheduler.
    """
    if scheduler is not None:
        return FleetOptions(FleetAddress(scheduler, **tls), device)
    if device is not None or any(file is not None for file in tls.values()):
        raise SettingError("--device and the --tls files belong to a fleet: give --scheduler too.")
    return None


def core_numbers(text: str) -> tuple[int, ...]:
    """Numbers of cores from text such as `0,1`."""
    if not all(part.isdigit() for part in text.split(",")):
        raise click.BadParameter(f"'{text}' is no list of core numbers, such as 0 or 2,3.")
    return tuple(sorted({int(part) for part in text.split(",")}))


def run_settings(
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
    """What `network_options`, `batch_option` and `seed_option` say together."""
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


def announce(line: str) -> None:
    """Tell people how far a command is, beside its result."""
    tqdm.write(line, file=sys.stderr)  # above a progress bar, if there is one


def show(result: dict[str, Any], as_json: bool) -> None:
    """Print a result: JSON for machines, aligned lines for people."""
    if as_json:
        click.echo(json.dumps(result, indent=1))
        return
    shown = {name: value for name, value in result.items() if not isinstance(value, dict | list)}
    width = max((len(name) for name in shown), default=0)
    for name, value in shown.items():
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        click.echo(f"{name.replace('_', ' '):{width}}  {text}")

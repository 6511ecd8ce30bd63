r"""Every method under one budget: same network, data, epochs, distillation, and one interleaved measurement.

    python benchmarks/compare_methods.py --workload cifar10-resnet20 --method wgates --method uniform \
        --budget 0.5 --cifar10 cifar10.npz --weights WEIGHTS
    python benchmarks/compare_methods.py --workload cifar10-resnet20 --ablation all --cifar10 … --weights …
    python benchmarks/compare_methods.py --workload cifar10-resnet20 --table --cifar10 … --weights …

Budgets are shares of the dense latency on this device. What is finished is kept in --runs and not run again; what was
interrupted, even by `kill -9`, goes on. In the end all final networks of a workload are measured together, and rows,
table and plot are written to benchmarks/results: of the workloads given, all that is finished, whatever was selected.
WEIGHTS holds resnet20-12fca82f.th, resnet56-4bfd9763.th (akamaster/pytorch_resnet_cifar10) and
mobilenet_v2_imagenet.pth (torchvision's layout). The workload digits-smoke needs neither data nor weights.
"""

import json
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import click
from ablations import ABLATIONS
from comparison_table import measure_all, plot, row_of, table
from configurations import USUAL_RATE, Configuration, Outcome
from contenders import Ground, run_configuration
from environment import RESULTS, ROOT, write_results
from torch_pruning_baseline import VARIANTS
from workloads import WORKLOADS, Places

from latency.errors import LatencyError
from pruning.criteria import METHODS
from pruning.errors import PruningError

CONTENDERS = tuple(name for name in (*METHODS, *VARIANTS) if name not in ABLATIONS)
"""Every method of trimms, and Torch-Pruning by importance; methods of a single ablation left out."""

RESULT_NAME = "compare_methods"


def selected(
    workload: str,
    methods: Sequence[str],
    budgets: Sequence[float],
    seeds: Sequence[int],
    ablations: Sequence[str],
    epochs: int | None,
    rates: Sequence[float],
) -> Iterator[Configuration]:
    """Configurations of a workload that the options ask for; ablations are of W-Gates."""
    chosen = WORKLOADS[workload]
    if epochs is not None:
        chosen = replace(chosen, epochs=epochs, search_epochs=min(chosen.search_epochs, epochs - 1))
    names = list(ABLATIONS) if "all" in ablations else ablations
    what = [(method, None) for method in methods] + [("wgates", name) for name in names]
    for budget, (method, ablation), seed, rate in product(budgets, what, seeds, rates):
        yield Configuration(chosen, method, budget, seed, ablation, rate)


def state_of(ground: Ground, configuration: Configuration) -> str:
    """How far a configuration is."""
    folder = ground.folder_of(configuration)
    outcome = Outcome.read(folder)
    if outcome is None:
        return "begun" if folder.is_dir() else "to do"
    if not outcome.has_network:
        return f"out of reach: {outcome.note}"
    return f"{outcome.certified_ms:.3f} of {outcome.budget_ms:.3f} ms, accuracy {outcome.accuracy:.2%}"


def prepare(ground: Ground) -> None:
    """Trace, profile and fit what all methods share, where that is not done yet.

    Raises:
        click.ClickException: it cannot be done, or `--runs` holds it for other paths.
    """
    try:
        _ = ground.shared
    except (PruningError, LatencyError) as error:
        raise click.ClickException(f"{ground.workload.name}: {error}") from error


def failure(ground: Ground, configuration: Configuration) -> list[str]:
    """Run a configuration; what went wrong, if anything did: the others are to run all the same, for hours."""
    try:
        run_configuration(ground, configuration)
    except (PruningError, LatencyError) as error:
        message = f"{ground.workload.name} {configuration.name} failed: {error}"
    except Exception as error:  # of other packages' surgery or runtime
        traceback.print_exc()
        message = f"{ground.workload.name} {configuration.name} failed: {type(error).__name__}: {error}"
    else:
        return []
    click.echo(message, err=True)
    return [message]


def write_rows(rows: list[dict[str, Any]], device: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Write the results with their plot; rows of other workloads stay.

    One table never mixes two devices: what was written on another one is set aside under that one's digest, and
    taken up again there.

    Args:
        rows: all rows of the workloads that were run.
        device: digest of this device.
        folder: where the results lie.
    """
    path = folder / f"{RESULT_NAME}.json"
    known = json.loads(path.read_text()) if path.is_file() else None
    if known is not None and (other := known["environment"]["fingerprint"]["digest"]) != device:
        for suffix in (".json", ".svg"):
            _exchange(folder / f"{RESULT_NAME}{suffix}", other, device)
        known = json.loads(path.read_text()) if path.is_file() else None
    fresh = {row["workload"] for row in rows}
    kept = [row for row in known["rows"] if row["workload"] not in fresh] if known is not None else []
    together = kept + rows
    click.echo(f"written: {write_results(RESULT_NAME, together, folder=folder)}")
    plot(together, folder / f"{RESULT_NAME}.svg")
    return together


def _exchange(file: Path, other: str, device: str) -> None:
    """Set a file aside under the digest it belongs to, and take up the one of this device."""
    if file.is_file():
        file.rename(file.with_stem(f"{file.stem}-{other}"))
    mine = file.with_stem(f"{file.stem}-{device}")
    if mine.is_file():
        mine.rename(file)


@click.command(help=__doc__)
@click.option("--workload", "workloads", multiple=True, type=click.Choice(list(WORKLOADS)), required=True)
@click.option("--method", "methods", multiple=True, type=click.Choice(CONTENDERS))
@click.option("--budget", "budgets", multiple=True, type=float, default=(0.5,), help="Share of dense; 0.5.")
@click.option("--seed", "seeds", multiple=True, type=int, default=(0,))
@click.option("--ablation", "ablations", multiple=True, type=click.Choice([*ABLATIONS, "all"]))
@click.option("--epochs", type=int, help="Training epochs of every method, search included.")
@click.option(
    "--lr",
    "rates",
    multiple=True,
    type=float,
    default=(USUAL_RATE,),
    help=f"Highest learning rate of search and fine-tuning; {USUAL_RATE:g}.",
)
@click.option("--cifar10", type=click.Path(exists=True, path_type=Path), help="CIFAR-10 as an .npz file.")
@click.option("--imagenette", type=click.Path(exists=True, path_type=Path), help="Imagenette's folder.")
@click.option("--weights", type=click.Path(exists=True, path_type=Path), help="Folder of trained weights.")
@click.option("--runs", type=click.Path(path_type=Path), default=ROOT / "runs" / "compare", show_default=True)
@click.option("--list", "only_list", is_flag=True, help="Say how far each configuration is, and end.")
@click.option(
    "--table", "only_table", is_flag=True, help="Run nothing; measure what is finished, write rows."
)
@click.option("--no-results", is_flag=True, help="Print the table, but leave benchmarks/results as it is.")
def main(
    workloads: tuple[str, ...],
    methods: tuple[str, ...],
    budgets: tuple[float, ...],
    seeds: tuple[int, ...],
    ablations: tuple[str, ...],
    epochs: int | None,
    rates: tuple[float, ...],
    cifar10: Path | None,
    imagenette: Path | None,
    weights: Path | None,
    runs: Path,
    only_list: bool,
    only_table: bool,
    no_results: bool,
) -> None:
    """See the module's docstring."""
    if not all(0 < budget <= 1 for budget in budgets):
        raise click.UsageError("--budget is a share of the dense latency, above 0 and at most 1.")
    if not all(0 < rate < float("inf") for rate in rates):
        raise click.UsageError("--lr is a number above 0.")
    if epochs is not None and epochs < 2:
        raise click.UsageError(f"--epochs is 2 or more, search and fine-tuning; got {epochs}.")
    data = {name: path for name, path in (("cifar10", cifar10), ("imagenette", imagenette)) if path}
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    grounds = [Ground(WORKLOADS[workload], Places(data, weights), runs) for workload in workloads]
    for ground in grounds:
        workload = ground.workload.name
        prepare(ground)
        if not only_table:
            for configuration in selected(workload, methods, budgets, seeds, ablations, epochs, rates):
                if not only_list:
                    failures += failure(ground, configuration)
                click.echo(f"{workload} {configuration.name}: {state_of(ground, configuration)}")
        if not only_list:
            rows += [row_of(measured, ground.device) for measured in measure_all(ground, runs)]
    if only_list:
        return
    click.echo(table(rows if no_results else write_rows(rows, grounds[0].device)))
    if failures:
        raise click.ClickException("; ".join(failures))


if __name__ == "__main__":
    main()

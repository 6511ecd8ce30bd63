"""From a trained network to a certified one, on real data: what `trimms run` reaches.

    python benchmarks/end_to_end.py --cifar10 cifar10.npz --imagenette imagenette160 --weights WEIGHTS

The runs are kept in --runs, and continued where they were interrupted; rows of runs that are finished are read
from their certificates and measured again. WEIGHTS holds resnet56-4bfd9763.th (akamaster/pytorch_resnet_cifar10)
and mobilenet_v2_imagenet.pth (torchvision's layout). Cases whose data are not given are left out.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from environment import ROOT, write_results

from pruning.criteria.base import SearchOptions
from pruning.files import file_sha256
from pruning.pipeline import RunOptions, run_all
from pruning.prune_stage import Budget
from pruning.run import RunDirectory, RunSettings
from pruning.stages import FinetuneOptions
from pruning.verify import verify


@dataclass(frozen=True, slots=True)
class Case:
    """A run.

    Attributes:
        options: what is asked for.
        weights: name of the weights file, if one is needed.
    """

    options: RunOptions
    weights: str | None = None


def cases(cifar10: Path | None, imagenette: Path | None) -> dict[str, Case]:
    """The runs whose data are there, by name."""
    models = "benchmarks/models"
    found = {
        "digits-resnet18": Case(
            RunOptions(
                RunSettings("torchvision:resnet18", "digits", (1, 3, 32, 32), train_epochs=12),
                Budget(speedup=2.0),
            )
        )
    }
    if imagenette is not None:
        settings = RunSettings(
            f"{models}/imagenette_mobilenet_v2.py:mobilenet_v2", f"folder:{imagenette}", (1, 3, 128, 128)
        )
        options = RunOptions(
            settings,
            Budget(speedup=1.5),
            search=SearchOptions(epochs=1),
            finetune=FinetuneOptions(epochs=3),
        )
        found["imagenette-mobilenet_v2"] = Case(options, "mobilenet_v2_imagenet.pth")
    if cifar10 is not None:
        settings = RunSettings(
            f"{models}/cifar_resnet.py:resnet56", f"npz:{cifar10}", (1, 3, 32, 32), normalisation="imagenet"
        )
        options = RunOptions(
            settings,
            Budget(speedup=1.4),
            search=SearchOptions(epochs=1, batch_size=128),
            finetune=FinetuneOptions(epochs=3, batch_size=128),
        )
        found["cifar10-resnet56"] = Case(options, "resnet56-4bfd9763.th")
    return found


def row_of(name: str, case: Case, run: RunDirectory) -> dict[str, Any]:
    """Run a case, or measure it again where it is finished."""
    if not run.file("certificate.json").is_file():
        run_all(run, case.options, announce=lambda line: click.echo(f"{name} {line}"))
    again = verify(run)
    certificate = again.certificate
    stages = {
        stage: json.loads(run.file(f"stages/{stage}.json").read_text())["result"]
        for stage in ("fit", "prune", "finetune")
    }
    return {
        "case": name,
        "budget_ms": certificate.budget_ms,
        "dense_ms": certificate.dense_ms,
        "predicted_ms": certificate.predicted_ms,
        "measured_ms": certificate.measured_ms,
        "measured_ci_ms": certificate.measured_ci_ms,
        "measured_again_ms": again.measured_ms,
        "measured_again_ci_ms": again.ci_ms,
        "within_budget": certificate.within_budget,
        "agrees": again.agrees,
        "speedup": certificate.speedup,
        "dense_accuracy": certificate.dense_accuracy,
        "accuracy": certificate.accuracy,
        "macs_share": certificate.macs / certificate.dense_macs,
        "corrections": stages["prune"]["corrections"],
        "search_seconds": sum(row["seconds"] for row in stages["prune"]["history"]),
        "finetune_seconds": sum(row["seconds"] for row in stages["finetune"]["history"]),
        "lpnet_mape": stages["fit"]["lpnet_mape"],
        "noise_floor_mape": stages["fit"]["noise_floor_mape"],
    }


@click.command(help=__doc__)
@click.option("--cifar10", type=click.Path(exists=True, path_type=Path), help="CIFAR-10 as an .npz file.")
@click.option("--imagenette", type=click.Path(exists=True, path_type=Path), help="Imagenette's folder.")
@click.option("--weights", type=click.Path(exists=True, path_type=Path), help="Folder of trained weights.")
@click.option("--runs", type=click.Path(path_type=Path), default=ROOT / "runs", show_default="runs")
def main(cifar10: Path | None, imagenette: Path | None, weights: Path | None, runs: Path) -> None:
    """See the module's docstring."""
    rows = []
    for name, case in cases(cifar10, imagenette).items():
        if case.weights is not None:
            if weights is None:
                raise click.UsageError(f"{name} needs --weights with {case.weights}.")
            file = weights / case.weights
            settings = replace(case.options.settings, weights=str(file), weights_sha256=file_sha256(file))
            case = replace(case, options=replace(case.options, settings=settings))
        rows.append(row_of(name, case, RunDirectory(runs / name)))
        row = rows[-1]
        click.echo(
            f"{name}: {row['dense_ms']:.3f} → {row['measured_ms']:.3f} ms (budget {row['budget_ms']:.3f}), "
            f"accuracy {row['dense_accuracy']:.2%} → {row['accuracy']:.2%}"
        )
        click.echo(f"written: {write_results('end_to_end', rows)}")


if __name__ == "__main__":
    main()

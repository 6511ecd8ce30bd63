"""Recipes: options from a file, and the ones for ImageNet that come with the project."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner
from PIL import Image

from pruning.cli import cli
from pruning.cli_options import recipe_option
from pruning.weights import save_weights

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))


@click.command()
@recipe_option
@click.option("--model", required=True)
@click.option("--search-epochs", type=int, default=4)
def shown(model: str, search_epochs: int) -> None:
    click.echo(f"{model} {search_epochs}")


def written(folder: Path, text: str) -> str:
    path = folder / "recipe.toml"
    path.write_text(text)
    return str(path)


def test_a_recipe_gives_what_the_command_line_leaves_out(tmp_path: Path) -> None:
    recipe = written(tmp_path, 'model = "torchvision:resnet50"\nsearch-epochs = 7\n')

    assert CliRunner().invoke(shown, ["--recipe", recipe]).stdout == "torchvision:resnet50 7\n"


def test_the_command_line_wins(tmp_path: Path) -> None:
    recipe = written(tmp_path, 'model = "torchvision:resnet50"\nsearch-epochs = 7\n')

    assert CliRunner().invoke(shown, ["--search-epochs", "2", "--recipe", recipe]).stdout.endswith(" 2\n")


def test_an_unknown_name_in_a_recipe_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(shown, ["--recipe", written(tmp_path, 'modle = "x"\n')])

    assert done.exit_code == 2
    assert "sets modle, which is no option; known are: model, search-epochs" in " ".join(done.stderr.split())


def test_a_damaged_recipe_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(shown, ["--recipe", written(tmp_path, "model =\n")])

    assert done.exit_code == 2
    assert "cannot be read" in done.stderr


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_names_options_of_run_and_a_model_that_there_is(path: Path) -> None:
    recipe = tomllib.loads(path.read_text())
    options = {name.replace("_", "-") for name in (p.name for p in cli.commands["run"].params) if name}

    assert set(recipe) <= options
    assert recipe["model"].removeprefix("torchvision:") in torchvision.models.list_models()
    assert path.stem == f"imagenet-{recipe['model'].removeprefix('torchvision:')}"


def test_there_are_recipes_for_three_networks() -> None:
    assert [path.stem for path in RECIPES] == [
        "imagenet-mobilenet_v2",
        "imagenet-resnet34",
        "imagenet-resnet50",
    ]


def draw_images(folder: Path) -> None:
    """Four classes of noise, each brighter in another corner."""
    rng = np.random.default_rng(0)
    for part, n_images in (("train", 24), ("val", 8)):
        for label in range(4):
            place = folder / part / f"class{label}"
            place.mkdir(parents=True)
            for index in range(n_images):
                pixels = rng.integers(0, 120, (72, 80, 3), dtype=np.uint8)
                row, column = divmod(label, 2)
                pixels[36 * row : 36 * row + 36, 40 * column : 40 * column + 40] += 100
                Image.fromarray(pixels).save(place / f"{index}.jpg")


@pytest.mark.long
def test_a_recipe_runs_on_a_small_image_folder_in_two_processes(tmp_path: Path) -> None:
    draw_images(tmp_path / "images")
    torch.manual_seed(0)
    save_weights(torchvision.models.resnet34(num_classes=4), tmp_path / "weights.safetensors")
    small = (
        *("--input-size", "1x3x64x64", "--candidates", "24", "--held-out", "5", "--search-epochs", "1"),
        *("--epochs", "1", "--train-batch-size", "16", "--speedup", "1.3"),
    )
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "pruning.cli", "run", "--recipe", str(ROOT / "recipes" / "imagenet-resnet34.toml")),
        *("--weights", str(tmp_path / "weights.safetensors"), "--data", f"folder:{tmp_path / 'images'}"),
        *(*small, "--out", str(tmp_path / "out"), "--json"),
    ]

    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert result["within_budget"]
    assert (tmp_path / "out" / "report.html").is_file()

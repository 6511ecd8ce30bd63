"""Imports run one way: from devices and milliseconds to pruning, and within each package layer by layer."""

import ast
import json
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A module imports from its own layer and from those above it. A new module needs a place here; a folder
# has one for all its modules.
LAYERS = {
    "latency": (
        ("clock", "errors", "metrics", "structure"),
        (
            *("channels", "graph", "labels", "layer_rules", "layer_views", "layout_rules"),
            *("operators", "propagation", "removal"),
        ),
        ("candidate", "folding", "grid", "in_memory", "space"),
        (
            *(
                "device",
                "gpu",
                "half_precision",
                "measure",
                "number_formats",
                "probe",
                "probe_formats",
                "probing",
            ),
            *("processes", "providers", "quantisation", "session", "sessions", "timing"),
        ),
        ("bench", "journal", "pace", "profile_rows", "profiles", "profiling", "sampling", "visits", "worker"),
        (
            *("_physics", "_residual", "active", "adaptive", "encoding", "fitting", "lpnet", "lpnet_export"),
            *("grid_tables", "lpnet_files", "predictor", "tabulated"),
        ),
        ("fleet",),
        ("lpnet_archive", "npy", "recovery"),
        ("registry",),
        ("client", "registry_sink"),
        ("service",),
    ),
    "pruning": (
        ("errors", "files", "records"),
        ("certificate", "checkpoint", "run"),
        ("models", "trace", "weights"),
        ("data",),
        ("accuracy", "distributed", "precision"),
        ("remembered", "training", "training_state"),
        ("finetune", "gates"),
        ("sensitivity",),
        ("budget", "correction", "knapsack", "module_changes", "objective", "plan", "splits", "surgery"),
        ("prices", "remote_lpnet", "removal_order"),
        ("criteria",),
        ("export", "verify"),
        ("search",),
        ("probe_page", "report_plots", "report_text"),
        ("device_stages", "prune_stage", "stages"),
        ("report", "report_inputs"),
        ("pipeline",),
        ("cli", "cli_method", "cli_options", "cli_service"),
    ),
}

# What the installation for a device leaves out: the extras "prune" and "fleet".
NOT_ON_A_DEVICE = (
    *("dask", "distributed", "jinja2", "matplotlib", "onnx_ir", "onnxscript", "pandas", "PIL", "safetensors"),
    *("sklearn", "timm", "torch", "torchvision"),
)
FITTING = tuple(
    f"latency.{name}"
    for name in (
        *("_physics", "_residual", "active", "adaptive", "encoding", "fitting", "lpnet", "lpnet_export"),
        "tabulated",
        "service.training",
    )
)
# What the extra "fleet" brings to the devices of a fleet.
WITH_DASK = ("latency.fleet.device_worker", "latency.fleet.fleet_bench", "latency.fleet.remote")
# `trimms profile`, `predict` and `verify` run through these.
ON_A_DEVICE = (
    "certificate",
    "cli",
    "cli_method",
    "cli_options",
    "cli_service",
    "device_stages",
    "errors",
    "files",
    "records",
    "run",
    "verify",
)


def sources(package):
    """Path by dotted name of every module, packages by their own name; Alembic's scripts are none."""
    modules = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        if "migrations" in path.parts:
            continue
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


MODULES = sources("latency") | sources("pruning")
ROOTS = {"latency", "pruning"}


def imported_names(path):
    """Absolute dotted names that a file imports, in functions too; of `from a import b`, a.b if it is a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


def own_imports(name):
    """Modules of this project that the module `name` imports."""
    return {imported for imported in imported_names(MODULES[name]) if imported in MODULES}


def layer_of(name):
    package, module = name.split(".")[:2]
    return next((index for index, layer in enumerate(LAYERS[package]) if module in layer), None)


@pytest.mark.parametrize("package", ["latency", "pruning"])
def test_every_module_has_one_place_in_the_table(package):
    placed = [module for layer in LAYERS[package] for module in layer]
    modules = {name.split(".")[1] for name in sources(package) if name != package}
    without_place, without_module = modules - set(placed), set(placed) - modules
    assert (without_place, without_module) == (set(), set()), (
        "bring LAYERS in tests/test_imports.py up to date"
    )
    assert len(placed) == len(modules)


@pytest.mark.parametrize("name", sorted(set(MODULES) - ROOTS))
def test_modules_import_from_their_own_layer_and_those_above(name):
    package, layer = name.partition(".")[0], layer_of(name)
    same_package = {other for other in own_imports(name) - ROOTS if other.startswith(f"{package}.")}
    places = {other: layer_of(other) for other in same_package}
    # Where a place is missing, the test above says so.
    below = {other for other, place in places.items() if None not in (layer, place) and place > layer}
    assert below == set()


@pytest.mark.parametrize("name", sorted(sources("latency")))
def test_latency_never_imports_pruning(name):
    assert {other for other in own_imports(name) if other.partition(".")[0] == "pruning"} == set()


@pytest.mark.parametrize("name", sorted(set(MODULES) - ROOTS))
def test_modules_import_the_exact_module_and_never_a_root_package(name):
    assert own_imports(name) & ROOTS == set()


def test_there_are_no_cycles():
    try:
        TopologicalSorter({name: own_imports(name) - {name} for name in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' → '.join(error.args[1])}")


def heavy_imports(names):
    """Which of `NOT_ON_A_DEVICE` each module brings in first, when all are imported in turn."""
    code = f"""
import importlib, json, sys
seen, found = set(), {{}}
for name in {list(names)!r}:
    importlib.import_module(name)
    new = ({set(NOT_ON_A_DEVICE)!r} & sys.modules.keys()) - seen
    seen |= new
    found[name] = sorted(new)
print(json.dumps(found))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return {name: heavy for name, heavy in json.loads(result.stdout).items() if heavy}


def test_latency_but_for_fitting_imports_nothing_that_a_device_lacks():
    assert heavy_imports(name for name in sources("latency") if name not in (*FITTING, *WITH_DASK)) == {}


def test_a_device_of_a_fleet_needs_dask_on_top_with_what_that_brings():
    found = {module for heavy in heavy_imports(WITH_DASK).values() for module in heavy}
    assert "distributed" in found
    assert found <= {"dask", "distributed", "jinja2"}


def test_what_runs_on_a_device_imports_nothing_that_a_device_lacks():
    names = [f"pruning.{module}" for module in ON_A_DEVICE]
    assert set(names) <= set(MODULES)
    assert heavy_imports(["pruning", *names]) == {}


def test_fitting_is_what_needs_torch():
    # Otherwise the two tests above would pass for want of anything to find.
    assert "torch" in {module for found in heavy_imports(FITTING).values() for module in found}

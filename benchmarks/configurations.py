"""One cell of the comparison: what is trained, where its files lie, and when an earlier result still counts.

    RUNS/WORKLOAD/dense-….safetensors       the network that every method prunes, the same on every device
    RUNS/WORKLOAD/DEVICE/device/            its profile and LPNet on that device, shared by all methods
    RUNS/WORKLOAD/DEVICE/METHOD-…-KEY/      one configuration: a run directory, and its outcome.json
    RUNS/WORKLOAD/DEVICE/measured.json      all final networks measured together

KEY is a hash of everything that decides the result, the device's profile included: with other data, weights, epochs or
versions the configuration is another one and is run anew.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from workloads import Workload

from pruning.files import file_sha256, write_atomically
from pruning.stages import FinetuneOptions

PROTOCOLS = {
    "torch-pruning": 2,
    "wgates": 3,
    "scaling-factors": 3,
    "dependency-aware": 2,
    "prunenet": 2,
    "uniform": 2,
}
"""Version of how methods whose name begins so are run; 1 for others. Raised where rows made before are no longer what
the method would give. 2 of those with gates: they start at the worth itself, their search ends at a latency measured
before it, and its learning rate does not fall; 3 of them, 2 of others that train while they search: the fine-tuning
sees other variations of the images than the search. 2 of Torch-Pruning: no layer is rounded to nothing, which had left
it at full width; a budget is met by the rules of the other methods. 2 of uniform: channels beside a shortcut that is
padded with zeros may all go, since no layer goes with them."""

DECIDING_PACKAGES = ("torch", "torchvision", "onnxruntime", "torch-pruning")
"""Packages of which another version may give another result; the last for its own rows only."""

OUTCOME_FILE = "outcome.json"

USUAL_RATE = FinetuneOptions().learning_rate
"""Highest learning rate where none is asked for, and of rows written before it was kept."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """What one network of the comparison is made by.

    Attributes:
        workload: network, data and schedule.
        method: name of the method.
        budget_share: budget over dense latency.
        seed: seed of everything random in search and training.
        ablation: name of the ablation; None for the method as it is.
        learning_rate: highest one of search and fine-tuning.
    """

    workload: Workload
    method: str
    budget_share: float
    seed: int = 0
    ablation: str | None = None
    learning_rate: float = USUAL_RATE

    @property
    def name(self) -> str:
        """Short name, such as `wgates-0.5-s0` or `wgates-0.5-s0-no-depth`."""
        rate = None if self.learning_rate == USUAL_RATE else f"lr{self.learning_rate:g}"
        parts = [self.method, f"{self.budget_share:g}", f"s{self.seed}", rate, self.ablation]
        return "-".join(part for part in parts if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a configuration ended.

    Attributes:
        workload: name of the workload.
        method: name of the method.
        ablation: name of the ablation, if it is one.
        budget_share: budget over dense latency.
        budget_ms: the budget.
        dense_ms: latency of the dense network, by the device's profile.
        predicted_ms: LPNet's latency of the final widths; None for networks that LPNet does not know.
        certified_ms: measured latency when the network was finished; None where the budget is out of reach.
        smallest_ms: smallest latency the method can reach, where that is above the budget.
        accuracy: top-1 accuracy of the final ONNX file on the test images, in [0, 1].
        dense_accuracy: the dense network's.
        macs: multiply-accumulates of one inference.
        params: parameters.
        epochs: training epochs, search included.
        learning_rate: highest one of search and fine-tuning.
        seed: seed of the configuration.
        wall_seconds: time of all its training epochs, before interruptions too, in seconds.
        device: digest of the device that the budget belongs to.
        protocol: version of how the method was run, see `PROTOCOLS`.
        made_by: versions and commit.
        note: why there is no network, where there is none.
    """

    workload: str
    method: str
    ablation: str | None
    budget_share: float
    budget_ms: float
    dense_ms: float
    predicted_ms: float | None = None
    certified_ms: float | None = None
    smallest_ms: float | None = None
    accuracy: float | None = None
    dense_accuracy: float | None = None
    macs: int | None = None
    params: int | None = None
    epochs: int
    learning_rate: float = USUAL_RATE
    seed: int
    wall_seconds: float | None = None
    device: str
    protocol: int = 1
    made_by: Mapping[str, Any]
    note: str = ""

    def write(self, folder: Path) -> None:
        """Write the outcome into its configuration's folder; it is finished with that."""
        write_atomically(folder / OUTCOME_FILE, (json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> "Outcome | None":
        """The outcome in a folder; None where the configuration is not finished."""
        path = folder / OUTCOME_FILE
        return cls(**json.loads(path.read_text())) if path.is_file() else None

    @property
    def has_network(self) -> bool:
        """Whether there is a final network."""
        return self.certified_ms is not None


def protocol_of(method: str) -> int:
    """Version of how a method is run."""
    return next((version for name, version in PROTOCOLS.items() if method.startswith(name)), 1)


def content_key(configuration: Configuration, deciding: Mapping[str, Any]) -> str:
    """Hash of what decides a configuration's result, 12 hexadecimal digits.

    Args:
        configuration: the configuration.
        deciding: what else decides it: data, weights, profile, options.
    """
    foreign = configuration.method.startswith("torch-pruning")
    packages = DECIDING_PACKAGES if foreign else DECIDING_PACKAGES[:-1]
    record = {
        "protocol": protocol_of(configuration.method),
        **asdict(configuration),
        "versions": {name: metadata.version(name) for name in packages},
        **deciding,
    }
    # Where the code lies decides nothing; the rate is in the schedule, among what else decides.
    record["workload"]["model"] = Path(configuration.workload.model).name
    del record["learning_rate"]
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:12]


def data_digest(location: Path | None) -> str:
    """Hash of a data file, or of the names and sizes in a folder; empty for data that come with a library."""
    if location is None:
        return ""
    if location.is_file():
        return file_sha256(location)
    files = sorted(path for path in location.rglob("*") if path.is_file())
    listing = "\n".join(f"{path.relative_to(location)} {path.stat().st_size}" for path in files)
    return hashlib.sha256(listing.encode()).hexdigest()


def finished(runs: Path, workload: str) -> Iterable[tuple[Path, Outcome]]:
    """Folders and outcomes of all finished configurations of a workload, made on any device.

    What an older protocol has made is left out, and of what differs by profile or versions alone the latest is taken:
    two of them are no two seeds.
    """
    latest: dict[tuple[Any, ...], tuple[Path, Outcome]] = {}
    paths = (runs / workload).glob(f"*/*/{OUTCOME_FILE}")
    for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns):
        outcome = Outcome.read(path.parent)
        assert outcome is not None
        if outcome.protocol == protocol_of(outcome.method):
            what = outcome.method, outcome.ablation, outcome.budget_share
            how = outcome.seed, outcome.epochs, outcome.learning_rate
            latest[outcome.device, *what, *how] = path.parent, outcome
    return sorted(latest.values(), key=lambda found: found[0])

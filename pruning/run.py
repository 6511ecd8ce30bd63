"""A run directory: the settings of a run, and the files its stages leave for each other.

run.json             what is pruned: model, weights, data, input size, seed
base.onnx            the traced network with its dense weights
base.int8.onnx, base.fp16.onnx  the same in the number format of the device, if that is another one
dense.safetensors    the dense weights, where the run trained them
profile.jsonl        measured candidates (latency.journal)
lpnet/               the fitted predictor (latency.predictor)
train/, prune/, finetune/  states of unfinished stages; prune/network.safetensors: the searched network
plan.json            which channels stay
pruned.onnx, pruned.safetensors, pruned.pt2; pruned.fp32.onnx where pruned.onnx is in another number format
certificate.json, report.html
stages/NAME.json     inputs and result of a finished stage
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pruning.errors import SettingError
from pruning.files import write_atomically


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What a run prunes; everything later stages need to find model and data again.

    Attributes:
        model: `torchvision:NAME`, `timm:NAME` or `path/to/file.py:factory`.
        data: `digits`, `cifar10:ROOT`, `folder:ROOT` or `npz:FILE`.
        input_shape: batch size, channels, height and width.
        weights: file with the model's weights; None where the factory brings them or the run trains them.
        weights_sha256: hash of that file.
        train_epochs: epochs to train the network before pruning; 0 takes it as it is.
        normalisation: name or values of the normalisation; None takes the data's usual one.
        seed: seed of everything random in the run.
        keep_unknown: keep all channels that an operator which is not understood touches, instead of refusing.
    """

    model: str
    data: str
    input_shape: tuple[int, int, int, int]
    weights: str | None = None
    weights_sha256: str | None = None
    train_epochs: int = 0
    normalisation: str | None = None
    seed: int = 0
    keep_unknown: bool = False

    def __post_init__(self) -> None:
        if len(self.input_shape) != 4 or min(self.input_shape) < 1:
            size = "x".join(map(str, self.input_shape))
            raise SettingError(
                f"input size {size} is not batch x channels x height x width, such as 1x3x32x32."
            )
        if self.train_epochs < 0:
            raise SettingError(f"--train-epochs is 0 or more; got {self.train_epochs}.")

    @property
    def image_size(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.input_shape[1:]


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Names of the files in a run directory, and its stage records."""

    path: Path

    def file(self, name: str) -> Path:
        """Path of a file of the run."""
        return self.path / name

    def begin(self, settings: RunSettings) -> None:
        """Write `run.json`, or check that it holds the same settings where anything was made with them.

        Raises:
            SettingError: the directory holds a run with other settings.
        """
        if self.file("run.json").is_file() and self.file("base.onnx").is_file():
            found, wanted = asdict(self.settings()), asdict(settings)
            differing = [name for name in wanted if found[name] != wanted[name]]
            if differing:
                name = differing[0]
                raise SettingError(
                    f"'{self.path}' holds a run with {name} {found[name]!r}, not {wanted[name]!r}; "
                    "give another --out, or the same settings to continue it."
                )
            return
        write_atomically(self.file("run.json"), _json({"format_version": 1, **asdict(settings)}))

    def settings(self) -> RunSettings:
        """The run's settings.

        Raises:
            SettingError: there is no run in the directory, or its `run.json` is damaged.
        """
        record = self._read(self.file("run.json"))
        if record is None:
            raise SettingError(f"'{self.path}' holds no run; begin one with `trimms trace` or `trimms run`.")
        try:
            fields = {name: value for name, value in record.items() if name != "format_version"}
            return RunSettings(**fields | {"input_shape": tuple(fields["input_shape"])})
        except (TypeError, KeyError) as error:
            raise SettingError(
                f"'{self.file('run.json')}' is damaged ({error}); begin the run again."
            ) from error

    def finished(self, stage: str, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
        """Result of a stage that was finished with the same inputs; None where it must be run."""
        record = self._read(self._stage_file(stage))
        if record is None or record.get("inputs") != json.loads(json.dumps(inputs)):
            return None
        result: dict[str, Any] = record["result"]
        return result

    def result(self, stage: str, advice: str) -> dict[str, Any]:
        """Result of a stage, whatever its inputs were.

        Raises:
            SettingError: the stage has not been run; the message ends with `advice`.
        """
        record = self._read(self._stage_file(stage))
        if record is None:
            raise SettingError(f"'{self.path}' has no result of stage '{stage}'; {advice}.")
        result: dict[str, Any] = record["result"]
        return result

    def finish(self, stage: str, inputs: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Record that a stage is finished; its checkpoints are no longer needed."""
        write_atomically(self._stage_file(stage), _json({"inputs": inputs, "result": result}))
        self.drop_checkpoints(stage)

    def amend(self, stage: str, result: Mapping[str, Any]) -> None:
        """Replace the result of a finished stage; its inputs stay as they are."""
        record = self._read(self._stage_file(stage)) or {}
        write_atomically(self._stage_file(stage), _json(record | {"result": result}))

    def checkpoint(self, stage: str, inputs: Mapping[str, Any]) -> Path:
        """File for the state of an unfinished training stage; other inputs have another file."""
        digest = hashlib.sha256(_json(inputs)).hexdigest()[:12]
        return self.path / stage / f"state-{digest}.safetensors"

    def drop_checkpoints(self, stage: str) -> None:
        """Delete the states of a stage that is finished."""
        for path in (self.path / stage).glob("state-*.safetensors"):
            path.unlink()

    def require(self, name: str, advice: str) -> Path:
        """Path of a file that must exist.

        Raises:
            SettingError: the file is missing; the message ends with `advice`.
        """
        path = self.file(name)
        if not path.exists():
            raise SettingError(f"'{path}' does not exist; {advice}.")
        return path

    def _stage_file(self, stage: str) -> Path:
        return self.path / "stages" / f"{stage}.json"

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise SettingError(f"'{path}' is damaged ({error}); delete it to run its stage again.") from error
        if not isinstance(record, dict):
            raise SettingError(f"'{path}' is damaged; delete it to run its stage again.")
        return record


def _json(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, indent=1) + "\n").encode()

"""A plan: which channels of a network stay. Surgery takes a plan, never a criterion."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from latency.space import SearchSpace
from latency.structure import IntArray
from pruning.errors import PlanError
from pruning.files import write_atomically

FORMAT_VERSION = 1
"""1: kept positions by group; new attributes and parameter shapes by module."""


@dataclass(frozen=True, slots=True)
class ModuleChange:
    """What surgery does to one `nn.Module`; enough to rebuild it without tracing the network again.

    Attributes:
        path: dotted path of the module.
        attributes: new values of integer attributes, such as `out_channels`.
        shapes: new shapes of parameters and buffers, by their name in the module.
        replaced_by: "zeros" for the layers of a removed branch, "identity" for its normalisations, None
            where the module stays.
        select: positions of the module's output channels to keep, for modules that fix a number of
            channels in code (option A shortcuts); None for all others.
        splits: for each split or chunk that the module's own `forward` calls, in order, the sizes of its parts;
            None where they stay as the code says.
        ranges: for each range of channels that the module's own `forward` slices: channels there were, first and
            end of the range, and all three as they are now.
        may_be_empty: whether the module's own `forward` pools or resizes images without channels.
    """

    path: str
    attributes: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    replaced_by: str | None = None
    select: tuple[int, ...] | None = None
    splits: tuple[tuple[int, ...] | None, ...] = ()
    ranges: tuple[tuple[int, int, int, int, int, int], ...] = ()
    may_be_empty: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """Kept positions of every group of one network.

    Attributes:
        structure_hash: the network the plan belongs to (`SearchSpace.structure_hash`).
        kept: ascending kept positions within each group, by group name.
        full_widths: unpruned width of each group, by group name.
        modules: what surgery does to the `nn.Module`.
        provenance: criterion, budget, seeds and the like; for people.
    """

    structure_hash: str
    kept: Mapping[str, tuple[int, ...]]
    full_widths: Mapping[str, int]
    modules: tuple[ModuleChange, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def positions(self, space: SearchSpace) -> tuple[IntArray, ...]:
        """Kept positions in the order of the space's groups.

        Raises:
            PlanError: the plan belongs to another network.
        """
        if self.structure_hash != space.structure_hash:
            raise PlanError(
                f"the plan belongs to network {self.structure_hash[:12]}, not to {space.structure_hash[:12]}; "
                "give the model, input size and batch size that the plan was made for."
            )
        return tuple(np.array(self.kept[group.name], dtype=np.int64) for group in space.groups)

    def widths(self, space: SearchSpace) -> IntArray:
        """Group widths, [n_groups]."""
        return np.array([len(positions) for positions in self.positions(space)], dtype=np.int64)

    @property
    def fingerprint(self) -> str:
        """Hash of the kept positions and the network they belong to, 16 hexadecimal digits."""
        text = json.dumps([self.structure_hash, {name: list(kept) for name, kept in self.kept.items()}])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def write(self, path: Path) -> None:
        """Write the plan as JSON, atomically."""
        record = {
            "format_version": FORMAT_VERSION,
            "structure_hash": self.structure_hash,
            "provenance": dict(self.provenance),
            "groups": {
                name: {"kept": list(kept), "of": self.full_widths[name]} for name, kept in self.kept.items()
            },
            "modules": [_change_record(change) for change in self.modules],
        }
        write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> "Plan":
        """Plan from a JSON file.

        Raises:
            PlanError: the file is missing, damaged or of an unknown version.
        """
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["format_version"] != FORMAT_VERSION:
                raise PlanError(
                    f"plan '{path}' has format {record['format_version']}; this version reads {FORMAT_VERSION}."
                )
            return cls(
                structure_hash=record["structure_hash"],
                kept={name: tuple(group["kept"]) for name, group in record["groups"].items()},
                full_widths={name: int(group["of"]) for name, group in record["groups"].items()},
                modules=tuple(_change_from(item) for item in record["modules"]),
                provenance=record["provenance"],
            )
        except FileNotFoundError as error:
            raise PlanError(f"plan '{path}' does not exist; run `trimms prune` first.") from error
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise PlanError(f"plan '{path}' is damaged ({error!r}); run `trimms prune` again.") from error


def make_plan(space: SearchSpace, kept: tuple[IntArray, ...], **provenance: Any) -> Plan:
    """Plan of the given kept positions; groups that vanish with others keep nothing."""
    widths = space.canonical([len(positions) for positions in kept])
    chosen = [positions if width else positions[:0] for positions, width in zip(kept, widths, strict=True)]
    return Plan(
        structure_hash=space.structure_hash,
        kept={
            g.name: tuple(int(p) for p in positions)
            for g, positions in zip(space.groups, chosen, strict=True)
        },
        full_widths={group.name: group.n_channels for group in space.groups},
        provenance=provenance,
    )


def _change_record(change: ModuleChange) -> dict[str, Any]:
    record: dict[str, Any] = {"path": change.path}
    if change.attributes:
        record["attributes"] = dict(change.attributes)
    if change.shapes:
        record["shapes"] = {name: list(shape) for name, shape in change.shapes.items()}
    if change.replaced_by is not None:
        record["replaced_by"] = change.replaced_by
    if change.select is not None:
        record["select"] = list(change.select)
    if change.splits:
        record["splits"] = [None if sizes is None else list(sizes) for sizes in change.splits]
    if change.ranges:
        record["ranges"] = [list(moved) for moved in change.ranges]
    if change.may_be_empty:
        record["may_be_empty"] = True
    return record


def _change_from(record: Mapping[str, Any]) -> ModuleChange:
    select = record.get("select")
    return ModuleChange(
        path=record["path"],
        attributes={name: int(value) for name, value in record.get("attributes", {}).items()},
        shapes={name: tuple(shape) for name, shape in record.get("shapes", {}).items()},
        replaced_by=record.get("replaced_by"),
        select=None if select is None else tuple(select),
        splits=tuple(None if sizes is None else tuple(sizes) for sizes in record.get("splits", ())),
        ranges=tuple(_range(moved) for moved in record.get("ranges", ())),
        may_be_empty=bool(record.get("may_be_empty", False)),
    )


def _range(values: list[int]) -> tuple[int, int, int, int, int, int]:
    size, first, end, new_size, new_first, new_end = (int(value) for value in values)
    return size, first, end, new_size, new_first, new_end

"""Errors of the pruning package.

PruningError
├── InputError                      the user can mend it: a file, a value, an option
│   ├── SettingError                an option whose value is not allowed
│   ├── ModelSpecError              a model that cannot be found or built, or that is not what is asked for
│   ├── WeightsError                a weights file that is damaged or does not fit the model
│   ├── DataError                   a data set that is missing, damaged or of the wrong shape
│   ├── BudgetError                 a latency budget that the search space cannot reach
│   ├── PlanError                   a plan that is damaged or belongs to another model
│   ├── TraceError                  a network that cannot be traced to ONNX, or whose trace differs from it
│   ├── CheckpointError             a checkpoint that is damaged or was made with other settings
│   └── DivergenceError             training whose loss is no longer a number
└── EnvironmentFailure              the machine's doing: try again, or free resources
    └── StorageError                a file that could not be written: full disk, no permission
"""


class PruningError(Exception):
    """Root of every error that this package raises on purpose."""


class InputError(PruningError):
    """Something the user can mend; the message says what was wrong, what is allowed and what to do."""


class SettingError(InputError):
    """An option whose value is not allowed."""


class ModelSpecError(InputError):
    """A model that cannot be found or built, or that does not fit the data."""


class WeightsError(InputError):
    """A weights file that is damaged, or whose tensors do not fit the model."""


class DataError(InputError):
    """A data set that is missing, damaged or of the wrong shape."""


class BudgetError(InputError):
    """A latency budget that is not a positive time, or that the search space cannot reach."""


class PlanError(InputError):
    """A plan that is damaged, or belongs to another model."""


class TraceError(InputError):
    """A network that cannot be traced to ONNX, or whose trace computes something else."""


class CheckpointError(InputError):
    """A checkpoint that is damaged, or was made with other settings."""


class DivergenceError(InputError):
    """Training whose loss is no longer a finite number."""


class EnvironmentFailure(PruningError):  # noqa: N818 - a failure of the machine, not an error of the user
    """The machine failed: trying again, or freeing resources, may help."""


class StorageError(EnvironmentFailure):
    """A file that could not be written, for want of space or permission."""

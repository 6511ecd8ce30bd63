"""Errors of the latency package.

LatencyError
├── InputError                      the user can mend it: a file, a value, an option
│   ├── ModelFileError              an ONNX file that cannot be read or is not what it should be
│   ├── UnsupportedGraphError       an operator or layout on the channel axis that is not understood
│   ├── WidthError                  a width vector that does not belong to the search space
│   ├── ProfileError                a profile set or LPNet file that is damaged or belongs to something else
│   ├── DeviceMismatchError         measured on one device, asked for on another
│   ├── ProviderUnavailableError    an execution provider that this ONNX Runtime does not have
│   ├── SettingError                a setting of the registry or the service that is not allowed
│   ├── NotFoundError               something that the registry does not hold
│   ├── ConflictError               an upload that contradicts what the registry holds
│   ├── AccessError                 a token that is missing, unknown, or lacks a scope
│   └── LimitError                  a request that is larger than the service allows
│       └── RateLimitError          requests that are more frequent than it allows
└── EnvironmentFailure              the machine's doing: try again, or free resources
    ├── MeasurementError            a measurement that could not be taken
    ├── DeviceBusyError             another measurement holds this device
    ├── FleetError                  a scheduler or devices that cannot be reached
    ├── RegistryError               the registry's database or files cannot be used
    ├── NotInstalledError           a service that was not installed for what is asked of it
    └── ServiceError                a service that cannot be reached, or failed
"""


class LatencyError(Exception):
    """Root of every error that this package raises on purpose."""


class InputError(LatencyError):
    """Something the user can mend; the message says what was wrong, what is allowed and what to do."""


class ModelFileError(InputError):
    """An ONNX file that cannot be read, or is not a model of the expected kind."""


class UnsupportedGraphError(InputError):
    """An operator or layout on the channel axis that the channel structure does not understand."""


class WidthError(InputError):
    """A width vector, or a choice of kept channels, that the search space does not allow."""


class ProfileError(InputError):
    """A profile set or LPNet that is damaged, or belongs to another model."""


class DeviceMismatchError(InputError):
    """A profile or LPNet of one device was asked for on another."""


class ProviderUnavailableError(InputError):
    """An execution provider that this installation of ONNX Runtime does not have."""


class SettingError(InputError):
    """A setting of the registry or the service that is not allowed."""


class NotFoundError(InputError):
    """Something that the registry does not hold."""


class ConflictError(InputError):
    """An upload that contradicts what the registry holds."""


class AccessError(InputError):
    """A token that is missing, unknown or revoked, or that lacks a scope."""


class LimitError(InputError):
    """A request that is larger than the service allows."""


class RateLimitError(LimitError):
    """Requests that are more frequent than the service allows."""


class EnvironmentFailure(LatencyError):  # noqa: N818 - a failure of the machine, not an error of the user
    """The machine failed: trying again, or freeing resources, may help."""


class MeasurementError(EnvironmentFailure):
    """A measurement that could not be taken."""


class DeviceBusyError(EnvironmentFailure):
    """Another measurement is running on this device."""


class FleetError(EnvironmentFailure):
    """A fleet's scheduler, or the devices that are needed of it, cannot be reached."""


class RegistryError(EnvironmentFailure):
    """The registry's database or files cannot be used."""


class NotInstalledError(EnvironmentFailure):
    """A service that was not installed for what is asked of it."""


class ServiceError(EnvironmentFailure):
    """A service that cannot be reached, or that failed."""

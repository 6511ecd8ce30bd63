"""Offering this device to a fleet: a Dask worker that measures one candidate at a time."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import dask
from distributed import Worker

from latency.device import DeviceSettings, fingerprint, usable_cores
from latency.errors import FleetError, InputError
from latency.fleet.address import FleetAddress
from latency.fleet.devices import ANNOUNCEMENT, FleetDevice, own_version
from latency.fleet.remote import DevicePlugin
from latency.gpu import gpu_kinds

# Dask's own housekeeping would run beside the measurements: a profiler that looks at every thread 100 times a second,
# a check of the event loop 50 times a second, one of the memory 10 times a second.
_QUIET = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.tick.limit": "60s",
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.worker.memory.monitor-interval": "10s",
}


@dataclass(frozen=True, slots=True)
class OfferedDevice:
    """A device as its owner describes it.

    Attributes:
        name: unique in the fleet; the host's name if left out.
        cores: numbers of the cores that are the device; empty is all of the machine.
        port: where the scheduler reaches the worker; 0 is any that is free.
    """

    name: str = ""
    cores: tuple[int, ...] = ()
    port: int = 0

    @property
    def lock_part(self) -> str | None:
        """The part of the machine that is the device, see `latency.measure.device_lock`."""
        return f"core-{'+'.join(map(str, self.cores))}" if self.cores else None


def serve_device(
    address: FleetAddress, offered: OfferedDevice, announce: Callable[[str], None] = lambda line: None
) -> None:
    """Measure for whoever asks, until the scheduler ends or is lost; then that is an error.

    Args:
        address: the scheduler.
        offered: the device.
        announce: called with a line when the device is ready.

    Raises:
        InputError: the cores are not there, or the name is taken.
        FleetError: the scheduler cannot be reached, or was lost.
    """
    if offered.cores:
        _pin(offered.cores)
    name = offered.name or socket.gethostname()
    device = FleetDevice(name, fingerprint(DeviceSettings()), own_version(), gpu_kinds())
    asyncio.run(_serve(address, device, offered, announce))
    raise FleetError(
        f"The scheduler {address.scheduler} has ended, or was lost; start it and the worker again."
    )


async def _serve(
    address: FleetAddress, device: FleetDevice, offered: OfferedDevice, announce: Callable[[str], None]
) -> None:
    with dask.config.set(_QUIET):
        try:
            worker = await Worker(
                address.scheduler,
                name=device.name,
                nthreads=1,
                memory_limit=0,
                port=offered.port,
                resources={device.kind: 1},
                security=address.security(),
                startup_information={ANNOUNCEMENT: lambda _: device.to_json()},
                plugins=(DevicePlugin(device, offered.lock_part),),
                silence_logs=logging.WARNING,
            )
        except (OSError, TimeoutError) as error:
            raise FleetError(
                f"The scheduler {address.scheduler} cannot be reached ({error}); start it with `dask scheduler`."
            ) from error
        except ValueError as error:
            if "name taken" not in str(error):
                raise
            raise InputError(
                f"The fleet has a device called '{device.name}' already; give this one another --device."
            ) from error
        try:
            announce(
                f"device '{device.name}' is ready: {device.fingerprint.describe()}, {usable_cores()} core(s)"
            )
            await worker.finished()
        finally:
            await worker.close()


def _pin(cores: Sequence[int]) -> None:
    """Keep this process, and those that it starts, on these cores."""
    if not hasattr(os, "sched_setaffinity"):
        raise InputError("This system does not let a process choose its cores; leave --cores out.")
    there = os.sched_getaffinity(0)
    if not set(cores) <= there:
        raise InputError(
            f"--cores {','.join(map(str, cores))} are not all there; this process may use "
            f"{','.join(map(str, sorted(there)))}."
        )
    os.sched_setaffinity(0, cores)

"""A job's own process: fits an LPNet to a stored profile set and keeps it. The one part of the service with torch.

Its standard input is a JSON object with `artefacts`, `profile_id` and `seed`; its standard output is the result.
"""

import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from latency.errors import LatencyError
from latency.fitting import fit
from latency.registry.networks import uploaded_space
from latency.registry.registry import Registry
from latency.service.runner import DATABASE_VARIABLE


def train(registry: Registry, profile_id: str, seed: int) -> dict[str, Any]:
    """Fit an LPNet to a profile set and keep it; returns its id and how good it is.

    Raises:
        LatencyError: the profile set is unknown or too small, or its base network is missing.
    """
    profile = registry.profiles.read(profile_id)
    space = uploaded_space(registry.networks.base(profile.header.structure_hash))
    fitted = fit(profile, space, seed=seed)
    with TemporaryDirectory() as folder:
        fitted.save(Path(folder))
        kept = registry.lpnets.add(Path(folder))
    own = fitted.metrics.get(fitted.manifest.kind)
    return {"lpnet": kept.id, "held_out_mape": own.mape if own else None, "n_train": fitted.manifest.n_train}


def main() -> None:
    """Entry point of the process."""
    order = json.load(sys.stdin)
    try:
        registry = Registry(os.environ[DATABASE_VARIABLE], order["artefacts"])
        result = train(registry, order["profile_id"], order["seed"])
    except LatencyError as error:
        sys.exit(str(error))
    print(json.dumps(result))


if __name__ == "__main__":
    main()

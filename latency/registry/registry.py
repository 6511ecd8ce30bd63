"""The registry: a database and a store of files, and what is kept in them."""

from pathlib import Path

from latency.registry.artefacts import ArtefactStore
from latency.registry.database import Database
from latency.registry.jobs import Jobs
from latency.registry.lpnets import LPNets
from latency.registry.networks import Networks
from latency.registry.profiles import Profiles
from latency.registry.tokens import Tokens


class Registry:
    """An open registry.

    Attributes:
        database: its tables.
        artefacts: its files.
        networks: devices and search spaces.
        profiles: profile sets.
        lpnets: fitted LPNets.
        jobs: work that takes longer than a request.
        tokens: who may use it.
    """

    def __init__(self, database_url: str, artefacts_url: str) -> None:
        """Open a registry, made where there is none; see `Database` and `ArtefactStore`."""
        self.database = Database(database_url)
        self.artefacts = ArtefactStore(artefacts_url)
        self.networks = Networks(self.database, self.artefacts)
        self.profiles = Profiles(self.database, self.networks)
        self.lpnets = LPNets(self.database, self.artefacts, self.networks)
        self.jobs = Jobs(self.database)
        self.tokens = Tokens(self.database)

    @classmethod
    def in_folder(
        cls, folder: Path, database_url: str | None = None, artefacts_url: str | None = None
    ) -> "Registry":
        """The registry in a folder: `registry.db` and `artefacts/`, unless they are kept elsewhere."""
        folder.mkdir(parents=True, exist_ok=True)
        return cls(
            database_url or f"sqlite:///{folder / 'registry.db'}", artefacts_url or str(folder / "artefacts")
        )

    def close(self) -> None:
        """Give its connections back."""
        self.database.close()

"""`trimms serve` and `trimms token`: a registry of devices, profiles and LPNets for a team. They need no torch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pruning.cli_options import Command, announce, guarded, json_option, show


def registry_options(command: Command) -> Command:
    """Where the registry is."""
    options: tuple[Callable[[Command], Command], ...] = (
        click.option(
            "--registry",
            "folder",
            type=click.Path(path_type=Path, file_okay=False),
            default="registry",
            show_default=True,
            help="Folder of the registry, made if need be.",
        ),
        click.option(
            "--database",
            envvar="TRIMMS_DATABASE_URL",
            help="Database elsewhere: postgresql://USER:PASSWORD@HOST/NAME; better in TRIMMS_DATABASE_URL.",
        ),
        click.option(
            "--artefacts", help="Files elsewhere: a folder, or a URL of fsspec's, such as s3://BUCKET/PREFIX."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@registry_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port", type=int, default=8080, show_default=True, help="Port to listen at; 0 takes a free one."
)
@click.option(
    "--batch-rows", type=int, default=4096, show_default=True, help="Most width vectors in a request."
)
@click.option("--upload-mib", type=int, default=512, show_default=True, help="Largest uploaded file in MiB.")
@click.option(
    "--rate",
    type=float,
    default=20_000,
    show_default=True,
    help="Requests a second of one token in the long run.",
)
@click.option("--jobs/--no-jobs", default=True, show_default=True, help="Train LPNets here; needs torch.")
@guarded
def serve(
    folder: Path,
    database: str | None,
    artefacts: str | None,
    host: str,
    port: int,
    batch_rows: int,
    upload_mib: int,
    rate: float,
    jobs: bool,
) -> None:
    """Serve predictions, and what they rest on, to a team: pruners, CI jobs, browsers. Needs no torch.

    Without tokens only this machine is served; see `trimms token`.

    \b
    Examples:
      trimms serve --registry registry
      trimms serve --host 0.0.0.0 --database postgresql://trimms@db/trimms --artefacts s3://lab/trimms
    """
    from latency.service.server import serve as run_server
    from latency.service.settings import MIB, ServiceSettings

    settings = ServiceSettings(
        batch_rows=batch_rows,
        upload_bytes=upload_mib * MIB,
        requests_per_second=rate,
        burst=max(1, int(rate)),
        run_jobs=jobs,
    )
    run_server(
        folder,
        host=host,
        port=port,
        settings=settings,
        database_url=database,
        artefacts_url=artefacts,
        announce=lambda url: announce(f"serving at {url}"),
    )


@click.group()
def token() -> None:
    """Make, list and revoke the tokens that a service asks for."""


@token.command("create")
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(["read", "write"]),
    multiple=True,
    default=["read"],
    show_default=True,
    help="What it allows; write allows reading too.",
)
@registry_options
@json_option
@guarded
def create_token(
    name: str,
    scopes: tuple[str, ...],
    folder: Path,
    database: str | None,
    artefacts: str | None,
    as_json: bool,
) -> None:
    """Make a token and print it, this once: the registry keeps only its hash.

    \b
    Example:
      trimms token create ci --scope read
    """
    registry = _opened(folder, database, artefacts)
    show({"token": registry.tokens.create(name, scopes), "name": name}, as_json)


@token.command("list")
@registry_options
@json_option
@guarded
def list_tokens(folder: Path, database: str | None, artefacts: str | None, as_json: bool) -> None:
    """Names and scopes of the active tokens."""
    active = _opened(folder, database, artefacts).tokens.active()
    show({known.name: ", ".join(sorted(known.scopes)) for known in active}, as_json)


@token.command("revoke")
@click.argument("name")
@registry_options
@guarded
def revoke_token(name: str, folder: Path, database: str | None, artefacts: str | None) -> None:
    """Take a token's rights away; running services notice within seconds."""
    _opened(folder, database, artefacts).tokens.revoke(name)


def _opened(folder: Path, database: str | None, artefacts: str | None) -> Any:
    from latency.registry.registry import Registry

    return Registry.in_folder(folder, database, artefacts)

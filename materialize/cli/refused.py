"""The quarantine on the command line: ``feast-embeddings quarantine``."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from feast_embeddings.materialize.cli.repo import Repo, opened

if TYPE_CHECKING:
    import pyarrow as pa

_SHOWN = 20
_SUFFIXES = (".parquet", ".csv")


def quarantine(
    repo: Repo = Path(),
    view: Annotated[str | None, typer.Option(help="Only rows of this embedding view.")] = None,
    reason: Annotated[str | None, typer.Option(help="Only rows whose reason contains this text.")] = None,
    since: Annotated[datetime | None, typer.Option(help="Only event times at or after this one, UTC.")] = None,
    until: Annotated[datetime | None, typer.Option(help="Only event times before this one, UTC.")] = None,
    export: Annotated[Path | None, typer.Option(help="Write all of them into this .parquet or .csv file.")] = None,
    mended: Annotated[Path | None, typer.Option("--hand-back", help="Hand the mended rows of a file back.")] = None,
) -> None:
    """Show what was refused and why; export it, and hand it back once it is mended.

    Rows that are handed back are applied by the next tick, as late behaviors, once, however often they are handed back.
    """
    from feast_embeddings.materialize.upkeep import hand_back, refused
    from feast_embeddings.models.errors import DeclarationError

    export, mended = (None if file is None else file.resolve() for file in (export, mended))
    for file in (export, mended):
        if file is not None and file.suffix not in _SUFFIXES:
            raise DeclarationError(f"{file.name} is neither .parquet nor .csv: give the file one of these suffixes.")
    store = opened(repo)
    if mended is not None:
        count = hand_back(store, _read(mended), view)
        typer.echo(f"{count:,} behaviors handed back{'' if count else ': these had been before'}")
        return
    rows = refused(store, view, reason, since, until)
    typer.echo(f"{len(rows):,} rows in quarantine")
    counted = rows.group_by(["view", "reason"]).aggregate([([], "count_all")]).to_pylist()
    for each in sorted(counted, key=lambda each: -each["count_all"]):
        typer.echo(f"  {each['count_all']:,} of {each['view']}: {each['reason']}")
    if export is not None:
        _write(rows, export)
        typer.echo(f"Exported: {export}")
        return
    for row in rows.slice(max(len(rows) - _SHOWN, 0)).to_pylist():
        held = ", ".join(f"{name} {value}" for name, value in row.items() if value is not None and name not in _TOLD)
        typer.echo(f"tick {row['tick'] or '?'}: {row['reason']}: {held or 'no row'}")
    if len(rows) > _SHOWN:
        typer.echo(f"These are the last {_SHOWN}; --export writes all.")


_TOLD = ("view", "tick", "reason")


def _write(rows: pa.Table, file: Path) -> None:
    import pyarrow.csv as pacsv

    if file.suffix == ".csv":
        pacsv.write_csv(rows, file)
    else:
        rows.to_pandas().to_parquet(file, index=False)


def _read(file: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.csv as pacsv

    from feast_embeddings.materialize.files import read_part
    from feast_embeddings.models.errors import BehaviorSourceError

    if not file.is_file():
        raise BehaviorSourceError(f"{file} does not exist: name the file that --export wrote, with its rows mended.")
    try:
        if file.suffix == ".parquet":
            return read_part(file)
        names = pacsv.open_csv(file).schema.names
        texts = pacsv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, quoted_strings_can_be_null=False
        )
        return pacsv.read_csv(file, convert_options=texts)
    except pa.ArrowInvalid as error:
        raise BehaviorSourceError(f"{file} cannot be read as {file.suffix[1:]}: write it again.") from error

"""The comparison: the base first, then one process for each row and seed; what has run is not run again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import errors
from ..errors import CheckpointError, ConfigError
from ..files.json_files import read_json_object
from ..training.trials import changed, refuse_others
from .advice import advice_of
from .processes import JOB, RESULT, JobFailedError, run_job
from .record import COMPARE_FILE, CompareRecord, RowRecord
from .rows import Row

Report = Callable[[str, int, "dict[str, Any]", float], None]  # row, seed, what was found, seconds
Begin = Callable[[str, int], None]
SHARED = "shared.json"  # what the process of the base says of all rows
RUNS = "compare-runs"  # the one folder of the processes; a row's is below its name
_BASE, _LOADING = "base", "loading"


def compare(
    module: str,
    job: Mapping[str, Any],
    rows: Mapping[str, Row],
    seeds: Sequence[int],
    folder: Path,
    *,
    with_loading: bool = True,
    overwrite: bool = False,
    begin: Begin = lambda name, seed: None,
    report: Report = lambda name, seed, found, seconds: None,
) -> CompareRecord:
    """Compare, or go on with a comparison in the folder, and return what was found.

    Parameters
    ----------
    module : str
        The module that does a job (`processes.run_job`).
    job : mapping
        What all jobs are told.
    rows : mapping
        Name to row.
    seeds : sequence of int
        Of each row.
    with_loading : bool
        Measure the seconds to load the base, too.
    overwrite : bool
        Take the place of another comparison in the folder.
    begin : callable
        Told of each row and seed before it runs.
    report : callable
        Told of every run, also of those that were there before, with the seconds that it took now.

    Raises
    ------
    ConfigError
        The folder holds another comparison, or a row of it that was something else.
    LoraCError
        Base or data cannot be used.
    JobFailedError
        The base cannot be measured.
    """
    record = _begun(module, job, folder, overwrite)
    for name, row in rows.items():
        if name not in record.rows or not record.rows[name].runs:  # one that has not run may be another now
            record.rows[name] = RowRecord(row.title, asdict(row))
    record.write(folder)
    for seed in seeds:  # a seed of all rows before the next one: a comparison that is stopped has all rows sooner
        for name, row in rows.items():
            begin(name, seed)
            started = time.perf_counter()
            record.rows[name].runs |= _run(module, job, name, row, seed, folder, record.rows[name])
            report(name, seed, record.rows[name].runs.get(seed, {}), time.perf_counter() - started)
            record.write(folder)
    if with_loading:
        record.loading = _loading(module, job, folder)
    record.advice = advice_of(record)
    record.write(folder)
    return record


def _begun(module: str, job: Mapping[str, Any], folder: Path, overwrite: bool) -> CompareRecord:
    """The record to go on with: the base measured, and the rows of calls before."""
    before = CompareRecord.read(folder)
    if overwrite and before is not None:
        shutil.rmtree(folder / RUNS, ignore_errors=True)
        before = None
    shared = run_job(module, folder / RUNS / _BASE, {**job, "kind": "base"}, SHARED)
    if "refused" in shared:
        raise getattr(errors, shared["error"])(shared["refused"])
    if before is not None:
        refuse_others("comparison", folder / COMPARE_FILE, changed(before.run, shared))
    rows, loading = ({}, {}) if before is None else (before.rows, before.loading)
    return CompareRecord(shared, _kept(folder / RUNS / _BASE) or {}, rows, loading)


def _run(
    module: str, job: Mapping[str, Any], name: str, row: Row, seed: int, folder: Path, into: RowRecord
) -> dict[int, dict[str, Any]]:
    place = folder / RUNS / name / f"seed-{seed}"
    kept = _kept(place)
    own = {"row": asdict(row), "seed": seed}
    if kept is None:
        _remove_another(place, own)
        try:
            kept = run_job(module, place, {**job, **own, "kind": "row"})
        except JobFailedError as error:
            into.failed = str(error)
            return {}
    if {key: kept.get(key) for key in own} != own:
        raise ConfigError(
            f"rows: expected {name!r} as it ran in {str(place)!r}, got other settings; choose another folder, or give "
            "--overwrite"
        )
    return {seed: {key: value for key, value in kept.items() if key not in own}}


def _remove_another(place: Path, own: Mapping[str, Any]) -> None:
    """Remove what a row of this name has left that had other settings and did not end: its checkpoints are no one's."""
    if not (place / JOB).exists():
        return
    before = read_json_object(place / JOB, f"remove {place} to run it again")
    left, now = ({**dict(job.get("row", {})), "title": "", "seed": job.get("seed")} for job in (before, own))
    if left != now:
        shutil.rmtree(place)


def _loading(module: str, job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    try:
        return dict(_kept(folder / RUNS / _LOADING) or run_job(module, folder / RUNS / _LOADING, {**job, "kind": "loading"}))
    except JobFailedError as error:
        return {"failed": str(error)}


def _kept(folder: Path) -> dict[str, Any] | None:
    """What a job before has left."""
    path = folder / RESULT
    if not path.exists():
        return None
    values = read_json_object(path, f"remove {folder} to run it again")
    if not values:
        raise CheckpointError(f"{path}: expected what a row has brought, got nothing; remove {folder} to run it again")
    return values

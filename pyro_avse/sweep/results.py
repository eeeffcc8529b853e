"""The rows of a sweep on disk, and their means with intervals.

A folder of results holds `protocol.json`, one small Parquet file in `parts/` for every row as it was finished, named by
the row's key, and `rows.parquet`, into which parts are merged from time to time. Each file is written beside and
renamed, a part is deleted only after the merged file that holds it is in place, and a row written twice has one name:
whenever a process dies, no row is lost and none is doubled.
"""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_avse.files import write_atomically
from pyro_avse.metrics import NAMES
from pyro_avse.typing import JSON, InputError

if TYPE_CHECKING:
    import pandas as pd

KEYS = ("clip", "noise", "snr", "lips", "model", "inference")
"""What names a row; all else follows from them and the protocol."""
IMPROVEMENTS = tuple(f"{name}_improvement" for name in NAMES)
CONFIDENCE = 0.95


def row_key(**values: object) -> str:
    """The name of a row, from a value for each of `KEYS`."""
    return hashlib.sha256(repr([values[name] for name in KEYS]).encode()).hexdigest()[:24]


def write_row(folder: Path, row: JSON) -> None:
    """Add one row, whole or not at all; a row of the same key is replaced.

    Raises InputError where the folder cannot be written to.
    """
    import pyarrow

    row = {name: _text(value) for name, value in row.items()}
    _write(folder / "parts" / f"{row['key']}.parquet", pyarrow.Table.from_pylist([row], _schema()))


def load_results(folder: str | Path) -> "pd.DataFrame":
    """All rows of a sweep, finished or not, sorted by their keys.

    A score that cannot be had is NaN and has its reason in `reasons` (JSON); a row that failed has its reason in
    `failure`. `{score}_improvement` is `{score}_out` minus `{score}_in`.

    Raises:
        InputError: no results there; a file that is not whole.
    """
    import pyarrow

    folder = Path(folder)
    if not (folder / "protocol.json").is_file():
        raise InputError(
            f"{folder} holds no results: make them with pyro-avse evaluate --out {folder}"
        )
    # Parts first: one that vanishes meanwhile has been merged, and the merged file is read last.
    tables = [_read(part) for part in _parts(folder)]
    tables += [_read(folder / "rows.parquet"), _schema().empty_table()]
    frame = pyarrow.concat_tables([t for t in tables if t is not None]).to_pandas()
    frame = frame.drop_duplicates("key").sort_values(list(KEYS), ignore_index=True)
    for name in NAMES:
        frame[f"{name}_improvement"] = frame[f"{name}_out"] - frame[f"{name}_in"]
    return frame


def merge_parts(folder: Path) -> None:
    """Move all parts into rows.parquet; only the process that holds the folder's lock may."""
    import pyarrow

    parts = _parts(folder)
    tables = [table for path in parts if (table := _read(path)) is not None]
    new = pyarrow.concat_tables([_schema().empty_table(), *tables])
    old = _read(folder / "rows.parquet")
    if old is not None:
        fresh = set(new["key"].to_pylist())
        kept = [key not in fresh for key in old["key"].to_pylist()]
        new = pyarrow.concat_tables([old.filter(pyarrow.array(kept, pyarrow.bool_())), new])
    _write(folder / "rows.parquet", new)
    for path in parts:
        path.unlink(missing_ok=True)


def summarise(
    frame: "pd.DataFrame", by: Sequence[str], scores: Sequence[str] = IMPROVEMENTS
) -> "pd.DataFrame":
    """Means over clips with their 95 % confidence intervals, a row for each group and score.

    A clip's conditions are averaged first, so that clips are the sample: they are independent, conditions of one clip
    are not. The interval is Student's t; NaN for fewer than two clips.

    Args:
        by: columns that make the groups, such as ["model", "snr"].
        scores: columns to average.

    Returns:
        columns `by`, score, mean, low, high, clips; n and rows: rows that have the score, and all of the group.
    """
    from scipy.stats import t as student

    by = list(by)
    long = frame.melt([*by, "clip"], list(scores), var_name="score")
    groups = [*by, "score"]
    of_clips = long.groupby([*groups, "clip"], sort=False, dropna=False)["value"].mean()
    per_group = of_clips.groupby(level=groups, sort=False, dropna=False)
    table = per_group.agg(mean="mean", spread="std", clips="count")
    rows = long.groupby(groups, sort=False, dropna=False)["value"]
    table["n"], table["rows"] = rows.count(), rows.size()
    half = student.ppf((1 + CONFIDENCE) / 2, (table["clips"] - 1).clip(lower=1))
    half = half * table.pop("spread") / table["clips"] ** 0.5
    table.insert(1, "low", table["mean"] - half)
    table.insert(2, "high", table["mean"] + half)
    return table.reset_index()


def _text(value: Any) -> Any:
    """Names may hold bytes that are no text; a table may not."""
    if isinstance(value, list):
        return [_text(one) for one in value]
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def _parts(folder: Path) -> list[Path]:
    return sorted((folder / "parts").glob("*.parquet"))


def _read(path: Path) -> Any:
    """A table, or None where the file is not there (any more)."""
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            return file.read().cast(_schema())
    except FileNotFoundError:
        return None
    except (ArrowInvalid, OSError, ValueError) as error:
        raise InputError(
            f"{path}: no whole table of results ({str(error).splitlines()[0]}): delete it and evaluate again"
        ) from None


def _write(path: Path, table: Any) -> None:
    from pyarrow.parquet import write_table

    buffer = io.BytesIO()
    write_table(table, buffer)
    write_atomically(path, buffer.getvalue())


def _schema() -> Any:
    """The columns of a row: pyarrow takes a while to import, so not at the top."""
    import pyarrow as pa

    text, number, whole = pa.string(), pa.float64(), pa.int64()
    columns = {
        "key": text,
        "clip": text,
        "speaker": text,  # null: the corpus names none
        "noise": text,
        "snr": number,  # dB, over what the protocol's `level` says
        "lips": text,  # what the model was shown
        "model": text,
        "inference": text,
        "seed": whole,  # of the noise, the lips' corruption and the scheme
        "noise_files": pa.list_(text),
        "noise_starts": pa.list_(whole),  # samples at 16 kHz
        "noise_looped": pa.bool_(),
        "noise_gain": number,
        **{f"{name}_{side}": number for side in ("in", "out") for name in NAMES},
        "reasons": text,  # JSON: {"in": {score: why it is missing}, "out": {...}, "auc": why}
        "iterations": whole,
        "seconds": number,
        "real_time_factor": number,
        "audio_responsibility": number,  # mean r(audio), the paper's pi_n
        "auc": number,  # of r(audio) as a detector of the frames with bad lips
        "failure": text,  # null: it ran
    }
    return pa.schema(list(columns.items()))

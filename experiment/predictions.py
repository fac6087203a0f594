"""What runs have said of utterances, as their ``predictions.csv`` have it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dataloader import IGNORE_LABEL
from experiment.run_directory import unguarded
from files import InputError, check_regular

LEAST = 5e-7  # half of the last of 6 decimals
TEXT = {"dialogue", "utterance", "speaker", "sentence"}


def read_predictions(directory: Path, split: str = "test") -> pd.DataFrame:
    """What a run said of a split, as its ``predictions.csv`` has it.

    A probability that 6 decimals write as 0 is taken for half of the last of them, and a missing label for
    `IGNORE_LABEL`.

    Raises:
        InputError: If it is not there or is no such table.
    """
    path = directory / "predictions.csv"
    check_regular(path)
    try:
        names = dict.fromkeys(TEXT, str)  # or 07 and 7 would be one speaker
        table = pd.read_csv(path, dtype=names, keep_default_na=False, na_values={"label": [""]}, encoding="utf-8")
        table = table[table["split"] == split].reset_index(drop=True)
        for name in TEXT & set(table):
            table[name] = table[name].map(unguarded)
        if "label" in table:
            table["label"] = table["label"].astype(float).fillna(IGNORE_LABEL).astype(int)
        columns = [name for name in table if name.startswith("p_")]
        table[columns] = table[columns].astype(float).clip(lower=LEAST)
        if not np.isfinite(table[columns].to_numpy()).all():
            raise ValueError("probabilities")
        for name, least in (("label", IGNORE_LABEL), ("predicted", 0)):
            if name in table and columns:
                classes = table[name].astype(int)
                if not (classes.between(0, len(columns) - 1) | (classes == least)).all():
                    raise ValueError(name)
        return table
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name the directory of a finished run") from None
    except (ValueError, KeyError):
        raise InputError(f"{path}: no table of predictions; the run directory is damaged") from None


def class_names(table: pd.DataFrame) -> list[str]:
    """The classes that a table of predictions has a probability for."""
    return [name.removeprefix("p_") for name in table if name.startswith("p_")]


def predictions_of(directory: Path, kind: str, names: Sequence[str]) -> pd.DataFrame | None:
    """What several runs said of the test utterances, as one table.

    Folds follow one another, since each dialogue is in the test split of one; of seeds, which have the same test
    utterances, probabilities are averaged.

    Args:
        directory: Where the runs' are.
        kind: ``seed`` or ``fold``.
        names: Of the runs, without their kind.

    Returns:
        The columns that all runs have alike, and the probabilities; None where a run has left no predictions, or not
        on the same utterances.
    """
    tables = []
    for name in names:
        one = directory / f"{kind}{name}"
        try:
            if (one / "predictions.csv").exists():
                tables.append(read_predictions(one))
            else:  # of a seed with folds
                folds = [read_predictions(path) for path in sorted(one.glob("fold*")) if path.is_dir()]
                tables.append(pd.concat(folds, ignore_index=True))
        except (InputError, ValueError):
            return None
    wanted = {"dialogue", "utterance", "label", "turn"}
    if any(not class_names(table) or not wanted <= set(table) for table in tables):
        return None
    if any((table["label"] == IGNORE_LABEL).all() for table in tables):  # nothing to score, or no row at all
        return None
    if any(class_names(table) != class_names(tables[0]) for table in tables):
        return None
    if kind == "fold":
        return pd.concat(tables, ignore_index=True)
    key = ["dialogue", "utterance", "label"]
    tables = [table.sort_values(["dialogue", "turn"], kind="stable", ignore_index=True) for table in tables]
    if any(not table[key].equals(tables[0][key]) for table in tables):
        return None
    columns = [f"p_{name}" for name in class_names(tables[0])]
    mean = np.mean([table[columns].to_numpy() for table in tables], 0)
    kept = tables[0].drop(columns=[*columns, *("predicted", "emotion", "confidence", "correct")], errors="ignore")
    return pd.concat([kept, pd.DataFrame(mean, columns=columns)], axis=1)

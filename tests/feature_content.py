"""Content of small feature files, every value of it different, so that a swapped field shows."""

import numpy as np
import pytest

import feature_files
from files import InputError

LENGTHS = {"Ses01F_impro01": 3, "Ses02M_script01": 1, "Ses05F_impro02": 4, "Ses03F_left_out": 2}


def make_nine(lengths=LENGTHS, dims=(5, 4, 3), classes=6):
    rng = np.random.default_rng(0)

    def rows(d):
        return {i: rng.normal(size=(n, d)).astype(np.float32) for i, n in lengths.items()}

    ids = list(lengths)
    return [
        {i: [f"{i}_F{k:03}" for k in range(n)] for i, n in lengths.items()},
        {i: ["FM"[k % 2] for k in range(n)] for i, n in lengths.items()},
        {i: [(k + n) % classes for k in range(n)] for i, n in lengths.items()},
        *(rows(d) for d in dims),
        {i: [f"what {k}?" for k in range(n)] for i, n in lengths.items()},
        ids[:2],
        ids[2:3],
    ]


def refusal(path, **options):
    with pytest.raises(InputError) as caught:
        feature_files.read(path, **options)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{path}: ")
    return message

import fcntl
import os
import pickle

# Tests compare bits, which a GPU repeats with --deterministic only, and fork, which CUDA does not survive. Set before
# torch is imported; set it yourself to see the rest of them on a GPU.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest

# Tests kill processes, never the machine: what is written is there without waiting for the disk.
os.fsync = lambda _: None
vars(fcntl).pop("F_FULLFSYNC", None)  # a Mac's


@pytest.fixture
def save(tmp_path):
    def save(content, name="features.pkl", protocol=4):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
        return path

    return save

import pickle

import pytest


@pytest.fixture
def save(tmp_path):
    def save(content, name="features.pkl", protocol=4):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
        return path

    return save

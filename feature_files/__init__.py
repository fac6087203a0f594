"""Feature files: every layout the field publishes, read into one `Corpus`, and written again.

    python -m feature_files inspect FILE [--json] [--plot PNG]
    python -m feature_files convert IN OUT
    python -m feature_files join TEXT_FILE AV_FILE OUT
    python -m feature_files merge PARTS... OUT
    python -m feature_files download NAME

What this package offers is imported when it is first asked for, so that ``--help`` waits for nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_FROM = {
    "inspect": "inspection",
    "join": "joining",
    "main": "commands",
    "media_digest": "stream",
    "merge": "stream",
    "provenance": "reading",
    "read": "reading",
    "stream_container": "stream",
    "write_container": "container",
    "write_nine_tuple": "pickles",
}
__all__ = ["inspect", "join", "main", "media_digest", "merge", "provenance", "read", "stream_container"]
__all__ += ["write_container", "write_nine_tuple"]


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_FROM[name]}"), name)
    return value

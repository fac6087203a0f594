"""The best weighted F1 that anything can reach on the synthetic corpus, from the recipe it is made by.

    python benchmarks/synthetic_ceiling.py

The exact posterior of every emotion is computed with the true parameters, twice: from the utterance alone, and from
the whole dialogue by the forward-backward algorithm (Rabiner 1989, section III) over the pair of both speakers'
emotions. The most probable class makes the fewest errors; weighted F1 of that choice is the ceiling, up to the luck
of the sample and the small freedom F1 leaves against accuracy. `synthetic.ceiling` computes it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import common
import pandas as pd

from synthetic import ceiling, synthetic_corpus


def main(argv: Sequence[str] | None = None) -> int:
    """Print the two ceilings."""
    parser = common.make_parser("The best weighted F1 that anything can reach on the synthetic corpus.", ["--seed"])
    settings, _ = common.parse(parser, argv, needs_data=False)
    best = ceiling(synthetic_corpus(seed=settings.run.seed), settings.run.seed)
    names = {"utterance": "each utterance alone", "context": "the whole dialogue"}
    rows = [(f"from {names[name]}", f"{value:.2f}") for name, value in best.items()]
    print(common.markdown(pd.DataFrame(rows, columns=["weighted F1 that cannot be beaten, synthetic corpus", ""])))
    return 0


if __name__ == "__main__":
    sys.exit(main())

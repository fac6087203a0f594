"""The data that a run's settings name."""

from __future__ import annotations

from collections.abc import Sequence

import feature_files
from dataloader import Corpus, cross_validation
from experiment.console import say
from experiment.settings import DataSettings, Settings
from files import InputError
from synthetic import synthetic_corpus

NO_DATA = """\
no feature file. Put one into IEMOCAP_features/ and name it:
  python train_IEMOCAP.py --features IEMOCAP_features/IEMOCAP_features.pkl
To fetch the public IEMOCAP features there:
  python train_IEMOCAP.py --download
IEMOCAP_features/README.md says where other public files are and how to make one. To try GAN-FFN without data:
  python train_IEMOCAP.py --demo"""


def load_corpus(settings: Settings, needs: Sequence[str] = ("train", "test")) -> Corpus:
    """As `read_corpus`, for a run: a synthetic corpus is announced as what it is."""
    if settings.data.demo:
        say("*** SYNTHETIC CORPUS: made-up dialogues of IEMOCAP's shape. Its scores say nothing about real ones. ***")
    return read_corpus(settings.data, needs)


def read_corpus(data: DataSettings, needs: Sequence[str] = ()) -> Corpus:
    """The corpus that the settings name: read, the fold held out, the modalities chosen.

    Args:
        data: Names a feature file, or the synthetic corpus.
        needs: Splits that it must have at least.

    Raises:
        InputError: If nothing is named, or the file cannot be read or lacks what is asked for.
    """
    if data.demo:
        corpus = synthetic_corpus()
    elif data.features:
        corpus = feature_files.read(
            data.features,
            text_layers=data.text_layers,
            target=data.target,
            missing=data.missing,
            label_names=data.label_names,
            needs=needs,
        )
    else:
        raise InputError(NO_DATA)
    if data.fold:
        folds, over, name = data.fold
        parts = cross_validation(corpus, folds, over)
        if name not in parts:
            raise InputError(f"{corpus.name}: no fold {name} of the run's; there are {', '.join(parts):.200}")
        corpus = parts[name]
    return corpus.select_modalities(data.modalities) if data.modalities else corpus

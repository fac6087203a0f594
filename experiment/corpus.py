"""The data that the settings name."""

from __future__ import annotations

from collections.abc import Sequence

import feature_files
from dataloader import Corpus, cross_validation
from experiment.console import say
from experiment.settings import Settings
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
    """The corpus that the settings name, with the splits it needs at least."""
    data = settings.data
    if data.demo:
        corpus = synthetic_corpus()
        say("*** SYNTHETIC CORPUS: made-up dialogues of IEMOCAP's shape. Its scores say nothing about real ones. ***")
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

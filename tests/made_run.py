"""A run directory as training leaves it, made in a moment: the network is as it was initialised."""

import json
from pathlib import Path

import numpy as np
import torch

import utils
from dataloader import Corpus, Dialogue, Standardiser
from experiment.evaluation import evaluate, prediction_table
from experiment.run_directory import save_tensors, write_config, write_csv, write_json
from experiment.settings import Settings
from experiment.trained import best_weights, build_network, shape_of, standardiser_file
from feature_files import write_nine_tuple

SETTINGS = Settings().replace(fusion__channels=16, run__device="cpu")
DIMS = {"text": 6, "visual": 5, "acoustic": 4}


def dialogue(name, n, classes, rng, speakers=("F", "M"), sentences=None):
    features = {m: rng.normal(size=(n, d)).astype(np.float32) for m, d in DIMS.items()}
    who = tuple(speakers[i % len(speakers)] for i in range(n))
    text = tuple(sentences[i % len(sentences)] if sentences else f"sentence {i} of {name}" for i in range(n))
    labels = rng.integers(0, classes, n)
    return Dialogue(name, features, labels, who, text, tuple(f"{name}_{i:03d}" for i in range(n)))


def corpus_of(lengths, names=("happy", "sad", "neutral"), **about):
    """A corpus with test dialogues of these lengths."""
    rng = np.random.default_rng(0)
    train = [dialogue(f"Ses01_t{i}", 12, len(names), rng) for i in range(3)]
    test = [dialogue(f"Ses05_d{i:02d}", n, len(names), rng, **about) for i, n in enumerate(lengths)]
    splits = {"train": tuple(d.id for d in train), "test": tuple(d.id for d in test)}
    return Corpus("made up", {d.id: d for d in [*train, *test]}, splits, tuple(names), "0" * 64)


def make_run(directory: Path, corpus: Corpus, *, settings=SETTINGS, seed=0, file=None):
    """Write the run; with a file, the data too, so that the page can be made again from the directory alone."""
    if file:
        import feature_files

        write_nine_tuple(corpus, file)
        names = corpus.label_names
        settings = settings.replace(data__features=str(file), data__label_names=names)
        corpus = feature_files.read(str(file), label_names=names)
    directory.mkdir(parents=True)
    (directory / "checkpoints").mkdir()
    write_config(directory, settings, corpus)
    torch.manual_seed(seed)
    network = build_network(shape_of(corpus), settings.fusion, settings.classifier)
    with torch.no_grad():
        for p in network.classifier.parameters():
            p.mul_(2)
    standardise = Standardiser.fit(corpus.split("train"))
    save_tensors(best_weights(directory), network.state_dict())
    save_tensors(standardiser_file(directory), standardise.tensors())
    data = {"test": [standardise(d) for d in corpus.split("test")]}
    labels, probabilities = evaluate(network, data["test"])
    write_csv(directory / "predictions.csv", prediction_table(data, {"test": probabilities}, corpus.label_names))
    scores = utils.score(labels, probabilities, corpus.label_names)
    write_json(directory / "report.json", {"test": scores, "valid": None, "best_epoch": 2, "parameters": 5})
    (directory / "report.txt").write_text(utils.report_text(labels, probabilities, corpus.label_names))
    rows = [{"epoch": e, "train_loss": 2 / e, "train_weighted_f1": 20.0 * e, "seconds": 1.0} for e in (1, 2)]
    write_csv(directory / "history.csv", rows)
    kinds = ("G_loss", "D_loss", "contrastive", "reconstruction")
    write_csv(
        directory / "GAN_loss.csv",
        [{"epoch": e} | {f"{m}_{k}": 0.7 / e for k in kinds for m in DIMS} | {"seconds": 1.0} for e in (1, 2)],
    )
    return network, data["test"]


def data_of(page: Path):
    """What the page's script reads."""
    text = page.read_text(encoding="utf-8")
    return json.loads(text.split('<script type="application/json" id="data">')[1].split("</script>")[0])

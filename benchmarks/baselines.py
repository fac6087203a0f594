"""What other networks score under GAN-FFN's own protocol, on any feature file: raw, or of ``--export-fused``.

    python benchmarks/baselines.py --features IEMOCAP_features/IEMOCAP_features.pkl
    python benchmarks/baselines.py --features FILE --folds sessions --seeds 0,1,2 --networks gru,dialoguegcn
    python benchmarks/baselines.py --demo --lr 1e-3

``gru``: a plain bidirectional GRU. ``lstm``: bc-LSTM (Poria et al., ACL 2017, P17-1081). ``dialoguegcn``: DialogueGCN
(Ghosal et al., EMNLP 2019, arXiv 1908.11540). ``logistic``: logistic regression on single utterances. The first three
are trained by ``train_classifier`` of ``train_IEMOCAP.py`` itself, in the place of its network, so that augmentation,
averaged weights, session logit adjustment, loss, schedule and the epoch that is scored are the method's; and all are
told who speaks. What nothing was written for is the peak learning rate: cross-validation within the training dialogues
of the file chooses it once for each network, as the method's own was chosen; of logistic regression it chooses C.
``--epochs`` is stage 2's 30; the method has 30 more in stage 1, which ``--epochs 60`` gives to the others too.

Prints a Markdown table: mean ± standard deviation over seeds of the mean over folds, the mean of each fold, seconds a
seed. With ``--out``, ``baselines.csv`` there has a row a seed and fold, and ``baselines.md`` the table.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import common
import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence, unpack_sequence
from torch_geometric.nn import GraphConv, SimpleConv
from torch_geometric.utils import softmax

import utils
from dataloader import IGNORE_LABEL, Batch, Corpus, Dialogue, cross_validation, hold_out_validation, session_of
from experiment.evaluation import evaluate
from experiment.flags import Parser, flag_type
from experiment.run import Run
from experiment.run_directory import write_csv
from experiment.settings import Number, Settings
from files import InputError
from model import GANFFN, dialogue_edges, padded
from train_IEMOCAP import train_classifier

HIDDEN = 128  # width of a recurrent network, a direction
WINDOW = 10  # turns of DialogueGCN's graph, back and ahead
FLAGS = (
    *("--valid", "--epochs", "--batch-size", "--weight-decay", "--dropout", "--focal", "--class-weight"),
    *("--session-logit-adjustment", "--noise", "--drop-utterances", "--drop-modality", "--device"),
)

# The networks ---------------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """A recurrent network over the real utterances of each dialogue, past and future.

    Shapes:
        x: ``[N, in_channels]``; mask: ``[B, T]``; result: ``[N, 2 * HIDDEN]``.

    Args:
        kind: ``nn.GRU`` or ``nn.LSTM``.
        in_channels: Width of an utterance.
        layers: How many.
        dropout: Between the layers.
    """

    def __init__(self, kind: type[nn.RNNBase], in_channels: int, layers: int = 1, dropout: float = 0.0):
        super().__init__()
        self.layers = kind(in_channels, HIDDEN, layers, bidirectional=True, dropout=dropout if layers > 1 else 0.0)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """The states; see the class."""
        packed = pack_sequence(x.split(mask.sum(1).tolist()), enforce_sorted=False)
        return torch.cat(unpack_sequence(self.layers(packed)[0]))


class Baseline(nn.Module):
    """What stands in the place of GAN-FFN's graph classifier; a kind says what ``logits`` its utterances get.

    Shapes:
        x: ``[B, T, sum of dims]``; mask, speakers: ``[B, T]``; result: logits ``[B, T, num_classes]``, 0 where padded.

    Args:
        dims: Modality to width, in the order in which x has them.
        num_classes: How many emotions.
        num_speakers: How many speakers are told apart.
        dropout: Probability, between 0 and 1.
    """

    window = (WINDOW, WINDOW)  # which tells `GANFFN` that it reads around an utterance

    def __init__(self, dims: Mapping[str, int], num_classes: int, num_speakers: int, dropout: float):
        super().__init__()
        self.dims, self.num_classes, self.num_speakers = dict(dims), num_classes, num_speakers
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, speakers: Tensor) -> Tensor:
        """Logits; see the class."""
        return padded(self.logits(x[mask], mask, speakers), mask)

    def speaker(self, mask: Tensor, speakers: Tensor) -> Tensor:
        """Who speaks each utterance, one-hot, ``[N, num_speakers]``."""
        return F.one_hot(speakers[mask].clamp(max=self.num_speakers - 1), self.num_speakers).float()


class GRU(Baseline):
    """A bidirectional GRU of two layers on all features and the speaker."""

    def __init__(self, dims: Mapping[str, int], num_classes: int, num_speakers: int, dropout: float):
        super().__init__(dims, num_classes, num_speakers, dropout)
        self.context = Recurrent(nn.GRU, sum(dims.values()) + num_speakers, 2, dropout)
        self.classify = nn.Linear(2 * HIDDEN, num_classes)

    def logits(self, x: Tensor, mask: Tensor, speakers: Tensor) -> Tensor:
        """Of each utterance, ``[N, num_classes]``."""
        states = self.context(torch.cat([x, self.speaker(mask, speakers)], dim=-1), mask)
        return self.classify(self.dropout(states))


class BcLSTM(Baseline):
    """bc-LSTM in its hierarchical form: a bidirectional LSTM a modality, then one over what they say together.

    The paper trains the first level alone and then holds it; here both learn together, and read the speaker.
    """

    def __init__(self, dims: Mapping[str, int], num_classes: int, num_speakers: int, dropout: float):
        super().__init__(dims, num_classes, num_speakers, dropout)
        self.modalities = nn.ModuleDict({m: Recurrent(nn.LSTM, d + num_speakers) for m, d in dims.items()})
        self.dense = nn.ModuleDict({m: nn.Linear(2 * HIDDEN, HIDDEN) for m in dims})
        self.together = Recurrent(nn.LSTM, HIDDEN * len(dims))
        self.classify = nn.Sequential(
            nn.Linear(2 * HIDDEN, HIDDEN), nn.ReLU(), nn.Dropout(dropout), nn.Linear(HIDDEN, num_classes)
        )

    def logits(self, x: Tensor, mask: Tensor, speakers: Tensor) -> Tensor:
        """Of each utterance, ``[N, num_classes]``."""
        speaker, said = self.speaker(mask, speakers), []
        for (m, lstm), features in zip(self.modalities.items(), x.split(list(self.dims.values()), -1), strict=True):
            states = self.dropout(lstm(torch.cat([features, speaker], dim=-1), mask))
            said.append(self.dropout(F.relu(self.dense[m](states))))
        return self.classify(self.dropout(self.together(torch.cat(said, dim=-1), mask)))


class DialogueGCN(Baseline):
    """A GRU over the dialogue, then two graph layers over each utterance's window, then attention over the dialogue.

    Equations of the paper, g being the GRU's states and the weights alpha of an utterance's edges, itself included,
    summing to one::

        alpha_i = softmax_j(g_i^T W g_j)
        h_i     = relu(alpha_ii W_0 g_i + sum over relations r, neighbours j in r of alpha_ij W_r g_j)
        h'_i    = relu(W' sum_j h_j + W'_0 h_i)

    Its normalising constants c_ir are 1, for the weights sum to one as they are. It knows who speaks by its edges.
    """

    def __init__(self, dims: Mapping[str, int], num_classes: int, num_speakers: int, dropout: float):
        super().__init__(dims, num_classes, num_speakers, dropout)
        states = 2 * HIDDEN
        self.context = Recurrent(nn.GRU, sum(dims.values()), 2, dropout)
        self.similarity = nn.Linear(states, states, bias=False)
        self.root = nn.Linear(states, HIDDEN)
        self.relations = nn.ModuleList(nn.Linear(states, HIDDEN, bias=False) for _ in range(2 * num_speakers**2))
        self.gather = SimpleConv(aggr="add")
        self.graph = GraphConv(HIDDEN, HIDDEN)
        self.query = nn.Linear(states + HIDDEN, states + HIDDEN, bias=False)
        self.classify = nn.Sequential(
            nn.Linear(states + HIDDEN, HIDDEN), nn.ReLU(), nn.Dropout(dropout), nn.Linear(HIDDEN, num_classes)
        )

    def logits(self, x: Tensor, mask: Tensor, speakers: Tensor) -> Tensor:
        """Of each utterance, ``[N, num_classes]``."""
        states = self.dropout(self.context(x, mask))
        edges, types = dialogue_edges(mask, speakers, *self.window, self.num_speakers)
        loops = torch.arange(len(x), device=x.device).expand(2, -1)
        source, target = torch.cat([edges, loops], dim=1)
        alpha = softmax((self.similarity(states)[target] * states[source]).sum(-1), target, num_nodes=len(x))
        alpha, own = alpha[: edges.shape[1]], alpha[edges.shape[1] :]
        hidden = own.unsqueeze(1) * self.root(states)
        for r in types.unique().tolist():
            of_r = types == r
            hidden = hidden + self.relations[r](self.gather(states, edges[:, of_r], alpha[of_r]))
        hidden = F.relu(self.graph(F.relu(hidden), edges))
        whole = padded(torch.cat([states, hidden], dim=-1), mask)
        # Not scaled by the width, as in the paper: a dialogue's mean is where scaled attention would begin.
        read = F.scaled_dot_product_attention(self.query(whole), whole, whole, mask.unsqueeze(1), scale=1.0)
        return self.classify(read[mask])


NETWORKS: dict[str, type[Baseline]] = {"gru": GRU, "lstm": BcLSTM, "dialoguegcn": DialogueGCN}
RATES = {
    **dict.fromkeys(NETWORKS, (3e-4, 1e-3, 3e-3, 1e-2)),  # peak learning rates to choose from
    "logistic": (1e-4, 1e-3, 1e-2, 1e-1),  # C, one over the weight of the penalty
}


class Given(nn.Module):
    """The features as they are, side by side, in the place of the generators; it has none that could learn."""

    def __init__(self, channels: int):
        super().__init__()
        self.fused_channels = channels
        self.generators = nn.ModuleDict()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """All modalities as one, ``[B, T, fused_channels]``."""
        return {"all": torch.cat(list(batch.features.values()), dim=-1)}


def build(name: str, corpus: Corpus, dropout: float) -> GANFFN:
    """One of `NETWORKS`, for a corpus, where `train_classifier` and `evaluate` find what they look for."""
    network = NETWORKS[name](corpus.dims, corpus.num_classes, corpus.num_speakers, dropout)
    return GANFFN(Given(sum(corpus.dims.values())), network, speaker_layers=0)


# Scores ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """What one training came to.

    Attributes:
        weighted_f1: On test, in percent.
        seconds: Of training and scoring.
        parameters: How many the network has.
        labels: Classes of the test utterances, in the order of the split, ``[N]``.
        probabilities: ``[N, C]``.
    """

    weighted_f1: float
    seconds: float
    parameters: int
    labels: np.ndarray
    probabilities: np.ndarray


def score(name: str, corpus: Corpus, settings: Settings, seed: int, lr: float) -> Score:
    """Train on the training split and score on the test split.

    Args:
        name: One of `RATES`.
        corpus: Not standardised.
        settings: Those of stage 2, augmentation, ``fusion.dropout``, ``data.valid``, device and batch size count.
        seed: Of all that is random.
        lr: Peak learning rate; of ``logistic``, C.
    """
    settings = settings.replace(run__seed=seed, classifier__lr=lr)
    corpus = hold_out_validation(corpus, settings.data.valid, seed)
    data = common.standardised(corpus)
    started = time.perf_counter()
    fit = logistic if name == "logistic" else trained
    labels, probabilities, parameters = fit(name, corpus, data, settings)
    seconds = time.perf_counter() - started
    f1 = float(utils.weighted_f1(*utils.labelled(labels, probabilities)))
    return Score(f1, seconds, parameters, labels, probabilities)


def trained(
    name: str, corpus: Corpus, data: Mapping[str, Sequence[Dialogue]], settings: Settings
) -> tuple[np.ndarray, np.ndarray, int]:
    """A network's labels and probabilities on test, and how many parameters it has."""
    torch.manual_seed(utils.stream(settings.run.seed, "weights"))
    network = build(name, corpus, settings.fusion.dropout).to(settings.run.device)
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(io.StringIO()):
        run = Run(Path(directory), tensorboard=False, checkpoint_every=settings.classifier.epochs + 1)
        train_classifier(network, data, run, settings)
    network.load_state_dict(run.best)
    return *evaluate(network, data["test"]), sum(p.numel() for p in network.parameters())


def logistic(
    name: str, corpus: Corpus, data: Mapping[str, Sequence[Dialogue]], settings: Settings
) -> tuple[np.ndarray, np.ndarray, int]:
    """The same of logistic regression, to which nothing but the class weights can be given; a missing row is zero."""
    x, y = {}, {}
    for split in ("train", "test"):
        rows = [np.concatenate(list(d.features.values()), axis=1) for d in data[split]]
        x[split] = np.nan_to_num(np.concatenate(rows))
        y[split] = np.concatenate([d.labels for d in data[split]])
    known = y["train"] != IGNORE_LABEL
    weight = "balanced" if settings.classifier.class_weight else None
    model = LogisticRegression(C=settings.classifier.lr, class_weight=weight, max_iter=5000)
    model.fit(x["train"][known], y["train"][known])
    probabilities = np.zeros((len(y["test"]), corpus.num_classes))
    probabilities[:, model.classes_] = model.predict_proba(x["test"])
    return y["test"], probabilities, model.coef_.size + model.intercept_.size


def inner_folds(corpus: Corpus) -> list[Corpus]:
    """Cross-validation within the training split: the sessions that its ids name, or three folds.

    Raises:
        InputError: If there are too few dialogues.
    """
    ids = corpus.splits["train"]
    sessions = {session_of(i) for i in ids}
    if len(ids) < 3:
        raise InputError(f"{corpus.name}: split 'train': {len(ids)} dialogues are too few to choose a rate; give --lr")
    folds = "sessions" if len(sessions) > 1 and "" not in sessions else 3
    return list(cross_validation(corpus, folds, "train").values())


def choose_rate(name: str, parts: Sequence[Corpus], settings: Settings) -> tuple[float, dict[float, float]]:
    """The learning rate of the best mean F1 over folds, one seed, and the mean F1 of every one in `RATES`."""
    means = {
        rate: float(np.mean([score(name, part, settings, 0, rate).weighted_f1 for part in parts]))
        for rate in RATES[name]
    }
    return max(means, key=lambda rate: means[rate]), means


# The table ------------------------------------------------------------------------------------------------------------


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """One line a network of rows ``network, rate, seed, fold, weighted_f1, seconds, parameters``."""
    lines = []
    for (name, rate), of_network in rows.groupby(["network", "rate"], sort=False):
        by_seed, folds = of_network.groupby("seed"), of_network.groupby("fold", sort=False)["weighted_f1"].mean()
        lines.append(
            {
                "network": name,
                "rate": f"{'C' if name == 'logistic' else 'lr'} {rate:g}",
                "seeds": len(by_seed),
                "weighted F1": common.mean_and_deviation(by_seed["weighted_f1"].mean().tolist()),
                **({fold: f"{f1:.2f}" for fold, f1 in folds.items()} if len(folds) > 1 else {}),
                "seconds": f"{by_seed['seconds'].sum().mean():.0f}",
                "parameters": f"{of_network['parameters'].max():,}",
            }
        )
    return pd.DataFrame(lines)


def names(text: str) -> list[str]:
    """Networks, each once, with commas between."""
    chosen = list(dict.fromkeys(text.split(",")))
    if unknown := [name for name in chosen if name not in RATES]:
        raise ValueError(f"no network {unknown[0]!r:.40}; choose among {', '.join(RATES)}")
    return chosen


def build_parser() -> Parser:
    """All flags."""
    parser = common.make_parser("Other networks under the method's protocol.", (*common.DATA, *FLAGS))
    common.add_seeds(parser, "0,1,2")
    common.add_folds(parser)
    parser.add_argument("--networks", type=flag_type(names), metavar="LIST", default=",".join(RATES), help="which")
    rate: Callable[[str], float] = flag_type(Number(float, 0, 1e3, above=True).parse)
    parser.add_argument("--lr", type=rate, help="peak learning rate, of logistic C (default: chosen for each)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write baselines.csv and baselines.md there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script. Returns the exit status: 0, 1 if training failed, 2 for bad input, 130 if interrupted."""
    settings, own = common.parse(build_parser(), argv)
    rows: list[dict[str, float | str]] = []
    status = common.ending(lambda: run(settings, own, rows))
    if rows:
        frame = table(pd.DataFrame(rows))
        print(f"\n{common.markdown(frame)}")
        if own.out and not status:
            common.write_text(own.out / "baselines.md", common.markdown(frame))
    return status


def run(settings: Settings, own: argparse.Namespace, rows: list[dict[str, float | str]]) -> None:
    """Train and score every network with every seed and fold; what they come to goes into ``rows``."""
    settings, corpus = common.prepare(settings)
    parts = cross_validation(corpus, own.folds, own.folds_over) if own.folds else {"test": corpus}
    if own.out:
        common.make_folder(own.out)
    for name in own.networks:
        rate = own.lr
        if rate is None:
            rate, means = choose_rate(name, inner_folds(corpus), settings)
            tried = ", ".join(f"{r:g}: {f1:.2f}" for r, f1 in means.items())
            print(f"{name}: rate {rate:g} by cross-validation within the training split ({tried})", flush=True)
        for seed in own.seeds:
            of_seed: list[dict[str, float | str]] = []  # which counts once all of its folds are there
            for fold, part in parts.items():
                result = score(name, part, settings, seed, rate)
                of_seed.append(
                    {
                        **{"network": name, "rate": rate, "seed": seed, "fold": fold},
                        **{"weighted_f1": result.weighted_f1, "seconds": result.seconds},
                        "parameters": result.parameters,
                    }
                )
            rows += of_seed
            mean = np.mean([row["weighted_f1"] for row in of_seed])
            print(f"{name}, seed {seed}: weighted F1 {mean:.2f}", flush=True)
            if own.out:
                write_csv(own.out / "baselines.csv", rows)


if __name__ == "__main__":
    sys.exit(main())

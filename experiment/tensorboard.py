"""What a run writes for TensorBoard, through tensorboardX's own `SummaryWriter`; docs/look.md glosses every tag."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensorboardX import SummaryWriter
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.summary import hparams
from tensorboardX.writer import FileWriter

from dataloader import Batch
from experiment.console import NOTHING_HELD_OUT
from experiment.insight import Insight, read_curves, several
from experiment.palette import plain
from files import WriteError
from model import AdversarialFusion

FOLDER = "tensorboard"
WATCHED = 20  # classes at most that get curves of their own
# Part of a column's name to the group of tags it is shown in.
GROUPS = (
    ("_G_loss", "stage1_generators"),
    ("_D_loss", "stage1_discriminators"),
    ("_D_right_on_real", "stage1_right_on_real"),
    ("_D_right_on_fused", "stage1_right_on_fused"),
    ("_contrastive", "stage1_contrastive"),
    ("_translation", "stage1_translation"),
    ("_reconstruction", "stage1_reconstruction"),
)


@torch.no_grad()
def discriminators_right(fusion: AdversarialFusion, batch: Batch) -> dict[str, float]:
    """Share of its own and of the other modalities' fused features that each discriminator takes for what they are.

    In percent; a modality that the batch lacks is left out. The relativistic loss tells only how logits differ, so the
    line is drawn halfway between the means of both kinds; the reference's is at 0. Networks are looked at without
    dropout; nothing random is touched.

    Args:
        fusion: Left in training mode.
        batch: Clean features, on the network's device.
    """
    fusion.eval()
    shared = {m: s[batch.has(m)[batch.mask]] for m, s in fusion.shared(batch, fusion(batch)).items()}
    found = {}
    for k, discriminator in fusion.discriminators.items():
        on_own = discriminator(shared[k])
        on_other = torch.cat([discriminator(s) for m, s in shared.items() if m != k])
        if not len(on_own) or not len(on_other):
            continue
        line = (on_own.mean() + on_other.mean()) / 2 if fusion.relativistic else 0.0
        found[f"{k}_D_right_on_real"] = 100 * (on_own > line).float().mean().item()
        found[f"{k}_D_right_on_fused"] = 100 * (on_other < line).float().mean().item()
    fusion.train()
    return found


class Direct:
    """Writes events at once. tensorboardX's own thread for it would die of a full disk, and the run then hang."""

    def __init__(self, folder: Path, suffix: str = ""):
        self.folder = str(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.events = EventsWriter(str(folder / "events"), suffix)

    def get_logdir(self) -> str:
        """Where the events go."""
        return self.folder

    def add_event(self, event: Any) -> None:
        """Write an event."""
        self.events.write_event(event)

    def flush(self) -> None:
        """Bring what was written to the disk."""
        self.events.flush()

    def close(self) -> None:
        """Write no more."""
        self.events.close()

    def reopen(self) -> None:
        """Nothing to do."""


class DirectFile(FileWriter):
    """tensorboardX's writer of one file, without its thread."""

    def __init__(self, folder: Path, suffix: str = ""):
        self.event_writer = Direct(folder, suffix)
        self._default_metadata = {}


class Writer(SummaryWriter):
    """tensorboardX's `SummaryWriter`, whose writing fails where it is asked for."""

    def __init__(self, folder: Path, suffix: str = ""):
        self._folder, self._suffix = Path(folder), suffix
        super().__init__(str(folder))

    def _get_file_writer(self) -> FileWriter:
        if self.all_writers is None or self.file_writer is None:
            self.file_writer = DirectFile(self._folder, self._suffix)
            self.all_writers = {self.file_writer.get_logdir(): self.file_writer}
        return self.file_writer


def tag_of(stage: str, column: str) -> str:
    """The tag of a column of the curves, such as ``stage1_generators/text``."""
    if stage == "adversarial":
        for part, group in GROUPS:
            if column.endswith(part):
                return f"{group}/{column.removesuffix(part)}"
        return f"stage1/{column}"
    split, _, rest = column.partition("_")
    if split in ("train", "valid", "test") and rest:
        return f"stage2_{split}_f1/{rest.removeprefix('f1_')}" if rest.startswith("f1_") else f"stage2_{split}/{rest}"
    return f"stage2/{column}"


def add_rows(writer: SummaryWriter, stage: str, rows: Sequence[Mapping[str, float]]) -> None:
    """Write rows of a stage's curves."""
    for row in rows:
        for name, value in row.items():
            if name != "epoch" and np.isfinite(value):
                writer.add_scalar(tag_of(stage, name), value, int(row["epoch"]))


class Curves:
    """The curves of a run while it goes on.

    After a stop they are written anew from the history, so that no epoch is there twice.
    """

    def __init__(self, directory: Path):
        self.folder = directory / FOLDER
        self._writer: Writer | None = None

    def add(
        self, new: Mapping[str, Sequence[Mapping[str, float]]], history: Mapping[str, Sequence[Mapping[str, float]]]
    ) -> None:
        """Add rows, or all of the history where none has been added yet.

        Raises:
            WriteError: If they cannot be written.
        """
        if not any(history.values()):
            return
        try:
            if self._writer is None:
                self.folder.mkdir(exist_ok=True)
                for old in self.folder.glob("events.*"):
                    old.unlink()
                self._writer, new = Writer(self.folder), history
            for stage, rows in new.items():
                add_rows(self._writer, stage, rows)
            self._writer.file_writer.flush()
        except OSError as error:
            raise WriteError(
                f"{self.folder}: cannot be written ({error.strerror}); check the folder and its free space"
            ) from None

    def close(self) -> None:
        """Write no more."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def finish(seen: Insight) -> None:
    """Write what is known at the end: flags and scores, report, images, PR curves, projector; of several, their means.

    Raises:
        OSError: If it cannot be written.
    """
    if seen.members:
        mean_curves(seen.directory)
        return
    folder = seen.directory / FOLDER
    for old in folder.glob("events.*.final"):
        old.unlink()
    step = int(seen.report.get("best_epoch", 0))
    writer = Writer(folder, ".final")
    try:
        _text(writer, seen)
        _hparams(writer, seen, step)
        if len(seen.table):
            _pr_curves(writer, seen, step)
            _images(writer, seen, step)
            _projector(writer, seen)
    finally:
        writer.close()


def _fusion(figures: Any) -> dict[str, float]:
    """What the report says of how well stage 1 has fused, a tag a figure."""
    if not isinstance(figures, dict):
        return {}
    each = {"modality_probe": figures.get("modality_probe")}
    for kind in ("discriminator_accuracy", "retrieval"):
        each |= {f"{kind}_{plain(pair)}": x for pair, x in (figures.get(kind) or {}).items()}
    return {f"fusion/{name}": float(x) for name, x in each.items() if isinstance(x, (int, float))}


def _text(writer: Writer, seen: Insight) -> None:
    flags = json.dumps(seen.settings, indent=2)
    writer.add_text("run/flags", "".join(f"    {line}\n" for line in flags.splitlines()))
    path = seen.directory / "report.txt"
    if path.exists():
        text = path.read_text(encoding="utf-8", errors="replace")
        writer.add_text("run/report", "".join(f"    {line}\n" for line in text.splitlines()))
    if not seen.report.get("valid"):
        writer.add_text("run/watched", NOTHING_HELD_OUT.strip())


def _hparams(writer: Writer, seen: Insight, step: int) -> None:
    chosen: dict[str, Any] = {}
    for group, values in seen.settings.items():
        for name, value in values.items():
            plain_value = isinstance(value, (bool, int, float, str))
            if value is not None and name not in ("tensorboard", "pictures", "figures", "device"):
                chosen[f"{group}.{name}"] = value if plain_value else json.dumps(value)
    scores = {
        f"final_{split}/{name}": float(figures[name])
        for split in ("test", "valid")
        if isinstance(figures := seen.report.get(split), dict)
        for name in ("weighted_f1", "macro_f1", "accuracy", "loss")
        if name in figures
    }
    for summary in hparams(chosen, scores):
        writer.file_writer.add_summary(summary)
    for name, value in {**scores, **_fusion(seen.report.get("fusion"))}.items():
        writer.add_scalar(name, value, step)
    per_class = seen.scores.get("per_class", {})
    for name, row in list(per_class.items())[:WATCHED]:
        writer.add_scalar(f"final_test_f1/{plain(name)}", row["f1"], step)


def _pr_curves(writer: Writer, seen: Insight, step: int) -> None:
    labels = seen.table["label"].to_numpy()
    for i, name in enumerate(seen.label_names[:WATCHED]):
        writer.add_pr_curve(
            f"precision_recall/{plain(name)}", (labels == i).astype(int), seen.probabilities[:, i], step
        )


def _images(writer: Writer, seen: Insight, step: int) -> None:
    from PIL import Image

    from experiment import plots

    with plots.style():
        made = plots.pictures(seen)
        for name in ("confusion_matrix", "per_class_f1", "reliability_diagram", "fused_features", "last_layer"):
            drawn: Path | io.BytesIO = seen.directory / f"{name}.png"
            if drawn not in seen.drawn:
                figure = made[name]() if name in made else None
                if figure is None:
                    continue
                drawn = io.BytesIO()
                figure.savefig(drawn, format="png")
                plots.plt.close(figure)
            pixels = np.asarray(Image.open(drawn).convert("RGB"))
            writer.add_image(f"images/{name}", pixels, step, dataformats="HWC")


def _projector(writer: Writer, seen: Insight, most: int = 500) -> None:
    """Fused features with emotion, modality, speaker and dialogue of each point."""
    fused = seen.fused_features
    if not fused:
        return
    chosen = np.linspace(0, len(seen.table) - 1, min(most, len(seen.table))).astype(int)
    labels, speakers, dialogues = (seen.table[name].to_numpy() for name in ("label", "speaker", "dialogue"))
    rows, points = [], []
    for modality, features in fused.items():
        for i in chosen:
            if np.isfinite(features[i]).all():
                rows.append([seen.label_names[labels[i]], modality, speakers[i], dialogues[i]])
                points.append(features[i])
    if not points:
        return
    folder = Path(writer.logdir)
    for old in [folder / "projector_config.pbtxt", *folder.glob("00000/*/*")]:
        old.unlink(missing_ok=True)
    for old in folder.glob("00000/*"):
        old.rmdir()
    rows = [[plain(x) or "-" for x in row] for row in rows]
    header = ["emotion", "modality", "speaker", "dialogue"]
    writer.add_embedding(np.stack(points), metadata=rows, metadata_header=header, global_step=0, tag="fused_features")


def mean_curves(directory: Path) -> None:
    """Write the mean of the runs' curves, and it ± their standard deviation, as three runs of their own.

    Of seeds of folds the deviation is that of the seeds, each the mean over its folds.
    """
    folder = directory / FOLDER
    for stage, name in (("adversarial", "GAN_loss.csv"), ("classifier", "history.csv")):
        paths = [path for path in several(directory) if (path / name).exists()]
        tables = [read_curves(path / name) for path in paths]
        if not tables:
            continue
        length = min(map(len, tables))
        columns = [c for c in tables[0][0] if all(c in rows[0] for rows in tables) and c != "epoch"]
        runs = np.array([[[row[c] for c in columns] for row in rows[:length]] for rows in tables])  # [runs, E, C]
        seeds = np.array([path.relative_to(directory).parts[0] for path in paths])
        values = np.stack([runs[seeds == seed].mean(0) for seed in dict.fromkeys(seeds)])
        mean = values.mean(0)
        deviation = values.std(0, ddof=1) if len(values) > 1 else np.zeros_like(mean)
        curves = {"mean": mean, "mean_plus_deviation": mean + deviation, "mean_minus_deviation": mean - deviation}
        for kind, each in curves.items():
            at = folder / kind
            for old in at.glob(f"events.*.{stage}"):
                old.unlink()
            writer = Writer(at, f".{stage}")
            try:
                rows = [
                    {"epoch": tables[0][e]["epoch"], **dict(zip(columns, line.tolist(), strict=True))}
                    for e, line in enumerate(each)
                ]
                add_rows(writer, stage, rows)
            finally:
                writer.close()

"""How fast a run is in use: loading, predicting a file, streaming, the exported file against ours.

    python benchmarks/predict.py RUN                 # RUN trained with --causal for the streaming rows
    python benchmarks/predict.py RUN --export onnx,pt2 --turns 20000

Dialogues are made up, of the run's widths. The table is printed; every row says what it took.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataloader import IGNORE_LABEL, Corpus, Dialogue, collate
from experiment.export import export
from experiment.flags import Parser, flag_type
from experiment.prediction import Model, load
from experiment.settings import Number
from experiment.streaming import Stream
from feature_files import write_container
from files import InputError

LENGTH = 50  # turns of a dialogue of the file


def made_up(model: Model, name: str, turns: int, seed: int = 0) -> Dialogue:
    """A dialogue of features like the training ones' in mean and scale, between two speakers."""
    rng = np.random.default_rng(seed)
    standard = model.members[0].standardise
    features = {
        m: rng.normal(standard.mean[m], standard.scale[m], (turns, d)).astype(np.float32) for m, d in model.dims.items()
    }
    speakers = tuple(rng.choice(["a", "b"], turns))
    return Dialogue(name, features, np.zeros(turns, np.int64), speakers, ("",) * turns, tuple(map(str, range(turns))))


def seconds(act: Callable[[], object], repeats: int = 1) -> float:
    """The shortest time that something takes."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        act()
        times.append(time.perf_counter() - started)
    return min(times)


def file_rows(model: Model, utterances: int) -> list[tuple[str, str]]:
    """Predicting a memory-mapped file."""
    dialogues = [made_up(model, f"d{k}", LENGTH, k) for k in range(utterances // LENGTH)]
    ids = tuple(d.id for d in dialogues)
    corpus = Corpus("made up", {d.id: d for d in dialogues}, {"train": ids[:1], "test": ids[1:]}, model.label_names)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "many.safetensors"
        write_container(corpus, path)
        took = seconds(lambda: model.predict(path))
    return [(f"predict {len(dialogues) * LENGTH:,} utterances of a memory-mapped file", f"{took:.2f} s")]


def stream_rows(model: Model, turns: int) -> list[tuple[str, str]]:
    """A long dialogue turn by turn, at its beginning and end, and the same by predicting all of it at every turn."""
    dialogue = made_up(model, "long", turns)
    stream, times = Stream(model), []
    for k in range(turns):
        features = {m: x[k].tolist() for m, x in dialogue.features.items()}
        turn = {"dialogue": "long", "speaker": dialogue.speakers[k], "features": features}
        started = time.perf_counter()
        answer = stream.answer(turn)
        times.append(time.perf_counter() - started)
    part, warm = max(1, min(1000, turns // 4)), min(10, turns // 2)
    first, last = (1e6 * np.percentile(x, [10, 50]) for x in (times[warm : warm + part], times[-part:]))
    rows = [
        (f"--stream, a turn, of {part:,} at the beginning", "{:,.0f} us; fastest tenth {:,.0f}".format(*first[::-1])),
        (
            f"--stream, a turn, of the last {part:,} of {turns:,}",
            "{:,.0f} us; fastest tenth {:,.0f}".format(*last[::-1]),
        ),
    ]
    for n in sorted({min(100, turns), min(1000, turns), turns}):
        start = Dialogue(
            "long",
            {m: x[:n] for m, x in dialogue.features.items()},
            np.full(n, IGNORE_LABEL),
            dialogue.speakers[:n],
            dialogue.sentences[:n],
            dialogue.utterances[:n],
        )
        took = seconds(lambda start=start: model.probabilities([start]), 2 if n < turns else 1)
        rows.append((f"the same by predicting all of {n:,} turns at each", f"{1e6 * took:,.0f} us"))
    whole = model.probabilities([start])[-1]
    apart = float(np.abs(np.array(list(answer["probabilities"].values())) - whole).max())
    return [*rows, ("the last turn's probabilities, stream and whole, differ by", f"{apart:.1e}")]


def export_rows(model: Model, kinds: Sequence[str]) -> list[tuple[str, str]]:
    """The exported files against ours, on 16 dialogues."""
    dialogues = [made_up(model, f"d{k}", LENGTH + k, k) for k in range(16)]
    raw = collate(dialogues)
    inputs = [*(raw.features[m] for m in model.dims), raw.mask, raw.speakers]
    want = model.probabilities(dialogues)
    rows = [("ours, 16 dialogues", f"{1e3 * seconds(lambda: model.probabilities(dialogues), 3):.0f} ms")]
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            path = Path(folder) / f"model.{kind}"
            took = seconds(lambda path=path: export(model, path))
            run = _onnx(path, inputs) if kind == "onnx" else _pt2(path, inputs)
            apart = np.abs(run()[raw.mask.numpy()] - want).max()
            speed = 1e3 * seconds(run, 3)
            rows.append((f".{kind}, 16 dialogues", f"{speed:.0f} ms; differs by {apart:.1e}; written in {took:.0f} s"))
    return rows


def _onnx(path: Path, inputs: Sequence[torch.Tensor]) -> Callable[[], np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options)
    names = [i.name for i in session.get_inputs()]
    return lambda: session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))[0]


def _pt2(path: Path, inputs: Sequence[torch.Tensor]) -> Callable[[], np.ndarray]:
    program = torch.export.load(path).module()

    def run() -> np.ndarray:
        with torch.no_grad():
            return program(*inputs).numpy()

    return run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script. Returns the exit status: 0, 2 for bad input."""
    parser = Parser(description="How fast a run is in use.")
    parser.add_argument("run", metavar="RUN")
    many, any_number = (flag_type(Number(int, least, 100_000_000).parse) for least in (LENGTH, 0))
    parser.add_argument("--utterances", type=many, default=10_000, metavar="N", help="of the file, in dialogues of 50")
    parser.add_argument("--turns", type=any_number, default=20_000, metavar="N", help="of the stream; 0 leaves it out")
    parser.add_argument("--export", default="onnx,pt2", help="kinds of files; empty leaves them out")
    args = parser.parse_args(argv)
    try:
        started = time.perf_counter()
        model = load(args.run, "cpu")
        rows = [("load, after imports", f"{time.perf_counter() - started:.2f} s"), *file_rows(model, args.utterances)]
        if args.turns and model.settings.classifier.causal:
            rows += stream_rows(model, args.turns)
        if args.export:
            rows += export_rows(model, args.export.split(","))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.run}; torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| what | took |\n|---|---|")
    print("\n".join(f"| {name} | {value} |" for name, value in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

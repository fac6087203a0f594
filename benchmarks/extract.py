"""What extraction costs, and what text context is worth.

    python benchmarks/extract.py speed                  # real-time factor by modality, espeak-ng's voices, drawn clips
    python benchmarks/extract.py memory                 # 200,000 utterances of 3,000 features, peak memory
    python benchmarks/extract.py text --features FILE   # the packaged encoder against the text features of FILE
    python benchmarks/extract.py context --features FILE [--folds sessions] [--seeds LIST] [-- FLAGS of training]

Networks of `speed` have the size of the named ones and random weights, which cost the same. Each command prints its
table.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

# Before this folder, in which this file has the name of a package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import feature_files
from experiment.flags import Parser, flag_type
from experiment.settings import Number, parse_seeds
from experiment.start import ending
from extract import pipeline
from extract.encoders import PRESETS, Settings, encoders
from extract.listing import Clip, Listing, Utterance
from extract.models import Encoder
from feature_files.container import sha256_of
from files import InputError

ROOT = Path(__file__).resolve().parent.parent
LINES = (
    "I told you that yesterday, and the day before.",
    "No, you never did!",
    "Well, I am telling you now, so please listen to me for once.",
    "Fine.",
)


# Speed ----------------------------------------------------------------------------------------------------------------


def speed(folder: Path, count: int) -> list[str]:
    """Seconds of computing a second of media, by modality and encoder."""
    rows = ["| modality | encoder | utterances | media, s | took, s | real time | CPU seconds a second |"]
    rows.append("|---|---|--:|--:|--:|--:|--:|")
    listing = _spoken(folder, count)
    length = sum(u.video.end for u in listing.utterances)
    for modality, spec, name in _networks(folder):
        settings = replace(Settings(text="none", visual="none", acoustic="none"), **{modality: spec})
        out, cache = folder / "speed.safetensors", folder / f"{time.time_ns()}.sqlite"
        before = os.times()
        summary = pipeline.run(listing, settings, out, cache=cache, say=lambda line: None)
        after, took = os.times(), summary.seconds[modality]
        busy = sum(after[:4]) - sum(before[:4])  # user and system, of this process and of those that decoded
        rows.append(
            f"| {modality} | {name} | {count} | {length:.0f} | {took:.1f} | {took / length:.3f} | {busy / length:.3f} |"
        )
    return rows


def _spoken(folder: Path, count: int) -> Listing:
    """Utterances that espeak-ng speaks, beside the picture of a face that scikit-image ships, moving."""
    import av
    import soundfile
    from skimage.data import astronaut

    face, utterances = astronaut()[:480, :360], []
    for k in range(count):
        path = folder / f"{k}.wav"
        voice = ("en+m3", "en+f3")[k % 2]
        subprocess.run(["espeak-ng", "-v", voice, "-w", str(path), f"{LINES[k % 4]} {k}"], check=True)
        seconds = soundfile.info(path).duration
        clip = folder / f"{k}.mp4"
        with av.open(str(clip), "w") as file:
            stream = file.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 360, 480, "yuv420p"
            for t in range(max(1, int(seconds * 25))):
                picture = np.ascontiguousarray(np.roll(face, t % 20, 1))
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            file.mux(stream.encode())
        text = f"{LINES[k % 4]} {k}"
        sound, pictures = Clip(str(path), 0.0, seconds), Clip(str(clip), 0.0, seconds)
        utterances.append(Utterance("d", f"u{k}", "AB"[k % 2], text, sound, pictures, 0))
    return Listing(str(folder / "spoken"), utterances, {"d": "train"}, ("some",))


def _networks(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Modality, encoder and name of what is measured; networks are made when their turn comes."""
    import transformers as hf

    yield "text", PRESETS["laptop"]["text"], "all-MiniLM-L6-v2"
    yield "acoustic", "opensmile:eGeMAPSv02", "openSMILE eGeMAPSv02"
    yield "acoustic", "opensmile:ComParE_2016", "openSMILE ComParE_2016"
    hf.WavLMModel(hf.WavLMConfig()).save_pretrained(folder / "wavlm")
    hf.Wav2Vec2FeatureExtractor().save_pretrained(folder / "wavlm")
    yield "acoustic", f"transformers:{folder / 'wavlm'}", "WavLM base, its size"
    hf.CLIPModel(hf.CLIPConfig()).save_pretrained(folder / "clip")
    hf.CLIPImageProcessor().save_pretrained(folder / "clip")
    yield "visual", f"transformers:{folder / 'clip'}", "CenterFace, CLIP ViT-B/32, its size"


# Memory ---------------------------------------------------------------------------------------------------------------


def memory(folder: Path, count: int, width: int) -> list[str]:
    """Peak resident memory of an extraction and of its reading, with an encoder that costs nothing."""

    def encode(batch: Sequence[tuple[str, ...]]) -> np.ndarray:
        return np.array([np.resize(np.float32(hash(turns) % 1000), width) for turns in batch])

    turns = [
        Utterance(f"d{k // 50}", f"d{k // 50}_{k}", "AB"[k % 2], f"{LINES[k % 4]} {k}", label=k % 6)
        for k in range(count)
    ]
    splits = {f"d{k}": ("train", "test")[k % 5 == 0] for k in range(-(-count // 50))}
    listing = Listing("fake", turns, splits, tuple("abcdef"))
    encoder = Encoder({"encoder": "fake", "licence": "none"}, lambda: encode, {})
    before, started, out = _peak(), time.perf_counter(), folder / "large.safetensors"
    pipeline.run(
        listing, Settings(), out, cache=folder / "c.sqlite", workers=0, batch_size=256, opened={"text": encoder}
    )
    took, peak = time.perf_counter() - started, _peak()
    return [
        "| utterances | features | file, GB | took, s | peak memory, GiB | of it before the start, GiB |",
        "|--:|--:|--:|--:|--:|--:|",
        f"| {count} | {width} | {out.stat().st_size / 1e9:.2f} | {took:.0f} | {peak:.2f} | {before:.2f} |",
    ]


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


# Text -----------------------------------------------------------------------------------------------------------------


def text(features: Path) -> list[str]:
    """How near the packaged sentence encoder comes to the text features of a file made with the same network."""
    corpus = feature_files.read(features)
    (encoder,) = encoders(Settings(visual="none", acoustic="none"), "cpu", sha256_of).values()
    encode, lowest, count = encoder.load(), 1.0, 0
    for d in corpus.dialogues.values():
        rows, theirs = encode([(said,) for said in d.sentences]), d.features["text"]
        if theirs.shape != rows.shape:
            raise InputError(f"{features}: text {theirs.shape[1]} wide, not {rows.shape[1]}: of another encoder")
        cosine = (rows * theirs).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(theirs, axis=1)
        lowest, count = min(lowest, float(cosine.min())), count + len(d)
    return ["| utterances | lowest cosine |", "|--:|--:|", f"| {count} | {lowest:.7f} |"]


def context(
    features: Path,
    folder: Path,
    turns: Sequence[int],
    seeds: Sequence[int],
    folds: str,
    at_once: int,
    flags: Sequence[str],
) -> list[str]:
    """F1 by how many turns before it a text encoder reads; the other modalities as the file has them."""
    import common  # here, or `memory` would measure it too

    from experiment.comparison import gain, member_tables, of_tables
    from experiment.jobs import Job, do_all

    corpus, log = feature_files.read(features), folder / "runs.jsonl"
    common.begin(folder, {"data": corpus.sha256, "folds": folds, "flags": list(flags)})
    done = common.finished_runs(log)
    utterances = [
        Utterance(d.id, name, speaker, said, label=int(label))
        for d in corpus.dialogues.values()
        for name, speaker, said, label in zip(d.utterances, d.speakers, d.sentences, d.labels, strict=True)
    ]
    splits = {i: split for split, ids in corpus.splits.items() for i in ids}
    listing = Listing(str(features), utterances, splits, corpus.label_names)
    files, probes = {}, {}
    for n in turns:
        settings = Settings(visual="none", acoustic="none", text_context=n)
        made = folder / f"text{n}.safetensors"
        pipeline.run(listing, settings, made, cache=folder / "cache.sqlite", workers=0)
        rows = feature_files.read(made)
        merged = {
            i: replace(d, features={**d.features, "text": rows.dialogues[i].features["text"]})
            for i, d in corpus.dialogues.items()
        }
        files[n] = folder / f"context{n}.safetensors"
        feature_files.write_container(replace(corpus, dialogues=merged), files[n])
        if not seeds:
            probes[n] = 100 * feature_files.inspect(files[n])["probe"]["text"]["test"]
    if not seeds:
        return [
            "| turns before | linear probe of the text |",
            "|--:|--:|",
            *(f"| {n} | {probes[n]:.2f} |" for n in turns),
        ]

    scores: dict[tuple[int, int], dict[str, float]] = {}
    work: dict[str, tuple[int, int]] = {}
    jobs: dict[str, Job] = {}
    for n, seed in ((n, seed) for seed in seeds for n in turns):
        run = folder / f"context{n}" / f"seed{seed}"
        new = ["--features", files[n], "--out", run, "--seed", seed, "--no-cuda", "--no-pictures"]
        new += [*(["--folds", folds] if folds else []), *flags]
        argv = ["--resume", run] if (run / "config.json").is_file() else new
        if line := done.get((f"context{n}", seed)):
            scores[n, seed] = line["scores"]
        else:
            work[name := f"context{n}, seed {seed}"] = n, seed
            jobs[name] = Job("experiment.jobs", "command", (common.SCRIPT, tuple(map(str, argv))), run)
    results = do_all(jobs, at_once, None, folder) if jobs else {}
    for name, result in results.items():
        if {"failed", "interrupted"} & result.keys():
            continue
        n, seed = work[name]
        reports = {p.parent.name if folds else "test": p for p in sorted(jobs[name].directory.rglob("report.json"))}
        scores[n, seed] = {part: json.loads(p.read_text())["test"]["weighted_f1"] for part, p in reports.items()}
        common.append(log, {"row": f"context{n}", "seed": seed, "scores": scores[n, seed]})
    if any("interrupted" in result for result in results.values()):
        raise KeyboardInterrupt
    if failed := [f"{name}: {result['failed']}" for name, result in results.items() if "failed" in result]:
        raise InputError(failed[0])
    names = sorted({name for one in scores.values() for name in one})
    rows = [
        f"| turns before | {' | '.join(names)} | mean | sd over seeds | seeds | over {turns[0]}, 95 % interval |",
        "|--:|" + "--:|" * (len(names) + 4),
    ]
    said = {}
    for n in turns:
        tables = [table for seed in seeds for table in member_tables(folder / f"context{n}" / f"seed{seed}")]
        said[n] = of_tables(tables, f"context{n}", str(folder))
        table = np.array([[scores[n, seed][name] for name in names] for seed in seeds])
        each = table.mean(1)
        sd = f"{each.std(ddof=1):.2f}" if len(seeds) > 1 else "–"
        over = gain(said[n], said[turns[0]])
        shown = "–" if n == turns[0] else f"{over.difference:+.2f} [{over.low:+.2f}, {over.high:+.2f}]"
        means = " | ".join(f"{x:.2f}" for x in table.mean(0))
        rows.append(f"| {n} | {means} | {each.mean():.2f} | {sd} | {len(seeds)} | {shown} |")
    return rows


def contexts(text: str) -> list[int]:
    """Numbers of turns, each once, with commas between."""
    return list(dict.fromkeys(Number(int, 0, 1000).parse(part) for part in text.split(",")))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a measurement and print its table."""
    parser = Parser(
        description="What extraction costs, and what text context is worth.",
        epilog="context: flags of train_IEMOCAP.py may follow behind --",
    )
    parser.add_argument("what", choices=("speed", "memory", "text", "context"))
    parser.add_argument("--features", type=Path, help="a feature file with sentences")
    whole = flag_type(Number(int, 1, 100_000_000).parse)
    parser.add_argument("--utterances", type=whole, help="how many (default: 60 of speed, 200000 of memory)")
    parser.add_argument("--width", type=whole, default=3000, help="features of memory")
    parser.add_argument("--turns", type=flag_type(contexts), default="0,2,4", help="contexts to compare")
    seeds = flag_type(lambda text: parse_seeds(text) if text else ())
    parser.add_argument("--seeds", type=seeds, default="0,1,2,3,4,5,6,7,8,9", help="each a run; '': a linear probe")
    parser.add_argument("--folds", default="", help="of training, such as sessions")
    parser.add_argument("--jobs", type=whole, default=1, help="runs at once")
    parser.add_argument("--out", type=Path, help="of context: keeps its runs, so that the same command goes on")
    argv = list(sys.argv[1:] if argv is None else argv)
    own = argv.index("--") if "--" in argv else len(argv)  # behind it, flags of train_IEMOCAP.py
    args = parser.parse_args(argv[:own])
    if args.what in ("text", "context") and args.features is None:
        parser.error(f"{args.what}: --features: name a feature file with sentences")
    if args.what != "context" and args.out:
        parser.error(f"{args.what}: --out: nothing is kept; leave it out")

    def measure() -> None:
        with tempfile.TemporaryDirectory() as temporary:
            folder = args.out or Path(temporary)
            if args.what == "speed":
                rows = speed(folder, args.utterances or 60)
            elif args.what == "memory":
                rows = memory(folder, args.utterances or 200_000, args.width)
            elif args.what == "text":
                rows = text(args.features)
            else:
                flags = argv[own + 1 :]
                rows = context(args.features, folder, args.turns, args.seeds, args.folds, args.jobs, flags)
        print("\n".join(rows))

    return ending(measure)


if __name__ == "__main__":
    sys.exit(main())

"""What tests of extraction make: speech, tones, drawn clips, corpora of these, and tiny networks of random weights."""

import csv
import importlib
import json
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from extract.media import sound

av = pytest.importorskip("av", reason="pip install -r requirements-extract.txt")
sf = pytest.importorskip("soundfile", reason="pip install -r requirements-extract.txt")
pytest.importorskip("pebble", reason="pip install -r requirements-extract.txt")

RATE = 16_000
LINES = ("I told you that yesterday.", "No, you never did!", "Well, I am telling you now.", "Fine.", "Oh, come on.")


def tone(seconds=1.0, hertz=220.0, gain=0.3, rate=RATE):
    return (gain * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def wav(path, samples, rate=RATE, subtype="PCM_16"):
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, samples, rate, subtype=subtype)
    return path


def speak(path, text, voice="m3"):
    """Speech by espeak-ng."""
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed (Debian: apt-get install espeak-ng)")
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["espeak-ng", "-v", f"en+{voice}", "-w", str(path), text], check=True, capture_output=True)
    return path


def video(path, pictures, rate=10, samples=None, times=None, late=0):
    """A clip of pictures [h, w, 3]; with sound, so many seconds late, and each picture's own time, where given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        sound = file.add_stream("aac" if path.suffix == ".mp4" else "mp2", rate=RATE) if samples is not None else None
        for k, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            if times is not None:
                stream.codec_context.time_base = frame.time_base = Fraction(1, 1000)
                frame.pts = round(1000 * times[k])
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
        if sound is not None:
            quantised = (samples * 32767).clip(-32768, 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(quantised[None], format="s16", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), late * RATE
            for piece in av.AudioResampler(sound.format, sound.layout, RATE).resample(frame):
                file.mux(sound.encode(piece))
            file.mux(sound.encode())
    return path


def flat(red, green, blue, height=48, width=64):
    return np.tile(np.array([red, green, blue], np.uint8), (height, width, 1))


def astronaut():
    """A face of about 90 by 120 pixels, [192, 192, 3], from a picture that scikit-image ships."""
    return pytest.importorskip("skimage.data", reason="pip install scikit-image").astronaut()[20:212, 128:320]


def manifest(path, rows, columns="dialogue,utterance,speaker,start,end,text,audio,video,label,split"):
    names = columns.split(",")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, names, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


# Corpora --------------------------------------------------------------------------------------------------------------


def iemocap_tree(root, voices=True, turns=4):
    """Five sessions of one improvised dialogue each, with invented lines; some of it broken as releases are."""
    emotions = ("hap", "sad", "neu", "ang", "exc", "fru", "xxx")
    for k in range(1, 6):
        dialogue = f"Ses0{k}{'FM'[k % 2]}_impro01"
        session = root / f"Session{k}"
        evaluation, said = [], []
        for t in range(turns):
            name = f"{dialogue}_{'FM'[t % 2]}{t // 2:03d}"
            start, end = 1.0 + 1.5 * t, 2.0 + 1.5 * t
            emotion = emotions[(t + k) % 7]
            evaluation.append(f"[{start:.4f} - {end:.4f}]\t{name}\t{emotion}\t[2.5000, 2.5000, 2.5000]")
            evaluation.append("C-E2:\tNeutral;\t()")
            said.append(f"{name} [{start:.4f}-{end:.4f}]: {LINES[(t + k) % len(LINES)]}")
            path = session / "sentences" / "wav" / dialogue / f"{name}.wav"
            if voices:
                speak(path, LINES[(t + k) % len(LINES)], "f3" if t % 2 == 0 else "m3")
            else:
                wav(path, tone(1.0, 150 + 40 * (t % 2) + 10 * k))
        said.append("M: [BREATHING]")
        text = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n" + "\n".join(evaluation) + "\n"
        for folder, content in (("EmoEvaluation", text), ("transcriptions", "\n".join(said) + "\n")):
            (session / "dialog" / folder).mkdir(parents=True)
            (session / "dialog" / folder / f"{dialogue}.txt").write_text(content)
        pictures = [np.concatenate([flat(200, 30, 30), flat(30, 30, 200)], 1)] * 80
        video(session / "dialog" / "avi" / "DivX" / f"{dialogue}.avi", pictures)
    return root


def meld_tree(root, dialogues=2, turns=3, voices=False):
    """Three splits with clips; one is missing, one is corrupt, one belongs elsewhere."""
    header = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"
    places = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
    for split, folder in places.items():
        rows = [header]
        (root / split / folder).mkdir(parents=True)
        for d in range(dialogues):
            for u in range(turns):
                emotion = ("neutral", "joy", "anger", "sadness")[(d + u) % 4]
                times = f'"00:00:0{u},000","00:00:0{u + 1},000"'
                said = f'"{LINES[u]} It\x92s {d}.",{("Ann", "Bob")[u % 2]}'
                rows.append(f"{len(rows)},{said},{emotion},neutral,{d},{u},1,1,{times}")
                clip = root / split / folder / f"dia{d}_utt{u}.mp4"
                samples = tone(1.0, 150 + 50 * u + 20 * d)
                if voices:
                    samples = sound(str(speak(root / "said.wav", LINES[u], ("f3", "m3")[u % 2])))[0]
                video(clip, [flat(40 * u, 90, 40 * d)] * 10, samples=samples)
        (root / split / f"{split}_sent_emo.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (root / "train" / "train_splits" / "dia0_utt1.mp4").write_bytes(b"\0" * 5000)
    (root / "dev" / "dev_splits_complete" / f"dia{dialogues - 1}_utt0.mp4").unlink()
    video(root / "test" / "output_repeated_splits_test" / "dia0_utt0.mp4", [flat(9, 9, 9)] * 80, samples=tone(8.0))
    return root


# Networks -------------------------------------------------------------------------------------------------------------


def tiny(kind, folder):
    """A network of random weights, saved as the hub would have it; returns its folder."""
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("transformers", reason="requirements-extract.txt")
    torch.manual_seed(0)
    folder = Path(folder)
    if kind == "bert":
        words = [
            "[PAD]",
            "[UNK]",
            "[CLS]",
            "[SEP]",
            "[MASK]",
            *"abcdefghijklmnopqrstuvwxyz.,!?':",
            *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
        ]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "vocab.txt").write_text("\n".join(words))
        hf.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
        shape = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
        network = hf.BertModel(hf.BertConfig(vocab_size=len(words), max_position_embeddings=64, **shape))
    elif kind in ("wavlm", "hubert"):
        hf.Wav2Vec2FeatureExtractor(return_attention_mask=kind == "wavlm").save_pretrained(folder)
        shape = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
        shape |= {"conv_dim": (8, 8), "conv_kernel": (20, 16), "conv_stride": (20, 16), "num_feat_extract_layers": 2}
        shape |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
        shape["feat_extract_norm"] = "layer" if kind == "wavlm" else "group"
        network = (
            hf.WavLMModel(hf.WavLMConfig(**shape)) if kind == "wavlm" else hf.HubertModel(hf.HubertConfig(**shape))
        )
    elif kind == "whisper":
        hf.WhisperFeatureExtractor().save_pretrained(folder)
        shape = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2}
        shape |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": 100}
        shape |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
        network = hf.WhisperModel(hf.WhisperConfig(**shape))
    elif kind == "recogniser":
        network = _recogniser(hf, torch, folder)
    elif kind == "clip":
        hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
        shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
        text = {**shape, "vocab_size": 20, "max_position_embeddings": 8}
        shape |= {"image_size": 32, "patch_size": 8}
        network = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=shape, projection_dim=12))
    elif kind == "sentence-transformers":
        library = pytest.importorskip("sentence_transformers", reason="requirements-extract.txt")
        modules = importlib.import_module("sentence_transformers.sentence_transformer.modules")
        words = modules.Transformer(str(tiny("bert", folder.parent / f"{folder.name}-words")))
        library.SentenceTransformer(modules=[words, modules.Pooling(16)], device="cpu").save(str(folder))
        return folder
    elif kind == "vit":
        hf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
        shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
        network = hf.ViTModel(hf.ViTConfig(image_size=32, patch_size=8, **shape))
    network.save_pretrained(folder)
    return folder


# What the recogniser below hears in every window of 30 s, whatever is said there.
HEARD = ((0.0, 1.2, "where were you?"), (1.5, 3.0, "at work."))


def _recogniser(hf, torch, folder):
    """A Whisper network that writes down `HEARD`: the place of a token alone decides which one is next."""
    letters = [*"abcdefghijklmnopqrstuvwxyz.,?", "\u0120"]  # the last is how its tokenizer writes a space
    end, start, none = "<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate([*letters, end])}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = hf.WhisperTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.add_special_tokens({"additional_special_tokens": [start, none]})
    tokenizer.add_tokens([hf.AddedToken(f"<|{k / 50:.2f}|>", special=False) for k in range(151)])
    tokenizer.save_pretrained(folder)
    hf.WhisperFeatureExtractor().save_pretrained(folder)
    ids, size = tokenizer.convert_tokens_to_ids, len(tokenizer)
    shape = {"d_model": 256, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    shape |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "max_target_positions": 64}
    special = {"pad_token_id": ids(end), "bos_token_id": ids(end), "eos_token_id": ids(end)}
    special["decoder_start_token_id"] = ids(start)
    config = hf.WhisperConfig(vocab_size=size, suppress_tokens=None, begin_suppress_tokens=None, **shape, **special)
    network = hf.WhisperForConditionalGeneration(config)
    script = []
    for begin, until, text in HEARD:
        script += [f"<|{begin:.2f}|>", *text.replace(" ", letters[-1]), f"<|{until:.2f}|>"]
    decoder = network.model.decoder
    with torch.no_grad():
        for parameter in decoder.layers.parameters():
            parameter.zero_()
        decoder.embed_tokens.weight.copy_(torch.eye(size, 256))
        decoder.embed_positions.weight.zero_()
        for place, token in enumerate([*script, end]):
            decoder.embed_positions.weight[place, ids(token)] = 50
    network.generation_config = hf.GenerationConfig(
        no_timestamps_token_id=ids(none), is_multilingual=False, max_length=60, return_timestamps=False, **special
    )
    return network

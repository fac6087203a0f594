"""Acoustic encoders: from sound to one vector. Each function opens one kind.

A batch is a list of arrays ``[samples]``, float32, one channel at `media.RATE`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np

from .house import InputError
from .listing import shown
from .media import RATE
from .models import Encode, Model, layers_of, loading, need, quiet

FLAG = "--acoustic"
WINDOW = 30 * RATE  # samples: what Whisper hears at once, and as much as attention's memory should be asked for
SHORTEST = 400  # samples: the first frame of wav2vec 2.0 and its kin
OPENSMILE_LICENCE = "openSMILE: audEERING's research licence, for private, research and educational use, not commercial"


def opensmile_sets() -> list[str]:
    """Names of the feature sets that openSMILE has, such as eGeMAPSv02.

    Raises:
        InputError: If it is not installed.
    """
    return [one.name for one in need(FLAG, "opensmile").FeatureSet]


def opensmile(name: str, model: Model | None, device: str, layers: str) -> Encode:
    """The functionals of an openSMILE feature set, such as eGeMAPSv02 or ComParE_2016.

    Args:
        name: The feature set.
        model: Not used.
        device: Not used: openSMILE computes on the CPU.
        layers: Not used.

    Raises:
        InputError: If there is no such set.
    """
    library = need(FLAG, "opensmile")
    if name not in opensmile_sets():
        raise InputError(f"{FLAG}: opensmile has no {shown(name)}; there are {', '.join(opensmile_sets())}")
    smile = library.Smile(library.FeatureSet[name], library.FeatureLevel.Functionals)

    def encode(batch: Sequence[np.ndarray]) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a clip is too short: its row of NaN says so
            return np.concatenate([smile.process_signal(samples, RATE).to_numpy(np.float32) for samples in batch])

    return encode


def transformers(name: str, model: Model, device: str, layers: str) -> Encode:
    """A speech encoder of Hugging Face transformers: the mean of its layers, then over time.

    WavLM, HuBERT, wav2vec 2.0 and their kin, and the encoder of Whisper. Sound is heard in windows of 30 s, whose
    frames count alike; padding does not count.

    Args:
        name: What the user named.
        model: Where it is.
        device: Where to compute.
        layers: Such as ``all`` or ``6-12``; see `models.layers_of`.
    """
    import torch

    library = need(FLAG, "transformers")
    quiet()
    listen = loading(
        FLAG, name, lambda: library.AutoFeatureExtractor.from_pretrained(model.source, revision=model.commit)
    )
    if getattr(listen, "sampling_rate", None) != RATE:
        raise InputError(f"{FLAG}: {shown(name)}: no speech encoder for {RATE} Hz; name another")
    network = loading(
        FLAG, name, lambda: library.AutoModel.from_pretrained(model.source, revision=model.commit, dtype=torch.float32)
    )
    whisper = network.config.model_type == "whisper"
    network = (network.get_encoder() if whisper else network).to(device).eval()
    config = network.config
    chosen = layers_of("--layers", layers, config.encoder_layers if whisper else config.num_hidden_layers)
    # Networks whose first layer is normalised over time must not see padding at all: they hear one length at a time.
    padding = getattr(config, "feat_extract_norm", "layer") == "layer"

    def frames_of(lengths: torch.Tensor) -> torch.Tensor:
        if whisper:
            return (lengths + 319) // 320  # a frame is 20 ms
        return network._get_feat_extract_output_lengths(lengths)

    def groups(windows: Sequence[np.ndarray]) -> Iterator[list[int]]:
        """Numbers of windows that are heard together."""
        if padding:
            yield list(range(len(windows)))
            return
        by_length: dict[int, list[int]] = {}
        for k, window in enumerate(windows):
            by_length.setdefault(len(window), []).append(k)
        yield from by_length.values()

    @torch.inference_mode()
    def hear(windows: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum over each window's frames ``[n, d]``, and how many they are ``[n]``."""
        lengths = torch.tensor([len(window) for window in windows])
        if whisper:
            heard = listen(list(windows), sampling_rate=RATE, return_tensors="pt")
            inputs = {"input_features": heard["input_features"].to(device)}
        else:
            heard = listen(
                list(windows), sampling_rate=RATE, padding=True, return_attention_mask=padding, return_tensors="pt"
            )
            inputs = {key: value.to(device) for key, value in heard.items()}
        states = network(**inputs, output_hidden_states=True).hidden_states
        hidden = torch.stack([states[k] for k in chosen]).mean(0)  # [n, frames, d]
        counts = frames_of(lengths).clamp(1, hidden.shape[1])
        there = torch.arange(hidden.shape[1]) < counts.unsqueeze(1)
        return (hidden * there.unsqueeze(-1).to(hidden)).sum(1).cpu(), counts

    def encode(batch: Sequence[np.ndarray]) -> np.ndarray:
        windows, owners = [], []
        for k, samples in enumerate(batch):
            for start in range(0, max(1, len(samples)), WINDOW):
                piece = samples[start : start + WINDOW]
                if start and len(piece) < SHORTEST:
                    continue  # a rest of less than a frame
                windows.append(np.pad(piece, (0, max(0, SHORTEST - len(piece)))))
                owners.append(k)
        total = torch.zeros(len(batch), config.hidden_size if not whisper else config.d_model)
        counted = torch.zeros(len(batch))
        for members in groups(windows):
            sums, counts = hear([windows[k] for k in members])
            where = torch.tensor([owners[k] for k in members])
            total.index_add_(0, where, sums)
            counted.index_add_(0, where, counts.float())
        return (total / counted.unsqueeze(1)).numpy()

    return encode

"""Text encoders: from turns to one vector. Each function opens one kind.

A batch is a list of tuples of strings: the turns before an utterance, if any, and the utterance itself, last.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .models import Encode, Model, layers_of, loading, need, quiet

FLAG = "--text"


def sentence_transformers(name: str, model: Model, device: str, layers: str, cut_left: bool) -> Encode:
    """Any model of the sentence-transformers library, pooled as the model says.

    Args:
        name: What the user named.
        model: Where it is.
        device: Where to compute.
        layers: Not used: the model decides.
        cut_left: Whether a text that is too long loses its beginning rather than its end.
    """
    library = need(FLAG, "sentence_transformers", "sentence-transformers")
    quiet()
    network = loading(
        FLAG, name, lambda: library.SentenceTransformer(model.source, revision=model.commit, device=device)
    )
    _cut(network.tokenizer, cut_left)
    separator = _separator(network.tokenizer)

    def encode(batch: Sequence[tuple[str, ...]]) -> np.ndarray:
        return network.encode(
            [separator.join(turns) for turns in batch], batch_size=len(batch), show_progress_bar=False
        )

    return encode


def transformers(name: str, model: Model, device: str, layers: str, cut_left: bool) -> Encode:
    """Any encoder of Hugging Face transformers: the mean of its layers, then over the tokens.

    Args:
        name: What the user named.
        model: Where it is.
        device: Where to compute.
        layers: Such as ``last`` or ``6-12``; see `models.layers_of`.
        cut_left: Whether a text that is too long loses its beginning rather than its end.
    """
    import torch

    library = need(FLAG, "transformers")
    quiet()
    tokenizer = loading(FLAG, name, lambda: library.AutoTokenizer.from_pretrained(model.source, revision=model.commit))
    network = loading(
        FLAG, name, lambda: library.AutoModel.from_pretrained(model.source, revision=model.commit, dtype=torch.float32)
    )
    network = getattr(network, "encoder", network) if network.config.is_encoder_decoder else network
    network.to(device).eval()
    chosen = layers_of("--text-layers", layers, network.config.num_hidden_layers)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    _cut(tokenizer, cut_left)
    separator = _separator(tokenizer)
    longest = min(tokenizer.model_max_length, getattr(network.config, "max_position_embeddings", 514) - 2, 4096)

    @torch.inference_mode()
    def encode(batch: Sequence[tuple[str, ...]]) -> np.ndarray:
        tokens = tokenizer(
            [separator.join(turns) for turns in batch],
            padding=True,
            truncation=True,
            max_length=longest,
            return_tensors="pt",
        ).to(device)
        states = network(**tokens, output_hidden_states=True).hidden_states
        hidden = torch.stack([states[k] for k in chosen]).mean(0)  # [n, tokens, d]
        there = tokens["attention_mask"].unsqueeze(-1).to(hidden)
        return ((hidden * there).sum(1) / there.sum(1).clamp(min=1)).cpu().numpy()

    return encode


def _cut(tokenizer: object, left: bool) -> None:
    """Cut what is too long at its beginning, where the oldest turns are, so that the utterance itself stays whole."""
    if left:
        tokenizer.truncation_side = "left"


def _separator(tokenizer: object) -> str:
    """What stands between turns; BERT and RoBERTa have a token for that, as EmoBERTa (arXiv 2108.12009) uses it."""
    token = getattr(tokenizer, "sep_token", None)
    return f" {token} " if token else "\n"

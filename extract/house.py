"""What extract takes from the rest of the project, named in this one place."""

from dataloader import IEMOCAP_LABELS, IGNORE_LABEL, MODALITIES, Corpus
from feature_files import media_digest, read, stream_container, write_nine_tuple
from feature_files.checks import MELD_LABELS, Checks
from feature_files.container import other_encoder, sha256_of
from files import InputError, WriteError, printable, replacing

__all__ = [
    "IEMOCAP_LABELS",
    "IGNORE_LABEL",
    "MELD_LABELS",
    "MODALITIES",
    "Checks",
    "Corpus",
    "InputError",
    "WriteError",
    "media_digest",
    "other_encoder",
    "printable",
    "read",
    "replacing",
    "sha256_of",
    "stream_container",
    "write_nine_tuple",
]

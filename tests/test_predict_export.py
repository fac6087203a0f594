"""The portable form of a network, and what is written of it, against the network itself."""

import ast
import builtins
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_predict_stream import CORPUS, holes, model
from torch.nn.utils.rnn import pad_sequence

from dataloader import collate
from experiment import export as written
from experiment.export import PortableNetwork, export
from files import InputError

PAGE = Path(__file__).parent.parent / "docs" / "predict.md"
DIALOGUES = [*CORPUS.split("test")[:2], replace(holes(CORPUS.split("train")[0]), id="holes")]


def inputs(one, dialogues):
    batch = collate(dialogues)
    rows = [
        pad_sequence([torch.from_numpy(d.features[m]) for d in dialogues], batch_first=True, padding_value=9.0)
        for m in one.dims
    ]
    return (*rows, batch.mask, batch.speakers), batch.mask.numpy()


@pytest.mark.parametrize("generator", ["feed-forward", "linear", "transformer"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention": True},
        {"window_past": 0, "window_future": 0},
        {"speaker_layers": 0, "window_future": 2},
        {"graph_layers": 0},
        {"members": 2},
    ],
)
def test_the_portable_network_is_the_network(generator, causal, changes):
    one = model(generator, **{"causal": causal, **changes})
    given, mask = inputs(one, DIALOGUES)
    with torch.no_grad():
        found = PortableNetwork(one).eval()(*given).numpy()
    assert np.allclose(found[mask], one.probabilities(DIALOGUES), atol=1e-5)
    assert not found[~mask].any()


def test_onnxruntime_and_torch_export_say_what_we_say(tmp_path, monkeypatch, capsys):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    one = model(speaker_layers=1, graph_layers=1, window_future=2, causal=False)
    one = replace(one, dims={"text": 8})
    network = one.members[0].network
    for part in (network.fusion.generators, network.speaker_encoders):
        for m in ("visual", "acoustic"):
            del part[m]
    dialogues = [replace(d, features={"text": d.features["text"]}) for d in DIALOGUES]
    # Tracing takes as long as writing, so both files are of one trace; five doublings reach all turns there are.
    monkeypatch.setattr(written, "DOUBLINGS", 5)
    assert max(map(len, dialogues)) < 2**5
    traced = written.trace(one)
    monkeypatch.setattr(written, "trace", lambda _: traced)
    said = export(one, tmp_path / "model.pt2"), export(one, tmp_path / "model.onnx")
    assert all("uncalibrated" in text for text in said)
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
    names = json.loads(session.get_modelmeta().custom_metadata_map["label_names"])
    assert tuple(names) == one.label_names
    program = torch.export.load(tmp_path / "model.pt2").module()
    for some in (dialogues, dialogues[:1], [replace(dialogues[0], **first_turn(dialogues[0]))]):
        given, mask = inputs(one, some)
        want = one.probabilities(some)
        order = [i.name for i in session.get_inputs()]
        assert order == ["text", "mask", "speakers"]
        found = session.run(None, dict(zip(order, (x.numpy() for x in given), strict=True)))[0]
        assert np.allclose(found[mask], want, atol=1e-5)
        with torch.no_grad():
            assert np.allclose(program(*given).numpy()[mask], want, atol=1e-5)
    lines = re.search(r"```python\n(import json.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL).group(1)
    monkeypatch.chdir(tmp_path)
    exec(lines, {})
    assert all(name in one.label_names for name in ast.literal_eval(capsys.readouterr().out.splitlines()[-1]))


def first_turn(dialogue):
    cut = {name: getattr(dialogue, name)[:1] for name in ("labels", "speakers", "sentences", "utterances")}
    return {**cut, "features": {m: x[:1] for m, x in dialogue.features.items()}}


def test_a_library_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    before = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "onnxscript":
            raise ImportError
        return before(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "onnxscript", raising=False)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(InputError, match=r"pip install -r requirements-predict.txt"):
        export(model(), tmp_path / "model.onnx")

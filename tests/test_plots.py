"""The pictures: colours that everyone can tell apart, names that stay names, and few seconds."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_run import corpus_of, make_run
from matplotlib.colors import to_hex
from PIL import Image

from experiment import page, plots, svg
from experiment.insight import Insight, Map, fused_map, gather, over_folds
from experiment.palette import COLOURS, MARKERS, colour, marker, plain
from utils import interval

# Linear RGB as a reader with deuteranopia or protanopia sees it (Machado et al. 2009, severity 1).
SEEN_BY = {
    "all": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}
XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]


def cielab(code, seen_by):
    rgb = np.array([int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = np.array(XYZ) @ np.clip(np.array(seen_by) @ linear, 0, 1) / (0.95047, 1, 1.08883)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("seen_by", SEEN_BY)
def test_every_pair_of_colours_is_apart(seen_by):
    points = [cielab(code, SEEN_BY[seen_by]) for code in COLOURS]
    assert min(np.linalg.norm(a - b) for a, b in combinations(points, 2)) >= 15


def test_no_two_classes_share_colour_and_marker():
    looks = {(colour(i), marker(i)) for i in range(len(COLOURS) * len(MARKERS))}
    assert len(looks) == len(COLOURS) * len(MARKERS)
    assert len({marker(i) for i in range(6)}) == 6 and set(plots.SHAPES) == set(MARKERS)


def insight_of(tmp_path, lengths, names):
    """What is drawn of a run with these test dialogues and classes."""
    network, dialogues = make_run(tmp_path / "run", corpus_of(lengths, names))
    seen = gather(tmp_path / "run", network=network, dialogues=dialogues, maps=False)
    rng = np.random.default_rng(0)
    modalities = {"modality": (np.arange(900) % 3, ("text", "visual", "x"))}
    for name, count, more in (("fused_features", 900, modalities), ("last_layer", 600, {})):
        one = Map(rng.random((count, 2)), {"emotion": (np.arange(count) % len(names), names), **more}, "made up")
        seen.maps[name] = lambda one=one: one
    return seen


def test_iemocaps_shape_has_every_picture(tmp_path):
    names = ("happy", "sad", "neutral", "angry", "excited", "frustrated")
    seen = insight_of(tmp_path, [52] * 30 + [63], names)
    written = plots.draw(seen)
    assert {path.stem for path in written} == set(plots.pictures(seen)) and not seen.problems
    assert {"GAN_loss", "fusion_losses", "last_layer", "emotion_timeline"} <= {path.stem for path in written}


def test_every_format_is_written(tmp_path, monkeypatch):
    seen = insight_of(tmp_path, [6, 5], ("a", "b"))
    drawn = dict(list(plots.pictures(seen).items())[::3])  # all in one format: test_iemocaps_shape_has_every_picture
    monkeypatch.setattr(plots, "pictures", lambda _: drawn)
    written = plots.draw(seen, ("pdf", "png", "svg"))
    heads = {".pdf": b"%PDF", ".png": b"\x89PNG", ".svg": b"<?xml"}
    assert len(written) == 3 * len(drawn) == 9
    assert all(path.read_bytes().startswith(heads[path.suffix]) for path in written)
    dots = {Image.open(path).info["dpi"] for path in written if path.suffix == ".png"}
    assert np.allclose(list(dots), 200, atol=1)  # PNG counts in whole dots a metre


def test_names_are_drawn_as_they_are(tmp_path):
    mathematics, broken = ("$x^2$", "a $ b", "_hidden"), (r"$\nope", "a\nb", "\u202ex")
    names = (*mathematics, *broken, "悲しい", "x" * 500, " ")
    seen = insight_of(tmp_path, [6, 5], names)
    plots.draw(seen)
    assert not seen.problems
    with plots.style():
        figure = plots.feature_map(seen.map("last_layer"), "Last layer")
        legend = figure.axes[0].get_legend()
        assert [text.get_text() for text in legend.get_texts()] == [plots.name_of(name) for name in names]
        plots.plt.close(figure)


def test_three_hundred_classes_stay_within_a_page(tmp_path):
    seen = insight_of(tmp_path, [60, 60], tuple(f"class {i}" for i in range(300)))
    with plots.style():
        for name, make in plots.pictures(seen).items():
            figure = make()
            assert max(figure.get_size_inches()) <= 8, name
            assert sum(len(axis.texts) for axis in figure.axes) < 200
            plots.plt.close(figure)


def test_epochs_are_whole_numbers_and_legends_are_off_the_data(tmp_path):
    history = [{"epoch": e, "train_loss": 2.0, "train_weighted_f1": 9.0, "test_loss": 1.0} for e in (1, 2, 3)]
    with plots.style():
        figure = plots.training_curves(history, 3)
        figure.canvas.draw()
        for axis in figure.axes:
            assert all(float(tick).is_integer() for tick in axis.get_xticks())
            assert not axis.get_legend().get_window_extent().overlaps(axis.get_window_extent())
        assert "test" in [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        plots.plt.close(figure)


def test_the_style_is_ours_whatever_the_process_has():
    """Optuna's pictures leave theirs behind, and a reader may have a matplotlibrc."""

    def pixels():
        with plots.style():
            figure = plots.per_class_f1(["happy", "sad"], [50, 60], [40, 50], [60, 70], "an interval")
            figure.canvas.draw()
            found = np.asarray(figure.canvas.buffer_rgba()).copy()
            plots.plt.close(figure)
            return found

    expected = pixels()
    with plots.plt.style.context(["ggplot", {"font.size": 14}]):
        assert np.array_equal(pixels(), expected)


def test_points_on_the_edge_of_the_reliability_diagram_are_drawn_whole():
    with plots.style():
        figure = plots.reliability_diagram(np.zeros(9, int), np.tile([0.7, 0.3], (9, 1)))
        figure.axes[0].set_title("")
        figure.canvas.draw()
        image = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
        above = image[: image.shape[0] - int(np.ceil(figure.axes[0].bbox.y1)) - 2]
        assert (np.abs(above - [230, 159, 0]).sum(-1) < 30).any()
        plots.plt.close(figure)


def test_a_picture_that_fails_is_a_line_and_the_others_are_drawn(tmp_path, monkeypatch):
    seen = insight_of(tmp_path, [6, 5], ("a", "b"))
    monkeypatch.setattr(plots, "confusion_matrix", lambda *given: 1 / 0)
    drawn = dict(list(plots.pictures(seen).items())[2:5])
    monkeypatch.setattr(plots, "pictures", lambda _: drawn)
    assert {path.stem for path in plots.draw(seen)} == {"training_curves", "per_class_f1"}
    assert seen.problems == ["picture confusion_matrix: ZeroDivisionError: division by zero"]


def test_seeds_have_error_bars_and_a_spread(tmp_path):
    for seed in (0, 1, 2):
        make_run(tmp_path / f"seed{seed}", corpus_of([9, 7]), seed=seed)
    seen = gather(tmp_path)
    assert {path.stem for path in plots.draw(seen)} >= {"spread", "per_class_f1", "confusion_matrix"}


def test_a_plain_name_is_one_short_line():
    assert plain("a\u202eb\nc") == "a b c" and len(plain("x" * 99)) == 40


def test_a_modality_looks_the_same_whatever_others_a_run_has():
    points = {m: np.random.default_rng(0).random((5, 2)) for m in ("text", "visual", "acoustic")}
    history = [{"epoch": e} | {f"{m}_{k}_loss": 1.0 for k in "GD" for m in points} for e in (1, 2)]

    def looks(*modalities):
        """Colour and marker of each in the picture, and the legends of a page's curves and map."""
        kept = [{c: x for c, x in row.items() if c.split("_")[0] in (*modalities, "epoch")} for row in history]
        with plots.style():
            figure = plots.adversarial_losses(kept, (0.7, 1.4))
            lines = {x.get_label(): (to_hex(x.get_color()), x.get_marker()) for x in figure.axes[0].lines}
            plots.plt.close(figure)
        one = fused_map({m: points[m] for m in modalities}, np.zeros(5, int), ("happy",), "made up")
        page = svg.curves({m: [(1, 1.0)] for m in modalities}, ("epoch", "loss"), "losses")
        legend = page.split('class="legend">')[1]
        return lines, legend, svg.scatter(one.points, *one.groups["modality"], "map").split('class="legend">')[1]

    lines, *legends = looks("text", "visual", "acoustic")
    for some in (("acoustic",), ("text", "acoustic"), ("visual", "acoustic")):
        theirs, *shown = looks(*some)
        assert all(theirs[m] == lines[m] for m in some)
        for whole, part in zip(legends, shown, strict=True):
            assert set(part.removesuffix("</ul>").split("</li>")) <= set(whole.removesuffix("</ul>").split("</li>"))
            assert part.count("<li>") == len(some)


def test_folds_of_a_seed_are_not_counted_as_seeds(monkeypatch):
    """A session is easier than another: that is no spread of seeds, and the runs of one are not independent."""
    f1 = {"seed0/foldSes01": 50.0, "seed0/foldSes02": 70.0, "seed1/foldSes01": 51.0, "seed1/foldSes02": 71.0}
    classes = ("sad", "calm")
    reports = {n: {"test": {"weighted_f1": x, "per_class": {c: {"f1": x} for c in classes}}} for n, x in f1.items()}
    table = pd.DataFrame({"dialogue": "a", "label": [0, 1], "predicted": [0, 1]})
    seen = Insight(Path(), label_names=classes, table=table, probabilities=np.eye(2), members=reports)
    drawn = []
    monkeypatch.setattr(plots, "per_class_f1", lambda *given: drawn.append(given))
    plots.pictures(seen)["per_class_f1"]()
    (_, mean, low, _, about) = drawn[0]
    assert (mean["sad"], low["sad"]) == (60.5, 60.5 - 0.5**0.5) and about.startswith("mean of 2 seeds")
    low, high = interval(pd.Series([60.0, 61.0]))
    with plots.style():
        figure = plots.pictures(seen)["spread"]()
        said = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["0", "1"]
        plots.plt.close(figure)
    assert said == ["one fold of a seed", "mean 60.50", f"95 % interval of the mean, {low:.2f} to {high:.2f}"]
    row = page.class_rows(seen)[0]
    assert (row["mean"], row["deviation"]) == (60.5, 0.5**0.5)
    shown = svg.dots(f1, 60.5, (low, high), "weighted F1", "runs")
    assert [shown.count(f'text-anchor="middle">{place}</text>') for place in ("seed0", "seed1")] == [1, 1]
    assert shown.count("<title>seed") == 4


def test_a_seed_that_lacks_folds_counts_as_much_as_another():
    means = over_folds(pd.Series({"seed0/foldA": 50.0, "seed0/foldB": 50.0, "seed1/foldA": 70.0}))
    assert means.mean() == 60

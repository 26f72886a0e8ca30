"""Figures: what is drawn is the data, in shared limits, and nothing leaks into pyplot."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.text import Text

from ups_jax.core.errors import StorageError
from ups_jax.evaluation.plots import fields
from ups_jax.evaluation.plots import figures as plots
from ups_jax.evaluation.plots.films import write_film

PNG = b"\x89PNG\r\n\x1a\n"


def all_axes(figure):
    return [axis for axis in figure.get_axes() if axis.get_label() != "<colorbar>"]


def meshes(figure):
    return meshes_of(all_axes(figure))


def meshes_of(axes):
    return [next(item for item in axis.collections if isinstance(item, QuadMesh)) for axis in axes]


def with_one_example(evaluation, index=1):
    """The evaluation with one of its examples: the time of a figure is that of its axes, three for each example."""
    example = dataclasses.replace(evaluation.examples[index], label="median")
    return dataclasses.replace(evaluation, examples=[example])


@pytest.fixture(scope="module")
def written(tmp_path_factory, evaluation_1d):
    """The plots of an evaluation with one example, and whether pyplot was imported before they were written."""
    before = "matplotlib.pyplot" in sys.modules
    folder = tmp_path_factory.mktemp("written") / "plots"
    return plots.write_plots(folder, [with_one_example(evaluation_1d)], []), before


def test_space_time_images_show_truth_prediction_and_their_difference(evaluation_1d):
    images = meshes(plots.fields_figure(evaluation_1d))
    assert len(images) == 9
    for row, example in enumerate(evaluation_1d.examples):
        truth, prediction, error = images[3 * row : 3 * row + 3]
        np.testing.assert_array_equal(truth.get_array(), example.truth[..., 0].T)
        np.testing.assert_array_equal(prediction.get_array(), example.prediction[..., 0].T)
        np.testing.assert_allclose(error.get_array(), (example.prediction - example.truth)[..., 0].T, atol=1e-6)
        assert truth.get_clim() == prediction.get_clim() == (example.truth.min(), example.truth.max())
        assert error.get_clim()[0] == -error.get_clim()[1]


def test_snapshots_are_the_right_way_round(evaluation_2d):
    """Axis 0 of the field is x and runs to the right; row 0 of the picture is the lowest y."""
    figure = plots.fields_figure(evaluation_2d, channel=1)
    axis = all_axes(figure)[0]
    np.testing.assert_array_equal(axis.images[0].get_array(), evaluation_2d.examples[0].truth[0, ..., 1].T)
    assert axis.images[0].origin == "lower"
    left, right, bottom, top = axis.images[0].get_extent()
    assert (left, right) == pytest.approx((-0.5 / 16, 1 - 0.5 / 16))
    assert (bottom, top) == pytest.approx((-0.5 / 12, 1 - 0.5 / 12))


def pictures_in_unit(unit, length, exact):
    """Pixels of truth, prediction and error of a field in 2-D and in 1-D, without axes."""
    rng = np.random.default_rng(0)
    pictures = []
    for shape in ((5, 12, 10), (5, 12)):
        grid = SimpleNamespace(
            shape=shape[1:], origin=(0.0, 0.0), spacing=(length, length), axes=("x", "y")[: len(shape) - 1]
        )
        truth = rng.normal(size=shape)
        prediction = truth if exact else truth + 0.1 * rng.normal(size=shape)
        figure = Figure(figsize=(4, 1.5))
        canvas = FigureCanvasAgg(figure)
        axes = figure.subplots(1, 3)
        for axis, panel in zip(axes, fields.comparison_panels(truth * unit, prediction * unit), strict=True):
            if len(shape) == 3:
                fields.draw_snapshot(axis, grid, panel.values[-1], panel.colours, panel.norm)
            else:
                times = length * np.arange(5.0)
                fields.draw_space_time(axis, grid, times, panel.values, panel.colours, panel.norm)
            axis.set_axis_off()
        canvas.draw()
        pictures.append(np.asarray(canvas.buffer_rgba()))
    return pictures


@pytest.mark.parametrize("exact", [False, True])
def test_pictures_do_not_depend_on_the_unit(exact):
    expected = pictures_in_unit(1.0, 1.0, exact)
    assert all(picture.std() > 1 for picture in expected)
    # Units of about 1e-30 and 1e30: powers of two, so that the edges of cells are rounded to the same pixels.
    for unit in (2.0**-100, 2.0**100):
        for length in (1.0, unit):
            pictures = pictures_in_unit(unit, length, exact)
            for picture, other in zip(pictures, expected, strict=True):
                np.testing.assert_array_equal(picture, other)


def test_titles_name_the_trajectory_its_coefficients_and_its_error(evaluation_1d):
    title = plots.showcase_figure(evaluation_1d).get_suptitle()
    median = evaluation_1d.examples[1]
    for part in ("toy<1>", f"id {median.id}", f"nu = {median.coefficients['nu']:.3g}", f"{median.nrmse:.3g}"):
        assert part in title


def test_the_error_curve_has_all_baselines_on_a_logarithmic_axis(evaluation_1d):
    (axis,) = plots.nrmse_figure(evaluation_1d).get_axes()
    assert axis.get_yscale() == "log"
    curves = {line.get_label(): line.get_ydata() for line in axis.lines}
    assert list(curves) == ["persistence", "this model", "codec alone"]
    np.testing.assert_allclose(curves["this model"], evaluation_1d.metrics["rollout"]["nrmse_by_time"])
    np.testing.assert_allclose(curves["codec alone"], 0.001, rtol=1e-3)


def test_training_curves_have_a_row_a_stage_and_skip_missing_values(records):
    records = [*records, {"stage": "corrector", "step": 1, "loss": None, "lr": 1e-3}]
    figure = plots.training_figure(records)
    axes = figure.get_axes()
    assert [axis.get_title().split(":")[0] for axis in axes[::3]] == ["operator", "corrector"]
    expected = [(record["step"], record["validation/rollout"]) for record in records if "validation/rollout" in record]
    (line,) = [line for line in axes[2].lines if line.get_label() == "rollout"]
    np.testing.assert_allclose(line.get_xydata(), expected)
    figure.savefig("/dev/null", format="png")


def test_all_plots_are_written_and_pyplot_stays_out(tmp_path, monkeypatch, written, evaluation_2d, records):
    paths, before = written
    assert all(path.read_bytes().startswith(PNG) for path in paths)
    assert [path.name for path in paths] == [
        "toy_1__showcase.png", "toy_1__nrmse.png", "toy_1__fields_u.png", "toy_1__spectrum.png"
    ]  # fmt: skip
    # The figures of two dimensions and of the training are drawn in other tests.
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: path.write_bytes(PNG))
    more = plots.write_plots(tmp_path / "plots", [with_one_example(evaluation_2d)], records)
    assert [path.name for path in more] == [
        "toy_1__showcase.png", "toy_1__nrmse.png", "toy_1__fields_u.png", "toy_1__fields_v_w.png",
        "toy_1__spectrum.png", "training.png",
    ]  # fmt: skip
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_a_blown_up_prediction_is_drawn_with_holes(tmp_path, broken_evaluation):
    broken = with_one_example(broken_evaluation, 2)
    assert len(plots.write_plots(tmp_path, [broken], [])) == 4
    worst = meshes(plots.fields_figure(broken))[1]
    assert np.ma.getmaskarray(worst.get_array())[:, -1].all()
    assert not np.ma.getmaskarray(worst.get_array())[:, :-1].any()


def test_a_diverged_rollout_does_not_flatten_the_rest(evaluation_1d):
    example = evaluation_1d.examples[1]
    diverged = example.prediction.copy()
    diverged[-1] = 3e38
    rollout = evaluation_1d.metrics["rollout"] | {"nrmse_by_time": [*[0.1] * 7, float("inf")]}
    evaluation = dataclasses.replace(
        evaluation_1d,
        examples=[dataclasses.replace(example, prediction=diverged)],
        metrics=evaluation_1d.metrics | {"rollout": rollout},
    )
    figure = plots.showcase_figure(evaluation)
    _, _, error = meshes_of(all_axes(figure)[:3])
    assert error.get_clim()[1] == pytest.approx(np.ptp(example.truth))
    assert all_axes(figure)[3].get_ylim()[1] < 1e3


def test_a_directory_that_cannot_be_made_is_a_storage_error(tmp_path, evaluation_1d):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="showcase"):
        plots.write_plots(tmp_path / "file" / "plots", [evaluation_1d], [])


def test_a_picture_is_whole_or_the_one_before(tmp_path, written, evaluation_1d, monkeypatch):
    """Also where two evaluations write it at once."""
    (first, *_), _ = written
    tmp_path = Path(shutil.copytree(first.parent, tmp_path / "plots"))
    first = tmp_path / first.name
    before, names = first.read_bytes(), sorted(path.name for path in tmp_path.iterdir())

    def half(figure, path, **kwargs):
        path.write_bytes(PNG)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(StorageError, match=os.strerror(errno.ENOSPC)):
        plots.write_plots(tmp_path, [evaluation_1d], [])
    assert first.read_bytes() == before and sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.parametrize("name", ["evaluation_1d", "evaluation_2d"])
def test_names_between_dollars_are_drawn_as_they_are_and_ticks_stay_formulas(request, tmp_path, monkeypatch, name):
    evaluation = with_one_example(request.getfixturevalue(name))
    odd = "$\\frac$"
    task = dataclasses.replace(evaluation.task, name=odd, channels=(odd,) * len(evaluation.task.channels))
    figures = []
    save = Figure.savefig

    def coarsely(self: Figure, path: Any, **_: Any) -> None:
        figures.append(self)
        save(self, path, format="png")

    monkeypatch.setattr(Figure, "savefig", coarsely)
    paths = plots.write_plots(tmp_path, [dataclasses.replace(evaluation, task=task)], [])
    assert len(paths) >= 3 and write_film(tmp_path / "film.gif", dataclasses.replace(evaluation, task=task))
    texts = [text for figure in figures for text in figure.findobj(Text) if "$" in text.get_text()]
    assert any(odd in text.get_text() for text in texts)
    assert all(text.get_parse_math() == (odd not in text.get_text()) for text in texts)
    assert any(text.get_parse_math() for text in texts)

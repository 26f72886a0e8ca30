"""The film of an evaluation: one frame a time of the median trajectory."""

from __future__ import annotations

import imageio.v3 as iio
import pytest

from ups_jax.core.errors import StorageError
from ups_jax.evaluation.plots.films import write_film
from ups_jax.evaluation.result import SteadyEvaluation, TransientEvaluation


@pytest.mark.parametrize("name", ["evaluation_1d", "evaluation_2d", "broken_evaluation"])
def test_a_film_has_a_frame_for_each_time_that_moves(name, request, tmp_path):
    evaluation: TransientEvaluation = request.getfixturevalue(name)
    assert write_film(tmp_path / "plots" / "film.gif", evaluation)
    frames = iio.imread(tmp_path / "plots" / "film.gif")
    assert len(frames) == len(evaluation.examples[0].time)
    assert (frames[0] != frames[-1]).any()
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["film.gif"]


def test_a_steady_task_has_none_and_a_folder_that_cannot_be_made_is_told(evaluation_1d, tmp_path):
    shared = {
        key: getattr(evaluation_1d, key) for key in ("task", "metrics", "baselines", "variants", "intervals", "meta")
    }
    assert not write_film(tmp_path / "film.gif", SteadyEvaluation(**shared, examples=[]))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_film(tmp_path / "file" / "film.gif", evaluation_1d)

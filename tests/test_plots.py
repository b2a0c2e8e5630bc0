"""Pictures show the numbers they are given."""

import numpy as np
import pandas as pd
import pytest
import torch

from ppl_dgm import plots
from ppl_dgm.errors import DataError


def shown(figure):
    return figure.axes[0].get_images()[0]


def test_every_pixel_is_where_it_belongs():
    x = torch.arange(5 * 6).reshape(5, 6)
    image = shown(plots.images(x, (2, 3), columns=3, values=30))
    grid = image.get_array()
    assert grid.shape == (2 * 3 + 1, 3 * 4 + 1)
    for i in range(5):
        row, column = divmod(i, 3)
        tile = grid[row * 3 + 1 : row * 3 + 3, column * 4 + 1 : column * 4 + 4]
        assert np.array_equal(tile, x[i].reshape(2, 3).numpy())
    assert grid.mask[:3, 8].all() and grid.mask[4:6, 9:12].all()  # a gap, and the place of the missing sixth image
    assert image.get_clim() == (0, 29)


def test_grey_levels_scale_to_the_largest_value_and_black_pictures_are_no_error():
    assert shown(plots.images(torch.full((1, 4), 0.5), (2, 2))).get_clim() == (0, 0.5)
    assert shown(plots.images(torch.zeros(1, 4), (2, 2))).get_clim() == (0, 1)


@pytest.mark.parametrize("shape", [(3, 5), (3,), (3, 4, 1)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(DataError, match=r"images of 2x2 need \[n, 4\]"):
        plots.images(torch.zeros(shape), (2, 2))


def test_points_lie_where_they_lie():
    x, reference = torch.randn(7, 2), torch.randn(5, 2)
    axes = plots.points(x, "title", reference).axes[0]
    below, above = (collection.get_offsets() for collection in axes.collections)
    assert np.allclose(above, x.numpy()) and np.allclose(below, reference.numpy()) and axes.get_title() == "title"
    with pytest.raises(DataError, match=r"a scatter needs \[n, 2\]"):
        plots.points(torch.zeros(3, 3))


def test_the_best_epoch_is_marked():
    history = pd.DataFrame({"epoch": [1, 2, 3], "objective": [9.0, 5.0, 4.0], "valid": [8.0, 6.0, 7.0]})
    lines = plots.curves(history).axes[0].get_lines()
    assert list(lines[0].get_ydata()) == [9.0, 5.0, 4.0] and list(lines[1].get_ydata()) == [8.0, 6.0, 7.0]
    assert (list(lines[2].get_xdata()), list(lines[2].get_ydata())) == ([2], [6.0])
    assert len(plots.curves(history.drop(columns="valid")).axes[0].get_lines()) == 1


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_pictures_are_written(tmp_path, ending):
    path = plots.save(plots.points(torch.randn(3, 2)), tmp_path / "deep" / f"a.{ending}")
    assert path.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml", b"%PDF-")


def test_the_picture_that_fits():
    assert plots.picture(torch.zeros(2, 4), (2, 2), 2).axes[0].get_images()
    assert plots.picture(torch.zeros(2, 2), None, None).axes[0].collections
    assert plots.picture(torch.zeros(2, 5), None, None) is None


def test_an_ending_that_is_no_picture_is_refused_and_the_old_file_stays(tmp_path):
    (tmp_path / "a.docx").write_text("kept")
    with pytest.raises(DataError, match=r"a\.docx ends in '\.docx'.*use \.png"):
        plots.save(plots.points(torch.randn(3, 2)), tmp_path / "a.docx")
    assert (tmp_path / "a.docx").read_text() == "kept"

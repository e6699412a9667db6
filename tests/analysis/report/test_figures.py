"""The two figures show what the journal holds, at any size."""

import itertools

import numpy as np
import pytest

from runyard.analysis.report import confusion, curves
from runyard.analysis.report.theme import DARK, LIGHT, save
from runyard.runs.results.facts import load_report_data


@pytest.mark.parametrize("columns", [1, 2])
def test_figure_1_has_exactly_the_four_panels_with_the_journals_values(fake_run, columns):
    facts = load_report_data(fake_run(epochs=8, **{"optim.lr": 2e-3}).train().run)
    axes = curves.draw_curves(facts, LIGHT, columns).axes
    assert [axis.get_title(loc="left")[5:].split(" ($")[0] for axis in axes] == [
        "Train loss",
        "Test loss",
        "Test accuracy (%)",
        "Learning rate",
    ]
    for axis, key, scale in zip(axes, ("train_loss", "test_loss", "test_top1", "lr"), (1, 1, 100, 1000), strict=True):
        epochs, values = facts.series(key)
        assert list(axis.lines[0].get_xdata()) == epochs
        assert axis.lines[0].get_ydata() == pytest.approx([scale * v for v in values])


def test_epoch_ticks_are_whole_numbers_beginning_with_1(fake_run):
    for last in (1, 2, 7, 50, 333, 1000):
        ticks = curves._ticks(last)
        assert ticks[0] == 1
        assert len(ticks) <= 9
        assert ticks[-1] <= last
        assert all(isinstance(t, int) for t in ticks)


def test_a_restart_is_marked_where_training_went_on(fake_run):
    facts = load_report_data(fake_run(epochs=8).train(restarts=(3,)).run)
    assert facts.restart_epochs() == pytest.approx([2.5])
    marks = [line for line in curves.draw_curves(facts, LIGHT).axes[2].lines if len(set(line.get_xdata())) == 1]
    assert any(line.get_xdata()[0] == pytest.approx(2.5) for line in marks)


def test_a_validation_part_has_its_curve(fake_run):
    facts = load_report_data(fake_run(epochs=4).train(validation=True).run)
    names = {line.get_label() for line in curves.draw_curves(facts, LIGHT).axes[2].lines}
    assert {"test", "validation"} <= names


@pytest.mark.parametrize("count", [2, 10, 100])
def test_every_count_is_written_in_its_cell(count):
    matrix = np.random.default_rng(0).poisson(0.05, (count, count)) + np.diag(np.full(count, 80))
    axis = confusion.draw_confusion(matrix, [f"class_{i}" for i in range(count)], LIGHT).axes[0]
    places = [(text.get_position(), int(text.get_text())) for text in axis.texts]
    written = {(int(y), int(x)): value for (x, y), value in places}
    for true, predicted in np.argwhere(matrix):
        assert written[int(true), int(predicted)] == matrix[true, predicted]


@pytest.mark.parametrize("count", [10, 11, 30, 31, 100])
def test_the_names_of_the_classes_do_not_run_into_each_other(count):
    figure = confusion.draw_confusion(np.eye(count, dtype=int), [f"some_class_{i}" for i in range(count)], LIGHT)
    renderer, axis = figure.canvas.get_renderer(), figure.axes[0]
    down = [label.get_window_extent(renderer) for label in axis.get_yticklabels()]
    across = [label.get_window_extent(renderer) for label in axis.get_xticklabels()]
    spans = [sorted((box.y0, box.y1) for box in down)]
    if count > 12:  # below, the names under the matrix are slanted
        spans.append(sorted((box.x0, box.x1) for box in across))
    for span in spans:
        assert len(span) == count
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(span))


@pytest.mark.parametrize("names", [["a" * 300, "b"], ["$x$ $", "猫"], ["", " "]])
def test_any_class_name_can_be_drawn(names):
    picture = save(confusion.draw_confusion(np.array([[3, 1], [0, 0]]), names, LIGHT), "png", 100)
    assert picture.startswith(b"\x89PNG")


def test_a_class_without_images_and_a_matrix_without_mistakes_can_be_drawn():
    confusion.draw_confusion(np.zeros((3, 3), int), ["a", "b", "c"], LIGHT)
    confusion.draw_confusion(np.eye(3, dtype=int), ["a", "b", "c"], LIGHT)


def test_a_thousand_classes_stay_within_a_page():
    figure = confusion.draw_confusion(np.eye(1000, dtype=int), [f"n{i}" for i in range(1000)], LIGHT)
    assert max(figure.get_size_inches()) < 16


def test_a_thousand_epochs_can_be_drawn(fake_run):
    assert save(curves.draw_curves(load_report_data(fake_run(epochs=1000).train().run), DARK), "png", 100).startswith(
        b"\x89PNG"
    )


def test_drawing_leaves_other_peoples_settings_alone(fake_run):
    import matplotlib

    before = dict(matplotlib.rcParams)
    curves.draw_curves(load_report_data(fake_run(epochs=1).train().run), DARK)
    assert dict(matplotlib.rcParams) == before

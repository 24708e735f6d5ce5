import pytest

from training.plots import plot_schedules


def test_schedules_are_drawn_as_a_png(tmp_path):
    from matplotlib import image

    plot_schedules(["cosine(warmup=10)", "linear"], 100, tmp_path / "schedule.png")
    picture = image.imread(tmp_path / "schedule.png")
    assert picture.shape[1] == 880
    assert len({tuple(pixel) for pixel in picture.reshape(-1, picture.shape[2])}) > 10


def test_schedules_are_drawn_as_an_svg_with_axes_and_a_legend(tmp_path):
    path = tmp_path / "schedule.SVG"
    expressions = ["cosine(1, 0.1, warmup=10)", "step(every=30)"]
    plot_schedules(expressions, 100, path)
    text = path.read_text(encoding="utf-8")
    for words in ("update", "value", *expressions):  # matplotlib notes the words of its glyphs
        assert f"<!-- {words} -->" in text


@pytest.mark.parametrize(
    ("expressions", "name", "message"),
    [
        (["cosine"], "schedule.pdf", "ends in .png or .svg. Received: 'schedule.pdf'"),
        ([], "schedule.png", "at least one schedule"),
        (["cosine", "linnear"], "schedule.png", "Did you mean linear"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(tmp_path, expressions, name, message):
    with pytest.raises(ValueError, match=message):
        plot_schedules(expressions, 100, tmp_path / name)
    assert not list(tmp_path.iterdir())

"""Drawings: what a cell shows, the same each time, and in words for those who do not see it."""

import math
import re
from xml.etree import ElementTree

import pytest
import torch

from shared import drawing


def sketch(values=((1.0, -2.0), (0.5, 0.0)), **options):
    axis = drawing.canvas(6, 4)
    drawing.box(axis, 1, 3, "a query", "query")
    drawing.arrow(axis, (1, 2.6), (1, 1.4), "0.8", bend=0.2)
    drawing.matrix(axis, 3, 3, values, rows=("a", "b"), columns=("c", "d"), **options)
    return drawing.show(axis, 'one <box> & "an arrow"')


def test_a_drawing_is_svg_with_its_words_and_the_same_each_time():
    first, second = sketch(), sketch()
    assert first.svg == second.svg
    tree = ElementTree.fromstring(first.svg)
    assert tree.attrib["aria-label"] == tree[0].text == 'one <box> & "an arrow"'
    assert tree.attrib["style"] == "max-width: 100%; height: auto"  # inside a page; an <img> is for the page to shrink
    assert first._repr_mimebundle_() == {"image/svg+xml": first.svg, "text/plain": 'one <box> & "an arrow"'}


def test_a_matrix_takes_tensors_lists_texts_and_masks():
    plain = sketch()
    assert sketch(torch.tensor([[1.0, -2.0], [0.5, 0.0]])).svg == plain.svg
    assert sketch(hidden=[[False, True], [False, False]]).svg != plain.svg
    assert sketch([["x", "y"], ["z", "-"]]).svg != plain.svg
    assert sketch([[0.0, float("-inf")], [0.0, 0.0]]).svg  # zeros and masked scores


def test_a_price_is_no_formula():
    def paths(text):
        axis = drawing.canvas(4, 3)
        drawing.box(axis, 1, 1, text)
        return drawing.show(axis, "a box").svg.count("<use ")

    assert paths("$5 and $6") == paths("x5 and x6") and paths(r"$\foo$") == 6


def test_what_is_not_a_number_or_masked_leaves_the_other_colours_alone():
    def fills(value):
        return set(re.findall("fill: #[0-9a-f]+", sketch([[value, 1.0], [0.0, -1.0]]).svg))

    assert fills(1.0) <= fills(math.nan) and fills(1.0) <= fills(-math.inf)
    scores = torch.tensor([[2.0, -math.inf], [math.nan, -1.0]])
    assert drawing.signed(scores)["vmax"] == drawing.signed(scores.numpy())["vmax"] == 2


@pytest.mark.parametrize("values", [torch.tensor([[-3.0, 1.0]]), torch.zeros(2, 2)])
def test_the_colours_of_signed_numbers_are_centred_on_zero(values):
    limits = drawing.signed(values)
    assert limits["vmin"] == -limits["vmax"] and limits["vmax"] >= values.abs().max() > -1


def test_a_table_keeps_its_columns_whatever_the_texts_hold(capsys, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    drawing.show_table(["word", "n"], [["a | b\nc", 3], ["x" * 20, None]], width=10)
    assert shown[0].data == "| word | n |\n| --- | --- |\n| a / b c | 3 |\n| xxxxxxxx … | None |"

"""The studies' helpers, and that the committed pages are those of the committed figures."""

import json
import math
from types import ModuleType

import pytest

from benchmarks.studies import random_binary, signed_constant
from mpt_fast.data import load
from mpt_fast.training import recipe_for


@pytest.mark.parametrize("study", [random_binary, signed_constant])
def test_committed_page_is_that_of_the_committed_figures(study: ModuleType) -> None:
    path = study.HERE / f"{study.__name__.split('.')[-1]}_results.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    assert study.markdown(result) == path.with_suffix(".md").read_text(encoding="utf-8")
    assert result["command"] == study.COMMAND


def test_difference_is_of_means_with_its_standard_error() -> None:
    mean, error = signed_constant.difference([3.0, 5.0, 7.0], [1.0, 2.0, 3.0])
    assert mean == 3.0
    assert error == pytest.approx(math.sqrt(4 / 3 + 1 / 3))


def test_first_images_are_the_first() -> None:
    digits = load("digits")
    part = signed_constant.first_images(digits, 100)
    assert len(part.train) == 100
    assert part.test is digits.test
    assert part.train.labels.equal(digits.train.labels[:100])
    assert part.train.batch([99]).equal(digits.train.batch([99]))


def test_a_ticket_of_constant_magnitude_keeps_that_magnitude(tmp_path) -> None:
    """kaiming_normal keeps what is larger than average; a run that is there is read back."""
    digits = load("digits")
    runs = {}
    for init in signed_constant.INITS:
        recipe = recipe_for("fc", "digits", width=0.1, epochs=2, weight_init=init, threads=1)
        runs[init] = signed_constant.study_run(recipe, digits, tmp_path / init)
        assert signed_constant.study_run(recipe, digits, tmp_path / init) == runs[init]
    normal, signed = (runs[init] for init in signed_constant.INITS)
    assert normal["kept"] == signed["kept"] == math.ceil(normal["weights"] / 2)
    assert signed["magnitude"] == pytest.approx(1.0)
    assert signed["gains"] == pytest.approx(1.0)
    assert math.sqrt(2 / math.pi) < normal["magnitude"] < 1.0
    assert normal["gains"] < 1.0
    assert 0 < normal["moved"] < 0.5

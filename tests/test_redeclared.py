"""Other versions of an operator come to the same canonical form: the same outputs as ONNX Runtime's, a gradient that fits."""

from __future__ import annotations

import numpy as np
import pytest
from cases import Case
from redeclared import OTHERS
from test_cases import Explained, assert_close, assert_matches_finite_differences, runtime


@pytest.mark.parametrize("case", OTHERS, ids=str)
def test_another_version_is_computed_and_differentiated_as_it_is_meant(case: Case) -> None:
    explained = Explained(case)
    for name, array in runtime(explained.model32, case.values(np.float32)).items():
        assert_close(explained.single[name], array.astype(np.float64), case.rtol)
    gradient = {name: explained.exact[f"{name}_gradient"] for name in case.inputs}
    assert_matches_finite_differences(case, explained.model64, explained.cotangents, gradient)

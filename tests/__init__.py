"""The tests, in the rooms of what they test; what several of them use lies in ``support``."""

import pytest

pytest.register_assert_rewrite("tests.support")  # so that a failed assert there says as much as one in a test

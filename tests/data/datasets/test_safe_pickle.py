"""A pickle is read without running any code from it."""

import io
import os
import pickle

import numpy as np
import pytest

from runyard.data.datasets import safe_pickle
from runyard.errors import UserError

ARRAY = np.arange(6, dtype=np.uint8).reshape(2, 3)
WHOLE = {
    "data": ARRAY,
    b"labels": [np.int64(3), np.float32(1), "s", None, True],
    "fortran": np.asfortranarray(ARRAY),
    "text": np.array(["a", "bc"]),
    "none": np.zeros((0, 3)),
    "set": {1, 2},
    "bytearray": bytearray(b"q\xff"),
    "scalar": np.array(5),
    "view": ARRAY[::-1, ::2],
    "big": ARRAY.astype(">i4"),
    "bool": ARRAY > 2,
    "again": ARRAY,
}


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_numpy_pickled_is_read_as_it_was(protocol):
    read = safe_pickle.load_pickle(io.BytesIO(pickle.dumps(WHOLE, protocol)))
    assert list(read) == list(WHOLE)
    for key, value in WHOLE.items():
        if isinstance(value, np.ndarray):
            assert read[key].dtype == value.dtype
            np.testing.assert_array_equal(read[key], value)
        else:
            assert read[key] == value


def test_a_python_2_batch_is_read_with_bytes_keys():
    # What Python 2's cPickle wrote: protocol 2, str as SHORT_BINSTRING, numpy.core paths.
    old = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00"
        b"\x85U\x01b\x87Rq\x05(K\x01K\x01K\x02\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x02\x07\xfftbU\x06labelsq\x08]q\x09(K\x06K\x09eu."
    )
    read = safe_pickle.load_pickle(io.BytesIO(old))
    assert read[b"labels"] == [6, 9]
    np.testing.assert_array_equal(read[b"data"], np.array([[7, 255]], np.uint8))


def test_a_foreign_name_is_refused_by_name_and_never_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "trap.pkl"
    path.write_bytes(pickle.dumps({"data": Trap()}))
    with pytest.raises(UserError, match=r"trap.pkl: uses posix.mkdir"):
        safe_pickle.load_pickle(path)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(path.read_bytes())  # the control: plain pickle does spring it
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        pickle.dumps(WHOLE)[:-9],
        pickle.dumps(np.array([None, 1], dtype=object)),
        pickle.dumps(np.zeros(2, dtype=[("a", "i4")])),
        b"c__builtin__\neval\n.",
        b"cnumpy\nndarray\n.",
        b"cnumpy\ndtype\n}(Vx\nI1\nub.",
        b"]" * 10,
    ],
    ids=["empty", "garbage", "truncated", "objects", "structured", "eval", "bare name", "state on a name", "no end"],
)
def test_damaged_and_forged_pickles_are_refused_in_one_line(content):
    with pytest.raises(UserError) as error:
        safe_pickle.load_pickle(io.BytesIO(content), "x.pkl")
    assert str(error.value).startswith("x.pkl: ")
    assert "\n" not in str(error.value)

"""Arrays from process to process by a file."""

import os
import pickle

import numpy as np
import pandas as pd
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models.parcel import Parcel


@given(
    st.lists(
        hnp.arrays(
            st.sampled_from([np.float32, np.uint8, "M8[ns]", "m8[s]", bool]),
            hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9),
        ),
        max_size=4,
    )
)
def test_arrays_come_out_as_they_went_in(tmp_path_factory, arrays):
    folder = tmp_path_factory.mktemp("parcel")
    again = Parcel.pack(arrays, str(folder)).open()
    assert list(folder.iterdir()) == []
    for one, other in zip(arrays, again, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_labels_go_with_it_and_large_arrays_do_not_go_through_the_pipe(tmp_path):
    times = pd.date_range("2024-06-01", periods=3, freq="5min")
    field = xr.DataArray(
        np.random.default_rng(0).random((3, 200, 300), np.float32),
        dims=("time", "y", "x"),
        coords={"time": times, "lat": (("y", "x"), np.zeros((200, 300)))},
        attrs={"units": "mm h-1"},
    )
    parcel = Parcel.pack((field, times), str(tmp_path))
    assert len(parcel.head) < 5000
    assert os.path.getsize(parcel.path) > field.nbytes
    (again, again_times) = pickle.loads(pickle.dumps(parcel)).open()
    xr.testing.assert_identical(again, field)
    assert (again_times == times).all()
    assert not os.path.exists(parcel.path)
    again[:] = 0  # it is the reader's own


def test_a_part_of_an_array_goes_as_well(tmp_path):
    field = np.arange(24.0).reshape(4, 6)
    np.testing.assert_array_equal(
        Parcel.pack(field[::2, 1::2], str(tmp_path)).open(), field[::2, 1::2]
    )

"""Small files that claim, hold or lead to what no frame does are refused, in little memory."""

import bz2
import gzip
import io
import pickle
import struct
import subprocess
import sys
import tarfile
import textwrap
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from models import checkpoints
from pipelines.decode import IngestSettings, read
from pipelines.errors import FrameError
from pipelines.sources import FrameFile, content, get_source
from pipelines.sources.base import content_of
from pipelines.sources.content import MOST_BYTES, decompressed
from pipelines.times import now
from tests.pipelines import test_fmi_pgm, test_knmi, test_mrms

HUGE = 2**20
"""Rows and columns of what would be a terabyte."""


def refused(source, hostile, match):
    with pytest.raises(FrameError, match=match):
        read(hostile, IngestSettings(source=source))


def changed(made, change):
    """An HDF5 file, after a change."""
    buffer = io.BytesIO(made)
    with h5py.File(buffer, "r+") as file:
        change(file)
    return buffer.getvalue()


def knmi(change):
    return changed(test_knmi.composite(), change)


def replaced(**how):
    def change(file):
        del file["image1/image_data"]
        file["image1"].create_dataset("image_data", dtype="u2", **how)

    return change


def test_a_dataset_that_claims_to_be_huge():
    huge = knmi(replaced(shape=(HUGE, HUGE), chunks=(64, 64)))
    assert len(huge) < 20_000
    refused("knmi", huge, "more than any radar frame")


@pytest.mark.parametrize("size", [(2**60, 2), (2, 2**60), (2**60, 0), (2**60, -1), (2**14, 2**14)])
def test_a_grid_that_claims_to_be_huge(size):
    """Rows and columns stand in attributes, whatever the array has; found by the fuzzer."""

    def knmis(file):
        names = ("geo_number_rows", "geo_number_columns")
        file["geographic"].attrs.update(dict(zip(names, size, strict=True)))

    refused("knmi", knmi(knmis), "a grid larger than any")

    def odims(file):
        file["where"].attrs.update(dict(zip(("ysize", "xsize"), size, strict=True)))

    refused("odim", changed(hdf5_of("odim")[0], odims), "a grid larger than any")


def test_a_chunk_that_claims_to_be_huge():
    shape, most = (2, 3), (None, None)
    huge = knmi(replaced(shape=shape, maxshape=most, chunks=(2**15, 2**15)))
    refused("knmi", huge, "more than any radar frame")


@pytest.fixture(scope="module")
def inflating():
    """What a GiB of zeros is deflated to."""
    compressor = zlib.compressobj(9)
    return b"".join(compressor.compress(bytes(2**20)) for _ in range(1024)) + compressor.flush()


def memory_needed(code):
    """What some code (a statement that has `FrameError`) takes, by a process of its own."""
    code = f"""
        import pathlib, resource
        from pipelines.decode import IngestSettings, read
        from pipelines.errors import FrameError
        from pipelines.sources.content import decompressed
        import xarray, h5py, zlib
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        try:
            {code}
        except FrameError:
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("filters", [{}, {"shuffle": True}, {"fletcher32": True}])
@pytest.mark.parametrize("source", ["knmi", "odim", "cf", "bom"])
def test_a_chunk_that_inflates_to_more_than_it_is(tmp_path, inflating, source, filters):
    """With one filter it is ours to inflate, with more HDF5's; the latter says nothing of it."""
    good, name = hdf5_of(source)

    def change(file):
        values = file.pop(name)[()]
        how = {"chunks": values.shape, "compression": "gzip", **filters}
        made = file.create_dataset(name, values.shape, values.dtype, **how)
        made.id.write_direct_chunk((0,) * values.ndim, inflating)

    path = tmp_path / "bomb"
    path.write_bytes(changed(good, change))
    refused(source, path.read_bytes(), "broken chunk")
    content = f"pathlib.Path({str(path)!r}).read_bytes()"
    assert memory_needed(f"read({content}, IngestSettings(source={source!r}))") < 2**28


@pytest.mark.parametrize("filters", [{}, {"shuffle": True}])
def test_a_chunk_that_does_not_inflate(filters):
    def change(file):
        replaced(shape=(2, 3), chunks=(2, 3), compression="gzip", **filters)(file)
        file["image1/image_data"].id.write_direct_chunk((0, 0), b"no stream of zlib's")

    refused("knmi", knmi(change), "unreadable HDF5 file: .*broken chunk: Error -")


def hdf5_of(source):
    """A good file, and the name of its field."""
    from tests.pipelines import test_bom, test_cf, test_odim

    pytest.importorskip("h5netcdf")
    groups = {"root_where": test_odim.WHERE, "dataset1_data1_what": test_odim.RATE}
    return {
        "knmi": lambda: (test_knmi.composite(), "image1/image_data"),
        "odim": lambda: (test_odim.composite(**groups), "dataset1/data1/data"),
        "cf": lambda: (test_cf.netcdf4(test_cf.dataset()), "rain"),
        "bom": lambda: (test_bom.rainfields(), "precipitation"),
    }[source]()


def test_filters_after_deflating_are_not_looked_through():
    def change(file):
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((2, 3))
        plan.set_deflate(4)
        plan.set_deflate(4)
        del file["image1/image_data"]
        space = h5py.h5s.create_simple((2, 3))
        h5py.h5d.create(file["image1"].id, b"image_data", h5py.h5t.NATIVE_UINT16, space, plan)

    refused("knmi", knmi(change), "deflated chunks with filters")


@pytest.mark.parametrize("kind", ["external link", "external data", "virtual data"])
def test_a_file_that_leads_to_another_of_this_machine(tmp_path, kind):
    other = tmp_path / "secret.h5"
    other.write_bytes(test_knmi.composite())
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(12))

    def change(file):
        del file["image1/image_data"]
        if kind == "external link":
            file["image1/image_data"] = h5py.ExternalLink(str(other), "/image1/image_data")
        elif kind == "external data":
            where = [(str(raw), 0, 12)]
            file["image1"].create_dataset("image_data", (2, 3), "u2", external=where)
        else:
            layout = h5py.VirtualLayout((2, 3), "u2")
            layout[:] = h5py.VirtualSource(str(other), "/image1/image_data", (2, 3), "u2")
            file["image1"].create_virtual_dataset("image_data", layout)

    leads_away = knmi(change)
    (tmp_path / "a.h5").write_bytes(leads_away)
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["image1/image_data"].shape == (2, 3), "h5py alone goes there"
    refused("knmi", leads_away, "leads to other files")


@pytest.mark.parametrize("source", ["cf", "bom"])
def test_a_netcdf_file_that_claims_to_be_huge(source):
    pytest.importorskip("h5netcdf")
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset("rain", (HUGE, HUGE), "f4", chunks=(64, 64))
    refused(source, buffer.getvalue(), "more than any radar frame")


def test_a_grib_message_that_claims_to_be_huge():
    message = bytearray(test_mrms.message())
    start = message.index(struct.pack(">IB", 72, 3))  # section 3: the grid
    message[start + 6 : start + 10] = struct.pack(">I", 2**32 - 1)
    refused("mrms", bytes(message), "more than any radar frame")


def test_a_pgm_that_claims_to_be_huge():
    plain = test_fmi_pgm.composite()
    size = b"\n3 2\n"
    assert size in plain
    refused("fmi-pgm", plain.replace(size, b"\n99999 99999\n"), "more than any|decompression bomb")


def test_a_pgm_that_is_another_kind_of_picture():
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.zeros((2, 3), np.uint8)).save(buffer, "PNG")
    refused("fmi-pgm", buffer.getvalue(), "PGM")


def test_a_gif_that_claims_to_be_huge():
    head = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0xF7, 0, 0) + bytes(768)
    picture = b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x08\x02\x4c\x01\x00;"
    refused("meteoswiss", head + picture, "pixels|bomb")


def test_a_geotiff_that_claims_to_be_huge():
    rasterio = pytest.importorskip("rasterio")
    from tests.pipelines import test_fmi_geotiff

    how = {"driver": "GTiff", "dtype": "uint8", "count": 1, "width": 2**17, "height": 2**17}
    how |= {"crs": "EPSG:3067", "transform": rasterio.Affine(250.0, 0, 0, 0, -250.0, 0)}
    with rasterio.MemoryFile() as memory:
        with memory.open(**how, sparse_ok=True, compress="deflate", bigtiff="no") as file:
            file.update_tags(GDAL_METADATA=test_fmi_geotiff.METADATA)
        huge = bytes(memory.getbuffer())
    assert len(huge) < 5_000_000
    refused("fmi-geotiff", huge, "a grid larger than any")


def test_a_heap_that_hdf5_never_comes_out_of():
    """Names of dimensions lie in it; found by the fuzzer."""
    pytest.importorskip("h5netcdf")
    from tests.pipelines import test_bom

    good = test_bom.rainfields()
    start = good.index(b"GCOL") + 16
    read(good, IngestSettings(source="bom"))
    for length in (0, 2**64 - 1):  # the second becomes a few bytes where it is rounded up
        head = struct.pack("<HHIQ", int(length > 0), 1, 0, length)
        refused("bom", good[:start] + head + good[start + 16 :], "a global heap with")


# Compression: measured in a process that may not have the memory ---------------------------------


@pytest.fixture(scope="module")
def bombs():
    """16 GiB of zeros in about 16 MiB of gzip, and less of bzip2."""
    member = gzip.compress(bytes(2**28), 9)
    return {"gzip": member * 64, "bzip2": bz2.compress(bytes(2**28)) * 64}


@pytest.mark.parametrize("kind", ["gzip", "bzip2"])
def test_a_bomb_does_not_go_off(tmp_path, bombs, kind):
    path = tmp_path / "bomb"
    path.write_bytes(bombs[kind])
    needed = memory_needed(f"decompressed(pathlib.Path({str(path)!r}).read_bytes())")
    assert needed < 3 * MOST_BYTES, "some copies of what is admitted, not 16 GiB"


def test_what_is_within_the_limit_is_whole(monkeypatch):
    monkeypatch.setattr(content, "MOST_BYTES", 1000)
    whole = bytes(range(250)) * 4
    assert decompressed(gzip.compress(whole[:500]) + gzip.compress(whole[500:])) == whole
    assert decompressed(bz2.compress(whole)) == whole
    with pytest.raises(FrameError, match="more than 1000 bytes"):
        decompressed(gzip.compress(whole + b"1"))


def test_a_sparse_member_of_a_tar_file(monkeypatch):
    pytest.importorskip("wradlib")
    monkeypatch.setattr(content, "MOST_BYTES", 1000)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("DE1200_RV2406010050_000")
        member.size = 2000
        archive.addfile(member, io.BytesIO(bytes(2000)))
    refused("radolan", buffer.getvalue(), "more than 1000 bytes")


def test_a_file_too_large_to_be_one_is_not_even_fetched(tmp_path):
    path = tmp_path / "RAD_NL25_RAP_5min_201008260000.h5"
    with path.open("wb") as file:
        file.truncate(MOST_BYTES + 1)  # sparse: it takes no room
    found = FrameFile(now(), now(), str(path), path.stat().st_size)
    with pytest.raises(FrameError, match="more than any radar frame"):
        content_of(get_source("knmi"), found)


# Pickles -----------------------------------------------------------------------------------------


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_checkpoint_runs_no_code(tmp_path):
    import torch

    mark = tmp_path / "it ran"
    buffer = io.BytesIO()
    torch.save({"epoch": Evil(mark)}, buffer)
    pickle.loads(pickle.dumps(Evil(mark)))
    assert mark.exists(), "as it would"
    mark.unlink()
    evil = checkpoints.Checkpoint(1, checkpoints._digest(buffer.getvalue()))
    (tmp_path / evil.name).write_bytes(buffer.getvalue())
    with pytest.raises(Exception, match=r"[Ww]eights.only|Unsupported"):
        checkpoints.read(str(tmp_path), evil)
    assert not mark.exists()


def test_no_reader_of_ours_unpickles():
    """But for what processes of one run hand each other: arrays (`parcel`) and `errors`."""
    root = Path(__file__).parents[2]
    sources = [*(root / "pipelines").rglob("*.py"), *(root / "models").rglob("*.py")]
    texts = {path.stem: path.read_text() for path in [*sources, *(root / "flows").rglob("*.py")]}
    assert {name for name, text in texts.items() if "import pickle" in text} == {"errors", "parcel"}
    text = "\n".join(texts.values())
    assert text.count("torch.load(") == text.count("weights_only=True") > 0
    assert text.count("np.load(") == text.count("allow_pickle=False") > 0

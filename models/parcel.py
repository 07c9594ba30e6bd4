"""Large arrays from one process to another of the same machine, by a file.

Pickle (protocol 5) leaves arrays out of what it writes; they go into a file of their own, which the
other process maps into its memory: a forecast of gigabytes goes through no pipe, and is not read
before it is used. The file is unlinked as it is mapped; what was mapped goes with the last array.
"""

import mmap
import os
import pickle
import tempfile
from dataclasses import dataclass
from typing import Any

ALIGNMENT = 64
"""Arrays begin at multiples of so many bytes."""


@dataclass(frozen=True)
class Parcel:
    """Anything that can be pickled, its arrays in a file. It can be opened once.

    Attributes
    ----------
    head : the pickle without its arrays
    path : the file
    spans : first byte and size of each array in it
    """

    head: bytes
    path: str
    spans: tuple[tuple[int, int], ...]

    @classmethod
    def pack(cls, content: Any, folder: str) -> "Parcel":
        """Write the arrays to a new file in `folder`."""
        arrays: list[pickle.PickleBuffer] = []
        head = pickle.dumps(content, protocol=5, buffer_callback=arrays.append)
        spans = []
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            for array in arrays:
                file.seek(-file.tell() % ALIGNMENT, os.SEEK_CUR)
                raw = array.raw()
                spans.append((file.tell(), raw.nbytes))
                file.write(raw)
        return cls(head, file.name, tuple(spans))

    def open(self) -> Any:
        """What was packed. Its arrays can be written to; nobody else sees that."""
        with open(self.path, "rb") as file:
            os.unlink(self.path)
            size = os.fstat(file.fileno()).st_size
            mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) if size else b""
        memory = memoryview(mapped)
        return pickle.loads(self.head, buffers=[memory[at : at + n] for at, n in self.spans])

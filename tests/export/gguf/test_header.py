"""The head of a file: what the package writes is read back; files that are cut off or damaged are found."""

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from hasten.errors import StorageError
from hasten.export.gguf.encoders import Type
from hasten.export.gguf.header import byte_count, padded, read_header, unfinished, write_header
from hasten.export.gguf.mixes import Tensor

TENSORS = {
    "a.weight": (Tensor("a.weight", (3, 64)), Type.Q8_0),
    "b.weight": (Tensor("b.weight", (5,)), Type.F32),
    "c.weight": (Tensor("c.weight", (2, 3, 32)), Type.F16),
}


def written(path):
    facts = GGUFWriter(None, "llama")
    facts.add_token_list(["one", "zwei", "三"])
    facts.add_token_types([1, 2, 3])
    facts.add_token_scores([0.5, 1.5, 2.5])
    facts.add_rope_freq_base(1e4)
    facts.add_add_bos_token(True)
    facts.add_context_length(7)
    write_header(path, facts, TENSORS)
    with path.open("ab") as file:
        file.write(bytes(padded(file.tell()) - file.tell()))
        for number, (tensor, kind) in enumerate(TENSORS.values()):
            count = byte_count(tensor, kind)
            file.write(bytes([number + 1]) * count + bytes(padded(count) - count))
    return path


def test_what_is_written_is_read(tmp_path):
    path = written(tmp_path / "x.gguf")
    found, theirs = read_header(path), GGUFReader(path)
    assert list(found) == list(TENSORS)
    for each in theirs.tensors:
        placed = found[each.name]
        assert (placed.shape[::-1], placed.kind, placed.start, placed.bytes) == (
            tuple(int(size) for size in each.shape), each.tensor_type, each.data_offset, each.n_bytes
        )  # fmt: skip
    assert np.array(theirs.tensors[2].data).view(np.uint8).reshape(-1)[-1] == 3
    assert theirs.fields["tokenizer.ggml.tokens"].contents() == ["one", "zwei", "三"]


@pytest.mark.parametrize("cut", [2, 30, 100, 200, -40])
def test_a_file_that_is_cut_off(tmp_path, cut):
    path = written(tmp_path / "x.gguf")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(StorageError, match=r"x.gguf: it(s head cannot be read| has \d+ of \d+ bytes).*Write it again"):
        read_header(path)


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(StorageError, match=r"it does not begin with 'GGUF'"):
        read_header(tmp_path / "x.gguf")
    (tmp_path / "x.gguf").write_bytes(b"GGUF\x02" + bytes(100))
    with pytest.raises(StorageError, match=r"version 2"):
        read_header(tmp_path / "x.gguf")


def test_an_unfinished_file_is_removed(tmp_path):
    with pytest.raises(KeyError), unfinished(tmp_path / "sub" / "x.gguf") as path:
        path.write_text("half")
        raise KeyError
    assert list((tmp_path / "sub").iterdir()) == []

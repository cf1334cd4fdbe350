"""What is no GGUF, or only a part of one, in one sentence each."""

import struct

import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file

from hasten.errors import ModelError
from hasten.loading.gguf_file import open_gguf, parts_of, require_gguf
from support import gguf_models


@pytest.fixture(scope="module")
def model():
    return gguf_models.model("llama")


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    gguf_models.write_model(path, model, kind="F16")
    return path


def refusal(path):
    with pytest.raises(ModelError) as caught:
        open_gguf(path)
    return caught.value


def test_fields_and_tensors(whole):
    file = open_gguf(whole)
    assert (file.arch, file.own("block_count"), file.own("nothing", 7), file.parts) == ("llama", 2, 7, (whole,))
    assert file.tensors["token_embd.weight"].data.shape == (128, 256)
    assert file.fields["tokenizer.ggml.tokens"][:3] == ["a", "b", "c"]


def test_other_bytes(tmp_path):
    path = tmp_path / "x.gguf"
    for content, value in [
        (b"<html>", "not a GGUF file"),
        (b"", "not a GGUF file"),
        (b"GGUF\x03", "a damaged GGUF (it ends after its first bytes)"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(16), "GGUF version 1"),
        (b"GGUF" + struct.pack("<I", 9) + bytes(16), "GGUF version 9"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(16), "a GGUF for big-endian machines"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ModelError) as caught:
            require_gguf(path)
        assert caught.value.value == value and caught.value.subject == str(path)


@pytest.mark.parametrize("share", [0.00002, 0.0005, 0.002, 0.1, 0.5, 0.999])
def test_a_file_that_was_cut_off(whole, tmp_path, share):
    content = whole.read_bytes()
    (tmp_path / "half.gguf").write_bytes(content[: max(int(len(content) * share), 9)])
    error = refusal(tmp_path / "half.gguf")
    assert error.value.startswith("a damaged GGUF (") and "Download it again" in error.remedy


def test_a_tensor_type_of_the_future(whole, tmp_path):
    content = bytearray(whole.read_bytes())
    name = b"blk.0.attn_q.weight"
    place = content.index(name) + len(name) + 4 + 2 * 8  # the number of dimensions, the dimensions
    content[place : place + 4] = struct.pack("<I", 1234)
    (tmp_path / "x.gguf").write_bytes(content)
    error = refusal(tmp_path / "x.gguf")
    assert "1234" in error.value and "tensor type" in error.value and "pip install --upgrade gguf" in error.remedy


@pytest.mark.parametrize(("kind", "value"), [("adapter", "a LoRA adapter"), ("mmproj", "the image part of a model")])
def test_files_that_are_no_model(model, tmp_path, kind, value):
    gguf_models.write_model(tmp_path / "x.gguf", model, fields={"general.type": kind})
    error = refusal(tmp_path / "x.gguf")
    assert error.value == value and error.rule == "A trainable base is a whole model."


def split(folder, model, count=2):
    """The model with its tensors in files of their own, as llama-gguf-split names them."""
    gguf_models.write_model(folder / "whole.gguf", model, kind="F16")
    file = open_gguf(folder / "whole.gguf")
    names = list(file.tensors)
    paths = [folder / f"m-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]
    for number, path in enumerate(paths):
        writer = GGUFWriter(path, "llama")
        if number == 0:
            for name, value in file.fields.items():
                if name != "general.architecture" and value is not None:
                    gguf_models._add(writer, name, value)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(names))
        for name in names[number::count]:
            writer.add_tensor(name, file.tensors[name].data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return file, paths


def test_a_split_model_is_one_model(model, tmp_path):
    from hasten.loading import gguf

    file, paths = split(tmp_path, model)
    for named in paths:
        found = open_gguf(named)
        assert found.path == paths[0] and found.parts == tuple(paths)
        assert found.tensors.keys() == file.tensors.keys()
        assert found.own("block_count") == 2
    folder = gguf.model_folder(paths[1], tmp_path / "cache")
    assert folder == gguf.model_folder(paths[0], tmp_path / "cache")
    other = gguf.model_folder(tmp_path / "whole.gguf", tmp_path / "cache")
    one, two = (load_file(each / "model.safetensors") for each in (folder, other))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_split_model_with_a_part_missing(model, tmp_path):
    _, paths = split(tmp_path, model, 3)
    paths[1].unlink()
    with pytest.raises(ModelError, match=r"1 of the model's 3 files are missing \(first: m-00002-of-00003\.gguf\)"):
        parts_of(paths[0])
    paths[2].rename(tmp_path / "renamed.gguf")
    error = refusal(tmp_path / "renamed.gguf")
    assert error.value == "one of 3 files of a model, but its name does not say so"


def test_a_part_that_holds_too_little(model, tmp_path):
    _, paths = split(tmp_path, model)
    paths[1].unlink()
    (tmp_path / paths[1].name).write_bytes(paths[0].read_bytes())
    assert "comes twice" in refusal(paths[0]).value

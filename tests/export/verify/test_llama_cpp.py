"""llama.cpp's predictions beside those that were meant; its crashes, which end nothing else."""

import json
import math
import os
import shutil
import sys
import time

import pytest
import torch
from gguf import GGUFReader

from hasten.export.gguf.write import write_gguf
from hasten.export.verify import llama_cpp, logits
from hasten.export.verify.weights import BOUNDS
from hasten.export.weights import PlainFolder
from hasten.hardware.memory import Meminfo
from support import judges, tiny

IDS = [1, 5, 20, 33, 47, 60, 99, 12, 8, 77, 31, 54, 3, 64, 90, 111, 25, 40, 18, 70]


def clear(model):
    """Predictions that are far apart."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A file of each of three types, and what the model predicts."""
    place = tmp_path_factory.mktemp("llama")
    clear(tiny.llama()).save_pretrained(place / "model")
    tiny.tokenizer().save_pretrained(place / "model")
    weights = PlainFolder(place / "model")
    files = write_gguf(weights, {kind: place / f"{kind}.gguf" for kind in ("f32", "f16", "q8_0")})
    return {kind: each.path for kind, each in files.items()}, logits.predictions(logits.model_of(weights), IDS)


def compared(file, meant, kind="f32", **more):
    return llama_cpp.compare("x", file, IDS, meant, llama_cpp.bound(0.0, [kind.upper()]), **more)


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0"])
def test_a_real_llama_cpp_says_the_same(kind, case):
    judges.package("xllamacpp")
    files, meant = case
    check = compared(files[kind], meant, kind)
    assert check.state == "within" and check.what == "logits (llama.cpp)", check
    assert "the mean of 16 places" in check.said and f"xllamacpp {llama_cpp.version()}" in check.said


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no UTF-8 are not there elsewhere")
def test_a_folder_whose_name_is_no_utf8(case, tmp_path):
    judges.package("xllamacpp")
    files, meant = case
    folder = tmp_path / os.fsdecode(b"\xe4")
    folder.mkdir()
    assert compared(shutil.copy(files["f32"], folder / "x.gguf"), meant).state == "within"


def test_what_only_llama_cpp_notices(case, tmp_path):
    """A file whose weights are right and whose base of positions is not."""
    judges.package("xllamacpp")
    files, meant = case
    other = tmp_path / "other.gguf"
    other.write_bytes(files["f32"].read_bytes())
    reader = GGUFReader(other, "r+")
    reader.fields["llama.rope.freq_base"].parts[-1][0] = 50.0
    del reader
    check = compared(other, meant)
    assert check.state == "wrong" and "(bound 0.001)" in check.said


def test_a_file_that_it_does_not_load(case, tmp_path):
    judges.package("xllamacpp")
    files, meant = case
    content, other = files["f32"].read_bytes(), tmp_path / "other.gguf"
    other.write_bytes(content[:-1000])
    check = compared(other, meant)
    assert check.state == "wrong" and "does not load it: tensor" in check.said and "file bounds" in check.said
    other.write_bytes(content.replace(b"llama", b"lxama"))
    check = compared(other, meant)
    assert check.state == "skipped" and "unknown model architecture: 'lxama'" in check.said


@pytest.fixture
def program(monkeypatch, tmp_path):
    """Puts another program in llama.cpp's place."""
    monkeypatch.setattr(llama_cpp, "version", lambda: "1.2")

    def put(text):
        (tmp_path / "child.py").write_text("import json, os, sys, time\nasked = json.load(sys.stdin)\n" + text, "utf-8")
        monkeypatch.setattr(llama_cpp, "_CHILD", tmp_path / "child.py")

    return put


SEGFAULT = "import resource, signal; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.kill(os.getpid(), {0})\n"
ENDS = {
    "crash": (SEGFAULT.format("signal.SIGSEGV"), "skipped", "xllamacpp 1.2 was ended by a signal (Segmentation fault)"),
    "killed": (SEGFAULT.format("signal.SIGKILL"), "skipped", "was ended by a signal (Killed)"),
    "assertion": (
        "print('a.cpp:7: GGML_ASSERT(n > 0) failed', file=sys.stderr, flush=True)\n"
        + SEGFAULT.format("signal.SIGABRT"),
        "wrong",
        "xllamacpp 1.2 stops at a.cpp:7: GGML_ASSERT(n > 0) failed",
    ),
    "other API": ("xllamacpp = None; xllamacpp.Server", "skipped", "ended with 1: AttributeError"),
    "no reason": ("print(json.dumps({'refused': 'no'}))", "skipped", "xllamacpp 1.2 cannot load it here: no"),
    "no answer": ("print(json.dumps({'error': 'too long'}))", "wrong", "loads it and does not answer: too long"),
    "NaN": ("print(json.dumps({'top': [[[3, None]]] * len(asked['lengths'])}))", "wrong", "nan nats"),
    "a token too many": (
        "print(json.dumps({'top': [[[128, -1.0]]] * len(asked['lengths'])}))",
        "wrong",
        "predicts token 128, and the model has 128",
    ),
}


LOADING = "0.00.231.585 E llama_model_load: error loading model: "
SYSTEM = (  # as llama.cpp prints them, under a limit of memory or in reports of its users
    "mmap failed: Cannot allocate memory",
    "mmap failed: No such device",
    "unable to allocate CPU_REPACK buffer",
    "unable to allocate CUDA0 buffer",
    "unable to allocate backend buffer",
    "failed to allocate buffer",
    "std::bad_alloc",
    "unknown model architecture: 'alloc'",
)
FILE = (
    "missing tensor 'blk.0.alloc.weight'",
    "done_getting_tensors: wrong number of tensors; expected 21, got 20",
    "tensor 'blk.1.unable to allocate CPU buffer' data is not within the file bounds, model is corrupted or incomplete",
    "llama_model_loader: failed to load model from /home/alloc/bad_alloc.gguf",
    "error loading model hyperparameters: key not found in model: llama.allocated",
)


@pytest.mark.parametrize("reason", [*SYSTEM, *FILE])
def test_whose_fault_it_is_that_a_file_is_not_loaded(reason):
    printed = f"{LOADING}{reason}\n0.00.231.735 E llama_model_load_from_file_impl: failed to load model\n"
    check = llama_cpp._refused("x", "xllamacpp 1.2", printed, "Failed to init server, please check the input params.")
    assert check.state == ("skipped" if reason in SYSTEM else "wrong") and check.said.endswith(reason)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("case_of", ENDS)
def test_its_end_is_a_line(case_of, case, program):
    files, meant = case
    text, state, said = ENDS[case_of]
    program(text)
    check = compared(files["f32"], meant)
    assert check.state == state and said in check.said, check


def test_a_hang_has_an_end(case, program, monkeypatch):
    files, meant = case
    program("time.sleep(60)")
    monkeypatch.setattr(llama_cpp, "_LIMIT_S", 0.5)
    began = time.monotonic()
    check = compared(files["f32"], meant)
    assert check.state == "skipped" and "gave no answer in 1 s" in check.said and time.monotonic() - began < 20


def test_where_it_cannot_be_asked(case, monkeypatch):
    files, meant = case
    monkeypatch.setattr(llama_cpp.importlib.util, "find_spec", lambda name: None)
    assert compared(files["f32"], meant).said == "no llama.cpp here (pip install xllamacpp)"
    monkeypatch.setattr(llama_cpp, "version", lambda: "1.2")
    assert llama_cpp.compare("x", files["f32"], [1], meant, 1.0).said == "the text is too short"
    monkeypatch.setattr(llama_cpp, "read_meminfo", lambda: Meminfo(total=2000, free=1000, available=1000))
    check = compared(files["f32"], meant)
    assert check.state == "skipped" and "GiB and more are needed" in check.said


def test_one_flipped_choice_of_experts_is_not_the_file_s(case, program):
    """Of 16 places one is far away: the mean says so, the median does not."""
    files, meant = case
    tops = []
    for length in llama_cpp._lengths(len(IDS)):
        values, ids = meant[length - 1].sort(descending=True)
        tops.append([[int(token), float(value)] for token, value in zip(ids, values, strict=True)])
    tops[3] = [[token, value] for (token, _), (_, value) in zip(tops[3], reversed(tops[3]), strict=True)]
    program(f"print({json.dumps(json.dumps({'top': tops}))})")
    assert compared(files["f32"], meant).state == "wrong"
    check = compared(files["f32"], meant, experts=True)
    assert check.state == "within" and "the median of 16 places" in check.said


def test_putting_outcomes_together_makes_no_divergence_larger():
    generator = torch.Generator().manual_seed(0)
    for strength in (0.01, 1.0, 5.0):
        one = torch.randn(1000, generator=generator) * 3
        meant, found = (
            each.double().log_softmax(-1) for each in (one, one + torch.randn(1000, generator=generator) * strength)
        )
        whole = float((meant.exp() * (meant - found)).sum())
        values, ids = found.sort(descending=True)
        pairs = [[int(token), float(value)] for token, value in zip(ids, values, strict=True)]
        seen = [llama_cpp.divergence(meant, pairs[:count]) for count in (1, 10, 100, 999, 1000)]
        assert seen == sorted(seen) and 0 <= seen[0] and math.isclose(seen[-1], whole, rel_tol=1e-9)


def test_all_of_the_weight_on_what_was_not_meant():
    meant = torch.tensor([0.0, 10.0, 10.0, 10.0]).log_softmax(-1)
    assert llama_cpp.divergence(meant, [[0, 0.0]]) > 15
    assert llama_cpp.divergence(meant, [[1, -math.inf], [2, 0.0], [3, 0.0], [0, 0.0]]) == math.inf


def test_bounds():
    assert llama_cpp.bound(0.0, ["F32"]) == logits.bound(0.0)
    assert llama_cpp.bound(0.03, ["F32", "Q8_0"]) == logits.bound(math.hypot(0.03, math.sqrt(32 / 12) / 127))
    assert llama_cpp.bound(0.5, ["Q4_K", "Q6_K"]) == 3.0
    assert llama_cpp.ARITHMETIC.keys() | {"E4M3"} == BOUNDS.keys()


@pytest.mark.parametrize("block, kind", [(32, "Q8_0"), (256, "Q4_K")])
def test_rounding_to_blocks_is_as_far_off_as_is_said(block, kind):
    """One value of a block's largest size, the rest anywhere below half a step to a few steps."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for spread in (0.5, 1.0, 2.0, 5.0, 20.0):
        rows = torch.rand(4096, block, generator=generator, dtype=torch.float64) * 2 - 1
        rows *= spread
        rows[:, 0] = 127.0
        away = (rows.round() - rows).square().sum()
        worst = max(worst, float((away / rows.square().sum()).sqrt()))
    assert 0.9 * llama_cpp.ARITHMETIC[kind] < worst < 1.01 * llama_cpp.ARITHMETIC[kind]


def test_places():
    assert llama_cpp._lengths(160)[-1] == 159 and len(llama_cpp._lengths(160)) == 16
    assert llama_cpp._lengths(2) == [1] and llama_cpp._lengths(1) == llama_cpp._lengths(0) == []

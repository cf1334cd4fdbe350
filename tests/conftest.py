"""Fixtures that all tests share."""

import gc
import os
import sys

# A setting of the test process, before anything imports huggingface_hub: no test reaches a hub. hasten never sets it.
os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    # As many test processes as cores: threads of each, and of the commands that they start, would wait for one another.
    # Before anything imports torch or NumPy, which read it then; `make test-slow` gives a share of many cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

if not torch.cuda.is_available():
    # Kernels run in Triton's interpreter, which is chosen when Triton is first imported: before any test's imports.
    os.environ["TRITON_INTERPRET"] = "1"

from support import judges, tiny  # noqa: E402


def pytest_addoption(parser):
    """Which judges of exports must be there, and what they are asked about."""
    parser.addoption("--require-judges", default="", help="judges whose tests fail without them, with commas between")
    parser.addoption("--models", default="", help="folders and .gguf files beside the embedded model, with commas")


def pytest_configure(config):
    """Before any test asks for one."""
    judges.require(config.getoption("--require-judges"))


@pytest.fixture
def chatml():
    """The plain ChatML template (`CM`): no default system text."""
    return tiny.CHATML


@pytest.fixture
def tiny_llama():
    """A fresh random Llama of two layers (`TL`)."""
    return tiny.llama()


@pytest.fixture(scope="session")
def _tiny_model_folder(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def tiny_model_folder(_tiny_model_folder, tmp_path_factory):
    """A folder of its own, outside `tmp_path`, with `TL` and a small real tokenizer."""
    return shutil.copytree(_tiny_model_folder, tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def demo_model_folder():
    """The folder of the embedded model; downloaded and converted when this machine has not done so yet."""
    from hasten.loading.demo import demo_folder
    from hasten.loading.model import CACHE

    return demo_folder(CACHE / "models")


def pytest_generate_tests(metafunc):
    """Tests of `real_model` run on the embedded model and on what `--models` names."""
    if "real_model" in metafunc.fixturenames:
        named = [one for one in metafunc.config.getoption("--models").split(",") if one]
        metafunc.parametrize("real_model", ["demo", *named], indirect=True)


@pytest.fixture
def real_model(request, tmp_path_factory):
    """The folder of a published model."""
    from pathlib import Path

    from hasten.loading.gguf import model_folder

    if request.param == "demo":
        return request.getfixturevalue("demo_model_folder")
    given = Path(request.param)
    return model_folder(given, tmp_path_factory.mktemp("converted")) if given.is_file() else given


@pytest.fixture(scope="session")
def demo_tokenizer(demo_model_folder):
    """The embedded model's tokenizer (`TOK`): do not change it, make a copy."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(demo_model_folder)


_frozen_at = 0


def pytest_runtest_setup():
    """The collector need not look at imported modules again: half a second of every `gc.collect` otherwise."""
    global _frozen_at
    if len(sys.modules) > _frozen_at + 100:
        gc.collect()
        gc.freeze()
        _frozen_at = len(sys.modules)


def pytest_unconfigure():
    """So that libraries which count their objects at the end see them go."""
    gc.unfreeze()


def pytest_collection_modifyitems(items):
    """Tests marked `gpu` are skipped where there is no CUDA device."""
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu:
        if not torch.cuda.is_available():
            for item in on_gpu:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))

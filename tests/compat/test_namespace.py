import subprocess
import sys

import pytest

import hasten
from hasten import compat
from hasten.errors import CapabilityError

EVERY_NAME = """
    FastLanguageModel FastModel FastTextModel FastLlamaModel FastMistralModel FastQwen2Model FastQwen3Model
    FastQwen3MoeModel FastGraniteModel FastFalconH1Model FastVisionModel FastSentenceTransformer FastDiffusionModel
    get_chat_template train_on_responses_only standardize_data_formats standardize_sharegpt to_sharegpt
    apply_chat_template construct_chat_template CHAT_TEMPLATES UnslothVisionDataCollator UnslothTrainer
    UnslothTrainingArguments unsloth_train is_bf16_supported is_bfloat16_supported PatchDPOTrainer PatchKTOTrainer
    PatchFastRL vLLMSamplingParams is_vLLM_available Benchmarker RawTextDataLoader TextPreprocessor QGaloreConfig
    SyntheticDataKit create_locked_down_function execute_with_time_limit check_python_modules is_port_open
    launch_openenv print_quantization_methods save_to_gguf unsloth_save_model
    get_gpu_memory_stats clear_gpu_memory DEVICE_TYPE
    __version__
""".split()


@pytest.mark.parametrize("name", EVERY_NAME)
def test_can_be_imported(name):
    if name.startswith("Unsloth") or name == "unsloth_train":
        pytest.importorskip("trl")
    assert getattr(compat, name) is not None


def test_the_package_offers_them():
    pytest.importorskip("trl")
    for name in hasten.__all__:
        if name != "RunConfig":
            assert getattr(hasten, name) is not None


def test_unknown_name():
    with pytest.raises(AttributeError, match="'hasten.compat' has no attribute 'FastLangageModel'"):
        _ = compat.FastLangageModel


def test_placeholders_raise_when_used():
    with pytest.raises(CapabilityError, match="FastVisionModel.*Only text models.*FastLanguageModel"):
        compat.FastVisionModel.from_pretrained("x")
    with pytest.raises(CapabilityError, match="UnslothVisionDataCollator"):
        compat.UnslothVisionDataCollator(None, None)
    with pytest.raises(CapabilityError, match="SyntheticDataKit.*synthetic-data-kit"):

        class Mine(compat.SyntheticDataKit):
            pass

    assert "not offered" in repr(compat.Benchmarker)
    assert not hasattr(compat.Benchmarker, "__wrapped__")


def test_small_functions(capsys):
    assert compat.is_bf16_supported() in (True, False)
    assert compat.is_bfloat16_supported() == compat.is_bf16_supported()
    assert compat.is_vLLM_available() is False
    assert compat.DEVICE_TYPE in ("cpu", "cuda")
    assert compat.__version__ == hasten.__version__
    compat.clear_gpu_memory()
    for patch in (compat.PatchDPOTrainer, compat.PatchKTOTrainer, compat.PatchFastRL):
        assert patch("GRPO", compat.FastLanguageModel) is None
    assert capsys.readouterr().err.count("nothing is patched") == 3


def test_importing_is_light():
    code = (
        "import sys, hasten, hasten.compat; hasten.compat.FastVisionModel; "
        "print([name for name in ('torch', 'transformers', 'trl', 'peft') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_without_trl():
    code = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'trl':\n"
        "            raise ModuleNotFoundError(\"No module named 'trl'\", name='trl')\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from hasten.errors import MissingPackageError\n"
        "from hasten import FastLanguageModel\n"
        "try:\n    from hasten import SFTTrainer\n"
        "except MissingPackageError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "hasten[trl]"' in done.stdout and "trl" in done.stdout

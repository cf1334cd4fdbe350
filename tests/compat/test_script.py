import sys
from types import ModuleType

import pytest

from compat.conftest import trl_that_trains
from hasten.compat.loaders import FastLanguageModel, FastModel
from hasten.compat.script import run_script
from hasten.compat.stand_ins import stand_ins
from hasten.errors import CapabilityError, ConfigError


@pytest.fixture
def script(tmp_path):
    def write(text, name="script.py"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_imports_of_notebooks(script, capsys):
    pytest.importorskip("trl")
    path = script(
        "import unsloth, unsloth.models.llama\n"
        "from unsloth import FastLanguageModel, FastModel, FastVisionModel, is_bfloat16_supported, is_bf16_supported\n"
        "from unsloth import get_chat_template, standardize_sharegpt, UnslothTrainer, UnslothTrainingArguments\n"
        "from unsloth import PatchDPOTrainer, PatchFastRL, vLLMSamplingParams, chat_templates\n"
        "from unsloth.chat_templates import get_chat_template, train_on_responses_only, standardize_data_formats\n"
        "from unsloth.chat_templates import CHAT_TEMPLATES, to_sharegpt, apply_chat_template\n"
        "from unsloth.trainer import UnslothVisionDataCollator, UnslothTrainer\n"
        "from unsloth.save import save_to_gguf\n"
        "from unsloth.dataprep import SyntheticDataKit\n"
        "from unsloth_zoo.utils import Version\n"
        "from unsloth_zoo.rl_replacements import anything\n"
        "from unsloth_zoo.vision_utils import fetch_image\n"
        "from trl import SFTTrainer, SFTConfig, ModelConfig\n"
        "from trl.trainer.utils import pad\n"
        "assert chat_templates.get_chat_template is get_chat_template\n"
        "assert Version('1.10') > Version('1.9')\n"
        "print(FastLanguageModel.__module__, SFTTrainer.__module__)\n"
        "print(ModelConfig.__module__.split('.')[0], unsloth.__version__)\n"
    )
    assert run_script(path).exit_code == 0
    import hasten

    expected = f"hasten.compat.loaders hasten.compat.trainer\ntrl {hasten.__version__}"
    assert capsys.readouterr().out.strip() == expected


def test_everything_is_as_before_afterwards(script):
    pytest.importorskip("trl")
    import trl
    import trl.trainer.sft_trainer

    before = dict(vars(trl)), list(sys.meta_path), list(sys.argv), list(sys.path)
    stock = trl.SFTTrainer, trl.SFTConfig
    seen = set(sys.modules)
    run_script(
        script("import unsloth.kernels\nfrom trl import SFTTrainer\nassert SFTTrainer.__module__[:6] == 'hasten'\n")
    )
    assert sys.modules["trl"] is trl
    assert (trl.SFTTrainer, trl.SFTConfig) == stock
    assert trl.trainer.sft_trainer.SFTTrainer is stock[0]
    assert {name: value for name, value in vars(trl).items() if name in before[0]} == before[0]
    assert (list(sys.meta_path), list(sys.argv), list(sys.path)) == before[1:]
    assert not [name for name in set(sys.modules) - seen if name.startswith("unsloth")]


def test_also_after_a_failure(script):
    with pytest.raises(RuntimeError, match="abc"):
        run_script(script("import unsloth\nraise RuntimeError('abc')\n"))
    assert not [name for name in sys.modules if name.startswith("unsloth")]


def test_the_real_one_is_not_used(script, monkeypatch, capsys):
    real = ModuleType("unsloth")
    monkeypatch.setitem(sys.modules, "unsloth", real)
    path = script("import unsloth\nprint(unsloth.FastModel.__module__)\n")
    run_script(path)
    said = capsys.readouterr()
    assert said.out.strip() == "hasten.compat.loaders"
    assert "hasten stands in for it" in said.err
    assert sys.modules["unsloth"] is real


def test_as_a_program(script, capsys):
    script("VALUE = 7\n", "neighbour.py")
    path = script("import sys, neighbour\nprint(__name__, sys.argv[1:], neighbour.VALUE, sys.argv[0] == __file__)\n")
    try:
        run_script(path, ["--steps", "3", "--json"])
    finally:
        sys.modules.pop("neighbour", None)
    assert capsys.readouterr().out.strip() == "__main__ ['--steps', '3', '--json'] 7 True"


@pytest.mark.parametrize(
    ("call", "code"), [("exit()", 0), ("exit(3)", 3), ("exit('no rows')", 1), ("exit(None)", 0), ("exit(True)", 1)]
)
def test_exit_code(script, call, code, capsys):
    assert run_script(script(f"import sys\nsys.{call}\n")).exit_code == code
    assert ("no rows" in capsys.readouterr().err) is ("no rows" in call)


def test_missing_script(tmp_path, script):
    script("", "train.py")
    with pytest.raises(ConfigError, match="tain.py: no such file.*Did you mean 'train.py'"):
        run_script(tmp_path / "tain.py")


def test_an_error_names_the_line(script, capsys):
    path = script("import unsloth\n\nunsloth.FastVisionModel.from_pretrained('x')\n")
    with pytest.raises(CapabilityError, match="FastVisionModel"):
        run_script(path)
    assert "script.py, line 3" in capsys.readouterr().err


def test_unknown_names_raise_when_used(script):
    run_script(script("from unsloth.kernels.fast_lora import apply_lora\nfrom unsloth import something\n"))
    with pytest.raises(CapabilityError, match="unsloth.something: used.*docs/compat.md"):
        run_script(script("from unsloth import something\nsomething()\n"))


@trl_that_trains
def test_metrics(script, tiny_model_folder):
    pytest.importorskip("trl")
    path = script(
        "from unsloth import FastModel, FastLanguageModel\n"
        "from trl import SFTTrainer, SFTConfig\n"
        "from datasets import Dataset\n"
        f"model, tokenizer = FastModel.from_pretrained({str(tiny_model_folder)!r}, load_in_4bit=False)\n"
        "model = FastLanguageModel.get_peft_model(model, r=4, loftq_config=None)\n"
        "rows = Dataset.from_dict({'text': ['the red dog'] * 4})\n"
        "args = SFTConfig(max_seq_length=32, max_steps=1, optim='adamw_torch')\n"
        "trainer = SFTTrainer(model=model, train_dataset=rows, tokenizer=tokenizer, args=args)\n"
        "assert type(trainer.args) is SFTConfig\n"
        "trainer.train()\n"
    )
    result = run_script(path)
    assert result.metrics and result.metrics["train_runtime"] > 0
    assert result.as_dict()["ok"] is True
    assert run_script(path.with_name("script.py").parent / "script.py").metrics
    quiet = path.with_name("quiet.py")
    quiet.write_text("")
    assert run_script(quiet).metrics is None


def test_stand_ins_nest():
    with stand_ins():
        with stand_ins():
            import unsloth
        import unsloth as outer
    assert unsloth.FastModel is FastModel and outer.FastLanguageModel is FastLanguageModel

"""What SFTTrainer says where trl is missing, is another than the one we know, or cannot be imported itself."""

import json
import subprocess
import sys

import pytest

from hasten.hardware.tested import NEWEST

# In a process of its own, because trl and what extends it are imported anew for each case.
PROGRAM = """
import importlib, json, sys
import hasten.hardware.tested, hasten.training.job, hasten.compat.loaders  # none of it asks for trl
from hasten.errors import MissingPackageError
said = {}
for folder in sys.argv[1:]:
    for name in [name for name in sys.modules if name.split(".")[0] == "trl" or name == "hasten.compat.trl_imports"]:
        del sys.modules[name]
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        importlib.import_module("hasten.compat.trl_imports")
    except MissingPackageError as error:
        said[folder] = [error.subject, error.value, error.rule, error.remedy]
    sys.path.remove(folder)
print(json.dumps(said))
"""
TRAINER = "trl/trainer/__init__.py"
OLDER = f"Run `pip install trl=={NEWEST['trl']}.*`."
CASES = {
    "no module": (
        {TRAINER: "", "trl/trainer/utils.py": ""},
        "trl 99.0 does not have what it needs: No module named 'trl.trainer.sft_config'",
        OLDER,
    ),
    "no name": (
        {TRAINER: "", "trl/trainer/sft_config.py": "Config = 1"},
        "trl 99.0 does not have what it needs: cannot import name 'SFTConfig' from 'trl.trainer.sft_config'",
        OLDER,
    ),
    "its own dependency": (
        {TRAINER: "import no_such_package"},
        "it needs no_such_package, which is not installed",
        "Run `pip install no_such_package`.",
    ),
    "missing": (
        {"trl/__init__.py": "raise ModuleNotFoundError('gone', name='trl')"},
        "it needs trl, which is not installed",
        'Run `pip install "hasten[trl]"`.',
    ),
    "another's private name": (
        {TRAINER: "from transformers import _NoSuchName"},
        "trl 99.0 cannot be imported here: cannot import name '_NoSuchName' from 'transformers'",
        f"Make `python -c 'import transformers'` work, or run `pip install trl=={NEWEST['trl']}.*`.",
    ),
}


@pytest.mark.slow
def test_one_sentence_each(tmp_path):
    for case, (files, *_) in CASES.items():
        stub = {
            "trl/__init__.py": "",
            "trl-99.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: trl\nVersion: 99.0\n",
        }
        for name, text in (stub | files).items():
            (tmp_path / case / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / case / name).write_text(text)
    folders = [str(tmp_path / case) for case in CASES]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    for case, (_, value, remedy) in CASES.items():
        found = said[str(tmp_path / case)]
        assert found[1].startswith(value)
        assert [found[0], found[2], found[3]] == [
            "SFTTrainer",
            "SFTTrainer is trl's, with older argument names accepted.",
            remedy,
        ]

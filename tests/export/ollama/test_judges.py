"""Others' word on templates: llama.cpp renders the chat template, Go the translation, and some are published by Ollama.

llama.cpp (`xllamacpp`) gets the Jinja text in a GGUF file and renders conversations with an engine of its own, which
knows nothing of transformers; ours goes through the Go template. Go's own text/template renders that one, too. npm's
`@huggingface/ollama-utils` gives the template that Ollama's library publishes for a known chat template, written by
hand; where these differ from the chat template, the difference and its reason are recorded here.
"""

import http.client
import json
import shutil
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from transformers import AddedToken

from hasten.data.generation_tag import without_markers
from hasten.data.named_templates import STOPS, named_template
from hasten.data.templates import ChatEncoder
from hasten.export.ollama.go_template import GoTemplate
from hasten.export.ollama.prompt import ollama_prompt
from hasten.export.ollama.proof import CONTENTS, conversations
from hasten.export.ollama.tool_proof import with_thinking, with_tools
from hasten.export.ollama.translate import translate
from support import gguf_files, judges, tiny

SYSTEM, USER, ANSWER, AGAIN = (
    {"role": role, "content": text}
    for role, text in (("system", "Sys text"), ("user", "Q one"), ("assistant", "An answer"), ("user", "Q two"))
)
PROBES = {"u": [USER], "su": [SYSTEM, USER], "uau": [USER, ANSWER, AGAIN], "suau": [SYSTEM, USER, ANSWER, AGAIN]}
# For these templates blanks around contents are taken off, which Go cannot do: contents without such are compared.
TRIMMING = {"gemma", "llama-3", "llama-3.1", "mistral"}


def prompts_of_llama_cpp(file, talks):
    """The prompts that llama.cpp's server makes of conversations with the chat template in a GGUF file."""
    xllamacpp = judges.package("xllamacpp")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_ctx, parameters.cpuparams.n_threads, parameters.warmup, parameters.use_jinja = 64, 1, False, True
    server = xllamacpp.Server(parameters)
    connection = http.client.HTTPConnection(server.listening_address.removeprefix("http://"))
    made = []
    for talk in talks:
        body = json.dumps({"messages": talk})
        connection.request("POST", "/apply-template", body, {"Content-Type": "application/json"})
        made.append(json.loads(connection.getresponse().read())["prompt"])
    connection.close()
    del server
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", STOPS)
def test_llama_cpp_renders_the_named_templates_as_ollama_will(name, tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = without_markers(named_template(name)[0])
    file = gguf_files.write_llama(tmp_path / "m.gguf", tiny.llama(), tokenizer)
    template = GoTemplate(translate(ChatEncoder(tokenizer), adds_bos=False).template)
    edged = {what for what, content in CONTENTS.items() if content != content.strip()} if name in TRIMMING else set()
    talks = [talk for what, talk in conversations() if what not in edged]
    assert len(talks) > 200
    days = (datetime.now(UTC).date() + timedelta(days=shift) for shift in (-1, 0, 1))
    today = [f"{day:%d %b %Y}" for day in days]  # llama.cpp sets what the template of Llama 3.1 calls date_string
    for talk, theirs in zip(talks, prompts_of_llama_cpp(file, talks), strict=True):
        if name == "llama-3.1":
            for day in today:
                theirs = theirs.replace(f"Today Date: {day}", "Today Date: 26 Jul 2024")
        assert ollama_prompt(template, talk) == theirs


@pytest.mark.slow
def test_llama_cpp_renders_the_embedded_models_template_as_ollama_will(demo_tokenizer, tmp_path):
    model = tiny.llama(vocab=len(demo_tokenizer))
    file = gguf_files.write_llama(tmp_path / "m.gguf", model, demo_tokenizer)
    template = GoTemplate(translate(ChatEncoder(demo_tokenizer)).template)
    talks = [talk for _, talk in conversations()]
    assert [ollama_prompt(template, talk) for talk in talks] == prompts_of_llama_cpp(file, talks)


@pytest.mark.slow
def test_go_renders_translated_templates_as_ours_does(go_judge, demo_tokenizer):
    templates = [demo_tokenizer.chat_template, *(named_template(name)[0] for name in STOPS)]
    cases, ours = [], []
    for chat_template in templates:
        tokenizer = tiny.tokenizer()
        tokenizer.chat_template = chat_template
        text = translate(ChatEncoder(tokenizer)).template
        template = GoTemplate(text)
        for _, talk in conversations():
            cases.append({"template": text, "messages": talk})
            ours.append(ollama_prompt(template, talk))
        for probe in [*with_tools(CONTENTS), *with_thinking()] if "tools" in template.names() else []:
            given = {"messages": probe.messages, "tools": probe.tools, "think": probe.think}
            cases.append({"template": text, **given})
            ours.append(ollama_prompt(template, probe.messages, probe.tools, probe.think))
    assert [(one["text"], one["error"]) for one in go_judge(cases)] == [(text, "") for text in ours]


# The probe conversations on which Ollama's published template writes the same, and why it differs on the others.
AGREED = {
    "alpaca": "",  # one newline in place of two around the headers, and no end token behind answers
    "chatml": "u su uau suau",
    "deepseek": "u su uau suau",
    "gemma": "u uau",  # the system text is a user turn of its own there
    "llama-3": "u su uau suau",
    "llama-3.1": "",  # the header with the dates is left out there
    "mistral": "",  # that of a newer tokenizer (v7), with other blanks and tokens
    "phi-3": "u su",  # no newline behind answers there
    "phi-4": "",  # newlines behind <|im_sep|> and <|im_end|> there
    "qwen-2.5": "u su uau suau",
    "qwen-3": "",  # that of the thinking model, which opens <think> for the answer
    "vicuna": "",  # converted by a rule: a blank behind the last header, and the begin token written
    "zephyr": "u su uau suau",
    "smollm2": "u su uau suau",
}
SCRIPT = """
const { convertGGUFTemplateToOllama } = require("@huggingface/ollama-utils");
const given = JSON.parse(require("fs").readFileSync(0, "utf8"));
const made = Object.entries(given).map(([name, one]) => [name, convertGGUFTemplateToOllama(one).ollama.template]);
process.stdout.write(JSON.stringify(Object.fromEntries(made)));
"""


@pytest.fixture(scope="module")
def published():
    """What npm's package makes of the named templates and the embedded model's."""
    if shutil.which("node") is None:
        judges.absent("node", "node is not there")
    probe = subprocess.run(
        ["node", "-e", "require.resolve('@huggingface/ollama-utils')"], capture_output=True, check=False
    )
    if probe.returncode:
        judges.absent(
            "node", "node finds no @huggingface/ollama-utils (npm install it, and name its folder in NODE_PATH)"
        )

    def convert(texts):
        given = {name: {"chat_template": text, "bos_token": "<B>", "eos_token": "<E>"} for name, text in texts.items()}
        done = subprocess.run(
            ["node", "-e", SCRIPT],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=True,
        )
        return json.loads(done.stdout)

    return convert


@pytest.mark.slow
def test_the_templates_that_ollama_publishes(published, demo_tokenizer):
    texts = {name: without_markers(named_template(name)[0]) for name in STOPS}
    texts["smollm2"] = demo_tokenizer.chat_template
    made = published(texts)
    agreed = {}
    for name, text in texts.items():
        tokenizer = tiny.tokenizer()
        tokenizer.add_tokens([AddedToken(token, special=True) for token in ("<B>", "<E>")])
        tokenizer.bos_token, tokenizer.eos_token, tokenizer.chat_template = "<B>", "<E>", text
        ours = translate(ChatEncoder(tokenizer), adds_bos=True)
        theirs = GoTemplate(made[name])
        shapes = []
        for shape, talk in PROBES.items():
            # They have no default system text in the template: it is in the Modelfile's SYSTEM, as it is in ours.
            with_system = (
                [{"role": "system", "content": ours.system}, *talk] if ours.system and shape[0] != "s" else talk
            )
            if ollama_prompt(theirs, with_system) == ollama_prompt(GoTemplate(ours.template), talk):
                shapes.append(shape)
        agreed[name] = " ".join(shapes)
    assert agreed == AGREED

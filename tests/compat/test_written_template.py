import pytest

from hasten.compat.written_template import parse_written
from hasten.errors import ConfigError

CONTROLS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|bot|>")


def parsed(text, ends=("</s>",), bos="<s>", keep_bos=False):
    return parse_written(text, ends, CONTROLS, bos, keep_bos=keep_bos)


def fields(written):
    return written.before, written.opening, written.header, written.end, written.between, written.tail


TURN = "<|im_start|>user\n{INPUT}<|im_end|>\n<|im_start|>assistant\n{OUTPUT}<|im_end|>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # two exchanges say themselves what stands between them; answers get the end token
        (
            "{SYSTEM}\n\nQ: {INPUT}\nA: {OUTPUT}\n\nQ: {INPUT}\nA: {OUTPUT}",
            ("", "\n\nQ: ", "\nA: ", "</s>", "\n\nQ: ", ""),
        ),
        # the end is in the example, in both answers or only behind the last
        ("Q: {INPUT} A: {OUTPUT}</s>Q: {INPUT} A: {OUTPUT}</s>\n", ("", "Q: ", " A: ", "</s>", "Q: ", "\n")),
        ("Q: {INPUT} A: {OUTPUT} Q: {INPUT} A: {OUTPUT}</s>", ("", "Q: ", " A: ", "</s>", " Q: ", "")),
        ("Q: {INPUT} A: {OUTPUT} </s>Q: {INPUT} A: {OUTPUT} </s>", ("", "Q: ", " A: ", " </s>", "Q: ", "")),
        # one exchange is repeated, from behind the system text
        ("{SYSTEM}\nQ: {INPUT}\nA: {OUTPUT}", ("", "\nQ: ", "\nA: ", "</s>", "\nQ: ", "")),
        ("Q: {INPUT}\nA: {OUTPUT}\n", ("", "Q: ", "\nA: ", "</s>", "\nQ: ", "\n")),
        # a control token that ends questions ends answers too; one that begins them does not
        (f"{TURN}\n{TURN}\n", ("", "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>",
                               "\n<|im_start|>user\n", "\n")),
        ("<|user|>{INPUT}<|bot|>{OUTPUT}<|user|>{INPUT}<|bot|>{OUTPUT}", ("", "<|user|>", "<|bot|>", "</s>",
                                                                        "<|user|>", "")),
        # the system turn ends like an answer: its end is not repeated
        (f"<|im_start|>system\n{{SYSTEM}}<|im_end|>\n{TURN}\n", ("<|im_start|>system\n",
         "<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>",
         "\n<|im_start|>user\n", "\n")),
        # the begin token is not part of what is repeated
        ("<s>Q: {INPUT} A: {OUTPUT}", ("", "Q: ", " A: ", "</s>", "Q: ", "")),
    ],
)  # fmt: skip
def test_examples_are_taken_apart(text, expected):
    assert fields(parsed(text)) == expected


def test_a_begin_token_that_nobody_adds_stays_once():
    assert fields(parsed("<s>Q: {INPUT} A: {OUTPUT}", keep_bos=True)) == ("<s>", "Q: ", " A: ", "</s>", "Q: ", "")


def test_the_texts_before_questions_and_answers():
    written = parsed("{SYSTEM}\n\nQ: {INPUT}\nA: {OUTPUT}\n\nQ: {INPUT}\nA: {OUTPUT}")
    assert (written.instruction_part, written.response_part) == ("\n\nQ: ", "\nA:")
    assert parsed("{INPUT} => {OUTPUT}\n").instruction_part == ""


def test_ollamas_file():
    written = parsed("<s>Tools {{x}}.\n{SYSTEM}\nQ: {INPUT}\nA: {OUTPUT}")
    assert written.modelfile("Be brief.", ["</s>", "<|im_end|>"]) == (
        "FROM ./model.gguf\n"
        'TEMPLATE """{{ $first := true }}{{ range .Messages }}{{ if eq .Role "user" }}'
        '{{ if $first }}Tools {{ "{{" }}x}}.\n{{ $.System }}\nQ: {{ $first = false }}{{ else }}\nQ: {{ end }}'
        '{{ .Content }}\nA:{{ else if eq .Role "assistant" }} {{ .Content }}</s>{{ end }}{{ end }}"""\n'
        'SYSTEM """Be brief."""\n'
        'PARAMETER stop "</s>"\nPARAMETER stop "<|im_end|>"\n'
    )
    assert "SYSTEM" not in parsed("Q: {INPUT}\nA: {OUTPUT}").modelfile("Be brief.", ["</s>"])


@pytest.mark.parametrize(
    ("text", "value", "remedy"),
    [
        ("hello", "no places in 'hello'", "Write one or two exchanges"),
        ("{INPUT} only", "{INPUT}", "Write one or two exchanges"),
        ("{OUTPUT} x {INPUT}", "{OUTPUT} {INPUT}", "Write one or two exchanges"),
        ("Q {INPUT} A {OUTPUT} {SYSTEM}", "{INPUT} {OUTPUT} {SYSTEM}", "Write one or two exchanges"),
        ("Q {INPUT} A {OUTPUT} Q {INPUT}", "{INPUT} {OUTPUT} {INPUT}", "Write one or two exchanges"),
        ("Q {INPUTS} A {OUTPUT}", "'{INPUTS}'", "Did you mean 'INPUT'"),
        ("Q {INPUT} {OUTPUT}", r"no text between {INPUT} and {OUTPUT}", "Write a header"),
        ("Q {INPUT} A {OUTPUT} Q {INPUT} B {OUTPUT}", "' A ' and ' B '", "Write the same"),
        ("Q {INPUT}<|im_end|>A {OUTPUT}<|im_end|>Q {INPUT}<|im_end|>A {OUTPUT}</s>", "'<.im_end.>' and '</s>'",
         "the same token"),
    ],
)  # fmt: skip
def test_examples_that_cannot_be_read_are_refused(text, value, remedy):
    with pytest.raises(ConfigError, match=f"chat_template: {value}.*{remedy}"):
        parsed(text)


def test_an_answer_must_end():
    with pytest.raises(ConfigError, match="no end of an answer.*extra_eos_tokens"):
        parsed("Q {INPUT} A {OUTPUT}", ends=())


@pytest.mark.parametrize(
    ("text", "system"), [('{SYSTEM}""" {INPUT} A {OUTPUT}', "s"), ("{SYSTEM} {INPUT} A {OUTPUT}", '"""')]
)
def test_three_quotes_do_not_fit_ollamas_file(text, system):
    with pytest.raises(ConfigError, match='""" in it.*Modelfile.*Use other quotes'):
        parsed(text).modelfile(system, ["</s>"])

"""Templates of Go's language: every expected text here follows from https://pkg.go.dev/text/template."""

import pytest

from hasten.errors import ModelError
from hasten.export.ollama.go_template import GoTemplate
from hasten.export.ollama.go_values import Shown, ShownList, Struct, go_json

DATA = {
    "Name": "Ada",
    "Empty": "",
    "Zero": 0,
    "Two": 2,
    "No": False,
    "Nothing": None,
    "List": ["a", "b", "c"],
    "None": [],
    "Map": {"b": 2, "a": 1},
    "Pair": Struct({"Left": "l", "Right": Struct({"Deep": "d"})}),
    "Umlaut": "aé",
}


def rendered(template, **data):
    return GoTemplate(template).render({**DATA, **data})


VALUES = [
    ("plain } text {", "plain } text {"),
    ("a {{ .Name }} b", "a Ada b"),
    ("{{.Name}}{{.Two}}{{.No}}", "Ada2false"),
    ('{{ "quoted \\"x\\"\\n\\u00e9\\x41\\101" }}', 'quoted "x"\néAA'),
    ("{{ `raw \\n` }}", "raw \\n"),
    ("{{ 'a' }} {{ 0x10 }} {{ 1_000 }} {{ -3 }} {{-3}}", "97 16 1000 -3 -3"),
    ("{{ .Pair.Left }}{{ .Pair.Right.Deep }}{{ (.Pair).Right.Deep }}", "ldd"),
    ("{{ $.Name }}{{ $ | len }}", f"Ada{len(DATA)}"),
    ("{{ .Missing }}", "<no value>"),
    ("{{ .List }} {{ .Map }}", "[a b c] map[a:1 b:2]"),
    ("{{ true }}{{ print nil }}", "true<nil>"),
]


@pytest.mark.parametrize(("template", "text"), VALUES)
def test_values(template, text):
    assert rendered(template) == text


TRIMMING = [
    # The example of the documentation: "{{23 -}} < {{- 45}}" is "23<45".
    ("{{23 -}} < {{- 45}}", "23<45"),
    ("a \n\t {{- .Name -}} \r\n b", "aAdab"),
    ("a {{/* a comment */}} b", "a  b"),
    ("a {{- /* a\ncomment */ -}} b", "ab"),
    ("a\u00a0{{- .Name }}", "a\u00a0Ada"),  # only blanks, tabs, carriage returns and newlines are trimmed
    ("{{ if .Name }} x {{ end -}}  y", " x y"),
]


@pytest.mark.parametrize(("template", "text"), TRIMMING)
def test_trimming(template, text):
    assert rendered(template) == text


CONTROL = [
    ("{{ if .Name }}yes{{ end }}", "yes"),
    ("{{ if .Empty }}yes{{ else }}no{{ end }}", "no"),
    ("{{ if .Zero }}1{{ else if .No }}2{{ else if .Nothing }}3{{ else if .None }}4{{ else }}5{{ end }}", "5"),
    ("{{ if .Zero }}1{{ else if .Two }}2{{ else }}3{{ end }}", "2"),
    ("{{ if .Missing }}yes{{ else }}no{{ end }}", "no"),
    ("{{ if .Pair }}structs are true{{ end }}", "structs are true"),
    ("{{ range .List }}<{{ . }}>{{ end }}", "<a><b><c>"),
    ("{{ range $x := .List }}{{ $x }}{{ . }}{{ end }}", "aabbcc"),
    ("{{ range $i, $x := .List }}{{ $i }}{{ $x }}{{ end }}", "0a1b2c"),
    ("{{ range $k, $v := .Map }}{{ $k }}{{ $v }}{{ end }}", "a1b2"),
    ("{{ range .None }}x{{ else }}none{{ end }}{{ range .Nothing }}x{{ else }}nil{{ end }}", "nonenil"),
    ("{{ range 3 }}{{ . }}{{ end }}", "012"),
    ('{{ range .List }}{{ if eq . "b" }}{{ continue }}{{ end }}{{ . }}{{ end }}', "ac"),
    ('{{ range .List }}{{ if eq . "b" }}{{ break }}{{ end }}{{ . }}{{ end }}', "a"),
    ("{{ range $i, $x := .None }}{{ else }}{{ $x }}{{ end }}", "[]"),
    ("{{ range .List }}{{ range $.None }}{{ else }}{{ break }}{{ end }}{{ . }}{{ end }}", "abc"),
    ("{{ range .List }}{{ range $.None }}{{ else }}{{ continue }}{{ end }}{{ . }}{{ end }}", ""),
    ("{{ with .Name }}{{ . }}{{ $.Two }}{{ end }}{{ with .Empty }}x{{ else }}-{{ end }}", "Ada2-"),
    ("{{ with $x := .Two }}{{ $x }}{{ . }}{{ end }}", "22"),
    ("{{ with .Empty }}x{{ else with .Name }}{{ . }}{{ end }}", "Ada"),
]


@pytest.mark.parametrize(("template", "text"), CONTROL)
def test_control(template, text):
    assert rendered(template) == text


VARIABLES = [
    ("{{ $x := .Name }}{{ $x }}", "Ada"),
    ("{{ $x := 1 }}{{ if true }}{{ $x := 2 }}{{ $x }}{{ end }}{{ $x }}", "21"),
    ("{{ $x := 1 }}{{ if true }}{{ $x = 2 }}{{ end }}{{ $x }}", "2"),
    ("{{ $x := false }}{{ range .List }}{{ if $x }},{{ end }}{{ $x = true }}{{ . }}{{ end }}", "a,b,c"),
    ("{{ range .List }}{{ $y := . }}{{ $y }}{{ end }}", "abc"),
]


@pytest.mark.parametrize(("template", "text"), VARIABLES)
def test_variables(template, text):
    assert rendered(template) == text


FUNCTIONS = [
    ("{{ and .Name .Two }}{{ and .Name .Empty }}{{ and .Zero .Missing.Field }}", "20"),
    ("{{ or .Empty .Name }}{{ or .Two .Missing.Field }}{{ or .Empty .Zero }}", "Ada20"),
    ("{{ not .Empty }}{{ not .Name }}", "truefalse"),
    ('{{ eq .Name "Ada" }}{{ eq .Two 1 2 3 }}{{ eq .Two 1 3 }}{{ ne .Two 1 }}', "truetruefalsetrue"),
    ("{{ lt 1 2 }}{{ le 2 2 }}{{ gt 1 2 }}{{ ge 1 2 }}", "truetruefalsefalse"),
    ('{{ lt "a" "b" }}', "true"),
    ("{{ len .List }}{{ len .Name }}{{ len .Map }}{{ len .Umlaut }}", "3323"),
    ('{{ index .List 1 }}{{ index .Map "b" }}{{ index .Name 0 }}', "b265"),
    ("{{ slice .List 1 }}{{ slice .List 0 1 }}{{ slice .Name 1 2 }}{{ slice .Umlaut 1 }}", "[b c][a]dé"),
    ("{{ len (slice .List 1) }}{{ eq (len (slice .List 2)) 1 }}", "2true"),
    ('{{ printf "%s-%d-%v-%q-%t%%" "a" 7 "b" "c" true }}', 'a-7-b-"c"-true%'),
    ('{{ printf "%5s|%-5s|%03d" "a" "b" 7 }}', "    a|b    |007"),
    ('{{ print "a" 1 2 "b" }}{{ println "c" 3 }}', "a1 2bc 3\n"),
    ('{{ .Name | printf "%s!" }}{{ .Name | len | eq 3 }}', "Ada!true"),
    ('{{ if and (eq .Name "Ada") (gt .Two 1) }}both{{ end }}', "both"),
    ("{{ (index .List 0) }}", "a"),
    ("{{ json .Map }}", '{"a":1,"b":2}'),
    ('{{ print .Nothing .Nothing }}{{ println nil 1 }}{{ printf "%v" nil }}', "<nil> <nil><nil> 1\n<nil>"),
    ('{{ printf "a%*s|%-*s|" 3 "b" 2 "c" }}', "a  b|c |"),
    ('{{ printf "%x|%5d|%-5d|%+d|%05.1f" 255 7 7 7 1.5 }}', "ff|    7|7    |+7|001.5"),
    ("{{ json .Name }}", '"Ada"'),
]


@pytest.mark.parametrize(("template", "text"), FUNCTIONS)
def test_functions(template, text):
    assert rendered(template) == text


def test_what_is_written_as_json():
    call = Shown({"city": "Oslo & <x>", "n": [1, 2.5, None]})
    tool = Struct({"Name": "f"}, {"name": "f"})
    data = {"Call": call, "Tools": ShownList([tool])}
    template = "{{ .Call }} {{ .Tools }} {{ range .Tools }}{{ .Name }}{{ . }}{{ end }}"
    escaped = '{"city":"Oslo \\u0026 \\u003cx\\u003e","n":[1,2.5,null]}'
    assert GoTemplate(template).render(data) == f'{escaped} [{{"name":"f"}}] f{{"name":"f"}}'
    assert go_json([tool]) == '[{"name":"f"}]'


UNREADABLE = [
    ("{{ .Name", "without its end"),
    ("{{ if .Name }}x", "{{ end }}"),
    ("x{{ end }}", "'{{ end }}' without a beginning"),
    ("{{ else }}", "'{{ else }}' without a beginning"),
    ("{{ if .Name }}1{{ else }}2{{ else }}3{{ end }}", "else"),
    ("{{ $x }}", "undefined variable '$x'"),
    ("{{ if true }}{{ $x := 1 }}{{ end }}{{ $x }}", "undefined variable '$x'"),
    ("{{ $x = 1 }}", "undefined variable '$x'"),
    ('{{ template "x" }}', "'template'"),
    ('{{ define "x" }}{{ end }}', "'define'"),
    ('{{ block "x" . }}{{ end }}', "'block'"),
    ("{{ trim .Name }}", "'trim'"),
    ("{{ break }}", "'break' outside a range"),
    ("{{ .Name ! }}", "'! }}'"),
    ("{{ }}", "without a value"),
    ("{{ (len .Name }}", "without its ')'"),
    ("{{ .Name .Two }}", "no function"),
    ("{{ .Name | .Two }}", "no function"),
    ('{{ "a\\q" }}', "no escape"),
    ("{{ if .Name }}{{ else with .Name }}{{ end }}", "'with'"),
    ("{{ range .List }}{{ else if .Name }}{{ end }}", "'if'"),
    ("{{ nil | print }}", "'nil'"),
    ("{{ /* no comment */ }}", "where an action should go on"),
    ("{{ $a, $b := .Map }}", "undefined variable '$a'"),
]


@pytest.mark.parametrize(("template", "named"), UNREADABLE)
def test_templates_that_cannot_be_read(template, named):
    with pytest.raises(ModelError) as caught:
        GoTemplate(template)
    assert named in caught.value.value
    assert "text/template" in caught.value.remedy


UNRUNNABLE = [
    ("{{ .Pair.Middle }}", "no field 'Middle'"),
    ("{{ .Name.Field }}", "field 'Field' of a string"),
    ("{{ eq .Name 1 }}", "string and int are compared"),
    ("{{ lt .Name 1 }}", "string and int are ordered"),
    ("{{ index .List 3 }}", "index 3"),
    ("{{ index .Map 1 }}", "int as the key"),
    ("{{ slice .Name 2 1 }}", "from 2 to 1"),
    ("{{ slice .Umlaut 2 }}", "through the bytes"),
    ("{{ len .Two }}", "length of a int"),
    ("{{ range .Name }}{{ end }}", "range over a str"),
    ("{{ range $i, $x := 3 }}{{ end }}", "one variable"),
    ("{{ .Nothing.Field }}", "field 'Field' of a nil"),
    ("{{ if .Empty }}{{ $x := 1 }}{{ else }}{{ $x }}{{ end }}", "variable '$x' without a value"),
    ("{{ not 1 2 }}", "'not' with 2 arguments"),
    ("{{ eq 1 }}", "'eq' with 1 arguments"),
    ("{{ and }}", "'and' without arguments"),
    ('{{ printf "%d" "a" }}', "'%d' of a string"),
    ('{{ printf "%s" }}', "'%s' without a value"),
    ('{{ printf "a" 1 }}', "format 'a'"),
    ("{{ .Pair }}", "written as text"),
    ('{{ printf "%q" "a\u200b" }}', "not printable"),
    ("{{ 1.5 }}", "written as text"),
    ("{{ json .Pair }}", "as JSON"),
]


@pytest.mark.parametrize(("template", "named"), UNRUNNABLE)
def test_templates_that_cannot_be_run(template, named):
    with pytest.raises(ModelError) as caught:
        rendered(template)
    assert named in caught.value.value


# What Go takes and hasten does not: where it is not sure of the text, or has no use for it.
STRICTER = {
    '{{ define "x" }}{{ end }}',
    '{{ block "x" . }}{{ end }}',
    "{{ .Pair.Middle }}",  # Go has no fixed fields here: the data are maps
    "{{ slice .Umlaut 2 }}",
    '{{ printf "%d" "a" }}',
    '{{ printf "%s" }}',
    '{{ printf "a" 1 }}',
    '{{ printf "%q" "a\u200b" }}',
    "{{ .Pair }}",
    "{{ 1.5 }}",
    "{{ json .Pair }}",
}


@pytest.mark.slow
def test_go_itself_says_the_same(go_judge):
    expected = [*VALUES, *TRIMMING, *CONTROL, *VARIABLES, *FUNCTIONS]
    made = go_judge([{"template": template, "data": DATA} for template, _ in expected])
    assert [(template, one["text"], one["error"]) for (template, _), one in zip(expected, made, strict=True)] == [
        (template, text, "") for template, text in expected
    ]
    refused = [template for template, _ in (*UNREADABLE, *UNRUNNABLE)]
    made = go_judge([{"template": template, "data": DATA} for template in refused])
    assert {template for template, one in zip(refused, made, strict=True) if not one["error"]} == STRICTER


def test_names_are_those_of_fields_and_variables():
    template = "{{ if .A }}{{ range $x, $_ := .B.C }}{{ (len .D) | eq $x.E }}{{ end }}{{ else }}{{ .F }}{{ end }}"
    assert {"a", "b", "c", "d", "e", "f"} <= GoTemplate(template).names()

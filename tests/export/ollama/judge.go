// Renders templates with Go's own text/template, set up as Ollama's documentation describes its templates: a function
// json, missing keys without an error, and the variables System, Messages, Tools, Response and those of thinking. Cases
// come as JSON on standard input: a template with data, or with a conversation. Tools have the fields that Ollama's API
// has, of an argument as well; others of a schema are lost.
package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type call struct {
	Function struct {
		Name      string         `json:"name"`
		Arguments map[string]any `json:"arguments"`
	} `json:"function"`
}

type message struct {
	Role      string `json:"role"`
	Content   string `json:"content"`
	Thinking  string `json:"reasoning_content"`
	ToolCalls []call `json:"tool_calls"`
}

type property struct {
	AnyOf       []property          `json:"anyOf,omitempty"`
	Type        any                 `json:"type,omitempty"`
	Items       any                 `json:"items,omitempty"`
	Description string              `json:"description,omitempty"`
	Enum        []any               `json:"enum,omitempty"`
	Properties  map[string]property `json:"properties,omitempty"`
	Required    []string            `json:"required,omitempty"`
}

type tool struct {
	Type     string `json:"type"`
	Function struct {
		Name        string `json:"name"`
		Description string `json:"description"`
		Parameters  struct {
			Type       string              `json:"type"`
			Required   []string            `json:"required,omitempty"`
			Properties map[string]property `json:"properties"`
		} `json:"parameters"`
	} `json:"function"`
}

type given struct {
	Template string          `json:"template"`
	Data     json.RawMessage `json:"data"`
	Messages []message       `json:"messages"`
	Tools    []tool          `json:"tools"`
	Think    *bool           `json:"think"`
}

type made struct {
	Text  string `json:"text"`
	Error string `json:"error"`
}

// whole turns the numbers of JSON into integers where they are whole.
func whole(value any) any {
	switch v := value.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return int(n)
		}
		f, _ := v.Float64()
		return f
	case []any:
		for i := range v {
			v[i] = whole(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = whole(v[k])
		}
	}
	return value
}

func render(one given) made {
	asJSON := func(v any) string { b, _ := json.Marshal(v); return string(b) }
	parsed, err := template.New("").Option("missingkey=zero").Funcs(template.FuncMap{"json": asJSON}).Parse(one.Template)
	if err != nil {
		return made{Error: err.Error()}
	}
	var data any
	if one.Data != nil {
		decoder := json.NewDecoder(bytes.NewReader(one.Data))
		decoder.UseNumber()
		if err := decoder.Decode(&data); err != nil {
			return made{Error: err.Error()}
		}
		data = whole(data)
	} else {
		var system []string
		var messages []*message
		for i := range one.Messages {
			if one.Messages[i].Role == "system" {
				system = append(system, one.Messages[i].Content)
			}
			messages = append(messages, &one.Messages[i])
		}
		data = map[string]any{
			"System": strings.Join(system, "\n\n"), "Messages": messages, "Tools": one.Tools, "Response": "",
			"IsThinkSet": one.Think != nil, "Think": one.Think != nil && *one.Think,
		}
	}
	var text bytes.Buffer
	if err := parsed.Execute(&text, data); err != nil {
		return made{Error: err.Error()}
	}
	return made{Text: text.String()}
}

func main() {
	var cases []given
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	results := []made{}
	for _, one := range cases {
		results = append(results, render(one))
	}
	if err := json.NewEncoder(os.Stdout).Encode(results); err != nil {
		panic(err)
	}
}

package docs_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/config"
)

// gateNode is as much of JSON schema as gate.schema.json uses.
type gateNode struct {
	Ref        string               `json:"$ref"`
	Type       string               `json:"type"`
	Const      string               `json:"const"`
	Pattern    string               `json:"pattern"`
	Enum       []string             `json:"enum"`
	MinItems   int                  `json:"minItems"`
	MinLength  int                  `json:"minLength"`
	Minimum    *int                 `json:"minimum"`
	Maximum    *int                 `json:"maximum"`
	Additional *bool                `json:"additionalProperties"`
	Required   []string             `json:"required"`
	OneOf      []*gateNode          `json:"oneOf"`
	Dependent  map[string][]string  `json:"dependentRequired"`
	Properties map[string]*gateNode `json:"properties"`
	Items      *gateNode            `json:"items"`
	Defs       map[string]*gateNode `json:"$defs"`
	Text       string               `json:"description"`
	Title      string               `json:"title"`
	ID         string               `json:"$id"`
	Schema     string               `json:"$schema"`
}

func gateSchema(t *testing.T) *gateNode {
	t.Helper()
	var root gateNode
	d := json.NewDecoder(strings.NewReader(read(t, "gate.schema.json")))
	d.DisallowUnknownFields()
	if err := d.Decode(&root); err != nil {
		t.Fatal(err)
	}
	return &root
}

// TestGateSchemaFields: the schema has the keys that osctl reads, with their types.
func TestGateSchemaFields(t *testing.T) {
	root := gateSchema(t)
	fields := 0
	var compare func(path string, typ reflect.Type, n *gateNode)
	compare = func(path string, typ reflect.Type, n *gateNode) {
		if n != nil && n.Ref != "" {
			n = root.Defs[strings.TrimPrefix(n.Ref, "#/$defs/")]
		}
		if n == nil {
			t.Errorf("%s: the schema has nothing for it", path)
			return
		}
		want := map[reflect.Kind]string{reflect.String: "string", reflect.Int: "integer", reflect.Slice: "array", reflect.Struct: "object"}[typ.Kind()]
		if typ == reflect.TypeFor[config.Duration]() {
			want = "string"
		}
		if n.Type != want {
			t.Errorf("%s: type %q in the schema, %q in Go", path, n.Type, want)
		}
		switch want {
		case "array":
			compare(path+"[]", typ.Elem(), n.Items)
		case "object":
			if n.Additional == nil || *n.Additional {
				t.Errorf("%s: the schema allows other keys", path)
			}
			known := len(n.Properties)
			for f := range typ.Fields() {
				fields++
				known--
				compare(path+"."+f.Tag.Get("yaml"), f.Type, n.Properties[f.Tag.Get("yaml")])
			}
			if known != 0 {
				t.Errorf("%s: the schema has %d keys more", path, known)
			}
		}
	}
	compare("gate", reflect.TypeFor[config.Health](), root)
	if fields < 20 {
		t.Errorf("only %d keys were compared", fields)
	}
}

// valid applies the schema to what YAML gave.
func (n *gateNode) valid(root *gateNode, at string, v any) error {
	if n.Ref != "" {
		n = root.Defs[strings.TrimPrefix(n.Ref, "#/$defs/")]
	}
	switch v := v.(type) {
	case map[string]any:
		return n.validObject(root, at, v)
	case []any:
		if n.Type != "array" || len(v) < n.MinItems {
			return fmt.Errorf("%s: a list of %d", at, len(v))
		}
		for i, item := range v {
			if err := n.Items.valid(root, fmt.Sprintf("%s[%d]", at, i), item); err != nil {
				return err
			}
		}
	case string:
		switch {
		case n.Type != "string", n.Const != "" && n.Const != v, len(v) < n.MinLength, n.Enum != nil && !slices.Contains(n.Enum, v),
			n.Pattern != "" && !regexp.MustCompile(n.Pattern).MatchString(v):
			return fmt.Errorf("%s: text %q", at, v)
		}
	case uint64:
		if n.Type != "integer" || n.Minimum != nil && int(v) < *n.Minimum || n.Maximum != nil && int(v) > *n.Maximum { //nolint:gosec // small
			return fmt.Errorf("%s: number %d", at, v)
		}
	default:
		return fmt.Errorf("%s: %T", at, v)
	}
	return nil
}

func (n *gateNode) validObject(root *gateNode, at string, v map[string]any) error {
	if n.Type != "object" {
		return fmt.Errorf("%s: a mapping", at)
	}
	for _, name := range n.Required {
		if _, ok := v[name]; !ok {
			return fmt.Errorf("%s: no %s", at, name)
		}
	}
	kinds := 0
	for _, one := range n.OneOf {
		if _, ok := v[one.Required[0]]; ok {
			kinds++
		}
	}
	if n.OneOf != nil && kinds != 1 {
		return fmt.Errorf("%s: %d of those of which one is allowed", at, kinds)
	}
	for name, value := range v {
		p := n.Properties[name]
		if p == nil {
			return fmt.Errorf("%s: unknown %s", at, name)
		}
		for _, other := range n.Dependent[name] {
			if _, ok := v[other]; !ok {
				return fmt.Errorf("%s: %s without %s", at, name, other)
			}
		}
		if err := p.valid(root, at+"."+name, value); err != nil {
			return err
		}
	}
	return nil
}

// TestGateSchema: what osctl reads the schema accepts, and what only one of them refuses
// is in the list of what a schema cannot say.
func TestGateSchema(t *testing.T) {
	root := gateSchema(t)
	const head = "apiVersion: osctl.kapernikov.com/v1\nkind: Gate\n"
	example := regexp.MustCompile("(?s)\n```yaml\n(.*?)\n```").FindStringSubmatch(section(t, read(t, "health.md"), "health.yaml"))
	if example == nil {
		t.Fatal("health.md has no example")
	}
	for text, want := range map[string][2]bool{ // osctl, schema
		head:       {true, true},
		example[1]: {true, true},
		read(t, "../images/rootfs/usr/lib/osctl/health.yaml"): {true, true},
		"kind: Gate\n":                                                     {},
		head + "deadlin: 1m\n":                                             {},
		head + "deadline: soon\n":                                          {},
		head + "deadline: 5\n":                                             {},
		head + "soak: 1m30s\n":                                             {true, true},
		head + "network: maybe\n":                                          {},
		head + "network: wanted\n":                                         {true, true},
		head + "units: {required: [a.service]}\n":                          {true, true},
		head + "units: {required: [a]}\n":                                  {},
		head + "units: {tolerated: [\"a*\"]}\n":                            {true, true},
		head + "units: {tolerated: [\"\"]}\n":                              {},
		head + "units: [a.service]\n":                                      {},
		head + "scripts: {folders: [a]}\n":                                 {},
		head + "scripts: {folders: [/a], timeout: 1s}\n":                   {true, true},
		head + "probes: [{name: a}]\n":                                     {},
		head + "probes: [{tcp: \"a:1\"}]\n":                                {},
		head + "probes: [{name: a, tcp: \"a:1\", shell: x}]\n":             {},
		head + "probes: [{name: a, tcp: \"[::1]:1\", level: wanted}]\n":    {true, true},
		head + "probes: [{name: a, tcp: \"a:1\", level: ignore}]\n":        {},
		head + "probes: [{name: a, tcp: \"a\"}]\n":                         {},
		head + "probes: [{name: a, tcp: \"a:1\", status: 200}]\n":          {},
		head + "probes: [{name: a, exec: [a, b], within: 1m}]\n":           {true, true},
		head + "probes: [{name: a, exec: []}]\n":                           {},
		head + "probes: [{name: a, exec: a}]\n":                            {},
		head + "probes: [{name: a, shell: \" \"}]\n":                       {},
		head + "probes: [{name: a, http: \"http://a:1/b\", status: 99}]\n": {},
		head + "probes: [{name: a, http: \"http://u:p@a/b\"}]\n":           {},
		head + "probes: [{name: a, http: a}]\n":                            {},
		head + "probes: [{name: a, http: \"https://a\", contains: x}]\n":   {true, true},
		// What compares two keys, or asks a library, is beyond the schema.
		head + "deadline: 1m\nsoak: 2m\n":                                            {false, true},
		head + "units: {tolerated: [\"[\"]}\n":                                       {false, true},
		head + "probes: [{name: a, tcp: \"a:99999\"}]\n":                             {false, true},
		head + "probes: [{name: a, tcp: \"a:1\"}, {name: a, tcp: \"a:2\"}]\n":        {false, true},
		head + "probes: [{name: a, http: \"http://a/\", matches: \"(\"}]\n":          {false, true},
		head + "probes: [{name: a, http: \"http://a/\", matches: a, contains: a}]\n": {false, true},
		head + "probes: [{name: a, tcp: \"a:1\", timeout: 1h}]\n":                    {false, true},
	} {
		file := filepath.Join(t.TempDir(), "health.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := config.LoadHealth(file)
		var value any
		if bad := yaml.Unmarshal([]byte(text), &value); bad != nil {
			t.Fatal(bad)
		}
		refused := root.valid(root, "", value)
		if got := [2]bool{err == nil, refused == nil}; got != want {
			t.Errorf("%s\nosctl and schema accept it: %v, want %v (%v; %v)", text, got, want, err, refused)
		}
	}
}

// TestGateKeys: the table of health.md has the keys of health.yaml and their defaults.
func TestGateKeys(t *testing.T) {
	want := map[string]string{}
	keys(reflect.ValueOf(config.HealthDefaults()), "", want)
	delete(want, "probes")
	for f := range reflect.TypeFor[config.Probe]().Fields() {
		want["probes[]."+f.Tag.Get("yaml")] = ""
	}
	got := map[string]string{}
	for name, cells := range rows(section(t, read(t, "health.md"), "health.yaml")) {
		if name == "key" || strings.HasPrefix(name, "---") {
			continue
		}
		value := strings.Trim(cells[1], "`")
		if !strings.Contains(cells[1], "`") {
			value = "" // words, not a value
		}
		for one := range strings.SplitSeq(name, ", ") {
			got[one] = value
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("keys and defaults (-config/health.go +health.md):\n%s", diff)
	}
}

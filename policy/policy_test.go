// Package policy_test holds the shipped policies and their schema to what osctl
// reads. That osctl accepts the shipped policies is tested in cmd/osctl.
package policy_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/config"
)

// node is as much of JSON schema as policy.schema.json uses.
type node struct {
	Ref        string           `json:"$ref"`
	Type       string           `json:"type"`
	Const      string           `json:"const"`
	Format     string           `json:"format"`
	Pattern    string           `json:"pattern"`
	MinItems   int              `json:"minItems"`
	MinLength  int              `json:"minLength"`
	MinProps   int              `json:"minProperties"`
	Minimum    *int             `json:"minimum"`
	Additional *bool            `json:"additionalProperties"`
	Required   []string         `json:"required"`
	OneOf      []*node          `json:"oneOf"`
	AnyOf      []*node          `json:"anyOf"`
	Properties map[string]*node `json:"properties"`
	Items      *node            `json:"items"`
	Defs       map[string]*node `json:"$defs"`
}

func readSchema(t *testing.T) *node {
	t.Helper()
	text, err := os.ReadFile("policy.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var root node
	if err := json.Unmarshal(text, &root); err != nil {
		t.Fatal(err)
	}
	return &root
}

func (n *node) follow(root *node) *node {
	if n != nil && n.Ref != "" {
		return root.Defs[strings.TrimPrefix(n.Ref, "#/$defs/")]
	}
	return n
}

// TestSchemaFields holds the schema to the type that osctl reads into: the same
// fields with the same types, and no others.
func TestSchemaFields(t *testing.T) {
	root := readSchema(t)
	fields := 0
	var compare func(path string, typ reflect.Type, n *node)
	compare = func(path string, typ reflect.Type, n *node) {
		if n = n.follow(root); n == nil {
			t.Errorf("%s: the schema has nothing for it", path)
			return
		}
		want := map[reflect.Kind]string{reflect.String: "string", reflect.Int: "integer", reflect.Bool: "boolean", reflect.Slice: "array", reflect.Struct: "object"}[typ.Kind()]
		if typ == reflect.TypeFor[config.Duration]() {
			want = "string"
		}
		if typ == reflect.TypeFor[config.Time]() {
			want = "string"
			if n.Format != "date-time" {
				t.Errorf("%s: format %q, want date-time", path, n.Format)
			}
		}
		if n.Type != want && n.Const == "" {
			t.Errorf("%s: type %q in the schema, %q in Go", path, n.Type, want)
		}
		switch want {
		case "array":
			compare(path+"[]", typ.Elem(), n.Items)
		case "object":
			if n.Additional == nil || *n.Additional {
				t.Errorf("%s: the schema allows other fields", path)
			}
			var names []string
			for f := range typ.Fields() {
				fields++
				names = append(names, f.Tag.Get("yaml"))
				compare(path+"."+f.Tag.Get("yaml"), f.Type, n.Properties[f.Tag.Get("yaml")])
			}
			slices.Sort(names)
			if diff := cmp.Diff(names, slices.Sorted(maps.Keys(n.Properties))); diff != "" {
				t.Errorf("%s: fields (-Go +schema):\n%s", path, diff)
			}
		}
	}
	compare("policy", reflect.TypeFor[config.Policy](), root)
	if fields < 40 {
		t.Errorf("only %d fields were compared", fields)
	}
}

// valid applies the schema to what YAML gave.
func (n *node) valid(root *node, at string, v any) error {
	n = n.follow(root)
	fail := func(format string, args ...any) error { return fmt.Errorf("%s: %s", at, fmt.Sprintf(format, args...)) }
	switch v := v.(type) {
	case map[string]any:
		return n.validObject(root, at, v)
	case []any:
		if n.Type != "array" || len(v) < n.MinItems {
			return fail("a list of %d", len(v))
		}
		for i, item := range v {
			if err := n.Items.valid(root, fmt.Sprintf("%s[%d]", at, i), item); err != nil {
				return err
			}
		}
	case string:
		if n.Const != "" && n.Const != v || n.Const == "" && n.Type != "string" || len(v) < n.MinLength {
			return fail("text %q", v)
		}
		if n.Pattern != "" && !regexp.MustCompile(n.Pattern).MatchString(v) {
			return fail("%q does not match %s", v, n.Pattern)
		}
		if _, err := time.Parse(time.RFC3339, v); n.Format == "date-time" && err != nil {
			return fail("%q is no time", v)
		}
	case bool:
		if n.Type != "boolean" {
			return fail("%t", v)
		}
	case uint64:
		if n.Type != "integer" || n.Minimum != nil && v < uint64(*n.Minimum) { //nolint:gosec // small
			return fail("number %d", v)
		}
	default:
		return fail("%T", v)
	}
	return nil
}

func (n *node) validObject(root *node, at string, v map[string]any) error {
	if n.Type != "object" || len(v) < n.MinProps {
		return fmt.Errorf("%s: a mapping of %d", at, len(v))
	}
	for name, value := range v {
		if n.Properties[name] == nil {
			return fmt.Errorf("%s: unknown %s", at, name)
		}
		if err := n.Properties[name].valid(root, at+"."+name, value); err != nil {
			return err
		}
	}
	lacks := func(n *node) bool {
		return slices.ContainsFunc(n.Required, func(name string) bool { _, there := v[name]; return !there })
	}
	choices := 0
	for _, choice := range n.OneOf {
		if !lacks(choice) {
			choices++
		}
	}
	if len(n.AnyOf) > 0 && !slices.ContainsFunc(n.AnyOf, func(choice *node) bool { return !lacks(choice) }) {
		return fmt.Errorf("%s: %v is not enough", at, slices.Sorted(maps.Keys(v)))
	}
	if lacks(n) || len(n.OneOf) > 0 && choices != 1 {
		return fmt.Errorf("%s: %v with %d choices", at, slices.Sorted(maps.Keys(v)), choices)
	}
	return nil
}

func validate(t *testing.T, text string) error {
	t.Helper()
	var v any
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	root := readSchema(t)
	return root.valid(root, "policy", v)
}

// The examples satisfy the schema.
func TestSchemaAcceptsExamples(t *testing.T) {
	names, err := filepath.Glob("*.yaml")
	if err != nil || len(names) < 4 {
		t.Fatalf("found the policies %q, %v", names, err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := validate(t, string(text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

const (
	head = "apiVersion: osctl.kapernikov.com/v1\nkind: Policy\n"
	keys = "keys:\n  - name: one\n    pem: |\n      -----BEGIN PUBLIC KEY-----\n"
	who  = "identities:\n  - name: two\n    subject: a@example.com\n    issuerPattern: https://.+\n    trustedRoot: root.json\n"
	rule = "rules:\n  - name: r\n    keys: [one]\n"
)

// The schema and osctl agree about documents: what one refuses, so does the other.
// (What takes the keys themselves to judge is not a schema's business.)
func TestSchemaAgreesWithOsctl(t *testing.T) {
	for text, want := range map[string]bool{
		head + keys:        true,
		head + keys + rule: true,
		head + keys + rule + "    threshold: 1\n":                                                      true,
		head + keys + "    notBefore: 2026-01-01T00:00:00Z\n    notAfter: 2027-01-01T00:00:00+01:00\n": true,
		head + keys + "revoked:\n  digests: []\n":                                                      true,
		head + keys + "rescue: []\n":                                                                   true,
		head + keys + rule + "    repository: h.example.com/os/*\n    product: gateway\n":              true,

		head + keys + rule + "    annotations: [stage=released]\n": true,
		head + who: true,
		head + keys + who + "rules:\n  - name: r\n    identities: [two]\n":                                        true,
		head + keys + rule + "    attestations:\n      - type: provenance\n        builder: https://b\n":          true,
		head + keys + rule + "    attestations:\n      - type: sbom\n        format: spdx\n        keys: [one]\n": true,

		head + "identities: []\n":                                                                   false,
		head + keys + "identities: []\n":                                                            false,
		head + keys + rule + "    identities: []\n":                                                 false,
		head + keys + "rules:\n  - name: r\n    identities: [x]\n    keys: []\n":                    false,
		head + keys + rule + "    attestations: []\n":                                               false,
		head + keys + rule + "    attestations:\n      - type: sbom\n        keys: []\n":            false,
		head + keys + rule + "    attestations:\n      - type: sbom\n        format: \"\"\n":        false,
		head + keys + rule + "    attestations:\n      - type: provenance\n        builder: \"\"\n": false,
		head + strings.Replace(who, "    trustedRoot: root.json\n", "", 1):                          false,
		head + who + "    key: x\n":                                                                 false,

		head:                        false,
		head + "keys: []\n":         false,
		head + keys + "rules: []\n": false,
		head + keys + "rules:\n":    false,
		head + keys + "channels: [{repository: h/os, keys: [one], threshold: 1, maxAge: 72h}]\n": true,
		head + keys + "channels: []\n":                                              false,
		head + keys + "channels: [{keys: [one]}]\n":                                 false,
		head + keys + "channels: [{repository: h/os, keys: []}]\n":                  false,
		head + keys + "channels: [{repository: h/os, keys: [one], threshold: 0}]\n": false,
		head + keys + "channels: [{repository: h/os, keys: [one], maxAge: soon}]\n": false,
		head + keys + "allowDowngrade: true\n":                                      true,
		head + keys + "allowDowngrade: maybe\n":                                     false,
		head + keys + "allowUnsigned: true\n":                                       false,
		head + keys + "    notAfter: 2027\n":                                        false,
		head + keys + "    notAfter:\n":                                             false,
		head + keys + "    file: x.pub\n":                                           false,
		head + "keys: [{name: one}]\n":                                              false,
		head + "keys: [{file: one.pub}]\n":                                          false,
		head + keys + rule + "    annotations: []\n":                                false,
		head + keys + rule + "    annotations:\n":                                   false,
		head + keys + rule + "    threshold: 0\n":                                   false,
		head + keys + rule + "    threshold:\n":                                     false,
		head + keys + rule + "    threshold: x\n":                                   false,
		head + keys + rule + "    product: \"\"\n":                                  false,
		head + keys + rule + "    repository:\n":                                    false,
		head + keys + rule + "    tag: x\n":                                         false,
		head + keys + "revoked:\n":                                                  false,
		head + keys + "revoked: {}\n":                                               false,
		head + keys + "revoked: {keys: }\n":                                         false,
		head + keys + "revoked: {names: [one]}\n":                                   false,
		"apiVersion: v2\nkind: Policy\n" + keys:                                     false,
		"apiVersion: osctl.kapernikov.com/v1\nkind: Config\n" + keys:                false,
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "root.json"), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, "policy.yaml")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, read := config.LoadPolicy(name)
		schema := validate(t, text)
		if (read == nil) != want || (schema == nil) != want || read != nil && !errors.Is(read, config.ErrInvalid) {
			t.Errorf("want valid %t\nosctl:  %v\nschema: %v\n%s", want, read, schema, text)
		}
	}
}

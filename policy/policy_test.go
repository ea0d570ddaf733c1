// Package policy_test holds the shipped policies to what osctl reads.
package policy_test

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/kapernikov/osctl/pkg/config"
	"github.com/kapernikov/osctl/pkg/publish"
	"github.com/kapernikov/osctl/pkg/trust"
)

func load(t *testing.T, name string) (*trust.Verifier, error) {
	t.Helper()
	p, err := config.LoadPolicy(name)
	if err != nil {
		return nil, err
	}
	var policy trust.Policy
	for _, k := range p.Keys {
		policy.Keys = append(policy.Keys, trust.Key{Name: k.Name, PEM: []byte(k.PEM)})
	}
	return trust.New(policy)
}

// Each example loads once the key that it asks for is there, and not before.
func TestShippedPolicies(t *testing.T) {
	names, err := filepath.Glob("*.yaml")
	if err != nil || len(names) < 2 {
		t.Fatalf("found the policies %q, %v", names, err)
	}
	_, public, err := publish.GenerateKeyPair(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			copied := filepath.Join(t.TempDir(), "policy.yaml")
			if err := os.WriteFile(copied, text, 0o644); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(text), "\n    file:") {
				if _, err := load(t, copied); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("without its key: %v", err)
				}
				keys := filepath.Join(filepath.Dir(copied), "keys")
				if err := errors.Join(os.Mkdir(keys, 0o755), os.WriteFile(filepath.Join(keys, "release.pub"), public, 0o644)); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := load(t, copied); err != nil {
				t.Error(err)
			}
		})
	}
}

// schema is what the test needs of policy.schema.json.
type schema struct {
	Properties map[string]property  `json:"properties"`
	Defs       map[string]subschema `json:"$defs"`
}

type subschema struct {
	Properties map[string]property `json:"properties"`
}

type property struct {
	Const   string `json:"const"`
	Pattern string `json:"pattern"`
}

// The schema lists the fields that osctl reads, with values that it accepts.
func TestSchema(t *testing.T) {
	text, err := os.ReadFile("policy.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var s schema
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		read  any
		valid map[string]property
	}{{config.Policy{}, s.Properties}, {config.Key{}, s.Defs["key"].Properties}} {
		var fields []string
		for f := range reflect.TypeOf(tt.read).Fields() {
			fields = append(fields, f.Tag.Get("yaml"))
		}
		slices.Sort(fields)
		if diff := cmp.Diff(fields, slices.Sorted(maps.Keys(tt.valid))); diff != "" {
			t.Errorf("osctl reads other fields (-) than the schema has (+) for %T:\n%s", tt.read, diff)
		}
	}
	p, err := config.LoadPolicy("inline.yaml")
	if err != nil {
		t.Fatal(err)
	}
	key := s.Defs["key"].Properties
	if p.APIVersion != s.Properties["apiVersion"].Const || p.Kind != s.Properties["kind"].Const {
		t.Errorf("apiVersion %q and kind %q are not those of the schema", p.APIVersion, p.Kind)
	}
	for _, k := range p.Keys {
		if !regexp.MustCompile(key["name"].Pattern).MatchString(k.Name) || !regexp.MustCompile(key["pem"].Pattern).MatchString(k.PEM) {
			t.Errorf("the schema refuses key %q", k.Name)
		}
	}
}

// Package schema holds a published JSON schema to the Go type that is printed by it:
// the same fields, the same types, and what may be absent is optional. It knows as
// much of JSON schema as the files in docs use.
package schema

import (
	"encoding/json"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// node is as much of JSON schema as the files in docs use.
type node struct {
	Ref        string           `json:"$ref"`
	Type       string           `json:"type"`
	Format     string           `json:"format"`
	Additional *bool            `json:"additionalProperties"`
	Required   []string         `json:"required"`
	Properties map[string]*node `json:"properties"`
	Items      *node            `json:"items"`
	Defs       map[string]*node `json:"$defs"`
}

// Compare fails unless the schema in file describes typ, and at least so many fields
// were compared.
func Compare(t *testing.T, file string, typ reflect.Type, least int) {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var root node
	if err := json.Unmarshal(raw, &root); err != nil {
		t.Fatal(err)
	}
	c := comparison{T: t, defs: root.Defs}
	c.compare(typ.Name(), typ, &root)
	if c.fields < least {
		t.Errorf("only %d fields were compared", c.fields)
	}
}

type comparison struct {
	*testing.T
	defs   map[string]*node
	fields int
}

// compare walks a Go type and the schema of its JSON side by side.
func (c *comparison) compare(path string, typ reflect.Type, n *node) {
	if n != nil && n.Ref != "" {
		n = c.defs[strings.TrimPrefix(n.Ref, "#/$defs/")]
	}
	if n == nil {
		c.Errorf("%s: the schema has nothing for it", path)
		return
	}
	if typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	want := ""
	switch kind := typ.Kind(); {
	case typ == reflect.TypeFor[time.Time]():
		want = "string"
		if n.Format != "date-time" {
			c.Errorf("%s: format %q, want date-time", path, n.Format)
		}
	case kind == reflect.Struct:
		want = "object"
		c.object(path, typ, n)
	case kind == reflect.Slice:
		want = "array"
		c.compare(path+"[]", typ.Elem(), n.Items)
	case kind == reflect.String:
		want = "string"
	case kind == reflect.Bool:
		want = "boolean"
	case kind >= reflect.Int && kind <= reflect.Uint64:
		want = "integer"
	}
	if n.Type != want {
		c.Errorf("%s: type %q in the schema, %q in Go", path, n.Type, want)
	}
}

func (c *comparison) object(path string, typ reflect.Type, n *node) {
	if n.Additional == nil || *n.Additional {
		c.Errorf("%s: the schema allows other fields", path)
	}
	var fields, required []string
	for _, f := range reflect.VisibleFields(typ) {
		if f.Anonymous || !f.IsExported() {
			continue
		}
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "-" {
			c.Errorf("%s.%s has no name in JSON", path, f.Name)
			continue
		}
		fields = append(fields, name)
		if options == "" {
			required = append(required, name)
		}
		c.fields++
		c.compare(path+"."+name, f.Type, n.Properties[name])
	}
	var known []string
	for name := range n.Properties {
		known = append(known, name)
	}
	for what, lists := range map[string][2][]string{"fields": {fields, known}, "required fields": {required, n.Required}} {
		slices.Sort(lists[0])
		slices.Sort(lists[1])
		if !slices.Equal(lists[0], lists[1]) {
			c.Errorf("%s: %s (-Go +schema): %s", path, what, cmp.Diff(lists[0], lists[1]))
		}
	}
}

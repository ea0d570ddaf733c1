package status_test

import (
	"encoding/json"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/status"
)

// node is as much of JSON schema as docs/status.schema.json uses.
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

// TestSchema holds the published schema to the type that "osctl status --json"
// prints: the same fields, the same types, and what may be absent is optional.
func TestSchema(t *testing.T) {
	raw, err := os.ReadFile("../../docs/status.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var root node
	if err := json.Unmarshal(raw, &root); err != nil {
		t.Fatal(err)
	}
	c := comparison{T: t, defs: root.Defs}
	c.compare("status", reflect.TypeFor[status.Snapshot](), &root)
	if c.fields < 30 {
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
	switch {
	case typ == reflect.TypeFor[time.Time]():
		want = "string"
		if n.Format != "date-time" {
			c.Errorf("%s: format %q, want date-time", path, n.Format)
		}
	case typ.Kind() == reflect.Struct:
		want = "object"
		c.object(path, typ, n)
	case typ.Kind() == reflect.Slice:
		want = "array"
		c.compare(path+"[]", typ.Elem(), n.Items)
	case typ.Kind() == reflect.String:
		want = "string"
	case typ.Kind() == reflect.Int, typ.Kind() == reflect.Uint32, typ.Kind() == reflect.Uint64:
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
	for i := range typ.NumField() {
		tag := strings.Split(typ.Field(i).Tag.Get("json"), ",")
		fields = append(fields, tag[0])
		if len(tag) == 1 {
			required = append(required, tag[0])
		}
		c.fields++
		c.compare(path+"."+tag[0], typ.Field(i).Type, n.Properties[tag[0]])
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

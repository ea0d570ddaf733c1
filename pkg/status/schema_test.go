package status_test

import (
	"reflect"
	"testing"

	"github.com/kapernikov/osctl/pkg/status"
	"github.com/kapernikov/osctl/test/schema"
)

// TestSchema holds the published schema to the type that "osctl status --json"
// prints.
func TestSchema(t *testing.T) {
	schema.Compare(t, "../../docs/status.schema.json", reflect.TypeFor[status.Snapshot](), 30)
}

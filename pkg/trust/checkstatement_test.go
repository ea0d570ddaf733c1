package trust

import (
	"errors"
	"testing"

	"github.com/in-toto/attestation/go/v1"

	"github.com/kapernikov/osctl/pkg/osimage"
)

// By which way an exhibit goes is chosen by the same text that is checked here again:
// should the two ever be read differently, the verified one decides.
func TestStatementIsChecked(t *testing.T) {
	good := func() *v1.Statement {
		return &v1.Statement{Type: v1.StatementTypeUri, PredicateType: osimage.PredicateSignature}
	}
	if err := checkStatement("k", good(), []string{osimage.PredicateSignature}); err != nil {
		t.Error(err)
	}
	other, later := good(), good()
	other.PredicateType, later.Type = osimage.PredicateSPDX, "https://in-toto.io/Statement/v9"
	for _, s := range []*v1.Statement{nil, other, later} {
		if err := checkStatement("k", s, []string{osimage.PredicateSignature}); !errors.As(err, new(*claimError)) {
			t.Errorf("%v: error = %v", s, err)
		}
	}
}

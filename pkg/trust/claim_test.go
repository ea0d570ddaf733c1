package trust_test

import (
	"strings"
	"testing"

	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/trust"
)

// Annotations count where they are signed: in the payload, all of them, with these
// values. What is written beside a signature is nothing.
func TestAnnotations(t *testing.T) {
	img := image(t, "1.1")
	ours, stranger := ecdsaPair(t), ecdsaPair(t)
	payload := func(optional string) []byte {
		return []byte(strings.Replace(string(payloadFor(img.Digest())), `"optional":null`, `"optional":`+optional, 1))
	}
	v := made(t, trust.Policy{
		Keys:  []trust.Key{named("release", ours)},
		Rules: []trust.PolicyRule{{Name: "r", Keys: []string{"release"}, Annotations: []string{"stage=released", "line=a=b"}}},
	})
	beside := ours.sign(t, payload("null"))
	beside.Annotations["stage"], beside.Annotations["line"] = "released", "a=b"
	for name, sig := range map[string]osimage.Signature{
		"none": ours.sign(t, payload("null")), "beside the payload": beside, "one of two": ours.sign(t, payload(`{"stage":"released"}`)),
		"another value": ours.sign(t, payload(`{"stage":"tested","line":"a=b"}`)), "no text": ours.sign(t, payload(`{"stage":1,"line":"a=b"}`)),
	} {
		got, err := v.Verify(t.Context(), img, []osimage.Signature{sig})
		if r := refused(t, got, err, trust.Annotation); !strings.Contains(r.Have, "one by release without the annotations") || !strings.Contains(r.Want, "with line=a=b, stage=released (rule r)") {
			t.Errorf("%s: refusal %v", name, r)
		}
	}
	got, err := v.Verify(t.Context(), img, []osimage.Signature{stranger.sign(t, payload(`{"stage":"released","line":"a=b"}`))})
	refused(t, got, err, trust.UnknownKey)
	good := ours.sign(t, payload(`{"stage":"released","line":"a=b","more":"x"}`))
	if got, err := v.Verify(t.Context(), img, []osimage.Signature{beside, good}); err != nil || got.KeyName() != "release" {
		t.Errorf("with both: %q, %v", got.KeyName(), err)
	}
	for _, claims := range [][]string{{"stage"}, {"=x"}, {"stage="}, {"a=b", "a=c"}} {
		_, err := trust.New(trust.Policy{Keys: []trust.Key{named("release", ours)}, Rules: []trust.PolicyRule{{Name: "r", Keys: []string{"release"}, Annotations: claims}}})
		if err == nil || !strings.Contains(err.Error(), "rules[0].annotations[") || !strings.Contains(err.Error(), "expected is name=value") {
			t.Errorf("%q: %v", claims, err)
		}
	}
}

package publish

import (
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"

	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/trust"
)

// publicOf is a policy of one key.
func publicOf(t testing.TB, key *Key) trust.Policy {
	return trust.Policy{Keys: []trust.Key{{Name: "key", PEM: publicPEM(t, key)}}}
}

// Bundles are found by machines by either way, each key makes one, and a layout takes
// them along.
func TestSignBundle(t *testing.T) {
	o := quick()
	o.Bundle = true
	for name, reg := range map[string]*testRegistry{"referrers API": newRegistry(t, registry.WithReferrersSupport(true)), "fallback tag": newRegistry(t)} {
		dir, first, second := threePacks(t), testKey(t), testKey(t)
		d, err := Push(t.Context(), dir, reg.ref(":1.1"), quick())
		if err != nil {
			t.Fatal(err)
		}
		for i, step := range []struct {
			key      *Key
			existing bool
			count    int
		}{{first, false, 1}, {first, true, 1}, {second, false, 2}, {first, true, 2}, {second, true, 2}} {
			signed, err := Sign(t.Context(), reg.ref(":1.1"), step.key, o)
			if err != nil || signed.Digest != d || signed.Existing != step.existing || signed.Tag != "" || signed.Manifest.Validate() != nil {
				t.Errorf("%s, step %d: %+v, %v", name, i, signed, err)
			}
			got, sigs, err := onMachine(t, reg.ref(":1.1"), publicOf(t, step.key))
			if err != nil || got.Image().Digest() != d || len(sigs) != step.count || sigs[0].Form != osimage.Bundle {
				t.Errorf("%s, step %d: a machine has %d signatures, %v", name, i, len(sigs), err)
			}
		}
		if _, _, err := onMachine(t, reg.ref(":1.1"), publicOf(t, testKey(t))); err == nil || !strings.Contains(err.Error(), "2 signatures by no key of the policy") {
			t.Errorf("%s, a stranger: %v", name, err)
		}
	}
	dir, key, reg := threePacks(t), testKey(t), newRegistry(t)
	for i := range 2 {
		signed, err := Sign(t.Context(), dir, key, o)
		if err != nil || signed.Existing != (i > 0) || signed.Manifest.Validate() != nil {
			t.Fatalf("layout: %+v, %v", signed, err)
		}
	}
	for range 2 {
		if _, err := Push(t.Context(), dir, reg.ref(":1.1"), quick()); err != nil {
			t.Fatal(err)
		}
		if _, sigs, err := onMachine(t, reg.ref(":1.1"), publicOf(t, key)); err != nil || len(sigs) != 1 || sigs[0].Form != osimage.Bundle {
			t.Errorf("from a layout: %d signatures, %v", len(sigs), err)
		}
	}
	if signed, err := Sign(t.Context(), reg.ref(":1.1"), key, o); err != nil || !signed.Existing {
		t.Errorf("what came from a layout is not recognised: %+v, %v", signed, err)
	}
	o.Annotations = map[string]string{"a": "b"}
	if _, err := Sign(t.Context(), dir, key, o); err == nil || !strings.Contains(err.Error(), "no annotations") {
		t.Errorf("annotations in a bundle: %v", err)
	}
}

// What is no signature of this image by this key is none that was made before.
func TestMadeBefore(t *testing.T) {
	dir, key, other := threePacks(t), testKey(t), testKey(t)
	l, err := openLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, blobs, err := key.bundle(t.Context(), l.image.Descriptor(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	bundle := blobs[1].Content
	if !key.made(bundle, l.image.Digest()) {
		t.Error("its own bundle is not recognised")
	}
	if key.made(bundle, digest.FromString("another image")) || other.made(bundle, l.image.Digest()) || key.made([]byte("{}"), l.image.Digest()) || key.made(nil, l.image.Digest()) {
		t.Error("something else is recognised")
	}
}

package publish

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/trust"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sigstore/sigstore/pkg/signature"
)

// testKey is a key that was opened already; opening one takes a while, by
// intention of its makers.
func testKey(t testing.TB) *Key {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := signature.LoadECDSASignerVerifier(private, crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return &Key{signer}
}

func publicPEM(t testing.TB, k *Key) []byte {
	t.Helper()
	public, err := k.signer.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// fetchSignatures reads the signatures of a digest as a machine does: manifest
// by tag, payloads by digest, nothing else.
func fetchSignatures(t testing.TB, repo string, d digest.Digest) []osimage.Signature {
	t.Helper()
	parsed, err := name.ParseReference(repo + ":" + osimage.SignatureTag(d))
	if err != nil {
		t.Fatal(err)
	}
	desc, err := remote.Get(parsed)
	if err != nil {
		t.Fatal(err)
	}
	return readSignatures(t, desc.Manifest, func(h v1.Hash) ([]byte, error) {
		layer, err := remote.Layer(parsed.Context().Digest(h.String()))
		if err != nil {
			return nil, err
		}
		rc, err := layer.Compressed()
		if err != nil {
			return nil, err
		}
		defer rc.Close()
		return io.ReadAll(rc)
	})
}

func readSignatures(t testing.TB, manifest []byte, blob func(v1.Hash) ([]byte, error)) []osimage.Signature {
	t.Helper()
	var m v1.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		t.Fatal(err)
	}
	var sigs []osimage.Signature
	for _, l := range m.Layers {
		payload, err := blob(l.Digest)
		if err != nil {
			t.Fatal(err)
		}
		sigs = append(sigs, osimage.Signature{Payload: payload, Base64: l.Annotations[osimage.SignatureAnnotation], Annotations: l.Annotations})
	}
	return sigs
}

// accept asserts that machines with this key accept the image of the layout.
func accept(t testing.TB, dir string, sigs []osimage.Signature, public []byte) {
	t.Helper()
	l, err := openLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	v, err := trust.New(trust.Policy{Keys: []trust.Key{{Name: "key", PEM: public}}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := v.Verify(t.Context(), l.image, sigs)
	if err != nil || got.Image().Digest() != l.image.Digest() {
		t.Errorf("a machine's verdict: %+v, %v", got.KeyName(), err)
	}
}

func TestSignRemote(t *testing.T) {
	dir, reg, first, second := threePacks(t), newRegistry(t), testKey(t), testKey(t)
	d, err := Push(t.Context(), dir, reg.ref(":1.1"), quick())
	if err != nil {
		t.Fatal(err)
	}
	reg.requests("")
	for i, step := range []struct {
		key      *Key
		existing bool
		count    int
	}{{first, false, 1}, {first, true, 1}, {second, false, 2}, {first, true, 2}} {
		signed, err := Sign(t.Context(), reg.ref(":1.1"), step.key, quick())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(Signed{Digest: d, Tag: osimage.SignatureTag(d), Existing: step.existing}, signed); diff != "" {
			t.Errorf("step %d: %s", i, diff)
		}
		sigs := fetchSignatures(t, reg.ref(""), d)
		if len(sigs) != step.count {
			t.Errorf("step %d: %d signatures, want %d", i, len(sigs), step.count)
		}
		accept(t, dir, sigs, publicPEM(t, step.key))
		accept(t, dir, sigs, publicPEM(t, first))
	}
}

// The manifest that carries signatures is what cosign writes, to the byte.
func TestSignatureManifest(t *testing.T) {
	dir, reg := threePacks(t), newRegistry(t)
	d, err := Push(t.Context(), dir, reg.ref(":1.1"), quick())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Sign(t.Context(), reg.ref(":1.1"), testKey(t), quick()); err != nil {
		t.Fatal(err)
	}
	tag, err := name.ParseReference(reg.ref(":" + osimage.SignatureTag(d)))
	if err != nil {
		t.Fatal(err)
	}
	desc, err := remote.Get(tag)
	if err != nil {
		t.Fatal(err)
	}
	sigs := fetchSignatures(t, reg.ref(""), d)
	payload := `{"critical":{"identity":{"docker-reference":"` + reg.ref("") + `"},"image":{"docker-manifest-digest":"` + d.String() +
		`"},"type":"cosign container image signature"},"optional":null}`
	if got := string(sigs[0].Payload); got != payload {
		t.Errorf("payload %s, want %s", got, payload)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(desc.Manifest, &m); err != nil {
		t.Fatal(err)
	}
	layers := []ocispec.Descriptor{{
		MediaType: osimage.MediaTypeSignature, Digest: digest.FromString(payload), Size: int64(len(payload)),
		Annotations: map[string]string{osimage.SignatureAnnotation: sigs[0].Base64},
	}}
	if diff := cmp.Diff(layers, m.Layers); diff != "" || m.MediaType != ocispec.MediaTypeImageManifest || m.Config.MediaType != ocispec.MediaTypeImageConfig {
		t.Errorf("manifest %s: %s", desc.Manifest, diff)
	}
}

// A tag that moves while it is signed must not change what is signed
// (Crossplane GHSA-wfqx-gjrf-g28r).
func TestSignResolvesOnce(t *testing.T) {
	dir, reg := threePacks(t), newRegistry(t)
	d, err := Push(t.Context(), dir, reg.ref(":1.1"), quick())
	if err != nil {
		t.Fatal(err)
	}
	other := testLayout(t, "6.6", []byte("stranger"))
	if _, err := Push(t.Context(), other, reg.ref(":evil"), quick()); err != nil {
		t.Fatal(err)
	}
	reads := 0
	reg.intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/v2/os/manifests/1.1" {
			return false
		}
		if reads++; reads > 1 {
			r.URL.Path = "/v2/os/manifests/evil"
		}
		return false
	}
	signed, err := Sign(t.Context(), reg.ref(":1.1"), testKey(t), quick())
	if err != nil || signed.Digest != d || reads != 1 {
		t.Errorf("signed %+v after %d looks at the tag, %v; want %s after 1", signed, reads, err, d)
	}
	for _, s := range fetchSignatures(t, reg.ref(""), d) {
		if !strings.Contains(string(s.Payload), d.String()) {
			t.Errorf("payload %s does not name %s", s.Payload, d)
		}
	}
}

func TestSignRefusesWhatIsNoOSImage(t *testing.T) {
	reg := newRegistry(t)
	img, err := random.Image(10, 1)
	if err != nil {
		t.Fatal(err)
	}
	index, err := random.Index(10, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	for tag, put := range map[string]func(name.Reference) error{
		":app":   func(r name.Reference) error { return remote.Write(r, img) },
		":index": func(r name.Reference) error { return remote.WriteIndex(r, index) },
	} {
		ref, err := name.ParseReference(reg.ref(tag))
		if err != nil {
			t.Fatal(err)
		}
		if err := put(ref); err != nil {
			t.Fatal(err)
		}
		reg.requests("")
		if _, err := Sign(t.Context(), reg.ref(tag), testKey(t), quick()); !errors.Is(err, osimage.ErrNotOS) || !strings.Contains(err.Error(), reg.ref(tag)) {
			t.Errorf("%s: %v", tag, err)
		}
		if writes := reg.requests("P"); len(writes) > 0 {
			t.Errorf("%s: the registry was written: %q", tag, writes)
		}
	}
	if _, err := Sign(t.Context(), reg.ref(":none"), testKey(t), quick()); !errors.Is(err, ErrRegistry) || !errors.Is(err, ErrNotFound) {
		t.Errorf("a tag that does not exist: %v", err)
	}
}

func TestSignLayout(t *testing.T) {
	dir, first, second := threePacks(t), testKey(t), testKey(t)
	before, err := openLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	d := before.image.Digest()
	for i, step := range []struct {
		key      *Key
		existing bool
		count    int
	}{{first, false, 1}, {first, true, 1}, {second, false, 2}} {
		signed, err := Sign(t.Context(), dir, step.key, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(Signed{Digest: d, Tag: osimage.SignatureTag(d), Existing: step.existing}, signed); diff != "" {
			t.Errorf("step %d: %s", i, diff)
		}
		l, err := openLayout(dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(l.index.Manifests) != 2 || l.index.Manifests[0].Digest != d || l.index.Manifests[1].Annotations[ocispec.AnnotationRefName] != osimage.SignatureTag(d) {
			t.Fatalf("step %d: the index lists %+v", i, l.index.Manifests)
		}
		manifest, err := l.readBlob(l.index.Manifests[1].Digest, osimage.MaxManifest)
		if err != nil {
			t.Fatal(err)
		}
		sigs := readSignatures(t, manifest, func(h v1.Hash) ([]byte, error) { return l.readBlob(digest.Digest(h.String()), osimage.MaxPayload) })
		if len(sigs) != step.count {
			t.Errorf("step %d: %d signatures, want %d", i, len(sigs), step.count)
		}
		accept(t, dir, sigs, publicPEM(t, step.key))
	}
	left, err := filepath.Glob(filepath.Join(dir, "blobs", "sha256", ".osctl-*"))
	if more, err2 := filepath.Glob(filepath.Join(dir, ".osctl-*")); err != nil || err2 != nil || len(left)+len(more) > 0 {
		t.Errorf("temporary files stay behind: %q %q", left, more)
	}
}

func TestPushCarriesSignatures(t *testing.T) {
	dir, reg := threePacks(t), newRegistry(t)
	inLayout, inRegistry := testKey(t), testKey(t)
	if _, err := Sign(t.Context(), dir, inLayout, Options{}); err != nil {
		t.Fatal(err)
	}
	d, err := Push(t.Context(), dir, reg.ref(":1.1"), quick())
	if err != nil {
		t.Fatal(err)
	}
	accept(t, dir, fetchSignatures(t, reg.ref(""), d), publicPEM(t, inLayout))

	// A signature that somebody added in the registry survives the next push,
	// and so does one that was added to the layout.
	if _, err := Sign(t.Context(), reg.ref(":1.1"), inRegistry, quick()); err != nil {
		t.Fatal(err)
	}
	third := testKey(t)
	if _, err := Sign(t.Context(), dir, third, Options{}); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		reg.requests("")
		if _, err := Push(t.Context(), dir, reg.ref(":1.1"), quick()); err != nil {
			t.Fatal(err)
		}
		if wrote := slices.Contains(reg.requests("PUT "), "PUT /v2/os/manifests/"+osimage.SignatureTag(d)); wrote != (i == 0) {
			t.Errorf("push %d wrote signatures: %t", i, wrote)
		}
		sigs := fetchSignatures(t, reg.ref(""), d)
		if len(sigs) != 3 {
			t.Errorf("%d signatures in the registry, want 3", len(sigs))
		}
		for _, k := range []*Key{inLayout, inRegistry, third} {
			accept(t, dir, sigs, publicPEM(t, k))
		}
	}
}

func TestSignRefusesAFullSet(t *testing.T) {
	dir := threePacks(t)
	key := testKey(t)
	if _, err := Sign(t.Context(), dir, key, Options{}); err != nil {
		t.Fatal(err)
	}
	l, err := openLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	set, err := l.signatures(l.signatureTags()[0])
	if err != nil {
		t.Fatal(err)
	}
	one, err := set.Get()
	if err != nil {
		t.Fatal(err)
	}
	if set, err = set.with(slices.Repeat(one, osimage.MaxSignatures-1)...); err != nil {
		t.Fatal(err)
	}
	if err := l.replaceSignatures(set); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Sign(t.Context(), dir, testKey(t), Options{}); err == nil || !strings.Contains(err.Error(), "101 signatures") {
		t.Errorf("error = %v", err)
	}
	if after, err := os.ReadFile(filepath.Join(dir, "index.json")); err != nil || !slices.Equal(before, after) {
		t.Errorf("the layout was changed: %v", err)
	}
}

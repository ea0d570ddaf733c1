package fetch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/test/authority"
	"github.com/kapernikov/osctl/test/hostile"
)

// judge wants some attestations and has enough after so many signatures.
type judge struct {
	wants  []string
	enough int
}

func (j judge) Wants() []string { return j.wants }

func (j judge) Enough(_ context.Context, img osimage.Image, found []osimage.Signature) bool {
	return img.Valid() && len(found) >= j.enough
}

// bundleManifest is what cosign puts beside an image; the registry has its layer.
func bundleManifest(h *hostile.Registry, predicate string, size int64, content []byte) []byte {
	d := h.PutBlob(hostile.Payload, content)
	if size == 0 {
		size = int64(len(content))
	}
	raw, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: authority.MediaTypeBundle,
		Config: ocispec.DescriptorEmptyJSON, Layers: []ocispec.Descriptor{{MediaType: authority.MediaTypeBundle, Digest: d, Size: size}},
		Annotations: map[string]string{osimage.PredicateAnnotation: predicate},
	})
	if err != nil {
		panic(err)
	}
	return raw
}

// A registry is asked for as little as the judge needs, never for an attestation that
// nobody wants, and never more than four times for one signature.
func TestSignatureRequests(t *testing.T) {
	const (
		classic = "GET signature tag, GET signature payload"
		bundle  = "GET signature manifest, GET signature payload"
		api     = "GET referrers"
		noAPI   = "GET referrers, GET referrers tag"
	)
	for _, tt := range []struct {
		name    string
		judge   Judge
		classic bool // there is a classic signature
		bundles bool // there are a bundle and an attestation
		api     bool // the registry has the referrers API
		want    string
		found   int
	}{
		{"a bundle", judge{nil, 1}, false, true, true, api + ", " + bundle, 1},
		{"a bundle, no API", judge{nil, 1}, false, true, false, noAPI + ", " + bundle, 1},
		{"a classic signature", judge{nil, 1}, true, false, true, api + ", " + classic, 1},
		{"a classic signature, no API", judge{nil, 1}, true, false, false, noAPI + ", " + classic, 1},
		{"a bundle is enough", judge{nil, 1}, true, true, true, api + ", " + bundle, 1},
		{"both are needed", judge{nil, 2}, true, true, true, api + ", " + bundle + ", GET signature manifest, " + classic, 2},
		{"more is needed", judge{nil, 2}, true, false, false, noAPI + ", " + classic, 1},
		{"nothing there", judge{nil, 1}, false, false, false, noAPI + ", GET signature tag", 0},
		{"one more attestation", judge{[]string{osimage.PredicateSPDX}, 4}, true, true, true, api + ", " + bundle + ", " + bundle + ", " + classic + ", GET referrers tag", 3},
		{"attestations", judge{[]string{osimage.PredicateSPDX}, 3}, true, true, true, api + ", " + bundle + ", " + bundle + ", " + classic, 3},
	} {
		h := hostile.New(t)
		if tt.classic {
			load(t, h)
		} else {
			h.Load(t, small.Layout(t), "1")
		}
		list := [][]byte{bundleManifest(h, osimage.PredicateSignature, 0, []byte("{}")), bundleManifest(h, osimage.PredicateSPDX, 0, []byte(`{"s":1}`))}
		if !tt.bundles {
			list = nil
		}
		if tt.api {
			h.Refer(1, list...)
		}
		r, _ := patient(t, t.TempDir())
		ref, err := r.Resolve(ctx, h.Name("1"))
		if err != nil {
			t.Fatal(err)
		}
		if !tt.api && tt.bundles {
			instead(t, h, ref.Digest(), list[0])
		}
		ref = ref.For(tt.judge)
		if _, err := ref.Describe(ctx); err != nil {
			t.Fatal(err)
		}
		h.Forget()
		sigs, err := ref.Signatures(ctx)
		if err != nil || len(sigs) != tt.found {
			t.Errorf("%s: %d signatures, %v", tt.name, len(sigs), err)
		}
		var asked []string
		for _, q := range h.Requests(hostile.Any) {
			asked = append(asked, q.Method+" "+string(q.Kind))
		}
		// The manifest of the attestation has to be read where the list has no
		// annotations: it says that it is none that is wanted.
		got := strings.TrimSuffix(strings.Join(asked, ", "), ", GET signature manifest")
		if got != tt.want {
			t.Errorf("%s: asked for\n%s, want\n%s", tt.name, got, tt.want)
		}
		if one := tt.classic != tt.bundles && tt.found == 1; one && strings.Count(got, ",") > 3 {
			t.Errorf("%s: more than four requests: %s", tt.name, got)
		}
	}
}

// instead puts a list of referrers under the tag that stands in for the API.
func instead(t *testing.T, h *hostile.Registry, d digest.Digest, raw []byte) {
	t.Helper()
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageManifest, Digest: h.Put("bundle.sig", raw), Size: int64(len(raw))}},
	})
	if err != nil {
		t.Fatal(err)
	}
	h.Put(osimage.ReferrersTag(d), index)
}

// A list or a bundle that is broken keeps nobody from a classic signature that is enough,
// and is the error where that is not.
func TestBrokenBundlesHideNobody(t *testing.T) {
	for name, arrange := range map[string]func(h *hostile.Registry){
		"the list":   func(h *hostile.Registry) { h.Refer(1); h.Break(hostile.Referrers, hostile.Flip(0)) },
		"a manifest": func(h *hostile.Registry) { h.Refer(1, []byte("\x00")) },
		"a bundle":   func(h *hostile.Registry) { h.Refer(1, bundleManifest(h, "", 3, []byte("{}"))) },
	} {
		h := hostile.New(t)
		load(t, h)
		arrange(h)
		r, _ := patient(t, t.TempDir())
		for enough, want := range map[int]bool{1: true, 2: false} {
			ref, err := r.Resolve(ctx, h.Name("1"))
			if err != nil {
				t.Fatal(err)
			}
			ref = ref.For(judge{nil, enough})
			if _, err := ref.Describe(ctx); err != nil {
				t.Fatal(err)
			}
			sigs, err := ref.Signatures(ctx)
			if want && (err != nil || len(sigs) != 1) || !want && (err == nil || len(sigs) > 0) {
				t.Errorf("%s is broken, %d are enough: %d signatures, %v", name, enough, len(sigs), err)
			}
		}
	}
}

// A mirror that may serve content but not say what a tag means is not asked for one: it
// could show an older signature, or none.
func TestMirrorIsNotAskedForTags(t *testing.T) {
	mirror, registry := hostile.New(t), hostile.New(t)
	load(t, mirror)
	load(t, registry)
	toml := fmt.Sprintf("server = %q\n[host.%q]\n  capabilities = [\"pull\"]\n", registry.URL, mirror.URL)
	r, _ := patient(t, hostsDir(t, registry.Host(), toml))
	ref, err := r.Resolve(ctx, registry.Name("1"))
	if err != nil {
		t.Fatal(err)
	}
	if sigs, err := ref.Signatures(ctx); err != nil || len(sigs) != 1 {
		t.Errorf("%d signatures, %v", len(sigs), err)
	}
	if asked := mirror.Requests(hostile.SignatureTag); len(asked) > 0 {
		t.Errorf("the mirror was asked what a tag means: %+v", asked)
	}
	if asked := mirror.Requests(hostile.Payload); len(asked) == 0 {
		t.Error("the mirror was not asked for content")
	}
}

// A registry that has the referrers API and gives no list withholds: that is no proof
// that there is none. What is there under the tag is taken, and a registry that has no
// API may say so in its own way.
func TestWithheldList(t *testing.T) {
	unsigned, both := small.Layout(t), signed(t, small)
	busy := hostile.Refuse(503, "")
	for name, tt := range map[string]struct {
		layout string
		judge  Judge
		fault  hostile.Fault
		want   string // in the error; empty for none
		denied bool
	}{
		"nothing, 401":                          {unsigned, nil, hostile.Refuse(401, ""), "401", true},
		"nothing, 403":                          {unsigned, nil, hostile.Refuse(403, ""), "nerdctl login", true},
		"nothing, 500":                          {unsigned, nil, hostile.Refuse(500, ""), "500", false},
		"nothing, 503":                          {unsigned, nil, busy, "503 Service Unavailable", false},
		"nothing, 503, and a judge":             {unsigned, judge{nil, 1}, busy, "503", false},
		"nothing, compressed":                   {unsigned, nil, hostile.Both(listed, hostile.Bomb(1<<20)), "Content-Encoding", false},
		"nothing, 404":                          {unsigned, nil, hostile.Refuse(404, ""), "", false},
		"nothing, 400":                          {unsigned, nil, hostile.Refuse(400, ""), "", false},
		"nothing, 405":                          {unsigned, nil, hostile.Refuse(405, ""), "", false},
		"nothing, 501":                          {unsigned, nil, hostile.Refuse(501, ""), "", false},
		"a signature, 403":                      {both, nil, hostile.Refuse(403, ""), "", false},
		"a signature, 503":                      {both, nil, busy, "", false},
		"a signature that is not enough, 403":   {both, judge{nil, 2}, hostile.Refuse(403, ""), "", false},
		"a signature that is not enough, 503":   {both, judge{nil, 2}, busy, "503", false},
		"a signature that is enough, not asked": {both, judge{nil, 1}, busy, "", false},
	} {
		h := hostile.New(t)
		h.Load(t, tt.layout, "1")
		h.Break(hostile.Referrers, tt.fault)
		r, _ := patient(t, t.TempDir())
		ref, err := r.Resolve(ctx, h.Name("1"))
		if err != nil {
			t.Fatal(err)
		}
		ref = ref.For(tt.judge)
		if _, err := ref.Describe(ctx); err != nil {
			t.Fatal(err)
		}
		_, err = ref.Signatures(ctx)
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case tt.want != "" && (!errors.Is(err, errWithheld) || !errors.Is(err, ErrRegistry) || errors.Is(err, ErrDenied) != tt.denied || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: error = %v, want %q", name, err, tt.want)
		}
	}
}

// listed answers with a list of referrers.
func listed(a *hostile.Answer) { a.Status, a.Body = 200, []byte(`{"manifests":[]}`) }

// What a mirror withholds is no matter where the registry itself answers.
func TestMirrorWithholdsTheList(t *testing.T) {
	for name, faults := range map[string][2]hostile.Fault{"by the mirror": {hostile.Refuse(503, ""), nil}, "by the registry": {nil, hostile.Refuse(503, "")}} {
		mirror, registry := hostile.New(t), hostile.New(t)
		for i, h := range []*hostile.Registry{mirror, registry} {
			h.Load(t, small.Layout(t), "1")
			if faults[i] != nil {
				h.Break(hostile.Referrers, faults[i])
			}
		}
		toml := fmt.Sprintf("server = %q\n[host.%q]\n  capabilities = [\"pull\", \"resolve\", \"referrers\"]\n", registry.URL, mirror.URL)
		r, _ := patient(t, hostsDir(t, registry.Host(), toml))
		ref, err := r.Resolve(ctx, registry.Name("1"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = ref.Signatures(ctx)
		if withheld := faults[1] != nil; errors.Is(err, errWithheld) != withheld || !withheld && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if len(mirror.Requests(hostile.Referrers)) == 0 || len(registry.Requests(hostile.Referrers)) == 0 {
			t.Errorf("%s: not both were asked", name)
		}
	}
}

// What a registry may put beside an image, and what comes of it.
func TestHostileReferrers(t *testing.T) {
	for name, tt := range map[string]struct {
		arrange func(h *hostile.Registry)
		want    string // in the error
		found   int    // beside the classic signature
		over    int64  // Oversize of the last
	}{
		"101 of both forms together": {func(h *hostile.Registry) {
			var list [][]byte
			for i := range osimage.MaxSignatures {
				list = append(list, bundleManifest(h, osimage.PredicateSignature, 0, fmt.Appendf(nil, `{"n":%d}`, i)))
			}
			h.Refer(1, list...)
		}, "more than 100 signatures", 0, 0},
		"101 in the list": {func(h *hostile.Registry) { h.Refer(101, bundleManifest(h, "", 0, []byte("{}"))) }, "more than 100 signatures", 0, 0},
		"101 in one manifest": {func(h *hostile.Registry) {
			layer := fmt.Sprintf(`{"mediaType":%q,"digest":"%s","size":2}`, authority.MediaTypeBundle, digest.FromString("{}"))
			h.Refer(1, []byte(`{"layers":[`+layer+strings.Repeat(","+layer, 100)+`]}`))
		}, "more than 100 signatures", 0, 0},
		"a bundle over its limit": {func(h *hostile.Registry) {
			h.Refer(1, bundleManifest(h, osimage.PredicateSignature, 0, make([]byte, osimage.MaxPayload+1)))
		}, "", 1, osimage.MaxPayload + 1},
		"a bundle of 2^63-1 bytes":      {func(h *hostile.Registry) { h.Refer(1, bundleManifest(h, "", 1<<63-1, []byte("{}"))) }, "", 1, 1<<63 - 1},
		"a bundle longer than it says":  {func(h *hostile.Registry) { h.Refer(1, bundleManifest(h, "", 1, []byte("{}"))) }, "other content", 0, 0},
		"a bundle shorter than it says": {func(h *hostile.Registry) { h.Refer(1, bundleManifest(h, "", 3, []byte("{}"))) }, "", -1, 0},
		"a manifest that is none":       {func(h *hostile.Registry) { h.Refer(1, []byte("\x00")) }, "signature manifest", 0, 0},
		"a list that is none":           {func(h *hostile.Registry) { h.Refer(1); h.Break(hostile.Referrers, hostile.Flip(0)) }, "decode referrers", 0, 0},
		"a list without an end":         {func(h *hostile.Registry) { h.Refer(1); h.Break(hostile.Referrers, hostile.Flood) }, "", -1, 0},
		// Some registries say so of an API that they do not have.
		"a list that nobody may read":      {func(h *hostile.Registry) { h.Refer(1); h.Break(hostile.Referrers, hostile.Refuse(403, "")) }, "", 0, 0},
		"an attestation that nobody wants": {func(h *hostile.Registry) { h.Refer(1, bundleManifest(h, osimage.PredicateSPDX, 0, []byte("{}"))) }, "", 0, 0},
	} {
		h := hostile.New(t)
		load(t, h)
		tt.arrange(h)
		r, _ := patient(t, t.TempDir())
		ref, err := r.Resolve(ctx, h.Name("1"))
		if err != nil {
			t.Fatal(err)
		}
		sigs, err := ref.Signatures(ctx)
		switch {
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: %d signatures, %v, want %q", name, len(sigs), err, tt.want)
		case tt.found < 0 && err == nil:
			t.Errorf("%s: %d signatures and no error", name, len(sigs))
		case tt.want == "" && tt.found >= 0 && (err != nil || len(sigs) != 1+tt.found || sigs[0].Oversize != tt.over):
			t.Errorf("%s: %d signatures, %v", name, len(sigs), err)
		}
		if n := h.Sent(hostile.Pack); n > 0 {
			t.Errorf("%s: %d bytes of packs", name, n)
		}
	}
}

// Folders and archives carry bundles in their index, and in the list under the tag
// that stands in for the referrers API.
func TestLayoutReferrers(t *testing.T) {
	wants := judge{[]string{osimage.PredicateSPDX}, 10}
	dir := signed(t, small)
	authority.Attach(t, dir, osimage.PredicateSignature, []byte(`{"a":1}`))
	authority.Attach(t, dir, osimage.PredicateSPDX, []byte(`{"b":1}`))
	l, err := OpenLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := l.Resolve(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	authority.AttachClassic(t, dir, osimage.AttestationTag(ref.Digest()), osimage.MediaTypeEnvelope, []byte(`{"c":1}`), map[string]string{"predicateType": osimage.PredicateSPDX})
	listed := signed(t, small)
	authority.AttachListed(t, listed, osimage.PredicateSignature, []byte(`{"a":1}`))
	for name, tt := range map[string]struct {
		dir   string
		judge Judge
		want  int
	}{
		"in the index": {dir, nil, 2}, "in the index, with attestations": {dir, wants, 4}, "in a list": {listed, nil, 2},
	} {
		archive := filepath.Join(t.TempDir(), "os.oci")
		if out, err := exec.Command("tar", "-C", tt.dir, "-cf", archive, ".").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		for _, path := range []string{tt.dir, archive} {
			l, err := OpenLayout(path)
			if err != nil {
				t.Fatal(err)
			}
			ref, err := l.Resolve(ctx, "")
			if err != nil {
				t.Fatalf("%s: the image is not told from what is beside it: %v", name, err)
			}
			sigs, err := ref.For(tt.judge).Signatures(ctx)
			if err := errors.Join(err, l.Close()); err != nil || len(sigs) != tt.want {
				t.Errorf("%s, %s: %d signatures, %v, want %d", name, path, len(sigs), err, tt.want)
			}
		}
	}
}

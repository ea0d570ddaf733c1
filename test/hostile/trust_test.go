package hostile

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kapernikov/osctl/test/sample"
)

const policyHead = "apiVersion: osctl.kapernikov.com/v1\nkind: Policy\nkeys:\n  - {name: release, file: release.pub}\n"

// trust are the rows of what signatures say and do not say, 15 to 22: an upgrade from a
// registry that serves rightly what it has no business with. Nothing of a pack is asked
// for, and the same command succeeds once the registry or the policy is right.
func (s *site) trust(t *testing.T) {
	for _, tt := range []struct {
		name    string
		arrange func(t *testing.T, m *machine, r *Registry)
		code    int
		want    string
	}{
		{"15 unsigned", func(t *testing.T, _ *machine, r *Registry) { signatures(t, r, nil) }, 20, "found no signature"},
		{"16 signature of another digest", func(t *testing.T, _ *machine, r *Registry) {
			other := r.Load(t, sample.Image{Version: "1.5", MiB: 1, Seed: 9}.Signed(t, s.key), "other")
			signatures(t, r, r.signed(t, other))
		}, 20, "found one by release of another image"},
		{"17 unknown key", manySignatures(1), 20, "found 1 signature by no key of the policy"},
		{"18 revoked key", func(t *testing.T, m *machine, r *Registry) {
			m.second(t, r)
			m.write("policy.yaml", []byte(policyHead+"  - {name: second, file: second.pub}\nrevoked:\n  keys: [{name: second, file: second.pub}]\n"))
		}, 20, "by second (sha256:"},
		{"19 expired key", func(_ *testing.T, m *machine, _ *Registry) {
			m.write("policy.yaml", []byte(strings.Replace(policyHead, "file:", "notAfter: 2001-01-01T00:00:00Z, file:", 1)))
		}, 20, "expired at 2001-01-01 00:00 UTC; it is "},
		{"19 key that is not yet valid", func(_ *testing.T, m *machine, _ *Registry) {
			m.write("policy.yaml", []byte(strings.Replace(policyHead, "file:", "notBefore: 2999-01-01T00:00:00Z, file:", 1)))
		}, 20, "not valid before 2999-01-01 00:00 UTC; it is "},
		{"20 threshold met by the same key twice", func(t *testing.T, m *machine, r *Registry) {
			m.second(t, r)
			signatures(t, r, []ocispec.Descriptor{strangeSignature(t, m, r, s.key), strangeSignature(t, m, r, s.key)})
			m.write("policy.yaml", []byte(policyHead+"  - {name: second, file: second.pub}\nrules:\n  - {name: two, keys: [release, second], threshold: 2}\n"))
		}, 20, "found one by release (sha256:"},
		{"21 another product", func(t *testing.T, _ *machine, r *Registry) {
			r.Load(t, sample.Image{Product: "camera", Version: "1.5", MiB: 1, Seed: 9}.Signed(t, s.key), "1.1")
		}, 21, "camera"},
		{"21 another architecture", func(t *testing.T, _ *machine, r *Registry) {
			r.Load(t, sample.Image{Architecture: "s390x", Version: "1.5", MiB: 1, Seed: 9}.Signed(t, s.key), "1.1")
		}, 21, "s390x"},
		{"22 downgrade", func(t *testing.T, _ *machine, r *Registry) {
			r.Load(t, sample.Image{Version: "0.9", MiB: 1, Seed: 9}.Signed(t, s.key), "1.1")
		}, 21, "the image has 0.9, this machine wants 1.0 or newer"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s.turn(t)
			m, r := s.newMachine(t), New(t)
			policy := m.read("policy.yaml")
			r.Load(t, m.layout, "1.1")
			tt.arrange(t, m, r)
			got := m.upgrade(r.Name("1.1"))
			if got.code != tt.code || !strings.Contains(got.out, tt.want) || m.holds() {
				t.Errorf("exit code %d, want %d with %q: %s", got.code, tt.code, tt.want, got.out)
			}
			if n := len(r.Requests(Pack)); n > 0 {
				t.Errorf("%d requests for packs", n)
			}
			m.write("policy.yaml", policy)
			r.Load(t, m.layout, "1.1")
			if got := m.upgrade(r.Name("1.1")); got.code != 0 || !m.holds() {
				t.Errorf("after it has ended: exit code %d: %s", got.code, got.out)
			}
		})
	}
}

// second has another key sign the image, and no other; its public half is second.pub.
func (m *machine) second(t *testing.T, r *Registry) {
	t.Helper()
	key, _, public := sample.Key(t)
	m.write("second.pub", public)
	signatures(t, r, []ocispec.Descriptor{strangeSignature(t, m, r, key)})
}

// signed lists the classic signatures of an image.
func (r *Registry) signed(t *testing.T, image digest.Digest) []ocispec.Descriptor {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	var manifest ocispec.Manifest
	if err := json.Unmarshal(r.blobs[r.tags[r.SignatureTag(image)].Digest], &manifest); err != nil {
		t.Fatal(err)
	}
	return manifest.Layers
}

// withheld is a registry that has only bundles and refuses to list them.
func withheld(status int) func(*testing.T, *machine, *Registry) {
	return func(t *testing.T, _ *machine, r *Registry) {
		signatures(t, r, nil)
		r.Refer(1, bundleOf(t, r, r.digest("1.1"), 0))
		r.Break(Referrers, Refuse(status, ""))
	}
}

package publish

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/kapernikov/osctl/test/need"
)

// A bundle is an OCI archive as other tools know it: skopeo, which shares no code with
// osctl, reads it and copies it into a registry with the digest that was signed.
func TestBundleIsReadByOthers(t *testing.T) {
	need.Long(t)
	skopeo := need.Tool(t, "skopeo")
	from, to, key := newRegistry(t, registry.WithReferrersSupport(true)), newRegistry(t), testKey(t)
	d, err := Push(t.Context(), threePacks(t), from.ref(":1.1"), quick())
	if err != nil {
		t.Fatal(err)
	}
	for _, bundle := range []bool{false, true} {
		o := quick()
		o.Bundle = bundle
		if _, err := Sign(t.Context(), from.ref(":1.1"), key, o); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "os.oci")
	if _, err := Bundle(t.Context(), from.ref(":1.1"), file, quick()); err != nil {
		t.Fatal(err)
	}
	archive := "oci-archive:" + file + ":1.1"
	out, err := exec.CommandContext(t.Context(), skopeo, "inspect", "--raw", archive).CombinedOutput()
	if err != nil || !strings.Contains(string(out), `"artifactType":"application/vnd.kapernikov.osctl.image.v1"`) {
		t.Errorf("skopeo inspect: %v\n%s", err, out)
	}
	out, err = exec.CommandContext(t.Context(), skopeo, "--insecure-policy", "copy", "--dest-tls-verify=false", "--preserve-digests", archive, "docker://"+to.ref(":1.1")).CombinedOutput()
	if err != nil {
		t.Fatalf("skopeo copy: %v\n%s", err, out)
	}
	target, err := quick().parse(to.ref(":1.1"))
	if err != nil {
		t.Fatal(err)
	}
	if img, err := readRemote(t.Context(), target, quick()); err != nil || img.Digest() != d {
		t.Errorf("skopeo made %s of %s, %v", img.Digest(), d, err)
	}
}

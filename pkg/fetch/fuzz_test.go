package fetch

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/test/sample"
)

// archiveOf is a tar with these members.
func archiveOf(f *testing.F, members map[string]string) []byte {
	f.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, text := range members {
		if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(text)), Mode: 0o644, Typeflag: tar.TypeReg}); err != nil {
			f.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			f.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		f.Fatal(err)
	}
	return b.Bytes()
}

// FuzzArchive opens any bytes as an OCI archive, as "upgrade --from" does.
func FuzzArchive(f *testing.F) {
	const digest = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
	index := `{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"` + digest + `","size":2}]}`
	f.Add(archiveOf(f, map[string]string{"index.json": index, "blobs/sha256/" + strings.Repeat("0", 64): "{}"}))
	f.Add(archiveOf(f, map[string]string{"./index.json": strings.Replace(index, `"size":2`, `"size":-1`, 1)}))
	f.Add(archiveOf(f, map[string]string{"index.json": strings.Replace(index, `"size":2`, `"size":9223372036854775807`, 1)}))
	f.Add(archiveOf(f, map[string]string{"index.json": strings.Replace(index, digest, "sha256:../../../../etc/passwd", 1)}))
	f.Add(archiveOf(f, map[string]string{"../index.json": index}))
	f.Add([]byte("not a tar"))
	f.Fuzz(func(t *testing.T, data []byte) {
		name := filepath.Join(t.TempDir(), "os.oci")
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := OpenLayout(name)
		if err != nil {
			if !errors.Is(err, ErrLayout) {
				t.Errorf("OpenLayout = %v, want ErrLayout", err)
			}
			return
		}
		defer l.Close() //nolint:errcheck // read only
		readAll(t, l)
	})
}

// readAll reads what a decision needs, and holds that errors have a class.
func readAll(t *testing.T, l *Layout) {
	t.Helper()
	ref, err := l.Resolve(ctx, "")
	if err != nil {
		if !errors.Is(err, ErrLayout) {
			t.Errorf("Resolve = %v, want ErrLayout", err)
		}
		return
	}
	if _, err := ref.Describe(ctx); err != nil && !errors.Is(err, ErrLayout) && !errors.Is(err, osimage.ErrInvalid) && !errors.Is(err, osimage.ErrNotOS) {
		t.Errorf("Describe: an error without a class: %v", err)
	}
	if _, err := ref.Signatures(ctx); err != nil && !errors.Is(err, ErrLayout) && !errors.Is(err, osimage.ErrInvalid) {
		t.Errorf("Signatures: an error without a class: %v", err)
	}
}

// FuzzIndex gives a layout with real content any index, and takes it for a list of
// referrers as well.
func FuzzIndex(f *testing.F) {
	key, _, _ := sample.Key(f)
	dir := small.Signed(f, key)
	name := filepath.Join(dir, ocispec.ImageIndexFile)
	index, err := os.ReadFile(name)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(index)
	f.Add(bytes.ReplaceAll(index, []byte(".sig"), nil))
	f.Add(bytes.ReplaceAll(index, []byte(`"size":`), []byte(`"size":-`)))
	f.Add([]byte(`{"manifests":[` + strings.Repeat(`{"digest":"sha256:`+strings.Repeat("0", 64)+`","size":2},`, 101) + `{}]}`))
	f.Add([]byte(`{"manifests":[{"digest":"sha256:../../../../etc/passwd","size":9223372036854775807}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if l, err := OpenLayout(dir); err == nil {
			readAll(t, l)
		} else if !errors.Is(err, ErrLayout) {
			t.Errorf("OpenLayout = %v, want ErrLayout", err)
		}
		var list ocispec.Index
		if json.Unmarshal(data, &list) != nil {
			return
		}
		found, err := osimage.BundleManifests(list.Manifests, nil)
		if err != nil && !errors.Is(err, osimage.ErrInvalid) || len(found) > osimage.MaxSignatures {
			t.Errorf("%d manifests, %v", len(found), err)
		}
		for _, d := range found {
			if d.Digest.Validate() != nil {
				t.Errorf("took a manifest %q", d.Digest)
			}
		}
	})
}

func FuzzRetryAfter(f *testing.F) {
	now := time.Unix(1_800_000_000, 0)
	f.Add("")
	for _, s := range []string{"7", "-7", "4294967295", "99999999999999999999", now.Add(time.Hour).UTC().Format(http.TimeFormat), "soon"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		if d := retryAfter(value, now); d < 0 {
			t.Errorf("retryAfter(%q) = %s", value, d)
		}
	})
}

// FuzzScrub holds that no text of a registry brings a secret or a control character
// to a terminal.
func FuzzScrub(f *testing.F) {
	f.Add("Get \"https://store.example.com/b?X-Signature=abc\": no hunter22, no hun\x1bter22 here \x1b[2J\u202e")
	f.Add(strings.Repeat("hunter22", 1000))
	f.Fuzz(func(t *testing.T, text string) {
		w := newWire()
		w.keepSecret("Bearer hunter22")
		got := w.scrub(errors.New(text)).Error()
		if strings.Contains(got, "hunter22") {
			t.Errorf("%q shows the secret", got)
		}
		if i := strings.IndexFunc(got, func(r rune) bool { return r != '\n' && unicode.IsControl(r) }); i >= 0 {
			t.Errorf("%q has a control character at %d", got, i)
		}
		if len(got) > longestMessage+10 {
			t.Errorf("%d bytes", len(got))
		}
	})
}

package publish

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/kapernikov/osctl/pkg/fetch"
	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/trust"
	"github.com/kapernikov/osctl/test/daemon"
)

// offline verifies a bundle by the code of a machine, and returns its image.
func offline(t testing.TB, file string, public []byte) (osimage.Image, error) {
	t.Helper()
	l, err := fetch.OpenLayout(file)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // read only
	ref, err := l.Resolve(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	img, err := ref.Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sigs, err := ref.Signatures(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	v, err := trust.New(trust.Policy{Keys: []trust.Key{{Name: "ours", PEM: public}}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = v.Verify(t.Context(), img, sigs)
	return img, err
}

// members are the files of an archive.
func members(t testing.TB, file string) map[string][]byte {
	t.Helper()
	list := map[string][]byte{}
	for tr := tar.NewReader(bytes.NewReader(read(t, file))); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		if list[h.Name], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
	}
}

// A bundle is a whole OCI layout in a tar, the same each time; a machine verifies it
// without a network, and push brings it, with its signatures and the statement of its
// channel, to another registry.
func TestBundle(t *testing.T) {
	dir, from, to := threePacks(t), newRegistry(t), newRegistry(t)
	key := testKey(t)
	public := publicPEM(t, key)
	if _, err := Sign(t.Context(), dir, key, Options{}); err != nil {
		t.Fatal(err)
	}
	d, err := Push(t.Context(), dir, from.ref(":stable"), quick())
	if err != nil {
		t.Fatal(err)
	}
	issued := time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
	if _, err := PublishChannel(t.Context(), from.ref(":stable"), Channel{Issued: issued, Lasts: time.Hour}, key, quick()); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "os.oci")
	b, err := Bundle(t.Context(), from.ref(":stable"), file, quick())
	if err != nil || b.Digest != d || b.Companions != 3 || b.Size != int64(len(read(t, file))) {
		t.Fatalf("Bundle = %+v, %v", b, err)
	}
	for name, content := range members(t, file) {
		if rest, ok := strings.CutPrefix(name, "blobs/sha256/"); ok && digest.FromBytes(content).Encoded() != rest {
			t.Errorf("%s has other content", name)
		}
	}
	again := filepath.Join(t.TempDir(), "again")
	if _, err := Bundle(t.Context(), from.ref(":stable"), again, quick()); err != nil || !bytes.Equal(read(t, file), read(t, again)) {
		t.Errorf("the same again is another archive (%v)", err)
	}
	if _, err := Bundle(t.Context(), from.ref(":stable"), file, quick()); !errors.Is(err, ErrExists) {
		t.Errorf("over a file: %v", err)
	}
	if img, err := offline(t, file, public); err != nil || img.Digest() != d {
		t.Errorf("offline: %v, %v", img.Digest(), err)
	}
	stranger := publicPEM(t, testKey(t))
	if _, err := offline(t, file, stranger); !errors.As(err, new(*trust.Refusal)) {
		t.Errorf("offline, by a stranger's key: %v", err)
	}

	if got, err := Push(t.Context(), file, to.ref(":1.1"), quick()); err != nil || got != d {
		t.Fatalf("Push = %s, %v", got, err)
	}
	if sigs := fetchSignatures(t, to.ref(""), d); len(sigs) != 1 {
		t.Errorf("%d signatures arrived", len(sigs))
	}
	if _, err := Bundle(t.Context(), to.ref(":stable.channel"), again+"2", quick()); !errors.Is(err, ErrNotFound) {
		t.Errorf("a statement went to another tag than its own: %v", err)
	}
	if _, err := Push(t.Context(), file, to.ref(":stable"), quick()); err != nil {
		t.Fatal(err)
	}
	third := filepath.Join(t.TempDir(), "third")
	if _, err := Bundle(t.Context(), to.ref(":stable"), third, quick()); err != nil || !bytes.Equal(read(t, file), read(t, third)) {
		t.Errorf("from there it is another archive (%v)", err)
	}
}

// What is cut off or altered on the way is not pushed, and a registry that fails
// leaves no file.
func TestBundleIsDamaged(t *testing.T) {
	dir, from := threePacks(t), newRegistry(t)
	if _, err := Push(t.Context(), dir, from.ref(":1.1"), quick()); err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	file := filepath.Join(folder, "os.oci")
	if _, err := Bundle(t.Context(), from.ref(":1.1"), file, quick()); err != nil {
		t.Fatal(err)
	}
	whole := read(t, file)
	for name, data := range map[string][]byte{
		"cut": whole[:len(whole)/2], "no tar": []byte("x"), "altered": append(append(bytes.Clone(whole[:len(whole)-5000]), 'x', 'y'), whole[len(whole)-4998:]...),
	} {
		bad := filepath.Join(folder, "bad.oci")
		write(t, bad, string(data))
		if _, err := Push(t.Context(), bad, newRegistry(t).ref(":1.1"), quick()); !errors.Is(err, ErrLayout) {
			t.Errorf("%s: %v, want ErrLayout", name, err)
		}
		remove(t, bad)
	}
	if _, err := Bundle(t.Context(), from.ref(":none"), filepath.Join(folder, "none"), quick()); !errors.Is(err, ErrNotFound) {
		t.Errorf("of what is not there: %v", err)
	}
	left, err := os.ReadDir(folder)
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// With the real cosign, over registries with and without referrers: signatures and
// attestations of both kinds come through a bundle, and the tool still agrees.
func TestBundleWithCosign(t *testing.T) {
	c := newCosign(t)
	private, public := c.keyPair(t, "ours", "")
	predicate := filepath.Join(c.home, "sbom.json")
	write(t, predicate, `{"spdxVersion":"SPDX-2.3","name":"os"}`)
	for pair, kinds := range map[string][2]string{
		"referrers to referrers": {"new", "new"}, "referrers to tags": {"new", "old"}, "tags to referrers": {"old", "new"},
	} {
		t.Run(pair, func(t *testing.T) {
			place := func(kind string) string {
				if kind == "old" {
					return daemon.StartRegistry(t).Addr + "/os"
				}
				server := httptest.NewServer(registry.New(registry.WithReferrersSupport(true), registry.Logger(log.New(io.Discard, "", 0))))
				t.Cleanup(server.Close)
				return strings.TrimPrefix(server.URL, "http://") + "/os"
			}
			from, to := place(kinds[0]), place(kinds[1])
			d, err := Push(t.Context(), threePacks(t), from+":stable", quick())
			if err != nil {
				t.Fatal(err)
			}
			at := "@" + d.String()
			c.sign(t, private, from+at)
			c.must(t, "attest", "--key", private, "--tlog-upload=false", "--type", "spdxjson", "--predicate", predicate, from+at)
			referrer(t, from, d)
			key := openKey(t, private)
			if _, err := PublishChannel(t.Context(), from+":stable", Channel{Issued: time.Now(), Lasts: time.Hour}, key, quick()); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "os.oci")
			if b, err := Bundle(t.Context(), from+":stable", file, quick()); err != nil || b.Companions != 5 {
				t.Fatalf("Bundle = %+v, %v", b, err)
			}
			if _, err := offline(t, file, read(t, public)); err != nil {
				t.Errorf("offline: %v", err)
			}
			if _, err := Push(t.Context(), file, to+":stable", quick()); err != nil {
				t.Fatal(err)
			}
			for _, ref := range []string{to + at, to + ":stable.channel"} {
				if out, err := c.verify(t, public, ref); err != nil {
					t.Errorf("cosign verify %s: %v\n%s", ref, err, out)
				}
			}
			if out, err := c.run(t, "verify-attestation", "--key", public, "--insecure-ignore-tlog=true", "--type", "spdxjson", to+at); err != nil {
				t.Errorf("cosign verify-attestation: %v\n%s", err, out)
			}
			again := filepath.Join(t.TempDir(), "again")
			if _, err := Bundle(t.Context(), to+":stable", again, quick()); err != nil || !bytes.Equal(read(t, file), read(t, again)) {
				t.Errorf("from there it is another archive (%v)", err)
			}
		})
	}
}

// referrer puts an artifact beside an image that names it as its subject.
func referrer(t testing.TB, repository string, d digest.Digest) {
	t.Helper()
	const kind = "application/vnd.dev.sigstore.bundle.v0.3+json"
	repo, err := name.NewRepository(repository)
	if err != nil {
		t.Fatal(err)
	}
	subject, err := remote.Get(repo.Digest(d.String()))
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), kind), static.NewLayer([]byte(`{"bundle":1}`), kind))
	if err != nil {
		t.Fatal(err)
	}
	about, ok := mutate.Subject(img, subject.Descriptor).(v1.Image)
	if !ok {
		t.Fatal("no image any more")
	}
	hash, err := about.Digest()
	if err == nil {
		err = remote.Write(repo.Digest(hash.String()), about)
	}
	if err != nil {
		t.Fatal(err)
	}
}

package fetch

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/kapernikov/osctl/pkg/osimage"
)

// carry reads all that a layout has of its image, packs included.
func carry(t *testing.T, name string) error {
	t.Helper()
	l, err := OpenLayout(name)
	if err != nil {
		return err
	}
	defer l.Close() //nolint:errcheck // read only
	ref, err := l.Resolve(ctx, "")
	if err != nil {
		return err
	}
	sigs, err := ref.Signatures(ctx)
	if err != nil {
		return err
	}
	if len(sigs) != 1 {
		t.Errorf("%d signatures", len(sigs))
	}
	raw, err := direct.pull(ref)
	if err == nil && !bytes.Equal(raw, small.Raw()) {
		t.Error("the image came back wrong, and without an error")
	}
	return err
}

// What is put in the place of a file of a layout is opened only if it is a file.
func TestLayoutOfOtherThings(t *testing.T) {
	dir := signed(t, small)
	config := signatureConfig(t, dir)
	for name, put := range map[string]func(path string) error{
		"a pipe":      func(path string) error { return unix.Mkfifo(path, 0o600) },
		"a device":    func(path string) error { return os.Symlink("/dev/zero", path) },
		"a folder":    func(path string) error { return os.Mkdir(path, 0o700) },
		"a loop":      func(path string) error { return os.Symlink(path, path) },
		"a bad link":  func(path string) error { return os.Symlink("nowhere", path) },
		"a good link": nil,
	} {
		for _, path := range append(blobsOf(t, dir), filepath.Join(dir, ocispec.ImageIndexFile)) {
			aside := filepath.Join(t.TempDir(), "aside")
			if err := os.Rename(path, aside); err != nil {
				t.Fatal(err)
			}
			good := put == nil
			if good {
				put = func(path string) error { return os.Symlink(aside, path) }
			}
			if err := put(path); err != nil {
				t.Fatal(err)
			}
			switch err := carry(t, dir); {
			case good && err != nil:
				t.Errorf("%s for %s: %v", name, filepath.Base(path), err)
			case !good && err == nil && filepath.Base(path) != config:
				t.Errorf("%s for %s: no error", name, filepath.Base(path))
			case !good && err != nil && !errors.Is(err, ErrLayout):
				t.Errorf("%s for %s: %v, want ErrLayout", name, filepath.Base(path), err)
			}
			if good {
				put = nil
			}
			if err := errors.Join(os.Remove(path), os.Rename(aside, path)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// signatureConfig is the config of the signatures of a layout, which nobody reads.
func signatureConfig(t *testing.T, dir string) string {
	t.Helper()
	for _, blob := range blobsOf(t, dir) {
		var m ocispec.Manifest
		data, err := os.ReadFile(blob)
		if err == nil && json.Unmarshal(data, &m) == nil && len(m.Layers) > 0 && m.Layers[0].MediaType == osimage.MediaTypeSignature {
			return m.Config.Digest.Encoded()
		}
	}
	t.Fatal("there is no signature")
	return ""
}

// member is an entry of an archive.
type member struct {
	tar.Header
	text string
}

// archived is an archive of a folder, after some members and before others.
func archived(t *testing.T, dir string, before, after []member) string {
	t.Helper()
	list := slices.Clone(before)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path) //nolint:errcheck // it is below
		list = append(list, member{tar.Header{Name: name, Typeflag: tar.TypeReg}, string(data)})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range append(list, after...) {
		m.Size, m.Mode = int64(len(m.text)), 0o644
		if err := w.WriteHeader(&m.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(m.text)); err != nil {
			t.Fatal(err)
		}
	}
	name := filepath.Join(t.TempDir(), "os.oci")
	if err := errors.Join(w.Close(), os.WriteFile(name, b.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	return name
}

// What else an archive has is neither read nor written anywhere, and no member has two
// meanings.
func TestArchiveMembers(t *testing.T) {
	dir := signed(t, small)
	blob := "blobs/sha256/" + filepath.Base(blobsOf(t, dir)[0])
	file := func(name, text string) []member {
		return []member{{tar.Header{Name: name, Typeflag: tar.TypeReg}, text}}
	}
	link := func(kind byte, name, to string) []member {
		return []member{{tar.Header{Name: name, Typeflag: kind, Linkname: to}, ""}}
	}
	for name, tt := range map[string]struct {
		before, after []member
		want          string
	}{
		"as it is":               {},
		"a file elsewhere":       {before: file("../../etc/passwd", "root::0:0"), after: file("/etc/passwd", "root::0:0")},
		"an index above":         {before: file("../index.json", "{}"), after: file("/index.json", "{}")},
		"an index of capitals":   {before: file("INDEX.JSON", "{}"), after: file("Index.json", "{}")},
		"a blob of capitals":     {after: file(strings.ToUpper(blob), "other")},
		"a blob with more":       {after: file(blob+"0", "other")},
		"a link as the index":    {before: link(tar.TypeSymlink, "index.json", "/etc/passwd"), after: link(tar.TypeLink, "index.json", blob)},
		"a link as a blob":       {after: link(tar.TypeSymlink, blob, "/dev/zero")},
		"a device as a blob":     {before: link(tar.TypeChar, blob, "")},
		"two indexes":            {before: file("index.json", "{}"), want: "index.json is there twice"},
		"two, the other last":    {after: file("./index.json", "{}"), want: "index.json is there twice"},
		"two, by a detour":       {after: file("blobs/../index.json", "{}"), want: "index.json is there twice"},
		"two blobs of one name":  {after: file(blob, "other"), want: blob + " is there twice"},
		"two blobs, one is void": {before: file(blob, ""), want: blob + " is there twice"},
	} {
		err := carry(t, archived(t, dir, tt.before, tt.after))
		if tt.want == "" && err != nil || tt.want != "" && (!errors.Is(err, ErrLayout) || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want ErrLayout with %q", name, err, tt.want)
		}
	}
	many := make([]member, maxMembers+1)
	for i := range many {
		many[i] = member{tar.Header{Name: "blobs/sha256/" + digest.FromBytes([]byte{byte(i), byte(i >> 8), byte(i >> 16)}).Encoded(), Typeflag: tar.TypeReg}, ""}
	}
	if err := carry(t, archived(t, dir, many, nil)); !errors.Is(err, ErrLayout) || !strings.Contains(err.Error(), "more than 65536 blobs") {
		t.Errorf("%d members: %v", len(many), err)
	}
}

// indexed replaces the index of a layout.
func indexed(t *testing.T, dir string, change func(*ocispec.Index)) {
	t.Helper()
	name := filepath.Join(dir, ocispec.ImageIndexFile)
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		t.Fatal(err)
	}
	change(&index)
	if raw, err = json.Marshal(index); err == nil {
		err = os.WriteFile(name, raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestLayoutIndexes(t *testing.T) {
	// 100,000 entries, or fewer that make the machine read gigabytes.
	dir := signed(t, small)
	indexed(t, dir, func(i *ocispec.Index) {
		for len(i.Manifests) <= maxEntries {
			i.Manifests = append(i.Manifests, i.Manifests[0])
		}
	})
	if err := carry(t, dir); !errors.Is(err, ErrLayout) || !strings.Contains(err.Error(), "1001 manifests, the limit is 1000") {
		t.Errorf("a thousand and one: %v", err)
	}
	// The same image under two names is one image.
	dir = signed(t, small)
	indexed(t, dir, func(i *ocispec.Index) {
		again := i.Manifests[0]
		again.Annotations = map[string]string{ocispec.AnnotationRefName: "stable"}
		i.Manifests = append(i.Manifests, again)
	})
	if err := carry(t, dir); err != nil {
		t.Errorf("two names: %v", err)
	}
	// An index in an index is not gone into.
	dir = signed(t, small)
	inner, err := os.ReadFile(filepath.Join(dir, ocispec.ImageIndexFile))
	if err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(inner)
	if err := os.WriteFile(filepath.Join(dir, "blobs", "sha256", d.Encoded()), inner, 0o600); err != nil {
		t.Fatal(err)
	}
	indexed(t, dir, func(i *ocispec.Index) {
		i.Manifests = []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageIndex, Digest: d, Size: int64(len(inner))}}
	})
	l, err := OpenLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := l.Resolve(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ref.Describe(ctx); !errors.Is(err, osimage.ErrNotOS) || !strings.Contains(err.Error(), "an image index") {
		t.Errorf("an index in an index: %v", err)
	}
}

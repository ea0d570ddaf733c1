package artifact

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/test/need"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var buildTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func options(t *testing.T, rootfs string) Options {
	t.Helper()
	return Options{
		Rootfs: rootfs, Output: filepath.Join(t.TempDir(), "layout"), Product: "gateway", Version: "1.2", Epoch: 3,
		Architecture: "amd64", Kernel: "/boot/vmlinuz", Initrd: "/boot/initrd.img", Created: buildTime,
	}
}

// makeTree writes a small root file system; order is the order of creation,
// which must not matter.
func makeTree(t *testing.T, dir string, reverse bool) {
	t.Helper()
	random := make([]byte, 3<<20)
	rand.NewChaCha8([32]byte{1}).Read(random)
	files := []struct {
		name string
		data []byte
	}{
		{"boot/vmlinuz-6.1", []byte("kernel")}, {"boot/initrd.img", []byte("initrd")},
		{"usr/bin/tool", random}, {"usr/bin/a file with spaces", []byte("x")}, {"etc/hostname", []byte("gateway\n")},
		{"var/lib/dpkg/status", []byte("Package: libc6\nStatus: install ok installed\nVersion: 2.36-9\nDescription: C\n more: x\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\n")},
	}
	for i := range 300 {
		files = append(files, struct {
			name string
			data []byte
		}{filepath.Join("usr/share/many", strings.Repeat("n", i%40)+string(rune('a'+i%26))+filepath.Base(t.Name())[:1]+string(rune('0'+i/26))), nil})
	}
	if reverse {
		slices.Reverse(files)
	}
	for _, f := range files {
		name := filepath.Join(dir, f.name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, f.data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("vmlinuz-6.1", filepath.Join(dir, "boot/vmlinuz")); err != nil {
		t.Fatal(err)
	}
	old := buildTime.Add(-24 * time.Hour)
	err := filepath.Walk(dir, func(name string, info os.FileInfo, err error) error {
		if err != nil || info.Mode()&os.ModeSymlink != 0 {
			return err // the link stays newer than the release: its time is clamped
		}
		return os.Chtimes(name, old, old)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// read parses the layout as a machine would and returns the image and the
// concatenation of its packs.
func read(t *testing.T, dir string) (osimage.Image, []byte) {
	t.Helper()
	var index ocispec.Index
	blob := func(d digest.Digest) []byte {
		data, err := os.ReadFile(filepath.Join(dir, "blobs", "sha256", d.Encoded()))
		if err != nil {
			t.Fatal(err)
		}
		if digest.FromBytes(data) != d {
			t.Fatalf("blob %s has other content", d)
		}
		return data
	}
	raw, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &index); err != nil || len(index.Manifests) != 1 {
		t.Fatalf("index %s, %v", raw, err)
	}
	manifest := blob(index.Manifests[0].Digest)
	parsed, err := osimage.ParseManifest(index.Manifests[0], manifest)
	if err != nil {
		t.Fatal(err)
	}
	img, err := osimage.Parse(index.Manifests[0], manifest, blob(parsed.Config.Digest))
	if err != nil {
		t.Fatal(err)
	}
	var packs []byte
	for _, p := range img.Packs() {
		packs = append(packs, blob(p.Digest)...)
	}
	return img, packs
}

func build1(t *testing.T, o Options) (Result, osimage.Image, []byte) {
	t.Helper()
	r, err := Build(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	img, packs := read(t, o.Output)
	if img.Digest() != r.Descriptor.Digest {
		t.Fatalf("Build said %s, the layout holds %s", r.Descriptor.Digest, img.Digest())
	}
	d, err := zstd.NewReader(bytes.NewReader(packs))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var out bytes.Buffer
	if _, err := out.ReadFrom(d); err != nil {
		t.Fatal(err)
	}
	return r, img, out.Bytes()
}

func TestBuildFromADirectory(t *testing.T) {
	dir := t.TempDir()
	makeTree(t, dir, false)
	_, img, raw := build1(t, options(t, dir))
	c := img.Config()
	if c.Rootfs.Filesystem != "ext4" || c.Rootfs.Size != int64(len(raw)) || c.Rootfs.Digest != digest.FromBytes(raw) || !c.Created.Equal(buildTime) {
		t.Errorf("config %+v for %d bytes", c, len(raw))
	}
	if diff := cmp.Diff([]osimage.Package{{Name: "libc6", Version: "2.36-9"}}, c.Packages); diff != "" {
		t.Error(diff)
	}
	for i := range c.Rootfs.Segments() {
		off := i * osimage.SegmentSize
		if sha256.Sum256(raw[off:off+c.Rootfs.SegmentLength(i)]) != c.Rootfs.SegmentDigest(i) {
			t.Errorf("segment %d has another digest", i)
		}
	}
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("debugfs", "-R", "cat /etc/hostname", image).Output()
	if err != nil || string(out) != "gateway\n" {
		t.Errorf("/etc/hostname in the image: %q, %v", out, err)
	}
}

// Other times of access and change, another order of creation, another machine: its
// zone, its language, its idea of what an ext4 is like, and the file mode mask.
func TestBuildIsReproducible(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	makeTree(t, a, false)
	makeTree(t, b, true)
	first, _, _ := build1(t, options(t, a))
	conf := filepath.Join(t.TempDir(), "mke2fs.conf")
	text := "[defaults]\nbase_features = sparse_super\ndefault_mntopts = journal_data_writeback\nhash_alg = tea\nerrors = panic\nflex_bg_size = 4\n[fs_types]\next4 = {\n}\n"
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"MKE2FS_CONFIG": conf, "TZ": "Asia/Tokyo", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"} {
		t.Setenv(name, value)
	}
	defer syscall.Umask(syscall.Umask(0o077))
	second, _, _ := build1(t, options(t, b))
	if first.Descriptor.Digest != second.Descriptor.Digest {
		t.Errorf("digests %s and %s", first.Descriptor.Digest, second.Descriptor.Digest)
	}
	if err := os.WriteFile(filepath.Join(b, "etc/hostname"), []byte("other!!\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if third, _, _ := build1(t, options(t, b)); third.Descriptor.Digest == first.Descriptor.Digest {
		t.Error("another content has the same digest")
	}
}

// The packs are zstd -d compatible as a whole; this is the format's promise.
func TestPacksDecompressWithZstd(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image.ext4")
	raw := make([]byte, 21<<20+4096)
	rand.NewChaCha8([32]byte{2}).Read(raw[:9<<20])
	copy(raw[1024+0x38:], []byte{0x53, 0xef})
	raw[1024+0x60] = 0x40
	if err := os.WriteFile(image, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	_, img, got := build1(t, options(t, image))
	if !bytes.Equal(got, raw) {
		t.Error("the packs do not give the image back")
	}
	if diff := cmp.Diff([]int{3, 3, 3 + 13}, img.Config().Rootfs.PackSegments); diff != "" {
		t.Errorf("segments per pack (-want +got):\n%s", diff)
	}
	for _, p := range img.Packs() {
		if p.Size > packSize {
			t.Errorf("pack of %d bytes, the limit is %d", p.Size, packSize)
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	text := filepath.Join(t.TempDir(), "notes.txt")
	if err := os.WriteFile(text, bytes.Repeat([]byte("no file system "), 200), 0o600); err != nil {
		t.Fatal(err)
	}
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tree := t.TempDir()
	makeTree(t, tree, false)
	aged := t.TempDir()
	makeTree(t, aged, false)
	setEpoch(t, aged, 3)
	for name, tt := range map[string]struct {
		change func(*Options)
		want   string
		is     error
	}{
		"another epoch":     {func(o *Options) { o.Rootfs, o.Epoch = aged, 2 }, "says OSCTL_EPOCH=3, and --epoch is 2", ErrRootfs},
		"a missing input":   {func(o *Options) { o.Rootfs = "/nonexistent" }, "no such file", os.ErrNotExist},
		"a bad product":     {func(o *Options) { o.Product = "a b" }, `product "a b"`, nil},
		"a bad version":     {func(o *Options) { o.Version = "newest" }, `version "newest"`, nil},
		"a full output":     {func(o *Options) { o.Output = full }, "remove it or name another", ErrOutput},
		"a missing kernel":  {func(o *Options) { o.Kernel = "/boot/none" }, "see --kernel", ErrRootfs},
		"a missing initrd":  {func(o *Options) { o.Initrd = "/boot/none" }, "see --initrd", ErrRootfs},
		"too small a size":  {func(o *Options) { o.Size = 2 << 20 }, "does not fit into 2097152 bytes", ErrRootfs},
		"something foreign": {func(o *Options) { o.Rootfs = text }, "tar", nil},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t, tree)
			tt.change(&o)
			_, err := Build(context.Background(), o)
			if err == nil || !strings.Contains(err.Error(), tt.want) || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error = %v, want %q", err, tt.want)
			}
			if left, err := filepath.Glob(filepath.Join(filepath.Dir(o.Output), "*", "*")); err != nil || o.Output != full && len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

func setEpoch(t *testing.T, tree string, epoch int) {
	t.Helper()
	dir := filepath.Join(tree, "usr/lib")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "os-release"), fmt.Appendf(nil, "OSCTL_EPOCH=%d\n", epoch), 0o644); err != nil {
		t.Fatal(err)
	}
}

// What a tree says of its epoch is what the image is signed with.
func TestEpochComesFromTheTree(t *testing.T) {
	tree := t.TempDir()
	makeTree(t, tree, false)
	setEpoch(t, tree, 3)
	for _, asked := range []uint32{0, 3} {
		o := options(t, tree)
		o.Epoch = asked
		if r, _, _ := build1(t, o); r.Config.Epoch != 3 {
			t.Errorf("asked for %d, the epoch is %d, want 3", asked, r.Config.Epoch)
		}
	}
}

func TestBuildFromATar(t *testing.T) {
	need.Long(t)
	need.Root(t) // a tar keeps its owners
	tree := t.TempDir()
	makeTree(t, tree, false)
	archive := filepath.Join(t.TempDir(), "rootfs.tar.gz")
	if out, err := exec.Command("tar", "-C", tree, "-czf", archive, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	a, _, _ := build1(t, options(t, tree))
	b, _, _ := build1(t, options(t, archive))
	if a.Descriptor.Digest != b.Descriptor.Digest {
		t.Errorf("directory %s, tar of it %s", a.Descriptor.Digest, b.Descriptor.Digest)
	}
}

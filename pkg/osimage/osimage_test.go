package osimage

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// sample is a valid artifact of two segments in one pack.
func sample(t testing.TB, change func(*Config, *[]ocispec.Descriptor)) (ocispec.Descriptor, []byte, []byte) {
	t.Helper()
	c := Config{
		Product: "gateway", Version: "1.2", Epoch: 1, Architecture: "amd64", Created: time.Unix(0, 0).UTC(),
		Kernel: "/boot/vmlinuz", Initrd: "/boot/initrd.img",
		Rootfs: Rootfs{
			Size: SegmentSize + 4096, Filesystem: "ext4", Digest: digest.FromString("raw"), SegmentSize: SegmentSize,
			SegmentDigests: bytes.Repeat([]byte{7}, 2*sha256.Size), PackSegments: []int{2},
		},
	}
	packs := []ocispec.Descriptor{{MediaType: MediaTypePack, Digest: digest.FromString("pack"), Size: 99}}
	if change != nil {
		change(&c, &packs)
	}
	config, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	raw, desc, err := Manifest(ocispec.Descriptor{MediaType: MediaTypeConfig, Digest: digest.FromBytes(config), Size: int64(len(config))}, packs, nil)
	if err != nil {
		t.Fatal(err)
	}
	return desc, raw, config
}

func TestParse(t *testing.T) {
	desc, raw, config := sample(t, nil)
	img, err := Parse(desc, raw, config)
	if err != nil {
		t.Fatal(err)
	}
	if !img.Valid() || img.Digest() != desc.Digest || img.CompressedSize() != 99 || img.Config().Rootfs.Segments() != 2 {
		t.Errorf("image = %+v", img)
	}
	if got := img.Config().Rootfs.SegmentLength(1); got != 4096 {
		t.Errorf("the last segment has %d bytes, want 4096", got)
	}
	if (Image{}).Valid() {
		t.Error("the zero Image is valid")
	}
}

func TestParseRefuses(t *testing.T) {
	sha512 := digest.NewDigestFromEncoded(digest.SHA512, strings.Repeat("ab", 64))
	type change = func(*Config, *[]ocispec.Descriptor)
	for _, tt := range []struct {
		want   string
		change change
	}{
		{"product is missing", func(c *Config, _ *[]ocispec.Descriptor) { c.Product = "" }},
		{`product "../x"`, func(c *Config, _ *[]ocispec.Descriptor) { c.Product = "../x" }},
		{`version "latest"`, func(c *Config, _ *[]ocispec.Descriptor) { c.Version = "latest" }},
		{"minVersion", func(c *Config, _ *[]ocispec.Descriptor) { c.MinVersion = "x" }},
		{"kernel is missing", func(c *Config, _ *[]ocispec.Descriptor) { c.Kernel = "" }},
		{"not absolute and clean", func(c *Config, _ *[]ocispec.Descriptor) { c.Initrd = "/boot/../x" }},
		{"size 0", func(c *Config, _ *[]ocispec.Descriptor) { c.Rootfs.Size = 0 }},
		{"size -1", func(c *Config, _ *[]ocispec.Descriptor) { c.Rootfs.Size = -1 }},
		{"size 9223372036854775807", func(c *Config, _ *[]ocispec.Descriptor) { c.Rootfs.Size = 1<<63 - 1 }},
		{"multiple of 512", func(c *Config, _ *[]ocispec.Descriptor) { c.Rootfs.Size++ }},
		{"file system \"ntfs\"", func(c *Config, _ *[]ocispec.Descriptor) { c.Rootfs.Filesystem = "ntfs" }},
		{"segments of 0 bytes", func(c *Config, _ *[]ocispec.Descriptor) { c.Rootfs.SegmentSize = 0 }},
		{"bytes of segment digests", func(c *Config, _ *[]ocispec.Descriptor) { c.Rootfs.SegmentDigests = c.Rootfs.SegmentDigests[1:] }},
		{"no sha256 digest", func(c *Config, _ *[]ocispec.Descriptor) { c.Rootfs.Digest = sha512 }},
		{"hold 1 of 2 segments", func(c *Config, _ *[]ocispec.Descriptor) { c.Rootfs.PackSegments = []int{1} }},
		{"pack 0 holds 3", func(c *Config, _ *[]ocispec.Descriptor) { c.Rootfs.PackSegments = []int{3} }},
		{"pack 0 holds -1", func(c *Config, _ *[]ocispec.Descriptor) { c.Rootfs.PackSegments = []int{-1} }},
		{"1 packs, the config describes 2", func(c *Config, _ *[]ocispec.Descriptor) { c.Rootfs.PackSegments = []int{1, 1} }},
		{"pack 0: 0 bytes", func(_ *Config, p *[]ocispec.Descriptor) { (*p)[0].Size = 0 }},
		{"its 2 segments need at most 2129920", func(_ *Config, p *[]ocispec.Descriptor) { (*p)[0].Size = 2*(SegmentSize+SegmentSize/64) + 1 }},
		{"pack 0: 9223372036854775807 bytes", func(_ *Config, p *[]ocispec.Descriptor) { (*p)[0].Size = 1<<63 - 1 }},
		{"pack 0: -9223372036854775808 bytes", func(_ *Config, p *[]ocispec.Descriptor) { (*p)[0].Size = -1 << 63 }},
		{"4096 segments need 131072", func(c *Config, _ *[]ocispec.Descriptor) { c.Rootfs.Size = 1 << 32 }},
		{"2049 segments need 65568", func(c *Config, _ *[]ocispec.Descriptor) { c.Rootfs.Size = 1<<31 + 512 }},
		{"pack 0 holds 9223372036854775807", func(c *Config, _ *[]ocispec.Descriptor) { c.Rootfs.PackSegments = []int{1<<63 - 1, 3} }},
		{"pack 0: 67108865 bytes, allowed are", func(_ *Config, p *[]ocispec.Descriptor) { (*p)[0].Size = MaxPack + 1 }},
		{"pack 0: \"sha256:12\" is no sha256", func(_ *Config, p *[]ocispec.Descriptor) { (*p)[0].Digest = "sha256:12" }},
		{"pack 0: \"sha512:", func(_ *Config, p *[]ocispec.Descriptor) { (*p)[0].Digest = sha512 }},
	} {
		desc, raw, config := sample(t, tt.change)
		if _, err := Parse(desc, raw, config); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("error = %v, want ErrInvalid with %q", err, tt.want)
		}
	}
}

func TestParseChecksDigests(t *testing.T) {
	desc, raw, config := sample(t, nil)
	other := desc
	other.Digest = digest.FromString("another")
	if _, err := Parse(other, raw, config); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "asked for was") {
		t.Errorf("manifest of another digest: %v", err)
	}
	if _, err := Parse(desc, raw, append(config, ' ')); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "the manifest names") {
		t.Errorf("config of another digest: %v", err)
	}
	if _, err := Parse(desc, make([]byte, MaxManifest+1), config); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "limit") {
		t.Errorf("huge manifest: %v", err)
	}
}

func TestForeignArtifacts(t *testing.T) {
	for want, m := range map[string]ocispec.Manifest{
		"ordinary container image": {MediaType: ocispec.MediaTypeImageManifest, Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig}},
		"an image index":           {MediaType: ocispec.MediaTypeImageIndex},
		"helm.config":              {MediaType: ocispec.MediaTypeImageManifest, Config: ocispec.Descriptor{MediaType: "application/vnd.cncf.helm.config.v1+json"}},
		"application/x.sbom":       {MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "application/x.sbom"},
	} {
		raw, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		_, err = ParseManifest(ocispec.Descriptor{Digest: digest.FromBytes(raw), Size: int64(len(raw))}, raw)
		if !errors.Is(err, ErrNotOS) || !strings.Contains(err.Error(), want) {
			t.Errorf("error = %v, want ErrNotOS with %q", err, want)
		}
	}
}

func TestCompareVersions(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{
		{"1.2", "1.10", -1}, {"1.2", "1.2.0", 0}, {"2", "1.99", 1}, {"1.2.0-rc1", "1.2.0", -1}, {"2026.11.23", "2026.9.1", 1}, {"1.2.3.4", "1.2.3.5", -1},
		// Numbers of different lengths; zeros, long numbers and longer lists in pre-releases.
		{"1.0.0.0-rc1", "1.0", -1}, {"1.0.0.0-10", "1.0-0-a", -1}, {"1.0.0.0.1-rc1", "1.0", 1}, {"1.0-01", "1.0-1", 0}, {"1.0-2", "1.0-10", -1},
		{"1.0-99999999999999999999", "1.0-100000000000000000000", -1}, {"1.0-1", "1.0-a", -1}, {"1.0-rc", "1.0-rc.1", -1}, {"1.0-rc.2", "1.0-rc.10", -1},
		{"1.0+a", "1.0+b", 0}, {"1.0-rc1+b", "1.0", -1},
	} {
		got, err := CompareVersions(tt.a, tt.b)
		back, err2 := CompareVersions(tt.b, tt.a)
		if err := errors.Join(err, err2); err != nil || got != tt.want || back != -tt.want {
			t.Errorf("CompareVersions(%s, %s) = %d, reversed %d, %v; want %d", tt.a, tt.b, got, back, err, tt.want)
		}
	}
	if _, err := CompareVersions("1.2", "new"); err == nil || !strings.Contains(err.Error(), `version "new"`) {
		t.Errorf("error = %v", err)
	}
}

func TestManifestIsDeterministic(t *testing.T) {
	_, a, _ := sample(t, nil)
	_, b, _ := sample(t, nil)
	if diff := cmp.Diff(string(a), string(b)); diff != "" {
		t.Error(diff)
	}
}

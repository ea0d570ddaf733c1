package osimage

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/hashicorp/go-version"
	"github.com/opencontainers/go-digest"
)

// validate checks everything that later stages rely on without looking again:
// sizes that fit together, digests of the right length, packs that cover the
// image exactly once.
func (i Image) validate() error {
	if err := i.config.Validate(); err != nil {
		return err
	}
	r := i.config.Rootfs
	if len(i.packs) != len(r.PackSegments) {
		return fmt.Errorf("the manifest has %d packs, the config describes %d", len(i.packs), len(r.PackSegments))
	}
	for n, p := range i.packs {
		if err := checkDigest(p.Digest); err != nil {
			return fmt.Errorf("pack %d: %w", n, err)
		}
		if p.Size <= 0 || p.Size > MaxPack {
			return fmt.Errorf("pack %d: %d bytes, allowed are 1 to %d", n, p.Size, MaxPack)
		}
		if most := packLimit(r.PackSegments[n]); p.Size > most {
			return fmt.Errorf("pack %d: %d bytes, its %d segments need at most %d", n, p.Size, r.PackSegments[n], most)
		}
	}
	return nil
}

// packLimit is the size, in bytes, that a pack of so many segments has at most.
// What does not compress grows by a few bytes for each block of 128 KiB; here a
// 64th is allowed. So no artifact costs much more than its plain image.
func packLimit(segments int) int64 { return int64(segments) * (SegmentSize + SegmentSize/64) }

// Validate checks a config by itself: required fields, and sizes and counts
// that agree with each other.
func (c Config) Validate() error {
	if err := c.ValidateNames(); err != nil {
		return err
	}
	return c.Rootfs.validate()
}

// ValidateNames checks what a config says beside the file system: names, versions and
// paths.
func (c Config) ValidateNames() error {
	for _, f := range []struct{ name, value string }{
		{"product", c.Product}, {"version", c.Version}, {"architecture", c.Architecture}, {"kernel", c.Kernel},
	} {
		if f.value == "" {
			return fmt.Errorf("config: %s is missing", f.name)
		}
	}
	if err := errors.Join(CheckName("product", c.Product), CheckName("architecture", c.Architecture)); err != nil {
		return err
	}
	if err := CheckVersion(c.Version); err != nil {
		return err
	}
	if c.MinVersion != "" {
		if err := CheckVersion(c.MinVersion); err != nil {
			return fmt.Errorf("minVersion: %w", err)
		}
	}
	for _, p := range []string{c.Kernel, c.Initrd} {
		if p != "" && (!path.IsAbs(p) || path.Clean(p) != p) {
			return fmt.Errorf("config: path %q is not absolute and clean", p)
		}
	}
	return nil
}

func (r Rootfs) validate() error {
	switch {
	case r.Size <= 0 || r.Size > MaxImage:
		return fmt.Errorf("rootfs: size %d, allowed are 1 to %d bytes", r.Size, int64(MaxImage))
	case r.Size%512 != 0:
		return fmt.Errorf("rootfs: size %d is not a multiple of 512 bytes, a disk sector", r.Size)
	case r.Filesystem != "ext4" && r.Filesystem != "squashfs":
		return fmt.Errorf("rootfs: file system %q, known are ext4 and squashfs", r.Filesystem)
	case r.SegmentSize != SegmentSize:
		return fmt.Errorf("rootfs: segments of %d bytes, known is %d", r.SegmentSize, SegmentSize)
	case len(r.SegmentDigests) != r.Segments()*sha256.Size:
		return fmt.Errorf("rootfs: %d bytes of segment digests, %d segments need %d", len(r.SegmentDigests), r.Segments(), r.Segments()*sha256.Size)
	}
	if err := checkDigest(r.Digest); err != nil {
		return fmt.Errorf("rootfs: %w", err)
	}
	sum := 0
	for n, count := range r.PackSegments {
		if count <= 0 || count > r.Segments()-sum {
			return fmt.Errorf("rootfs: pack %d holds %d segments, the image has %d and %d are left", n, count, r.Segments(), r.Segments()-sum)
		}
		sum += count
	}
	if sum != r.Segments() {
		return fmt.Errorf("rootfs: the packs hold %d of %d segments", sum, r.Segments())
	}
	return nil
}

// checkDigest accepts SHA-256 only: one algorithm, the one that every registry
// and cosign's payloads use.
func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("%q is no sha256 digest", d)
	}
	return nil
}

// CheckName accepts what is safe in a file name, a tag and a log line: letters,
// digits, and . _ - inside, at most 64 bytes.
func CheckName(what, s string) error {
	ok := s != "" && len(s) <= 64 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == ""
	for _, r := range s {
		ok = ok && (r == '.' || r == '_' || r == '-' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z')
	}
	if !ok || strings.ContainsAny(s[:1], "._-") {
		return fmt.Errorf("%s %q: allowed are 1 to 64 letters, digits and . _ - inside", what, s)
	}
	return nil
}

// CheckVersion accepts versions that CompareVersions can order: numbers joined
// by dots, then an optional -prerelease and +build as in semantic versioning.
func CheckVersion(s string) error {
	if len(s) > 128 {
		return errors.New("version of more than 128 bytes")
	}
	if _, err := version.NewVersion(s); err != nil {
		return fmt.Errorf("version %q: expected numbers joined by dots, for example 1.2 or 1.2.3-rc1", s)
	}
	return nil
}

// CompareVersions orders two versions: -1, 0 or 1. Missing numbers count as zero (1.2
// equals 1.2.0), a pre-release comes before its release, pre-releases are ordered as in
// semantic versioning (2.0.0, section 11), and what follows a + does not count. It is an
// error when one of them is no version.
func CompareVersions(a, b string) (int, error) {
	if err := errors.Join(CheckVersion(a), CheckVersion(b)); err != nil {
		return 0, err
	}
	x, err := version.NewVersion(a)
	if err != nil {
		return 0, err
	}
	y, err := version.NewVersion(b)
	if err != nil {
		return 0, err
	}
	// The library's own comparison is no order where the numbers have different
	// lengths or a number in a pre-release has zeros before it.
	m, n := x.Segments64(), y.Segments64()
	for i := range max(len(m), len(n)) {
		if c := cmp.Compare(at(m, i), at(n, i)); c != 0 {
			return c, nil
		}
	}
	return comparePre(x.Prerelease(), y.Prerelease()), nil
}

func at(numbers []int64, i int) int64 {
	if i < len(numbers) {
		return numbers[i]
	}
	return 0
}

// comparePre orders the pre-releases of two versions with the same numbers; empty
// stands for the release.
func comparePre(a, b string) int {
	if a == "" || b == "" {
		return cmp.Compare(len(b), len(a))
	}
	return slices.CompareFunc(strings.Split(a, "."), strings.Split(b, "."), comparePart)
}

// comparePart orders two parts of pre-releases: numbers by their value, however long
// they are, and before all else, which is ordered by its letters.
func comparePart(a, b string) int {
	const digits = "0123456789"
	m, n := strings.Trim(a, digits) == "", strings.Trim(b, digits) == ""
	switch {
	case m && n:
		a, b = strings.TrimLeft(a, "0"), strings.TrimLeft(b, "0")
		return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
	case m:
		return -1
	case n:
		return 1
	}
	return cmp.Compare(a, b)
}

// Package sample makes small OS images for tests: real layouts by the real
// builder, signed by real keys.
package sample

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kapernikov/osctl/pkg/artifact"
	"github.com/kapernikov/osctl/pkg/publish"
)

// Image describes a sample.
type Image struct {
	Product, Version, MinVersion, Architecture string
	Epoch                                      uint32
	// MiB is the size of the raw image; the default is 12, half of it zero.
	MiB  int
	Seed byte
}

// Raw is the content of the image: random bytes behind an ext4 superblock's
// marks, and zeros.
func (i Image) Raw() []byte {
	mib := i.MiB
	if mib == 0 {
		mib = 12
	}
	raw := make([]byte, mib<<20)
	rand.NewChaCha8([32]byte{i.Seed, 1}).Read(raw[:len(raw)/2])
	copy(raw[1024+0x38:], []byte{0x53, 0xef})
	raw[1024+0x60] = 0x40
	return raw
}

// Layout builds the image into a new folder.
func (i Image) Layout(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	raw := filepath.Join(dir, "image.ext4")
	if err := os.WriteFile(raw, i.Raw(), 0o600); err != nil {
		t.Fatal(err)
	}
	o := artifact.Options{
		Rootfs: raw, Output: filepath.Join(dir, "layout"), Product: i.Product, Version: i.Version, Epoch: i.Epoch,
		MinVersion: i.MinVersion, Architecture: i.Architecture, Kernel: "/boot/vmlinuz", Created: time.Unix(1_800_000_000, 0),
	}
	if o.Product == "" {
		o.Product = "gateway"
	}
	if o.Version == "" {
		o.Version = "1.1"
	}
	if _, err := artifact.Build(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	return o.Output
}

// Signed builds the image and signs its layout.
func (i Image) Signed(t testing.TB, key *publish.Key) string {
	t.Helper()
	dir := i.Layout(t)
	if _, err := publish.Sign(context.Background(), dir, key, publish.Options{}); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Key makes a cosign key pair without a password.
func Key(t testing.TB) (key *publish.Key, private, public []byte) {
	t.Helper()
	private, public, err := publish.GenerateKeyPair(nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err = publish.LoadKey(private, func() ([]byte, error) { return nil, nil })
	if err != nil {
		t.Fatal(err)
	}
	return key, private, public
}

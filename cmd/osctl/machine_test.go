package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/pkg/ledger"
	"github.com/kapernikov/osctl/pkg/publish"
	"github.com/kapernikov/osctl/test/nerdctl"
	"github.com/kapernikov/osctl/test/sample"
)

// slotMiB is the size of the slots of a plain machine, a little more than that
// of its images.
const slotMiB, imageMiB = 7, 6

// running is what slot A of a plain machine holds.
var running = sample.Image{Product: "gateway", Version: "1.0", MiB: imageMiB, Seed: 10}

// plain is a machine of plain files in one folder, which runs 1.0 from slot A.
type plain struct {
	dir                 string
	containerd, systemd string // sockets
	namespace           string // of osctl's content
	apps                *nerdctl.Rig
}

func (p plain) path(name string) string { return filepath.Join(p.dir, name) }

func (p plain) config() string { return p.path("osctl.yaml") }

// slotFile is the file of a slot.
func (p plain) slotFile(s device.Slot) string { return p.path(string(s) + ".img") }

// create writes the machine: configuration, policy, slots, boot state, ledger,
// changes of /etc.
func (p plain) create(public []byte) error {
	env, err := boot.InitialBlock()
	if err != nil {
		return err
	}
	l, err := ledger.New(ledger.Entry{
		Digest: "sha256:" + fmt.Sprintf("%064x", 10), Product: running.Product, Version: running.Version,
		Created: time.Unix(1_800_000_000, 0).UTC(), Reference: "registry.example.com/os:1.0", SignedBy: "release", Basis: &ledger.Basis{Rule: "released", Signers: []string{"release"}},
	}, time.Unix(1_800_000_000, 0).UTC())
	if err != nil {
		return err
	}
	state, err := l.Encode()
	if err != nil {
		return err
	}
	slotA := append(running.Raw(), make([]byte, (slotMiB-imageMiB)<<20)...)
	for name, content := range map[string][]byte{
		"osctl.yaml":  []byte(p.yaml()),
		"health.yaml": []byte(p.expects()),
		"policy.yaml": []byte("apiVersion: osctl.kapernikov.com/v1\nkind: Policy\nkeys:\n  - name: release\n    file: release.pub\n"),
		"release.pub": public, "A.img": slotA, "B.img": sample.Image{MiB: slotMiB, Seed: 99}.Raw(),
		"efi/a": env, "efi/b": env, "data/osctl/ledger.json": state, "data/etc/A/upper/hostname": []byte("gateway-7\n"),
	} {
		if err := os.MkdirAll(filepath.Dir(p.path(name)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(p.path(name), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (p plain) yaml() string {
	return fmt.Sprintf(`apiVersion: osctl.kapernikov.com/v1
kind: Config
product: gateway
slots: {A: %[1]s/A.img, B: %[1]s/B.img}
bootedSlot: A
env: [%[1]s/efi/a, %[1]s/efi/b]
policy: %[1]s/policy.yaml
stateDir: %[1]s/data/osctl
etcDir: %[1]s/data/etc
runtimeDir: %[1]s/run
containerd: {address: %[2]s, namespace: %[3]s, hostsDir: %[1]s/certs.d}
systemd: {address: %[4]s}
health: %[1]s/health.yaml
`, p.dir, p.containerd, p.namespace, p.systemd)
}

// expects is what its gate expects. The test's own machine may have scripts of
// greenboot's.
func (p plain) expects() string {
	return fmt.Sprintf("apiVersion: osctl.kapernikov.com/v1\nkind: Gate\ndeadline: 4s\nsoak: 1ms\nunits: {}\nscripts: {timeout: 1s, folders: [%[1]s/image, %[1]s/etc]}\n", p.dir)
}

// state is what GRUB would find.
func (p plain) state() (boot.State, error) {
	store, err := boot.Open([2]string{p.path("efi/a"), p.path("efi/b")})
	if err != nil {
		return boot.State{}, err
	}
	s, problems, err := store.Load()
	if err == nil && len(problems) > 0 {
		err = fmt.Errorf("a copy of the boot state has a problem: %s", problems[0])
	}
	return s, err
}

// holds compares the start of a slot with a raw image.
func (p plain) holds(s device.Slot, raw []byte) (bool, error) {
	got, err := os.ReadFile(p.slotFile(s))
	return bytes.HasPrefix(got, raw), err
}

// bootsA holds the invariants that no moment and no input may break: slot A is
// untouched, and what GRUB would boot is slot A, or a slot B that is whole.
func (p plain) bootsA(next sample.Image) error {
	if same, err := p.holds(device.SlotA, running.Raw()); err != nil || !same {
		return fmt.Errorf("the running slot was changed (%v)", err)
	}
	store, err := boot.Open([2]string{p.path("efi/a"), p.path("efi/b")})
	if err != nil {
		return err
	}
	state, _, err := store.Load()
	if err != nil {
		return err
	}
	switch {
	case state.Rootfs == device.SlotA && state.Phase == boot.Committed:
		return nil
	case state.Rootfs == device.SlotB && state.Phase == boot.Trial:
		if whole, err := p.holds(device.SlotB, next.Raw()); err != nil || !whole {
			return fmt.Errorf("slot B is on trial and not whole (%v)", err)
		}
		return nil
	}
	return fmt.Errorf("the boot state is %v", state)
}

// stage leaves the machine as an upgrade to next does: slot B on trial. It is a
// short cut for tests of what comes after.
func (p plain) stage(next sample.Image, digest string) error {
	if err := os.WriteFile(p.slotFile(device.SlotB), append(next.Raw(), make([]byte, (slotMiB-next.MiB)<<20)...), 0o644); err != nil {
		return err
	}
	err := ledger.Open(p.path("data/osctl")).Update(func(l *ledger.Ledger) error {
		l.Slots[device.SlotB] = &ledger.Entry{
			Digest: digest, Product: next.Product, Version: next.Version, Reference: "registry.example.com/os:" + next.Version,
			SignedBy: "release", State: ledger.Staged, StagedAt: time.Unix(1_800_000_000, 0).UTC(),
			Baseline: &health.Baseline{},
		}
		return nil
	})
	if err != nil {
		return err
	}
	store, err := boot.Open([2]string{p.path("efi/a"), p.path("efi/b")})
	if err != nil {
		return err
	}
	return store.ArmProven(device.SlotB, 3)
}

// keys are made once: a password costs a cosign key pair a tenth of a second.
type keyPair struct {
	key             *publish.Key
	private, public []byte
}

// keyring makes the keys of all scripts: the one of the policy, and a stranger's.
func keyring(t testing.TB) func() (release, stranger keyPair) {
	return sync.OnceValues(func() (keyPair, keyPair) {
		var k [2]keyPair
		for i := range k {
			k[i].key, k[i].private, k[i].public = sample.Key(t)
		}
		return k[0], k[1]
	})
}

// layoutDigest is the digest of the only OS image of a layout.
func layoutDigest(t testing.TB, dir string) string {
	t.Helper()
	source, err := openSource(t.Context(), dir, "")
	if err != nil {
		t.Fatal(err)
	}
	defer source.close() //nolint:errcheck // read only
	img, err := source.offer.Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return img.Digest().String()
}

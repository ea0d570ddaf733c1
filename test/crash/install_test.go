package crash

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/kapernikov/osctl/test/crash/model"
	"github.com/kapernikov/osctl/test/crash/record"
)

// TestCutsInInstall cuts the power while a disk is installed, a blank one and one
// that holds an older system. A disk that has a partition table, the backup at its
// end included, must hold a whole system: the old one or the new one.
func TestCutsInInstall(t *testing.T) {
	s := newSite(t)
	m := machine{s, t.TempDir()}
	m.fixed()
	const size = 600 << 20
	if err := os.WriteFile(m.path("disk.img"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(m.path("disk.img"), size); err != nil {
		t.Fatal(err)
	}
	t.Logf("%-22s %6s %7s %8s %8s %6s %9s", "install", "calls", "pending", "distinct", "no table", "whole", "half-made")
	for _, c := range []struct{ name, version string }{{"on a blank disk", "1.0"}, {"over an older system", "1.1"}} {
		world, base, err := record.Read(m.dir, s.pool, record.Root{Name: "disk.img", Block: true})
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(s.osctl, "install", "--disk", m.path("disk.img"), "--slot-size", fmt.Sprint(slotMiB), "--force",
			"--policy", m.path("policy.yaml"), "--progress", "none", s.images[c.version].layout)
		cmd.Dir, cmd.Env = "/", append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
		log, err := world.Run(t.Context(), base, cmd)
		if err != nil {
			t.Fatal(err)
		}
		_, real, err := record.Read(m.dir, s.pool, record.Root{Name: "disk.img", Block: true})
		if err != nil {
			t.Fatal(err)
		}
		exploreInstall(t, c.name, world, log, real)
	}
}

// exploreInstall judges every state of an installation.
func exploreInstall(t *testing.T, name string, world *record.World, log record.Log, real model.State) {
	t.Helper()
	node := world.Nodes["disk.img"]
	old, done := log.Base.Volume(node), log.After.Volume(node)
	for n, v := range map[*model.Node]model.Volume{node: done} {
		if got := volumeOf(real); v.Hash() != got.Hash() {
			t.Fatalf("the recorder missed something on node %d: its last state is not what the disk holds", n.ID)
		}
	}
	b := bounds()
	if !exhaustive() {
		b.Tears = 1
	}
	seen := map[[sha256.Size]byte]bool{}
	var blank, whole, half int
	counts, err := model.Explore(log.Base, log.Ops, b, func(s model.State, c model.Cut) error {
		v := s.Volume(node)
		if key := v.Hash(); seen[key] {
			return nil
		} else {
			seen[key] = true
		}
		switch {
		case !hasTable(v):
			blank++
		case sameInside(v, done), sameInside(v, old):
			whole++
		default:
			if half++; half <= 3 {
				t.Errorf("%s: %v: there is a partition table, and the disk is neither the old nor the new one", name, c)
			}
		}
		if c.Before == "the end" && !(hasTable(v) && sameInside(v, done)) {
			t.Errorf("%s: %v: the command had ended well, and the disk is not whole", name, c)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%-22s %6d %7d %8d %8d %6d %9d", name, log.Calls, counts.Most, len(seen), blank, whole, half)
	if blank == 0 || whole == 0 {
		t.Errorf("%s: the cuts did not reach every stage", name)
	}
}

// volumeOf is the only volume of a state.
func volumeOf(s model.State) model.Volume {
	for _, v := range s.Volumes() {
		return v
	}
	return model.Volume{}
}

// hasTable reports whether a firmware could take a disk for one with a GPT: the
// header is there, or its backup, whatever their checksums say.
func hasTable(v model.Volume) bool {
	signature := []byte("EFI PART")
	last := v.Chunk(v.Chunks() - 1)
	return bytes.HasPrefix(v.Chunk(0)[model.Sector:], signature) || bytes.HasPrefix(last[len(last)-model.Sector:], signature)
}

// sameInside compares everything but the first and the last MiB, which hold the
// partition table.
func sameInside(v, w model.Volume) bool {
	for i := 1; i < v.Chunks()-1; i++ {
		if !v.SameChunk(w, i) {
			return false
		}
	}
	return true
}

package etc

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/kapernikov/osctl/test/crash/model"
	"github.com/kapernikov/osctl/test/crash/record"
	"github.com/kapernikov/osctl/test/need"
)

// TestCutsInReset makes every state of the data partition that a power cut may leave
// while process 1 carries resets out (package model says which), a factory reset and
// one of single paths. Who the machine is, what its slots hold and what it was
// installed with is there in each; and the next boot comes to the end that there
// would have been.
func TestCutsInReset(t *testing.T) {
	need.Long(t)
	need.Root(t)
	needTool(t, "strace")
	for _, c := range []struct {
		name   string
		orders func(t *testing.T, root string)
	}{
		{"factory reset", func(t *testing.T, root string) { orderedResets(t, root) }},
		{"reset of paths", orderedPaths},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			c.orders(t, root)
			r := recordReset(t, root)
			r.explore(t)
		})
	}
}

// orderedPaths orders the reset of a file below a directory that was made anew, of
// a file, and of all the rest in the other slot.
func orderedPaths(t *testing.T, root string) {
	t.Helper()
	upper := filepath.Join(root, "data/etc/A/upper")
	write(t, root, map[string]string{
		"etc/hosts": "image", "etc/app/one": "1", "etc/app/two": "2", "data/osctl/ledger.json": "l", "data/etc/factory/upper/hosts": "first",
		"data/etc/A/upper/machine-id": someID, "data/etc/B/upper/machine-id": someID, "data/etc/A/upper/app/own": "own", "data/etc/B/upper/app/one": "x", "data/etc/B/upper/app/deep/er": "x",
		"etc/app/three": "3", "data/etc/B/upper/ssh/sshd_config": "x", "data/etc/B/upper/x/y/z": "x",
		"data/etc/A/upper/fstab": "broken", "data/etc/B/upper/fstab": "older", "data/etc/B/upper/ssh/ssh_host_key": "secret",
	})
	must(t, unix.Lsetxattr(filepath.Join(upper, "app"), opaqueXattr, []byte("y"), 0))
	_, err := OrderReset(filepath.Join(root, "data/etc"), "A", []string{"app/one", "fstab"})
	must(t, err)
	_, err = OrderReset(filepath.Join(root, "data/etc"), "B", nil)
	must(t, err)
}

// recordedReset is what process 1 did to the data partition.
type recordedReset struct {
	world *record.World
	log   record.Log
	root  string
}

var dataRoot = record.Root{Name: "data", FS: model.Ext4}

func recordReset(t *testing.T, root string) recordedReset {
	t.Helper()
	pool := model.NewPool()
	world, base, err := record.Read(root, pool, dataRoot)
	must(t, err)
	cmd := exec.Command("sh", "-c", `umask 022; exec "$0" -test.run='^TestKilledResets$'`, os.Args[0])
	cmd.Env, cmd.Dir = append(os.Environ(), "OSCTL_TEST_RESET="+root), "/"
	log, err := world.Run(t.Context(), base, cmd)
	must(t, err)
	files, after, err := record.Read(root, pool, dataRoot)
	must(t, err)
	if diff := cmp.Diff(files.Describe(after), world.Describe(log.After)); diff != "" {
		t.Fatalf("what the files hold (-) is not what was recorded (+):\n%s", diff)
	}
	return recordedReset{world, log, root}
}

func (r recordedReset) explore(t *testing.T) {
	t.Helper()
	b := model.Bounds{Exhaustive: 4, Samples: 10, Tears: 4, Seed: 3}
	if os.Getenv("OSCTL_EXHAUSTIVE") == "1" {
		b = model.Bounds{Exhaustive: 8, Samples: 200, Seed: 3}
	}
	seen, failed := map[[sha256.Size]byte]bool{}, 0
	counts, err := model.Explore(r.log.Base, r.log.Ops, b, func(s model.State, c model.Cut) error {
		key, err := s.Hash(r.world.List()...), error(nil)
		if !seen[key] {
			seen[key] = true
			err = r.judge(s)
		}
		if c.Before == "the end" {
			err = errors.Join(err, r.ended(s))
		}
		if err != nil {
			if failed++; failed <= 3 {
				t.Errorf("%v: %v", c, err)
			}
		}
		return nil
	})
	must(t, err)
	t.Logf("%d calls, %d pending at most, %d states, %d distinct | not as they should be: %d", r.log.Calls, counts.Most, counts.Made, len(seen), failed)
	if len(seen) < 20 {
		t.Errorf("%d states only", len(seen))
	}
}

// ended holds that no order stands when the system begins to run: carried out again,
// it would take away what is changed from then on.
func (r recordedReset) ended(s model.State) error {
	for _, names := range [][]string{{"osctl", "reset.json"}, {"etc", "A", "reset.json"}, {"etc", "B", "reset.json"}} {
		if s.Look(r.world.Nodes["data"], names...) != nil {
			return fmt.Errorf("%s stands after it was carried out", filepath.Join(names...))
		}
	}
	return nil
}

// judge looks at one state, and lets the machine boot from it.
func (r recordedReset) judge(s model.State) error {
	data := r.world.Nodes["data"]
	for _, kept := range [][]string{
		{"osctl", "ledger.json"}, {"etc", "factory", "upper", "hosts"}, {"etc", "A", "upper", "machine-id"}, {"etc", "B", "upper", "machine-id"},
	} {
		want := r.log.Base.Content(r.log.Base.Look(data, kept...))
		if n := s.Look(data, kept...); n == nil || string(s.Content(n)) != string(want) {
			return fmt.Errorf("%s is gone", filepath.Join(kept...))
		}
	}
	root, err := os.MkdirTemp("/dev/shm", "reset")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root) //nolint:errcheck // in memory
	if err := r.world.Put(s, root); err != nil {
		return err
	}
	if err := os.CopyFS(filepath.Join(root, "etc"), os.DirFS(filepath.Join(r.root, "etc"))); err != nil {
		return err
	}
	next := starter{root: root}
	next.carryOut()
	if len(next.report.Problems) > 0 {
		return fmt.Errorf("the next boot: %v", next.report.Problems)
	}
	files, end, err := record.Read(root, r.world.Pool, dataRoot)
	if err != nil {
		return err
	}
	if diff := cmp.Diff(r.world.Describe(r.log.After), files.Describe(end)); diff != "" {
		return fmt.Errorf("the next boot comes to another end (-want +got): %s", diff)
	}
	return nil
}

package etc

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// TestClonePristine: what an upgrade stages on a boot with a pristine /etc has who the
// machine is and what was changed since, and nothing of what kept the slot from
// coming up; that stays with the slot.
func TestClonePristine(t *testing.T) {
	m := newRealMachine(t, "mkfs.ext4", "-q", "FILE")
	m.boot("committed")
	m.configure()
	uppers := filepath.Join(m.root, "data/etc")
	_, err := OrderReset(uppers, "A", []string{"nothing"})
	must(t, err)
	m.shutDown()
	if r := m.boot(PristineBoot); r.Etc != FromMemory {
		t.Fatalf("report %+v", r)
	}
	defer m.shutDown()
	_, err = OrderReset(uppers, "A", []string{"fstab"})
	must(t, err)
	write(t, m.root, map[string]string{"etc/app.conf": "since"})
	must(t, os.Remove(filepath.Join(m.root, "etc/ssh/sshd_config")))
	before := describe(t, filepath.Join(uppers, "A"))

	must(t, ClonePristine(uppers, filepath.Join(m.root, "run/osctl/etc"), "A", "B"))
	wantContents(t, filepath.Join(uppers, "B"), map[string]string{
		"upper/machine-id": someID, "upper/ssh/ssh_host_ed25519_key": "secret", "upper/app.conf": "since",
	})
	info, err := os.Lstat(filepath.Join(uppers, "B/upper/ssh/sshd_config"))
	if err != nil || info.Mode()&fs.ModeCharDevice == 0 {
		t.Errorf("what was removed since: %v, %v; want a whiteout", info, err)
	}
	wantEntries(t, filepath.Join(uppers, "B"), "upper", "work")
	if after := describe(t, filepath.Join(uppers, "A")); len(after) != len(before) {
		t.Errorf("the slot's own /etc was changed:\n%v\n%v", before, after)
	}
	wantContents(t, filepath.Join(uppers, "A"), map[string]string{
		"reset.json": `{"all":false,"paths":["fstab"]}` + "\n", "upper/fstab": "broken\n", "upper/machine-id": someID, "upper/ssh/ssh_host_ed25519_key": "secret",
	})

	if err := ClonePristine(uppers, filepath.Join(m.root, "run/osctl/none"), "A", "B"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without an /etc in memory: %v", err)
	}
	wantEntries(t, uppers, "A", "B")
}

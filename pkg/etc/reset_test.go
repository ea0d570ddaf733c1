package etc

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/kapernikov/osctl/pkg/device"
)

const someID = "0123456789abcdef0123456789abcdef\n"

// write makes files with the directories above them.
func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600))
	}
}

// contents reads the plain files of a tree.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	got := map[string]string{}
	must(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		data, err := os.ReadFile(path)
		got[name] = string(data)
		return err
	}))
	return got
}

func wantContents(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	if diff := cmp.Diff(want, contents(t, dir)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", dir, diff)
	}
}

// identityFiles are what every reset keeps.
var identityFiles = map[string]string{
	"machine-id": someID, "ssh/ssh_host_ed25519_key": "secret", "ssh/ssh_host_ed25519_key.pub": "public",
	"ssh/authorized_keys/root": "ssh-ed25519 AAAA", "ssh/authorized_keys/deep/er": "x",
}

func with(more map[string]string) map[string]string {
	all := map[string]string{}
	for _, m := range []map[string]string{identityFiles, more} {
		for k, v := range m {
			all[k] = v
		}
	}
	return all
}

func TestParsePath(t *testing.T) {
	for in, want := range map[string]string{
		"/etc/fstab": "fstab", "fstab": "fstab", "systemd/system/": "systemd/system", "./a//b": "a/b", "a/../b": "b", "etc/x": "etc/x",
	} {
		if got, err := ParsePath(in); err != nil || got != want {
			t.Errorf("%q: %q, %v, want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"", ".", "/", "/etc", "/etc/", "..", "../data", "a/../..", "/etc/../data/x", "/var/x", "/etcetera"} {
		if got, err := ParsePath(in); !errors.Is(err, ErrPath) {
			t.Errorf("%q: %q, %v, want ErrPath", in, got, err)
		}
	}
}

func TestOrdersAddUp(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"A/upper/fstab": "x"})
	if order, err := PendingReset(dir, "A"); order != nil || err != nil {
		t.Fatalf("nothing is ordered: %v, %v", order, err)
	}
	for _, c := range []struct {
		paths []string
		want  Reset
	}{
		{[]string{"fstab"}, Reset{Paths: []string{"fstab"}}},
		{[]string{"a", "fstab"}, Reset{Paths: []string{"a", "fstab"}}},
		{nil, Reset{All: true, Paths: []string{"a", "fstab"}}},
	} {
		got, err := OrderReset(dir, "A", c.paths)
		if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
			t.Errorf("%v: %v\n%s", c.paths, err, diff)
		}
	}
	wantContents(t, filepath.Join(dir, "A", "upper"), map[string]string{"fstab": "x"})
	must(t, CancelReset(dir, "A"), CancelReset(dir, "A"))
	if order, err := PendingReset(dir, "A"); order != nil || err != nil {
		t.Errorf("after taking it back: %v, %v", order, err)
	}
}

// TestResetRefuses: what lies below something removed, and orders that nobody gave.
func TestResetRefuses(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"A/upper/replaced": "x"})
	if _, err := OrderReset(dir, "A", []string{"replaced/below"}); !errors.Is(err, ErrPath) || !strings.Contains(err.Error(), "so name that") {
		t.Errorf("below a file: %v", err)
	}
	if _, err := OrderReset(dir, "B", []string{"x"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a slot without an /etc: %v", err)
	}
	for content, want := range map[string]string{"{": "unexpected end", `{"paths":["../../osctl"]}`: "cannot be reset", `{"paths":["a//b"]}`: "cannot be reset"} {
		write(t, dir, map[string]string{"A/" + resetFile: content})
		if order, err := PendingReset(dir, "A"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v, want %q", content, order, err, want)
		}
	}
}

// TestResetKeepsIdentity: all of /etc, and single paths.
func TestResetKeepsIdentity(t *testing.T) {
	changes := map[string]string{"fstab": "broken", "ssh/sshd_config": "x", "ssh/sshd_config.d/a.conf": "x", "systemd/system/a": "x", "machine-ids": "x"}
	for name, c := range map[string]struct {
		order Reset
		want  map[string]string
	}{
		"all":                       {Reset{All: true}, with(nil)},
		"one file":                  {Reset{Paths: []string{"fstab"}}, with(map[string]string{"ssh/sshd_config": "x", "ssh/sshd_config.d/a.conf": "x", "systemd/system/a": "x", "machine-ids": "x"})},
		"a directory with identity": {Reset{Paths: []string{"ssh"}}, with(map[string]string{"fstab": "broken", "systemd/system/a": "x", "machine-ids": "x"})},
		"nothing that is there":     {Reset{Paths: []string{"none", "fstab/below/file", "systemd/none"}}, with(changes)},
	} {
		dir := t.TempDir()
		upper, lower := filepath.Join(dir, "upper"), filepath.Join(dir, "lower")
		write(t, upper, with(changes))
		write(t, lower, map[string]string{"fstab": "", "ssh/sshd_config": ""})
		must(t, os.Chmod(filepath.Join(upper, "ssh"), 0o777), os.Chmod(filepath.Join(lower, "ssh"), 0o711))
		err := c.order.carryOut(upper, lower)
		if name == "nothing that is there" {
			if !errors.Is(err, ErrPath) {
				t.Errorf("%s: %v, want ErrPath for what lies below a file", name, err)
			}
		} else {
			must(t, err)
			must(t, c.order.carryOut(upper, lower)) // twice is as good as once
		}
		wantContents(t, upper, c.want)
		if info := stat(t, filepath.Join(upper, "ssh")); name == "all" && info.Mode().Perm() != 0o711 {
			t.Errorf("%s: the directory that stays has mode %v, the image's has 0711", name, info.Mode())
		}
	}
}

// TestResetByName: who names an identity means it.
func TestResetByName(t *testing.T) {
	upper := t.TempDir()
	write(t, upper, with(nil))
	must(t, Reset{Paths: []string{"machine-id", "ssh/ssh_host_ed25519_key", "ssh/authorized_keys"}}.carryOut(upper, t.TempDir()))
	wantContents(t, upper, map[string]string{"ssh/ssh_host_ed25519_key.pub": "public"})
}

// TestResetOnAnOverlay: after the reset the overlay shows the image's version of
// what was reset, and the changes of the rest, also where directories were
// removed and made anew.
func TestResetOnAnOverlay(t *testing.T) {
	needRoot(t)
	base := filepath.Join(t.TempDir(), "data")
	mount(t, "tmpfs", base, "tmpfs", "", 0)
	lower, dir := filepath.Join(base, "lower"), filepath.Join(base, "etc")
	image := map[string]string{"file": "i", "gone": "i", "made/one": "i", "made/two": "i", "made/sub/three": "i", "made/sub/four": "i", "made/peer/old": "i", "dir/a": "i", "removed/x": "i"}
	write(t, lower, image)
	must(t, os.Mkdir(dir, 0o755))
	etc := overlay(t, lower, dir, "A")
	at := func(name string) string { return filepath.Join(etc, name) }
	must(t, os.Remove(at("gone")), os.RemoveAll(at("made")), os.RemoveAll(at("removed")), os.Remove(at("dir/a")))
	write(t, etc, map[string]string{"file": "u", "made/new": "u", "made/sub/three": "u", "made/peer/new": "u", "dir/b": "u"})
	if _, err := OrderReset(dir, "A", []string{"removed/x"}); !errors.Is(err, ErrPath) {
		t.Errorf("below a removed directory: %v", err)
	}
	unmount(t, etc)
	upper := filepath.Join(dir, "A", "upper")

	must(t, Reset{Paths: []string{"gone", "made/sub/four", "dir"}}.carryOut(upper, lower))
	etc = overlay(t, lower, dir, "A")
	want := map[string]string{"file": "u", "gone": "i", "made/new": "u", "made/sub/three": "u", "made/sub/four": "i", "made/peer/new": "u", "dir/a": "i"}
	wantContents(t, etc, want)
	unmount(t, etc)

	must(t, Reset{All: true}.carryOut(upper, lower))
	etc = overlay(t, lower, dir, "A")
	wantContents(t, etc, image)
	unmount(t, etc)
	if left := describe(t, upper); len(left) != 1 {
		t.Errorf("left in the upper directory: %q", left)
	}
}

// TestCloneCarriesTheOrder: the slot that starts next gets the reset as well.
func TestCloneCarriesTheOrder(t *testing.T) {
	dir, _ := plainTree(t)
	want, err := OrderReset(dir, "A", []string{"hostname"})
	must(t, err, Clone(dir, "A", "B"))
	for _, slot := range []device.Slot{"A", "B"} {
		got, err := PendingReset(dir, slot)
		if err != nil || got == nil || !slices.Equal(got.Paths, want.Paths) {
			t.Errorf("slot %s: %v, %v", slot, got, err)
		}
	}
	must(t, CancelReset(dir, "A"), Clone(dir, "A", "B"))
	if got, err := PendingReset(dir, "B"); got != nil || err != nil {
		t.Errorf("a clone without an order: %v, %v", got, err)
	}
}

// TestCloneOfASparseFile: a hole stays one.
func TestCloneOfASparseFile(t *testing.T) {
	dir, upper := plainTree(t)
	path := filepath.Join(upper, "sparse")
	f, err := os.Create(path)
	must(t, err)
	for _, at := range []int64{1 << 20, 20 << 20} {
		_, err := f.WriteAt([]byte("data"), at)
		must(t, err)
	}
	must(t, f.Truncate(30<<20), f.Close(), Clone(dir, "A", "B"))
	clone := filepath.Join(dir, "B", "upper", "sparse")
	var from, to unix.Stat_t
	must(t, unix.Stat(path, &from), unix.Stat(clone, &to))
	if to.Size != from.Size || to.Blocks > from.Blocks+16 {
		t.Errorf("%d bytes in %d blocks, want %d in %d", to.Size, to.Blocks, from.Size, from.Blocks)
	}
	run(t, "cmp", path, clone)
}

func seeded(t *testing.T) (data, lower string) {
	t.Helper()
	data, lower = t.TempDir(), t.TempDir()
	write(t, data, map[string]string{
		"osctl/ledger.json": "l", "osctl/slots/A.json": "s", "containerd/x": "c", "nerdctl/y": "n", "web/volume": "w",
		"root/.docker/config.json": "login", "lost+found/x": "l", "etc/A/upper/fstab": "broken", "etc/B/upper/fstab": "older",
		"etc/A/work/x": "",
	})
	for _, slot := range []string{"A", "B"} {
		write(t, filepath.Join(data, "etc", slot, "upper"), identityFiles)
	}
	return data, lower
}

func TestFactoryReset(t *testing.T) {
	kept := map[string]string{"osctl/ledger.json": "l", "osctl/slots/A.json": "s", "lost+found/x": "l"}
	apps := map[string]string{"containerd/x": "c", "nerdctl/y": "n", "web/volume": "w"}
	for name, c := range map[string]struct {
		apps Apps
		seed map[string]string
		etc  map[string]string
	}{
		"keep":         {KeepApps, nil, identityFiles},
		"wipe":         {WipeApps, nil, identityFiles},
		"with a seed":  {WipeApps, map[string]string{"ssh/authorized_keys/root": "first", "osctl/osctl.yaml": "o"}, nil},
		"empty folder": {WipeApps, map[string]string{}, identityFiles},
	} {
		t.Run(name, func(t *testing.T) {
			data, lower := seeded(t)
			want := map[string]string{}
			if len(c.seed) > 0 {
				c.etc = map[string]string{"ssh/authorized_keys/root": "first", "osctl/osctl.yaml": "o"}
				for _, id := range []string{"machine-id", "ssh/ssh_host_ed25519_key", "ssh/ssh_host_ed25519_key.pub"} {
					c.etc[id] = identityFiles[id]
				}
			}
			write(t, filepath.Join(data, "etc/factory/upper"), c.seed)
			for name, content := range c.etc {
				want["etc/A/upper/"+name], want["etc/B/upper/"+name] = content, content
			}
			for name, content := range c.seed {
				want["etc/factory/upper/"+name] = content
			}
			stays := []map[string]string{kept}
			if c.apps == KeepApps {
				stays = append(stays, apps)
			}
			for _, m := range stays {
				for name, content := range m {
					want[name] = content
				}
			}
			f := factory{data: data, lower: lower}
			for range 2 { // twice is as good as once
				must(t, f.carryOut(FactoryReset{c.apps}), f.emptyTrash())
				wantContents(t, data, want)
			}
			wantEntries(t, filepath.Join(data, "etc/A"), "upper", "work")
		})
	}
}

// TestFactoryResetWithoutAnEtc: a slot that never had an upper gets none.
func TestFactoryResetWithoutAnEtc(t *testing.T) {
	data := t.TempDir()
	write(t, data, map[string]string{"etc/A/upper/x": "x"})
	f := factory{data: data, lower: t.TempDir()}
	must(t, f.carryOut(FactoryReset{WipeApps}), f.emptyTrash())
	wantEntries(t, filepath.Join(data, "etc"), "A")
}

func TestFactoryOrders(t *testing.T) {
	dir := t.TempDir()
	if err := OrderFactory(dir, ""); err == nil || !strings.Contains(err.Error(), "keep or wipe") {
		t.Errorf("an order without a choice: %v", err)
	}
	must(t, OrderFactory(dir, KeepApps), OrderFactory(dir, WipeApps))
	if order, err := PendingFactory(dir); err != nil || order == nil || order.Apps != WipeApps {
		t.Errorf("ordered: %v, %v", order, err)
	}
	must(t, CancelFactory(dir), CancelFactory(dir))
	if order, err := PendingFactory(dir); err != nil || order != nil {
		t.Errorf("taken back: %v, %v", order, err)
	}
	for content, want := range map[string]string{"": "unexpected end", "{}": "keep or wipe", `{"apps":"all"}`: "keep or wipe"} {
		write(t, dir, map[string]string{factoryFile: content})
		if order, err := PendingFactory(dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v, want %q", content, order, err, want)
		}
	}
	if err := OrderFactory(filepath.Join(dir, "none"), KeepApps); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no state directory: %v", err)
	}
}

// TestTakeOver: only plain files of a sane size are taken over, and one that is
// not does not keep the others from it.
func TestTakeOver(t *testing.T) {
	from, lower, to := t.TempDir(), t.TempDir(), t.TempDir()
	write(t, from, with(map[string]string{"fstab": "x", "ssh/ssh_host_rsa_key": strings.Repeat("x", maxKept+1), "machine-id": "garbage"}))
	must(t, os.Symlink("/etc/shadow", filepath.Join(from, "ssh/ssh_host_dsa_key")),
		os.Mkdir(filepath.Join(lower, "ssh"), 0o711), os.Chmod(filepath.Join(lower, "ssh"), 0o711))
	err := takeOver(from, lower, to, func(string) bool { return true })
	if err == nil || !strings.Contains(err.Error(), `"garbage" is no machine-id`) || !strings.Contains(err.Error(), "at most 65536") {
		t.Errorf("errors: %v", err)
	}
	want := with(nil)
	delete(want, "machine-id")
	wantContents(t, to, want)
	if mode := stat(t, filepath.Join(to, "ssh")).Mode().Perm(); mode != 0o711 {
		t.Errorf("ssh has mode %v, the image's has 0711", mode)
	}
	if _, err := os.Lstat(filepath.Join(to, "ssh/ssh_host_dsa_key")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a link was taken over: %v", err)
	}
}

// TestOrdersSweep: what a cut left of an earlier order goes with the next one.
func TestOrdersSweep(t *testing.T) {
	root := t.TempDir()
	write(t, root, map[string]string{"etc/A/.reset.json.tmp-1": "torn", "osctl/.reset.json.tmp-2": "torn"})
	_, err := OrderReset(filepath.Join(root, "etc"), "A", nil)
	must(t, err, OrderFactory(filepath.Join(root, "osctl"), KeepApps))
	wantContents(t, root, map[string]string{"etc/A/reset.json": `{"all":true}` + "\n", "osctl/reset.json": `{"apps":"keep"}` + "\n"})
}

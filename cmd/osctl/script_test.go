package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/publish"
	"github.com/kapernikov/osctl/test/daemon"
	"github.com/kapernikov/osctl/test/need"
	"github.com/kapernikov/osctl/test/sample"
)

// The scripts run the real program: this binary, under the name osctl.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"osctl": main})
}

// TestScripts are those that need neither root nor a daemon.
func TestScripts(t *testing.T) { runScripts(t, "testdata/fast", plain{}) }

// TestScriptsWithDaemons run on a real containerd, a real systemd and a real
// registry, as root.
func TestScriptsWithDaemons(t *testing.T) {
	need.Long(t)
	need.Root(t)
	containerd := daemon.Start(t)
	systemd := daemon.StartSystemd(t, map[string]string{
		"default.target":       "[Unit]\nDescription=all\nWants=boot-complete.target\n",
		"boot-complete.target": "[Unit]\nDescription=complete\n",
	})
	runScripts(t, "testdata/long", plain{containerd: containerd.Address, systemd: systemd.Socket})
}

// TestScriptsOnAFullDisk run with a containerd whose data partition has 24 MiB.
func TestScriptsOnAFullDisk(t *testing.T) {
	need.Long(t)
	need.Root(t)
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=24M"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(small, 0); err != nil {
			t.Error(err)
		}
	})
	normal := os.Getenv("TMPDIR")
	t.Setenv("TMPDIR", small)
	containerd := daemon.Start(t)
	t.Setenv("TMPDIR", normal)
	systemd := daemon.StartSystemd(t, map[string]string{"default.target": "[Unit]\nDescription=all\n"})
	runScripts(t, "testdata/full", plain{containerd: containerd.Address, systemd: systemd.Socket})
}

// runScripts runs the scripts of a folder, each on a machine of its own.
func runScripts(t *testing.T, dir string, machine plain) {
	keys := keyring(t)
	testscript.Run(t, testscript.Params{
		Dir: dir,
		Setup: func(e *testscript.Env) error {
			t, ok := e.T().(testing.TB)
			if !ok {
				return errors.New("the scripts need a *testing.T")
			}
			release, stranger := keys()
			s := &script{TB: t, plain: machine, release: release, stranger: stranger}
			return s.setup(e)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "image": makeImage, "registry": startRegistry, "front": setFront, "asked": asked,
			"unchanged": unchanged, "boots": boots, "slot": slotHolds, "stage": stage, "alter": alter, "lock": lock,
			"config": setConfig, "fill": fill, "authority": startAuthority,
			"keep": keep, "damage": damage, "committed": committedOnce,
			"mixed": mixed, "foreign": foreign, "stalled": stalled, "finished": finished, "leftover": leftover,
			"app": pullApp, "nerdctl": runNerdctl, "noregistry": noRegistry, "held": held,
			"collect": collect, "tmpfs": tmpfs, "loop": loop, "mounted": mounted,
		},
	})
}

// script is what the commands of one script share.
type script struct {
	testing.TB
	plain
	release, stranger keyPair
	front             *front
	before            map[string][]byte // the machine's files, to be compared
	images            map[string]sample.Image
	digests           map[string]string // of applications, by reference
	finished          []string          // packs that were complete at the last "finished"
}

type scriptKey struct{}

func of(ts *testscript.TestScript) *script {
	s, ok := ts.Value(scriptKey{}).(*script)
	if !ok {
		ts.Fatalf("no machine")
	}
	return s
}

// setup makes the machine, the keys and the fake programs of a script.
func (s *script) setup(e *testscript.Env) error {
	s.dir, s.namespace = e.WorkDir, "osctl-"+strings.ReplaceAll(filepath.Base(e.WorkDir), "_", "-")
	if s.containerd == "" {
		s.containerd, s.systemd = s.path("run/none.sock"), s.path("run/none.systemd")
	}
	s.images, s.digests = map[string]sample.Image{}, map[string]string{}
	if err := s.create(s.release.public); err != nil {
		return err
	}
	bin := s.path("bin")
	// Like the system manager, it ends who asked for a reboot.
	systemctl := "#!/bin/sh\necho \"systemctl $*\" >> " + s.path("systemctl.log") + "\n[ \"$*\" != reboot ] || kill -TERM $PPID\n"
	for name, content := range map[string][]byte{
		"release.key": s.release.private, "stranger.key": s.stranger.private, "stranger.pub": s.stranger.public,
		"bin/systemctl": []byte(systemctl), "home/.keep": nil,
	} {
		if err := os.MkdirAll(filepath.Dir(s.path(name)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(s.path(name), content, 0o755); err != nil { // #nosec systemctl is run
			return err
		}
	}
	e.Setenv("PATH", bin+":"+e.Getenv("PATH")+":/usr/sbin:/sbin")
	e.Setenv("HOME", s.path("home"))
	e.Setenv("CONFIG", s.config())
	e.Setenv("CONTAINERD", s.containerd)
	e.Setenv("SYSTEMD", s.systemd)
	e.Setenv("COSIGN_PASSWORD", "")
	e.Values[scriptKey{}] = s
	return s.remember()
}

// kept are the files that decide what boots, and what may not change unasked.
var kept = []string{"A.img", "B.img", "efi/a", "efi/b", "data/osctl/ledger.json"}

func (s *script) remember() error {
	s.before = map[string][]byte{}
	for _, name := range kept {
		data, err := os.ReadFile(s.path(name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		s.before[name] = data
	}
	return nil
}

// exits CODE PROGRAM ARGS… runs a program that must end with that exit code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARGS…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if failed := (*exec.ExitError)(nil); errors.As(err, &failed) {
		got = failed.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// image DIR [product=P] [version=V] [arch=A] [min=V] [epoch=N] [mib=N] [seed=N]
// [sign=release|stranger|no] builds an OS image.
func makeImage(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	if neg || len(args) < 1 {
		ts.Fatalf("usage: image DIR [key=value]…")
	}
	img := sample.Image{Product: "gateway", Version: "1.1", MiB: imageMiB, Seed: 11}
	key := s.release.key
	for _, arg := range args[1:] {
		name, value, _ := strings.Cut(arg, "=")
		number, _ := strconv.Atoi(value) //nolint:errcheck // not all are numbers
		switch name {
		case "product":
			img.Product = value
		case "version":
			img.Version = value
		case "arch":
			img.Architecture = value
		case "min":
			img.MinVersion = value
		case "epoch":
			img.Epoch = uint32(number) //nolint:gosec // small
		case "mib":
			img.MiB = number
		case "seed":
			img.Seed = byte(number) //nolint:gosec // small
		case "sign":
			key = map[string]*publish.Key{"release": s.release.key, "stranger": s.stranger.key}[value]
		default:
			ts.Fatalf("image: unknown %s", name)
		}
	}
	dir := ""
	if key != nil {
		dir = img.Signed(s, key)
	} else {
		dir = img.Layout(s)
	}
	ts.Check(os.CopyFS(ts.MkAbs(args[0]), os.DirFS(dir)))
	s.images[args[0]] = img
	ts.Setenv("DIGEST", layoutDigest(s, dir))
}

// registry [real] starts a registry and sets REG to its host and port.
func startRegistry(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	next := memoryRegistry()
	if len(args) == 1 && args[0] == "real" {
		next = before(daemon.StartRegistry(s).Addr)
	}
	s.front = newFront(s, next)
	ts.Setenv("REG", s.front.host())
}

// front STATUS|ok|flip|stall N|down changes how the registry behaves.
func setFront(ts *testscript.TestScript, neg bool, args []string) {
	f := of(ts).front
	switch args[0] {
	case "ok":
		f.set(0, 0)
	case "flip":
		f.set(0, 0)
		f.mu.Lock()
		f.flip = true
		f.mu.Unlock()
	case "stall":
		at, err := strconv.Atoi(args[1])
		ts.Check(err)
		f.set(0, at)
	case "down":
		f.CloseClientConnections()
		f.Close()
	default:
		status, err := strconv.Atoi(args[0])
		ts.Check(err)
		f.set(status, 0)
	}
}

// asked N holds that packs were asked for so often.
func asked(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	if got := of(ts).front.packs(); (got == want) == neg {
		ts.Fatalf("packs were asked for %d times", got)
	}
}

// unchanged [FILE…] holds that the machine's slots, boot state and ledger are
// what they were when the script began, or at the last "unchanged now".
func unchanged(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	if len(args) == 1 && args[0] == "now" {
		ts.Check(s.remember())
		return
	}
	if len(args) == 0 {
		args = kept
	}
	for _, name := range args {
		data, err := os.ReadFile(s.path(name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			ts.Check(err)
		}
		if same := bytes.Equal(data, s.before[name]); same == neg {
			ts.Fatalf("%s: unchanged is %t", name, same)
		}
	}
}

// boots committed|trial|fallback SLOT [TRIES] holds what GRUB will find.
func boots(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: boots committed|trial|fallback SLOT [TRIES]")
	}
	want := boot.State{Rootfs: device.Slot(args[1]), Tries: boot.FullTries}
	switch args[0] {
	case "trial":
		want.Phase = boot.Trial
	case "fallback":
		want.Phase = boot.FellBack
	}
	if len(args) > 2 {
		tries, err := strconv.Atoi(args[2])
		ts.Check(err)
		want.Tries = tries
	}
	got, err := of(ts).state()
	got.Other = false // which is the business of pkg/boot
	if err != nil || got != want {
		ts.Fatalf("the boot state is %v (%v), want %v", got, err, want)
	}
}

// slot NAME DIR holds that a slot begins with the image that was built in DIR.
func slotHolds(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	img, ok := s.images[args[1]]
	if !ok {
		ts.Fatalf("no image %s", args[1])
	}
	same, err := s.holds(device.Slot(args[0]), img.Raw())
	ts.Check(err)
	if same == neg {
		ts.Fatalf("slot %s holds %s: %t", args[0], args[1], same)
	}
}

// stage DIR leaves the machine with that image on trial in slot B.
func stage(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	ts.Check(s.stage(s.images[args[0]], layoutDigest(s, ts.MkAbs(args[0]))))
}

// alter DIR truncate|flip changes the largest blob of a layout.
func alter(ts *testscript.TestScript, neg bool, args []string) {
	files, err := filepath.Glob(filepath.Join(ts.MkAbs(args[0]), "blobs/sha256/*"))
	ts.Check(err)
	var data []byte
	largest := ""
	for _, name := range files {
		d, err := os.ReadFile(name)
		ts.Check(err)
		if len(d) > len(data) {
			data, largest = d, name
		}
	}
	switch args[1] {
	case "truncate":
		data = data[:len(data)/2]
	case "flip":
		data[len(data)/2] ^= 1
	default:
		ts.Fatalf("usage: alter DIR truncate|flip")
	}
	ts.Check(os.WriteFile(largest, data, 0o600))
}

// lock holds the lock of this machine until the script ends.
func lock(ts *testscript.TestScript, neg bool, _ []string) {
	held, err := boot.Lock(of(ts).path("run/lock"))
	ts.Check(err)
	ts.Defer(func() { ts.Check(held.Release()) })
}

// config OLD NEW replaces text of the configuration, or of what the gate expects, once.
func setConfig(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: config OLD NEW")
	}
	for _, file := range []string{of(ts).config(), of(ts).path("health.yaml")} {
		if text := ts.ReadFile(file); strings.Contains(text, args[0]) {
			ts.Check(os.WriteFile(file, []byte(strings.Replace(text, args[0], args[1], 1)), 0o600))
			return
		}
	}
	ts.Fatalf("config: %q is in neither file", args[0])
}

// fill FILE writes zeros until its file system is full.
func fill(ts *testscript.TestScript, neg bool, args []string) {
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	for size := 1 << 16; size > 0; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			size /= 16
		}
	}
	ts.Check(f.Close())
}

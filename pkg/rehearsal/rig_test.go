package rehearsal

import (
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	containerd "github.com/containerd/containerd/v2/client"

	"github.com/kapernikov/osctl/pkg/etc"
	"github.com/kapernikov/osctl/test/daemon"
	"github.com/kapernikov/osctl/test/need"
)

// TestMain lets this binary be the program in the container.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "inside" {
		if err := Inside(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) > 2 && os.Args[1] == "victim" { // to be killed
		var o Options
		if err := json.Unmarshal([]byte(os.Args[2]), &o); err != nil {
			panic(err)
		}
		_, err := Run(context.Background(), o)
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// sshdScript is the one program that is not the real one. What it is told by its
// configuration it does.
const sshdScript = `#!/bin/sh
while read -r word rest; do
	case $word in
	Bad) echo "/etc/ssh/sshd_config: line 1: Bad configuration option: $rest" >&2; exit 255 ;;
	Look)
		while read -r line; do case $line in CapEff*|CapBnd*|NoNewPrivs*) echo "$line" ;; esac; done </proc/self/status
		while read -r line; do case $line in *:*) echo "net ${line%%:*}" ;; esac; done </proc/net/dev
		for file in /etc/x /usr/x /proc/sys/kernel/domainname; do (echo x >$file) 2>/dev/null && echo "wrote $file"; done
		for file in /dev/*; do echo "device $file"; done
		for file in /run/*; do echo "run $file"; done
		exit 255 ;;
	Hang)
		trap '' TERM
		setsid sleep 1000 &
		(trap '' TERM; sleep 1000) &
		sleep 1000 ;;
	esac
done </etc/ssh/sshd_config >&2
`

// nftScript takes every file, and fails where a sleep is left.
const nftScript = `#!/bin/sh
for file in /proc/[0-9]*/comm; do
	read -r name <$file
	if [ "$name" = sleep ]; then echo "$file is left" >&2; exit 1; fi
done
`

// rig is a machine with a containerd, an image in a slot on a loop device, and an /etc
// for it on the machine's own disk.
type rig struct {
	t      *testing.T
	daemon *daemon.Daemon
	dir    string
	tree   string // of the image
	upper  string
	Options
}

// newRig makes the tree of an image of the real programs of this machine: the
// analyser of systemd, the dynamic runc, containerd.
func newRig(t *testing.T) *rig {
	need.Long(t)
	need.Root(t)
	r := &rig{t: t, daemon: daemon.Start(t), dir: t.TempDir()}
	r.tree, r.upper = filepath.Join(r.dir, "tree"), filepath.Join(r.dir, "B/upper")
	for _, dir := range []string{"proc", "dev", "run", "tmp", "etc", "usr/lib", "usr/lib64", "usr/bin", "usr/sbin"} {
		r.mkdir(filepath.Join(r.tree, dir))
	}
	for _, name := range []string{"lib", "lib64", "bin", "sbin"} {
		if err := os.Symlink("usr/"+name, filepath.Join(r.tree, name)); err != nil {
			t.Fatal(err)
		}
	}
	for program, place := range map[string]string{
		"systemd-analyze": "usr/bin/systemd-analyze", "runc": "usr/sbin/runc", "containerd": "usr/bin/containerd",
		"sh": "usr/bin/sh", "sleep": "usr/bin/sleep", "setsid": "usr/bin/setsid", "true": "usr/bin/osctl",
	} {
		r.install(need.Tool(t, program), place)
	}
	r.write(filepath.Join(r.tree, "usr/sbin/sshd"), sshdScript)
	r.write(filepath.Join(r.tree, "usr/sbin/nft"), nftScript)
	for name, content := range map[string]string{
		"etc/ssh/ssh_host_x_key":                   "",
		"etc/ssh/sshd_config":                      "Port 22\n",
		"etc/containerd/config.toml":               "version = 3\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n",
		"usr/lib/systemd/system/good.service":      "[Service]\nExecStart=/usr/bin/true\n",
		"usr/lib/systemd/system/basic.target":      "[Unit]\nDescription=basic\n",
		"usr/lib/systemd/system/sysinit.target":    "[Unit]\nDescription=init\n",
		"usr/lib/systemd/system/shutdown.target":   "[Unit]\nDescription=end\n",
		"usr/lib/systemd/system/multi.target":      "[Unit]\nDescription=all\n",
		"usr/lib/systemd/system/system.slice":      "[Unit]\nDescription=all\n",
		"usr/lib/systemd/system/noisy.service":     "[Service]\nExecStart=/usr/bin/true\nFrob=1\n",
		"usr/lib/systemd/system/unused.service":    "[Service]\nExecStart=/usr/bin/nope\n",
		"usr/lib/systemd/system/masked.service":    "[Service]\nExecStart=/usr/bin/nope\n",
		"usr/lib/systemd/system/instance@.service": "[Service]\nExecStart=/usr/bin/true %i\n",
	} {
		r.write(filepath.Join(r.tree, name), content)
	}
	r.install(need.Tool(t, "true"), "usr/bin/true")
	wants := filepath.Join(r.tree, "etc/systemd/system/multi.target.wants")
	r.mkdir(wants)
	for name, unit := range map[string]string{"good.service": "good.service", "masked.service": "masked.service", "noisy.service": "noisy.service", "instance@one.service": "instance@.service"} {
		r.link("/usr/lib/systemd/system/"+unit, filepath.Join(wants, name))
	}
	r.link("/dev/null", filepath.Join(r.tree, "etc/systemd/system/masked.service"))
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r.Options = Options{
		Address: r.daemon.Address, Namespace: fmt.Sprintf("rehearsal-%d", os.Getpid()), Dir: filepath.Join(r.dir, "run"),
		Program: self, Args: []string{"inside"}, Target: System{Upper: r.upper},
	}
	// Where Run itself has runc keep its state.
	t.Cleanup(func() { os.Remove("/run/containerd/runc/" + r.Namespace) }) //nolint:errcheck // it may be in use
	return r
}

func (r *rig) mkdir(dir string) {
	r.t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) write(path, content string) {
	r.t.Helper()
	r.mkdir(filepath.Dir(path))
	mode := os.FileMode(0o644)
	if strings.HasPrefix(content, "#!") {
		mode = 0o755
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) link(to, path string) {
	r.t.Helper()
	r.mkdir(filepath.Dir(path))
	if err := os.Symlink(to, path); err != nil {
		r.t.Fatal(err)
	}
}

// install copies a program of this machine, with its loader and libraries.
func (r *rig) install(program, place string) {
	r.t.Helper()
	r.copy(program, filepath.Join(r.tree, place))
	file, err := elf.Open(program)
	if err != nil {
		r.t.Fatal(err)
	}
	defer file.Close()
	if libraries, err := file.ImportedLibraries(); err != nil || len(libraries) == 0 {
		return
	}
	out, err := exec.Command("ldd", program).Output()
	if err != nil {
		r.t.Fatal(err)
	}
	for word := range strings.FieldsSeq(string(out)) {
		if filepath.IsAbs(word) {
			r.copy(word, filepath.Join(r.tree, word))
		}
	}
}

func (r *rig) copy(from, to string) {
	r.t.Helper()
	r.mkdir(filepath.Dir(to))
	in, err := os.Open(from)
	if err != nil {
		r.t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		r.t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		r.t.Fatal(err)
	}
}

// device makes an ext4 image of a tree and gives it a loop device.
func (r *rig) device(tree string) string {
	r.t.Helper()
	return r.loop(func(image string) []string {
		return []string{"mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-d", tree, image, "160M"}
	})
}

// loop makes a file by a command and gives it a loop device.
func (r *rig) loop(command func(image string) []string) string {
	r.t.Helper()
	image := filepath.Join(r.t.TempDir(), "image")
	args := command(image)
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil { // #nosec fixed programs
		r.t.Fatalf("%v: %v\n%s", args, err, out)
	}
	out, err := exec.Command("losetup", "--find", "--show", image).CombinedOutput()
	if err != nil {
		r.t.Fatalf("losetup: %v\n%s", err, out)
	}
	loop := strings.TrimSpace(string(out))
	r.t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", loop).CombinedOutput(); err != nil {
			r.t.Errorf("detaching %s: %v\n%s", loop, err, out)
		}
	})
	return loop
}

// run is Run, with runc's state in the test's folder.
func (r *rig) run() (Report, error) {
	r.t.Helper()
	return run(r.t.Context(), r.Options, []containerd.NewContainerOpts{r.daemon.Runtime()})
}

// check returns one check of a report.
func (r *rig) check(report Report, name string) Check {
	r.t.Helper()
	for _, c := range report.Checks {
		if c.Name == name {
			return c
		}
	}
	r.t.Fatalf("no check %q in %+v", name, report)
	return Check{}
}

// compare gives the rehearsal the changes of the slot's /etc, where the running image
// had these files, by their paths below /etc, and the new one's otherwise.
func (r *rig) compare(old map[string]string) {
	lower := filepath.Join(r.t.TempDir(), "etc")
	if err := os.CopyFS(lower, os.DirFS(filepath.Join(r.tree, "etc"))); err != nil {
		r.t.Fatal(err)
	}
	for name, content := range old {
		r.write(filepath.Join(lower, name), content)
	}
	r.Changes = func() ([]etc.Change, error) { return etc.Compare(r.upper, lower, filepath.Join(r.tree, "etc")) }
}

// own gives the machine an /etc of its own for the slot: these files, and no others.
func (r *rig) own(files map[string]string) {
	r.t.Helper()
	if err := os.RemoveAll(r.upper); err != nil {
		r.t.Fatal(err)
	}
	r.mkdir(r.upper)
	for name, content := range files {
		path := filepath.Join(r.upper, name)
		if to, ok := strings.CutPrefix(content, "-> "); ok {
			r.link(to, path)
			continue
		}
		r.write(path, content)
	}
}

// digest is of everything that a rehearsal must not change.
func (r *rig) digest(device string) string {
	r.t.Helper()
	sum := sha256.New()
	f, err := os.Open(device)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(sum, f); err != nil {
		r.t.Fatal(err)
	}
	out, err := exec.Command("find", r.upper, "-printf", "%p %y %s %m %T@ %C@\\n").CombinedOutput() // #nosec its own folder
	if err != nil {
		r.t.Fatalf("%v\n%s", err, out)
	}
	sum.Write(out)
	return fmt.Sprintf("%x", sum.Sum(nil))
}

// runs reports whether this program runs in a container that has the slot.
func (r *rig) runs() bool {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		line, _ := os.ReadFile(file)
		mounts, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "mountinfo"))
		if strings.HasPrefix(string(line), programPath+"\x00inside\x00") && strings.Contains(string(mounts), r.Target.Device+" ") {
			return true
		}
	}
	return false
}

// await waits until the slot is in use, or is not any more; or until ended has something.
func (r *rig) await(busy bool, ended <-chan error) {
	for r.t.Context().Err() == nil && len(ended) == 0 {
		f, err := os.OpenFile(r.Target.Device, os.O_RDONLY|unix.O_EXCL, 0)
		if err == nil {
			f.Close()
		}
		if errors.Is(err, unix.EBUSY) == busy {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

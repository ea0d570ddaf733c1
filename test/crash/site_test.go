package crash

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kapernikov/osctl/pkg/artifact"
	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/publish"
	"github.com/kapernikov/osctl/test/crash/grub"
	"github.com/kapernikov/osctl/test/crash/model"
	"github.com/kapernikov/osctl/test/crash/record"
	"github.com/kapernikov/osctl/test/daemon"
	"github.com/kapernikov/osctl/test/need"
	"github.com/kapernikov/osctl/test/sample"
)

// The size of the slots and of the images in them, in MiB.
const slotMiB, imageMiB = 5, 4

// site is what all machines of a test share: the binary under test, images, daemons.
type site struct {
	t          *testing.T
	dir        string
	osctl      string
	key        *publish.Key
	public     []byte
	images     map[string]image
	containerd string
	systemd    string
	pool       *model.Pool
	grubConfig []byte
	// namespace keeps what containerd holds for machines of tests that run at once
	// apart.
	namespace string
}

// image is a signed release.
type image struct {
	raw    string // its ext4
	layout string
	volume model.Volume // a slot that holds it
}

// newSite builds the binary and the images and starts the daemons.
func newSite(t *testing.T) *site {
	t.Helper()
	need.Long(t)
	need.Root(t)
	for _, tool := range []string{"strace", "grub-emu", "mkfs.ext4"} {
		need.Tool(t, tool)
	}
	s := &site{t: t, dir: t.TempDir(), images: map[string]image{}, pool: model.NewPool(), namespace: "osctl"}
	s.osctl = filepath.Join(s.dir, "osctl")
	s.noteSources()
	cmd := exec.Command("go", "build", "-o", s.osctl, "./cmd/osctl")
	cmd.Dir = need.Top()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building osctl: %v: %s", err, out)
	}
	s.key, _, s.public = sample.Key(t)
	for i, version := range []string{"1.0", "1.1", "1.2"} {
		s.images[version] = s.image("gateway", version, byte(i))
	}
	s.grubConfig = s.readFile(filepath.Join(need.Top(), grub.Config))
	s.containerd = daemon.Start(t).Address
	s.systemd = daemon.StartSystemd(t, map[string]string{
		"default.target":       "[Unit]\nDescription=all\nWants=boot-complete.target\n",
		"boot-complete.target": "[Unit]\nDescription=complete\n",
	}).Socket
	return s
}

// fastDir is a folder for what is synced often and recorded never: in memory, where
// there is room.
func (s *site) fastDir(t *testing.T) string {
	t.Helper()
	const shm, room = "/dev/shm", 1 << 30
	var st unix.Statfs_t
	if err := unix.Statfs(shm, &st); err != nil || st.Bavail*uint64(st.Bsize) < room {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(shm, "crash")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// noteSources reads what the binary is made of: go test keeps the result of a test
// only as long as the files are the same that it read.
func (s *site) noteSources() {
	s.t.Helper()
	files := 0
	for _, pattern := range []string{"go.mod", "cmd/*/*.go", "pkg/*/*.go"} {
		names, err := filepath.Glob(filepath.Join(need.Top(), pattern))
		if err != nil {
			s.t.Fatal(err)
		}
		for _, name := range names {
			s.readFile(name)
			files++
		}
	}
	if files == 0 {
		s.t.Fatal("no sources are found")
	}
}

func (s *site) readFile(path string) []byte {
	s.t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		s.t.Fatal(err)
	}
	return data
}

func (s *site) writeFile(path string, data []byte) {
	s.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil { // #nosec the modes are part of the machine
		s.t.Fatal(err)
	}
}

// beside is the site for a test that runs at the same time as others: with what it
// changes of its own.
func (s *site) beside(t *testing.T, name string) *site {
	t.Helper()
	c := *s
	c.t, c.pool, c.namespace, c.images = t, model.NewPool(), name, map[string]image{}
	for version, i := range s.images {
		i.volume = c.slotWith(i.raw)
		c.images[version] = i
	}
	return &c
}

// slotWith is a slot that holds an image.
func (s *site) slotWith(raw string) model.Volume {
	s.t.Helper()
	slot := append(s.readFile(raw), make([]byte, (slotMiB-imageMiB)<<20)...)
	v, err := s.pool.ReadVolume(bytes.NewReader(slot), int64(len(slot)))
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

// image makes a file system with a kernel and an initrd, and a signed layout of it.
func (s *site) image(product, version string, seed byte) image {
	s.t.Helper()
	tree := filepath.Join(s.dir, "tree-"+product+version)
	random := rand.NewChaCha8([32]byte{seed, 7})
	s.writeFile(filepath.Join(tree, "usr/lib/osctl/boot/BOOTX64.EFI"), []byte("MZ, as every EFI program begins"))
	s.writeFile(filepath.Join(tree, "usr/lib/osctl/boot/grub.cfg"), []byte("# of "+version))
	for name, size := range map[string]int{"boot/vmlinuz": 300_000, "boot/initrd.img": 500_000, "usr/lib/data": 1_400_000} {
		data := make([]byte, size)
		random.Read(data) //nolint:errcheck // never fails
		s.writeFile(filepath.Join(tree, name), data)
	}
	i := image{raw: filepath.Join(s.dir, product+version+".ext4"), layout: filepath.Join(s.dir, "layout-"+product+version)}
	uuid := fmt.Sprintf("00000000-0000-4000-8000-00000000%02d00", seed)
	cmd := exec.Command("mkfs.ext4", "-q", "-b", "4096", "-O", "^has_journal", "-U", uuid, "-E", "hash_seed="+uuid, "-d", tree, i.raw, fmt.Sprintf("%dm", imageMiB))
	cmd.Env = append(os.Environ(), "E2FSPROGS_FAKE_TIME=1800000000")
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("making an image: %v: %s", err, out)
	}
	_, err := artifact.Build(s.t.Context(), artifact.Options{
		Rootfs: i.raw, Output: i.layout, Product: product, Version: version, Kernel: "/boot/vmlinuz", Initrd: "/boot/initrd.img",
	})
	if err == nil {
		_, err = publish.Sign(s.t.Context(), i.layout, s.key, publish.Options{})
	}
	if err != nil {
		s.t.Fatal(err)
	}
	i.volume = s.slotWith(i.raw)
	return i
}

// machine is a machine of plain files in a folder.
type machine struct {
	*site
	dir string
}

// roots are the media of a machine. The lock and the reports are in memory and are
// gone after a cut.
func roots() []record.Root {
	return []record.Root{
		{Name: "efi", FS: model.FAT}, {Name: "data", FS: model.Ext4},
		{Name: "A.img", Block: true}, {Name: "B.img", Block: true},
	}
}

func (m machine) path(name string) string { return filepath.Join(m.dir, name) }

// fixed writes what no medium holds: the image's configuration. One finds the booted
// slot on the kernel's command line. The other two name it, because then nothing
// asks for partitions, which files are not, nor for the places of a real machine.
func (m machine) fixed() {
	m.t.Helper()
	for _, booted := range []string{"auto", "A", "B"} {
		m.writeFile(m.path("osctl-"+booted+".yaml"), fmt.Appendf(nil, `apiVersion: osctl.kapernikov.com/v1
kind: Config
product: gateway
slots: {A: %[1]s/A.img, B: %[1]s/B.img, rescue: %[1]s/R.img}
bootedSlot: %[4]s
env: [%[1]s/efi/osctl/a/grubenv, %[1]s/efi/osctl/b/grubenv]
policy: %[1]s/policy.yaml
stateDir: %[1]s/data/osctl
etcDir: %[1]s/data/etc
runtimeDir: %[1]s/run
containerd: {address: %[2]s, namespace: %[5]s, hostsDir: %[1]s/certs.d}
systemd: {address: %[3]s}
health: %[1]s/health.yaml
`, m.dir, m.containerd, m.systemd, booted, m.namespace))
	}
	m.writeFile(m.path("health.yaml"), []byte("apiVersion: osctl.kapernikov.com/v1\nkind: Gate\ndeadline: 5s\nsoak: 1ms\n"))
	m.writeFile(m.path("policy.yaml"), []byte("apiVersion: osctl.kapernikov.com/v1\nkind: Policy\nkeys:\n  - name: release\n    file: release.pub\nrescue:\n  - name: rescue\n    file: release.pub\n"))
	m.writeFile(m.path("release.pub"), m.public)
}

// newMachine is installed with 1.0 in slot A and nothing of use in slot B.
func (s *site) newMachine() machine {
	s.t.Helper()
	m := machine{s, s.t.TempDir()}
	m.fixed()
	env, err := boot.InitialBlock()
	if err != nil {
		s.t.Fatal(err)
	}
	old := make([]byte, slotMiB<<20)
	rand.NewChaCha8([32]byte{99}).Read(old) //nolint:errcheck // never fails
	for name, data := range map[string][]byte{
		"efi/osctl/a/grubenv": env, "efi/osctl/b/grubenv": env, "B.img": old,
		"A.img":                            append(s.readFile(s.images["1.0"].raw), make([]byte, (slotMiB-imageMiB)<<20)...),
		"data/osctl/.keep":                 nil,
		"data/etc/A/upper/hostname":        []byte("gateway-7\n"),
		"data/etc/A/upper/ssh/sshd_config": []byte("PermitRootLogin no\n"),
		"data/etc/A/work/.keep":            nil,
	} {
		s.writeFile(m.path(name), data)
	}
	for name, err := range map[string]error{
		"link":  os.Symlink("hostname", m.path("data/etc/A/upper/name")),
		"hard":  os.Link(m.path("data/etc/A/upper/hostname"), m.path("data/etc/A/upper/hostname2")),
		"node":  syscall.Mknod(m.path("data/etc/A/upper/gone"), syscall.S_IFCHR|0o600, 0),
		"owner": os.Chown(m.path("data/etc/A/upper/ssh"), 7, 7),
		"xattr": syscall.Setxattr(m.path("data/etc/A/upper/ssh"), "trusted.overlay.opaque", []byte("y"), 0),
		"lock":  os.Remove(m.path("data/osctl/.keep")),
	} {
		if err != nil {
			s.t.Fatalf("%s: %v", name, err)
		}
	}
	s.firstLedger(m)
	return m
}

// booted is what GRUB told the kernel.
type booted struct{ slot, kind string }

func (b booted) String() string {
	if b.slot == "" {
		return "nothing"
	}
	return b.slot + " " + b.kind
}

// command is a command of osctl on this machine, booted as said.
func (m machine) command(b booted, args ...string) *exec.Cmd {
	m.t.Helper()
	cmdline := m.path("cmdline")
	m.writeFile(cmdline, []byte("osctl.slot="+b.slot+" osctl.boot="+b.kind+"\n"))
	m.writeFile(cmdline+".release", []byte("ID=gateway\nVERSION_ID="+m.running(b.slot)+"\n"))
	config := "osctl-auto.yaml"
	if slices.Contains([]string{"upgrade", "install", "etc", "reset"}, args[0]) {
		config = "osctl-" + b.slot + ".yaml"
	}
	args = append(args[:len(args):len(args)], "--config", m.path(config))
	return m.inNamespace(cmdline, append([]string{m.osctl}, args...)...)
}

// running is the release whose system runs from a slot, told by the identity of its
// file system.
func (m machine) running(slot string) string {
	m.t.Helper()
	superblock := func(path string) []byte {
		data := m.readFile(path)
		return data[1024:][0x68:0x78] // s_uuid
	}
	for version, i := range m.images {
		if bytes.Equal(superblock(i.raw), superblock(m.path(slot+".img"))) {
			return version
		}
	}
	return "0.0"
}

// inNamespace runs a program for which the kernel's command line is that of a file,
// and the system the release that a file beside it names.
func (s *site) inNamespace(cmdline string, args ...string) *exec.Cmd {
	cmd := exec.Command("sh", append([]string{"-c",
		`umask 022; mount --bind "$0" /proc/cmdline && mount --bind "$0.release" /etc/os-release && exec "$@"`, cmdline}, args...)...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	return cmd
}

// result is how a command of osctl ended.
type result struct {
	code int
	out  string
}

func (r result) String() string {
	return fmt.Sprintf("exit code %d: %s", r.code, strings.TrimSpace(r.out))
}

// run runs a command of osctl.
func (m machine) run(b booted, args ...string) result {
	m.t.Helper()
	out, err := m.command(b, args...).CombinedOutput()
	if err == nil {
		return result{0, string(out)}
	}
	exit, ok := err.(*exec.ExitError) //nolint:errorlint // as exec returns it
	if !ok {
		m.t.Fatal(err)
	}
	return result{exit.ExitCode(), string(out)}
}

// must runs a command that has to end well.
func (m machine) must(b booted, args ...string) {
	m.t.Helper()
	if r := m.run(b, args...); r.code != 0 {
		m.t.Fatalf("osctl %v, booted %v: %v", args, b, r)
	}
}

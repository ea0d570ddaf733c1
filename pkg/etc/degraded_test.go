package etc

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// realMachine runs Preinit on real mounts: a root in memory, and a loop device as
// its data partition.
type realMachine struct {
	*testing.T
	root, image string
	loop        string
	// readOnly is that the kernel mounts an overlay on the data partition read-only.
	readOnly bool
}

// newRealMachine formats the data partition with a command, FILE standing for it.
func newRealMachine(t *testing.T, format ...string) *realMachine {
	t.Helper()
	needRoot(t)
	needTool(t, "losetup")
	m := &realMachine{T: t, root: filepath.Join(t.TempDir(), "root")}
	mount(t, "tmpfs", m.root, "tmpfs", "", 0)
	write(t, m.root, map[string]string{"etc/fstab": "image\n", "etc/machine-id": "", "etc/ssh/sshd_config": "image", "etc/gone": "image"})
	for _, dir := range []string{"proc", "sys", "dev", "run", "efi", "data"} {
		must(t, os.Mkdir(filepath.Join(m.root, dir), 0o755))
	}
	m.image = filepath.Join(t.TempDir(), "data.img")
	must(t, os.WriteFile(m.image, nil, 0o600), os.Truncate(m.image, 128<<20))
	for i := range format {
		if format[i] == "FILE" {
			format[i] = m.image
		}
	}
	if len(format) > 0 {
		needTool(t, format[0])
		run(t, format[0], format[1:]...)
	}
	return m
}

// attach makes the image a block device.
func (m *realMachine) attach(flags ...string) {
	m.loop = strings.TrimSpace(run(m.T, "losetup", append([]string{"-f", "--show", m.image}, flags...)...))
	m.Cleanup(m.detach)
}

// detach lets the block device go, once: its number may be somebody else's then.
func (m *realMachine) detach() {
	if m.loop != "" {
		loop := m.loop
		m.loop = ""
		run(m.T, "losetup", "-d", loop)
	}
}

// shutDown leaves nothing of the file systems mounted.
func (m *realMachine) shutDown() {
	for _, target := range []string{"etc", "data", "run"} {
		unmount(m.T, filepath.Join(m.root, target))
	}
	m.detach()
}

// boot runs Preinit and shuts down when the test ends.
func (m *realMachine) boot(kind string, flags ...string) Report {
	m.Helper()
	m.attach(flags...)
	must(m.T, os.WriteFile(filepath.Join(m.root, "proc/cmdline"), []byte("osctl.slot=A osctl.boot="+kind), 0o600))
	s := starter{root: m.root, find: func(label string) (string, error) {
		if label == "data" && m.loop != "" {
			return m.loop, nil
		}
		return "", fmt.Errorf("no partition %s", label)
	}}
	s.mount = func(source, target, fstype string, flags uintptr, data string) error {
		switch name := strings.TrimPrefix(target, m.root); {
		case name == "/proc" || name == "/sys" || name == "/dev":
			return nil
		default:
			if m.readOnly && strings.Contains(data, "upperdir="+m.root+"/data/") {
				flags |= unix.MS_RDONLY
			}
			return unix.Mount(source, target, fstype, flags, data)
		}
	}
	r := s.run()
	return r
}

func (m *realMachine) problems(r Report) string {
	var lines []string
	for _, p := range r.Problems {
		if p.Step != "mounting /efi" { // these machines have none
			lines = append(lines, p.Step+": "+p.Error)
		}
	}
	return strings.Join(lines, "\n")
}

// want compares files of /etc; "-" is a file that is not there.
func (m *realMachine) want(files map[string]string) {
	m.Helper()
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(m.root, "etc", name))
		if os.IsNotExist(err) {
			got = []byte("-")
		} else {
			must(m.T, err)
		}
		if string(got) != want {
			m.Errorf("/etc/%s is %q, want %q", name, got, want)
		}
	}
}

// configure changes /etc of the running machine.
func (m *realMachine) configure() {
	m.Helper()
	write(m.T, filepath.Join(m.root, "etc"), map[string]string{"fstab": "broken\n", "machine-id": someID, "ssh/ssh_host_ed25519_key": "secret"})
	must(m.T, os.Remove(filepath.Join(m.root, "etc/gone")))
	unix.Sync()
}

var configured = map[string]string{"fstab": "broken\n", "machine-id": someID, "ssh/ssh_host_ed25519_key": "secret", "gone": "-"}
var pristine = map[string]string{"fstab": "image\n", "machine-id": someID, "ssh/ssh_host_ed25519_key": "secret", "gone": "image", "ssh/sshd_config": "image"}

// TestDataPartitions: whatever the data partition is, the machine gets the best
// /etc that is to be had, and the report says what is lost.
func TestDataPartitions(t *testing.T) {
	for name, c := range map[string]struct {
		format []string
		spoil  func(m *realMachine) // between two boots
		flags  []string             // of the loop device at the second boot
		kind   string               // of the second boot
		etc    Source
		files  map[string]string
		want   string // in the problems; none if empty
	}{
		"ext4":     {format: []string{"mkfs.ext4", "-q", "FILE"}, etc: FromSlot, files: configured},
		"btrfs":    {format: []string{"mkfs.btrfs", "-q", "FILE"}, etc: FromSlot, files: configured},
		"pristine": {format: []string{"mkfs.ext4", "-q", "FILE"}, kind: PristineBoot, etc: FromMemory, files: pristine},
		"read-only": {
			format: []string{"mkfs.ext4", "-q", "FILE"}, flags: []string{"-r"}, etc: FromMemory, files: configured,
			want: "mounting /data: it is mounted read-only: ",
		},
		"read-only with a journal": {
			format: []string{"mkfs.ext4", "-q", "FILE"}, flags: []string{"-r"}, etc: FromMemory, files: configured,
			spoil: func(m *realMachine) { m.leaveJournal() },
			want:  "mounting /data: it is mounted read-only: ",
		},
		"read-only btrfs": {
			format: []string{"mkfs.btrfs", "-q", "FILE"}, flags: []string{"-r"}, etc: FromMemory, files: configured,
			want: "mounting /data: it is mounted read-only: ",
		},
		"read-only and pristine": {
			format: []string{"mkfs.ext4", "-q", "FILE"}, flags: []string{"-r"}, kind: PristineBoot, etc: FromMemory, files: pristine,
			want: "mounting /data: it is mounted read-only: ",
		},
		"damaged": {
			format: []string{"mkfs.ext4", "-q", "FILE"}, etc: FromMemory, files: map[string]string{"fstab": "image\n", "machine-id": "", "ssh/ssh_host_ed25519_key": "-"},
			spoil: func(m *realMachine) {
				run(m.T, "dd", "if=/dev/zero", "of="+m.image, "bs=1k", "count=64", "conv=notrunc")
			},
			want: "mounting /data: /dev/loop",
		},
		"full": {
			format: []string{"mkfs.ext4", "-q", "FILE"}, etc: FromMemory, files: configured,
			spoil: func(m *realMachine) { m.fill() },
			want:  "came up read-only; is the data partition full?",
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newRealMachine(t, c.format...)
			if r := m.boot("committed"); r.Etc != FromSlot || m.problems(r) != "" {
				t.Fatalf("the first boot: %+v", r)
			}
			m.configure()
			m.shutDown()
			if c.spoil != nil {
				c.spoil(m)
			}
			r := m.boot(c.kind, c.flags...)
			defer m.shutDown()
			if name == "full" && r.Etc == FromSlot { // what was freed since may do for the overlay
				c.etc, c.want = FromSlot, ""
			}
			if r.Etc != c.etc {
				t.Errorf("/etc comes from %q, want %q", r.Etc, c.etc)
			}
			m.want(c.files)
			if want := map[bool]Access{true: ReadOnly, false: Writable}[len(c.flags) > 0]; r.Data != want && name != "damaged" {
				t.Errorf("the data partition is %s, want %s", r.Data, want)
			}
			if got := m.problems(r); c.want == "" && got != "" || !strings.Contains(got, c.want) {
				t.Errorf("problems %q, want %q", got, c.want)
			}
			// Services write into /etc, and must find that they can.
			if err := os.WriteFile(filepath.Join(m.root, "etc/new"), []byte("x"), 0o600); err != nil && c.etc != FromSlot {
				t.Errorf("writing into /etc: %v", err)
			}
		})
	}
}

// leaveJournal leaves the data partition as after a cut: with a journal to replay.
func (m *realMachine) leaveJournal() {
	m.Helper()
	m.attach()
	dir := filepath.Join(m.TempDir(), "data")
	must(m.T, os.Mkdir(dir, 0o755), unix.Mount(m.loop, dir, "ext4", 0, ""), os.WriteFile(filepath.Join(dir, "new"), []byte("x"), 0o600))
	unix.Sync()
	cut := m.image + ".cut"
	run(m.T, "cp", "--sparse=always", m.image, cut)
	must(m.T, unix.Unmount(dir, 0))
	m.detach()
	must(m.T, os.Rename(cut, m.image))
}

// TestReadOnlyOverlay: the slot's own /etc, mounted read-only, gives way to one in
// memory above it.
func TestReadOnlyOverlay(t *testing.T) {
	m := newRealMachine(t, "mkfs.ext4", "-q", "FILE")
	m.boot("committed")
	m.configure()
	m.shutDown()
	m.readOnly = true
	r := m.boot("committed")
	defer m.shutDown()
	if got := m.problems(r); r.Etc != FromMemory || r.Data != Writable || !strings.Contains(got, "came up read-only") {
		t.Errorf("report %+v", r)
	}
	m.want(configured)
	must(t, os.WriteFile(filepath.Join(m.root, "etc/new"), []byte("x"), 0o600))
}

// TestOverlayCameUpReadOnly: such an overlay is taken away again, with a reason.
func TestOverlayCameUpReadOnly(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "etc")
	mount(t, "tmpfs", dir, "tmpfs", "", unix.MS_RDONLY)
	if err := wantWritable(dir); err == nil || !strings.Contains(err.Error(), "is the data partition full?") {
		t.Errorf("wantWritable: %v", err)
	}
	if err := wantWritable(dir); err != nil {
		t.Errorf("it was not taken away: %v", err)
	}
}

// fill leaves no byte on the data partition.
func (m *realMachine) fill() {
	m.attach()
	data := filepath.Join(m.root, "data")
	must(m.T, unix.Mount(m.loop, data, "ext4", 0, ""))
	for i, size := range []int{1 << 20, 1 << 12, 1} {
		f, err := os.Create(filepath.Join(data, fmt.Sprintf("filler%d", i)))
		must(m.T, err)
		for err == nil {
			_, err = f.Write(make([]byte, size))
		}
		must(m.T, f.Close())
	}
	must(m.T, unix.Unmount(data, 0))
	m.detach()
}

// TestOtherPartitions: what is no file system for this machine is left alone.
func TestOtherPartitions(t *testing.T) {
	for name, format := range map[string][]string{
		"unformatted": nil, "swap": {"mkswap", "-q", "FILE"}, "vfat": {"mkfs.vfat", "FILE"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newRealMachine(t, format...)
			before, err := os.ReadFile(m.image)
			must(t, err)
			r := m.boot("committed")
			if got := m.problems(r); r.Etc != FromMemory || r.Data != Missing || !strings.HasPrefix(got, "mounting /data: /dev/loop") || strings.Contains(got, "mounting /etc") {
				t.Errorf("/etc from %q, problems %q", r.Etc, got)
			}
			m.want(map[string]string{"fstab": "image\n"})
			m.shutDown()
			after, err := os.ReadFile(m.image)
			if err != nil || string(after) != string(before) {
				t.Errorf("the partition was written (%v)", err)
			}
		})
	}
}

// TestResetAtBoot: what was ordered is carried out before /etc is mounted, once.
func TestResetAtBoot(t *testing.T) {
	m := newRealMachine(t, "mkfs.ext4", "-q", "FILE")
	m.boot("committed")
	m.configure()
	write(t, m.root, map[string]string{"data/containerd/x": "app", "data/osctl/ledger.json": "l"})
	_, err := OrderReset(filepath.Join(m.root, "data/etc"), "A", []string{"fstab"})
	must(t, err)
	m.want(configured) // not before the next boot
	m.shutDown()
	r := m.boot("committed")
	m.want(map[string]string{"fstab": "image\n", "gone": "-", "machine-id": someID})
	if len(r.Done) != 1 || r.Done[0] != "reset of /etc in slot A" || m.problems(r) != "" {
		t.Errorf("report %+v", r)
	}
	must(t, os.WriteFile(filepath.Join(m.root, "etc/fstab"), []byte("again"), 0o600))
	m.shutDown()
	if r := m.boot("committed"); len(r.Done) != 0 {
		t.Errorf("done a second time: %v", r.Done)
	}
	m.want(map[string]string{"fstab": "again"})
	must(t, OrderFactory(filepath.Join(m.root, "data/osctl"), WipeApps))
	m.shutDown()

	r = m.boot("committed")
	m.want(pristine)
	if len(r.Done) != 1 || r.Done[0] != "factory reset, applications: wipe" || m.problems(r) != "" {
		t.Errorf("report %+v", r)
	}
	wantEntries(t, filepath.Join(m.root, "data"), "etc", "lost+found", "osctl")
	wantEntries(t, filepath.Join(m.root, "data/osctl"), "ledger.json")
	write(t, m.root, map[string]string{"etc/fstab": "third", "data/containerd/x": "app"})
	m.shutDown()

	r = m.boot("committed")
	m.want(map[string]string{"fstab": "third"})
	wantContents(t, filepath.Join(m.root, "data/containerd"), map[string]string{"x": "app"})
	if len(r.Done) != 0 {
		t.Errorf("done a second time: %v", r.Done)
	}
	m.shutDown()
}

// TestResetOnAReadOnlyPartition: the order waits.
func TestResetOnAReadOnlyPartition(t *testing.T) {
	m := newRealMachine(t, "mkfs.ext4", "-q", "FILE")
	m.boot("committed")
	m.configure()
	write(t, m.root, map[string]string{"data/containerd/x": "app", "data/osctl/ledger.json": "l"})
	must(t, OrderFactory(filepath.Join(m.root, "data/osctl"), WipeApps))
	m.shutDown()
	if r := m.boot("committed", "-r"); len(r.Done) != 0 || strings.Contains(m.problems(r), "reset") {
		t.Errorf("report %+v", r)
	}
	m.want(configured)
	m.shutDown()
	if r := m.boot("committed"); len(r.Done) != 1 {
		t.Errorf("report %+v", r)
	}
	m.want(pristine)
	m.shutDown()
}

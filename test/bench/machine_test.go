package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/publish"
	"github.com/kapernikov/osctl/test/daemon"
	"github.com/kapernikov/osctl/test/need"
)

// machine is a machine of files and loop devices, with a registry beside it.
type machine struct {
	dir      string
	osctl    string
	measure  string
	registry *daemon.Registry
	systemd  *daemon.Systemd
	ctrd     *daemon.Daemon
	data     *loop // holds containerd's root and the state of osctl
	mount    string
	slot     *loop // slot B; slot A runs
}

func newMachine(b *testing.B, dir string) *machine {
	b.Helper()
	m := &machine{dir: dir, mount: filepath.Join(dir, "data"), osctl: filepath.Join(dir, "osctl"), measure: filepath.Join(dir, "measure")}
	for out, pkg := range map[string]string{m.osctl: "./cmd/osctl", m.measure: "./test/bench/measure"} {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, pkg)
		cmd.Dir, cmd.Env = need.Top(), append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("building %s: %v\n%s", pkg, err, text)
		}
	}
	m.registry = daemon.StartRegistry(b)
	m.systemd = daemon.StartSystemd(b, map[string]string{"default.target": "[Unit]\nDescription=bench\n"})
	m.data = newLoop(b, filepath.Join(dir, "data.img"), 2<<30)
	m.data.mountNew(b, m.mount)
	// Its root goes below TMPDIR, and so onto the data partition.
	b.Setenv("TMPDIR", m.mount)
	m.ctrd = daemon.Start(b)
	check(b, os.WriteFile(filepath.Join(dir, "slotA"), make([]byte, 1<<20), 0o600))
	m.keys(b)
	return m
}

// keys makes the key pair that signs all images, and a policy that trusts it.
func (m *machine) keys(b *testing.B) {
	b.Helper()
	private, public, err := publish.GenerateKeyPair(nil)
	check(b, err)
	check(b, os.WriteFile(filepath.Join(m.dir, "cosign.key"), private, 0o600))
	check(b, os.WriteFile(filepath.Join(m.dir, "cosign.pub"), public, 0o644))
	check(b, os.WriteFile(filepath.Join(m.dir, "policy.yaml"), []byte(`apiVersion: osctl.kapernikov.com/v1
kind: Policy
keys:
  - name: bench
    file: cosign.pub
`), 0o644))
}

// newSlot gives the machine a slot B that was never written.
func (m *machine) newSlot(b *testing.B, size int64) {
	b.Helper()
	if m.slot != nil {
		m.slot.remove(b)
	}
	m.slot = newLoop(b, filepath.Join(m.dir, "slotB"), size)
}

// forget makes the machine one that has never upgraded; the slots stay.
func (m *machine) forget(b *testing.B) {
	b.Helper()
	for _, name := range []string{"state", "run"} {
		check(b, os.RemoveAll(filepath.Join(m.mount, name)))
	}
	for _, name := range []string{"a", "b"} {
		path := filepath.Join(m.dir, "esp", name, "grubenv")
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			b.Fatal(err)
		}
		check(b, boot.Create(path))
	}
	check(b, os.WriteFile(m.config(), fmt.Appendf(nil, `apiVersion: osctl.kapernikov.com/v1
kind: Config
product: bench
bootedSlot: A
slots: {A: %[1]s/slotA, B: %[2]s}
env: [%[1]s/esp/a/grubenv, %[1]s/esp/b/grubenv]
policy: %[1]s/policy.yaml
stateDir: %[3]s/state
runtimeDir: %[3]s/run
etcDir: ""
containerd: {address: %[4]s, namespace: osctl, hostsDir: %[5]s}
`, m.dir, m.slot.device, m.mount, m.ctrd.Address, m.ctrd.HostsDir), 0o644))
}

func (m *machine) config() string { return filepath.Join(m.dir, "osctl.yaml") }

// settle waits for what was written before, so that nobody pays for somebody
// else's writes, and forgets what is cached of the slot.
func (m *machine) settle(b *testing.B) {
	b.Helper()
	for _, path := range []string{m.dir, m.mount} {
		dir, err := os.Open(path)
		check(b, err)
		check(b, unix.Syncfs(int(dir.Fd())))
		check(b, dir.Close())
	}
	m.slot.dropCache(b)
}

// cost is what one command has cost.
type cost struct {
	Wall, CPU time.Duration
	MaxRSS    int64
	Daemon    time.Duration // CPU time of containerd meanwhile
	Slot      int64         // bytes written to slot B
	SlotRead  int64
	Data      int64 // bytes written to the data partition
}

// measured runs a command on a settled machine.
func (m *machine) measured(b *testing.B, args ...string) cost {
	b.Helper()
	m.settle(b)
	slot, read, data, daemon := m.slot.written(b), m.slot.read(b), m.data.written(b), m.daemonCPU(b)
	c := m.run(b, args...)
	c.Daemon = m.daemonCPU(b) - daemon
	m.settle(b)
	c.Slot, c.SlotRead, c.Data = m.slot.written(b)-slot, m.slot.read(b)-read, m.data.written(b)-data
	return c
}

// daemonCPU is the CPU time that containerd has taken so far: fields 14 and 15 of
// its stat file, in ticks of 10 ms (proc(5)). Its process ID is that of the peer
// behind its socket.
func (m *machine) daemonCPU(b *testing.B) time.Duration {
	b.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: m.ctrd.Address, Net: "unix"})
	check(b, err)
	defer conn.Close()
	file, err := conn.File()
	check(b, err)
	defer file.Close()
	peer, err := unix.GetsockoptUcred(int(file.Fd()), unix.SOL_SOCKET, unix.SO_PEERCRED)
	check(b, err)
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", peer.Pid))
	check(b, err)
	_, rest, _ := strings.Cut(string(text), ") ") // fields 1 and 2
	fields := strings.Fields(rest)
	user, err := strconv.Atoi(fields[11])
	check(b, err)
	system, err := strconv.Atoi(fields[12])
	check(b, err)
	return time.Duration(user+system) * 10 * time.Millisecond
}

// run runs a command with the private systemd in the place of the system's.
func (m *machine) run(b *testing.B, args ...string) cost {
	b.Helper()
	r, w, err := os.Pipe()
	check(b, err)
	defer r.Close()
	cmd := exec.Command(m.measure, append([]string{"--systemd=" + filepath.Dir(m.systemd.Socket)}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	cmd.Env = append(os.Environ(), "COSIGN_PASSWORD=")
	cmd.ExtraFiles = []*os.File{w}
	var text strings.Builder
	cmd.Stdout, cmd.Stderr = &text, &text
	err = cmd.Run()
	w.Close()
	if err != nil {
		b.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, text.String())
	}
	var c cost
	check(b, json.NewDecoder(r).Decode(&c))
	return c
}

// upgrade is the program that all this is about.
func (m *machine) upgrade(b *testing.B, i image) cost {
	b.Helper()
	return m.measured(b, m.osctl, "upgrade", "--config", m.config(), "--progress", "none", i.ref)
}

// pipeline is what it is compared with.
func (m *machine) pipeline(b *testing.B, i image) cost {
	b.Helper()
	list := filepath.Join(m.dir, "urls")
	var urls strings.Builder
	repository := strings.TrimSuffix(strings.TrimPrefix(i.ref, m.registry.Addr+"/"), ":"+i.version)
	for _, pack := range i.packs {
		fmt.Fprintf(&urls, "url = http://%s/v2/%s/blobs/%s\n", m.registry.Addr, repository, pack.Digest)
	}
	check(b, os.WriteFile(list, []byte(urls.String()), 0o644))
	script := fmt.Sprintf("set -o pipefail; curl --silent --show-error --fail --location --config %s | zstd -dc | dd of=%s bs=1M iflag=fullblock conv=fsync,notrunc status=none",
		list, m.slot.device)
	return m.measured(b, "bash", "-c", script)
}

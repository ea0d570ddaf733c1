package hostile

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"

	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/ledger"
	"github.com/kapernikov/osctl/pkg/publish"
	"github.com/kapernikov/osctl/test/daemon"
	"github.com/kapernikov/osctl/test/need"
	"github.com/kapernikov/osctl/test/sample"
)

// All machines of this suite start at once, and take turns at what needs a processor;
// the few that wait for a registry half a minute do so meanwhile.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "200"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// The sizes of slots and images, in MiB. An image has two packs.
const slotMiB, imageMiB, block = 11, 10, 4096

// site is what all machines share: the real osctl, a real containerd, a real
// systemd, the images.
type site struct {
	osctl           string
	daemon          *daemon.Daemon
	systemd         string
	key             *publish.Key
	public          []byte
	running, next   sample.Image
	built           string // the layout of next
	runningA, oldB  []byte // the slots
	nextRaw, zeroes []byte
	turns           chan struct{}
}

// atOnce is how many machines are busy at a time.
const atOnce = 8

// turn waits until this machine may be busy, and gives the turn back at the end.
func (s *site) turn(t *testing.T) {
	t.Helper()
	s.turns <- struct{}{}
	t.Cleanup(func() { <-s.turns })
}

func newSite(t *testing.T) *site {
	t.Helper()
	need.Long(t)
	need.Root(t)
	s := &site{
		osctl:   filepath.Join(t.TempDir(), "osctl"),
		running: sample.Image{Version: "1.0", MiB: imageMiB, Seed: 1}, next: sample.Image{Version: "1.1", MiB: imageMiB, Seed: 2},
		zeroes: make([]byte, block), turns: make(chan struct{}, atOnce),
	}
	noteSources(t)
	cmd := exec.Command("go", "build", "-o", s.osctl, "./cmd/osctl")
	cmd.Dir = need.Top()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building osctl: %v: %s", err, out)
	}
	s.key, _, s.public = sample.Key(t)
	s.built = s.next.Layout(t)
	s.runningA = append(s.running.Raw(), make([]byte, (slotMiB-imageMiB)<<20)...)
	s.oldB = sample.Image{MiB: slotMiB, Seed: 99}.Raw()
	s.nextRaw = s.next.Raw()
	s.daemon = daemon.Start(t)
	s.systemd = daemon.StartSystemd(t, map[string]string{"default.target": "[Unit]\nDescription=all\n"}).Socket
	return s
}

// noteSources reads what the binary is made of: go test keeps the result of a test
// only as long as the files are the same that it read.
func noteSources(t *testing.T) {
	t.Helper()
	files := 0
	for _, pattern := range []string{"go.mod", "cmd/*/*.go", "pkg/*/*.go"} {
		names, err := filepath.Glob(filepath.Join(need.Top(), pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if _, err := os.ReadFile(name); err != nil {
				t.Fatal(err)
			}
			files++
		}
	}
	if files == 0 {
		t.Fatal("no sources are found")
	}
}

// machine is a machine of plain files, which runs 1.0 from slot A.
type machine struct {
	*site
	t         *testing.T
	dir       string
	namespace string
	command   []string // what runs osctl; nothing for osctl itself
	layout    string   // the next image, in packs that no other machine has
}

func (s *site) newMachine(t *testing.T) *machine {
	t.Helper()
	m := &machine{site: s, t: t, dir: t.TempDir()}
	m.namespace = "hostile-" + digest.FromString(t.Name()).Encoded()[:12]
	env, err := boot.InitialBlock()
	if err != nil {
		t.Fatal(err)
	}
	at := time.Unix(1_800_000_000, 0).UTC()
	l, err := ledger.New(ledger.Entry{
		Digest: digest.FromString("1.0").String(), Product: "gateway", Version: "1.0", Created: at,
		Reference: "registry.example.com/os:1.0", SignedBy: "release",
	}, at)
	if err != nil {
		t.Fatal(err)
	}
	state, err := l.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"osctl.yaml": []byte(fmt.Sprintf(`apiVersion: osctl.kapernikov.com/v1
kind: Config
product: gateway
slots: {A: "%[1]s/A.img", B: "%[1]s/B.img"}
bootedSlot: A
env: ["%[1]s/efi/a", "%[1]s/efi/b"]
policy: "%[1]s/policy.yaml"
stateDir: "%[1]s/data/osctl"
etcDir: "%[1]s/data/etc"
runtimeDir: "%[1]s/run"
containerd: {address: %[2]s, namespace: %[3]s, hostsDir: "%[1]s/certs.d"}
systemd: {address: %[4]s}
health: "%[1]s/health.yaml"
`, m.dir, s.daemon.Address, m.namespace, s.systemd)),
		"health.yaml": []byte("apiVersion: osctl.kapernikov.com/v1\nkind: Gate\ndeadline: 1s\nsoak: 1ms\n"),
		"policy.yaml": []byte("apiVersion: osctl.kapernikov.com/v1\nkind: Policy\nkeys:\n  - name: release\n    file: release.pub\n"),
		"release.pub": s.public, "efi/a": env, "efi/b": env, "A.img": s.runningA, "B.img": s.oldB,
		"data/osctl/ledger.json": state, "data/etc/A/upper/hostname": []byte("gateway-7\n"),
		"certs.d/.keep": nil, "home/.docker/config.json": []byte("{}"),
	} {
		m.write(name, data)
	}
	// containerd gives one namespace the content of another without a download.
	m.layout = s.craft(t, s.built, s.key, func(c *crafted) {
		for n := range c.manifest.Layers {
			c.pack(n, func(old []byte) []byte { return append(old, skippable(m.namespace)...) })
		}
	})
	return m
}

func (m *machine) path(name string) string { return filepath.Join(m.dir, name) }

func (m *machine) write(name string, data []byte) {
	m.t.Helper()
	if err := os.MkdirAll(filepath.Dir(m.path(name)), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(m.path(name), data, 0o644); err != nil { // #nosec the test's own files
		m.t.Fatal(err)
	}
}

func (m *machine) read(name string) []byte {
	m.t.Helper()
	data, err := os.ReadFile(m.path(name))
	if err != nil {
		m.t.Fatal(err)
	}
	return data
}

// hosts writes containerd's configuration for a registry.
func (m *machine) hosts(host, toml string) {
	m.t.Helper()
	m.write(filepath.Join("certs.d", host, "hosts.toml"), []byte(toml))
}

// login stores credentials as "nerdctl login" does.
func (m *machine) login(host, user, password string) {
	m.t.Helper()
	config, err := json.Marshal(map[string]any{"auths": map[string]any{host: map[string]string{"username": user, "password": password}}})
	if err != nil {
		m.t.Fatal(err)
	}
	m.write("home/.docker/config.json", config)
}

// result is how a command of osctl ended.
type result struct {
	code int
	out  string
}

// start begins a command of osctl, and wait ends it.
func (m *machine) start(args ...string) (wait func() result) {
	m.t.Helper()
	args = append(args[:1:1], append([]string{"--config", m.path("osctl.yaml")}, args[1:]...)...)
	args = append(m.command[:len(m.command):len(m.command)], append([]string{m.osctl}, args...)...)
	ctx, cancel := context.WithTimeout(m.t.Context(), 5*time.Minute)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "HOME="+m.path("home"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	return func() result {
		defer cancel()
		err := cmd.Wait()
		if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
			m.t.Fatal(err)
		}
		return result{cmd.ProcessState.ExitCode(), strings.TrimSpace(out.String())}
	}
}

func (m *machine) upgrade(ref string) result {
	m.t.Helper()
	return m.start("upgrade", ref, "--progress", "none")()
}

// finished lists what containerd has whole of this machine's content.
func (m *machine) finished() map[digest.Digest]bool {
	m.t.Helper()
	list := map[digest.Digest]bool{}
	ctx := namespaces.WithNamespace(m.t.Context(), m.namespace)
	err := m.daemon.Client(m.t).ContentStore().Walk(ctx, func(i content.Info) error {
		list[i.Digest] = true
		return nil
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return list
}

// holds checks what no registry may break, and says whether slot B is armed: the
// running slot is untouched; boot state and ledger parse and name it, or a slot B
// that is whole; and nothing is in slot B but what was there, zeros, and what is
// signed, each in its place.
func (m *machine) holds() (armed bool) {
	m.t.Helper()
	if !bytes.Equal(m.read("A.img"), m.runningA) {
		m.t.Error("the running slot was changed")
	}
	store, err := boot.Open([2]string{m.path("efi/a"), m.path("efi/b")})
	if err != nil {
		m.t.Fatal(err)
	}
	state, problems, err := store.Load()
	if err != nil || len(problems) > 0 {
		m.t.Errorf("the boot state: %v, %v", problems, err)
	}
	l, err := ledger.Open(m.path("data/osctl")).Load()
	if err != nil || l.Slot(device.SlotA) == nil {
		m.t.Fatalf("the ledger: %v", err)
	}
	slotB := m.read("B.img")
	whole := bytes.HasPrefix(slotB, m.nextRaw)
	switch {
	case state.Phase == boot.Committed && state.Rootfs == device.SlotA && state.Rung == boot.RungSlot && !state.Other:
	case state.Phase == boot.Trial && state.Rootfs == device.SlotB && whole && l.Slot(device.SlotB) != nil:
		armed = true
	default:
		m.t.Errorf("the boot state is %v, and slot B is whole: %t", state, whole)
	}
	if e := l.Slot(device.SlotB); e != nil && !whole {
		m.t.Errorf("the ledger says that slot B holds %s", e.Digest)
	}
	for at := 0; at < len(slotB); at += block {
		got := slotB[at : at+block]
		if bytes.Equal(got, m.oldB[at:at+block]) || bytes.Equal(got, m.zeroes) || at < len(m.nextRaw) && bytes.Equal(got, m.nextRaw[at:at+block]) {
			continue
		}
		m.t.Errorf("slot B has bytes at %d that nobody signed", at)
		break
	}
	return armed
}

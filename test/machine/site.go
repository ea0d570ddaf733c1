// Package machine tells the story of a machine that upgrades itself: a site with
// keys, images and a registry, a machine in QEMU installed from it, and what
// happens to that machine. The demonstration prints the story, the machine test
// runs it with the same expectations and goes on with harder ones.
//
// Nothing here is a stand-in: the images are built, signed, pushed, installed and
// upgraded by the osctl that is to be shipped.
package machine

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/crypto/ssh"

	"github.com/kapernikov/osctl/pkg/publish"
	"github.com/kapernikov/osctl/test/need"
	"github.com/kapernikov/osctl/test/vm"
)

// guestHost is what QEMU's user network calls the host.
const guestHost = "10.0.2.2"

// Narrator is told what happens.
type Narrator interface {
	// Title begins a chapter.
	Title(text string)
	// Command announces a command, on the host ("$") or on the machine ("machine#").
	Command(prompt, command string)
	// Output is where its output goes.
	Output() io.Writer
}

// Site is everything around the machine.
type Site struct {
	Osctl string            // the binary under test
	Port  int               // of the registry, on loopback
	Etc   map[string]string // more files of the machine's own, below its /etc
	// Counted has the machine measure time by its instructions (vm.Config).
	Counted bool
	dir     string // of this run
	tell    Narrator
	cache   string
	reg     *exec.Cmd
	ssh     ssh.Signer
}

// releases are the images of the story. The kernel of 1.2 lacks what a container needs
// that has a network of its own.
func releases() []release {
	return []release{
		{version: "1.0"},
		{version: "1.1"},
		{version: "1.2", flags: []string{"--remove", "usr/lib/modules/*/kernel/drivers/net/veth.ko"}},
	}
}

type release struct {
	version string
	flags   []string
}

// NewSite builds what is missing and starts the registry. dir is for this run,
// what is slow is kept in the cache.
func NewSite(ctx context.Context, dir string, tell Narrator) (*Site, error) {
	s := &Site{dir: dir, tell: tell, cache: need.Cache(), Osctl: filepath.Join(need.Top(), "bin", "osctl")}
	// Two sites at a time would build the same images, and find the same free port.
	unlock, err := s.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	steps := []func(context.Context) error{s.keys, s.images, s.startRegistry, s.publish, s.pushApplication}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, nil
}

// lock keeps other sites out, of this process and of others, until unlock.
func (s *Site) lock() (unlock func(), err error) {
	if err := os.MkdirAll(s.cache, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(s.cache, "site.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("locking the cache: %w", err), f.Close())
	}
	return func() { _ = f.Close() }, nil //nolint:errcheck // which gives the lock up
}

// Close ends the registry.
func (s *Site) Close() error {
	if s.reg == nil || s.reg.Process == nil {
		return nil
	}
	if err := s.reg.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	_ = s.reg.Wait() //nolint:errcheck // it was killed
	return nil
}

// Ref is a reference as the machine writes it.
func (s *Site) Ref(image string) string { return fmt.Sprintf("%s:%d/%s", guestHost, s.Port, image) }

// local is the same reference as the host writes it.
func (s *Site) local(image string) string { return fmt.Sprintf("127.0.0.1:%d/%s", s.Port, image) }

func (s *Site) keyPath(name string) string { return filepath.Join(s.cache, "keys", name) }

// keys makes two cosign key pairs and a key for ssh, once.
func (s *Site) keys(context.Context) error {
	if err := os.MkdirAll(filepath.Join(s.cache, "keys"), 0o700); err != nil {
		return err
	}
	for _, name := range []string{"release", "stranger"} {
		if _, err := os.Stat(s.keyPath(name + ".pub")); err == nil {
			continue
		}
		private, public, err := publish.GenerateKeyPair(nil)
		if err != nil {
			return err
		}
		err = errors.Join(os.WriteFile(s.keyPath(name+".key"), private, 0o600), os.WriteFile(s.keyPath(name+".pub"), public, 0o644))
		if err != nil {
			return err
		}
	}
	text, err := os.ReadFile(s.keyPath("ssh"))
	if errors.Is(err, fs.ErrNotExist) {
		text, err = newSSHKey()
		if err == nil {
			err = os.WriteFile(s.keyPath("ssh"), text, 0o600)
		}
	}
	if err != nil {
		return err
	}
	if s.ssh, err = ssh.ParsePrivateKey(text); err != nil {
		return err
	}
	return s.bring()
}

// bring lays the keys and the policy into this run's folder, where the commands of
// the story find them. A policy file lies beside the folder of its keys, as it
// does in an image.
func (s *Site) bring() error {
	if err := os.Mkdir(filepath.Join(s.dir, "keys"), 0o755); err != nil {
		return err
	}
	return errors.Join(
		os.Symlink(s.keyPath("release.key"), filepath.Join(s.dir, "release.key")),
		os.Symlink(s.keyPath("stranger.key"), filepath.Join(s.dir, "stranger.key")),
		os.Symlink(s.keyPath("release.pub"), filepath.Join(s.dir, "keys", "release.pub")),
		os.WriteFile(s.policy(), []byte(policy), 0o644),
	)
}

func (s *Site) policy() string { return filepath.Join(s.dir, "policy.yaml") }

func newSSHKey() ([]byte, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(private, "osctl demonstration")
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(block), nil
}

// SSHKey is the file that logs root in.
func (s *Site) SSHKey() string { return s.keyPath("ssh") }

// policy is the image's policy: the release key, and nobody else.
const policy = `apiVersion: osctl.kapernikov.com/v1
kind: Policy
keys:
  - name: release
    file: keys/release.pub
`

// images builds the releases that the cache lacks. An image depends on osctl
// itself, on the files under images/ and on the release key.
func (s *Site) images(ctx context.Context) error {
	key, err := s.imagesKey()
	if err != nil {
		return err
	}
	dir := filepath.Join(s.cache, "releases", key)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	s.tell.Title("Build three releases of the operating system")
	for _, r := range releases() {
		layout := filepath.Join(dir, r.version)
		if _, err := os.Stat(layout); err == nil {
			fmt.Fprintf(s.tell.Output(), "%s is in the cache\n", r.version)
		} else if err := s.build(ctx, r, layout); err != nil {
			return err
		}
		if err := os.Symlink(layout, filepath.Join(s.dir, "os-"+r.version)); err != nil {
			return err
		}
	}
	return s.forgetOthers(dir)
}

// forgetOthers drops releases of earlier builds from the cache.
func (s *Site) forgetOthers(keep string) error {
	all, err := filepath.Glob(filepath.Join(s.cache, "releases", "*"))
	for _, dir := range all {
		if dir != keep {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}
	return err
}

func (s *Site) build(ctx context.Context, r release, layout string) error {
	tree, err := os.MkdirTemp(s.cache, "tree-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tree) //nolint:errcheck // scratch
	root := filepath.Join(tree, "rootfs-"+r.version)
	args := append([]string{"--version", r.version, "--osctl", s.Osctl, "--policy", s.policy(),
		"--key", s.keyPath("release.pub")}, r.flags...)
	if err := s.quiet(ctx, filepath.Join(need.Top(), "images", "build.sh"), append(args, root)...); err != nil {
		return fmt.Errorf("making the tree of release %s: %w", r.version, err)
	}
	err = s.host(ctx, tree, "build", "--progress", "none", "--rootfs", filepath.Base(root), "--product", "reference", "--version", r.version,
		"--epoch", "1", "-o", "os-"+r.version)
	if err != nil {
		return err
	}
	return os.Rename(filepath.Join(tree, "os-"+r.version), layout)
}

// imagesKey hashes what the releases are made from.
func (s *Site) imagesKey() (string, error) {
	sum := sha256.New()
	files := []string{s.Osctl, s.keyPath("release.pub")}
	err := filepath.WalkDir(filepath.Join(need.Top(), "images"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, path)
		}
		if err == nil && d.Type()&fs.ModeSymlink != 0 {
			target, err := os.Readlink(path)
			fmt.Fprintln(sum, path, target)
			return err
		}
		return err
	})
	if err != nil {
		return "", err
	}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return "", err
		}
		_, err = io.Copy(sum, f)
		if err := errors.Join(err, f.Close()); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(sum.Sum(nil))[:16], nil
}

// startRegistry starts Debian's docker-registry on a free port, 5000 if it is.
func (s *Site) startRegistry(ctx context.Context) error {
	port, err := freePort(5000)
	if err != nil {
		return err
	}
	s.Port = port
	config := filepath.Join(s.dir, "registry.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: warn}\nstorage: {filesystem: {rootdirectory: %q}}\nhttp: {addr: \"127.0.0.1:%d\"}\n", filepath.Join(s.dir, "registry"), port)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(s.dir, "registry.log"))
	if err != nil {
		return err
	}
	s.reg = exec.Command("docker-registry", "serve", config)
	s.reg.Stdout, s.reg.Stderr = log, log
	s.reg.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := errors.Join(s.reg.Start(), log.Close()); err != nil {
		return fmt.Errorf("starting the registry: %w", err)
	}
	return waitForPort(ctx, port)
}

// freePort prefers a port and takes any other when that is in use.
func freePort(want int) (int, error) {
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", want))
	if err != nil {
		l, err = net.Listen("tcp", "127.0.0.1:0")
	}
	if err != nil {
		return 0, err
	}
	defer l.Close() //nolint:errcheck // only its number is wanted
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return 0, fmt.Errorf("no TCP address: %v", l.Addr())
	}
	return addr.Port, nil
}

// publish pushes the releases, and the two that no machine may accept: they lie
// in repositories of their own, since signatures lie beside an image.
func (s *Site) publish(ctx context.Context) error {
	s.tell.Title("Push them to a registry and sign them")
	for _, p := range []struct{ layout, image, key string }{
		{"os-1.0", "os:1.0", "release"}, {"os-1.1", "os:1.1", "release"}, {"os-1.2", "os:1.2", "release"},
		{"os-1.1", "unsigned/os:1.1", ""}, {"os-1.1", "stranger/os:1.1", "stranger"},
	} {
		if err := s.host(ctx, s.dir, "push", "--progress", "none", p.layout, s.local(p.image)); err != nil {
			return err
		}
		if p.key == "" {
			continue
		}
		if err := s.host(ctx, s.dir, "sign", "--key", p.key+".key", s.local(p.image)); err != nil {
			return err
		}
	}
	return nil
}

// Disk is where Install puts the machine's disk.
func (s *Site) Disk() string { return filepath.Join(s.dir, "disk.img") }

// Install makes the machine's disk from release 1.0 in the registry. What is this
// machine's own, its keys and its registry, goes into its /etc.
func (s *Site) Install(ctx context.Context, flags ...string) error {
	etc := filepath.Join(s.dir, "etc")
	files := map[string]string{
		"ssh/authorized_keys/root": string(ssh.MarshalAuthorizedKey(s.ssh.PublicKey())),
		fmt.Sprintf("containerd/certs.d/%s:%d/hosts.toml", guestHost, s.Port): fmt.Sprintf("server = \"http://%s:%d\"\n", guestHost, s.Port),
	}
	maps.Copy(files, s.Etc)
	for name, text := range files {
		path := filepath.Join(etc, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	s.tell.Title("Install release 1.0 on a disk")
	args := []string{"install", "--progress", "none", "--disk", filepath.Base(s.Disk()), "--size", "6144", "--slot-size", "1024",
		"--etc", "etc", "--policy", "policy.yaml", "--reference", s.Ref("os:1.0"), s.local("os:1.0")}
	return s.host(ctx, s.dir, append(args, flags...)...)
}

// Start switches the machine on. The console's text goes to console as well.
func (s *Site) Start(ctx context.Context, console io.Writer) (*vm.Machine, error) {
	config := s.config()
	config.Console = console
	return vm.Start(ctx, config)
}

// config describes the machine.
func (s *Site) config() vm.Config {
	return vm.Config{Disk: s.Disk(), Dir: filepath.Join(s.dir, "machine"), Key: s.ssh, Forwards: []vm.Forward{{Guest: 8080}}, Counted: s.Counted}
}

// host runs osctl on the host, in a folder. Keys of the story have no password.
func (s *Site) host(ctx context.Context, dir string, args ...string) error {
	s.tell.Command("$", "osctl "+strings.Join(args, " "))
	cmd := exec.CommandContext(ctx, s.Osctl, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "COSIGN_PASSWORD=")
	cmd.Stdout, cmd.Stderr = s.tell.Output(), s.tell.Output()
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("osctl %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// quiet runs a command whose output matters only when it fails.
func (s *Site) quiet(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(name), err, out)
	}
	return nil
}

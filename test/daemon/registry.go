package daemon

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// Registry is a running private registry: Debian's docker-registry (2.8, no
// referrers API), plain HTTP, no login, deletes allowed.
type Registry struct {
	Addr string // host:port on loopback
	Root string // its storage folder; removed at the end
	proc *process
}

// errNotListening reports a registry that ended before its socket was open.
var errNotListening = errors.New("it ended before it listened on a port")

// StartRegistry runs a private registry for this test and waits until it
// answers. It skips in short mode, and (fails where CI is set) without
// docker-registry.
func StartRegistry(t testing.TB) *Registry {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a real registry")
	}
	binary, err := exec.LookPath("docker-registry")
	if err != nil {
		unavailable(t, "docker-registry is not installed: %v; apt-get install docker-registry", err)
	}
	root := t.TempDir()
	r := &Registry{Root: filepath.Join(root, "storage")}
	config := filepath.Join(root, "config.yml")
	if err := os.WriteFile(config, []byte(r.config()), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(root, "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			showTail(t, log.Name())
		}
		log.Close()
	})
	if err := r.run(t, binary, config, log); err != nil {
		t.Fatalf("starting docker-registry: %v", err)
	}
	return r
}

// run starts the process and waits for its port.
func (r *Registry) run(t testing.TB, binary, config string, log io.Writer) error {
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd := exec.Command(binary, "serve", config)
	cmd.Stdout, cmd.Stderr = in, in
	r.proc, err = launch(cmd, 0)
	in.Close()
	if err != nil {
		out.Close()
		return err
	}
	lines := bufio.NewReader(io.TeeReader(out, log))
	r.Addr, err = listenAddress(lines)
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		_, _ = io.Copy(io.Discard, lines)
		out.Close()
	}()
	t.Cleanup(func() {
		r.Stop()
		<-copied
	})
	return err
}

// listenAddress reads the log until docker-registry says where it listens. It
// says so after the socket is open, so connections succeed from then on.
func listenAddress(log *bufio.Reader) (string, error) {
	pattern := regexp.MustCompile(`listening on (127\.0\.0\.1:[0-9]+)`)
	for {
		line, err := log.ReadString('\n')
		if m := pattern.FindStringSubmatch(line); m != nil {
			return m[1], nil
		}
		if err != nil {
			return "", errNotListening
		}
	}
}

// config leaves the port to the kernel, so that two tests never want the same.
func (r *Registry) config() string {
	return fmt.Sprintf(`version: 0.1
log:
  level: info
storage:
  filesystem:
    rootdirectory: %q
  delete:
    enabled: true
http:
  addr: 127.0.0.1:0
`, r.Root)
}

// Stop kills the registry at once; from then on its port refuses connections.
func (r *Registry) Stop() { r.proc.kill() }

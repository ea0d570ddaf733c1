package hostile

import (
	"encoding/pem"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/kapernikov/osctl/test/need"
)

// leaveTLS is a registry with TLS that leads to one without.
func (s *site) leaveTLS(t *testing.T) {
	t.Parallel()
	s.turn(t)
	m, tls, plain := s.newMachine(t), NewTLS(t), New(t)
	tls.Load(t, m.layout, "1.1")
	plain.Load(t, m.layout, "1.1")
	m.write("ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: tls.Certificate().Raw}))
	m.hosts(tls.Host(), fmt.Sprintf("server = %q\nca = %q\n", tls.URL, m.path("ca.pem")))
	for _, kind := range []Kind{Tag, Config, Pack} {
		tls.Break(kind, Redirect(plain.URL+"/"))
		if got := m.upgrade(tls.Name("1.1")); got.code != 40 || !strings.Contains(got.out, "it leads to plain http") || m.holds() {
			t.Errorf("%s: exit code %d: %s", kind, got.code, got.out)
		}
		tls.Behave()
	}
	if n := len(plain.Requests(Any)); n > 0 {
		t.Errorf("%d requests went over plain http", n)
	}
	if got := m.upgrade(tls.Name("1.1")); got.code != 0 || !m.holds() {
		t.Errorf("after it has ended: exit code %d: %s", got.code, got.out)
	}
}

// moveAway is a registry whose name means another address from the middle of the
// download on. The old address is silent then.
func (s *site) moveAway(t *testing.T) {
	t.Parallel()
	s.turn(t)
	for _, tool := range []string{"unshare", "mount"} {
		need.Tool(t, tool)
	}
	m, old := s.newMachine(t), At(t, "127.0.0.2:0")
	_, port, err := net.SplitHostPort(old.Host())
	if err != nil {
		t.Fatal(err)
	}
	next := At(t, "127.0.0.3:"+port)
	old.Load(t, m.layout, "1.1")
	next.Load(t, m.layout, "1.1")
	const name = "registry.test"
	m.write("hosts", []byte("127.0.0.2 "+name+"\n"))
	m.hosts(name+":"+port, fmt.Sprintf("server = \"http://%s:%s\"\n", name, port))
	m.command = []string{"unshare", "--mount", "sh", "-c", `mount --bind "$0" /etc/hosts && exec "$@"`, m.path("hosts")}
	stop := make(chan struct{}, 1)
	old.Break(Pack, HoldAt(100_000, stop))
	wait := m.start("upgrade", name+":"+port+"/"+Repository+":1.1", "--progress", "none")
	held(t, stop)
	m.write("hosts", []byte("127.0.0.3 "+name+"\n"))
	old.Listener.Close() //nolint:errcheck // it is closed again at the end
	old.CloseClientConnections()
	if got := wait(); got.code != 0 || !m.holds() {
		t.Errorf("exit code %d: %s", got.code, got.out)
	}
	if next.Sent(Pack) == 0 {
		t.Error("the new address was not asked for packs")
	}
}

// collect lets containerd collect garbage in the middle of an install: the packs
// that are there already must stay.
func (s *site) collect(t *testing.T) {
	t.Parallel()
	s.turn(t)
	m, r := s.newMachine(t), New(t)
	r.Load(t, m.layout, "1.1")
	stop := make(chan struct{}, 1)
	last := r.lastPack()
	r.Break(Pack, func(a *Answer) {
		if strings.HasSuffix(a.Request.URL.Path, last.String()) {
			HoldAt(1000, stop)(a)
		}
	})
	wait := m.start("upgrade", r.Name("1.1"), "--progress", "none")
	held(t, stop)
	client := s.daemon.Client(t)
	ctx := namespaces.WithNamespace(t.Context(), m.namespace)
	lease, err := client.LeasesService().Create(ctx, leases.WithRandomID())
	if err == nil {
		err = client.LeasesService().Delete(ctx, lease, leases.SynchronousDelete) // runs the collector
	}
	if err != nil {
		t.Fatal(err)
	}
	r.Behave()
	if got := wait(); got.code != 0 || !m.holds() {
		t.Errorf("exit code %d: %s", got.code, got.out)
	}
	seen := map[string]int{}
	for _, q := range r.Requests(Pack) {
		seen[q.Digest.String()]++
	}
	for d, n := range seen {
		if n > 1 {
			t.Errorf("pack %s was asked for %d times", d, n)
		}
	}
	if out, err := exec.Command(need.Tool(t, "ctr"), "--address", s.daemon.Address, "--namespace", m.namespace, "content", "ls", "-q").Output(); err != nil || len(out) > 0 {
		t.Errorf("left in containerd: %s (%v)", out, err)
	}
}

// addresses is a signed manifest that says where else its parts are. Nobody goes
// there.
func (s *site) addresses(t *testing.T) {
	t.Parallel()
	s.turn(t)
	m, r, elsewhere := s.newMachine(t), New(t), New(t)
	elsewhere.Load(t, m.layout, "1.1")
	r.Load(t, m.craft(t, m.layout, m.key, func(c *crafted) {
		c.manifest.Config.URLs = []string{elsewhere.URL + "/v2/" + Repository + "/blobs/" + c.manifest.Config.Digest.String()}
		for i := range c.manifest.Layers {
			l := &c.manifest.Layers[i]
			l.URLs = []string{elsewhere.URL + "/v2/" + Repository + "/blobs/" + l.Digest.String()}
		}
	}), "1.1")
	if got := m.upgrade(r.Name("1.1")); got.code != 0 || !m.holds() {
		t.Errorf("exit code %d: %s", got.code, got.out)
	}
	if n := len(elsewhere.Requests(Any)); n > 0 {
		t.Errorf("the other place got %d requests", n)
	}
}

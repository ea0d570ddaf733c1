package gate

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kapernikov/osctl/pkg/health"
)

// limit bounds every wait of the suites. Nothing is expected to take that long.
const limit = 30 * time.Second

// SystemdRig is a systemd to put through SystemdSuite. It has just been started
// and boots to a default.target that waits for slow.service, which stays in
// its start until Finish. It has no other units than these, good.service, which
// starts, bad.service, which fails to start, and brittle.service, which starts
// and fails at Break.
type SystemdRig struct {
	Systemd interface {
		Units(ctx context.Context, names []string) (health.Units, error)
		Changes(ctx context.Context) <-chan struct{}
	}
	Start  func(unit string) // asks for a start and does not wait for it
	Finish func()            // lets slow.service become active
	Break  func()            // makes brittle.service fail
}

// SystemdSuite tests what the gate relies on. start is called once a test.
func SystemdSuite(t *testing.T, start func(t *testing.T) SystemdRig) {
	until := func(t *testing.T, rig SystemdRig, bell <-chan struct{}, name string, ok func(health.Units) bool) {
		t.Helper()
		waitFor(t, bell, name, func() (bool, any) {
			u, err := rig.Systemd.Units(t.Context(), []string{name})
			if err != nil {
				t.Fatalf("waiting for %s: %v", name, err)
			}
			return ok(u), u
		})
	}
	t.Run("a start is seen and announced", func(t *testing.T) {
		rig := start(t)
		bell := listen(t, rig.Systemd)
		rig.Start("good.service")
		until(t, rig, bell, "good.service", func(u health.Units) bool {
			return u.State["good.service"] == "active"
		})
	})
	t.Run("a failure is seen and announced", func(t *testing.T) {
		rig := start(t)
		bell := listen(t, rig.Systemd)
		rig.Start("bad.service")
		until(t, rig, bell, "bad.service", func(u health.Units) bool {
			return u.State["bad.service"] == "failed" && slices.Equal(u.Failed, []string{"bad.service"})
		})
	})
	t.Run("a failure without a job is seen and announced", func(t *testing.T) {
		rig := start(t)
		bell := listen(t, rig.Systemd)
		rig.Start("brittle.service")
		until(t, rig, bell, "brittle.service", func(u health.Units) bool {
			return u.State["brittle.service"] == "active"
		})
		drain(bell)
		rig.Break()
		until(t, rig, bell, "brittle.service", func(u health.Units) bool {
			return slices.Equal(u.Failed, []string{"brittle.service"})
		})
	})
	t.Run("a unit that was away in between became active again", func(t *testing.T) {
		rig := start(t)
		bell := listen(t, rig.Systemd)
		var first uint64
		active := func(u health.Units) bool {
			return u.State["brittle.service"] == "active" && u.Entered["brittle.service"] != first
		}
		rig.Start("brittle.service")
		until(t, rig, bell, "brittle.service", active)
		u, err := rig.Systemd.Units(t.Context(), []string{"brittle.service"})
		if err != nil {
			t.Fatal(err)
		}
		if first = u.Entered["brittle.service"]; active(u) {
			t.Error("it became active again by itself")
		}
		drain(bell)
		rig.Break()
		until(t, rig, bell, "brittle.service", func(u health.Units) bool { return u.State["brittle.service"] == "failed" })
		rig.Start("brittle.service")
		until(t, rig, bell, "brittle.service", active)
	})
	t.Run("a unit that does not exist", func(t *testing.T) {
		rig := start(t)
		u, err := rig.Systemd.Units(t.Context(), []string{"nothing.service"})
		if err != nil {
			t.Fatal(err)
		}
		if got := u.State["nothing.service"]; got != "not-found" {
			t.Errorf("state of a unit that does not exist = %q, want not-found", got)
		}
		if len(u.Failed) != 0 {
			t.Errorf("failed units = %v, want none", u.Failed)
		}
	})
	t.Run("the boot has jobs left until it is done", func(t *testing.T) {
		rig := start(t)
		bell := again(listen(t, rig.Systemd)) // the boot may have got there already
		until(t, rig, bell, "slow.service", func(u health.Units) bool {
			return slices.Equal(u.Pending, []string{"start default.target (waiting)", "start slow.service (running)"})
		})
		rig.Finish()
		until(t, rig, bell, "slow.service", func(u health.Units) bool {
			return len(u.Pending) == 0 && u.State["slow.service"] == "active"
		})
	})
	t.Run("nothing is asked once the context is done", func(t *testing.T) {
		rig := start(t)
		ctx, cancel := context.WithCancel(t.Context())
		bell := rig.Systemd.Changes(ctx)
		cancel()
		if _, err := rig.Systemd.Units(ctx, nil); err == nil {
			t.Error("an answer in spite of a context that is done")
		}
		closes(t, bell)
	})
}

// ContainersRig is a containerd to put through ContainersSuite. It has two
// namespaces, "one" and "two", without containers at first.
type ContainersRig struct {
	Containers interface {
		Ping(ctx context.Context) error
		List(ctx context.Context) ([]health.Container, error)
		Changes(ctx context.Context) <-chan struct{}
		Probe(ctx context.Context, c health.Container) (seen string, ok bool)
	}
	Run               func(namespace, id, name string)                 // makes a container and starts it
	Declare           func(namespace, id string, d health.Declaration) // gives it labels
	Kill              func(namespace, id string)                       // ends its process
	Stop              func()                                           // ends the daemon
	Good, Bad, Silent health.Declaration                               // what a container that runs answers well, badly and never
}

// ContainersSuite tests what the gate relies on. start is called once a test.
func ContainersSuite(t *testing.T, start func(t *testing.T) ContainersRig) {
	until := func(t *testing.T, rig ContainersRig, bell <-chan struct{}, want ...string) {
		t.Helper()
		waitFor(t, bell, strings.Join(want, ", "), func() (bool, any) {
			list, err := rig.Containers.List(t.Context())
			if err != nil {
				t.Fatalf("listing: %v", err)
			}
			var got []string
			for _, c := range list {
				got = append(got, c.Namespace+"/"+c.ID+"/"+c.Name+" "+c.Status)
			}
			slices.Sort(got)
			return slices.Equal(got, want), got
		})
	}
	t.Run("empty", func(t *testing.T) {
		rig := start(t)
		if err := rig.Containers.Ping(t.Context()); err != nil {
			t.Errorf("ping: %v", err)
		}
		list, err := rig.Containers.List(t.Context())
		if err != nil || len(list) != 0 {
			t.Errorf("list = %v, %v; want nothing", list, err)
		}
	})
	t.Run("a life is seen and announced", func(t *testing.T) {
		rig := start(t)
		bell := listen(t, rig.Containers)
		rig.Run("one", "c1", "web")
		until(t, rig, bell, "one/c1/web running")
		rig.Run("two", "c1", "")
		until(t, rig, bell, "one/c1/web running", "two/c1/ running")
		rig.Kill("one", "c1")
		until(t, rig, bell, "one/c1/web stopped", "two/c1/ running")
	})
	t.Run("a declaration is seen and announced", func(t *testing.T) {
		rig := start(t)
		rig.Run("one", "c1", "")
		bell := listen(t, rig.Containers)
		want := rig.Good
		want.Level, want.Timeout = health.Wanted, 90*time.Second
		rig.Declare("one", "c1", want)
		waitFor(t, bell, "the declaration", func() (bool, any) {
			list, err := rig.Containers.List(t.Context())
			if err != nil || len(list) != 1 {
				t.Fatalf("list = %v, %v; want one container", list, err)
			}
			return list[0].Declared == want, list[0].Declared
		})
	})
	t.Run("containers are asked", func(t *testing.T) { probes(t, start(t)) })
	t.Run("a daemon that ends", func(t *testing.T) {
		rig := start(t)
		bell := rig.Containers.Changes(t.Context())
		if err := rig.Containers.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		rig.Stop()
		closes(t, bell)
		if err := rig.Containers.Ping(t.Context()); err == nil {
			t.Error("a ping was answered")
		}
		if list, err := rig.Containers.List(t.Context()); err == nil {
			t.Errorf("a list was answered: %v", list)
		}
	})
	t.Run("nothing is asked once the context is done", func(t *testing.T) {
		rig := start(t)
		ctx, cancel := context.WithCancel(t.Context())
		bell := rig.Containers.Changes(ctx)
		cancel()
		if err := rig.Containers.Ping(ctx); err == nil {
			t.Error("a ping in spite of a context that is done")
		}
		if _, err := rig.Containers.List(ctx); err == nil {
			t.Error("a list in spite of a context that is done")
		}
		closes(t, bell)
	})
}

// probes tests how a container answers.
func probes(t *testing.T, rig ContainersRig) {
	rig.Run("one", "c1", "")
	list, err := rig.Containers.List(t.Context())
	if err != nil || len(list) != 1 {
		t.Fatalf("list = %v, %v; want one container", list, err)
	}
	ask := func(ctx context.Context, d health.Declaration) (seen string, ok bool) {
		c := list[0]
		c.Declared = d
		if seen, ok = rig.Containers.Probe(ctx, c); seen == "" {
			t.Errorf("asked by %+v, it says nothing", d)
		}
		return seen, ok
	}
	if seen, ok := ask(t.Context(), rig.Good); !ok {
		t.Errorf("a good answer is bad: %s", seen)
	}
	if seen, ok := ask(t.Context(), rig.Bad); ok {
		t.Errorf("a bad answer is good: %s", seen)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	returned := make(chan struct{}, 1)
	go func() {
		if seen, ok := ask(ctx, rig.Silent); ok {
			t.Errorf("no answer is good: %s", seen)
		}
		returned <- struct{}{}
	}()
	next(t, returned, "a probe to return after its context is done")
	rig.Kill("one", "c1")
	if seen, ok := ask(t.Context(), rig.Good); ok {
		t.Errorf("a container that has ended answers: %s", seen)
	}
	rig.Stop()
	if seen, ok := ask(t.Context(), rig.Good); ok {
		t.Errorf("without a daemon there is an answer: %s", seen)
	}
}

// NetworkRig is a network to put through NetworkSuite.
type NetworkRig struct {
	Network interface {
		Facts(ctx context.Context) (health.Network, error)
	}
	Come func() // makes all that NetworkFacts has
	Go   func() // takes it away
}

// NetworkFacts is what a NetworkRig has to make: a default route by eth0 and one to
// 10.1.0.0/16 by eth1, a service on port 22 and another one that only this machine can
// ask, and a pulled cable.
func NetworkFacts() health.Network {
	return health.Network{
		Routes:    []string{"ipv4 10.1.0.0/16 dev eth1", "ipv4 default dev eth0"},
		Listening: []string{"tcp/22 ssh.service", "udp/localhost:323 chrony.service"},
		Unplugged: []string{"eth2"},
	}
}

// NetworkSuite tests what the gate relies on. start is called once a test.
func NetworkSuite(t *testing.T, start func(t *testing.T) NetworkRig) {
	expect := func(t *testing.T, rig NetworkRig, want health.Network) {
		t.Helper()
		got, err := rig.Network.Facts(t.Context())
		if err != nil || !slices.Equal(got.Routes, want.Routes) || !slices.Equal(got.Listening, want.Listening) || !slices.Equal(got.Unplugged, want.Unplugged) {
			t.Errorf("facts %+v, %v; want %+v", got, err, want)
		}
	}
	t.Run("what comes and goes is told", func(t *testing.T) {
		rig := start(t)
		expect(t, rig, health.Network{})
		rig.Come()
		expect(t, rig, NetworkFacts())
		expect(t, rig, NetworkFacts()) // asking changes nothing
		rig.Go()
		expect(t, rig, health.Network{})
	})
	t.Run("nothing is asked once the context is done", func(t *testing.T) {
		rig := start(t)
		rig.Come()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if got, err := rig.Network.Facts(ctx); err == nil {
			t.Errorf("an answer in spite of a context that is done: %+v", got)
		}
	})
}

// listen returns the changes of a daemon once they are being heard.
func listen(t *testing.T, daemon interface {
	Changes(ctx context.Context) <-chan struct{}
}) <-chan struct{} {
	t.Helper()
	bell := daemon.Changes(t.Context())
	if !next(t, bell, "the first value of Changes") {
		t.Fatal("the changes ended before they began")
	}
	return bell
}

// again returns the channel with a value put in front.
func again(bell <-chan struct{}) <-chan struct{} {
	out := make(chan struct{}, 1)
	out <- struct{}{}
	go func() {
		defer close(out)
		for v := range bell {
			out <- v
		}
	}()
	return out
}

// drain takes the values that still come of what was done before. A value that
// it misses makes a test less sharp, never red.
func drain(bell <-chan struct{}) {
	for {
		select {
		case _, open := <-bell:
			if !open {
				return
			}
		case <-time.After(200 * time.Millisecond):
			return
		}
	}
}

// waitFor looks after each change, and never without one.
func waitFor(t *testing.T, bell <-chan struct{}, what string, ok func() (bool, any)) {
	t.Helper()
	var last any
	for done := false; !done; done, last = ok() {
		if !next(t, bell, fmt.Sprintf("a change after which there is %s (last seen: %v)", what, last)) {
			t.Fatalf("the changes ended before there was %s; last seen: %v", what, last)
		}
	}
}

// next waits for a value and returns whether the channel is still open.
func next(t *testing.T, bell <-chan struct{}, what string) bool {
	t.Helper()
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case _, open := <-bell:
		return open
	case <-late.C:
		t.Fatalf("waited %v in vain for %s", limit, what)
		return false
	}
}

// closes fails the test unless the channel is closed soon. Values before that
// are allowed.
func closes(t *testing.T, bell <-chan struct{}) {
	t.Helper()
	for next(t, bell, "the end of the changes") {
	}
}

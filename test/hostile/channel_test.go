package hostile

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/fetch"
	"github.com/kapernikov/osctl/pkg/ledger"
	"github.com/kapernikov/osctl/pkg/proof"
	"github.com/kapernikov/osctl/pkg/publish"
	"github.com/kapernikov/osctl/test/sample"
)

// shelf is a registry that takes pushes and notes what it was asked for.
type shelf struct {
	*httptest.Server
	mu    sync.Mutex
	asked []string
}

func newShelf(t *testing.T) *shelf {
	s := &shelf{}
	next := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.asked = append(s.asked, r.Method+" "+r.URL.Path)
		s.mu.Unlock()
		next.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *shelf) name(tag string) string { return strings.TrimPrefix(s.URL, "http://") + "/os:" + tag }

// count tells what was asked for since the last time.
func (s *shelf) count() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := s.asked
	s.asked = nil
	return asked
}

// present is the time as these machines know it: the sample images were made in 2027.
func present() time.Time {
	if made := time.Unix(1_800_000_000, 0); time.Now().Before(made) {
		return made
	}
	return time.Now()
}

// askForChannels makes a machine's policy want a statement for every tag.
func (m *machine) askForChannels() {
	policy := string(m.read("policy.yaml"))
	m.write("policy.yaml", []byte(policy+"channels: [{repository: \"127.0.0.1:*/os\", keys: [release]}]\n"))
}

// channels are the rows of a registry that keeps a machine back, or leads it astray by
// a tag.
func (s *site) channels(t *testing.T) {
	t.Run("23 channel", func(t *testing.T) {
		t.Parallel()
		s.turn(t)
		m, r := s.newMachine(t), newShelf(t)
		m.askForChannels()
		state := func(age, lasts time.Duration) {
			t.Helper()
			c := publish.Channel{Issued: present().Add(-age), Lasts: lasts}
			if _, err := publish.PublishChannel(t.Context(), r.name("stable"), c, s.key, publish.Options{}); err != nil {
				t.Fatal(err)
			}
		}
		push := func(layout string) {
			t.Helper()
			if _, err := publish.Push(t.Context(), layout, r.name("stable"), publish.Options{}); err != nil {
				t.Fatal(err)
			}
		}
		refused := func(want string) {
			t.Helper()
			r.count()
			got := m.upgrade(r.name("stable"))
			if got.code != 20 || !strings.Contains(got.out, want) || m.holds() {
				t.Errorf("exit code %d, want 20 with %q: %s", got.code, want, got.out)
			}
			// The image itself is not looked at before its channel.
			if asked := r.count(); len(asked) > 7 {
				t.Errorf("a refused channel made the requests %v", asked)
			}
		}
		push(m.layout)
		refused("found nothing at the tag stable.channel")
		state(48*time.Hour, 24*time.Hour)
		refused("that counts until")
		state(time.Hour, 24*time.Hour)
		push(sample.Image{Version: "1.5", MiB: imageMiB, Seed: 9}.Signed(t, s.key))
		refused("somebody moved the tag")
		push(m.layout)
		if got := m.start("check", r.name("stable"))(); got.code != 10 {
			t.Errorf("a fresh channel: exit code %d: %s", got.code, got.out)
		}
		state(2*time.Hour, 24*time.Hour)
		refused("is refused by an older statement")
		state(time.Minute, 24*time.Hour)
		if got := m.upgrade(r.name("stable")); got.code != 0 || !m.holds() {
			t.Errorf("after it has ended: exit code %d: %s", got.code, got.out)
		}
	})
	t.Run("check of an unchanged tag is one request", func(t *testing.T) {
		t.Parallel()
		s.turn(t)
		for name, ask := range map[string]bool{"plain": false, "of a channel": true} {
			m, r := s.newMachine(t), newShelf(t)
			if _, err := publish.Push(t.Context(), m.layout, r.name("stable"), publish.Options{}); err != nil {
				t.Fatal(err)
			}
			if ask {
				m.askForChannels()
				if _, err := publish.PublishChannel(t.Context(), r.name("stable"), publish.Channel{Issued: present(), Lasts: time.Hour}, s.key, publish.Options{}); err != nil {
					t.Fatal(err)
				}
			}
			m.runs(m.layout)
			r.count()
			for i := range 2 {
				got, asked := m.start("check", r.name("stable"))(), r.count()
				if got.code != 0 || !strings.Contains(got.out, "gateway 1.1 runs already") {
					t.Errorf("%s: exit code %d: %s", name, got.code, got.out)
				}
				// The first one learns the statement of the channel.
				if (!ask || i > 0) && !slices.Equal(asked, []string{"HEAD /v2/os/manifests/stable"}) {
					t.Errorf("%s: asked for %v", name, asked)
				}
				t.Logf("%s: %d requests", name, len(asked))
			}
		}
	})
}

// runs makes the ledger and the record say that slot A holds an image.
func (m *machine) runs(layout string) {
	m.t.Helper()
	l, err := fetch.OpenLayout(layout)
	if err != nil {
		m.t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // read only
	ref, err := l.Resolve(m.t.Context(), "")
	if err != nil {
		m.t.Fatal(err)
	}
	img, err := ref.Describe(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	if err := proof.Open(m.path("data/osctl")).Keep(device.SlotA, proof.New(img, nil, "")); err != nil {
		m.t.Fatal(err)
	}
	err = ledger.Open(m.path("data/osctl")).Update(func(l *ledger.Ledger) error {
		e := l.Slot(device.SlotA)
		e.Digest, e.Version = img.Digest().String(), img.Config().Version
		return nil
	})
	if err != nil {
		m.t.Fatal(err)
	}
}

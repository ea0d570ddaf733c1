package channel_test

import (
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"

	"github.com/kapernikov/osctl/pkg/channel"
	"github.com/kapernikov/osctl/pkg/fetch"
	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/publish"
	"github.com/kapernikov/osctl/pkg/trust"
	"github.com/kapernikov/osctl/test/sample"
)

var issued = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// keyring makes the keys of all tests: a password costs a key pair a tenth of a second.
var keyring = sync.OnceValues(func() (keys struct {
	ours, stranger *publish.Key
	public         []byte
}, err error,
) {
	for _, key := range []**publish.Key{&keys.stranger, &keys.ours} {
		var private []byte
		if private, keys.public, err = publish.GenerateKeyPair(nil); err != nil {
			return keys, err
		}
		if *key, err = publish.LoadKey(private, func() ([]byte, error) { return nil, nil }); err != nil {
			return keys, err
		}
	}
	return keys, nil
})

// site is a publisher, a registry over HTTP, and a machine that follows
// <registry>/os:stable.
type site struct {
	t             *testing.T
	repository    string
	key, stranger *publish.Key
	verifier      *trust.Verifier
	guard         *channel.Guard
	now           time.Time

	mu       sync.Mutex
	requests []string
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, now: issued.Add(time.Hour)}
	next := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.requests = append(s.requests, r.Method+" "+path.Base(r.URL.Path))
		s.mu.Unlock()
		next.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	s.repository = strings.TrimPrefix(server.URL, "http://") + "/os"
	keys, err := keyring()
	if err != nil {
		t.Fatal(err)
	}
	public := keys.public
	s.key, s.stranger = keys.ours, keys.stranger
	if s.verifier, err = trust.New(trust.Policy{Keys: []trust.Key{{Name: "release", PEM: public}}}); err != nil {
		t.Fatal(err)
	}
	s.guard = &channel.Guard{
		Repository: s.repository, Channel: "stable", Product: "gateway", Verifier: s.verifier, Now: func() time.Time { return s.now },
	}
	return s
}

// push uploads an image under a tag.
func (s *site) push(img sample.Image, tag string) digest.Digest {
	s.t.Helper()
	d, err := publish.Push(s.t.Context(), img.Signed(s.t, s.key), s.repository+":"+tag, publish.Options{})
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

// state publishes a statement of a week about a tag.
func (s *site) state(tag string, c publish.Channel, key *publish.Key) {
	s.t.Helper()
	if c.Issued.IsZero() {
		c.Issued = issued
	}
	if c.Lasts == 0 {
		c.Lasts = 7 * 24 * time.Hour
	}
	if _, err := publish.PublishChannel(s.t.Context(), s.repository+":"+tag, c, key, publish.Options{}); err != nil {
		s.t.Fatal(err)
	}
}

// copyTag makes one tag mean what another one does.
func (s *site) copyTag(from, to string) {
	s.t.Helper()
	source, err := name.ParseReference(s.repository + ":" + from)
	if err != nil {
		s.t.Fatal(err)
	}
	target, err := name.NewTag(s.repository + ":" + to)
	if err != nil {
		s.t.Fatal(err)
	}
	desc, err := remote.Get(source)
	if err == nil {
		err = remote.Tag(target, desc)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// follow asks the guard about the tag as it is.
func (s *site) follow(seen channel.Sighting) (osimage.Statement, error) {
	s.t.Helper()
	store, err := fetch.OpenStore(s.t.TempDir())
	if err != nil {
		s.t.Fatal(err)
	}
	ref, err := fetch.NewRegistry(s.t.Context(), store, s.t.TempDir()).Resolve(s.t.Context(), s.repository+":stable")
	if err != nil {
		s.t.Fatal(err)
	}
	return s.guard.Check(s.t.Context(), ref, ref.Digest(), seen)
}

var one, two = sample.Image{Version: "1.1", MiB: 2, Seed: 1}, sample.Image{Version: "1.2", MiB: 2, Seed: 2}

// 23 A registry keeps a machine at an old image, or leads it elsewhere: whatever it
// serves, the tag is followed only as a fresh statement says.
func TestCheck(t *testing.T) {
	for want, arrange := range map[string]func(s *site) channel.Sighting{
		"": func(s *site) channel.Sighting { return channel.Sighting{} },
		"accepted: the last second": func(s *site) channel.Sighting {
			s.now = issued.Add(7*24*time.Hour - time.Second)
			return channel.Sighting{}
		},
		"accepted: the very statement that was seen": func(s *site) channel.Sighting {
			return channel.Sighting{Issued: issued, Digest: s.push(one, "same").String()}
		},
		"by age: found one issued 2026-11-20 12:00:00 UTC that counts until 2026-11-27 12:00:00 UTC; wanted one that counts at 2026-11-27 12:00:00 UTC": func(s *site) channel.Sighting {
			s.now = issued.Add(7 * 24 * time.Hour)
			return channel.Sighting{}
		},
		"counts until 2026-11-21 12:00:00 UTC": func(s *site) channel.Sighting {
			s.guard.MaxAge, s.now = 24*time.Hour, issued.Add(25*time.Hour)
			return channel.Sighting{}
		},
		"by the tag: found": func(s *site) channel.Sighting { s.push(two, "stable"); return channel.Sighting{} },
		"by an older statement: found one issued 2026-11-20 12:00:00 UTC for 1.1; wanted one issued after 2026-11-20 12:00:01 UTC": func(s *site) channel.Sighting {
			return channel.Sighting{Issued: issued.Add(time.Second)}
		},
		"by an older statement: found one issued 2026-11-20 12:00:00 UTC for 1.1; wanted one issued after 2026-11-20 12:00:00 UTC": func(s *site) channel.Sighting {
			return channel.Sighting{Issued: issued, Digest: "sha256:another"}
		},
		"a statement about beta of": func(s *site) channel.Sighting {
			s.copyTag("stable", "beta")
			s.state("beta", publish.Channel{}, s.key)
			s.copyTag("beta.channel", "stable.channel")
			return channel.Sighting{}
		},
		`of the product "panel"`: func(s *site) channel.Sighting {
			s.push(sample.Image{Product: "panel", MiB: 2, Seed: 3}, "stable")
			s.state("stable", publish.Channel{}, s.key)
			return channel.Sighting{}
		},
		"by no key of the policy": func(s *site) channel.Sighting {
			s.state("stable", publish.Channel{Issued: issued.Add(time.Minute)}, s.stranger)
			return channel.Sighting{}
		},
		"no statement of a channel": func(s *site) channel.Sighting {
			s.copyTag("stable", "stable.channel")
			return channel.Sighting{}
		},
		"by no statement: found nothing at the tag other.channel": func(s *site) channel.Sighting {
			s.guard.Channel = "other"
			return channel.Sighting{}
		},
	} {
		t.Run(want, func(t *testing.T) {
			s := newSite(t)
			head := s.push(one, "stable")
			s.state("stable", publish.Channel{}, s.key)
			got, err := s.follow(arrange(s))
			if want == "" || strings.HasPrefix(want, "accepted") {
				if err != nil || got.Digest != head || got.Version != "1.1" || !got.Issued.Equal(issued) {
					t.Errorf("Check = %+v, %v", got, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), want) || got.Digest != "" {
				t.Errorf("error = %v, want %q", err, want)
			}
			refused := errors.As(err, new(*channel.Refusal)) || errors.As(err, new(*trust.Refusal)) || errors.Is(err, osimage.ErrInvalid)
			if !refused {
				t.Errorf("%v is no refusal", err)
			}
		})
	}
}

// The publisher goes on: a newer statement, the tag after it.
func TestPublishMovesTheTag(t *testing.T) {
	s := newSite(t)
	s.push(one, "stable")
	s.state("stable", publish.Channel{}, s.key)
	first, err := s.follow(channel.Sighting{})
	if err != nil {
		t.Fatal(err)
	}
	head := s.push(two, "1.2")
	s.state("stable", publish.Channel{Head: head, Issued: issued.Add(time.Minute)}, s.key)
	seen := channel.Sighting{Issued: first.Issued, Expires: first.Expires, Digest: first.Digest.String()}
	got, err := s.follow(seen)
	if err != nil || got.Digest != head || got.Version != "1.2" {
		t.Errorf("Check = %+v, %v", got, err)
	}
	if s.guard.Fresh(head, seen) || !s.guard.Fresh(first.Digest, seen) {
		t.Error("what was seen answers for another image")
	}
	if s.now = first.Expires; s.guard.Fresh(first.Digest, seen) {
		t.Error("what was seen answers past its age")
	}
	if _, err := publish.PublishChannel(context.Background(), s.repository+"@"+head.String(), publish.Channel{Issued: issued, Lasts: time.Hour}, s.key, publish.Options{}); !errors.Is(err, publish.ErrReference) {
		t.Errorf("a digest as a channel: %v", err)
	}
	if _, err := publish.PublishChannel(context.Background(), s.repository+":stable.channel", publish.Channel{Issued: issued, Lasts: time.Hour}, s.key, publish.Options{}); !errors.Is(err, osimage.ErrNotOS) {
		t.Errorf("a statement about a statement: %v", err)
	}
}

// Following a tag costs six small requests, and no blob of a pack.
func TestRequests(t *testing.T) {
	s := newSite(t)
	s.push(one, "stable")
	s.state("stable", publish.Channel{}, s.key)
	s.requests = nil
	if _, err := s.follow(channel.Sighting{}); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d requests: %s", len(s.requests), strings.Join(s.requests, ", "))
	if n := len(s.requests); n > 7 {
		t.Errorf("%d requests", n)
	}
}

// The zero value and a half-made guard decide nothing.
func TestZeroValueRefuses(t *testing.T) {
	if _, err := (&channel.Guard{}).Check(context.Background(), fetch.Ref{}, "", channel.Sighting{}); err == nil || !strings.Contains(err.Error(), "nothing says whose word counts") {
		t.Errorf("error = %v", err)
	}
}

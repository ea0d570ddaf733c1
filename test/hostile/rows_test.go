package hostile

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/publish"
	"github.com/kapernikov/osctl/test/authority"
	"github.com/kapernikov/osctl/test/sample"
)

// row is one way to misbehave, and what an upgrade makes of it.
type row struct {
	name string // begins with the number of the row in the list of faults
	// arrange sets the misbehaviour up. The registry serves the next image as 1.1.
	arrange func(t *testing.T, m *machine, r *Registry)
	code    int
	want    string // in what osctl says
	// noPacks says that no byte of a pack may be asked for.
	noPacks bool
	// waits says that osctl tries for half a minute before it gives up.
	waits bool
}

// always lets every request of a kind go wrong.
func always(kind Kind, fault Fault) func(*testing.T, *machine, *Registry) {
	return func(_ *testing.T, _ *machine, r *Registry) { r.Break(kind, fault) }
}

// once lets the requests of a kind go wrong one after the other, each in its way; a
// nil is served rightly.
func once(kind Kind, faults ...Fault) func(*testing.T, *machine, *Registry) {
	return func(_ *testing.T, _ *machine, r *Registry) {
		for i, f := range faults {
			if f != nil {
				r.BreakNth(kind, i+1, f)
			}
		}
	}
}

// serves offers a crafted image instead, signed by the key of the policy.
func serves(change func(*crafted)) func(*testing.T, *machine, *Registry) {
	return func(t *testing.T, m *machine, r *Registry) { r.Load(t, m.craft(t, m.layout, m.key, change), "1.1") }
}

// offers does so without a signature: what is refused before one is looked for.
func offers(change func(*crafted)) func(*testing.T, *machine, *Registry) {
	return func(t *testing.T, m *machine, r *Registry) { r.Load(t, m.craft(t, m.layout, nil, change), "1.1") }
}

func transferRows() []row {
	return []row{
		{"1 pack cut in the middle", once(Pack, CutHalf, CutHalf), 0, "starts at the next boot", false, false},
		{"1 pack cut every 200000 bytes", always(Pack, CutAt(200_000)), 0, "starts at the next boot", false, false},
		{"1 pack cut at its first byte, always", always(Pack, CutAt(0)), 40, "unexpected EOF", false, true},
		{"1 manifest cut at its first byte, always", always(Manifest, CutAt(0)), 40, "unexpected EOF", true, false},
		{"1 config cut at its last byte", once(Config, CutAt(-1)), 0, "starts at the next boot", false, false},
		{"2 pack shorter than its length", once(Pack, Claim(9_000_000)), 0, "starts at the next boot", false, false},
		{"2 pack of half its length, always", always(Pack, Short), 40, "unexpected EOF", false, true},
		{"2 pack of 200 and an empty body, always", always(Pack, Empty), 40, "unexpected EOF", false, true},
		{"2 config of 200 and an empty body", always(Config, Empty), 40, "0 bytes of other content", true, false},
		{"2 tag of 200 and an empty body", always(Tag, Both(Empty, Unnamed)), 40, "", true, false},
		{"3 pack of wrong bytes", always(Pack, Other), 40, "another digest", false, false},
		{"3 pack with one bit wrong", always(Pack, Flip(-1)), 40, "another digest", false, false},
		{"3 manifest with one bit wrong", always(Manifest, Flip(100)), 40, "other content", true, false},
		{"3 config with one bit wrong", always(Config, Flip(100)), 40, "other content", true, false},
		{"3 signature with one bit wrong", always(Payload, Flip(100)), 40, "other content", true, false},
		{"3 tag with another digest", always(Tag, Rename(digest.FromString("x"))), 40, "not found", true, false},
		{"4 200 instead of 206", once(Pack, CutHalf, IgnoreRange, IgnoreRange), 0, "starts at the next boot", false, false},
		{"5 206 with the wrong range", once(Pack, CutHalf, CutHalf, WrongRange(1000, false), WrongRange(1000, false)), 0, "starts at the next boot", false, false},
		{"5 206 with the wrong range under the right name", once(Pack, CutHalf, CutHalf, WrongRange(1000, true), WrongRange(1000, true)), 0, "starts at the next boot", false, false},
		{"5 206 that nobody asked for", always(Pack, Unasked), 40, "a range that nobody asked for", false, false},
		{"6 config without an end", always(Config, Flood), 40, "other content", true, false},
		{"6 tag without a digest and without an end", always(Tag, Both(Unnamed, Flood)), 40, "too long", true, false},
		{"7 401", always(Any, Refuse(401, "")), 40, "nerdctl login", true, false},
		{"7 403 in the middle", once(Pack, Refuse(403, "")), 40, "nerdctl login", false, false},
		{"7 429 with a time", once(Pack, Refuse(429, "1")), 0, "starts at the next boot", false, false},
		{"7 429 for an hour", always(Config, Refuse(429, "3600")), 40, "come back later: in 1h0m0s", true, false},
		{"7 500 twice", once(Tag, Refuse(500, "")), 0, "starts at the next boot", false, false},
		{"7 503 always", always(Any, Refuse(503, "")), 40, "503", true, false},
		{"10 wrong Content-Type", always(Any, Retype("text/html")), 0, "starts at the next boot", false, false},
		{"10 manifest over 4 MiB", always(Tag, Claim(4<<20+1)), 40, "4194305 bytes, at most 4194304 are taken", true, false},
		{"10 manifest of 2^63-1 bytes", always(Tag, Claim(1<<63-1)), 40, "at most 4194304 are taken", true, false},
		{"11 config as a bomb of 32 MiB", always(Config, Bomb(32<<20)), 40, `Content-Encoding that was not asked for: "gzip"`, true, false},
		{"11 pack as a bomb of 32 MiB", always(Pack, Bomb(32<<20)), 40, "Content-Encoding", false, false},
	}
}

func contentRows() []row {
	return []row{
		{"10 wrong artifact type", offers(func(c *crafted) { c.manifest.ArtifactType = "application/x" }), 21, `an artifact of type "application/x"`, true, false},
		{"10 wrong config type", offers(func(c *crafted) { c.manifest.Config.MediaType = "application/x" }), 40, `config has media type "application/x"`, true, false},
		{"10 wrong pack type", offers(func(c *crafted) { c.manifest.Layers[0].MediaType = "application/x" }), 40, "the manifest has 1 packs", true, false},
		{"10 index of 100,000 entries", hugeIndex, 21, "an image index", true, false},
		{"10 manifest of 30,000 layers", offers(func(c *crafted) {
			c.manifest.Layers = slices.Repeat([]ocispec.Descriptor{{MediaType: osimage.MediaTypePack, Digest: "sha256:x", Size: 1}}, 30_000)
		}), 40, "the manifest has 30000 packs", true, false},
		{"10 manifest of another schema", offers(func(c *crafted) { c.manifest.SchemaVersion = 1 }), 40, "schemaVersion 1", true, false},
		{"12 window of 64 MiB", serves(func(c *crafted) {
			c.pack(0, func([]byte) []byte { return windowed(c.t, 64<<20, 8<<20) })
		}), 40, "window size exceeded", false, false},
		{"12 frame that says 2^63-1 bytes", serves(func(c *crafted) {
			c.pack(0, func([]byte) []byte {
				return []byte{0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}
			})
		}), 40, "corrupt pack", false, false},
		{"12 less in a pack than its segments", serves(func(c *crafted) {
			c.pack(1, func([]byte) []byte { return windowed(c.t, 1<<20, 1000) })
		}), 40, "corrupt pack", false, false},
		{"12 more in a pack than its segments", serves(func(c *crafted) {
			c.pack(1, func(old []byte) []byte { return append(bytes.Clone(old), windowed(c.t, 1<<20, 1)...) })
		}), 40, "there is more in it than its segments", false, false},
		{"12 other content in a pack", serves(func(c *crafted) {
			c.pack(0, func([]byte) []byte { return windowed(c.t, 1<<20, imageMiB<<20) })
		}), 40, "another digest than the signed config says", false, false},
		{"24 10,000 signatures", manySignatures(10_000), 40, "more than 100 signatures", true, false},
		{"24 100 signatures, none valid", manySignatures(100), 20, "no key of the policy", true, false},
		{"24 60 signatures and 41 bundles", func(t *testing.T, m *machine, r *Registry) {
			manySignatures(60)(t, m, r)
			r.Refer(41, bundleOf(t, r, "", 0))
		}, 40, "more than 100 signatures", true, false},
		{"24 list of bundles withheld, 403", withheld(403), 40, "nerdctl login", true, false},
		{"24 list of bundles withheld, 503", withheld(503), 40, "it does not say which signatures it has: 503", true, false},
		{"24 garbage for a bundle", bundle(func(_ *testing.T, r *Registry) []byte { return bundleManifest(r, []byte("\xff{"), 0) }), 20, "a bundle that cannot be read", true, false},
		{"26 bundle of 2^63-1 bytes", bundle(func(_ *testing.T, r *Registry) []byte { return bundleManifest(r, []byte("{}"), 1<<63-1) }), 20, "one of 9223372036854775807 bytes, which is over the limit", true, false},
		{"25 bundle with its own certificate", bundle(func(t *testing.T, r *Registry) []byte { return bundleOf(t, r, r.digest("1.1"), 0) }), 20, "no key of the policy", true, false},
		{"25 signature with its own key and certificate", ownKey, 20, "no key of the policy", true, false},
		{"26 rootfs of 2^63-1 bytes", offers(func(c *crafted) { c.sized(1<<63-1, false) }), 40, "size 9223372036854775807", true, false},
		{"26 rootfs of 2^63 bytes", offers(func(c *crafted) { c.raw = resized(c, "9223372036854775808") }), 40, "cannot unmarshal", true, false},
		{"26 rootfs of -2^63 bytes", offers(func(c *crafted) { c.raw = resized(c, "-9223372036854775808") }), 40, "size -9223372036854775808", true, false},
		{"26 rootfs of 2^31 bytes, digests for the first ones only", offers(func(c *crafted) { c.sized(1<<31, false) }), 40, "2048 segments need 65536", true, false},
		{"26 rootfs of 2^32+512 bytes, digests for the first ones only", offers(func(c *crafted) { c.sized(1<<32+512, false) }), 40, "4097 segments need 131104", true, false},
		{"26 rootfs of 2^32+512 bytes", serves(func(c *crafted) { c.sized(1<<32+512, true) }), 21, "build a smaller image", true, false},
		{"26 pack of 2^63-1 bytes", offers(func(c *crafted) { c.manifest.Layers[0].Size = 1<<63 - 1 }), 40, "9223372036854775807 bytes", true, false},
		{"26 pack of 60 MiB for 6 segments", offers(func(c *crafted) { c.manifest.Layers[0].Size = 60 << 20 }), 40, "segments need at most", true, false},
		{"26 pack of -1 bytes", offers(func(c *crafted) { c.manifest.Layers[0].Size = -1 }), 40, "pack 0: -1 bytes", true, false},
		{"27 index and delta of nonsense", serves(func(c *crafted) {
			c.layer(osimage.MediaTypeIndex, []byte(`{"extents":[{"from":-1,"to":9223372036854775807},{"from":0,"to":5},{"copy":"self"}]}`))
			c.layer(osimage.MediaTypeDelta, bytes.Repeat([]byte{0xff}, 1000))
		}), 0, "starts at the next boot", false, false},
		{"27 packs that overlap", offers(func(c *crafted) { c.config.Rootfs.PackSegments[0]++ }), 40, "segments", true, false},
		{"27 pack named twice", serves(func(c *crafted) { c.manifest.Layers[1] = c.manifest.Layers[0] }), 40, "corrupt pack", false, false},
	}
}

// resized is the config with another size of the image, which need not be a number
// that Go has.
func resized(c *crafted, size string) []byte {
	return []byte(strings.Replace(string(c.encode(c.config)), fmt.Sprintf(`"size":%d`, imageMiB<<20), `"size":`+size, 1))
}

func hugeIndex(_ *testing.T, _ *machine, r *Registry) {
	r.Put("1.1", []byte(`{"schemaVersion":2,"mediaType":"`+ocispec.MediaTypeImageIndex+`","manifests":[{}`+strings.Repeat(",{}", 99_999)+`]}`))
}

// signatures replaces the signatures of the image by others.
func signatures(t *testing.T, r *Registry, layers []ocispec.Descriptor) {
	t.Helper()
	tag := r.SignatureTag(r.digest("1.1"))
	raw, err := json.Marshal(ocispec.Manifest{
		MediaType: ocispec.MediaTypeImageManifest, Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromString("{}"), Size: 2}, Layers: layers,
	})
	if err != nil {
		t.Fatal(err)
	}
	r.Put(tag, raw)
}

// manySignatures puts that many beside the image; none is of a key of the policy.
func manySignatures(n int) func(*testing.T, *machine, *Registry) {
	return func(t *testing.T, m *machine, r *Registry) {
		stranger, _, _ := sample.Key(t)
		layer := strangeSignature(t, m, r, stranger)
		signatures(t, r, slices.Repeat([]ocispec.Descriptor{layer}, n))
	}
}

// strangeSignature is a good signature of the image by a key that is not in the
// policy.
func strangeSignature(t *testing.T, m *machine, r *Registry, key *publish.Key) ocispec.Descriptor {
	t.Helper()
	dir := m.craft(t, m.layout, key, func(*crafted) {})
	r.Load(t, dir, "1.1")
	r.mu.Lock()
	defer r.mu.Unlock()
	var manifest ocispec.Manifest
	if err := json.Unmarshal(r.blobs[r.tags[r.SignatureTag(r.tags["1.1"].Digest)].Digest], &manifest); err != nil {
		t.Fatal(err)
	}
	return manifest.Layers[0]
}

// bundle takes the classic signature away and puts a bundle beside the image.
func bundle(of func(*testing.T, *Registry) []byte) func(*testing.T, *machine, *Registry) {
	return func(t *testing.T, _ *machine, r *Registry) {
		signatures(t, r, nil)
		r.Refer(1, of(t, r))
	}
}

// bundleOf is one by an authority that the policy does not know; without a digest it is
// about nothing.
func bundleOf(t *testing.T, r *Registry, about digest.Digest, size int64) []byte {
	t.Helper()
	s := authority.New(t).Certify("mallory@example.com", authority.Issuer, time.Now())
	return bundleManifest(r, s.Bundle(authority.Statement(osimage.PredicateSignature, about.String(), ""), authority.Choice{}), size)
}

func bundleManifest(r *Registry, content []byte, size int64) []byte {
	if size == 0 {
		size = int64(len(content))
	}
	return fmt.Appendf(nil, `{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},`+
		`"annotations":{%q:%q},"layers":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		osimage.PredicateAnnotation, osimage.PredicateSignature, authority.MediaTypeBundle, r.PutBlob(Payload, content), size)
}

// ownKey is a signature that brings the key, and a certificate, that it is to be
// verified by: cosign CVE-2022-36056 and GHSA-fx35-mq7g-6g98 are of this class.
func ownKey(t *testing.T, m *machine, r *Registry) {
	stranger, _, public := sample.Key(t)
	layer := strangeSignature(t, m, r, stranger)
	for _, name := range []string{"dev.sigstore.cosign/certificate", "dev.sigstore.cosign/chain", "dev.sigstore.cosign/key", "dev.sigstore.cosign/bundle"} {
		layer.Annotations[name] = string(public)
	}
	signatures(t, r, []ocispec.Descriptor{layer})
}

// outcome is a line of the table.
type outcome struct {
	name  string
	code  int
	said  string
	packs int64
	again string
}

// TestHostileRegistry has a line for each way to misbehave, all on one containerd.
func TestHostileRegistry(t *testing.T) {
	s := newSite(t)
	rows := slices.Concat(transferRows(), contentRows())
	outcomes := make([]outcome, len(rows))
	t.Run("all", func(t *testing.T) {
		for i, r := range rows {
			t.Run(r.name, func(t *testing.T) {
				t.Parallel()
				outcomes[i] = s.try(t, r)
			})
		}
		s.tagMoves(t)
		s.places(t)
		s.channels(t)
		s.trust(t)
	})
	t.Log("\n" + table(outcomes))
}

// try lets a machine upgrade from a registry that misbehaves, and then, by the same
// command, from one that does not.
func (s *site) try(t *testing.T, row row) outcome {
	if !row.waits {
		s.turn(t)
	}
	m, r := s.newMachine(t), New(t)
	r.Load(t, m.layout, "1.1")
	row.arrange(t, m, r)
	got := m.upgrade(r.Name("1.1"))
	if got.code != row.code || !strings.Contains(got.out, row.want) {
		t.Errorf("exit code %d, want %d with %q:\n%s", got.code, row.code, row.want, got.out)
	}
	armed := m.holds()
	if armed != (row.code == 0) {
		t.Errorf("slot B is armed: %t", armed)
	}
	packs := r.Sent(Pack)
	if n := len(r.Requests(Pack)); row.noPacks && n > 0 {
		t.Errorf("%d requests for packs", n)
	}
	// What an attempt may cost: nothing has no end.
	if most := 8*r.Size(Pack) + 16<<20; r.Sent(Any) > most {
		t.Errorf("%d bytes were taken, want at most %d", r.Sent(Any), most)
	}
	have := m.finished()

	r.Behave()
	refused := r.digest("1.1")
	if r.Load(t, m.layout, "1.1") != refused {
		clear(have) // another image: what was held for the first one is let go
	}
	r.Forget()
	again := m.upgrade(r.Name("1.1"))
	if again.code != 0 || !m.holds() {
		t.Errorf("after it has ended: exit code %d:\n%s", again.code, again.out)
	}
	for _, q := range r.Requests(Pack) {
		if have[q.Digest] {
			t.Errorf("pack %s was there and was asked for again", q.Digest)
		}
	}
	return outcome{row.name, got.code, lastWords(got.out), packs, fmt.Sprintf("%d, %d bytes", again.code, r.Sent(Pack))}
}

// lastWords is the error without what differs from run to run.
func lastWords(out string) string {
	line, _, _ := strings.Cut(out, "\n")
	if i := strings.LastIndex(line, ": "); i >= 0 && len(line) > 90 {
		line = "… " + line[i+2:]
	}
	return line
}

func table(list []outcome) string {
	var b strings.Builder
	fmt.Fprintf(&b, "| %-62s | exit | pack bytes | again           | osctl says\n", "row and misbehaviour")
	for _, o := range list {
		fmt.Fprintf(&b, "| %-62s | %4d | %10d | %-15s | %s\n", o.name, o.code, o.packs, o.again, o.said)
	}
	return b.String()
}

// tagMoves moves the tag between resolve and pull, at each step of it.
func (s *site) tagMoves(t *testing.T) {
	other := sample.Image{Version: "1.2", MiB: imageMiB, Seed: 3}.Signed(t, s.key)
	for _, kind := range []Kind{Manifest, Config, SignatureTag, Payload, Pack} {
		t.Run("9 tag moves at the "+string(kind), func(t *testing.T) {
			t.Parallel()
			s.turn(t)
			m, r := s.newMachine(t), New(t)
			r.Load(t, m.layout, "1.1")
			r.BreakNth(kind, 1, func(*Answer) { r.Load(t, other, "1.1") })
			if got := m.upgrade(r.Name("1.1")); got.code != 0 || !m.holds() {
				t.Errorf("exit code %d: %s", got.code, got.out)
			}
			if n := len(r.Requests(Tag)); n != 1 {
				t.Errorf("the tag was asked for %d times", n)
			}
		})
	}
}

// places are the rows that need more than one server, or a server with a login.
func (s *site) places(t *testing.T) {
	t.Run("7 token that expires mid-pull", func(t *testing.T) {
		t.Parallel()
		s.turn(t)
		m, r := s.newMachine(t), New(t)
		r.Load(t, m.layout, "1.1")
		m.login(r.Host(), "robot", "the-password")
		r.Login("robot", "the-password", 4)
		got := m.upgrade(r.Name("1.1"))
		if n := len(r.Requests(Token)); got.code != 0 || !m.holds() || n < 2 {
			t.Errorf("exit code %d after %d tokens: %s", got.code, n, got.out)
		}
	})
	t.Run("7 wrong password, which the answer repeats", func(t *testing.T) {
		t.Parallel()
		s.turn(t)
		m, r := s.newMachine(t), New(t)
		r.Load(t, m.layout, "1.1")
		m.login(r.Host(), "robot", "the-password")
		r.Login("robot", "another", 4)
		got := m.start("upgrade", r.Name("1.1"), "--json", "--progress", "json")()
		if got.code != 40 || m.holds() || strings.Contains(got.out, "the-password") {
			t.Errorf("exit code %d: %s", got.code, got.out)
		}
		r.Behave()
		if got := m.upgrade(r.Name("1.1")); got.code != 0 || !m.holds() {
			t.Errorf("after it has ended: exit code %d: %s", got.code, got.out)
		}
	})
	t.Run("8 redirect to another host", func(t *testing.T) {
		t.Parallel()
		s.turn(t)
		m, r, store := s.newMachine(t), New(t), New(t)
		r.Load(t, m.layout, "1.1")
		store.Load(t, m.layout, "1.1")
		m.login(r.Host(), "robot", "the-password")
		r.Login("robot", "the-password", 100)
		for _, kind := range []Kind{Config, Pack, Payload} {
			r.Break(kind, func(a *Answer) {
				if a.Status == http.StatusOK {
					Redirect("http://" + store.Host() + "/")(a)
				}
			})
		}
		got := m.upgrade(r.Name("1.1"))
		if got.code != 0 || !m.holds() || store.Sent(Pack) < 1<<20 {
			t.Errorf("exit code %d: %s", got.code, got.out)
		}
		for _, q := range store.Requests(Any) {
			if q.Header.Get("Authorization") != "" {
				t.Errorf("the other host got %q with a request for a %s", q.Header.Get("Authorization"), q.Kind)
			}
		}
	})
	t.Run("13 mirror down", func(t *testing.T) { s.mirror(t, func(r *Registry) { r.Close() }) })
	t.Run("13 mirror with wrong packs", func(t *testing.T) { s.mirror(t, func(r *Registry) { r.Break(Pack, Other) }) })
	t.Run("13 mirror with a wrong manifest", func(t *testing.T) { s.mirror(t, func(r *Registry) { r.Break(Manifest, Flip(5)) }) })
	t.Run("13 mirror that is busy for an hour", func(t *testing.T) { s.mirror(t, func(r *Registry) { r.Break(Any, Refuse(429, "3600")) }) })
	t.Run("8 redirect to plain http", s.leaveTLS)
	t.Run("8 addresses in the manifest", s.addresses)
	t.Run("14 address changes mid-install", s.moveAway)
	t.Run("containerd 8570 content collected mid-install", s.collect)
}

func (s *site) mirror(t *testing.T, spoil func(*Registry)) {
	t.Parallel()
	s.turn(t)
	m, mirror, origin := s.newMachine(t), New(t), New(t)
	mirror.Load(t, m.layout, "1.1")
	origin.Load(t, m.layout, "1.1")
	m.hosts(origin.Host(), fmt.Sprintf("server = %q\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", origin.URL, mirror.URL))
	spoil(mirror)
	if got := m.upgrade(origin.Name("1.1")); got.code != 0 || !m.holds() {
		t.Errorf("exit code %d: %s", got.code, got.out)
	}
}

// held waits for a request that is held back.
func held(t *testing.T, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(time.Minute):
		t.Fatal("nothing was held back")
	}
}

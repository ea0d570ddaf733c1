package fetch

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kapernikov/osctl/pkg/assemble"
	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/test/hostile"
	"github.com/kapernikov/osctl/test/sample"
)

// hostsDir is a certs.d folder that says for a registry where to ask instead.
func hostsDir(t *testing.T, host, toml string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, host), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, host, "hosts.toml"), []byte(toml), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// patient is a client that never really waits, and tells how long it would have.
func patient(t *testing.T, hosts string) (*Registry, *[]time.Duration) {
	t.Helper()
	store, err := OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r := NewRegistry(ctx, store, hosts)
	r.pause = func(context.Context, int) error { return nil }
	var slept []time.Duration
	r.wire.sleep = func(_ context.Context, d time.Duration) error {
		slept = append(slept, d)
		clear(r.wire.busy)
		return nil
	}
	return r, &slept
}

// take resolves and pulls; the image must be the right one.
func (w way) take(t *testing.T, r *Registry, name string, want sample.Image) error {
	t.Helper()
	ref, err := r.Resolve(ctx, name)
	if err != nil {
		return err
	}
	if _, err := ref.Signatures(ctx); err != nil {
		return err
	}
	raw, err := w.pull(ref)
	if err == nil && !bytes.Equal(raw, want.Raw()) {
		t.Error("the image came back wrong, and without an error")
	}
	return err
}

// small is one pack of a megabyte.
var small = sample.Image{Seed: 8, MiB: 2}

func load(t *testing.T, h *hostile.Registry) {
	t.Helper()
	h.Load(t, signed(t, small), "1")
}

// signed builds an image, once for each test.
func signed(t *testing.T, img sample.Image) string {
	t.Helper()
	key, _, _ := sample.Key(t)
	return img.Signed(t, key)
}

// TestMisbehaviour is what a daemon and a machine add nothing to. Whatever goes
// wrong, the right error says so, and the same again succeeds once it has ended.
func TestMisbehaviour(t *testing.T) {
	dir := signed(t, small)
	tiny := pace{least: 64, within: 100 * time.Millisecond}
	for name, tt := range map[string]struct {
		kind  hostile.Kind
		fault hostile.Fault
		is    error
		class error
		want  string
	}{
		"6 pack of one byte at a time":       {hostile.Pack, hostile.Dripping(20 * time.Millisecond), errSlow, ErrRegistry, "too slow"},
		"6 manifest of one byte at a time":   {hostile.Manifest, hostile.Dripping(20 * time.Millisecond), errSlow, ErrRegistry, "too slow"},
		"6 unnamed tag, one byte at a time":  {hostile.Tag, hostile.Both(hostile.Unnamed, hostile.Dripping(20*time.Millisecond)), errSlow, ErrRegistry, "too slow"},
		"6 unnamed tag without an end":       {hostile.Tag, hostile.Both(hostile.Unnamed, hostile.Flood), errLength, ErrRegistry, "too long: more than 4194304 bytes"},
		"6 manifest without an end":          {hostile.Manifest, hostile.Flood, osimage.ErrInvalid, osimage.ErrInvalid, "other content"},
		"6 config without an end":            {hostile.Config, hostile.Flood, osimage.ErrInvalid, osimage.ErrInvalid, "other content"},
		"6 payload without an end":           {hostile.Payload, hostile.Flood, osimage.ErrInvalid, osimage.ErrInvalid, "other content"},
		"6 pack without an end":              {hostile.Pack, hostile.Both(hostile.Other, hostile.Flood), errDigest, ErrRegistry, "another digest"},
		"10 manifest of more than 4 MiB":     {hostile.Tag, hostile.Claim(5 << 20), errLength, ErrRegistry, "5242880 bytes, at most 4194304 are taken"},
		"10 manifest of 2^63-1 bytes":        {hostile.Tag, hostile.Claim(1<<63 - 1), errLength, ErrRegistry, "at most 4194304"},
		"11 manifest as a bomb":              {hostile.Manifest, hostile.Bomb(64 << 20), errEncoded, ErrRegistry, `"gzip"`},
		"11 config as a bomb":                {hostile.Config, hostile.Bomb(64 << 20), errEncoded, ErrRegistry, `"gzip"`},
		"11 payload as a bomb":               {hostile.Payload, hostile.Bomb(64 << 20), errEncoded, ErrRegistry, `"gzip"`},
		"11 pack as a bomb":                  {hostile.Pack, hostile.Bomb(64 << 20), errEncoded, ErrRegistry, `"gzip"`},
		"5 pack as a part nobody asked for":  {hostile.Pack, hostile.Unasked, errUnasked, ErrRegistry, "nobody asked for"},
		"7 config busy for an hour":          {hostile.Config, hostile.Refuse(429, "3600"), errPatience, ErrRegistry, "come back later: in 1h0m0s"},
		"7 pack busy for years":              {hostile.Pack, hostile.Refuse(503, "4294967295"), errPatience, ErrRegistry, "come back later"},
		"7 pack busy for ever, ten s a time": {hostile.Pack, hostile.Refuse(429, "10"), errPatience, ErrRegistry, "come back later"},
		"7 an error that sounds like ours": {hostile.Config, func(a *hostile.Answer) {
			a.Status, a.Body = http.StatusInternalServerError, []byte(`{"errors":[{"code":"UNKNOWN","message":"no space left on device"}]}`)
		}, ErrRegistry, ErrRegistry, "no space left"},
		"7 tag that answers with a redirect": {hostile.Tag, hostile.Redirect("/v2/gateway/os/manifests/1"), ErrRegistry, ErrRegistry, "10 redirects"},
	} {
		t.Run(name, func(t *testing.T) {
			bothWays(t, func(t *testing.T, w way) {
				h := hostile.New(t)
				h.Load(t, dir, "1")
				r, _ := patient(t, t.TempDir())
				r.wire.pace = tiny
				h.Break(tt.kind, tt.fault)
				err := w.take(t, r, h.Name("1"), small)
				if !errors.Is(err, tt.is) || !errors.Is(err, tt.class) || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("error = %v, want %v of class %v with %q", err, tt.is, tt.class, tt.want)
				}
				if sent := h.Sent(hostile.Any); sent > 4*h.Size(hostile.Pack)+32<<20 {
					t.Errorf("%d bytes were taken", sent)
				}
				h.Behave()
				again, _ := patient(t, t.TempDir())
				again.store = r.store
				if err := w.take(t, again, h.Name("1"), small); err != nil {
					t.Errorf("after it has ended: %v", err)
				}
			})
		})
	}
}

// What is wrong for a moment only, the same command survives by itself.
func TestPassingFaults(t *testing.T) {
	dir := signed(t, small)
	for name, faults := range map[string][]hostile.Fault{
		"1 cut":                         {hostile.CutHalf},
		"1 cut at the first byte":       {hostile.CutAt(0)},
		"1 cut at the last byte":        {hostile.CutAt(-1)},
		"2 shorter than it says":        {hostile.Short},
		"2 empty":                       {hostile.Empty},
		"3 wrong bytes, then a cut":     {hostile.Both(hostile.Flip(0), hostile.CutHalf)},
		"5 wrong range":                 {hostile.CutHalf, nil, hostile.WrongRange(4096, false)},
		"5 wrong range under its name":  {hostile.CutHalf, nil, hostile.WrongRange(4096, true)},
		"7 busy, with a time":           {hostile.Refuse(429, "7")},
		"7 out of order, with a date":   {hostile.Refuse(503, time.Now().Add(20*time.Second).UTC().Format(http.TimeFormat))},
		"7 out of order, with nonsense": {hostile.Refuse(503, "soon")},
		"7 500":                         {hostile.Refuse(500, "")},
		"13 cut three times":            {hostile.CutAt(1000), hostile.CutAt(2000), hostile.CutAt(3000)},
	} {
		t.Run(name, func(t *testing.T) {
			bothWays(t, func(t *testing.T, w way) {
				h := hostile.New(t)
				h.Load(t, dir, "1")
				r, slept := patient(t, t.TempDir())
				for i, f := range faults {
					if f != nil {
						h.BreakNth(hostile.Pack, i+1, f)
					}
				}
				if err := w.take(t, r, h.Name("1"), small); err != nil {
					t.Errorf("error = %v", err)
				}
				if strings.Contains(name, "with a") && (len(*slept) != 1 || (*slept)[0] < 5*time.Second || (*slept)[0] > 20*time.Second) {
					t.Errorf("waited %v, want once for what it asked", *slept)
				}
				if strings.Contains(name, "nonsense") && len(*slept) != 0 {
					t.Errorf("waited %v", *slept)
				}
			})
		})
	}
}

// A partial download with wrong bytes, left by an earlier run, must not make the
// next one fail.
func TestPoisonedPart(t *testing.T) {
	h := hostile.New(t)
	load(t, h)
	r, _ := patient(t, t.TempDir())
	h.Break(hostile.Pack, hostile.Both(hostile.Flip(10), hostile.CutHalf, func(a *hostile.Answer) {
		if a.Status == http.StatusPartialContent {
			a.Status = http.StatusForbidden // the run ends with the first part
		}
	}))
	if err := kept.take(t, r, h.Name("1"), small); !errors.Is(err, ErrDenied) {
		t.Fatalf("error = %v, want ErrDenied", err)
	}
	h.Behave()
	again, _ := patient(t, t.TempDir())
	again.store = r.store
	if err := kept.take(t, again, h.Name("1"), small); err != nil {
		t.Errorf("after it has ended: %v", err)
	}
}

// 10 A Content-Type is what a registry says, and decides nothing.
func TestWrongMediaType(t *testing.T) {
	h := hostile.New(t)
	load(t, h)
	h.Break(hostile.Any, hostile.Retype("text/html"))
	r, _ := patient(t, t.TempDir())
	if err := direct.take(t, r, h.Name("1"), small); err != nil {
		t.Errorf("error = %v", err)
	}
}

// 9 A tag is asked for once.
func TestTagIsAskedForOnce(t *testing.T) {
	h := hostile.New(t)
	load(t, h)
	r, _ := patient(t, t.TempDir())
	if err := direct.take(t, r, h.Name("1"), small); err != nil {
		t.Fatal(err)
	}
	requests := h.Requests(hostile.Any)
	kinds := slices.Collect(func(yield func(string) bool) {
		for _, q := range requests {
			if !yield(q.Method + " " + string(q.Kind)) {
				return
			}
		}
	})
	want := []string{"HEAD tag", "GET referrers", "GET referrers tag", "GET signature tag", "GET signature payload", "GET manifest", "GET config"}
	if len(kinds) < len(want) || !slices.Equal(kinds[:len(want)], want) || len(h.Requests(hostile.Tag)) != 1 {
		t.Errorf("requests %v, want %v and then packs", kinds, want)
	}
}

// RAUC CVE-2020-25860: a bundle that is swapped after it was verified. Here the image
// that was verified says what may be written, whatever comes from the bundle then.
func TestBundleIsSwapped(t *testing.T) {
	dir, other := signed(t, small), signed(t, sample.Image{Seed: 16, MiB: 2})
	l, err := OpenLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := l.Resolve(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	img, err := ref.Describe(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var pack []byte
	for _, blob := range blobsOf(t, other) {
		if data, err := os.ReadFile(blob); err == nil && len(data) > len(pack) {
			pack = data
		}
	}
	for _, p := range img.Packs() {
		if err := os.WriteFile(filepath.Join(dir, "blobs", "sha256", p.Digest.Encoded()), pack, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	blobs, err := ref.Blobs(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = assemble.Segments(ctx, img, func(int) bool { return false }, blobs, func(i int, data []byte) error {
		if !bytes.Equal(data, small.Raw()[i*osimage.SegmentSize:][:len(data)]) {
			t.Errorf("segment %d of another image was handed on", i)
		}
		return nil
	})
	if !errors.Is(err, assemble.ErrCorrupt) {
		t.Errorf("error = %v, want ErrCorrupt", err)
	}
}

func blobsOf(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "blobs", "sha256", "*"))
	if err != nil || len(names) == 0 {
		t.Fatalf("blobs of %s: %v, %v", dir, names, err)
	}
	return names
}

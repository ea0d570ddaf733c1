package proof_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/disk"
	"github.com/kapernikov/osctl/pkg/fetch"
	"github.com/kapernikov/osctl/pkg/proof"
	"github.com/kapernikov/osctl/pkg/publish"
	"github.com/kapernikov/osctl/pkg/slot"
	"github.com/kapernikov/osctl/pkg/trust"
	"github.com/kapernikov/osctl/test/sample"
)

var ctx = context.Background()

// held is an image, its signatures and a slot that holds it.
type held struct {
	image    sample.Image
	record   proof.Record
	verifier *trust.Verifier
	path     string
}

func hold(t *testing.T) held {
	t.Helper()
	key, _, public := sample.Key(t)
	v, err := trust.New(trust.Policy{Keys: []trust.Key{{Name: "release", PEM: public}}})
	if err != nil {
		t.Fatal(err)
	}
	h := held{image: sample.Image{MiB: 4, Seed: 3}, verifier: v, path: filepath.Join(t.TempDir(), "slot")}
	h.record = describe(t, h.image, key)
	if err := os.WriteFile(h.path, append(h.image.Raw(), make([]byte, 1<<20)...), 0o600); err != nil {
		t.Fatal(err)
	}
	return h
}

func describe(t *testing.T, image sample.Image, key *publish.Key) proof.Record {
	t.Helper()
	layout, err := fetch.OpenLayout(image.Signed(t, key))
	if err != nil {
		t.Fatal(err)
	}
	defer layout.Close()
	ref, err := layout.Resolve(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	img, err := ref.Describe(ctx)
	if err != nil {
		t.Fatal(err)
	}
	sigs, err := ref.Signatures(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return proof.New(img, sigs, "registry.example.com/os:1.1")
}

func (h held) prove(t *testing.T, v *trust.Verifier) (proof.Verdict, error) {
	t.Helper()
	d, err := disk.OpenReadOnly(h.path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	return h.record.Prove(ctx, v, d, nil)
}

func (h held) alter(t *testing.T, off int64) {
	t.Helper()
	f, err := os.OpenFile(h.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("x"), off); err != nil {
		t.Fatal(err)
	}
}

func TestProve(t *testing.T) {
	h := hold(t)
	v, err := h.prove(t, h.verifier)
	if err != nil || !v.Whole() || v.Verified.KeyName() != "release" {
		t.Fatalf("Prove = %+v, %v", v, err)
	}
	h.alter(t, 1<<20)
	v, err = h.prove(t, h.verifier)
	want := []slot.Range{{First: 1 << 20, Last: 2<<20 - 1}}
	if diff := cmp.Diff(want, v.Damage); err != nil || v.Whole() || diff != "" {
		t.Errorf("damage (-want +got):\n%s%v", diff, err)
	}
	if (proof.Verdict{}).Whole() {
		t.Error("the zero verdict says that a slot is whole")
	}
}

// What was vouched for when it was installed is not enough: the key may have been
// withdrawn since.
func TestProveAsksThePresentPolicy(t *testing.T) {
	h := hold(t)
	_, _, other := sample.Key(t)
	v, err := trust.New(trust.Policy{Keys: []trust.Key{{Name: "new", PEM: other}}})
	if err != nil {
		t.Fatal(err)
	}
	verdict, err := h.prove(t, v)
	var refusal *trust.Refusal
	if !errors.As(err, &refusal) || refusal.Rule != trust.UnknownKey || verdict.Whole() {
		t.Errorf("Prove = %+v, %v; want a refusal of the key", verdict, err)
	}
	h.record = proof.New(h.record.Image(), nil, "")
	if _, err := h.prove(t, h.verifier); !errors.As(err, &refusal) || refusal.Rule != trust.Unsigned {
		t.Errorf("without signatures: %v", err)
	}
}

func TestStore(t *testing.T) {
	h := hold(t)
	dir := t.TempDir()
	s := proof.Open(dir)
	if _, err := s.Load(device.SlotA); !errors.Is(err, proof.ErrNone) {
		t.Errorf("Load of nothing: %v", err)
	}
	if err := s.Drop(device.SlotA); err != nil {
		t.Errorf("Drop of nothing: %v", err)
	}
	leftover := filepath.Join(dir, "slots", ".A.json.tmp-1")
	if err := os.MkdirAll(filepath.Dir(leftover), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(leftover, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Keep(device.SlotA, h.record); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(leftover); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what a cut left is still there: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, proof.FileName(device.SlotA))); err != nil {
		t.Error(err)
	}
	got, err := s.Load(device.SlotA)
	if err != nil || got.Image().Digest() != h.record.Image().Digest() || got.Reference() != h.record.Reference() {
		t.Fatalf("Load = %+v, %v", got, err)
	}
	if v, err := got.Verify(ctx, h.verifier); err != nil || v.KeyName() != "release" {
		t.Errorf("the kept signature: %v", err)
	}
	if _, err := s.Load(device.SlotB); !errors.Is(err, proof.ErrNone) {
		t.Errorf("the other slot: %v", err)
	}
	if err := s.Drop(device.SlotA); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load(device.SlotA); !errors.Is(err, proof.ErrNone) {
		t.Errorf("after Drop: %v", err)
	}
}

func TestStoreRefuses(t *testing.T) {
	s := proof.Open(t.TempDir())
	if err := s.Keep(device.SlotA, proof.Record{}); err == nil || !strings.Contains(err.Error(), "there is no image") {
		t.Errorf("Keep of nothing: %v", err)
	}
	for _, name := range []device.Slot{"", "C", "../A"} {
		if _, err := s.Load(name); err == nil || !strings.Contains(err.Error(), "the slots are A and B") {
			t.Errorf("Load(%q): %v", name, err)
		}
		if err := s.Keep(name, hold(t).record); err == nil || !strings.Contains(err.Error(), "the slots are A and B") {
			t.Errorf("Keep(%q): %v", name, err)
		}
	}
}

// A record can be altered by whoever writes to the data partition: nothing in it
// counts unless it hangs together, down from a digest that is signed.
func TestParseRefuses(t *testing.T) {
	good, err := hold(t).record.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := proof.Parse(good); err != nil {
		t.Fatal(err)
	}
	change := func(key string, value any) []byte {
		var m map[string]any
		if err := json.Unmarshal(good, &m); err != nil {
			t.Fatal(err)
		}
		m[key] = value
		data, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	for name, tt := range map[string]struct {
		data []byte
		want string
	}{
		"empty":          {nil, "unexpected end"},
		"cut":            {good[:len(good)/2], "unexpected end"},
		"another schema": {change("schema", 2), "schema 2, known is 1"},
		"another digest": {change("digest", "sha256:"+strings.Repeat("0", 64)), "asked for was sha256:000"},
		"no digest":      {change("digest", ""), "is no sha256 digest"},
		"another config": {change("config", []byte("{}")), "the config has digest"},
		"no manifest":    {change("manifest", nil), "the manifest has digest"},
	} {
		if _, err := proof.Parse(tt.data); !errors.Is(err, proof.ErrCorrupt) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want ErrCorrupt with %q", name, err, tt.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"schema":1,"digest":"sha256:00","manifest":"e30=","config":"e30=","signatures":[{"payload":"","signature":""}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := proof.Parse(data)
		if err != nil && !errors.Is(err, proof.ErrCorrupt) {
			t.Errorf("error of another class: %v", err)
		}
		if err != nil {
			return
		}
		again, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		back, err := proof.Parse(again)
		if err != nil || back.Image().Digest() != r.Image().Digest() || !bytes.Equal(back.Image().RawConfig(), r.Image().RawConfig()) {
			t.Errorf("a record does not come back: %v", err)
		}
	})
}

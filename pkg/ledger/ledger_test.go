package ledger

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/kapernikov/osctl/pkg/device"
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func fresh(t *testing.T, version string, epoch uint32) *Ledger {
	t.Helper()
	l, err := New(Entry{Digest: "sha256:a", Product: "p", Version: version, Epoch: epoch}, now)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestFloorRisesAtCommitOnly(t *testing.T) {
	l := fresh(t, "1.9", 2)
	l.Slots[device.SlotB] = &Entry{Digest: "sha256:b", Version: "1.10", Epoch: 3, State: Staged}
	if diff := cmp.Diff(Floor{"1.9", 2}, l.Floor); diff != "" {
		t.Errorf("floor after staging: %s", diff)
	}
	l.Fail(device.SlotB, "the gate", now)
	if diff := cmp.Diff(Floor{"1.9", 2}, l.Floor); diff != "" {
		t.Errorf("floor after a failure: %s", diff)
	}
	if err := l.Commit(device.SlotB, now); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Floor{"1.10", 3}, l.Floor); diff != "" {
		t.Errorf("floor after the commit: %s", diff)
	}
	l.Slots[device.SlotA] = &Entry{Version: "1.2", Epoch: 1}
	if err := l.Commit(device.SlotA, now); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Floor{"1.10", 3}, l.Floor); diff != "" {
		t.Errorf("floor after committing something older: %s", diff)
	}
	if err := l.Commit("C", now); err == nil {
		t.Error("committed a slot without an entry")
	}
}

func TestFailureIsRememberedUntilCommit(t *testing.T) {
	l := fresh(t, "1.0", 0)
	l.Slots[device.SlotB] = &Entry{Digest: "sha256:b", Version: "1.1"}
	l.Fail(device.SlotB, "first", now)
	l.Fail(device.SlotB, "second", now)
	if f := l.FailureOf("sha256:b"); f == nil || f.Reason != "second" || len(l.Failed) != 1 || l.Slots[device.SlotB].State != Failed {
		t.Errorf("failures %+v", l.Failed)
	}
	if err := l.Commit(device.SlotB, now); err != nil || l.FailureOf("sha256:b") != nil {
		t.Errorf("after the commit: %v, %v", l.FailureOf("sha256:b"), err)
	}
	for i := range 500 {
		l.Slots[device.SlotB] = &Entry{Digest: fmt.Sprint(i)}
		l.Fail(device.SlotB, "x", now)
	}
	if len(l.Failed) != keep || len(l.History) != keep || l.History[keep-1].Digest != "499" {
		t.Errorf("%d failures and %d events are kept", len(l.Failed), len(l.History))
	}
}

// What was committed here is known by its digest, until the history forgets it.
func TestCommittedOnce(t *testing.T) {
	l := fresh(t, "1.0", 1)
	l.Slots[device.SlotB] = &Entry{Digest: "sha256:b", Version: "1.1"}
	l.Fail(device.SlotB, "the gate", now)
	for digest, want := range map[string]bool{"sha256:a": true, "sha256:b": false, "": false} {
		if l.Committed(digest) != want {
			t.Errorf("%q was committed: %t", digest, !want)
		}
	}
}

// The moments that have passed are the signed ones of what was committed; a clock in
// 2099, and what is only staged, move nothing, and nothing moves it back.
func TestPassedRisesAtCommitOnly(t *testing.T) {
	l := fresh(t, "1.0", 1)
	made, wrong := now.Add(-24*time.Hour), now.AddDate(73, 0, 0)
	l.Slots[device.SlotB] = &Entry{Digest: "sha256:b", Version: "1.1", Created: made}
	l.Fail(device.SlotB, "the gate", wrong)
	if !l.Passed.IsZero() {
		t.Errorf("after a failure: %s", l.Passed)
	}
	for _, created := range []time.Time{made, made.Add(-time.Hour), {}} {
		l.Slots[device.SlotB] = &Entry{Digest: "sha256:b", Version: "1.1", Created: created}
		if err := l.Commit(device.SlotB, wrong); err != nil || !l.Passed.Equal(made) {
			t.Errorf("after a commit of %s: %s, %v; want %s", created, l.Passed, err, made)
		}
	}
}

// The newest statement of each channel stays, whatever comes after it.
func TestSee(t *testing.T) {
	l := fresh(t, "1.0", 1)
	newest := Sighting{Issued: now, Expires: now.Add(time.Hour), Digest: "sha256:b"}
	l.See("r/os:stable", newest)
	l.See("r/os:stable", Sighting{Issued: now.Add(-time.Second), Digest: "sha256:a"})
	l.See("r/os:stable", Sighting{Issued: now, Digest: "sha256:c"})
	l.See("r/os:beta", Sighting{Issued: now.Add(-time.Hour), Digest: "sha256:d"})
	if diff := cmp.Diff(newest, l.Channels["r/os:stable"]); diff != "" || len(l.Channels) != 2 || !l.Passed.Equal(now) {
		t.Errorf("channels %v, passed %s: %s", l.Channels, l.Passed, diff)
	}
}

func TestStore(t *testing.T) {
	s := Open(filepath.Join(t.TempDir(), "osctl"))
	if l, err := s.Load(); err != nil || len(l.Slots) != 0 {
		t.Errorf("a missing ledger: %+v, %v", l, err)
	}
	if err := s.Update(func(l *Ledger) error { *l = *fresh(t, "1.0", 1); return nil }); err != nil {
		t.Fatal(err)
	}
	l, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(fresh(t, "1.0", 1), l); diff != "" {
		t.Errorf("after a round trip: %s", diff)
	}
	stop := errors.New("stop")
	if err := s.Update(func(l *Ledger) error { l.Floor.Epoch = 9; return stop }); !errors.Is(err, stop) {
		t.Errorf("error = %v", err)
	}
	if l, err := s.Load(); err != nil || l.Floor.Epoch != 1 {
		t.Errorf("a change that failed was kept: %+v, %v", l, err)
	}
}

func TestCorruptLedgerIsSetAside(t *testing.T) {
	for want, text := range map[string]string{
		"unexpected end": `{"schema": 1`,
		"schema 7":       `{"schema": 7}`,
		"floor":          `{"schema": 1, "floor": {"version": "newest"}}`,
		`slot "C"`:       `{"schema": 1, "slots": {"C": {}}}`,
		`slot "A"`:       `{"schema": 1, "slots": {"A": null}}`,
		"invalid":        "\x00\x00\x00",
	} {
		s := Open(t.TempDir())
		if err := os.WriteFile(s.path(), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := s.Load()
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), want) || l == nil {
			t.Errorf("Load = %v, %v; want ErrCorrupt with %q", l, err, want)
		}
		if err := s.Update(func(l *Ledger) error { l.Floor.Epoch = 4; return nil }); err != nil {
			t.Errorf("Update: %v", err)
		}
		if old, err := os.ReadFile(s.path() + ".corrupt"); err != nil || string(old) != text {
			t.Errorf("the corrupt file: %q, %v", old, err)
		}
		if l, err := s.Load(); err != nil || l.Floor.Epoch != 4 {
			t.Errorf("the new one: %+v, %v", l, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"schema":1,"slots":{"A":{"digest":"sha256:a","version":"1"}},"floor":{"version":"1","epoch":1}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := Parse(data)
		if err != nil {
			return
		}
		out, err := l.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(out); err != nil {
			t.Errorf("does not read what it wrote: %v", err)
		}
	})
}

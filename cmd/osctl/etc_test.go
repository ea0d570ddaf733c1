package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/etc"
)

// TestPristineEtcIsCloned: on the pristine rung a new system gets the /etc that runs,
// not the one that the slot did not come up with; the operator and the history learn it.
func TestPristineEtcIsCloned(t *testing.T) {
	p := plain{dir: t.TempDir(), containerd: "/unused", systemd: "/unused", namespace: "osctl"}
	if err := p.create(nil); err != nil {
		t.Fatal(err)
	}
	memory := p.path("run/etc/upper/machine-id")
	if err := os.MkdirAll(filepath.Dir(memory), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(memory, []byte("0123"), 0o600); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	m, err := (&machineFlags{p.config()}).open(streams{err: &said})
	if err != nil {
		t.Fatal(err)
	}
	has := func(name string) bool {
		_, err := os.Stat(p.path("data/etc/B/upper/" + name))
		return err == nil
	}
	if err := m.cloneEtc(t.Context(), device.SlotA, device.SlotB); err != nil || !has("hostname") || has("machine-id") {
		t.Errorf("on a good boot: %v, hostname %t, machine-id %t", err, has("hostname"), has("machine-id"))
	}
	if said.Len() > 0 {
		t.Errorf("said %q", &said)
	}
	m.booted.Kind = etc.PristineBoot
	if err := m.cloneEtc(t.Context(), device.SlotA, device.SlotB); err != nil || has("hostname") || !has("machine-id") {
		t.Errorf("on the pristine rung: %v, hostname %t, machine-id %t", err, has("hostname"), has("machine-id"))
	}
	if want := "the new system starts with the pristine /etc that runs"; !strings.Contains(said.String(), want) {
		t.Errorf("said %q, want %q in it", &said, want)
	}
	l, err := m.ledger.Load()
	if err != nil {
		t.Fatal(err)
	}
	last := l.History[len(l.History)-1]
	if last.Kind != "reset" || last.Slot != device.SlotB || !strings.Contains(last.Reason, "pristine") {
		t.Errorf("the last event is %+v", last)
	}
	if err := os.RemoveAll(p.path("run/etc")); err != nil {
		t.Fatal(err)
	}
	var storage storageError
	if err := m.cloneEtc(t.Context(), device.SlotA, device.SlotB); !errors.As(err, &storage) || !has("machine-id") {
		t.Errorf("without an /etc in memory: %v", err)
	}
}

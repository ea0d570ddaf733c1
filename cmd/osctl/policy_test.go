package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/ledger"
	"github.com/kapernikov/osctl/pkg/publish"
)

// Each shipped policy is accepted once the key files that it asks for are there,
// and not before.
func TestShippedPolicies(t *testing.T) {
	names, err := filepath.Glob("../../policy/*.yaml")
	if err != nil || len(names) < 4 {
		t.Fatalf("found the policies %q, %v", names, err)
	}
	_, public, err := publish.GenerateKeyPair(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		t.Run(filepath.Base(name), func(t *testing.T) {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			copied := filepath.Join(t.TempDir(), "policy.yaml")
			if err := os.WriteFile(copied, text, 0o600); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(text), "\n    file:") {
				if _, err := loadPolicy(copied); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("without its key: %v", err)
				}
				keys := filepath.Join(filepath.Dir(copied), "keys")
				if err := errors.Join(os.Mkdir(keys, 0o700), os.WriteFile(filepath.Join(keys, "release.pub"), public, 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			if strings.Contains(string(text), "\n    trustedRoot:") {
				if _, err := loadPolicy(copied); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "identities[0].trustedRoot") {
					t.Errorf("without its trusted root: %v", err)
				}
				if err := os.CopyFS(filepath.Join(filepath.Dir(copied), "roots"), os.DirFS("../../policy/roots")); err != nil {
					t.Fatal(err)
				}
			}
			p, err := loadPolicy(copied)
			if err != nil {
				t.Fatal(err)
			}
			if doubts := p.Under(circumstances("")).Doubts(); len(doubts) > 0 {
				t.Errorf("doubts: %v", doubts)
			}
		})
	}
}

// The present is never before what was committed here, whatever the clock says;
// what is only staged, or nobody's, moves nothing.
func TestThePresent(t *testing.T) {
	p := plain{dir: t.TempDir()}
	if err := p.create(nil); err != nil {
		t.Fatal(err)
	}
	m, err := (&machineFlags{config: p.config()}).open(streams{err: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	ahead := time.Now().AddDate(20, 0, 0).UTC().Truncate(time.Second)
	err = m.ledger.Update(func(l *ledger.Ledger) error {
		l.Slots[device.SlotA] = &ledger.Entry{Digest: "sha256:a", Product: "gateway", Version: "1.0", State: ledger.Committed, Created: ahead}
		l.Slots[device.SlotB] = &ledger.Entry{Digest: "sha256:b", Product: "gateway", Version: "2.0", State: ledger.Staged, Created: ahead.Add(time.Hour)}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if c := circumstances("", m.passed()...); !c.Now.Equal(ahead) || c.Repository != "" {
		t.Errorf("circumstances %+v, want %s", c, ahead)
	}
	// It stays when the slots hold others, and when the ledger is lost without them.
	if err := m.ledger.Update(func(l *ledger.Ledger) error { l.Slots, l.Passed = nil, ahead; return nil }); err != nil {
		t.Fatal(err)
	}
	if c := circumstances("", m.passed()...); !c.Now.Equal(ahead) {
		t.Errorf("with empty slots: %+v, want %s", c, ahead)
	}
	before := time.Now()
	if c := circumstances("h.example.com:5000/os/a:1.0@sha256:"+strings.Repeat("0", 64), time.Unix(0, 0)); c.Now.Before(before) || c.Repository != "h.example.com:5000/os/a" {
		t.Errorf("circumstances %+v", c)
	}
	if c := circumstances("some/folder"); c.Repository != "" {
		t.Errorf("a folder is taken for the repository %q", c.Repository)
	}
}

// A channel is remembered by one name, however its host is written.
func TestChannelsHaveOneName(t *testing.T) {
	_, public, err := publish.GenerateKeyPair(nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	name := filepath.Join(dir, "policy.yaml")
	text := "apiVersion: osctl.kapernikov.com/v1\nkind: Policy\nkeys: [{name: release, file: release.pub}]\n" +
		"channels: [{repository: registry.example.com/os, keys: [release]}]\n"
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "release.pub"), public, 0o600), os.WriteFile(name, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
	p, err := loadPolicy(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, reference := range []string{"registry.example.com/os:stable", "Registry.EXAMPLE.com/os:stable"} {
		guard, err := p.channel(reference, "gateway")
		if err != nil || guard == nil || guard.Key() != "registry.example.com/os:stable" {
			t.Errorf("%s: %+v, %v", reference, guard, err)
		}
	}
	// Others have none; that their tags are not followed further is for the rules to say.
	for _, reference := range []string{"registry.example.com.evil/os:stable", "registry.example.com/os/x:stable", "registry.example.com:443/os:stable"} {
		if guard, err := p.channel(reference, "gateway"); err != nil || guard != nil {
			t.Errorf("%s: %+v, %v", reference, guard, err)
		}
	}
}

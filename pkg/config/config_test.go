package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const head = "apiVersion: osctl.kapernikov.com/v1\nkind: Config\n"

func file(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestLoad(t *testing.T) {
	name := file(t, head+"product: gateway\ntries: 5\nhealth:\n  deadline: 90s\n  requiredUnits: [ssh.service]\nslots: {A: /a, B: /b}\n")
	c, err := Load(filepath.Join(t.TempDir(), "none"), name)
	if err != nil {
		t.Fatal(err)
	}
	if c.Product != "gateway" || c.Tries != 5 || c.Health.Deadline != Duration(90*time.Second) || c.Slots.B != "/b" || c.Env[1] != "/efi/osctl/b/grubenv" {
		t.Errorf("Load = %+v", c)
	}
	if c, err := Load(filepath.Join(t.TempDir(), "none")); err != nil || c.StateDir != "/data/osctl" {
		t.Errorf("without a file: %+v, %v", c, err)
	}
}

func TestLoadRefuses(t *testing.T) {
	for want, text := range map[string]string{
		":3:1: unknown key \"prodct\"; allowed here: apiVersion, bootedSlot, containerd,": head + "prodct: gateway\n",
		":4:3: unknown key \"dedline\"; allowed here: deadline, requiredUnits, soak":      head + "health:\n  dedline: 5m\n",
		":3:15: unknown key \"C\"; allowed here: A, B, rescue":                            head + "slots: {A: a, C: b}\n",
		":3:8: tries: expected is a whole number":                                         head + "tries: many\n",
		":3:9: health: expected is a mapping; allowed here":                               head + "health: good\n",
		":3:6: env: expected is a list":                                                   head + "env: /a\n",
		":3:7: env[0]: expected is text":                                                  head + "env: [[/a], /b]\n",
		":4:13: health.deadline: expected is a duration":                                  head + "health:\n  deadline: [5m]\n",
		"4:13: health.deadline: \"soon\" is no duration; write for example 30s":           head + "health:\n  deadline: soon\n",
		":3:8: tries: 0; allowed are 1 to 9":                                              head + "tries: 0\n",
		":4:12: containerd.address: \"run\"":                                              head + "containerd:\n  address: run\n",
		"a second document begins here":                                                   head + "---\nproduct: x\n",
		"expected are two copies":                                                         head + "env: [/a]\n",
		"bootedSlot: \"C\"":                                                               head + "bootedSlot: C\n",
		"stateDir: \"here\"":                                                              head + "stateDir: here\n",
		"kind \"Policy\"":                                                                 "apiVersion: osctl.kapernikov.com/v1\nkind: Policy\n",
		"apiVersion \"v2\"":                                                               "apiVersion: v2\nkind: Config\n",
		":1:1: ":                                                                          "{",
	} {
		name := file(t, text)
		_, err := Load(name)
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), name) {
			t.Errorf("error = %v\nwant ErrInvalid with %q and the file", err, want)
		}
	}
}

const policyHead = "apiVersion: osctl.kapernikov.com/v1\nkind: Policy\n"

func TestLoadPolicy(t *testing.T) {
	name := file(t, policyHead+"keys:\n  - name: one\n    pem: |\n      PEM\n  - name: two\n    file: two.pub\nrescue:\n  - name: three\n    file: two.pub\n")
	if err := os.WriteFile(filepath.Join(filepath.Dir(name), "two.pub"), []byte("OTHER"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := LoadPolicy(name)
	if err != nil || len(p.Keys) != 2 || p.Keys[0].PEM != "PEM\n" || p.Keys[1].PEM != "OTHER" || len(p.Rescue) != 1 || p.Rescue[0].PEM != "OTHER" {
		t.Errorf("LoadPolicy = %+v, %v", p, err)
	}
}

func TestLoadPolicyRefuses(t *testing.T) {
	if _, err := LoadPolicy("/nonexistent"); !errors.Is(err, ErrNoPolicy) {
		t.Errorf("without a file: %v", err)
	}
	for want, text := range map[string]string{
		"the list is empty":       policyHead,
		"keys[0]: it has no name": policyHead + "keys: [{pem: x}]\n",
		"either file or pem":      policyHead + "keys: [{name: x}]\n",
		"rescue[0]: key x: ":      policyHead + "keys: [{name: x, pem: y}]\nrescue: [{name: x, file: gone.pub}]\n",
		"no such file":            policyHead + "keys: [{name: x, file: gone.pub}]\n",
		":3:1: unknown key \"allowUnsigned\"; allowed here: apiVersion, keys, kind, rescue": policyHead + "allowUnsigned: true\nkeys: [{name: x, pem: y}]\n",
		"kind \"\"": "apiVersion: osctl.kapernikov.com/v1\n",
	} {
		if _, err := LoadPolicy(file(t, text)); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("error = %v, want ErrInvalid with %q", err, want)
		}
	}
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte(head + "product: x\nhealth: {deadline: 5m}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := Defaults()
		if _, err := decode("f", data, &c, "Config"); err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("error of another class: %v", err)
		}
	})
}

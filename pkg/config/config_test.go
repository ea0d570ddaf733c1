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
		"[3:1] unknown field \"prodct\"":  head + "prodct: gateway\n",
		"[4:3] unknown field \"dedline\"": head + "health:\n  dedline: 5m\n",
		"[3:8]":                           head + "tries: many\n",
		"write for example 30s or 5m":     head + "health:\n  deadline: soon\n",
		"tries: 0; allowed are 1 to 9":    head + "tries: 0\n",
		"expected are two copies":         head + "env: [/a]\n",
		"bootedSlot: \"C\"":               head + "bootedSlot: C\n",
		"stateDir: \"here\"":              head + "stateDir: here\n",
		"kind \"Policy\"":                 "apiVersion: osctl.kapernikov.com/v1\nkind: Policy\n",
		"apiVersion \"v2\"":               "apiVersion: v2\nkind: Config\n",
		"[1:":                             "{",
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
	name := file(t, policyHead+"keys:\n  - name: one\n    pem: |\n      PEM\n  - name: two\n    file: two.pub\n")
	if err := os.WriteFile(filepath.Join(filepath.Dir(name), "two.pub"), []byte("OTHER"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := LoadPolicy(name)
	if err != nil || len(p.Keys) != 2 || p.Keys[0].PEM != "PEM\n" || p.Keys[1].PEM != "OTHER" {
		t.Errorf("LoadPolicy = %+v, %v", p, err)
	}
}

func TestLoadPolicyRefuses(t *testing.T) {
	if _, err := LoadPolicy("/nonexistent"); !errors.Is(err, ErrNoPolicy) {
		t.Errorf("without a file: %v", err)
	}
	for want, text := range map[string]string{
		"the list is empty":               policyHead,
		"keys[0]: it has no name":         policyHead + "keys: [{pem: x}]\n",
		"either file or pem":              policyHead + "keys: [{name: x}]\n",
		"no such file":                    policyHead + "keys: [{name: x, file: gone.pub}]\n",
		"unknown field \"allowUnsigned\"": policyHead + "allowUnsigned: true\nkeys: [{name: x, pem: y}]\n",
		"kind \"\"":                       "apiVersion: osctl.kapernikov.com/v1\n",
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
		if err := decode("f", data, &c, "Config"); err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("error of another class: %v", err)
		}
	})
}

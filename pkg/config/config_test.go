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
	name := file(t, head+"product: gateway\ntries: 5\nhealth: /h.yaml\nsystemd:\n  address: /s\nslots: {A: /a, B: /b}\n")
	c, err := Load(filepath.Join(t.TempDir(), "none"), name)
	if err != nil {
		t.Fatal(err)
	}
	if c.Product != "gateway" || c.Tries != 5 || c.Health != "/h.yaml" || c.Systemd.Address != "/s" || c.Slots.B != "/b" || c.Env[1] != "/efi/osctl/b/grubenv" {
		t.Errorf("Load = %+v", c)
	}
	if c, err := Load(filepath.Join(t.TempDir(), "none")); err != nil || c.StateDir != "/data/osctl" {
		t.Errorf("without a file: %+v, %v", c, err)
	}
}

func TestLoadRefuses(t *testing.T) {
	for want, text := range map[string]string{
		":3:1: unknown key \"prodct\"; allowed here: apiVersion, bootedSlot, containerd,": head + "prodct: gateway\n",
		":3:15: unknown key \"C\"; allowed here: A, B, rescue":                            head + "slots: {A: a, C: b}\n",
		":3:8: tries: expected is a whole number":                                         head + "tries: many\n",
		":3:6: env: expected is a list":                                                   head + "env: /a\n",
		":3:7: env[0]: expected is text":                                                  head + "env: [[/a], /b]\n",
		":3:9: health: expected is text":                                                  head + "health: {deadline: 5m}\n",
		":3:9: health: \"h.yaml\"; expected is an absolute path":                          head + "health: h.yaml\n",
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

const (
	keysLine  = "keys: [{name: x, pem: y}]\n"
	ruleLines = "rules:\n  - name: r\n"
)

func TestLoadPolicyRules(t *testing.T) {
	p, err := LoadPolicy(file(t, policyHead+"keys: [{name: x, pem: y, notBefore: 2026-01-01T00:00:00Z, notAfter: 2027-01-01T01:00:00+01:00}]\n"+
		ruleLines+"    repository: h/os\n    product: gateway\n    keys: [x]\n    threshold: 1\n"+
		"revoked:\n  keys: [{name: z, pem: w}]\n  digests: [\"sha256:12\"]\n"))
	if err != nil {
		t.Fatal(err)
	}
	k, r := p.Keys[0], p.Rules[0]
	if time.Time(k.NotBefore).Year() != 2026 || time.Time(k.NotAfter).UTC().Year() != 2027 || r.Repository != "h/os" || r.Product != "gateway" ||
		r.Keys[0] != "x" || r.Threshold != 1 || p.Revoked.Keys[0].Name != "z" || p.Revoked.Digests[0] != "sha256:12" {
		t.Errorf("LoadPolicy = %+v", p.Policy)
	}
	if p.Line("rules[0].threshold") != 9 || p.Line("rules[1]") != 0 || !strings.Contains(p.Blame("rules[0].keys[0]", errors.New("bad")).Error(), ":8:12: bad") {
		t.Errorf("lines %d and %d, %v", p.Line("rules[0].threshold"), p.Line("rules[1]"), p.Blame("rules[0].keys[0]", errors.New("bad")))
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
		":3:1: unknown key \"allowUnsigned\"; allowed here: allowDowngrade, apiVersion, channels, identities, keys, kind, rescue, revoked, rules": policyHead + "allowUnsigned: true\nkeys: [{name: x, pem: y}]\n",
		"kind \"\"":                                             "apiVersion: osctl.kapernikov.com/v1\n",
		":4:8: rules: the list is empty, so":                    policyHead + keysLine + "rules:\n",
		":4:8: rules: the list is empty":                        policyHead + keysLine + "rules: []\n",
		":6:17: rules[0].repository: it is empty":               policyHead + keysLine + ruleLines + "    repository:\n",
		":6:14: rules[0].product: it is empty":                  policyHead + keysLine + ruleLines + "    product: \"\"\n",
		":6:16: rules[0].threshold: 0; expected is the number":  policyHead + keysLine + ruleLines + "    threshold: 0\n",
		"rules[0].threshold: 0; expected is":                    policyHead + keysLine + ruleLines + "    threshold:\n",
		":6:16: rules[0].threshold: expected is a whole number": policyHead + keysLine + ruleLines + "    threshold: two\n",
		":6:5: unknown key \"tag\"; allowed here: annotations, attestations, identities, keys, name, product, repository, threshold": policyHead + keysLine + ruleLines + "    tag: x\n",
		":3:36: keys[0].notAfter: \"2027\" is no time; write":                                                                        policyHead + "keys: [{name: x, pem: y, notAfter: 2027}]\n",
		"keys[0].notAfter: expected is a time such as":                                                                               policyHead + "keys: [{name: x, pem: y, notAfter: [2027]}]\n",
		"keys[0].notBefore: it has no value":                                                                                         policyHead + "keys: [{name: x, pem: y, notBefore: }]\n",
		":5:8: revoked.keys: it has no value; leave it out":                                                                          policyHead + keysLine + "revoked:\n  keys:\n  digests: []\n",
		":5:12: revoked.digests: it has no value; leave it out":                                                                      policyHead + keysLine + "revoked:\n  digests:\n",
		":4:10: revoked: it has no value; leave it out":                                                                              policyHead + keysLine + "revoked:\n",
		"revoked.keys[0]: key z: expected is either":                                                                                 policyHead + keysLine + "revoked: {keys: [{name: z}]}\n",
	} {
		if _, err := LoadPolicy(file(t, text)); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("error = %v, want ErrInvalid with %q", err, want)
		}
	}
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte(head + "product: x\nsystemd: {address: /s}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := Defaults()
		if _, err := decode("f", data, &c, "Config"); err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("error of another class: %v", err)
		}
	})
}

func FuzzPolicy(f *testing.F) {
	f.Add([]byte(policyHead + keysLine + ruleLines + "    keys: [x]\n    threshold: 1\nrevoked: {digests: [a]}\n"))
	f.Add([]byte(policyHead + "keys: [{name: x, pem: y, notAfter: 2027-01-01T00:00:00Z}]\nrules:\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p := PolicyFile{Path: "f"}
		var err error
		if p.document, err = decode("f", data, &p.Policy, "Policy"); err == nil {
			err = p.check()
		}
		if err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("error of another class: %v", err)
		}
	})
}

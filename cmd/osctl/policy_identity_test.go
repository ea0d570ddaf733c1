package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/kapernikov/osctl/pkg/fetch"
	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/test/authority"
	"github.com/kapernikov/osctl/test/sample"
)

const releaseWorkflow = "https://git.example.com/os/release.yml@refs/heads/main"

// attested is a layout signed by a workflow of the authority, with provenance and a
// list of contents beside it.
func attested(t *testing.T, a *authority.Authority) string {
	t.Helper()
	dir := sample.Image{MiB: 2}.Layout(t)
	l, err := fetch.OpenLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := l.Resolve(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	s := a.Certify(releaseWorkflow, authority.Issuer, time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC))
	for predicate, said := range map[string]string{
		osimage.PredicateSignature:  "",
		osimage.PredicateProvenance: `{"runDetails":{"builder":{"id":"https://builder.example.com"}}}`,
		osimage.PredicateSPDX:       `{"spdxVersion":"SPDX-2.3","packages":[{},{}]}`,
	} {
		authority.Attach(t, dir, predicate, s.Bundle(authority.Statement(predicate, ref.Digest().String(), said), authority.Choice{}))
	}
	return dir
}

// osctl runs the program and returns its exit code and what it printed.
func osctl(t *testing.T, args ...string) (code int, out string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code = run(context.Background(), append([]string{"osctl"}, args...), strings.NewReader(""), &stdout, &stderr)
	return code, stdout.String() + stderr.String()
}

func TestExplainIdentities(t *testing.T) {
	a := authority.New(t)
	dir, home := attested(t, a), t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(home, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("root.json", string(a.TrustedRoot()))
	policy := func(name, subject, builder string) string {
		return write(name, `apiVersion: osctl.kapernikov.com/v1
kind: Policy
identities:
  - name: workflow
    subject: `+subject+`
    issuerPattern: https://issuer\.example\.com
    trustedRoot: root.json
rules:
  - name: production
    identities: [workflow]
    attestations:
      - type: provenance
        builder: `+builder+`
      - type: sbom
        format: spdx
`)
	}
	good := policy("good.yaml", releaseWorkflow, "https://builder.example.com")
	other := policy("other.yaml", "mallory@example.com", "https://builder.example.com")
	builder := policy("builder.yaml", releaseWorkflow, "https://other.example.com")
	for _, tt := range []struct {
		args []string
		code int
		want []string
	}{
		{[]string{"policy", "check", good}, 0, []string{
			`(?m)^  rule +production +every image +a signature by workflow, and provenance by the builder https://builder.example.com signed by workflow, and a list of contents \(SPDX\) signed by workflow$`,
			`(?m)^  identity +workflow +https://git.* +from /https://issuer\\.example\\.com/$`,
		}},
		{[]string{"policy", "explain", dir, "--policy", good}, 0, []string{
			`(?m)^  identity +workflow \(https://git.*\): signed$`, `(?m)^  found +one by workflow, who is https://git.*, provenance by the builder https://builder`, `(?m)^ACCEPTED$`,
		}},
		{[]string{"policy", "explain", dir, "--policy", good, "--json"}, 0, []string{`"signed": true`, `"trustedRoot": "sha256:[0-9a-f]{64}"`, `"accepted": true`}},
		{[]string{"policy", "explain", dir, "--policy", other}, 20, []string{`(?m)^  identity +workflow \(mallory.*\): did not sign$`, `REFUSED \(unknown-identity\)`, releaseWorkflow}},
		{[]string{"policy", "explain", dir, "--policy", builder}, 20, []string{`REFUSED \(attestation\): wanted provenance by the builder https://other`}},
		{[]string{"inspect", dir}, 0, []string{
			`(?m)^  signatures +1 \(not verified\)$`, `(?m)^  provenance +https://slsa.dev/provenance/v1, built by https://builder.example.com \(not verified\)$`,
			`(?m)^  sbom +https://spdx.dev/Document, 2 entries \(not verified\)$`,
		}},
		{[]string{"inspect", dir, "--json"}, 0, []string{`"kind": "sbom"`, `"builder": "https://builder.example.com"`, `"certified": true`}},
	} {
		code, out := osctl(t, tt.args...)
		if code != tt.code {
			t.Errorf("osctl %s: exit %d, want %d\n%s", tt.args, code, tt.code, out)
		}
		for _, want := range tt.want {
			if !regexp.MustCompile(want).MatchString(out) {
				t.Errorf("osctl %s does not say %s:\n%s", tt.args, want, out)
			}
		}
	}
	// What is wrong with an identity is said with its place.
	if err := os.WriteFile(filepath.Join(home, "root.json"), a.TrustedRoot("tlogs", "timestampAuthorities"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out := osctl(t, "policy", "check", good); code != 20 || !strings.Contains(out, "good.yaml:7:18: ") || !strings.Contains(out, "names no transparency log") {
		t.Errorf("exit %d: %s", code, out)
	}
}

package main

import (
	"os"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/kapernikov/osctl/test/authority"
)

// authority makes certificates of release.key and of stranger.key, and what proves them:
// the chain of the authority, a trusted root without a log and a policy with it. It sets
// TSA to the URL of a timestamp service, and WEB to a server that has none.
func startAuthority(ts *testscript.TestScript, neg bool, _ []string) {
	s := of(ts)
	a, now := authority.NewAt(s, time.Now().AddDate(-1, 0, 0)), time.Now()
	services := a.Serve()
	ts.Setenv("TSA", services.Timestamps)
	ts.Setenv("WEB", services.URL)
	of := func(key keyPair, who, by string, at time.Time) []byte {
		return a.CertificateOf(key.public, who, by, at)
	}
	for name, text := range map[string][]byte{
		"release.pem":  of(s.release, releaseWorkflow, authority.Issuer, now.Add(-time.Minute)),
		"stranger.pem": of(s.stranger, releaseWorkflow, authority.Issuer, now.Add(-time.Minute)),
		"expired.pem":  of(s.release, releaseWorkflow, authority.Issuer, now.Add(-time.Hour)),
		"future.pem":   of(s.release, releaseWorkflow, authority.Issuer, now.Add(time.Hour)),
		"chain.pem":    a.CAs(), "timestamps.pem": a.Timestampers(), "root.json": a.TrustedRoot("tlogs"),
		"who.yaml": []byte(`apiVersion: osctl.kapernikov.com/v1
kind: Policy
identities:
  - name: workflow
    subject: ` + releaseWorkflow + `
    issuer: ` + authority.Issuer + `
    trustedRoot: root.json
rules:
  - name: production
    identities: [workflow]
`),
	} {
		ts.Check(os.WriteFile(ts.MkAbs(name), text, 0o600))
	}
}

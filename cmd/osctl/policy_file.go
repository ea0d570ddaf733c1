package main

import (
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/kapernikov/osctl/pkg/channel"
	"github.com/kapernikov/osctl/pkg/clock"
	"github.com/kapernikov/osctl/pkg/config"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/fetch"
	"github.com/kapernikov/osctl/pkg/ledger"
	"github.com/kapernikov/osctl/pkg/trust"
)

// policyFile is a policy that was found usable, with the file that it is from.
type policyFile struct {
	config.PolicyFile
	*trust.Verifier
}

// loadPolicy reads the first of the files that exists. What is wrong with it is
// said with line and column.
func loadPolicy(files ...string) (policyFile, error) {
	f, err := config.LoadPolicy(files...)
	if err != nil {
		return policyFile{}, policyError{err}
	}
	p := trust.Policy{Keys: trustKeys(f.Keys), Revoked: revoked(f)}
	for i, who := range f.Identities {
		p.Identities = append(p.Identities, trust.Identity{
			Name: who.Name, Subject: who.Subject, SubjectPattern: who.SubjectPattern,
			Issuer: who.Issuer, IssuerPattern: who.IssuerPattern, TrustedRoot: f.Roots[i],
		})
	}
	for _, r := range f.Rules {
		p.Rules = append(p.Rules, trustRule(r))
	}
	v, err := usable(f, p, "")
	if err != nil {
		return policyFile{f, v}, err
	}
	loaded := policyFile{f, v}
	for i := range f.Channels {
		if _, err := loaded.channelVerifier(i); err != nil {
			return policyFile{}, err
		}
	}
	return loaded, nil
}

// channelVerifier judges statements by an entry of the list of channels.
func (f policyFile) channelVerifier(i int) (*trust.Verifier, error) {
	c := f.Channels[i]
	p := trust.Policy{Keys: trustKeys(f.PolicyFile.Keys), Revoked: revoked(f.PolicyFile)}
	p.Rules = []trust.PolicyRule{{Name: "channel", Repository: c.Repository, Keys: c.Keys, Threshold: c.Threshold}}
	v, err := trust.New(p)
	if at := (*trust.PolicyError)(nil); errors.As(err, &at) {
		at.Field = fmt.Sprintf("channels[%d]", i) + strings.TrimPrefix(at.Field, "rules[0]")
		err = f.Blame(at.Field, err)
	}
	if err != nil {
		return nil, policyError{err}
	}
	return v, nil
}

// channel is what the policy asks of a reference by tag; nil if nothing.
func (f policyFile) channel(reference, product string, passed ...time.Time) (*channel.Guard, error) {
	tag := tagOf(reference)
	if tag == "" {
		return nil, nil
	}
	// The machine remembers statements by this name, and a host has many spellings.
	host, path, _ := strings.Cut(repositoryOf(reference), "/")
	repository := strings.ToLower(host) + "/" + path
	for i, c := range f.Channels {
		if !trust.MatchRepository(c.Repository, repository) {
			continue
		}
		v, err := f.channelVerifier(i)
		if err != nil {
			return nil, err
		}
		return &channel.Guard{
			Repository: repository, Channel: tag, Product: product, MaxAge: time.Duration(c.MaxAge),
			Verifier: v.Under(circumstances(reference, passed...)), Now: present(passed...).Now,
		}, nil
	}
	return nil, nil
}

// rescue is the policy's own rule for the rescue partition. What is revoked is
// revoked there too.
func (f policyFile) rescue() (*trust.Verifier, error) {
	if len(f.Rescue) == 0 {
		return nil, policyError{errors.New("the policy names no key under rescue, so nothing may be written to the rescue partition")}
	}
	return usable(f.PolicyFile, trust.Policy{Keys: trustKeys(f.Rescue), Revoked: revoked(f.PolicyFile)}, "rescue")
}

// usable checks a policy. list is the name in the file of what the policy calls
// keys, if it is another one.
func usable(f config.PolicyFile, p trust.Policy, list string) (*trust.Verifier, error) {
	v, err := trust.New(p)
	if err == nil {
		return v, nil
	}
	if at := (*trust.PolicyError)(nil); errors.As(err, &at) {
		if rest, ok := strings.CutPrefix(at.Field, "keys"); ok && list != "" {
			at.Field = list + rest
		}
		err = f.Blame(at.Field, err)
	}
	return nil, policyError{err}
}

func trustRule(r config.Rule) trust.PolicyRule {
	rule := trust.PolicyRule{
		Name: r.Name, Repository: r.Repository, Product: r.Product, Keys: r.Keys, Identities: r.Identities,
		Threshold: r.Threshold, Annotations: r.Annotations,
	}
	for _, a := range r.Attestations {
		rule.Attestations = append(rule.Attestations, trust.PolicyAttestation(a))
	}
	return rule
}

func trustKeys(list []config.Key) []trust.Key {
	var keys []trust.Key
	for _, k := range list {
		keys = append(keys, trust.Key{Name: k.Name, PEM: []byte(k.PEM), NotBefore: time.Time(k.NotBefore), NotAfter: time.Time(k.NotAfter)})
	}
	return keys
}

func revoked(f config.PolicyFile) trust.Revoked {
	r := trust.Revoked{Keys: trustKeys(f.Revoked.Keys)}
	for _, d := range f.Revoked.Digests {
		r.Digests = append(r.Digests, digest.Digest(d))
	}
	return r
}

// circumstances are what the policy is asked about: the reference that the
// operator named, empty for a layout, and the present. passed are times that have
// certainly passed, so that a clock that runs behind them is not believed.
func circumstances(reference string, passed ...time.Time) trust.Circumstances {
	c := trust.Circumstances{Now: present(passed...).Now()}
	if fetch.CheckReference(reference) == nil {
		c.Repository = repositoryOf(reference)
	}
	return c
}

// present is the time, as far as this machine can know it.
func present(passed ...time.Time) clock.Clock { return clock.New(append(passed, builtAt())...) }

// builtAt is the time of the commit that osctl was built from; zero if the binary
// does not say.
func builtAt() time.Time {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return time.Time{}
	}
	for _, s := range info.Settings {
		if s.Key != "vcs.time" {
			continue
		}
		if t, err := time.Parse(time.RFC3339, s.Value); err == nil {
			return t
		}
	}
	return time.Time{}
}

// passed are moments that have certainly passed: what the ledger keeps of them, and
// the creation times, as signed, of the systems that were committed here, by the
// ledger and by the slots' own records. No clock of this machine takes part: one that
// once ran ahead must not expire keys for good.
func (m *machine) passed() []time.Time {
	l, _ := m.ledger.Load() //nolint:errcheck // whoever decides says that it is lost
	list := []time.Time{l.Passed}
	for _, name := range []device.Slot{device.SlotA, device.SlotB} {
		if e := l.Slot(name); e != nil && e.State == ledger.Committed {
			list = append(list, e.Created)
		}
	}
	for _, e := range m.committed(false) {
		list = append(list, e.Created)
	}
	return list
}

// clock is the machine's clock, which is never behind what has passed.
func (m *machine) clock() clock.Clock { return present(m.passed()...) }

// verifier is the policy of this machine, asked about what the reference named.
func (m *machine) verifier(reference string) (*trust.Verifier, error) {
	p, err := loadPolicy(m.policyFiles()...)
	if err != nil {
		return nil, err
	}
	return p.Under(circumstances(reference, m.passed()...)), nil
}

func (m *machine) policyFiles() []string {
	if m.config.Policy != "" {
		return []string{m.config.Policy}
	}
	return []string{machinePolicy, imagePolicy}
}

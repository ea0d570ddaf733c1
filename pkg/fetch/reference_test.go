package fetch

import (
	"errors"
	"net/url"
	"path"
	"strings"
	"testing"
)

// A repository has one spelling. The library under the resolver goes to another place
// with some of these than they seem to name, and a policy's rules are for places.
func TestReferences(t *testing.T) {
	sum := "sha256:" + strings.Repeat("a", 64)
	for _, name := range []string{
		"registry.example.com/os:1.2", "Registry.example.com:5000/a/b_c/d--e:v1_.-x", "localhost/os:1", "127.0.0.1:5000/os@" + sum,
		"[::1]:5000/os:1", "registry.example.com/os:1.2@" + sum, "h/a.b/c__d:1",
	} {
		if err := CheckReference(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{
		// Elsewhere than it says.
		"registry.example.com/os/../evil:1", "lab.example.com/x/../../registry.example.com/os:1", "registry.example.com/os/%2e%2e/evil:1",
		"registry.example.com/os%2f..%2fevil:1", "registry.example.com@evil.example.com/os:1", "user:word@registry.example.com/os:1",
		"registry.example.com/os:1#/x:2", "registry.example.com/os:1?/x:2", "registry.example.com/./os:1", "registry.example.com//os:1",
		// The same place in another way.
		"registry.example.com./os:1", "registry.example.com/o%73:1", "registry.example.com/os/:1", "registry.example.com/OS:1",
		"registry.example.com/os:%31", "/registry.example.com/os:1", " registry.example.com/os:1", "registry.example.com/os:1\n",
		// No tag, no digest, or none that there is.
		"registry.example.com/os", "registry.example.com/os:", "registry.example.com/os@", "registry.example.com/os:@" + sum,
		"registry.example.com/os:1@sha256:abc", "registry.example.com/os@sha512:" + strings.Repeat("a", 128), "registry.example.com/os@" + strings.ToUpper(sum),
		"registry.example.com/os:1:2", "registry.example.com/os:1/2", "registry.example.com/os:" + strings.Repeat("a", 129), "os:1", "http://registry.example.com/os:1",
		"registry.example.com:/os:1", "registry.example.com:x/os:1", "réγistry.example.com/os:1",
	} {
		if err := CheckReference(name); !errors.Is(err, ErrReference) {
			t.Errorf("%q: %v, want ErrReference", name, err)
		}
	}
}

// FuzzReference holds that what is accepted is asked for as it is written.
func FuzzReference(f *testing.F) {
	f.Add("registry.example.com:5000/os/a:1.2@sha256:" + strings.Repeat("0", 64))
	f.Add("registry.example.com/os/%2e%2e/evil:1")
	f.Add("a@b/c:d")
	f.Fuzz(func(t *testing.T, name string) {
		spec, err := parseReference(name)
		if err != nil {
			if !errors.Is(err, ErrReference) {
				t.Errorf("%q: an error of another class: %v", name, err)
			}
			return
		}
		if !strings.HasPrefix(name, spec.Locator) || path.Clean(spec.Locator) != spec.Locator || strings.Trim(name[len(spec.Locator):len(spec.Locator)+1], ":@") != "" {
			t.Errorf("%q leads to %q", name, spec.Locator)
		}
		if u, err := url.Parse("https://" + spec.Locator); err != nil || u.Host != spec.Hostname() || u.User != nil || u.RawQuery+u.Fragment != "" {
			t.Errorf("%q leads to %v, %v", name, u, err)
		}
	})
}
